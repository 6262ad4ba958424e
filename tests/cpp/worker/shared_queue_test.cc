// SPDX-License-Identifier: Apache-2.0
// One transmit queue of several threads, as workers have it when a guest has fewer queues than there are workers: every
// frame arrives once, whole, and in the order of its thread.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "base/bytes.h"
#include "support/eventually.h"
#include "virtio/device_ring.h"
#include "virtio/driver_device.h"
#include "virtio/spec.h"

namespace sw {
namespace {

constexpr uint32_t kThreads = 3;
constexpr uint32_t kFrames = 4000;  // of each thread
constexpr uint32_t kNumberAt = 14;  // in a frame: thread << 24 | number of the frame
constexpr std::chrono::seconds kPatience(60);

// `long_every`: how often a frame comes that needs several buffers. 0: never.
uint32_t length_of(uint32_t number, uint32_t long_every) {
  if (long_every != 0 && number % long_every == 0) return 5000;
  return 60 + number % 2048 * 37 % 1000;
}
uint8_t byte_of(uint32_t number, uint32_t at) { return static_cast<uint8_t>(number * 7 + at); }

// A guest of one queue, in this process.
struct Guest {
  explicit Guest(uint64_t features) : rx_counters(1), tx_counters(1) {
    DriverMemoryOptions options;
    options.features = features;
    options.ring_size = 64;
    options.huge = HugePages::kOff;
    auto made = DriverDevice::make(options, rx_counters, tx_counters);
    REQUIRE(made);
    driver = std::move(*made);
    const DriverMemory& shared = driver->memory();
    auto memory = GuestMemory::make({MappedRegion::borrow(reinterpret_cast<void*>(shared.address()), {shared.address()},
                                                          shared.bytes(), {shared.address()})});
    REQUIRE(memory);
    DeviceRingConfig config;
    config.features = features;
    config.ring = shared.rings()[0].config.ring;
    config.memory = *memory;
    config.base = has_feature(features, VIRTIO_F_RING_PACKED) ? 0x8000 : 0;
    queue = make_device_tx(config, counters);
  }

  std::vector<QueueCounters> rx_counters, tx_counters;
  QueueCounters counters;
  std::unique_ptr<DriverDevice> driver;
  std::unique_ptr<DeviceTx> queue;
};

void send_all(TxQueue& queue, uint32_t thread, uint32_t long_every, const std::atomic<bool>& stop) {
  const auto batch = std::make_unique<Batch>();
  std::vector<std::vector<uint8_t>> bodies(kMaxBatch, std::vector<uint8_t>(5000));
  std::array<uint8_t, kMaxBatch> index;
  PortWorkerCounters drops;
  for (uint32_t next = 0; next < kFrames;) {
    const uint32_t count = std::min(1 + next % 32, kFrames - next);
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t number = thread << 24 | (next + i);
      std::vector<uint8_t>& body = bodies[i];
      Frame& frame = batch->frames[i];
      frame = {};
      frame.len = length_of(next + i, long_every);
      frame.head_len = std::min(frame.len, kHeadBytes);
      for (uint32_t at = 0; at < frame.len; ++at) body[at] = byte_of(number, at);
      store_unaligned<uint32_t>(&body[kNumberAt], number);
      std::memcpy(frame.head, body.data(), frame.head_len);
      batch->segments[i] = {body.data() + frame.head_len, frame.len - frame.head_len};
      frame.segments = &batch->segments[i];
      frame.segment_count = frame.len > frame.head_len ? 1 : 0;
      index[i] = static_cast<uint8_t>(i);
    }
    for (uint32_t sent = 0; sent < count && !stop.load(std::memory_order_relaxed);) {
      queue.lock().lock();
      const uint32_t now = queue.send(*batch, {index.data() + sent, count - sent}, drops);
      queue.lock().unlock();
      if (now == 0) std::this_thread::yield();
      sent += now;
    }
    next += count;
  }
}

TEST_CASE("shared transmit queue: several threads' frames arrive once, whole and each thread's in order") {
  struct Row {
    const char* what;
    uint64_t features;
    uint32_t long_every;
  };
  const uint64_t split = feature_mask(VIRTIO_F_VERSION_1);
  const uint64_t packed = split | feature_mask(VIRTIO_F_RING_PACKED);
  const uint64_t mergeable = feature_mask(VIRTIO_NET_F_MRG_RXBUF);
  for (const Row& row : {Row{"split", split, 0}, Row{"split, some long", split | mergeable, 40},
                         Row{"split, many long", split | mergeable, 3}, Row{"packed", packed, 0},
                         Row{"packed, some long", packed | mergeable, 40},
                         Row{"packed, in order, many long", packed | mergeable | feature_mask(VIRTIO_F_IN_ORDER), 3}}) {
    CAPTURE(row.what);
    Guest guest(row.features);
    std::atomic<bool> stop{false};
    std::vector<std::thread> senders;
    for (uint32_t thread = 0; thread < kThreads; ++thread) {
      senders.emplace_back([&, thread] { send_all(*guest.queue, thread, row.long_every, stop); });
    }
    std::array<uint32_t, kThreads> next{};
    uint32_t received = 0;
    uint64_t bytes = 0;
    uint32_t wrong = 0;
    const auto batch = std::make_unique<Batch>();
    PortWorkerCounters drops;
    DriverRx& ring = *guest.driver->rx()[0];
    testing::Patience patience(kPatience);
    std::vector<uint8_t> got(5000);
    while (received < kThreads * kFrames && !patience.over()) {
      batch->clear();
      if (!ring.peek(*batch, drops)) {
        std::this_thread::yield();
        continue;
      }
      for (uint32_t i = 0; i < batch->count; ++i, ++received) {
        const Frame& frame = batch->frames[i];
        bytes += frame.len;
        if (frame.len > got.size()) {
          ++wrong;
          continue;
        }
        copy_from_frame(frame, 0, got.data(), frame.len);
        const auto number = load_unaligned<uint32_t>(&got[kNumberAt]);
        const uint32_t thread = number >> 24;
        bool right = thread < kThreads && (number & 0xffffff) == next[thread] &&
                     frame.len == length_of(next[thread], row.long_every);
        if (right) ++next[thread];
        for (uint32_t at = kNumberAt + 4; right && at < frame.len; ++at) right = got[at] == byte_of(number, at);
        if (!right) ++wrong;
      }
      ring.release();
    }
    stop.store(true);
    for (std::thread& sender : senders) sender.join();
    CHECK(received == kThreads * kFrames);
    CHECK(wrong == 0);
    CHECK(guest.counters.frames.get() == received);
    CHECK(guest.counters.bytes.get() == bytes);
    CHECK(guest.queue->broken().empty());
    CHECK(ring.broken().empty());
  }
}

}  // namespace
}  // namespace sw
