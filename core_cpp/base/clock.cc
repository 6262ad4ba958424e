// SPDX-License-Identifier: Apache-2.0
#include "base/clock.h"

namespace sw {

uint64_t tsc_hz() {
  static const uint64_t hz = [] {
    const uint64_t start_ns = monotonic_ns();
    const uint64_t start_tsc = tsc_now();
    uint64_t elapsed_ns = 0;
    while ((elapsed_ns = monotonic_ns() - start_ns) < 10'000'000U) _mm_pause();
    return (tsc_now() - start_tsc) * 1'000'000'000U / elapsed_ns;
  }();
  return hz;
}

}  // namespace sw
