// SPDX-License-Identifier: Apache-2.0
// What a guest can make one turn of its queues cost, counted in descriptors, bytes and frames: however it lays out its
// frames and buffers, a batch ends, what is left comes with the next one, and what honest drivers do is not touched.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "support/raw_guest.h"

namespace sw {
namespace {

using testing::both_rings;
using testing::bytes_of;
using testing::Desc;
using testing::Pass;
using testing::pattern_frame;
using testing::RawGuest;

constexpr uint64_t kBuffer = RawGuest::kBuffers;
constexpr uint64_t kTable = RawGuest::kBuffers + 0x80000;
constexpr uint16_t kWrite = VRING_DESC_F_WRITE;
constexpr uint64_t kFeatures =
    feature_mask(VIRTIO_F_INDIRECT_DESC, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_MRG_RXBUF);
constexpr uint32_t kFrames = 64;
constexpr uint32_t kMaxChainWork = 4 * 1024;
constexpr uint32_t kLeeway = kTurnWork / 4;  // of worker.cc: with this no turn is lost

// `bytes` in `pieces` pieces, the first one the header; all of them on the same memory.
std::vector<Desc> pieces_of(uint32_t bytes, uint32_t pieces) {
  std::vector<Desc> chain{{kBuffer, 12}};
  const uint32_t each = bytes / (pieces - 1);
  for (uint32_t i = 1; i < pieces; ++i)
    chain.push_back({kBuffer + 12, i + 1 < pieces ? each : bytes - each * (pieces - 2)});
  return chain;
}

VnetHeader segments_of(uint16_t bytes) {
  return {VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, 54, bytes, 34, 16};
}

struct Layout {
  const char* what;
  uint32_t frames_a_peek;  // at least; of kFrames that are there
  uint32_t most_work;      // of a batch; 4: the first frame finds its region
  uint32_t dropped;
  std::function<void(RawGuest&)> add;
  VnetHeader header = {};
};

const std::vector<Layout> kLayouts = {
    {"plain", 64, 4, 0, [](RawGuest& g) { g.add({{kBuffer, 12 + 60}}); }},
    {"a jumbo frame in one piece", 64, 4, 0, [](RawGuest& g) { g.add({{kBuffer, 12 + 9018}}); }},
    {"header and data", 64, 64 * 9, 0, [](RawGuest& g) { g.add(pieces_of(1514, 2)); }},
    {"header and data in a table", 64, 64 * 9, 0, [](RawGuest& g) { g.add_indirect(pieces_of(1514, 2), kTable); }},
    {"64 KB in one piece", 16, kTurnWork + kLeeway, 0, [](RawGuest& g) { g.add({{kBuffer, 12 + 65000}}); }},
    {"64 KB in 17 pieces", 8, kTurnWork + kLeeway, 0,
     [](RawGuest& g) { g.add_indirect(pieces_of(65000, 17), kTable); }},
    {"64 KB in 45 pieces", 5, kTurnWork + kLeeway, 0,
     [](RawGuest& g) { g.add_indirect(pieces_of(65000, 45), kTable); }},
    {"64 KB of segments as a wire has them", 8, kTurnWork + kLeeway, 0,
     [](RawGuest& g) { g.add_indirect(pieces_of(65000, 17), kTable); }, segments_of(1448)},
    {"small segments in large frames", 1, kTurnWork + kLeeway + 256 * 20, 0,
     [](RawGuest& g) { g.add_indirect(pieces_of(65000, 17), kTable); }, segments_of(256)},
    {"segments of eight bytes", 1, 256 * 20, 0, [](RawGuest& g) { g.add({{kBuffer, 12 + 2100}}); }, segments_of(8)},
    {"pieces of one byte", 1, kTurnWork + kMaxChainWork, 0,
     [](RawGuest& g) { g.add_indirect(pieces_of(1000, 1001), kTable); }},
    {"a thousand empty pieces", 0, kMaxChainWork, kFrames,
     [](RawGuest& g) { g.add_indirect(std::vector<Desc>(1024, Desc{kBuffer, 0}), kTable); }},
    {"a bad address behind a thousand pieces", 0, kMaxChainWork, kFrames,
     [](RawGuest& g) {
       std::vector<Desc> chain(1023, Desc{kBuffer, 1});
       chain.push_back({0, 1});
       g.add_indirect(chain, kTable);
     }},
};

TEST_CASE("DeviceRx: a batch ends by what it costs, and every frame comes once") {
  for (const uint64_t features : both_rings(kFeatures)) {
    for (const Layout& layout : kLayouts) {
      CAPTURE(features);
      CAPTURE(layout.what);
      RawGuest guest(features, 128);
      Pass pass;
      auto rx = make_device_rx(guest.config(), pass.counters);
      std::vector<uint8_t> bytes = pattern_frame(65536);
      bytes[34 + 12] = 0x50;  // a TCP header of 20 bytes, for those that have segments
      guest.put_frame(kBuffer, bytes, layout.header);
      for (uint32_t i = 0; i < kFrames; ++i) layout.add(guest);
      uint32_t frames = 0;
      uint32_t most_work = 0;
      uint32_t fewest = kFrames;
      while (pass.peek(*rx)) {
        rx->release();
        frames += pass.batch->count;
        most_work = std::max(most_work, pass.batch->work);
        if (frames < kFrames) fewest = std::min(fewest, pass.batch->count);
      }
      CHECK(fewest >= layout.frames_a_peek);
      CHECK(most_work <= layout.most_work);
      CHECK(frames == kFrames - layout.dropped);
      CHECK(pass.all_rx_drops() == layout.dropped);
      CHECK(pass.counters.frames.get() == kFrames);
      CHECK(guest.reap().size() == kFrames);
      CHECK(rx->broken().empty());
    }
  }
}

TEST_CASE("DeviceRx: frames that were left to the next batch come again, in order and counted once") {
  for (const uint64_t in_order : {uint64_t{0}, feature_mask(VIRTIO_F_IN_ORDER)}) {
    for (const uint64_t features : both_rings(in_order)) {
      for (const uint16_t ring_size : {uint16_t{8}, uint16_t{16}}) {
        CAPTURE(features);
        CAPTURE(ring_size);
        RawGuest guest(features, ring_size);
        Pass pass;
        auto rx = make_device_rx(guest.config(), pass.counters);
        uint8_t sent = 0;
        uint8_t received = 0;
        uint64_t bytes = 0;
        for (uint32_t lap = 0; lap < 60; ++lap) {
          while (static_cast<uint8_t>(sent - received) < ring_size) {
            const uint64_t at = kBuffer + uint64_t{sent % 64U} * 0x100;
            const size_t length = 60 + sent % 64U;
            bytes += length;
            const uint32_t all = guest.put_frame(at, pattern_frame(length, sent));
            guest.add({{at, all}});
            ++sent;
          }
          REQUIRE(pass.peek(*rx));
          REQUIRE(pass.batch->divisible);
          REQUIRE(pass.batch->count == ring_size);
          const uint32_t kept = lap % ring_size;
          for (uint32_t i = 0; i < kept; ++i, ++received) {
            REQUIRE(bytes_of(pass.batch->frames[i]) == pattern_frame(60 + received % 64U, received));
          }
          pass.batch->count = kept;
          rx->cancel(*pass.batch);
          rx->release();
          REQUIRE(guest.reap().size() == (in_order != 0 && guest.packed() && kept != 0 ? 1 : kept));
        }
        REQUIRE(pass.peek(*rx));
        rx->release();
        CHECK(static_cast<uint8_t>(received + pass.batch->count) == sent);
        CHECK(pass.counters.bytes.get() == bytes);
      }
    }
  }
}

TEST_CASE("DeviceRx: a packed list of more than a thousand descriptors breaks its ring") {
  RawGuest guest(both_rings()[1], 2048);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  guest.add(std::vector<Desc>(1025, Desc{kBuffer, 1}));
  CHECK_FALSE(pass.peek(*rx));
  CHECK(pass.batch->work == 0);  // the next queue's batch begins with nothing
  CHECK(rx->broken().find("more than 1024") != std::string::npos);
}

// --- The guest's receive buffers
// --------------------------------------------------------------------------------------

// Frames as a worker offers them, all the same.
struct Offered {
  std::unique_ptr<Batch> batch = std::make_unique<Batch>();
  std::vector<uint8_t> bytes;
  std::vector<uint8_t> index;

  Offered(uint32_t count, uint32_t length) : bytes(pattern_frame(length)) {
    for (uint32_t i = 0; i < count; ++i) {
      Frame& frame = batch->frames[i];
      frame = {};
      frame.len = length;
      frame.head_len = std::min(length, kHeadBytes);
      std::memcpy(frame.head, bytes.data(), frame.head_len);
      batch->segments[i] = {bytes.data() + frame.head_len, length - frame.head_len};
      frame.segments = &batch->segments[i];
      frame.segment_count = 1;
      index.push_back(static_cast<uint8_t>(i));
    }
    batch->count = count;
  }
};

struct Buffers {
  const char* what;
  uint32_t frames, length;  // of each of 16 batches
  uint32_t least, most;     // frames that arrive
  std::function<void(RawGuest&)> add;
};

std::vector<Desc> writable(uint32_t pieces, uint32_t bytes) {
  std::vector<Desc> chain;
  for (uint32_t i = 0; i < pieces; ++i) chain.push_back({kBuffer, bytes, kWrite});
  return chain;
}

const std::vector<Buffers> kReceivers = {
    {"plain", 64, 60, 1024, 1024, [](RawGuest& g) { g.add({{kBuffer, 2048, kWrite}}); }},
    {"a table of 19 pages for each frame", 64, 60, 1024, 1024,
     [](RawGuest& g) { g.add_indirect(writable(19, 4096), kTable); }},
    {"mergeable buffers of 1526 bytes for 64 KB", 4, 65000, 64, 64,
     [](RawGuest& g) { g.add({{kBuffer, 1526, kWrite}}); }},
    {"a table of a thousand bytes, one frame at a time", 1, 60, 1, 2,
     [](RawGuest& g) { g.add_indirect(writable(1024, 1), kTable); }},
    {"a table of a thousand bytes", 64, 60, 16, 40, [](RawGuest& g) { g.add_indirect(writable(1024, 1), kTable); }},
    {"bad tables", 64, 60, 0, 0,
     [](RawGuest& g) {
       std::vector<Desc> chain = writable(1023, 1);
       chain.push_back({0, 1, kWrite});
       g.add_indirect(chain, kTable);
     }},
};

TEST_CASE("DeviceTx: a guest pays for its buffers with its frames") {
  for (const uint64_t features : both_rings(kFeatures)) {
    for (const Buffers& row : kReceivers) {
      CAPTURE(features);
      CAPTURE(row.what);
      RawGuest guest(features, 256);
      Pass pass;
      auto tx = make_device_tx(guest.config(), pass.counters);
      const Offered offered(row.frames, row.length);
      uint32_t room = 256;
      uint32_t arrived = 0;
      uint64_t looked_at = 0;
      for (uint32_t i = 0; i < 16; ++i) {
        for (; room != 0; --room) row.add(guest);
        arrived += tx->send(*offered.batch, offered.index, pass.drops);
        const auto returned = static_cast<uint32_t>(guest.reap().size());
        room += returned;
        looked_at += returned;
      }
      CHECK(arrived >= row.least);
      CHECK(arrived <= row.most);
      // Every frame pays for 24 descriptors; what was owed at the end may be two chains.
      if (arrived < row.frames * 16) CHECK(looked_at * 1024 <= 16 * row.frames * 24 + 3 * 1024);
      CHECK(tx->broken().empty());
    }
  }
}

}  // namespace
}  // namespace sw
