// SPDX-License-Identifier: Apache-2.0
// Both fuzz targets of the driver side: the input is what a device does to a receiveq and a transmitq of ours. Rings and
// buffers lie between inaccessible pages, so a byte read or written outside is a crash.
//
// Input: 4 bytes of choices, then records of 8 bytes: what to do, on which ring, and two numbers.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "device_fuzz.h"
#include "virtio/driver_ring.h"
#include "virtio/spec.h"

namespace sw::fuzz {

inline constexpr uint16_t kMostEntries = 64;
inline constexpr uint32_t kMostBufferBytes = 2048;
inline constexpr size_t kRingBytes = 2 * kPage;
inline constexpr size_t kBuffersBytes =
    (kMostEntries * driver_buffer_stride(kMostBufferBytes) + kPage - 1) / kPage * kPage;

struct Record {
  uint8_t what;
  uint8_t ring;
  uint16_t first;
  uint32_t second;
};
static_assert(sizeof(Record) == 8);

// One ring of ours, and its device.
struct Played {
  uint8_t* ring = guarded(kRingBytes);
  uint8_t* buffers = guarded(kBuffersBytes);
  DriverRingConfig config;
  uint16_t slot = 0;  // packed: where the device goes on
  bool wrap = true;

  // Buffers end where their memory does.
  void place(uint64_t features, uint16_t size, uint32_t buffer_bytes) {
    std::memset(ring, 0, kRingBytes);
    const uint64_t bytes = size * driver_buffer_stride(buffer_bytes);
    config.features = features;
    const RingExtents extents =
        ring_extents(has_feature(features, VIRTIO_F_RING_PACKED), size, has_feature(features, VIRTIO_F_EVENT_IDX));
    uint8_t* const device_area = ring + kRingBytes - (extents.device_area + 7) / 8 * 8;
    config.ring = {size, ring, ring + kRingBytes / 2, device_area};
    config.buffers = buffers + kBuffersBytes - bytes;
    config.buffer_bytes = buffer_bytes;
    config.device_address = reinterpret_cast<uintptr_t>(config.buffers);
    slot = 0;
    wrap = true;
  }
  [[nodiscard]] bool packed() const { return has_feature(config.features, VIRTIO_F_RING_PACKED); }

  // Give back what `id` names, as a device does; `chain` descriptors long.
  void use(uint16_t id, uint32_t len, uint16_t chain) {
    if (!packed()) {
      auto* const used = reinterpret_cast<VringUsed*>(config.ring.device_area);
      used->ring[used->idx % config.ring.size] = {id, len};
      ++used->idx;
      return;
    }
    auto* const desc = reinterpret_cast<VringPackedDesc*>(config.ring.descriptors);
    desc[slot].id = id;
    desc[slot].len = len;
    desc[slot].flags = packed_used_flags(wrap);
    for (uint16_t i = 0; i < chain; ++i) {
      if (++slot != config.ring.size) continue;
      slot = 0;
      wrap = !wrap;
    }
  }
  void overwrite(uint16_t at, uint32_t bytes) const {
    std::memcpy(ring + at % (kRingBytes - sizeof bytes), &bytes, sizeof bytes);
  }
  void write_header(uint16_t id, uint32_t bytes) const {
    VnetHeaderMrg header{};
    header.base.flags = static_cast<uint8_t>(bytes & 3);
    header.base.gso_type = static_cast<uint8_t>(bytes >> 2 & 7);
    header.base.gso_size = static_cast<uint16_t>(bytes >> 5 & 0x7ff);
    header.base.csum_start = static_cast<uint16_t>(bytes >> 8 & 0xff);
    header.base.csum_offset = static_cast<uint16_t>(bytes >> 16 & 0x1f);
    header.num_buffers = static_cast<uint16_t>(bytes >> 28);
    const uint32_t length = net_header_bytes(config.features);
    std::memcpy(
        config.buffers + (id % config.ring.size) * driver_buffer_stride(config.buffer_bytes) + kDriverHeadroom - length,
        &header, length);
  }
};

inline int run_driver(bool packed, const uint8_t* data, size_t size) {
  static Played receive;
  static Played send;
  static const std::vector<uint8_t> body(8192, 0x5a);
  static auto drops = std::make_unique<PortWorkerCounters>();
  static auto batch = std::make_unique<Batch>();
  if (size < 4) return 0;
  uint64_t features = feature_mask(VIRTIO_F_VERSION_1);
  if (packed) features |= feature_mask(VIRTIO_F_RING_PACKED);
  const std::array<uint32_t, 7> choices = {VIRTIO_F_EVENT_IDX,      VIRTIO_F_IN_ORDER,       VIRTIO_NET_F_MRG_RXBUF,
                                           VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
                                           VIRTIO_F_ANY_LAYOUT};
  for (size_t i = 0; i < choices.size(); ++i) {
    if ((data[0] >> i & 1) != 0) features ^= feature_mask(choices[i]);
  }
  if ((data[1] & 0x80) != 0) features &= ~feature_mask(VIRTIO_F_VERSION_1);
  const auto entries = static_cast<uint16_t>(packed ? data[1] % kMostEntries + 1 : 1U << data[1] % 7);
  const uint32_t buffer_bytes = (data[2] & 1) != 0 ? kMostBufferBytes : kHeadBytes;
  receive.place(features, entries, buffer_bytes);
  send.place(features, entries, buffer_bytes);
  if ((data[2] & 2) != 0) receive.config.max_frame_bytes = 1518;
  QueueCounters counters;
  const auto rx = make_driver_rx(receive.config, counters);
  const auto tx = make_driver_tx(send.config, counters);

  for (data += 4, size -= 4; size >= sizeof(Record); data += sizeof(Record), size -= sizeof(Record)) {
    Record record{};
    std::memcpy(&record, data, sizeof record);
    Played& played = record.ring % 2 == 0 ? receive : send;
    switch (record.what % 9) {
      case 0:
        played.use(record.first, record.second & 0xfff, static_cast<uint16_t>(record.second >> 24 & 3));
        break;
      case 1:
        played.use(static_cast<uint16_t>(record.first % entries), record.second, 1);
        break;
      case 2:
        played.overwrite(record.first, record.second);
        break;
      case 3:
        receive.write_header(record.first, record.second);
        break;
      case 4: {
        batch->clear();
        const bool taken = rx->peek(*batch, *drops);
        check(taken || batch->count == 0);
        for (uint32_t i = 0; i < batch->count; ++i) check_frame(batch->frames[i], receive.config.max_frame_bytes);
        if (taken) rx->release();
        rx->notify();
        break;
      }
      case 5: {
        batch->clear();
        Frame& frame = batch->frames[0];
        frame = {};
        frame.len = kEthHeaderBytes + record.first % 6000;
        frame.head_len = static_cast<uint16_t>(std::min(frame.len, kHeadBytes));
        frame.segments = batch->segments.data();
        if (frame.len > kHeadBytes) {
          batch->segments[0] = {body.data(), frame.len - kHeadBytes};
          frame.segment_count = 1;
        }
        batch->count = 1;
        const uint8_t index = 0;
        check(tx->send(*batch, {&index, 1}, *drops) <= 1);
        tx->notify();
        break;
      }
      case 6: {
        std::array<UsedBuffer, 16> used{};
        const uint32_t count = rx->take(used, true);
        check(count <= used.size());
        uint32_t sum = 0;
        for (uint32_t i = 0; i < count; ++i) {
          for (uint32_t at = 0; at < used[i].bytes; ++at) sum += used[i].payload[at];
        }
        rx->release();
        check(count != 0 || sum == 0);
        break;
      }
      case 7: {
        std::array<uint8_t*, 16> payloads{};
        const uint32_t count = tx->lend(payloads);
        check(count <= payloads.size());
        for (uint32_t i = 0; i < count; ++i) std::memset(payloads[i], 0x11, 60);
        tx->commit(count, 60);
        tx->notify();
        break;
      }
      default:
        tx->reclaim();
        (void)rx->arm();
        rx->disarm();
        break;
    }
    check(rx->in_flight() <= entries && tx->in_flight() <= entries);
  }
  (void)rx->broken();
  (void)tx->broken();
  return 0;
}

}  // namespace sw::fuzz
