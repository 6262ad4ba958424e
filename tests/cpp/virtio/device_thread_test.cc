// SPDX-License-Identifier: Apache-2.0
// A guest and the switch on two threads: every frame arrives once, whole and in order. Under TSan this is the proof
// that ring fields and payload are handed over by the barriers that the spec asks for.
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "base/bytes.h"
#include "support/eventually.h"
#include "support/raw_guest.h"
#include "virtio/driver_memory.h"

namespace sw {
namespace {

using testing::Pass;

constexpr uint32_t kFrames = 20000;
constexpr std::chrono::seconds kPatience(60);

// Frame number `n`: between 60 and 1059 bytes, the number in its first payload bytes, a pattern behind.
uint32_t length_of(uint32_t n) { return 60 + n * 37 % 1000; }
uint8_t byte_of(uint32_t n, uint32_t at) { return static_cast<uint8_t>(n * 7 + at); }

// What the device's thread does: rx to tx, one pass after another, what does not fit is kept for the next one.
void forward(RxQueue& rx, TxQueue& tx, const std::atomic<bool>& stop) {
  Pass pass;
  std::array<uint8_t, kMaxBatch> index;
  while (!stop.load(std::memory_order_relaxed)) {
    if (!pass.peek(rx)) {
      std::this_thread::yield();
      continue;
    }
    for (uint32_t i = 0; i < pass.batch->count; ++i) index[i] = static_cast<uint8_t>(i);
    uint32_t sent = 0;
    while (sent < pass.batch->count && !stop.load(std::memory_order_relaxed)) {
      const uint32_t now = tx.send(*pass.batch, {index.data() + sent, pass.batch->count - sent}, pass.drops);
      sent += now;
      if (now == 0) std::this_thread::yield();
    }
    rx.release();
  }
}

TEST_CASE("Device rings: a guest on another thread gets every frame once, whole and in order") {
  const uint64_t common = feature_mask(VIRTIO_F_VERSION_1);
  for (const uint64_t features :
       {common, common | feature_mask(VIRTIO_NET_F_MRG_RXBUF, VIRTIO_F_IN_ORDER, VIRTIO_F_EVENT_IDX),
        common | feature_mask(VIRTIO_F_RING_PACKED),
        common | feature_mask(VIRTIO_F_RING_PACKED, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_F_IN_ORDER, VIRTIO_F_EVENT_IDX)}) {
    CAPTURE(features);
    DriverMemoryOptions options;
    options.features = features;
    options.queue_pairs = 2;
    options.ring_size = 64;
    options.huge = HugePages::kOff;
    auto made = DriverMemory::make(options);
    REQUIRE(made);
    DriverMemory& memory = **made;
    void* const first = reinterpret_cast<void*>(memory.address());
    auto table = GuestMemory::make({MappedRegion::borrow(first, {memory.address()}, memory.bytes(), {0})});
    REQUIRE(table);
    std::array<QueueCounters, 4> counters;
    const auto device_config = [&](size_t ring) {
      DeviceRingConfig config;
      config.features = features;
      config.ring = memory.rings()[ring].config.ring;
      config.memory = *table;
      config.base = has_feature(features, VIRTIO_F_RING_PACKED) ? 0x8000 : 0;
      return config;
    };
    auto driver_tx = make_driver_tx(memory.rings()[1].config, counters[0]);
    auto driver_rx = make_driver_rx(memory.rings()[2].config, counters[1]);
    auto device_rx = make_device_rx(device_config(1), counters[2]);
    auto device_tx = make_device_tx(device_config(2), counters[3]);
    std::atomic<bool> stop{false};
    std::thread device([&] { forward(*device_rx, *device_tx, stop); });

    Pass out;
    Pass in;
    std::vector<std::vector<uint8_t>> bodies(kMaxBatch, std::vector<uint8_t>(1100));
    uint32_t next_out = 0;
    uint32_t next_in = 0;
    uint32_t wrong = 0;
    testing::Patience patience(kPatience);
    while (next_in < kFrames && !patience.over()) {
      out.batch->clear();
      std::array<uint8_t, kMaxBatch> index;
      while (out.batch->count < kMaxBatch && next_out + out.batch->count < kFrames) {
        const uint32_t slot = out.batch->count++;
        const uint32_t n = next_out + slot;
        std::vector<uint8_t>& body = bodies[slot];
        for (uint32_t i = 0; i < length_of(n); ++i) body[i] = byte_of(n, i);
        body[0] = 2;
        store_unaligned<uint32_t>(&body[14], n);
        Frame& frame = out.batch->frames[slot];
        frame = {};
        frame.len = length_of(n);
        frame.head_len = static_cast<uint16_t>(std::min(frame.len, kHeadBytes));
        std::memcpy(frame.head, body.data(), frame.head_len);
        out.batch->segments[slot] = {body.data() + frame.head_len, frame.len - frame.head_len};
        frame.segments = &out.batch->segments[slot];
        frame.segment_count = frame.len > frame.head_len ? 1 : 0;
        index[slot] = static_cast<uint8_t>(slot);
      }
      if (out.batch->count > 0) next_out += driver_tx->send(*out.batch, {index.data(), out.batch->count}, out.drops);
      if (!in.peek(*driver_rx)) {
        std::this_thread::yield();
        continue;
      }
      for (uint32_t f = 0; f < in.batch->count; ++f, ++next_in) {
        const auto got = testing::bytes_of(in.batch->frames[f]);
        bool right = got.size() == length_of(next_in) && load_unaligned<uint32_t>(&got[14]) == next_in;
        for (uint32_t i = 18; right && i < got.size(); ++i) right = got[i] == byte_of(next_in, i);
        wrong += right ? 0 : 1;
      }
      driver_rx->release();
    }
    stop.store(true);
    device.join();
    CHECK(next_in == kFrames);
    CHECK(wrong == 0);
    CHECK(device_rx->broken().empty());
    CHECK(device_tx->broken().empty());
  }
}

}  // namespace
}  // namespace sw
