// SPDX-License-Identifier: Apache-2.0
// A driver and a device on the same rings in one process: what the driver sends on its transmitq, the device gives back
// on its receiveq.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "virtio/device_ring.h"
#include "virtio/driver_device.h"
#include "virtio/spec.h"

namespace sw::test {

using Bytes = std::vector<uint8_t>;

struct LoopOptions {
  uint64_t features = 0;
  uint16_t size = 64;
  uint32_t far_ticks = LineWatch::default_far_ticks();  // of the device's rings
};

// Every combination of ring format, event index, in-order, mergeable and header that a driver can ask for.
inline std::vector<uint64_t> all_feature_sets() {
  std::vector<uint64_t> sets;
  for (uint32_t choice = 0; choice < 32; ++choice) {
    const bool packed = (choice & 1) != 0;
    const bool in_order = (choice & 4) != 0;
    const bool version_1 = (choice & 16) != 0;
    if (!version_1 && (packed || in_order)) continue;  // not legacy features
    uint64_t features = 0;
    if (packed) features |= feature_mask(VIRTIO_F_RING_PACKED);
    if ((choice & 2) != 0) features |= feature_mask(VIRTIO_F_EVENT_IDX);
    if (in_order) features |= feature_mask(VIRTIO_F_IN_ORDER);
    if ((choice & 8) != 0) features |= feature_mask(VIRTIO_NET_F_MRG_RXBUF);
    if (version_1) features |= feature_mask(VIRTIO_F_VERSION_1);
    sets.push_back(features);
  }
  return sets;
}

// Append `bytes` to `batch` as a frame whose body stays in `bytes`.
inline void put(Batch& batch, const Bytes& bytes, const VnetHeader& vnet = {}) {
  Frame& frame = batch.frames.at(batch.count);
  frame.len = static_cast<uint32_t>(bytes.size());
  frame.head_len = static_cast<uint16_t>(std::min<size_t>(bytes.size(), kHeadBytes));
  frame.head_offset = 0;
  std::copy_n(bytes.data(), frame.head_len, frame.head);
  frame.segments = &batch.segments.at(batch.segments_used);
  frame.segment_count = 0;
  if (frame.len > frame.head_len) {
    batch.segments.at(batch.segments_used++) = {bytes.data() + frame.head_len, frame.len - frame.head_len};
    frame.segment_count = 1;
  }
  frame.vnet = vnet;
  frame.offload = vnet.flags != 0 || vnet.gso_type != 0;
  batch.may_have_offloads |= frame.offload;
  ++batch.count;
}

inline Bytes get(const Frame& frame) {
  Bytes bytes(frame.len);
  copy_from_frame(frame, 0, bytes.data(), frame.len);
  return bytes;
}

// A frame of `len` bytes that says which one it is.
inline Bytes make_frame(uint32_t len, uint32_t number) {
  // Byte i is 7 * i + number. Of each there is a run in one table, as 7 * 183 = 1 modulo 256: copied, since a loop is slow
  // in tests, which are not optimised.
  static const Bytes table = [] {
    Bytes bytes(1 << 17);
    for (uint32_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7);
    return bytes;
  }();
  Bytes bytes(len);
  std::memcpy(bytes.data(), table.data() + number * 183 % 256, len);
  bytes[0] = 2;  // unicast, local
  return bytes;
}

inline std::vector<uint8_t> indexes(uint32_t count) {
  std::vector<uint8_t> list(count);
  for (uint32_t i = 0; i < count; ++i) list[i] = static_cast<uint8_t>(i);
  return list;
}

class Loop {
 public:
  explicit Loop(const LoopOptions& options) : rx_counters(1), tx_counters(1) {
    DriverMemoryOptions driver;
    driver.features = options.features;
    driver.ring_size = options.size;
    driver.huge = HugePages::kOff;
    auto made = DriverDevice::make(driver, rx_counters, tx_counters);
    REQUIRE_MESSAGE(static_cast<bool>(made), made.error().message());
    device = std::move(*made);
    const DriverMemory& shared = device->memory();
    auto region = MappedRegion::borrow(reinterpret_cast<void*>(shared.address()), GuestPhys{shared.address()},
                                       shared.bytes(), FrontendVirt{shared.address()});
    auto memory = GuestMemory::make({region});
    REQUIRE(static_cast<bool>(memory));
    const auto config = [&](size_t ring) {
      DeviceRingConfig made_config;
      made_config.features = options.features;
      made_config.ring = shared.rings()[ring].config.ring;
      made_config.memory = *memory;
      made_config.base = has_feature(options.features, VIRTIO_F_RING_PACKED) ? 0x8000 : 0;
      made_config.call_fd = shared.rings()[ring].call.get();
      made_config.far_ticks = options.far_ticks;
      made_config.kick_fd = shared.rings()[ring].kick.get();
      return made_config;
    };
    device_tx = make_device_tx(config(0), device_counters[0]);
    device_rx = make_device_rx(config(1), device_counters[1]);
  }

  DriverRx& rx() { return *device->rx()[0]; }
  DriverTx& tx() { return *device->tx()[0]; }
  [[nodiscard]] RingMemory receiveq() const { return device->memory().rings()[0].config.ring; }
  [[nodiscard]] RingMemory transmitq() const { return device->memory().rings()[1].config.ring; }

  // Everything the driver has sent goes back to it. Returns frames moved.
  uint32_t device_pass() {
    uint32_t moved = 0;
    Batch& batch = *device_batch;
    for (batch.clear(); device_rx->peek(batch, drops); batch.clear()) {
      const uint32_t sent = device_tx->send(batch, indexes(batch.count), drops);
      drops.drop_tx(DropReason::kRingFull, batch.count - sent);
      moved += sent;
      device_rx->release();
    }
    return moved;
  }

  // Everything that came back, in order.
  std::vector<Bytes> driver_receive() {
    std::vector<Bytes> frames;
    Batch& batch = *driver_batch;
    for (batch.clear(); rx().peek(batch, drops); batch.clear()) {
      for (uint32_t i = 0; i < batch.count; ++i) {
        frames.push_back(get(batch.frames.at(i)));
        headers.push_back(batch.frames.at(i).vnet);
      }
      rx().release();
    }
    return frames;
  }

  uint32_t driver_send(const std::vector<Bytes>& frames, const VnetHeader& vnet = {}) {
    Batch& batch = *driver_batch;
    batch.clear();
    for (const Bytes& frame : frames) put(batch, frame, vnet);
    return tx().send(batch, indexes(batch.count), drops);
  }

  std::vector<QueueCounters> rx_counters;
  std::vector<QueueCounters> tx_counters;
  std::array<QueueCounters, 2> device_counters;
  PortWorkerCounters drops;
  std::unique_ptr<DriverDevice> device;
  std::unique_ptr<DeviceTx> device_tx;
  std::unique_ptr<DeviceRx> device_rx;
  std::unique_ptr<Batch> driver_batch = std::make_unique<Batch>();
  std::unique_ptr<Batch> device_batch = std::make_unique<Batch>();
  std::vector<VnetHeader> headers;
};

inline uint64_t drops_of(const PortWorkerCounters& drops, DropReason reason) {
  return drops.rx_drops.at(static_cast<size_t>(reason)).get() + drops.tx_drops.at(static_cast<size_t>(reason)).get();
}

}  // namespace sw::test
