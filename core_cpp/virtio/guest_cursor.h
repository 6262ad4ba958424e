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
  static constexpr uint32_t kShortBytes = 128 * 1024;  // no buffer for one frame needs to be longer

  // The cached region. Loops over many buffers keep a copy, which no store into guest memory can make the compiler read
  // again.
  struct Window {
    uint64_t guest = 0;
    uint64_t bytes = 0;         // 0: none yet
    uint64_t short_starts = 0;  // at how many of its first bytes a range of kShortBytes can begin
    uint8_t* host = nullptr;

    [[nodiscard]] bool holds(uint64_t address, uint64_t length) const {
      const uint64_t offset = address - guest;
      return offset < bytes && length <= bytes - offset;
    }
    // The same for at most kShortBytes: one comparison, but for the region's last ones.
    [[nodiscard]] bool holds_short(uint64_t address, uint64_t length) const {
      return address - guest < short_starts || holds(address, length);
    }
    // Where a range begins that it holds.
    [[nodiscard]] uint8_t* at(uint64_t address) const { return host + (address - guest); }
    // The whole range in one piece, or nullptr if it is not inside this region.
    [[nodiscard]] uint8_t* whole(uint64_t address, uint64_t length) const {
      return holds(address, length) ? at(address) : nullptr;
    }
  };

  explicit GuestCursor(const GuestMemory* memory) : memory_(memory) {}

  [[nodiscard]] const Window& window() const { return window_; }

  // The whole range in one piece, or nullptr. An empty range yields nullptr, too, unless it begins inside a region.
  uint8_t* whole(uint64_t guest, uint64_t bytes) {
    if (uint8_t* const host = window_.whole(guest, bytes)) [[likely]] {
      return host;
    }
    return move_to(guest) ? window_.whole(guest, bytes) : nullptr;
  }

  // The window was elsewhere and lies around the range now: try again what failed for that.
  bool moves_to(uint64_t guest, uint32_t bytes) {
    return !window_.holds(guest, bytes) && whole(guest, bytes) != nullptr;
  }

  // A pointer to `guest` and how much of `bytes` is contiguous from there; nullptr outside guest memory.
  uint8_t* part(uint64_t guest, uint64_t bytes, uint64_t& contiguous) {
    if (guest - window_.guest >= window_.bytes && !move_to(guest)) return nullptr;
    const uint64_t offset = guest - window_.guest;
    contiguous = std::min(bytes, window_.bytes - offset);
    return window_.host + offset;
  }

 private:
  bool move_to(uint64_t guest) {
    const GuestMemory::Range* const range = memory_->find(GuestPhys{guest});
    if (range == nullptr) return false;
    window_ = {range->guest, range->bytes, range->bytes - std::min<uint64_t>(range->bytes, kShortBytes), range->host};
    return true;
  }

  const GuestMemory* memory_;
  Window window_;
};

}  // namespace sw
