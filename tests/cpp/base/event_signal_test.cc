// SPDX-License-Identifier: Apache-2.0
#include "base/event_signal.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/stall_guard.h"

namespace sw {
namespace {

UniqueFd make(unsigned initial, int flags) { return UniqueFd(::eventfd(initial, flags | EFD_CLOEXEC)); }

bool readable(int fd) {
  pollfd look{fd, POLLIN, 0};
  return ::poll(&look, 1, 0) == 1;
}

const int kSignal = SIGRTMIN + 6;

// How often a guard's signal came; its handler is installed with the first call.
int count_taken_out() {
  static std::atomic<int> count{0};
  static const bool installed = [] {
    struct sigaction action{};
    action.sa_handler = [](int) { ++count; };
    return ::sigaction(kSignal, &action, nullptr) == 0;
  }();
  REQUIRE(installed);
  return count;
}

TEST_CASE("signal_eventfd: counts, as a write does, however often") {
  const UniqueFd fd = make(0, EFD_NONBLOCK);
  for (int i = 0; i < 1000; ++i) REQUIRE(signal_eventfd(fd.get()));
  CHECK(drain_eventfd(fd.get()) == 1000);
  CHECK(drain_eventfd(fd.get()) == 0);
}

TEST_CASE("signal_eventfd: a full counter that would block stays full, and nobody waits") {
  REQUIRE(signals_never_wait());
  const UniqueFd fd = make(0, 0);
  const uint64_t most = ~uint64_t{1};
  REQUIRE(::write(fd.get(), &most, sizeof most) == sizeof most);
  for (int i = 0; i < 100; ++i) CHECK(signal_eventfd(fd.get()));
  CHECK(readable(fd.get()));
}

TEST_CASE("signal_eventfd: a watched thread writes, until a peer made it wait once") {
  const int taken_out = count_taken_out();
  StallGuard guard(kSignal);
  EventPeer honest;
  EventPeer hostile;
  const UniqueFd ours = make(0, EFD_NONBLOCK);
  const UniqueFd full = make(0, 0);
  const uint64_t most = ~uint64_t{1};
  REQUIRE(::write(full.get(), &most, sizeof most) == sizeof most);
  guard.watch();
  CHECK(signal_eventfd(ours.get(), honest));
  CHECK_FALSE(honest.made_us_wait);
  CHECK(signal_eventfd(full.get(), hostile));  // hangs for ever but for the guard
  CHECK(hostile.made_us_wait);
  CHECK(count_taken_out() > taken_out);
  guard.rest();
  const int before = count_taken_out();
  guard.watch();
  for (int i = 0; i < 100; ++i) CHECK(signal_eventfd(full.get(), hostile));
  guard.rest();
  CHECK(count_taken_out() < before + 100);  // a signal comes to a thread that got no CPU for a while, too
  CHECK(drain_eventfd(ours.get()) == 1);
}

TEST_CASE("signal_eventfd: a thread that nobody watches never writes") {
  EventPeer peer;
  const UniqueFd full = make(0, 0);
  const uint64_t most = ~uint64_t{1};
  REQUIRE(::write(full.get(), &most, sizeof most) == sizeof most);
  CHECK(signal_eventfd(full.get(), peer));
  CHECK_FALSE(peer.made_us_wait);
}

TEST_CASE("StallGuard: ends a call that takes too long, and none while it rests") {
  (void)count_taken_out();
  StallGuard guard(kSignal);
  const timespec long_nap{10, 0};
  const timespec short_nap{0, 3 * static_cast<long>(StallGuard::kPatienceNs)};
  CHECK(::nanosleep(&short_nap, nullptr) == 0);
  guard.watch();
  CHECK(StallGuard::watches_this_thread());
  std::thread([] { CHECK_FALSE(StallGuard::watches_this_thread()); }).join();
  for (int i = 0; i < 3; ++i) {
    CHECK(::nanosleep(&long_nap, nullptr) == -1);
    CHECK(errno == EINTR);
  }
  guard.rest();
  CHECK_FALSE(StallGuard::watches_this_thread());
  CHECK(::nanosleep(&short_nap, nullptr) == 0);
}

TEST_CASE("drain_eventfd: an empty counter that would block is empty, and nobody waits") {
  const UniqueFd fd = make(0, 0);
  CHECK(drain_eventfd(fd.get()) == 0);
  CHECK(signal_eventfd(fd.get()));
  CHECK(drain_eventfd(fd.get()) == 1);
}

TEST_CASE("signal_eventfd: what is no eventfd is told, and not written to") {
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0);
  const UniqueFd read_end(ends[0]);
  const UniqueFd write_end(ends[1]);
  CHECK_FALSE(signal_eventfd(write_end.get()));
  CHECK_FALSE(readable(read_end.get()));
  CHECK_FALSE(signal_eventfd(-1));
  CHECK_FALSE(signal_eventfd(1 << 20));
}

TEST_CASE("signal_eventfd: from many threads at once, none of which leaves anything behind") {
  const UniqueFd fd = make(0, EFD_NONBLOCK);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&fd] {
      for (int n = 0; n < 500; ++n) (void)signal_eventfd(fd.get());
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(drain_eventfd(fd.get()) == 4000);
}

}  // namespace
}  // namespace sw
