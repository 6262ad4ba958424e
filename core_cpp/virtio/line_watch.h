// SPDX-License-Identifier: Apache-2.0
// LineWatch: do the cache lines that a guest writes come from near, or from as far as memory?
//
// Theory of operation. A worker and a guest's CPU that share a last-level cache pass lines to each other quickly, and
// changed lines best stay where they are. Between CPUs that do not share one (two core complexes, two sockets) a line of
// the other's cache takes as long as one from memory, and one that both have must first be taken away from the other
// before it may be written, which no prefetcher does ahead of time: that makes it the dearest thing that happens to a
// long frame. There it pays to keep nothing (docs/performance.md has the numbers):
//   - Lines of a frame that were copied are given back to memory (give_back): the guest's CPU finds them in no cache,
//     reads ahead, and writes its next frames several times as fast.
//   - Frames are copied into the guest's buffers past the cache (stream_copy): no line has to be fetched first.
// Between near CPUs both would cost more than they gain, and nobody tells a switch where a guest's CPUs are at this
// moment. But it can be seen: every so often a queue takes the time of kSamples lines, one at a time and some batches
// apart: of a load where the guest writes, of gaining a line for writing where it reads. If most take about as long as
// from memory, its lines are far for the next kFarBatches batches. Then the queue goes without for a while, so that a line
// which the guest does not touch at all is found in the worker's own cache and not in memory, where we put it, and it is
// measured again. All of it counts in batches; the clock is read around those single lines only.
#pragma once

#include <cstdint>

#include "base/atomic.h"
#include "net/frame.h"

namespace sw {

class LineWatch {
 public:
  static constexpr uint32_t kSamples = 15;        // lines for one verdict
  static constexpr uint32_t kSpacing = 8;         // batches from one to the next
  static constexpr uint32_t kNearBatches = 1024;  // from the verdict "near" to the first line of the next one
  static constexpr uint32_t kFarBatches = 8192;   // from the verdict "far" to the time without ...
  static constexpr uint32_t kSettleBatches = 64;  // ... and how long it is before the first line is looked at

  // `far_ticks`: lines that take at least so long are far; 0: none is.
  explicit LineWatch(uint32_t far_ticks) : far_ticks_(far_ticks) {}

  // Once a batch. True: a note must follow, of what a line takes if one is wanted and there is one, before the next batch.
  bool due() { return --left_ == 0; }
  [[nodiscard]] bool wants_line() const { return !far_; }
  void note(uint32_t ticks);
  void note_none();

  [[nodiscard]] bool far() const { return far_; }
  // The median of the last verdict's lines, 0: nothing was decided yet. Any thread.
  [[nodiscard]] uint32_t ticks() const { return load_relaxed(ticks_); }
  // Of this machine: four fifths of what a line takes from memory, the measuring included in both. 0: lines cannot be given
  // back.
  static uint32_t default_far_ticks();

 private:
  void decide();

  const uint32_t far_ticks_;
  uint32_t left_ = kSpacing;
  uint32_t count_ = 0;
  bool far_ = false;
  uint32_t ticks_ = 0;  // written by the worker, read by anybody
  uint32_t samples_[kSamples];
};

// Bodies of fewer bytes than this are neither looked at, nor given back, nor copied past the cache.
inline constexpr uint32_t kLeastBody = 128;

// Give back what the frames have beside their heads.
void give_back_bodies(const Batch& batch);

}  // namespace sw
