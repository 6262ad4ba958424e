// SPDX-License-Identifier: Apache-2.0
#include "virtio/line_watch.h"

#include <algorithm>

#include "base/cache_line.h"

namespace sw {

uint32_t LineWatch::default_far_ticks() { return ticks_of_memory() / 5 * 4; }

void LineWatch::note(uint32_t ticks) {
  left_ = kSpacing;
  samples_[count_++] = ticks;
  if (count_ == kSamples) decide();
}

// What is due while lines are far is the end of that.
void LineWatch::note_none() {
  left_ = far_ ? kSettleBatches : kSpacing;
  far_ = false;
}

void LineWatch::decide() {
  uint32_t* const median = samples_ + kSamples / 2;
  std::nth_element(samples_, median, samples_ + kSamples);
  store_relaxed(ticks_, *median);
  far_ = far_ticks_ != 0 && *median >= far_ticks_;
  left_ = far_ ? kFarBatches : kNearBatches;
  count_ = 0;
}

void give_back_bodies(const Batch& batch) {
  for (uint32_t i = 0; i < batch.count; ++i) {
    const Frame& frame = batch.frames[i];
    for (uint32_t k = 0; k < frame.segment_count; ++k) {
      const Segment& segment = frame.segments[k];
      if (segment.len >= kLeastBody) give_back(segment.data, segment.len);
    }
  }
}

}  // namespace sw
