// SPDX-License-Identifier: Apache-2.0
// The driver's rings against our device's rings, over the same memory.
#include <poll.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <random>
#include <span>
#include <thread>

#include "virtio/driver_loop.h"

namespace sw::test {
namespace {

bool readable(int fd) {
  pollfd wait{fd, POLLIN, 0};
  return ::poll(&wait, 1, 0) == 1;
}

void drain(int fd) {
  uint64_t count = 0;
  (void)!::read(fd, &count, sizeof count);
}

}  // namespace

TEST_CASE("DriverRing: carries frames of every length there and back, whatever was negotiated") {
  for (const uint64_t features : all_feature_sets()) {
    CAPTURE(features);
    Loop loop({features});
    uint32_t number = 0;
    std::vector<uint32_t> lengths = {1500, 2047, 2048};
    for (uint32_t len = 14; len < 300; ++len) lengths.push_back(len);
    if (has_feature(features, VIRTIO_NET_F_MRG_RXBUF)) {
      lengths.insert(lengths.end(), {2049, 2060, 2061, 4096, 9018, 40'000, 65'535, kMaxFrameBytes});
    }
    for (const uint32_t len : lengths) {
      CAPTURE(len);
      const Bytes frame = make_frame(len, ++number);
      REQUIRE(loop.driver_send({frame}) == 1);
      REQUIRE(loop.device_pass() == 1);
      const auto back = loop.driver_receive();
      REQUIRE(back.size() == 1);
      REQUIRE(back[0] == frame);
    }
    CHECK(loop.rx().broken() == "");
    CHECK(loop.tx().broken() == "");
    CHECK(loop.tx_counters[0].frames.get() == number);
    CHECK(loop.rx_counters[0].frames.get() == number);
    CHECK(loop.rx_counters[0].bytes.get() == loop.tx_counters[0].bytes.get());
  }
}

TEST_CASE("DriverRing: keeps order and contents over seventy thousand frames, when indices of 16 bits began anew") {
  for (const uint64_t features : all_feature_sets()) {
    CAPTURE(features);
    Loop loop({features, 32});
    std::mt19937 random(1);
    uint32_t sent = 0;
    uint32_t received = 0;
    const uint32_t total = 70'000;
    while (received < total) {
      std::vector<Bytes> burst;
      // No more under way than the receiveq holds: what the device cannot deliver is lost.
      const auto wanted = std::min(static_cast<uint32_t>(random() % 40), 32 - (sent - received));
      for (uint32_t i = 0; i < wanted; ++i) burst.push_back(make_frame((sent + i) % 97 + 60, sent + i));
      sent += loop.driver_send(burst);
      if (random() % 4 != 0) loop.device_pass();
      if (random() % 4 == 0) continue;
      for (const Bytes& frame : loop.driver_receive()) {
        REQUIRE(frame == make_frame(received % 97 + 60, received));
        ++received;
      }
    }
    CHECK(drops_of(loop.drops, DropReason::kRingFull) == 0);
    CHECK(loop.rx().broken() == "");
    CHECK(loop.tx().broken() == "");
  }
}

TEST_CASE("DriverRing: a full ring takes no more frames until the device has used some") {
  for (const uint64_t features : all_feature_sets()) {
    CAPTURE(features);
    Loop loop({features, 16});
    const bool legacy = !has_feature(features, VIRTIO_F_VERSION_1);
    const uint32_t fits = legacy ? 8 : 16;  // a legacy header has a descriptor of its own
    const std::vector<Bytes> burst(20, make_frame(60, 1));
    CHECK(loop.driver_send(burst) == fits);
    CHECK(loop.tx().in_flight() == 16);
    CHECK(loop.driver_send(burst) == 0);
    CHECK(loop.device_pass() == fits);
    CHECK(loop.driver_receive().size() == fits);
    loop.tx().reclaim();
    CHECK(loop.tx().in_flight() == 0);
    CHECK(loop.driver_send(burst) == fits);
  }
}

TEST_CASE("DriverRing: a frame longer than the whole ring is dropped and counted") {
  Loop loop({feature_mask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF), 4});
  CHECK(loop.driver_send({make_frame(9000, 0), make_frame(100, 0)}) == 2);
  CHECK(drops_of(loop.drops, DropReason::kBufferTooSmall) == 1);
  CHECK(loop.tx_counters[0].frames.get() == 1);
}

TEST_CASE("DriverRing: offload headers travel both ways when negotiated") {
  const uint64_t offloads = feature_mask(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_HOST_TSO4,
                                         VIRTIO_NET_F_GUEST_TSO4, VIRTIO_F_VERSION_1);
  for (const uint64_t extra : {uint64_t{0}, feature_mask(VIRTIO_NET_F_MRG_RXBUF),
                               feature_mask(VIRTIO_NET_F_MRG_RXBUF, VIRTIO_F_RING_PACKED)}) {
    CAPTURE(extra);
    Loop loop({offloads | extra});
    CHECK(loop.tx().caps().checksum);
    CHECK(loop.tx().caps().tso4);
    CHECK_FALSE(loop.tx().caps().tso6);
    Bytes frame = make_frame(30'000, 5);
    frame[12] = 0x08;  // IPv4
    frame[13] = 0x00;
    frame[34 + 12] = 5 << 4;  // TCP data offset
    const VnetHeader vnet{VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, 54, 1448, 34, 16};
    REQUIRE(loop.driver_send({frame}, vnet) == 1);
    REQUIRE(loop.device_pass() == 1);
    REQUIRE(loop.driver_receive() == std::vector<Bytes>{frame});
    const VnetHeader& back = loop.headers.at(0);
    CHECK(back.flags == vnet.flags);
    CHECK(back.gso_type == vnet.gso_type);
    CHECK(back.gso_size == vnet.gso_size);
    CHECK(back.csum_start == vnet.csum_start);
    CHECK(back.csum_offset == vnet.csum_offset);
  }
}

TEST_CASE("DriverRing: a buffer that carried an offload header carries a plain one when it comes round again") {
  constexpr uint16_t kRing = 4;
  const VnetHeader offload{VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, 34, 16};
  const VnetHeader plain{};
  for (uint64_t features : all_feature_sets()) {
    features |= feature_mask(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM);
    CAPTURE(features);
    Loop loop({features, kRing});
    const bool lends = has_feature(features, VIRTIO_F_VERSION_1);  // without it a buffer is not a whole frame
    Bytes frame = make_frame(100, 1);
    frame[12] = 0x08;  // IPv4
    frame[13] = 0x00;
    for (uint32_t lap = 0; lap < 6; ++lap) {
      CAPTURE(lap);
      loop.headers.clear();
      for (uint32_t i = 0; i < kRing; ++i) {
        if (lends && lap % 3 == 2) {
          std::array<uint8_t*, 1> payload{};
          loop.tx().reclaim();
          REQUIRE(loop.tx().lend(payload) == 1);
          std::copy(frame.begin(), frame.end(), payload[0]);
          loop.tx().commit(1, 100);
        } else {
          REQUIRE(loop.driver_send({frame}, lap % 3 == 0 ? offload : plain) == 1);
        }
        REQUIRE(loop.device_pass() == 1);
        REQUIRE(loop.driver_receive() == std::vector<Bytes>{frame});
        CHECK(loop.headers.at(i).flags == (lap % 3 == 0 ? offload.flags : 0));
      }
    }
  }
}

TEST_CASE("DriverRing: frames written in place arrive as written, in order, over many laps") {
  for (const uint64_t features : all_feature_sets()) {
    if (!has_feature(features, VIRTIO_F_VERSION_1)) continue;  // without it a buffer is not a whole frame
    CAPTURE(features);
    constexpr uint32_t kRing = 32;
    Loop loop({features, kRing});
    std::mt19937 random(2);
    uint32_t sent = 0;
    uint32_t received = 0;
    while (received < 20'000) {
      loop.tx().reclaim();
      std::array<uint8_t*, kRing> payloads{};
      // No more under way than the receiveq holds.
      const auto wanted = std::min<uint32_t>(random() % kRing, kRing - (sent - received));
      const uint32_t lent = loop.tx().lend(std::span(payloads).first(wanted));
      for (uint32_t i = 0; i < lent; ++i) {
        const Bytes frame = make_frame(64, sent + i);
        std::copy(frame.begin(), frame.end(), payloads[i]);
      }
      loop.tx().commit(lent, 64);
      sent += lent;
      if (random() % 4 != 0) loop.device_pass();
      std::array<UsedBuffer, 8> used{};
      const uint32_t taken = loop.rx().take(used, true);
      for (uint32_t i = 0; i < taken; ++i) {
        REQUIRE(Bytes(used[i].payload, used[i].payload + used[i].bytes) == make_frame(64, received));
        ++received;
      }
      loop.rx().release();
    }
    CHECK(drops_of(loop.drops, DropReason::kRingFull) == 0);
    CHECK(loop.rx().broken() == "");
    CHECK(loop.tx().broken() == "");
  }
}

TEST_CASE("DriverRing: kicks the device when, and only when, it asked to be kicked") {
  for (const uint64_t features : all_feature_sets()) {
    CAPTURE(features);
    Loop loop({features});
    const int kick = loop.device->memory().rings()[1].kick.get();
    const auto send_one = [&] {
      loop.driver_send({make_frame(60, 0)});
      full_fence();
      loop.tx().notify();
    };
    loop.device_rx->disarm();
    send_one();  // with event index the wish is an index, and a stale one may ask once
    drain(kick);
    const uint64_t before = loop.tx_counters[0].notifications.get();
    for (int i = 0; i < 5; ++i) send_one();
    CHECK_FALSE(readable(kick));
    loop.device_pass();
    CHECK_FALSE(loop.device_rx->arm());
    send_one();
    CHECK(readable(kick));
    CHECK(loop.tx_counters[0].notifications.get() == before + 1);
    CHECK(loop.device_rx->arm());  // something arrived: do not sleep
  }
}

TEST_CASE("DriverRing: an armed receive queue is called, a disarmed one is left alone") {
  for (const uint64_t features : all_feature_sets()) {
    CAPTURE(features);
    Loop loop({features});
    const auto deliver_one = [&] {
      loop.driver_send({make_frame(60, 0)});
      loop.device_pass();
      full_fence();
      loop.device_tx->notify();
    };
    // A device may always call once when it starts.
    deliver_one();
    CHECK(loop.driver_receive().size() == 1);
    CHECK_FALSE(loop.rx().arm());
    loop.rx().disarm();
    for (int i = 0; i < 5; ++i) deliver_one();
    CHECK_FALSE(readable(loop.rx().wake_fd()));
    CHECK(loop.rx().arm());  // frames wait: do not sleep
    CHECK(loop.driver_receive().size() == 5);
    CHECK_FALSE(loop.rx().arm());
    deliver_one();
    CHECK(readable(loop.rx().wake_fd()));
    CHECK(loop.rx().arm());
    CHECK_FALSE(readable(loop.rx().wake_fd()));
  }
}

TEST_CASE("DriverRing: driver and device run on two threads") {
  for (const uint64_t features : all_feature_sets()) {
    CAPTURE(features);
    Loop loop({features});
    constexpr uint32_t kFrames = 5'000;
    std::atomic<bool> done{false};
    PortWorkerCounters device_drops;
    std::thread device_thread([&] {
      auto batch = std::make_unique<Batch>();
      while (!done.load(std::memory_order_relaxed)) {
        batch->clear();
        if (!loop.device_rx->peek(*batch, device_drops)) {
          std::this_thread::yield();
          continue;
        }
        std::vector<uint8_t> list = indexes(batch->count);
        std::span<const uint8_t> rest = list;
        while (!rest.empty() && !done.load(std::memory_order_relaxed)) {
          rest = rest.subspan(loop.device_tx->send(*batch, rest, device_drops));
        }
        loop.device_rx->release();
      }
    });
    uint32_t sent = 0;
    uint32_t received = 0;
    bool same = true;
    while (received < kFrames && same && loop.rx().broken().empty() && loop.tx().broken().empty()) {
      std::vector<Bytes> burst;
      for (uint32_t i = 0; i < std::min(8U, kFrames - sent); ++i)
        burst.push_back(make_frame(60 + (sent + i) % 200, sent + i));
      if (!burst.empty()) sent += loop.driver_send(burst);
      const auto frames = loop.driver_receive();
      for (const Bytes& frame : frames) {
        same &= frame == make_frame(60 + received % 200, received);
        ++received;
      }
      if (frames.empty()) std::this_thread::yield();
    }
    done = true;
    device_thread.join();
    CHECK(same);
    CHECK(received == kFrames);
    CHECK(loop.rx().broken() == "");
    CHECK(loop.tx().broken() == "");
  }
}

}  // namespace sw::test
