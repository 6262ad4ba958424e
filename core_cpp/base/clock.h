// SPDX-License-Identifier: Apache-2.0
// Time: the TSC for what a worker measures, CLOCK_MONOTONIC for everything else but what people read.
#pragma once

#include <x86intrin.h>

#include <cstdint>
#include <ctime>

namespace sw {

inline uint64_t tsc_now() { return __rdtsc(); }

inline uint64_t monotonic_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<uint64_t>(now.tv_nsec);
}

// For people; it may jump.
inline uint64_t realtime_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<uint64_t>(now.tv_nsec);
}

// TSC ticks per second, measured once against CLOCK_MONOTONIC (about 10 ms on the first call).
uint64_t tsc_hz();

}  // namespace sw
