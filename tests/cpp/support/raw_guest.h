// SPDX-License-Identifier: Apache-2.0
// RawGuest: one virtqueue in hand-made guest memory. Tests write every field themselves, right or wrong. The memory has
// inaccessible pages in front and behind, and a second region that only the guest sees as adjacent.
#pragma once

#include <doctest/doctest.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "base/atomic.h"
#include "base/fd.h"
#include "base/mmap.h"
#include "virtio/device_ring.h"
#include "virtio/spec.h"

namespace sw::testing {

struct Desc {
  uint64_t addr;
  uint32_t len;
  uint16_t flags = 0;  // NEXT is added by RawGuest::add
};
struct UsedBuffer {
  uint32_t id;
  uint32_t len;
  bool operator==(const UsedBuffer&) const = default;
};

class RawGuest {
 public:
  static constexpr uint64_t kRing = 0x10000;     // guest addresses: descriptors here,
  static constexpr uint64_t kDriver = 0x18000;   // driver area here,
  static constexpr uint64_t kDevice = 0x1a000;   // device area here,
  static constexpr uint64_t kBuffers = 0x20000;  // the rest is for buffers
  static constexpr uint64_t kSecond = 0x120000;  // first address of the second region
  static constexpr uint64_t kEnd = 0x140000;
  static constexpr uint8_t kCanary = 0xa5;

  explicit RawGuest(uint64_t features, uint16_t ring_size = 16) : features_(features), size_(ring_size) {
    first_ = guarded(kSecond - kRing);
    second_ = guarded(kEnd - kSecond);
    std::memset(at(kBuffers), kCanary, kSecond - kBuffers);
    std::memset(at(kSecond), kCanary, kEnd - kSecond);
    call_.reset(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    auto made = GuestMemory::make({MappedRegion::borrow(at(kRing), {kRing}, kSecond - kRing, {kRing}),
                                   MappedRegion::borrow(at(kSecond), {kSecond}, kEnd - kSecond, {kSecond})});
    REQUIRE(made);
    memory = *made;
  }

  [[nodiscard]] bool packed() const { return has_feature(features_, VIRTIO_F_RING_PACKED); }
  [[nodiscard]] bool event_idx() const { return has_feature(features_, VIRTIO_F_EVENT_IDX); }
  [[nodiscard]] uint32_t header_bytes() const { return net_header_bytes(features_); }
  [[nodiscard]] uint16_t size() const { return size_; }

  [[nodiscard]] uint8_t* at(uint64_t guest) const {
    return guest < kSecond ? reinterpret_cast<uint8_t*>(first_.data()) + kPage + (guest - kRing)
                           : reinterpret_cast<uint8_t*>(second_.data()) + kPage + (guest - kSecond);
  }
  [[nodiscard]] VringDesc* desc(uint32_t i) const { return reinterpret_cast<VringDesc*>(at(kRing)) + i; }
  [[nodiscard]] VringPackedDesc* slot(uint32_t i) const { return reinterpret_cast<VringPackedDesc*>(at(kRing)) + i; }
  [[nodiscard]] VringAvail* avail() const { return reinterpret_cast<VringAvail*>(at(kDriver)); }
  [[nodiscard]] VringUsed* used() const { return reinterpret_cast<VringUsed*>(at(kDevice)); }
  [[nodiscard]] VringPackedDescEvent* driver_event() const {
    return reinterpret_cast<VringPackedDescEvent*>(at(kDriver));
  }
  [[nodiscard]] VringPackedDescEvent* device_event() const {
    return reinterpret_cast<VringPackedDescEvent*>(at(kDevice));
  }

  [[nodiscard]] DeviceRingConfig config() const {
    DeviceRingConfig config;
    config.features = features_;
    config.ring = {size_, at(kRing), at(kDriver), at(kDevice)};
    config.memory = memory;
    config.base = packed() ? 0x8000 : 0;
    config.call_fd = call_.get();
    return config;
  }

  // Make a chain available, as an honest driver would. Returns its id: head index, or buffer id.
  uint16_t add(const std::vector<Desc>& chain) { return packed() ? add_packed(chain) : add_split(chain); }

  // Like add, but the descriptors lie in a table at `table`. `before` precede the reference to it (split only).
  uint16_t add_indirect(const std::vector<Desc>& chain, uint64_t table, std::vector<Desc> before = {}) {
    write_table(chain, table);
    before.push_back({table, static_cast<uint32_t>(chain.size() * 16), VRING_DESC_F_INDIRECT});
    return add(before);
  }
  void write_table(const std::vector<Desc>& chain, uint64_t table) const {
    for (size_t i = 0; i < chain.size(); ++i) {
      const bool last = i + 1 == chain.size();
      const auto linked = static_cast<uint16_t>(chain[i].flags | (last || packed() ? 0 : VRING_DESC_F_NEXT));
      if (packed()) {
        const VringPackedDesc entry{chain[i].addr, chain[i].len, 0, linked};
        write(table + i * 16, &entry, sizeof entry);
      } else {
        const VringDesc entry{chain[i].addr, chain[i].len, linked, static_cast<uint16_t>(i + 1)};
        write(table + i * 16, &entry, sizeof entry);
      }
    }
  }

  // What the device returned since the last call. Packed: assumes the slots of each chain, as a driver knows them.
  std::vector<UsedBuffer> reap() {
    std::vector<UsedBuffer> result;
    if (!packed()) {
      for (const uint16_t idx = load_acquire(used()->idx); reaped_ != idx; ++reaped_) {
        const VringUsedElem& element = used()->ring[reaped_ % size_];
        result.push_back({load_relaxed(element.id), load_relaxed(element.len)});
      }
      return result;
    }
    while (packed_is_used(load_acquire(slot(reap_slot_)->flags), reap_wrap_) && !in_ring_.empty()) {
      result.push_back({load_relaxed(slot(reap_slot_)->id), load_relaxed(slot(reap_slot_)->len)});
      // In-order devices may return many with the last id: skip up to and including it.
      bool found = false;
      while (!found) {
        REQUIRE_FALSE(in_ring_.empty());
        found = in_ring_.front().first == result.back().id;
        advance(reap_slot_, reap_wrap_, in_ring_.front().second);
        in_ring_.erase(in_ring_.begin());
      }
    }
    return result;
  }

  [[nodiscard]] uint64_t calls() const {  // eventfd writes since the last call
    uint64_t count = 0;
    return ::read(call_.get(), &count, sizeof count) == sizeof count ? count : 0;
  }

  // Guest memory across regions.
  void write(uint64_t guest, const void* from, size_t bytes) const {
    for (size_t i = 0; i < bytes; ++i) *at(guest + i) = static_cast<const uint8_t*>(from)[i];
  }
  [[nodiscard]] std::vector<uint8_t> read(uint64_t guest, size_t bytes) const {
    std::vector<uint8_t> result(bytes);
    for (size_t i = 0; i < bytes; ++i) result[i] = *at(guest + i);
    return result;
  }

  // Header (12 bytes at most, cut to what was negotiated) and frame at `guest`; returns the bytes of both.
  uint32_t put_frame(uint64_t guest, const std::vector<uint8_t>& frame, VnetHeader header = {}) const {
    std::array<uint8_t, 12> raw{};
    std::memcpy(raw.data(), &header, sizeof header);
    write(guest, raw.data(), header_bytes());
    write(guest + header_bytes(), frame.data(), frame.size());
    return header_bytes() + static_cast<uint32_t>(frame.size());
  }

  std::shared_ptr<const GuestMemory> memory;
  uint16_t next_desc = 0;  // split: next free descriptor; packed: next slot
  bool wrap = true;        // packed: driver's wrap counter

 private:
  static constexpr size_t kPage = 4096;

  static Mapping guarded(size_t bytes) {
    void* const all = ::mmap(nullptr, bytes + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(all != MAP_FAILED);
    REQUIRE(::mprotect(static_cast<uint8_t*>(all) + kPage, bytes, PROT_READ | PROT_WRITE) == 0);
    return {all, bytes + 2 * kPage};
  }

  uint16_t add_split(const std::vector<Desc>& chain) {
    const uint16_t head = next_desc;
    for (size_t i = 0; i < chain.size(); ++i) {
      const auto here = next_desc;
      next_desc = static_cast<uint16_t>((next_desc + 1) % size_);
      const bool last = i + 1 == chain.size();
      *desc(here) = {chain[i].addr, chain[i].len,
                     static_cast<uint16_t>(chain[i].flags | (last ? 0 : VRING_DESC_F_NEXT)), next_desc};
    }
    offer(head);
    return head;
  }
  uint16_t add_packed(const std::vector<Desc>& chain) {
    const uint16_t id = next_desc;
    const uint16_t first = next_desc;
    uint16_t first_flags = 0;
    for (size_t i = 0; i < chain.size(); ++i) {
      const bool last = i + 1 == chain.size();
      const auto flags =
          static_cast<uint16_t>(chain[i].flags | (last ? 0 : VRING_DESC_F_NEXT) | packed_avail_flags(wrap));
      VringPackedDesc& here = *slot(next_desc);
      here.addr = chain[i].addr;
      here.len = chain[i].len;
      here.id = id;
      if (i == 0) {
        first_flags = flags;
      } else {
        store_relaxed(here.flags, flags);
      }
      advance(next_desc, wrap, 1);
    }
    in_ring_.emplace_back(id, static_cast<uint16_t>(chain.size()));
    store_release(slot(first)->flags, first_flags);
    return id;
  }
  void advance(uint16_t& position, bool& counter, uint16_t by) const {
    position = static_cast<uint16_t>(position + by);
    if (position >= size_) {
      position = static_cast<uint16_t>(position - size_);
      counter = !counter;
    }
  }

 public:
  // Split: put `head` into the available ring and move the index.
  void offer(uint16_t head) const {
    const uint16_t idx = load_relaxed(avail()->idx);
    store_relaxed(avail()->ring[idx % size_], head);
    store_release(avail()->idx, static_cast<uint16_t>(idx + 1));
  }

 private:
  const uint64_t features_;
  const uint16_t size_;
  Mapping first_;
  Mapping second_;
  UniqueFd call_;
  uint16_t reaped_ = 0;
  uint16_t reap_slot_ = 0;
  bool reap_wrap_ = true;
  std::vector<std::pair<uint16_t, uint16_t>> in_ring_;  // packed: id and slots, oldest first
};

// A frame with recognisable bytes: two addresses, a local experimental EtherType, a pattern.
inline std::vector<uint8_t> pattern_frame(size_t bytes, uint8_t seed = 1) {
  std::vector<uint8_t> frame(bytes);
  std::iota(frame.begin(), frame.end(), seed);
  if (bytes >= 14) {
    const std::array<uint8_t, 14> header{0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5};
    std::memcpy(frame.data(), header.data(), header.size());
  }
  return frame;
}

// All bytes of a borrowed frame.
inline std::vector<uint8_t> bytes_of(const Frame& frame) {
  std::vector<uint8_t> bytes(frame.len);
  copy_from_frame(frame, 0, bytes.data(), frame.len);
  return bytes;
}

// Both ring kinds, for tests that do not care: `with` are bit numbers added to VERSION_1.
inline std::array<uint64_t, 2> both_rings(uint64_t with = 0) {
  const uint64_t split = feature_mask(VIRTIO_F_VERSION_1) | with;
  return {split, split | feature_mask(VIRTIO_F_RING_PACKED)};
}

// What a worker brings to a queue. Batch is large: on the heap.
struct Pass {
  std::unique_ptr<Batch> batch = std::make_unique<Batch>();
  PortWorkerCounters drops;
  QueueCounters counters;

  bool peek(RxQueue& queue) {
    batch->clear();
    return queue.peek(*batch, drops);
  }
  uint64_t rx_drops(DropReason reason) const { return drops.rx_drops[static_cast<size_t>(reason)].get(); }
  uint64_t tx_drops(DropReason reason) const { return drops.tx_drops[static_cast<size_t>(reason)].get(); }
  uint64_t all_rx_drops() const {
    uint64_t sum = 0;
    for (const Counter& counter : drops.rx_drops) sum += counter.get();
    return sum;
  }
};

}  // namespace sw::testing
