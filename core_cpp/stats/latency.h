// SPDX-License-Identifier: Apache-2.0
// LatencyHistogram: how often something took how long, in ticks of whatever clock the writer uses. Buckets are 1/32 of
// a power of two wide, so a bucket is known to 3 %. One writer, any reader; it only ever grows, and a reader that wants
// an interval subtracts two snapshots.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "stats/counters.h"

namespace sw {

class LatencyHistogram {
 public:
  static constexpr uint32_t kStepBits = 5;
  static constexpr uint32_t kOctaves = 36;  // 2^36 ticks are 20 s and more; longer counts as that
  static constexpr size_t kBuckets = size_t{kOctaves + 1} << kStepBits;

  void record(uint64_t ticks) { buckets_[bucket_of(ticks)].add(1); }

  [[nodiscard]] std::vector<uint64_t> snapshot() const {
    std::vector<uint64_t> counts(kBuckets);
    for (size_t i = 0; i < kBuckets; ++i) counts[i] = buckets_[i].get();
    return counts;
  }

  // Values below 2^kStepBits have a bucket each; above, the leading bit chooses the octave, the next five the step.
  static constexpr size_t bucket_of(uint64_t ticks) {
    constexpr uint64_t kMost = (uint64_t{1} << (kOctaves + kStepBits)) - 1;
    if (ticks > kMost) ticks = kMost;
    if (ticks < uint64_t{1} << kStepBits) return ticks;
    const auto octave = static_cast<uint32_t>(std::bit_width(ticks)) - kStepBits;  // from 1 on
    return (size_t{octave} << kStepBits) + ((ticks >> (octave - 1)) & ((1U << kStepBits) - 1));
  }
  // The smallest value of a bucket.
  static constexpr uint64_t lower_bound(size_t bucket) {
    const auto octave = static_cast<uint32_t>(bucket >> kStepBits);
    const uint64_t step = bucket & ((1U << kStepBits) - 1);
    return octave == 0 ? step : ((uint64_t{1} << kStepBits) + step) << (octave - 1);
  }

 private:
  std::array<Counter, kBuckets> buckets_;
};

}  // namespace sw
