// SPDX-License-Identifier: Apache-2.0
// Both fuzz targets of the device side: the input is a guest's whole memory and what it changes between passes. The
// memory lies between inaccessible pages, so a byte read or written outside is a crash.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "virtio/device_ring.h"
#include "virtio/spec.h"

namespace sw::fuzz {

inline constexpr size_t kPage = 4096;
inline constexpr size_t kFirstBytes = 4 * kPage;   // guest [0, 0x4000): rings and buffers
inline constexpr size_t kSecondBytes = 2 * kPage;  // guest [0x4000, 0x6000): elsewhere in the host

inline uint8_t* guarded(size_t bytes) {
  void* const all = ::mmap(nullptr, bytes + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  auto* const usable = static_cast<uint8_t*>(all) + kPage;
  if (all == MAP_FAILED || ::mprotect(usable, bytes, PROT_READ | PROT_WRITE) != 0) std::abort();
  return usable;
}

inline void check(bool condition) {
  if (!condition) std::abort();
}

inline void check_frame(const Frame& frame, uint32_t max_bytes) {
  check(frame.len >= kEthHeaderBytes && frame.len <= max_bytes);
  check(frame.head_len == std::min(frame.len, kHeadBytes) && frame.head_offset == 0);
  uint64_t sum = frame.head_len;
  for (uint32_t i = 0; i < frame.segment_count; ++i) sum += frame.segments[i].len;
  check(sum == frame.len);
  static std::vector<uint8_t> copy(kMaxFrameBytes);
  copy_from_frame(frame, 0, copy.data(), frame.len);
  if (frame.offload) check(uint32_t{frame.vnet.csum_start} + frame.vnet.csum_offset + 2 <= frame.len);
}

// One guest's memory: two regions that only the guest sees as adjacent.
struct Guest {
  uint8_t* first = guarded(kFirstBytes);
  uint8_t* second = guarded(kSecondBytes);

  void clear() const {
    std::memset(first, 0, kFirstBytes);
    std::memset(second, 0, kSecondBytes);
  }
  void write(uint32_t at, uint8_t byte) const { (at < kFirstBytes ? first[at] : second[at - kFirstBytes]) = byte; }
  void place(DeviceRingConfig& config, uint16_t ring_size) const {
    config.ring = {ring_size, first, first + 0x800, first + 0xa00};
    auto memory = GuestMemory::make({MappedRegion::borrow(first, {0}, kFirstBytes, {0}),
                                     MappedRegion::borrow(second, {kFirstBytes}, kSecondBytes, {kFirstBytes})});
    config.memory = *memory;
  }
};

// Input: 4 bytes of choices, then pieces {offset, length, bytes} written over guest memory before each pass.
inline int run(bool packed, const uint8_t* data, size_t size) {
  static const Guest sender;
  static const Guest receiver;
  if (size < 4) return 0;
  uint64_t features = feature_mask(VIRTIO_F_VERSION_1, VIRTIO_F_INDIRECT_DESC);
  if (packed) features |= feature_mask(VIRTIO_F_RING_PACKED);
  const std::array<uint32_t, 8> choices = {VIRTIO_F_EVENT_IDX,      VIRTIO_F_IN_ORDER,      VIRTIO_NET_F_MRG_RXBUF,
                                           VIRTIO_NET_F_CSUM,       VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_CSUM,
                                           VIRTIO_NET_F_GUEST_TSO4, VIRTIO_F_INDIRECT_DESC};
  for (size_t i = 0; i < choices.size(); ++i) {
    if ((data[0] >> i & 1) != 0) features ^= feature_mask(choices[i]);
  }
  if ((data[1] & 0x80) != 0) features &= ~feature_mask(VIRTIO_F_VERSION_1);
  const uint16_t ring_size =
      packed ? static_cast<uint16_t>(data[1] % 64 + 1) : static_cast<uint16_t>(1U << data[1] % 7);
  sender.clear();
  receiver.clear();

  DeviceRingConfig config;
  config.features = features;
  config.base = packed ? data[2] % 64U | (data[3] & 1U) << 15 : 0;
  config.enabled = (data[3] & 6) != 6;
  QueueCounters counters;
  static auto drops = std::make_unique<PortWorkerCounters>();
  static auto batch = std::make_unique<Batch>();
  // The same writes go to the guest that sends and to the one that receives.
  sender.place(config, ring_size);
  auto rx = make_device_rx(config, counters);
  receiver.place(config, ring_size);
  auto tx = make_device_tx(config, counters);
  std::array<uint8_t, kMaxBatch> index;

  data += 4;
  size -= 4;
  for (int pass = 0; pass < 16; ++pass) {
    uint32_t pieces = size == 0 ? 0 : *data % 16U;
    if (size > 0) ++data, --size;
    for (; pieces > 0 && size >= 4; --pieces) {
      const uint32_t offset = (data[0] | uint32_t{data[1]} << 8) % (kFirstBytes + kSecondBytes);
      const uint32_t bytes = std::min<uint32_t>(data[2], static_cast<uint32_t>(size - 3));
      for (uint32_t i = 0; i < bytes; ++i) {
        const uint32_t at = (offset + i) % static_cast<uint32_t>(kFirstBytes + kSecondBytes);
        sender.write(at, data[3 + i]);
        receiver.write(at, data[3 + i]);
      }
      data += 3 + bytes;
      size -= 3 + bytes;
    }
    batch->clear();
    const bool taken = rx->peek(*batch, *drops);
    check(taken || batch->count == 0);
    for (uint32_t i = 0; i < batch->count; ++i) {
      check_frame(batch->frames[i], config.max_frame_bytes);
      index[i] = static_cast<uint8_t>(i);
    }
    const uint32_t sent = tx->send(*batch, {index.data(), batch->count}, *drops);
    check(sent <= batch->count);
    if (taken) rx->release();
    rx->notify();
    tx->notify();
    (void)rx->arm();
    rx->disarm();
    (void)rx->base();
    (void)rx->broken();
    if (size == 0) break;
  }
  return 0;
}

}  // namespace sw::fuzz
