// SPDX-License-Identifier: Apache-2.0
// SplitRing: the device's end of a split virtqueue (virtio 1.3 2.7), without any idea of frames. device_rx.h and
// device_tx.h put frames on top of it, or of PackedRing, which has the same members.
//
// Theory of operation. take_each() shows the first descriptors of available chains to its caller, who takes those that
// are whole buffers as they stand; fetch() copies the next one, walk() follows it and take() takes it. Taking writes the
// chain's used element; publish() makes everything taken visible at once. Elements beyond the used index mean nothing to
// the driver (2.7.8), so what was taken can be taken back. All of a ring belongs to one thread at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "base/atomic.h"
#include "base/bytes.h"
#include "virtio/device_chain.h"
#include "virtio/device_fault.h"
#include "virtio/device_ring.h"
#include "virtio/dirty_log.h"
#include "virtio/spec.h"

namespace sw {

class SplitRing {
 public:
  static constexpr bool kPacked = false;

  explicit SplitRing(const DeviceRingConfig& config)
      : descriptors_(config.ring.descriptors),
        avail_(reinterpret_cast<VringAvail*>(config.ring.driver_area)),
        used_(reinterpret_cast<VringUsed*>(config.ring.device_area)),
        size_(config.ring.size),
        mask_(config.ring.size - 1U),
        event_idx_(has_feature(config.features, VIRTIO_F_EVENT_IDX)),
        indirect_(has_feature(config.features, VIRTIO_F_INDIRECT_DESC)),
        log_(config.log_used ? config.log : nullptr),
        log_guest_(config.log_used_guest) {
    // After a crash of ours the front-end may hand us an old base; the used index in the ring is the truth, and since
    // chains are returned in order and nothing stays in flight it is the available position, too.
    read_ = load_relaxed(used_->idx);
    seen_ = read_;
    published_ = read_;
    signalled_ = read_;
  }

  // Shows up to `max` available chains to `use`, from the read position on and in order, as their first descriptors say.
  // use(head, written) decides: true takes the chain, to be returned with `written` bytes (0 if it sets nothing); false
  // leaves it and all behind it to fetch(), as is a bad one.
  template <class Use>
  Taken take_each(uint32_t max, Use use) {
    const uint32_t count = look(max);
    // Locals: what `use` stores must not make the compiler read members again.
    const uint16_t* const avail = avail_->ring;
    VringUsedElem* const used = used_->ring;
    const uint8_t* const descriptors = descriptors_;
    const uint32_t mask = mask_;
    const uint32_t begin = read_;
    Taken taken;
    for (; taken.count < count; ++taken.count) {
      const uint32_t slot = (begin + taken.count) & mask;
      const uint16_t id = load_relaxed(avail[slot]);
      uint32_t written = 0;
      if (id > mask || !use(head_of(descriptors, id), written)) [[unlikely]] {
        taken.left_one = true;
        break;
      }
      set_used(used[slot], id, written);
    }
    read_ = static_cast<uint16_t>(begin + taken.count);
    return taken;
  }
  // Copies the first descriptor of the chain at the read position. False: there is none, or the ring broke.
  bool fetch(Head& head) {
    if (look(1) == 0) return false;
    const uint16_t id = load_relaxed(avail_->ring[read_ & mask_]);
    if (id > mask_) [[unlikely]] {
      fault_.set(RingFault::kBadHead, id, size_);
      return false;
    }
    head = head_of(descriptors_, id);
    return true;
  }
  // Anything to fetch? For rings that are mostly idle: touches one line.
  [[nodiscard]] bool is_idle() const { return seen_ == read_ && load_acquire(avail_->idx) == read_; }

  // Follow the chain of `head`, which must be the next one at the read position.
  template <class Piece>
  Walk walk(Head& head, uint16_t& slots, Gather<Piece>& gather) {
    slots = 1;
    uint64_t addr = head.addr;
    uint32_t len = head.len;
    uint16_t flags = head.flags;
    uint16_t next = head.next;
    for (uint32_t left = std::min<uint32_t>(size_, kMaxChain); left > 0; --left) {  // 2.7.5.2: no longer than the ring
      if ((flags & VRING_DESC_F_INDIRECT) != 0) {
        // 2.7.5.3.2: direct descriptors may precede a table; WRITE on the referring descriptor means nothing.
        if (!indirect_ || (flags & VRING_DESC_F_NEXT) != 0) return Walk::kBad;
        return walk_table<false>(gather, addr, len);
      }
      const Walk added = gather.add(addr, len, flags);
      if (added != Walk::kOk || (flags & VRING_DESC_F_NEXT) == 0) return added;
      if (next >= size_) return Walk::kBad;
      const RawDescriptor raw = load_descriptor(descriptors_ + size_t{next} * sizeof(VringDesc));
      addr = raw.low;
      len = low32(raw.high);
      flags = bits32(raw.high);
      next = bits48(raw.high);
    }
    return Walk::kBad;
  }

  // The chain at the read position, whose head is `id`, will be returned with `len` bytes written.
  void take(uint16_t id, uint16_t /*slots*/, uint32_t len) {
    set_used(used_->ring[read_ & mask_], id, len);
    ++read_;
  }

  // A position to come back to: chains taken since `mark` are un-taken, or will be returned empty.
  [[nodiscard]] uint32_t mark() const { return read_; }
  void reserve_taken(uint32_t /*chains*/) {}
  void rollback(uint32_t mark) { read_ = static_cast<uint16_t>(mark); }
  void empty_since(uint32_t mark) {
    for (auto at = static_cast<uint16_t>(mark); at != read_; ++at) store_relaxed(used_->ring[at & mask_].len, 0);
  }

  // Return everything taken.
  void publish() {
    if (read_ == published_) return;
    if (log_ != nullptr) [[unlikely]] {
      for (uint16_t at = published_; at != read_; ++at) {
        const uint32_t slot = at & mask_;
        log_device_area(offsetof(VringUsed, ring) + uint64_t{slot} * sizeof(VringUsedElem), sizeof(VringUsedElem));
      }
    }
    store_release(used_->idx, read_);  // pairs with the driver's acquire: elements and payload come first
    if (log_ != nullptr) [[unlikely]] {
      log_->mark(log_guest_ + offsetof(VringUsed, idx), sizeof used_->idx);
    }
    published_ = read_;
    dirty_ = true;
  }

  // Does the driver want to hear of what was published since the last call? The caller fenced in between. 2.7.7.2.
  bool must_signal() {
    if (!dirty_) return false;
    dirty_ = false;
    const uint16_t before = signalled_;
    signalled();
    if (std::exchange(first_signal_, false)) return true;
    if (event_idx_) return vring_need_event(load_relaxed(vring_used_event(avail_, size_)), published_, before);
    return (load_relaxed(avail_->flags) & VRING_AVAIL_F_NO_INTERRUPT) == 0;
  }
  // A signal goes out, or the driver does not want one: count from here.
  void signalled() { signalled_ = published_; }

  // Ask the driver to kick when it makes more available / not to. 2.7.10.
  void want_kicks() {
    if (event_idx_) {
      store_relaxed(vring_avail_event(used_, size_), read_);
      log_device_area(offsetof(VringUsed, ring) + uint64_t{size_} * sizeof(VringUsedElem), sizeof(uint16_t));
    } else {
      store_relaxed(used_->flags, 0);
      log_device_area(0, sizeof used_->flags);
    }
  }
  void refuse_kicks() {
    // With EVENT_IDX flags must stay 0, and an event index left behind costs at most one kick in 65536 buffers.
    store_relaxed(used_->flags, event_idx_ ? 0 : VRING_USED_F_NO_NOTIFY);
    log_device_area(0, sizeof used_->flags);
  }
  // After want_kicks and a full fence (pairs with the driver's, between its index and reading our wish).
  [[nodiscard]] bool has_more() const { return load_acquire(avail_->idx) != read_; }

  [[nodiscard]] uint32_t base() const { return read_; }
  [[nodiscard]] uint32_t size() const { return size_; }
  RingFault& fault() { return fault_; }
  [[nodiscard]] const RingFault& fault() const { return fault_; }

 private:
  // How many chains are available, but at most `max`. Looks at the driver's index only if fewer were known.
  uint32_t look(uint32_t max) {
    if (fault_.is_set()) [[unlikely]] {
      return 0;
    }
    auto pending = static_cast<uint16_t>(seen_ - read_);
    if (pending < max) {
      seen_ = load_acquire(avail_->idx);  // pairs with the driver's barrier before it moved the index: ring and chains
      const auto ahead = static_cast<uint16_t>(seen_ - published_);
      if (ahead > size_) [[unlikely]] {
        fault_.set(RingFault::kIndexJumped, ahead, size_);
        return 0;
      }
      pending = static_cast<uint16_t>(seen_ - read_);
    }
    return std::min<uint32_t>(pending, max);
  }
  static Head head_of(const uint8_t* descriptors, uint16_t id) {
    const RawDescriptor raw = load_descriptor(descriptors + size_t{id} * sizeof(VringDesc));
    return {raw.low, low32(raw.high), bits32(raw.high), bits48(raw.high), id};
  }
  // A ring used in order repeats itself every lap: a store that changes nothing would only take the line away from the
  // driver. Plain accesses: elements are 4-byte aligned only, nobody else writes them, and publish() orders them.
  static void set_used(VringUsedElem& element, uint16_t id, uint32_t len) {
    const uint64_t value = uint64_t{len} << 32 | id;
    if (load_unaligned<uint64_t>(&element) != value) store_unaligned(&element, value);
  }
  void log_device_area(uint64_t offset, uint64_t bytes) {
    if (log_ != nullptr) [[unlikely]] {
      log_->mark(log_guest_ + offset, bytes);
    }
  }

  uint8_t* const descriptors_;
  VringAvail* const avail_;  // driver: wo, we: ro
  VringUsed* const used_;    // we: wo, driver: ro
  const uint16_t size_;
  const uint32_t mask_;
  const bool event_idx_;
  const bool indirect_;
  bool dirty_ = false;        // published something since the last must_signal
  bool first_signal_ = true;  // the driver may have published its wish before we existed: signal once regardless
  uint16_t read_;             // next available entry; also the used index once all taken chains are published
  uint16_t seen_;             // the driver's available index when last looked at
  uint16_t published_;        // used->idx
  uint16_t signalled_;        // used index at the last must_signal
  const std::shared_ptr<DirtyLog> log_;
  const uint64_t log_guest_;
  RingFault fault_;
};

}  // namespace sw
