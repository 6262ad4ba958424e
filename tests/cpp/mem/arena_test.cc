// SPDX-License-Identifier: Apache-2.0
#include "mem/arena.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>

using namespace sw;

namespace {

Arena arena_of(size_t bytes) {
  auto region = HugeRegion::make({.name = "arena test", .bytes = bytes, .huge = HugePages::kOff});
  REQUIRE(region);
  return Arena(std::move(*region));
}

}  // namespace

TEST_CASE("arena: pieces are aligned, apart and reused after they were given back") {
  Arena arena = arena_of(1 << 20);
  void* const a = arena.allocate(100, 8);
  void* const b = arena.allocate(4096, 4096);
  void* const c = arena.allocate(64, 64);
  CHECK(reinterpret_cast<uintptr_t>(b) % 4096 == 0);
  CHECK(a != c);
  const size_t used = arena.used();
  CHECK(used == 128 + 4096 + 64);
  arena.deallocate(b, 4096, 4096);
  CHECK(arena.allocate(4096, 4096) == b);
  arena.deallocate(a, 100, 8);
  arena.deallocate(c, 64, 64);
  arena.deallocate(b, 4096, 4096);
  CHECK(arena.used() == 0);
  void* const whole = arena.allocate(1 << 20, 64);  // everything is one free range again
  CHECK(arena.used() == 1 << 20);
  arena.deallocate(whole, 1 << 20, 64);
}

TEST_CASE("arena: what does not fit comes from the heap") {
  Arena arena = arena_of(4096);
  void* const big = arena.allocate(1 << 20, 64);
  CHECK(arena.used() == 0);
  arena.deallocate(big, 1 << 20, 64);
  Arena none;
  void* const some = none.allocate(10, 8);
  none.deallocate(some, 10, 8);
}

TEST_CASE("arena: a large piece of the heap lies on whole huge pages, a small one need not") {
  Arena none;
  for (const size_t bytes : {kHugePage2M / 2, kHugePage2M, kHugePage2M + 4096}) {
    CAPTURE(bytes);
    void* const large = none.allocate(bytes, 4096);
    CHECK(reinterpret_cast<uintptr_t>(large) % kHugePage2M == 0);
    std::memset(large, 1, (bytes + kHugePage2M - 1) / kHugePage2M * kHugePage2M);  // the last page is its own, too
    none.deallocate(large, bytes, 4096);
  }
  void* const small = none.allocate(kHugePage2M / 2 - 1, 4096);
  CHECK(reinterpret_cast<uintptr_t>(small) % 4096 == 0);
  none.deallocate(small, kHugePage2M / 2 - 1, 4096);
}
