// SPDX-License-Identifier: Apache-2.0
// virtio 1.3 2.7, split virtqueues: what the device MUST do. One test a rule; each begins with the rule in our words.
#include <doctest/doctest.h>

#include <vector>

#include "support/raw_guest.h"

namespace sw {
namespace {

using testing::bytes_of;
using testing::Desc;
using testing::Pass;
using testing::pattern_frame;
using testing::RawGuest;

constexpr uint64_t kBuffer = RawGuest::kBuffers;
constexpr uint64_t kTable = RawGuest::kBuffers + 0x80000;
constexpr uint16_t kWrite = VRING_DESC_F_WRITE;
constexpr uint64_t kSplit = feature_mask(VIRTIO_F_VERSION_1, VIRTIO_F_INDIRECT_DESC);

// A frame of 60 bytes for the guest.
uint32_t send_one(TxQueue& tx, Pass& pass) {
  pass.batch->clear();
  Frame& frame = pass.batch->frames[0];
  frame = {};
  frame.len = 60;
  frame.head_len = 60;
  std::memcpy(frame.head, pattern_frame(60).data(), 60);
  frame.segments = pass.batch->segments.data();
  pass.batch->count = 1;
  const std::array<uint8_t, 1> index{0};
  return tx.send(*pass.batch, index, pass.drops);
}

TEST_CASE("2.7.4.1: the device makes no assumption about the arrangement of descriptors") {
  RawGuest guest(kSplit);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  const auto frame = pattern_frame(200);
  const uint32_t bytes = guest.put_frame(kBuffer, frame);
  for (uint32_t parts = 1; parts <= 12; ++parts) {
    std::vector<Desc> chain;
    for (uint32_t i = 0; i < parts; ++i) {
      const uint32_t from = bytes * i / parts;
      chain.push_back({kBuffer + from, bytes * (i + 1) / parts - from});
    }
    guest.add(chain);
    REQUIRE(pass.peek(*rx));
    CHECK(bytes_of(pass.batch->frames[0]) == frame);
    rx->release();
  }
}

TEST_CASE("2.7.5.1: the device writes neither to a device-readable buffer nor to the descriptor table") {
  RawGuest guest(kSplit);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  auto tx = make_device_tx(guest.config(), pass.counters);
  guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60))}});
  guest.write_table({{kBuffer, 40}, {kBuffer + 40, 40}}, kTable);
  guest.add({{kTable, 32, VRING_DESC_F_INDIRECT}});
  const auto ring = guest.read(RawGuest::kRing, 0x8000);
  const auto buffers = guest.read(kBuffer, 0x90000);
  REQUIRE(pass.peek(*rx));
  rx->release();
  CHECK(guest.read(RawGuest::kRing, 0x8000) == ring);
  CHECK(guest.read(kBuffer, 0x90000) == buffers);

  RawGuest readable(kSplit);  // a receiveq with a readable buffer
  auto other = make_device_tx(readable.config(), pass.counters);
  readable.add({{kBuffer, 2000}});
  const auto before = readable.read(RawGuest::kRing, 0x8000);
  CHECK(send_one(*other, pass) == 0);
  CHECK(readable.read(RawGuest::kRing, 0x8000) == before);
  CHECK(readable.read(kBuffer, 2000) == std::vector<uint8_t>(2000, RawGuest::kCanary));
}

TEST_CASE("2.7.5.3.2: the device ignores WRITE in the descriptor that refers to a table") {
  RawGuest guest(kSplit);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  const uint32_t bytes = guest.put_frame(kBuffer, pattern_frame(60));
  guest.write_table({{kBuffer, bytes}}, kTable);
  guest.add({{kTable, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE}});
  REQUIRE(pass.peek(*rx));
  REQUIRE(pass.batch->count == 1);
  CHECK(bytes_of(pass.batch->frames[0]) == pattern_frame(60));
  rx->release();

  RawGuest receiver(kSplit);
  auto tx = make_device_tx(receiver.config(), pass.counters);
  receiver.write_table({{kBuffer, 100, kWrite}}, kTable);
  receiver.add({{kTable, 16, VRING_DESC_F_INDIRECT}});
  CHECK(send_one(*tx, pass) == 1);
  CHECK(receiver.read(kBuffer + 12, 60) == pattern_frame(60));
}

TEST_CASE("2.7.5.3.2: the device handles direct descriptors in front of one that refers to a table") {
  RawGuest guest(kSplit);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  const auto frame = pattern_frame(300);
  const uint32_t bytes = guest.put_frame(kBuffer, frame);
  for (uint32_t before = 0; before < 4; ++before) {
    std::vector<Desc> direct;
    for (uint32_t i = 0; i < before; ++i) direct.push_back({kBuffer + i * 8, 8});
    const uint32_t done = before * 8;
    guest.add_indirect({{kBuffer + done, 50}, {kBuffer + done + 50, bytes - done - 50}}, kTable, direct);
    REQUIRE(pass.peek(*rx));
    REQUIRE(pass.batch->count == 1);
    CHECK(bytes_of(pass.batch->frames[0]) == frame);
    rx->release();
  }
}

TEST_CASE("2.7.7.2: without EVENT_IDX the device ignores used_event and notifies when flags is 0") {
  RawGuest guest(kSplit);
  Pass pass;
  auto tx = make_device_tx(guest.config(), pass.counters);
  for (uint16_t i = 0; i < 8; ++i) {
    guest.avail()->flags = 0;
    vring_used_event(guest.avail(), guest.size()) = static_cast<uint16_t>(i * 1000);
    guest.add({{kBuffer, 100, kWrite}});
    CHECK(send_one(*tx, pass) == 1);
    full_fence();
    tx->notify();
    CHECK(guest.calls() == 1);
  }
}

TEST_CASE("2.7.7.2: with EVENT_IDX the device ignores flags and notifies when it writes the entry used_event names") {
  RawGuest guest(kSplit | feature_mask(VIRTIO_F_EVENT_IDX));
  Pass pass;
  auto tx = make_device_tx(guest.config(), pass.counters);
  for (uint16_t i = 0; i < 70; ++i) {
    const bool wish = i % 3 == 0;
    guest.avail()->flags = static_cast<uint16_t>(i & 1);
    vring_used_event(guest.avail(), guest.size()) = static_cast<uint16_t>(wish ? i : i + 5);
    guest.add({{kBuffer, 100, kWrite}});
    CHECK(send_one(*tx, pass) == 1);
    full_fence();
    tx->notify();
    CHECK(guest.calls() == (wish ? 1 : 0));
  }
}

TEST_CASE("2.7.8.2: len and the payload are written before the used index moves") {
  // Seen from the outside: whenever the index has moved, len and payload are there, and before send they are not.
  RawGuest guest(kSplit);
  Pass pass;
  auto tx = make_device_tx(guest.config(), pass.counters);
  guest.add({{kBuffer, 100, kWrite}});
  CHECK(guest.used()->idx == 0);
  CHECK(send_one(*tx, pass) == 1);
  CHECK(guest.used()->idx == 1);
  CHECK(guest.used()->ring[0].id == 0);
  CHECK(guest.used()->ring[0].len == 72);  // never more than was written: 2.7.8.2
  CHECK(guest.read(kBuffer + 12, 60) == pattern_frame(60));
}

TEST_CASE("2.7.9: with IN_ORDER buffers are used in the order in which they were made available") {
  RawGuest guest(kSplit | feature_mask(VIRTIO_F_IN_ORDER), 64);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  for (int lap = 0; lap < 4; ++lap) {
    std::vector<uint32_t> ids;
    for (int i = 0; i < 20; ++i) {
      // Bad ones among them: they keep their place.
      ids.push_back(i % 5 == 2 ? guest.add({{0, 10}})
                               : guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60))}}));
    }
    REQUIRE(pass.peek(*rx));
    rx->release();
    const auto used = guest.reap();
    REQUIRE(used.size() == ids.size());
    for (size_t i = 0; i < ids.size(); ++i) CHECK(used[i].id == ids[i]);
  }
}

TEST_CASE("2.7.10.2: the device sets used flags to 0 or 1, and to 0 with EVENT_IDX") {
  for (const bool event : {false, true}) {
    RawGuest guest(kSplit | (event ? feature_mask(VIRTIO_F_EVENT_IDX) : 0));
    guest.used()->flags = 0xffff;
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    CHECK(guest.used()->flags == (event ? 0 : 1));
    (void)rx->arm();
    CHECK(guest.used()->flags == 0);
    rx->disarm();
    CHECK(guest.used()->flags == (event ? 0 : 1));
  }
}

}  // namespace
}  // namespace sw
