// SPDX-License-Identifier: Apache-2.0
// The split ring, driver's side (virtio 1.3 2.7): descriptor table and avail ring are written here, the used ring by
// the device. Buffer id = descriptor number.
#include <bit>

#include "base/atomic.h"
#include "base/check.h"
#include "virtio/driver_queues.h"

namespace sw {
namespace {

template <bool kEventIdx, bool kInOrder>
class SplitDriverRing {
 public:
  SplitDriverRing(const DriverRingConfig& config, bool device_writes)
      : ids_(config.ring.size),
        mask_(static_cast<uint16_t>(config.ring.size - 1)),
        write_flag_(device_writes ? VRING_DESC_F_WRITE : uint16_t{0}),
        desc_(reinterpret_cast<VringDesc*>(config.ring.descriptors)),
        avail_(reinterpret_cast<VringAvail*>(config.ring.driver_area)),
        used_(reinterpret_cast<VringUsed*>(config.ring.device_area)),
        heads_(config.ring.size) {
    SW_CHECK(std::has_single_bit(config.ring.size));
    disarm();
  }

  DriverIds& ids() { return ids_; }
  [[nodiscard]] const DriverIds& ids() const { return ids_; }

  // Fields that already hold their value are left alone: in steady state the device keeps its copy of the line.
  void add(const DriverPart* parts, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
      VringDesc& desc = desc_[ids_.next_free(i)];
      const bool last = i + 1 == count;
      set(desc.addr, parts[i].address);
      set(desc.len, parts[i].len);
      set(desc.flags, static_cast<uint16_t>(write_flag_ | (last ? 0 : VRING_DESC_F_NEXT)));
      if (!last) set(desc.next, ids_.next_free(i + 1));
    }
    const uint16_t head = ids_.take_chain(count);
    set(avail_->ring[avail_idx_ & mask_], head);
    if constexpr (kInOrder) heads_[avail_idx_ & mask_] = head;
    ++avail_idx_;
  }

  // The next `count` free ids as chains of one buffer each, of `len` bytes at address_of(id).
  template <class AddressOf>
  void add_singles(uint32_t count, uint32_t len, AddressOf address_of) {
    VringDesc* const desc = desc_;  // locals: see DriverIds
    const uint64_t rest = uint64_t{write_flag_} << 32 | len;
    ids_.take_singles(count, [=, post = poster()](uint16_t id) mutable {
      auto* const words = reinterpret_cast<uint64_t*>(&desc[id]);
      set(words[0], address_of(id));
      set(words[1], rest);  // len, flags, next
      post(id);
    });
    avail_idx_ = static_cast<uint16_t>(avail_idx_ + count);
  }
  // The same for ids that came back and go out as they were: their descriptors still say so.
  template <class IdOf, class AddressOf>
  void repost(uint32_t count, uint32_t /*len*/, IdOf id_of, AddressOf /*address_of*/) {
    ids_.retake_singles(count, id_of, poster());
    avail_idx_ = static_cast<uint16_t>(avail_idx_ + count);
  }

  // Pairs with the device's acquire load of avail->idx: descriptors, avail entries and payload are visible first.
  void publish() { store_release(avail_->idx, avail_idx_); }

  template <bool kLengths, class OnUsed>
  void reap(uint32_t limit, OnUsed on_used) {
    // Pairs with the device's release store: used entries and payload are readable.
    auto ready = static_cast<uint16_t>(load_acquire(used_->idx) - used_idx_);
    if (ready > static_cast<uint16_t>(avail_idx_ - used_idx_))
      return ids_.fail("used index moved past what was available");
    if constexpr (!kInOrder) {
      reap_each<kLengths>(std::min<uint32_t>(ready, limit), on_used);
    } else {
      while (ready != 0 && limit != 0 && !ids_.failed()) {
        const uint16_t group =
            kLengths ? reap_group(ready, on_used) : reap_one(heads_[used_idx_ & mask_], kUsedWhole, on_used);
        ready = static_cast<uint16_t>(ready - group);
        limit -= std::min<uint32_t>(limit, group);
      }
    }
  }

  [[nodiscard]] bool has_used() const { return load_acquire(used_->idx) != used_idx_; }

  // virtio 1.3 2.7.10, 2.7.13.4: called after a full fence that follows publish().
  bool kick_wanted() {
    const uint16_t before = kicked_idx_;
    if (before == avail_idx_) return false;
    kicked_idx_ = avail_idx_;
    if constexpr (kEventIdx)
      return vring_need_event(load_relaxed(vring_avail_event(used_, ids_.size())), avail_idx_, before);
    return (load_relaxed(used_->flags) & VRING_USED_F_NO_NOTIFY) == 0;
  }

  bool arm() {
    if constexpr (kEventIdx) {
      store_relaxed(vring_used_event(avail_, ids_.size()), used_idx_);
    } else {
      store_relaxed(avail_->flags, 0);
    }
    full_fence();  // pairs with the device's fence between its used index and its look at our wish
    return has_used();
  }

  void disarm() {
    if constexpr (kEventIdx) {
      // flags stays 0 (2.7.7.1); an index that was passed already asks for nothing during the next 65 535 buffers.
      store_relaxed(vring_used_event(avail_, ids_.size()), static_cast<uint16_t>(used_idx_ - 1));
    } else {
      store_relaxed(avail_->flags, VRING_AVAIL_F_NO_INTERRUPT);
    }
  }

 private:
  template <class T>
  static void set(T& shared, std::type_identity_t<T> value) {
    if (load_relaxed(shared) != value) store_relaxed(shared, value);
  }

  // Puts ids into the available ring, one after the other from the present index on.
  [[nodiscard]] auto poster() {
    return [ring = avail_->ring, heads = heads_.data(), mask = uint32_t{mask_},
            at = uint32_t{avail_idx_}](uint16_t id) mutable {
      set(ring[at & mask], id);
      if constexpr (kInOrder) heads[at & mask] = id;
      ++at;
    };
  }

  template <bool kLengths, class OnUsed>
  void reap_each(uint32_t count, OnUsed& on_used) {
    const VringUsedElem* const ring = used_->ring;  // locals: see DriverIds
    const uint32_t mask = mask_;
    const uint32_t begin = used_idx_;
    uint32_t landed = 0;
    uint32_t done = 0;
    while (done < count) {
      const VringUsedElem& entry = ring[(begin + done) & mask];
      const uint32_t head = load_relaxed(entry.id);
      const uint32_t chain = ids_.complete(head);
      if (chain == 0) [[unlikely]] {
        ids_.fail("a used entry names a buffer that the device does not hold");
        break;
      }
      landed += chain;
      ++done;
      if (!on_used(static_cast<uint16_t>(head), kLengths ? load_relaxed(entry.len) : 0, chain)) [[unlikely]]
        break;
    }
    ids_.landed(landed);
    used_idx_ = static_cast<uint16_t>(begin + done);
  }

  template <class OnUsed>
  uint16_t reap_one(uint32_t head, uint64_t len, OnUsed& on_used) {
    const uint32_t chain = ids_.complete(head);
    if (chain == 0) {
      ids_.fail("a used entry names a buffer that the device does not hold");
    } else {
      ids_.landed(chain);
      ++used_idx_;
      on_used(static_cast<uint16_t>(head), len, chain);
    }
    return 1;
  }

  // virtio 1.3 2.7.9: an in-order device may write one used entry for a group of buffers, naming the last of them, at
  // the place of the first. Returns how many it stands for.
  template <class OnUsed>
  uint16_t reap_group(uint16_t ready, OnUsed& on_used) {
    const VringUsedElem& entry = used_->ring[used_idx_ & mask_];
    const uint32_t last = load_relaxed(entry.id);
    const uint32_t len = load_relaxed(entry.len);
    for (uint16_t i = 0; i < ready; ++i) {
      const uint16_t head = heads_[used_idx_ & mask_];
      reap_one(head, head == last ? len : kUsedWhole, on_used);
      if (head == last) return static_cast<uint16_t>(i + 1);
    }
    ids_.fail("a used entry names a buffer out of order");
    return ready;
  }

  DriverIds ids_;
  const uint16_t mask_;
  const uint16_t write_flag_;
  VringDesc* const desc_;
  VringAvail* const avail_;
  VringUsed* const used_;
  std::vector<uint16_t> heads_;  // our own copy of the avail ring (in-order only): the device may write the shared one
  uint16_t avail_idx_ = 0;       // next to fill; the shared index follows at publish()
  uint16_t used_idx_ = 0;        // next to reap
  uint16_t kicked_idx_ = 0;      // avail_idx_ at the last look at the device's wish
};

template <template <class> class Queue>
auto make(const DriverRingConfig& config, QueueCounters& counters) {
  using Base =
      std::conditional_t<std::is_base_of_v<DriverRx, Queue<SplitDriverRing<false, false>>>, DriverRx, DriverTx>;
  const bool event_idx = has_feature(config.features, VIRTIO_F_EVENT_IDX);
  const bool in_order = has_feature(config.features, VIRTIO_F_IN_ORDER);
  std::unique_ptr<Base> queue;
  if (event_idx && in_order) {
    queue = std::make_unique<Queue<SplitDriverRing<true, true>>>(config, counters);
  } else if (event_idx) {
    queue = std::make_unique<Queue<SplitDriverRing<true, false>>>(config, counters);
  } else if (in_order) {
    queue = std::make_unique<Queue<SplitDriverRing<false, true>>>(config, counters);
  } else {
    queue = std::make_unique<Queue<SplitDriverRing<false, false>>>(config, counters);
  }
  return queue;
}

}  // namespace

std::unique_ptr<DriverRx> make_split_driver_rx(const DriverRingConfig& config, QueueCounters& counters) {
  return make<DriverRxQueue>(config, counters);
}
std::unique_ptr<DriverTx> make_split_driver_tx(const DriverRingConfig& config, QueueCounters& counters) {
  return make<DriverTxQueue>(config, counters);
}

}  // namespace sw
