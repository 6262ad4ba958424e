// SPDX-License-Identifier: Apache-2.0
// GuestCursor: GuestMemory with the region of the last hit kept close, because nearly all buffers of a guest lie in one
// region. One per ring.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "virtio/guest_memory.h"

namespace sw {

class GuestCursor {
 public:
  explicit GuestCursor(const GuestMemory* memory) : memory_(memory) {}

  // The whole range in one piece, or nullptr. An empty range yields nullptr, too, unless it begins inside a region.
  uint8_t* whole(uint64_t guest, uint64_t bytes) {
    const uint64_t offset = guest - guest_;
    if (offset < bytes_ && bytes <= bytes_ - offset) [[likely]] {
      return host_ + offset;
    }
    return move_to(guest) && bytes <= bytes_ - (guest - guest_) ? host_ + (guest - guest_) : nullptr;
  }

  // A pointer to `guest` and how much of `bytes` is contiguous from there; nullptr outside guest memory.
  uint8_t* part(uint64_t guest, uint64_t bytes, uint64_t& contiguous) {
    if (guest - guest_ >= bytes_ && !move_to(guest)) return nullptr;
    const uint64_t offset = guest - guest_;
    contiguous = std::min(bytes, bytes_ - offset);
    return host_ + offset;
  }

 private:
  bool move_to(uint64_t guest) {
    const GuestMemory::Range* const range = memory_->find(GuestPhys{guest});
    if (range == nullptr) return false;
    guest_ = range->guest;
    bytes_ = range->bytes;
    host_ = range->host;
    return true;
  }

  const GuestMemory* memory_;
  uint64_t guest_ = 0;  // the cached region; bytes_ 0: none yet
  uint64_t bytes_ = 0;
  uint8_t* host_ = nullptr;
};

}  // namespace sw
