// SPDX-License-Identifier: Apache-2.0
#include "base/reaper.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <memory>
#include <string>

#include "base/fd.h"
#include "support/eventually.h"
#include "support/held_up.h"

namespace sw {
namespace {

using testing::eventually;
using testing::HeldUp;

bool hung_up(int socket) {
  pollfd look{socket, POLLRDHUP, 0};
  return ::poll(&look, 1, 0) == 1 && (look.revents & (POLLRDHUP | POLLHUP)) != 0;
}

TEST_CASE("Reaper: gives back its caller at once, and lets go one after the other, each when it can be") {
  Reaper reaper;
  HeldUp first;
  HeldUp second;
  std::array<int, 2> ends{-1, -1};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) == 0);
  const UniqueFd read_end(ends[0]);
  const auto closed = [&read_end] {
    pollfd look{read_end.get(), POLLIN, 0};
    return ::poll(&look, 1, 0) == 1 && (look.revents & POLLHUP) != 0;
  };
  reaper.drop(first.object());
  reaper.drop(second.object());
  reaper.close(UniqueFd(ends[1]));
  CHECK(reaper.pending() == 3);
  CHECK(Reaper::pending_everywhere() >= 3);
  first.release();
  CHECK(eventually([&] { return reaper.pending() == 2 && second.reached(); }));
  CHECK_FALSE(closed());
  second.release();
  CHECK(eventually([&] { return reaper.pending() == 0; }));
  CHECK(closed());
  // And again, with a thread that has ended.
  HeldUp third;
  reaper.drop(third.object());
  CHECK(eventually([&] { return third.reached(); }));
  third.release();
  CHECK(eventually([&] { return reaper.pending() == 0; }));
}

TEST_CASE("Reaper: of two one does not wait for the other, and each counts its own") {
  Reaper stuck;
  Reaper other;
  HeldUp held;
  for (size_t i = 0; i < Reaper::kMostPending; ++i) {
    CHECK_FALSE(stuck.stuck());
    stuck.drop(held.object());
  }
  CHECK(stuck.stuck());
  other.close(UniqueFd(::eventfd(0, EFD_CLOEXEC)));
  CHECK(eventually([&] { return other.pending() == 0; }));
  CHECK(stuck.pending() == Reaper::kMostPending);
  held.release();
  CHECK(eventually([&] { return stuck.pending() == 0; }));
}

TEST_CASE("Reaper: nobody waits for what is left when its port goes") {
  HeldUp held;
  {
    Reaper reaper;
    reaper.drop(held.object());
  }
  CHECK(Reaper::pending_everywhere() > 0);
  held.release();
  CHECK(eventually([&] { return Reaper::pending_everywhere() == 0; }));
}

TEST_CASE("Reaper: its thread takes none of the signals of the process") {
  Reaper reaper;
  HeldUp held;
  sigset_t ours;
  sigset_t theirs;
  sigset_t after;
  REQUIRE(::pthread_sigmask(SIG_SETMASK, nullptr, &ours) == 0);
  sigemptyset(&theirs);
  reaper.drop(held.object([&theirs] { ::pthread_sigmask(SIG_SETMASK, nullptr, &theirs); }));
  CHECK(eventually([&] { return held.reached(); }));
  REQUIRE(::pthread_sigmask(SIG_SETMASK, nullptr, &after) == 0);
  for (const int signal : {SIGTERM, SIGHUP, SIGINT, SIGCHLD, SIGRTMIN + 5}) {
    CAPTURE(signal);
    CHECK(sigismember(&theirs, signal) == 1);
    CHECK(sigismember(&after, signal) == sigismember(&ours, signal));
  }
  held.release();
  CHECK(eventually([&] { return reaper.pending() == 0; }));
}

TEST_CASE("Reaper: a connection ends for its peer at once, with something unread in it or not") {
  for (const bool unread : {false, true}) {
    CAPTURE(unread);
    Reaper reaper;
    HeldUp held;
    reaper.drop(held.object());
    std::array<int, 2> ends{-1, -1};
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
    const UniqueFd peer(ends[1]);
    if (unread) REQUIRE(::send(peer.get(), "x", 1, 0) == 1);
    reaper.hang_up(UniqueFd(ends[0]));
    CHECK(hung_up(peer.get()));
    CHECK(::send(peer.get(), "y", 1, MSG_NOSIGNAL) == -1);  // nothing more goes in, either
    CHECK(reaper.pending() == (unread ? 2 : 1));
    held.release();
    CHECK(eventually([&] { return reaper.pending() == 0; }));
  }
}

TEST_CASE("Reaper: nothing is nothing to do") {
  Reaper reaper;
  reaper.drop(nullptr);
  reaper.close(UniqueFd());
  reaper.hang_up(UniqueFd());
  CHECK(reaper.pending() == 0);
}

}  // namespace
}  // namespace sw
