// SPDX-License-Identifier: Apache-2.0
// PackedRing: the device's end of a packed virtqueue (virtio 1.3 2.8), without any idea of frames. Same members as
// SplitRing (device_split.h), same rules: take_each shows, fetch copies, walk follows, take notes, publish shows.
//
// Theory of operation. One array of descriptors serves both directions. The driver makes a slot available, we write it
// back as used; a wrap counter on each side tells the laps apart. We return buffers in the order in which they came, so
// the slot where a used descriptor goes is the slot where its list began. The used descriptors of a batch are written
// with one 8-byte store each, the first one last with release: the driver looks at it first and so sees all or nothing.
// With IN_ORDER and nothing written to the buffers, one used descriptor with the last id returns the whole batch.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <utility>

#include "base/atomic.h"
#include "virtio/device_chain.h"
#include "virtio/device_fault.h"
#include "virtio/device_ring.h"
#include "virtio/dirty_log.h"
#include "virtio/spec.h"

namespace sw {

class PackedRing {
 public:
  static constexpr bool kPacked = true;

  // `read_only_buffers`: nothing is ever written to the buffers of this ring (rx), so IN_ORDER may batch.
  PackedRing(const DeviceRingConfig& config, bool read_only_buffers)
      : descriptors_(config.ring.descriptors),
        driver_event_(reinterpret_cast<VringPackedDescEvent*>(config.ring.driver_area)),
        device_event_(reinterpret_cast<VringPackedDescEvent*>(config.ring.device_area)),
        size_(config.ring.size),
        event_idx_(has_feature(config.features, VIRTIO_F_EVENT_IDX)),
        indirect_(has_feature(config.features, VIRTIO_F_INDIRECT_DESC)),
        batch_used_(read_only_buffers && has_feature(config.features, VIRTIO_F_IN_ORDER)),
        log_(config.log_used ? config.log : nullptr),
        log_event_guest_(config.log_used_guest) {
    // Only the low half of the base counts: whoever stops a ring has it drained, so both halves agree.
    read_ = config.base & 0x7fffU;
    wrap_ = (config.base >> 15 & 1U) != 0;
    if (read_ >= size_) {
      fault_.set(RingFault::kBadStart, read_, size_);
      read_ = 0;
    }
    written_ = signalled_ = read_;
    written_wrap_ = wrap_;
    // What is written back are descriptors, so the log needs the address of the descriptor area, which the front-end
    // does not name: it names the device area (VHOST_VRING_F_LOG).
    GuestPhys area{config.log_used_guest};
    if (log_ != nullptr) config.memory->guest_address(descriptors_, area);
    log_guest_ = area.value;
  }

  // As SplitRing::take_each. The ring itself is written by publish() only, in one go: a switch that dies in the middle of a
  // pass leaves a ring from which its successor can read the position (packed_position.h).
  template <class Use>
  Taken take_each(uint32_t max, Use use) {
    if (fault_.is_set()) [[unlikely]] {
      return {};
    }
    // A driver that breaks the rules may offer slots again that we have not returned yet: never go round past them.
    max = std::min(max, size_ - outstanding_);
    reserve_taken(max);
    const uint32_t size = size_;  // locals: what `use` stores must not make the compiler read members again
    const uint64_t* const ring = words_of(0);
    uint64_t* const list = returned_.data() + taken_;
    uint32_t at = read_;
    uint64_t avail = uint64_t{packed_avail_flags(wrap_)} << 48;
    Taken taken;
    for (; taken.count < max; ++taken.count) {
      const uint64_t* const words = ring + size_t{at} * 2;
      const uint64_t high = load_acquire(words[1]);  // pairs with the driver's release of the flags: list and buffers
      if ((high & kLapBits) != avail) break;
      const Head head{load_relaxed(words[0]), low32(high), bits48(high), 0, bits32(high)};
      uint32_t written = 0;
      if (head.id >= size || !use(head, written)) [[unlikely]] {
        taken.left_one = true;
        break;
      }
      list[taken.count] = returned(written, head.id, 1);
      if (++at == size) [[unlikely]] {
        at = 0;
        avail ^= kLapBits;  // one of the two, then the other
      }
    }
    taken_ += taken.count;
    taken_slots_ += taken.count;
    outstanding_ += taken.count;
    advance(taken.count);
    return taken;
  }
  // Copies the first descriptor of the list at the read position. False: there is none, or the ring broke.
  bool fetch(Head& head) {
    if (fault_.is_set() || outstanding_ == size_) return false;
    const uint64_t* const words = words_of(read_);
    const uint64_t high = load_acquire(words[1]);  // as above
    if ((high & kLapBits) != uint64_t{packed_avail_flags(wrap_)} << 48) return false;
    head = {load_relaxed(words[0]), low32(high), bits48(high), 0, bits32(high)};
    if ((head.flags & VRING_DESC_F_NEXT) == 0 && head.id >= size_) [[unlikely]] {
      fault_.set(RingFault::kBadId, head.id, size_);
      return false;
    }
    return true;
  }
  [[nodiscard]] bool is_idle() const { return !has_more(); }

  // Follow the list of `head`, which must be the next one at the read position. Always goes to the end of the list, to
  // learn its id (in the last descriptor) and how many slots it takes. 2.8.6.
  template <class Piece>
  Walk walk(Head& head, uint16_t& slots, Gather<Piece>& gather) {
    slots = 1;
    if ((head.flags & VRING_DESC_F_INDIRECT) != 0 && (head.flags & VRING_DESC_F_NEXT) == 0) {
      return indirect_ ? walk_table<true>(gather, head.addr, head.len) : Walk::kBad;
    }
    Walk result = add_direct(gather, head.addr, head.len, head.flags);
    uint16_t flags = head.flags;
    uint32_t at = read_;
    while ((flags & VRING_DESC_F_NEXT) != 0) {
      if (slots == size_ - outstanding_) {
        fault_.set(RingFault::kEndlessList, 0, size_);
        return Walk::kBroken;
      }
      if (++at == size_) at = 0;
      ++slots;
      const RawDescriptor raw = load_descriptor(descriptors_ + size_t{at} * sizeof(VringPackedDesc));
      flags = bits48(raw.high);
      head.id = bits32(raw.high);
      if (slots > kMaxChain) result = Walk::kBad;
      if (result == Walk::kOk) result = add_direct(gather, raw.low, low32(raw.high), flags);
    }
    if (head.id >= size_) {
      fault_.set(RingFault::kBadId, head.id, size_);
      return Walk::kBroken;
    }
    return result;
  }

  void take(uint16_t id, uint16_t slots, uint32_t len) {
    reserve_taken(1);
    returned_[taken_++] = returned(len, id, slots);
    taken_slots_ += slots;
    outstanding_ += slots;
    advance(slots);
  }

  [[nodiscard]] uint32_t mark() const { return taken_; }
  void reserve_taken(uint32_t chains) {
    if (taken_ + chains > kMaxTaken) [[unlikely]]
      write_back();
  }
  void rollback(uint32_t mark) {
    while (taken_ > mark) {
      const uint32_t slots = slots_of(returned_[--taken_]);
      taken_slots_ -= slots;
      outstanding_ -= slots;
      if (read_ < slots) {
        read_ += size_;
        wrap_ = !wrap_;
      }
      read_ -= slots;
    }
  }
  void empty_since(uint32_t mark) {
    for (uint32_t i = mark; i < taken_; ++i) returned_[i] &= ~uint64_t{0xffff'ffff};
  }

  void publish() {
    if (taken_ == 0 && !head_pending_) return;
    write_back();
    store_release(words_of(head_slot_)[1], head_word_);  // pairs with the driver's acquire of the flags
    if (log_ != nullptr) [[unlikely]]
      log_slot(head_slot_);
    head_pending_ = false;
    unsignalled_ += outstanding_;
    outstanding_ = 0;
    written_ = read_;
    written_wrap_ = wrap_;
    dirty_ = true;
  }

  bool must_signal() {
    if (!dirty_) return false;
    dirty_ = false;
    const uint32_t before = signalled_;
    const uint32_t moved = unsignalled_;
    signalled();
    if (std::exchange(first_signal_, false)) return true;
    const uint16_t flags = load_acquire(driver_event_->flags) & 3U;  // before off_wrap: the driver writes that first
    if (flags != VRING_PACKED_EVENT_FLAG_DESC || !event_idx_) return flags != VRING_PACKED_EVENT_FLAG_DISABLE;
    if (moved > size_) return true;  // more than a lap: the event was passed for sure
    // 2.8.10: bring the event offset and both positions onto one line of numbers, where the current lap begins at 0.
    const uint16_t off_wrap = load_relaxed(driver_event_->off_wrap);
    auto event = static_cast<uint16_t>(off_wrap & 0x7fffU);
    if ((off_wrap >> VRING_PACKED_EVENT_F_WRAP_CTR != 0) != written_wrap_) event = static_cast<uint16_t>(event - size_);
    auto old_position = static_cast<uint16_t>(before);
    if (written_ <= before) old_position = static_cast<uint16_t>(before - size_);
    return vring_need_event(event, static_cast<uint16_t>(written_), old_position);
  }
  // A signal goes out, or the driver does not want one: count from here.
  void signalled() {
    signalled_ = written_;
    unsignalled_ = 0;
  }

  // 2.8.10. With EVENT_IDX the wish could name a descriptor; "any" costs the same here, since we ask only when empty.
  void want_kicks() { set_device_event(VRING_PACKED_EVENT_FLAG_ENABLE); }
  void refuse_kicks() { set_device_event(VRING_PACKED_EVENT_FLAG_DISABLE); }
  [[nodiscard]] bool has_more() const { return packed_is_avail(bits48(load_acquire(words_of(read_)[1])), wrap_); }

  // Available and used position with their wrap counters; equal, since nothing stays in flight.
  [[nodiscard]] uint32_t base() const {
    const uint32_t half = read_ | (wrap_ ? 0x8000U : 0U);
    return half << 16 | half;
  }
  [[nodiscard]] uint32_t size() const { return size_; }
  RingFault& fault() { return fault_; }
  [[nodiscard]] const RingFault& fault() const { return fault_; }

 private:
  // A list to be returned in one word: as the second one of a used descriptor, with its number of slots in place of flags.
  static uint64_t returned(uint32_t len, uint16_t id, uint16_t slots) {
    return uint64_t{slots} << 48 | uint64_t{id} << 32 | len;
  }
  static uint16_t slots_of(uint64_t returned) { return bits48(returned); }
  static constexpr uint64_t kLapBits = uint64_t{kPackedAvailBit | kPackedUsedBit} << 48;

  [[nodiscard]] uint64_t* words_of(uint32_t slot) const {
    return reinterpret_cast<uint64_t*>(descriptors_ + size_t{slot} * sizeof(VringPackedDesc));
  }
  void advance(uint32_t slots) {
    read_ += slots;
    if (read_ >= size_) {
      read_ -= size_;
      wrap_ = !wrap_;
    }
  }
  template <class Piece>
  static Walk add_direct(Gather<Piece>& gather, uint64_t addr, uint32_t len, uint16_t flags) {
    // 2.8.7: a table is never part of a list.
    return (flags & VRING_DESC_F_INDIRECT) != 0 ? Walk::kBad : gather.add(addr, len, flags);
  }

  // Everything taken but not written goes to the ring; the very first word since the last publish is kept back.
  void write_back() {
    if (taken_ == 0) return;
    uint32_t slot = read_;
    bool wrap = wrap_;
    if (slot < taken_slots_) {  // taken_slots_ <= outstanding_ <= size_
      slot += size_;
      wrap = !wrap;
    }
    slot -= taken_slots_;
    const uint32_t count = taken_;
    taken_ = 0;
    taken_slots_ = 0;
    uint32_t i = 0;
    uint64_t used = uint64_t{packed_used_flags(wrap)} << 48;
    if (!head_pending_) {
      keep_head(slot, used);
      head_word_ = used_word(used, returned_[0]);
      slot += slots_of(returned_[0]);
      i = 1;
    }
    if (batch_used_) {
      // 2.8.8: the driver takes the id for the last buffer of the batch and skips to behind it.
      head_word_ = used_word(head_used_, returned(0, bits32(returned_[count - 1]), 0));
      return;
    }
    uint64_t* const ring = words_of(0);  // locals: see take_each()
    const uint32_t size = size_;
    const bool logs = log_ != nullptr;
    for (; i < count; ++i) {
      if (slot >= size) [[unlikely]] {
        slot -= size;
        used ^= kLapBits;
      }
      const uint64_t list = returned_[i];
      store_relaxed(ring[size_t{slot} * 2 + 1], used_word(used, list));
      if (logs) [[unlikely]]
        log_slot(slot);
      slot += slots_of(list);
    }
  }
  void keep_head(uint32_t slot, uint64_t used) {
    head_pending_ = true;
    head_slot_ = slot;
    head_used_ = used;
  }
  // `used`: the flags of its lap, in place.
  static uint64_t used_word(uint64_t used, uint64_t returned) {
    constexpr uint64_t kWritten = uint64_t{VRING_DESC_F_WRITE} << 48;
    const uint64_t len_and_id = returned & 0xffff'ffff'ffff;
    return used | len_and_id | (low32(returned) != 0 ? kWritten : 0);
  }
  void log_slot(uint32_t slot) const {
    log_->mark(log_guest_ + uint64_t{slot} * sizeof(VringPackedDesc), sizeof(VringPackedDesc));
  }
  void set_device_event(uint16_t flags) {
    store_relaxed(device_event_->flags, flags);
    if (log_ != nullptr) [[unlikely]] {
      log_->mark(log_event_guest_, sizeof(VringPackedDescEvent));
    }
  }

  uint8_t* const descriptors_;
  VringPackedDescEvent* const driver_event_;  // driver: wo, we: ro
  VringPackedDescEvent* const device_event_;  // we: wo, driver: ro
  const uint32_t size_;
  const bool event_idx_;
  const bool indirect_;
  const bool batch_used_;
  bool wrap_ = true;  // of read_
  bool dirty_ = false;
  bool first_signal_ = true;
  bool head_pending_ = false;  // head_word_ waits for publish
  bool written_wrap_ = true;
  uint32_t read_ = 0;         // next slot to look at; also the next slot to return, once all taken lists are published
  uint32_t written_ = 0;      // slot behind the last published one
  uint32_t signalled_ = 0;    // written_ at the last must_signal
  uint32_t unsignalled_ = 0;  // slots published since then
  uint32_t outstanding_ = 0;  // slots taken and not published: never more than size_
  uint32_t head_slot_ = 0;
  uint64_t head_used_ = 0;  // the flags of its lap, in place
  uint64_t head_word_ = 0;
  uint32_t taken_ = 0;
  uint32_t taken_slots_ = 0;  // of those in returned_
  std::array<uint64_t, kMaxTaken> returned_;
  const std::shared_ptr<DirtyLog> log_;
  uint64_t log_guest_ = 0;
  const uint64_t log_event_guest_;
  RingFault fault_;
};

}  // namespace sw
