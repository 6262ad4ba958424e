// SPDX-License-Identifier: Apache-2.0
// A device's side of a control queue, played by hand: it walks the chain as a device does, and can answer as none may.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "base/atomic.h"
#include "virtio/device_ring.h"
#include "virtio/spec.h"

namespace sw::testing {

struct TakenCommand {
  uint8_t command_class = 0;
  uint8_t command = 0;
  std::vector<uint8_t> data;
};

class ControlDevice {
 public:
  // `offset`: our pointer - the address that the device is told.
  ControlDevice(const RingMemory& ring, uint64_t features, uint64_t offset = 0)
      : ring_(ring), packed_(has_feature(features, VIRTIO_F_RING_PACKED)), offset_(offset) {}

  // The next command, if one is available. The chain must be one or more readable parts and one writable byte.
  std::optional<TakenCommand> take() { return packed_ ? take_packed() : take_split(); }

  // Write the answer and give the chain back as what it was.
  void answer(uint8_t ack) {
    store_relaxed(*ack_, ack);
    use(id_);
  }
  // Give a chain back under this id, whatever it is.
  void use(uint32_t id, uint16_t step = 1) {
    if (packed_) {
      auto& desc = reinterpret_cast<VringPackedDesc*>(ring_.descriptors)[used_slot_];
      desc.id = static_cast<uint16_t>(id);
      desc.len = 1;
      store_release(desc.flags, packed_used_flags(used_wrap_));
      return;
    }
    auto* const used = reinterpret_cast<VringUsed*>(ring_.device_area);
    VringUsedElem& entry = used->ring[used->idx % ring_.size];
    store_relaxed(entry.id, id);
    store_relaxed(entry.len, 1);
    store_release(used->idx, static_cast<uint16_t>(used->idx + step));
  }

 private:
  uint8_t* at(uint64_t address) const { return reinterpret_cast<uint8_t*>(address + offset_); }

  bool part(uint64_t address, uint32_t len, uint16_t flags, std::vector<uint8_t>& command) {
    if ((flags & VRING_DESC_F_WRITE) == 0) {
      if (ack_ != nullptr) return false;  // virtio 1.3 2.7.4.2: readable parts come first
      command.insert(command.end(), at(address), at(address) + len);
    } else {
      if (ack_ != nullptr || len != 1) return false;
      ack_ = at(address);
    }
    return true;
  }
  std::optional<TakenCommand> made(const std::vector<uint8_t>& command) const {
    if (ack_ == nullptr || command.size() < 2) return std::nullopt;
    return TakenCommand{command[0], command[1], {command.begin() + 2, command.end()}};
  }

  std::optional<TakenCommand> take_split() {
    const auto* const avail = reinterpret_cast<const VringAvail*>(ring_.driver_area);
    if (load_acquire(avail->idx) == seen_) return std::nullopt;
    id_ = load_relaxed(avail->ring[seen_ % ring_.size]);
    ++seen_;
    ack_ = nullptr;
    std::vector<uint8_t> command;
    const auto* const desc = reinterpret_cast<const VringDesc*>(ring_.descriptors);
    for (uint16_t i = id_;; i = desc[i].next) {
      if (!part(desc[i].addr, desc[i].len, desc[i].flags, command)) return std::nullopt;
      if ((desc[i].flags & VRING_DESC_F_NEXT) == 0) return made(command);
    }
  }

  std::optional<TakenCommand> take_packed() {
    const auto* const desc = reinterpret_cast<const VringPackedDesc*>(ring_.descriptors);
    if (!packed_is_avail(load_acquire(desc[seen_].flags), wrap_)) return std::nullopt;
    used_slot_ = seen_;
    used_wrap_ = wrap_;
    ack_ = nullptr;
    std::vector<uint8_t> command;
    for (;;) {
      const VringPackedDesc& one = desc[seen_];
      const bool sound = packed_is_avail(one.flags, wrap_) && part(one.addr, one.len, one.flags, command);
      id_ = one.id;
      if (++seen_ == ring_.size) {
        seen_ = 0;
        wrap_ = !wrap_;
      }
      if (!sound) return std::nullopt;
      if ((one.flags & VRING_DESC_F_NEXT) == 0) return made(command);
    }
  }

  const RingMemory ring_;
  const bool packed_;
  const uint64_t offset_;
  uint16_t seen_ = 0;
  bool wrap_ = true;
  uint16_t used_slot_ = 0;
  bool used_wrap_ = true;
  uint16_t id_ = 0;
  uint8_t* ack_ = nullptr;
};

}  // namespace sw::testing
