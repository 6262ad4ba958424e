// SPDX-License-Identifier: Apache-2.0
// virtio 1.3 2.8, packed virtqueues: what the device MUST do. One test a rule; each begins with the rule in our words.
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
constexpr uint64_t kPackedRing = feature_mask(VIRTIO_F_VERSION_1, VIRTIO_F_RING_PACKED, VIRTIO_F_INDIRECT_DESC);

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

TEST_CASE("2.8.1: both wrap counters begin at 1 and flip at the end of the ring, whatever its size") {
  for (uint16_t size = 1; size <= 9; ++size) {
    CAPTURE(size);
    RawGuest guest(kPackedRing, size);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    for (uint32_t i = 0; i < 5U * size; ++i) {
      const uint16_t at = guest.next_desc;
      const bool wrap = guest.wrap;
      guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60, static_cast<uint8_t>(i)))}});
      REQUIRE(pass.peek(*rx));
      CHECK(bytes_of(pass.batch->frames[0]) == pattern_frame(60, static_cast<uint8_t>(i)));
      CHECK_FALSE(packed_is_used(guest.slot(at)->flags, wrap));
      rx->release();
      CHECK(packed_is_used(guest.slot(at)->flags, wrap));
      CHECK_FALSE(pass.peek(*rx));
      CHECK(guest.reap().size() == 1);
    }
  }
}

TEST_CASE("2.8.3: the used descriptor carries WRITE exactly when something was written") {
  RawGuest guest(kPackedRing);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60))}});
  REQUIRE(pass.peek(*rx));
  rx->release();
  CHECK((guest.slot(0)->flags & VRING_DESC_F_WRITE) == 0);

  RawGuest receiver(kPackedRing);
  auto tx = make_device_tx(receiver.config(), pass.counters);
  receiver.add({{kBuffer, 100, kWrite}});
  CHECK(send_one(*tx, pass) == 1);
  CHECK((receiver.slot(0)->flags & VRING_DESC_F_WRITE) != 0);
  CHECK(receiver.slot(0)->len == 72);
}

TEST_CASE("2.8.6: a list uses as many slots as it has descriptors and is returned by its last id in its first slot") {
  RawGuest guest(kPackedRing, 7);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  const auto frame = pattern_frame(200);
  const uint32_t bytes = guest.put_frame(kBuffer, frame);
  for (uint32_t round = 0; round < 40; ++round) {
    CAPTURE(round);
    const uint32_t parts = round % 7 + 1;  // seven: a list over the whole ring
    std::vector<Desc> chain;
    for (uint32_t i = 0; i < parts; ++i) {
      const uint32_t from = bytes * i / parts;
      chain.push_back({kBuffer + from, bytes * (i + 1) / parts - from});
    }
    const uint16_t first = guest.next_desc;
    const uint16_t id = guest.add(chain);
    guest.slot(first)->id = parts == 1 ? id : 0x7777;  // only the last one's id counts
    REQUIRE(pass.peek(*rx));
    REQUIRE(pass.batch->count == 1);
    CHECK(bytes_of(pass.batch->frames[0]) == frame);
    rx->release();
    CHECK(guest.slot(first)->id == id);
    CHECK(guest.reap().size() == 1);
  }
}

TEST_CASE("2.8.7: a table takes one slot, its entries are used in order and their NEXT means nothing") {
  RawGuest guest(kPackedRing);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  const auto frame = pattern_frame(200);
  const uint32_t bytes = guest.put_frame(kBuffer, frame);
  for (const uint16_t flags : {uint16_t{0}, VRING_DESC_F_NEXT}) {
    for (int i = 0; i < 3; ++i) {
      guest.add_indirect({{kBuffer, 30, flags}, {kBuffer + 30, 70, flags}, {kBuffer + 100, bytes - 100, flags}},
                         kTable);
    }
    REQUIRE(pass.peek(*rx));
    REQUIRE(pass.batch->count == 3);
    for (int i = 0; i < 3; ++i) CHECK(bytes_of(pass.batch->frames[i]) == frame);
    rx->release();
    CHECK(guest.reap().size() == 3);
  }
}

TEST_CASE("2.8.8: with IN_ORDER one used descriptor returns a batch of buffers that were only read") {
  RawGuest guest(kPackedRing | feature_mask(VIRTIO_F_IN_ORDER), 10);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  for (int lap = 0; lap < 9; ++lap) {
    std::vector<uint32_t> ids;
    for (int i = 0; i < 3; ++i) {
      const uint32_t bytes = guest.put_frame(kBuffer, pattern_frame(60));
      i == 1 ? ids.push_back(guest.add({{kBuffer, 12}, {kBuffer + 12, bytes - 12}}))
             : ids.push_back(guest.add({{kBuffer, bytes}}));
    }
    REQUIRE(pass.peek(*rx));
    CHECK(pass.batch->count == 3);
    rx->release();
    const auto used = guest.reap();
    REQUIRE(used.size() == 1);
    CHECK(used[0].id == ids.back());
  }
}

TEST_CASE("2.8.8: with IN_ORDER buffers that were written are returned one by one, each with its length") {
  RawGuest guest(kPackedRing | feature_mask(VIRTIO_F_IN_ORDER), 10);
  Pass pass;
  auto tx = make_device_tx(guest.config(), pass.counters);
  for (int i = 0; i < 3; ++i) guest.add({{kBuffer + i * 0x100ULL, 100, kWrite}});
  for (int i = 0; i < 3; ++i) CHECK(send_one(*tx, pass) == 1);
  const auto used = guest.reap();
  REQUIRE(used.size() == 3);
  for (const auto& buffer : used) CHECK(buffer.len == 72);
}

TEST_CASE("2.8: the device takes descriptors in ring order and looks behind no unavailable one") {
  RawGuest guest(kPackedRing);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  for (int i = 0; i < 3; ++i) guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60))}});
  guest.slot(1)->flags = 0;  // not yet
  REQUIRE(pass.peek(*rx));
  CHECK(pass.batch->count == 1);
  rx->release();
  CHECK_FALSE(pass.peek(*rx));
  CHECK(packed_is_avail(guest.slot(2)->flags, true));  // untouched
  guest.slot(1)->flags = packed_avail_flags(true);
  REQUIRE(pass.peek(*rx));
  CHECK(pass.batch->count == 2);
  rx->release();
}

TEST_CASE("2.8: a descriptor is not changed after it was marked used") {
  RawGuest guest(kPackedRing);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60))}});
  REQUIRE(pass.peek(*rx));
  rx->release();
  const auto slot = guest.read(RawGuest::kRing, 16);
  rx->release();  // nothing more to return
  full_fence();
  rx->notify();
  CHECK_FALSE(pass.peek(*rx));
  CHECK(guest.read(RawGuest::kRing, 16) == slot);
}

TEST_CASE("2.8.10: the device asks for no available-buffer notifications while it polls, and for all when it sleeps") {
  RawGuest guest(kPackedRing);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  CHECK(guest.device_event()->flags == VRING_PACKED_EVENT_FLAG_DISABLE);
  CHECK_FALSE(rx->arm());
  CHECK(guest.device_event()->flags == VRING_PACKED_EVENT_FLAG_ENABLE);
  rx->disarm();
  CHECK(guest.device_event()->flags == VRING_PACKED_EVENT_FLAG_DISABLE);
}

}  // namespace
}  // namespace sw
