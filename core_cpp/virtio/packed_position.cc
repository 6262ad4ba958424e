// SPDX-License-Identifier: Apache-2.0
#include "virtio/packed_position.h"

#include <cstddef>
#include <vector>

#include "base/atomic.h"
#include "virtio/spec.h"

namespace sw {

namespace {

constexpr int kTries = 4;  // a driver that adds buffers while we look can blur one look

struct Slot {
  bool lap;      // wrap counter of the lap in which the driver wrote it last
  bool pending;  // available, not used yet
};

std::vector<Slot> look(const uint8_t* descriptors, uint16_t size) {
  std::vector<Slot> slots;
  slots.reserve(size);
  for (size_t i = 0; i < size; ++i) {
    const auto* words = reinterpret_cast<const uint64_t*>(descriptors + i * sizeof(VringPackedDesc));
    const auto flags = static_cast<uint16_t>(load_acquire(words[1]) >> 48);
    const bool avail = (flags & kPackedAvailBit) != 0;
    const bool used = (flags & kPackedUsedBit) != 0;
    slots.push_back({avail, avail != used});
  }
  return slots;
}

// The slot where the lap changes, going up from slot 0: 0 if it never does, nothing if it does more than once.
std::optional<size_t> lap_change(const std::vector<Slot>& slots) {
  size_t at = 0;
  for (size_t i = 1; i < slots.size(); ++i) {
    if (slots[i].lap == slots[i - 1].lap) continue;
    if (at != 0) return std::nullopt;
    at = i;
  }
  return at;
}

std::optional<uint16_t> position(size_t slot, bool wrap) { return static_cast<uint16_t>(slot | (wrap ? 0x8000U : 0U)); }

std::optional<uint16_t> position_of(const std::vector<Slot>& slots) {
  const size_t size = slots.size();
  size_t pending = 0;
  size_t runs = 0;
  size_t first = 0;
  for (size_t i = 0; i < size; ++i) {
    if (!slots[i].pending) continue;
    ++pending;
    if (slots[(i + size - 1) % size].pending) continue;
    ++runs;
    first = i;
  }
  if (runs > 1) return std::nullopt;
  if (runs == 0) {
    // All alike: the device stands where driver and lap change. All used in this lap up to there, or (nothing else
    // would be pending all round) all made available in the next lap up to there.
    const auto change = lap_change(slots);
    if (!change) return std::nullopt;
    const bool wrap = pending == 0 ? slots[0].lap : slots[size - 1].lap;
    if (*change == 0) return position(0, pending == 0 ? !wrap : wrap);
    return position(*change, wrap);
  }
  // The available run begins with the device's lap and goes on with the next one from slot 0. Of the used slots those
  // below the device are of its lap, those above of the one before, which has the other wrap counter.
  const bool wrap = slots[first].lap;
  for (size_t i = 0; i < size; ++i) {
    const bool above = i >= first;
    if (slots[i].lap != (slots[i].pending == above ? wrap : !wrap)) return std::nullopt;
  }
  return position(first, wrap);
}

}  // namespace

std::optional<uint16_t> find_packed_position(const uint8_t* descriptors, uint16_t size) {
  if (size == 0) return std::nullopt;
  std::optional<uint16_t> found;
  for (int i = 0; i < kTries && !found; ++i) found = position_of(look(descriptors, size));
  return found;
}

}  // namespace sw
