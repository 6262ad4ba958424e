// SPDX-License-Identifier: Apache-2.0
// The packed ring, driver's side (virtio 1.3 2.8): one ring of descriptors that both sides write in turn. Buffer ids
// circulate independently of slots; a chain of n descriptors occupies n slots and n ids. Length, id and flags of a
// descriptor are one 64-bit word, written and read at once.
#include "base/atomic.h"
#include "virtio/driver_queues.h"

namespace sw {
namespace {

template <bool kEventIdx, bool kInOrder>
class PackedDriverRing {
 public:
  PackedDriverRing(const DriverRingConfig& config, bool device_writes)
      : ids_(config.ring.size),
        size_(config.ring.size),
        write_flag_(device_writes ? VRING_DESC_F_WRITE : uint16_t{0}),
        desc_(reinterpret_cast<Descriptor*>(config.ring.descriptors)),
        driver_event_(reinterpret_cast<VringPackedDescEvent*>(config.ring.driver_area)),
        device_event_(reinterpret_cast<VringPackedDescEvent*>(config.ring.device_area)),
        heads_(config.ring.size) {
    disarm();
  }

  DriverIds& ids() { return ids_; }
  [[nodiscard]] const DriverIds& ids() const { return ids_; }

  // All but the burst's first descriptor are written at once: the device looks at descriptors in order and stops at the
  // first, whose flags publish() writes.
  void add(const DriverPart* parts, uint32_t count) {
    const uint16_t first_slot = avail_slot_;
    const uint16_t id = ids_.take_chain(count);
    for (uint32_t i = 0; i < count; ++i) {
      Descriptor& desc = desc_[avail_slot_];
      const auto flags = static_cast<uint16_t>(write_flag_ | (i + 1 == count ? 0 : VRING_DESC_F_NEXT) |
                                               packed_avail_flags(avail_wrap_));
      const uint64_t word = parts[i].len | uint64_t{id} << 32 | uint64_t{flags} << 48;
      store_relaxed(desc.address, parts[i].address);
      if (unpublished_ == 0) {
        burst_slot_ = avail_slot_;
        burst_word_ = word;
      } else {
        store_relaxed(desc.len_id_flags, word);
      }
      ++unpublished_;
      if (++avail_slot_ == size_) {
        avail_slot_ = 0;
        avail_wrap_ = !avail_wrap_;
      }
    }
    if constexpr (kInOrder) heads_[first_slot] = id;
  }

  // The next `count` free ids as chains of one buffer each, of `len` bytes at address_of(id).
  template <class AddressOf>
  void add_singles(uint32_t count, uint32_t len, AddressOf address_of) {
    Poster post(*this, len);
    ids_.take_singles(count, [&](uint16_t id) { post(id, address_of(id)); });
    post.finish(*this, count);
  }
  // The same for ids that came back and go out as they were.
  template <class IdOf, class AddressOf>
  void repost(uint32_t count, uint32_t len, IdOf id_of, AddressOf address_of) {
    Poster post(*this, len);
    ids_.retake_singles(count, id_of, [&](uint16_t id) { post(id, address_of(id)); });
    post.finish(*this, count);
  }

  // Pairs with the device's acquire load of the same word: the whole burst and its payload are visible first.
  void publish() {
    if (unpublished_ == 0) return;
    store_release(desc_[burst_slot_].len_id_flags, burst_word_);
    unkicked_ = std::min<uint32_t>(unkicked_ + unpublished_, size_);
    unpublished_ = 0;
  }

  template <bool kLengths, class OnUsed>  // lengths come with the flags here
  void reap(uint32_t limit, OnUsed on_used) {
    if constexpr (!kInOrder) {
      reap_each(limit, on_used);
    } else {
      while (limit != 0 && ids_.in_flight() != 0 && !ids_.failed()) {
        // Pairs with the device's release store of the flags: id, length and payload are readable.
        const uint64_t word = load_acquire(desc_[used_slot_].len_id_flags);
        if (!packed_is_used(static_cast<uint16_t>(word >> 48), used_wrap_)) return;
        const auto id = static_cast<uint16_t>(word >> 32);
        limit -= std::min<uint32_t>(limit, reap_group(id, static_cast<uint32_t>(word), on_used));
      }
    }
  }

  [[nodiscard]] bool has_used() const {
    return packed_is_used(static_cast<uint16_t>(load_acquire(desc_[used_slot_].len_id_flags) >> 48), used_wrap_);
  }

  // virtio 1.3 2.8.10, 2.8.21.3.1: called after a full fence that follows publish().
  bool kick_wanted() {
    if (unkicked_ == 0) return false;
    const auto moved = static_cast<uint16_t>(unkicked_);
    unkicked_ = 0;
    const uint16_t flags = load_acquire(device_event_->flags);
    if (flags != VRING_PACKED_EVENT_FLAG_DESC || !kEventIdx) return flags != VRING_PACKED_EVENT_FLAG_DISABLE;
    const uint16_t off_wrap = load_relaxed(device_event_->off_wrap);
    auto event = static_cast<uint16_t>(off_wrap & ((1U << VRING_PACKED_EVENT_F_WRAP_CTR) - 1));
    if ((off_wrap >> VRING_PACKED_EVENT_F_WRAP_CTR != 0) != avail_wrap_) event = static_cast<uint16_t>(event - size_);
    return vring_need_event(event, avail_slot_, static_cast<uint16_t>(avail_slot_ - moved));
  }

  bool arm() {
    if constexpr (kEventIdx) {
      store_relaxed(driver_event_->off_wrap,
                    static_cast<uint16_t>(used_slot_ | (used_wrap_ ? 1U << VRING_PACKED_EVENT_F_WRAP_CTR : 0)));
      store_release(driver_event_->flags, VRING_PACKED_EVENT_FLAG_DESC);
    } else {
      store_relaxed(driver_event_->flags, VRING_PACKED_EVENT_FLAG_ENABLE);
    }
    full_fence();  // pairs with the device's fence between its used descriptors and its look at our wish
    return ids_.in_flight() != 0 && has_used();
  }
  void disarm() { store_relaxed(driver_event_->flags, VRING_PACKED_EVENT_FLAG_DISABLE); }

 private:
  struct Descriptor {
    uint64_t address;
    uint64_t len_id_flags;  // as VringPackedDesc: len in bits 31..0, id in 47..32, flags in 63..48
  };
  static_assert(sizeof(Descriptor) == sizeof(VringPackedDesc));

  static constexpr uint64_t kLapBits = uint64_t{kPackedAvailBit | kPackedUsedBit} << 48;

  // Writes descriptors of one buffer each, from the next slot on. What it keeps in locals goes back with finish().
  class Poster {
   public:
    Poster(PackedDriverRing& ring, uint32_t len)
        : desc_(ring.desc_),
          heads_(ring.heads_.data()),
          size_(ring.size_),
          slot_(ring.avail_slot_),
          rest_(uint64_t{static_cast<uint16_t>(ring.write_flag_ | packed_avail_flags(ring.avail_wrap_))} << 48 | len),
          wrap_(ring.avail_wrap_),
          first_(ring.unpublished_ == 0) {}

    void operator()(uint16_t id, uint64_t address) {
      const uint64_t word = rest_ | uint64_t{id} << 32;
      store_relaxed(desc_[slot_].address, address);
      if (first_) [[unlikely]] {
        first_ = false;
        burst_slot_ = slot_;
        burst_word_ = word;
      } else {
        store_relaxed(desc_[slot_].len_id_flags, word);
      }
      if constexpr (kInOrder) heads_[slot_] = id;
      if (++slot_ == size_) [[unlikely]] {
        slot_ = 0;
        rest_ ^= kLapBits;
        wrap_ = !wrap_;
      }
    }
    void finish(PackedDriverRing& ring, uint32_t count) const {
      if (count == 0) return;
      if (ring.unpublished_ == 0) {
        ring.burst_slot_ = static_cast<uint16_t>(burst_slot_);
        ring.burst_word_ = burst_word_;
      }
      ring.unpublished_ += count;
      ring.avail_slot_ = static_cast<uint16_t>(slot_);
      ring.avail_wrap_ = wrap_;
    }

   private:
    Descriptor* const desc_;
    uint16_t* const heads_;
    const uint32_t size_;
    uint32_t slot_;
    uint64_t rest_;  // flags and length
    bool wrap_;
    bool first_;  // of what publish() will show
    uint32_t burst_slot_ = 0;
    uint64_t burst_word_ = 0;
  };

  template <class OnUsed>
  void reap_each(uint32_t limit, OnUsed& on_used) {
    const Descriptor* const desc = desc_;  // locals: see DriverIds
    const uint32_t size = size_;
    const uint32_t in_flight = ids_.in_flight();
    uint32_t slot = used_slot_;
    uint64_t used = uint64_t{packed_used_flags(used_wrap_)} << 48;
    uint32_t landed = 0;
    for (; limit != 0 && landed != in_flight; --limit) {
      // Pairs with the device's release store of the flags: id, length and payload are readable.
      const uint64_t word = load_acquire(desc[slot].len_id_flags);
      if ((word & kLapBits) != used) break;
      const auto id = static_cast<uint16_t>(word >> 32);
      const uint32_t chain = ids_.complete(id);
      if (chain == 0) [[unlikely]] {
        ids_.fail("a used descriptor names a buffer that the device does not hold");
        break;
      }
      landed += chain;
      slot += chain;  // 2.8.6: one used descriptor per chain; both sides skip the chain's other slots
      if (slot >= size) [[unlikely]] {
        slot -= size;
        used ^= kLapBits;
      }
      if (!on_used(id, static_cast<uint32_t>(word), chain)) [[unlikely]]
        break;
    }
    ids_.landed(landed);
    used_slot_ = static_cast<uint16_t>(slot);
    used_wrap_ = used != 0;
  }

  template <class OnUsed>
  uint32_t reap_one(uint16_t id, uint64_t len, OnUsed& on_used) {
    const uint32_t chain = ids_.complete(id);
    if (chain == 0) {
      ids_.fail("a used descriptor names a buffer that the device does not hold");
      return 1;
    }
    ids_.landed(chain);
    // 2.8.6: one used descriptor per chain; both sides skip the chain's other slots.
    used_slot_ = static_cast<uint16_t>(used_slot_ + chain);
    if (used_slot_ >= size_) {
      used_slot_ = static_cast<uint16_t>(used_slot_ - size_);
      used_wrap_ = !used_wrap_;
    }
    on_used(id, len, chain);
    return 1;
  }

  // virtio 1.3 2.8.9: an in-order device may write one used descriptor for a group of buffers, naming the last of them,
  // at the place of the first. Returns how many it stands for.
  template <class OnUsed>
  uint32_t reap_group(uint16_t last, uint32_t len, OnUsed& on_used) {
    uint32_t group = 0;
    while (ids_.in_flight() != 0 && !ids_.failed()) {
      const uint16_t id = heads_[used_slot_];
      reap_one(id, id == last ? len : kUsedWhole, on_used);
      ++group;
      if (id == last) return group;
    }
    ids_.fail("a used descriptor names a buffer out of order");
    return group;
  }

  DriverIds ids_;
  const uint16_t size_;
  const uint16_t write_flag_;
  Descriptor* const desc_;
  VringPackedDescEvent* const driver_event_;
  VringPackedDescEvent* const device_event_;
  std::vector<uint16_t> heads_;  // slot -> id of the chain that begins there (in-order only)
  uint16_t avail_slot_ = 0;      // next to fill
  bool avail_wrap_ = true;
  uint16_t used_slot_ = 0;  // next to reap
  bool used_wrap_ = true;
  uint16_t burst_slot_ = 0;  // first descriptor of the burst that publish() will show, and what it will say
  uint64_t burst_word_ = 0;
  uint32_t unpublished_ = 0;  // descriptors
  uint32_t unkicked_ = 0;     // descriptors published since the last look at the device's wish
};

template <template <class> class Queue>
auto make(const DriverRingConfig& config, QueueCounters& counters) {
  using Base =
      std::conditional_t<std::is_base_of_v<DriverRx, Queue<PackedDriverRing<false, false>>>, DriverRx, DriverTx>;
  const bool event_idx = has_feature(config.features, VIRTIO_F_EVENT_IDX);
  const bool in_order = has_feature(config.features, VIRTIO_F_IN_ORDER);
  std::unique_ptr<Base> queue;
  if (event_idx && in_order) {
    queue = std::make_unique<Queue<PackedDriverRing<true, true>>>(config, counters);
  } else if (event_idx) {
    queue = std::make_unique<Queue<PackedDriverRing<true, false>>>(config, counters);
  } else if (in_order) {
    queue = std::make_unique<Queue<PackedDriverRing<false, true>>>(config, counters);
  } else {
    queue = std::make_unique<Queue<PackedDriverRing<false, false>>>(config, counters);
  }
  return queue;
}

}  // namespace

std::unique_ptr<DriverRx> make_packed_driver_rx(const DriverRingConfig& config, QueueCounters& counters) {
  return make<DriverRxQueue>(config, counters);
}
std::unique_ptr<DriverTx> make_packed_driver_tx(const DriverRingConfig& config, QueueCounters& counters) {
  return make<DriverTxQueue>(config, counters);
}

}  // namespace sw
