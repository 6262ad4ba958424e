// SPDX-License-Identifier: Apache-2.0
// The guest's transmitq by hand, split layout, in the memory of a BackendBed: every frame is one descriptor, a 12-byte
// header of zeros in front of it.
#pragma once

#include <cstring>
#include <span>

#include "base/atomic.h"
#include "support/backend_bed.h"
#include "virtio/spec.h"

namespace sw::testing {

class SplitDriver {
 public:
  SplitDriver(const BackendBed& bed, uint32_t ring, uint16_t size = 256)
      : at_(bed.memory.data() + ring * kRingBytes), guest_(ring * kRingBytes), size_(size) {}

  [[nodiscard]] VringDesc* desc() const { return reinterpret_cast<VringDesc*>(at_); }
  [[nodiscard]] VringAvail* avail() const { return reinterpret_cast<VringAvail*>(at_ + 0x4000); }
  [[nodiscard]] VringUsed* used() const { return reinterpret_cast<VringUsed*>(at_ + 0x8000); }

  [[nodiscard]] bool full() const { return static_cast<uint16_t>(next_ - load_acquire(used()->idx)) >= size_; }

  // Make a frame of at most 104 bytes available.
  void push(std::span<const uint8_t> frame) {
    const auto slot = static_cast<uint16_t>(next_ % size_);
    uint8_t* const buffer = at_ + kBuffers + slot * kBufferBytes;
    std::memset(buffer, 0, 12);
    std::memcpy(buffer + 12, frame.data(), frame.size());
    desc()[slot] = {guest_ + kBuffers + slot * kBufferBytes, static_cast<uint32_t>(frame.size() + 12), 0, 0};
    avail()->ring[slot] = slot;
    store_release(avail()->idx, ++next_);
  }

 private:
  static constexpr uint64_t kBuffers = 0x8c00;
  static constexpr uint64_t kBufferBytes = 116;  // of 256 slots: to the end of the ring's 64 KiB
  uint8_t* at_;
  uint64_t guest_;
  uint16_t size_;
  uint16_t next_ = 0;
};

}  // namespace sw::testing
