// SPDX-License-Identifier: Apache-2.0
#include "base/event_signal.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>
#include <thread>
#include <vector>

#include "base/fd.h"

namespace sw {
namespace {

UniqueFd make(unsigned initial, int flags) { return UniqueFd(::eventfd(initial, flags | EFD_CLOEXEC)); }

bool readable(int fd) {
  pollfd look{fd, POLLIN, 0};
  return ::poll(&look, 1, 0) == 1;
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
