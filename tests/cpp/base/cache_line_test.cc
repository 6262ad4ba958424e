// SPDX-License-Identifier: Apache-2.0
#include "base/cache_line.h"

#include <doctest/doctest.h>
#include <sched.h>

#include <cstring>
#include <string>
#include <vector>

namespace sw {
namespace {

std::vector<uint8_t> pattern(size_t bytes) {
  std::vector<uint8_t> made(bytes);
  for (size_t i = 0; i < bytes; ++i) made[i] = static_cast<uint8_t>(i * 7 + 1);
  return made;
}

TEST_CASE("stream_copy: copies exactly the bytes asked for, from and to any address") {
  constexpr size_t kMost = 260, kAround = 2 * kLineBytes;
  constexpr uint8_t kCanary = 0xee;
  const std::vector<uint8_t> from = pattern(kMost + kLineBytes);
  for (size_t to_offset = 0; to_offset < kLineBytes; to_offset += 3) {
    for (const size_t from_offset : {size_t{0}, size_t{1}, size_t{12}, size_t{63}}) {
      for (size_t bytes = 0; bytes <= kMost; bytes += bytes % 64 < 3 || bytes % 64 > 60 ? 1 : 7) {
        CAPTURE(to_offset);
        CAPTURE(from_offset);
        CAPTURE(bytes);
        alignas(kLineBytes) uint8_t to[kMost + 2 * kAround];
        std::memset(to, kCanary, sizeof to);
        stream_copy(to + kAround + to_offset, from.data() + from_offset, bytes);
        stream_fence();
        uint8_t expected[sizeof to];
        std::memset(expected, kCanary, sizeof expected);
        std::memcpy(expected + kAround + to_offset, from.data() + from_offset, bytes);
        REQUIRE(std::memcmp(to, expected, sizeof to) == 0);
      }
    }
  }
}

TEST_CASE("give_back and the two measurements leave memory as it is") {
  if (ticks_of_memory() == 0) return;  // no CLFLUSHOPT here
  std::vector<uint8_t> memory = pattern(1000);
  for (const size_t offset : {size_t{0}, size_t{1}, size_t{63}, size_t{64}}) {
    for (const size_t bytes : {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{65}, size_t{900}}) {
      give_back(memory.data() + offset, bytes);
    }
    CHECK(ticks_of_load(memory.data() + offset) > 0);
    CHECK(ticks_of_store(memory.data() + offset) > 0);
  }
  CHECK(memory == pattern(1000));
}

TEST_CASE("line_of: the line that an address lies in") {
  const auto* const base = reinterpret_cast<const uint8_t*>(0x1000);
  for (const size_t offset : {size_t{0}, size_t{1}, size_t{63}}) CHECK(line_of(base + offset) == base);
  CHECK(line_of(base + 64) == base + 64);
}

TEST_CASE("ticks_between: of two CPUs that there are") {
  CHECK(ticks_between(0, 0).error().message() == "measure from CPU 0 to itself: Invalid argument");
  CHECK(ticks_between(0, 1023).error().message() == "pin a thread to CPU 1023: Invalid argument");
  cpu_set_t all;
  REQUIRE(sched_getaffinity(0, sizeof all, &all) == 0);
  if (!CPU_ISSET(0, &all) || !CPU_ISSET(1, &all)) return;
  const Result<uint32_t> ticks = ticks_between(0, 1);
  REQUIRE(static_cast<bool>(ticks));
  CHECK(*ticks > 0);
}

}  // namespace
}  // namespace sw
