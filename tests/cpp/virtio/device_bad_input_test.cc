// SPDX-License-Identifier: Apache-2.0
// What a hostile or broken guest may write at each field of its rings: it costs that guest a buffer or its ring, is
// counted under a name, and nothing else happens. RawGuest's memory ends in inaccessible pages.
// Why so long: every field of both ring kinds has its wrong values.
#include <doctest/doctest.h>

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
constexpr uint16_t kNext = VRING_DESC_F_NEXT;
constexpr uint16_t kIndirect = VRING_DESC_F_INDIRECT;
constexpr uint64_t kWithTables = feature_mask(VIRTIO_F_INDIRECT_DESC);

// A good frame behind the bad one must arrive: the ring goes on.
void add_good_frame(RawGuest& guest) {
  guest.add({{kBuffer + 0x4000, guest.put_frame(kBuffer + 0x4000, pattern_frame(64, 77))}});
}

struct BadChain {
  const char* what;
  DropReason reason;
  std::function<void(RawGuest&)> add;
};

const std::vector<BadChain> kBadChains = {
    {"address 0", DropReason::kMalformedDescriptor, [](RawGuest& g) { g.add({{0, 100}}); }},
    {"address in a hole", DropReason::kMalformedDescriptor, [](RawGuest& g) { g.add({{RawGuest::kEnd, 100}}); }},
    {"highest address", DropReason::kMalformedDescriptor, [](RawGuest& g) { g.add({{UINT64_MAX, 1}}); }},
    {"address wraps", DropReason::kMalformedDescriptor, [](RawGuest& g) { g.add({{UINT64_MAX - 50, 100}}); }},
    {"last byte outside", DropReason::kMalformedDescriptor, [](RawGuest& g) { g.add({{RawGuest::kEnd - 99, 100}}); }},
    {"last byte outside, second descriptor", DropReason::kMalformedDescriptor,
     [](RawGuest& g) { g.add({{kBuffer, 80}, {RawGuest::kEnd - 1, 2}}); }},
    {"length at its maximum", DropReason::kMalformedDescriptor, [](RawGuest& g) { g.add({{kBuffer, UINT32_MAX}}); }},
    {"length 0", DropReason::kMalformedDescriptor, [](RawGuest& g) { g.add({{kBuffer, 0}}); }},
    {"shorter than the header", DropReason::kMalformedDescriptor, [](RawGuest& g) { g.add({{kBuffer, 11}}); }},
    {"shorter than the header, in two", DropReason::kMalformedDescriptor,
     [](RawGuest& g) { g.add({{kBuffer, 6}, {kBuffer, 5}}); }},
    {"header only", DropReason::kFrameTooShort, [](RawGuest& g) { g.add({{kBuffer, 12}}); }},
    {"13 bytes of frame", DropReason::kFrameTooShort, [](RawGuest& g) { g.add({{kBuffer, 25}}); }},
    {"13 bytes of frame, in two", DropReason::kFrameTooShort,
     [](RawGuest& g) { g.add({{kBuffer, 12}, {kBuffer, 13}}); }},
    {"one byte too long", DropReason::kFrameTooLong, [](RawGuest& g) { g.add({{kBuffer, 12 + 65553 + 1}}); }},
    {"much too long, in three", DropReason::kFrameTooLong,
     [](RawGuest& g) { g.add({{kBuffer, 60000}, {kBuffer, 60000}, {kBuffer, 60000}}); }},
    {"writable", DropReason::kMalformedDescriptor, [](RawGuest& g) { g.add({{kBuffer, 100, kWrite}}); }},
    {"writable in the middle", DropReason::kMalformedDescriptor,
     [](RawGuest& g) { g.add({{kBuffer, 50}, {kBuffer, 50, kWrite}, {kBuffer, 50}}); }},
    {"table outside memory", DropReason::kMalformedDescriptor, [](RawGuest& g) { g.add({{0, 32, kIndirect}}); }},
    {"table ends outside memory", DropReason::kMalformedDescriptor,
     [](RawGuest& g) {
       g.write_table({{kBuffer, 50}}, RawGuest::kEnd - 16);
       if (!g.packed()) *reinterpret_cast<uint16_t*>(g.at(RawGuest::kEnd - 4)) = kNext;
       g.add({{RawGuest::kEnd - 16, 32, kIndirect}});
     }},
    {"table wraps", DropReason::kMalformedDescriptor, [](RawGuest& g) { g.add({{UINT64_MAX - 15, 32, kIndirect}}); }},
    {"table of 0 bytes", DropReason::kMalformedDescriptor, [](RawGuest& g) { g.add({{kTable, 0, kIndirect}}); }},
    {"table of 8 bytes", DropReason::kMalformedDescriptor, [](RawGuest& g) { g.add({{kTable, 8, kIndirect}}); }},
    {"table of 17 bytes", DropReason::kMalformedDescriptor, [](RawGuest& g) { g.add({{kTable, 17, kIndirect}}); }},
    {"table of 1025 entries", DropReason::kMalformedDescriptor,
     [](RawGuest& g) {
       g.write_table(std::vector<Desc>(1025, Desc{kBuffer, 1}), kTable);
       g.add({{kTable, 1025 * 16, kIndirect}});
     }},
    {"table in a table", DropReason::kMalformedDescriptor,
     [](RawGuest& g) {
       g.write_table({{kBuffer, 50}, {kTable, 32, kIndirect}}, kTable);
       g.add({{kTable, 32, kIndirect}});
     }},
    {"table with NEXT", DropReason::kMalformedDescriptor,
     [](RawGuest& g) {
       g.write_table({{kBuffer, 100}}, kTable);
       g.add({{kTable, 16, kIndirect}, {kBuffer, 100}});
     }},
    {"writable in a table", DropReason::kMalformedDescriptor,
     [](RawGuest& g) { g.add_indirect({{kBuffer, 50}, {kBuffer, 50, kWrite}}, kTable); }},
    {"bad address in a table", DropReason::kMalformedDescriptor,
     [](RawGuest& g) { g.add_indirect({{kBuffer, 50}, {0, 50}}, kTable); }},
};

TEST_CASE("DeviceRx: a bad chain is returned empty, counted, and the ring goes on") {
  for (const uint64_t features : both_rings(kWithTables)) {
    for (const BadChain& bad : kBadChains) {
      CAPTURE(features);
      CAPTURE(bad.what);
      RawGuest guest(features);
      Pass pass;
      auto rx = make_device_rx(guest.config(), pass.counters);
      add_good_frame(guest);
      bad.add(guest);
      add_good_frame(guest);
      REQUIRE(pass.peek(*rx));
      CHECK(pass.batch->count == 2);
      CHECK(bytes_of(pass.batch->frames[1]) == pattern_frame(64, 77));
      CHECK(pass.rx_drops(bad.reason) == 1);
      CHECK(pass.all_rx_drops() == 1);
      CHECK(pass.counters.frames.get() == 3);
      CHECK(rx->malformed() == (bad.reason == DropReason::kMalformedDescriptor ? 1 : 0));
      rx->release();
      const auto used = guest.reap();
      REQUIRE(used.size() == 3);
      CHECK(used[1].len == 0);
      CHECK(rx->broken().empty());
    }
  }
}

TEST_CASE("DeviceRx: one bad chain alone is something taken") {
  for (const uint64_t features : both_rings()) {
    RawGuest guest(features);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    guest.add({{0, 100}});
    CHECK(pass.peek(*rx));
    CHECK(pass.batch->count == 0);
    rx->release();
    CHECK(guest.reap().size() == 1);
  }
}

TEST_CASE("DeviceRx: tables are refused when they were not negotiated") {
  for (const uint64_t features : both_rings()) {
    RawGuest guest(features);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    guest.add_indirect({{kBuffer, 100}}, kTable);
    CHECK(pass.peek(*rx));
    CHECK(pass.rx_drops(DropReason::kMalformedDescriptor) == 1);
    rx->release();
  }
}

TEST_CASE("DeviceRx: split chains that loop or leave the table are bad chains") {
  struct Row {
    const char* what;
    uint16_t next_of_0, next_of_1;
  };
  const std::vector<Row> rows = {
      {"loop of one", 0, 1},
      {"loop of two", 1, 0},
      {"next is the ring size", 16, 0},
      {"next is huge", 0xffff, 0},
      {"second next is huge", 1, 0x8000},
  };
  for (const Row& row : rows) {
    for (const uint32_t len : {0U, 1U, 100U}) {
      CAPTURE(row.what);
      RawGuest guest(both_rings()[0]);
      Pass pass;
      auto rx = make_device_rx(guest.config(), pass.counters);
      *guest.desc(0) = {kBuffer, len, kNext, row.next_of_0};
      *guest.desc(1) = {kBuffer, len, kNext, row.next_of_1};
      guest.next_desc = 2;
      guest.offer(0);
      add_good_frame(guest);
      REQUIRE(pass.peek(*rx));
      CHECK(pass.batch->count == 1);
      CHECK(pass.rx_drops(DropReason::kMalformedDescriptor) == 1);
      rx->release();
      CHECK(guest.reap().size() == 2);
    }
  }
}

TEST_CASE("DeviceRx: a loop in a split table is a bad chain") {
  RawGuest guest(both_rings(kWithTables)[0]);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  for (const uint16_t next : {uint16_t{0}, uint16_t{1}, uint16_t{2}, uint16_t{0xffff}}) {
    CAPTURE(next);
    guest.write_table({{kBuffer, 50}, {kBuffer, 50}}, kTable);
    const VringDesc last{kBuffer, 50, kNext, next};
    guest.write(kTable + 16, &last, sizeof last);
    guest.add({{kTable, 32, kIndirect}});
    CHECK(pass.peek(*rx));
    CHECK(pass.batch->count == 0);
    rx->release();
  }
  CHECK(pass.rx_drops(DropReason::kMalformedDescriptor) == 4);
}

TEST_CASE("DeviceRx: the same head twice is two frames") {
  RawGuest guest(both_rings()[0]);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  const uint16_t head = guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60))}});
  guest.offer(head);
  REQUIRE(pass.peek(*rx));
  CHECK(pass.batch->count == 2);
  rx->release();
  CHECK(guest.reap().size() == 2);
}

// A ring that breaks: says why, never touches the ring again, and further calls are harmless.
void check_broken(RawGuest& guest, DeviceRx& rx, Pass& pass, const std::string& why) {
  CHECK_FALSE(pass.peek(rx));
  CHECK(rx.broken().find(why) != std::string::npos);
  add_good_frame(guest);
  const auto before = guest.read(RawGuest::kRing, 0x10000);
  CHECK_FALSE(pass.peek(rx));
  CHECK_FALSE(rx.arm());
  full_fence();
  rx.notify();
  CHECK(guest.read(RawGuest::kRing, 0x10000) == before);
  CHECK(guest.calls() == 0);
}

TEST_CASE("DeviceRx: an available index that jumps breaks a split ring") {
  for (const uint16_t idx : {uint16_t{17}, uint16_t{0x8000}, uint16_t{0xffff}}) {
    CAPTURE(idx);
    RawGuest guest(both_rings()[0]);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    guest.avail()->idx = idx;  // 0xffff: backwards
    check_broken(guest, *rx, pass, "available index");
  }
}

TEST_CASE("DeviceRx: an index within the ring of what is borrowed does not pass, one beyond it breaks") {
  RawGuest guest(both_rings()[0], 4);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  for (int i = 0; i < 4; ++i) guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60))}});
  REQUIRE(pass.peek(*rx));
  guest.avail()->idx = 8;  // four are borrowed: eight cannot be available
  CHECK_FALSE(pass.peek(*rx));
  CHECK_FALSE(rx->broken().empty());
}

TEST_CASE("DeviceRx: a head outside the table breaks a split ring after the good ones") {
  for (const uint16_t head : {uint16_t{16}, uint16_t{0xffff}}) {
    RawGuest guest(both_rings()[0]);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    add_good_frame(guest);
    guest.offer(head);
    if (pass.peek(*rx)) {
      CHECK(pass.batch->count == 1);
      rx->release();
      CHECK(guest.reap().size() == 1);
      rx->notify();
      (void)guest.calls();
    }
    check_broken(guest, *rx, pass, "descriptor " + std::to_string(head));
  }
}

TEST_CASE("DeviceRx: a buffer id outside the ring breaks a packed ring") {
  for (const uint16_t id : {uint16_t{16}, uint16_t{0xffff}}) {
    for (const bool list : {false, true}) {
      RawGuest guest(both_rings()[1]);
      Pass pass;
      auto rx = make_device_rx(guest.config(), pass.counters);
      *guest.slot(1) = {kBuffer, 60, id, packed_avail_flags(true)};
      *guest.slot(0) = {kBuffer, 60, list ? uint16_t{0} : id,
                        static_cast<uint16_t>(packed_avail_flags(true) | (list ? kNext : 0))};
      guest.next_desc = 2;
      check_broken(guest, *rx, pass, "buffer id " + std::to_string(id));
    }
  }
}

TEST_CASE("DeviceRx: a packed list without an end breaks the ring") {
  for (const uint16_t size : {uint16_t{1}, uint16_t{3}, uint16_t{16}, uint16_t{2048}}) {
    CAPTURE(size);
    RawGuest guest(both_rings()[1], size);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    for (uint16_t i = 0; i < size; ++i) {
      *guest.slot(i) = {kBuffer, 60, i, static_cast<uint16_t>(packed_avail_flags(true) | kNext)};
    }
    CHECK_FALSE(pass.peek(*rx));
    CHECK(rx->broken().find("without an end") != std::string::npos);
  }
}

TEST_CASE("DeviceRx: packed slots offered again before they were returned are not taken again") {
  RawGuest guest(both_rings()[1], 4);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  for (uint16_t i = 0; i < 4; ++i) guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60))}});
  REQUIRE(pass.peek(*rx));
  CHECK(pass.batch->count == 4);
  for (uint16_t i = 0; i < 4; ++i) *guest.slot(i) = {kBuffer, 72, i, packed_avail_flags(false)};
  CHECK_FALSE(pass.peek(*rx));  // the worker never does this; a peek that goes round the ring would be the same
  rx->release();
  for (uint16_t i = 0; i < 4; ++i) CHECK(packed_is_used(guest.slot(i)->flags, true));

  // Within one peek: the slots behind the end of the ring look available in the next lap already.
  RawGuest other(both_rings()[1], 4);
  auto second = make_device_rx(other.config(), pass.counters);
  for (uint16_t i = 0; i < 4; ++i) {
    *other.slot(i) = {kBuffer, 72, i, static_cast<uint16_t>(i < 2 ? packed_avail_flags(false) : 0)};
  }
  CHECK_FALSE(pass.peek(*second));
  CHECK(second->broken().empty());
}

TEST_CASE("DeviceRx: a packed ring refuses to start beyond its end") {
  RawGuest guest(both_rings()[1], 16);
  Pass pass;
  auto config = guest.config();
  config.base = 16 | 0x8000;
  auto rx = make_device_rx(config, pass.counters);
  CHECK_FALSE(rx->broken().empty());
  add_good_frame(guest);
  CHECK_FALSE(pass.peek(*rx));
}

TEST_CASE("DeviceRx: a header that asks for the impossible costs its frame") {
  for (const uint64_t features : both_rings(feature_mask(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4))) {
    for (const bool pieces : {false, true}) {
      RawGuest guest(features);
      Pass pass;
      auto rx = make_device_rx(guest.config(), pass.counters);
      VnetHeader header;
      header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
      header.csum_start = 50;
      for (const uint16_t offset : {uint16_t{8}, uint16_t{9}, uint16_t{0xffff}}) {  // 8: the last two bytes
        header.csum_offset = offset;
        const uint32_t bytes = guest.put_frame(kBuffer + offset * 0x100ULL % 0x1000, pattern_frame(60), header);
        const uint64_t at = kBuffer + offset * 0x100ULL % 0x1000;
        if (pieces) {
          guest.add({{at, 7}, {at + 7, bytes - 7}});
        } else {
          guest.add({{at, bytes}});
        }
      }
      REQUIRE(pass.peek(*rx));
      CHECK(pass.batch->count == 1);
      CHECK(pass.batch->frames[0].offload);
      CHECK(pass.rx_drops(DropReason::kBadOffload) == 2);
      CHECK(pass.counters.frames.get() == 3);
      rx->release();
      CHECK(guest.reap().size() == 3);
    }
  }
}

TEST_CASE("DeviceRx: expensive chains end the batch, not the worker") {
  // 64 chains of 1024 empty descriptors each: looked at a few at a time.
  for (const uint64_t features : both_rings(kWithTables)) {
    RawGuest guest(features, 256);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    const std::vector<Desc> chain(1024, Desc{kBuffer, 0});
    for (int i = 0; i < 64; ++i) guest.add_indirect(chain, kTable);
    REQUIRE(pass.peek(*rx));
    CHECK(pass.counters.frames.get() < 16);
    rx->release();
    int peeks = 1;
    while (pass.peek(*rx)) {
      rx->release();
      ++peeks;
    }
    CHECK(peeks > 4);
    CHECK(pass.counters.frames.get() == 64);
    CHECK(pass.rx_drops(DropReason::kMalformedDescriptor) == 64);
  }
}

// --- The guest's receive buffers
// --------------------------------------------------------------------------------------

struct OneFrame {
  std::unique_ptr<Batch> batch = std::make_unique<Batch>();
  std::vector<uint8_t> bytes = pattern_frame(600);
  std::array<uint8_t, 1> index{0};

  OneFrame() {
    Frame& frame = batch->frames[0];
    frame = {};
    frame.len = 600;
    frame.head_len = kHeadBytes;
    std::memcpy(frame.head, bytes.data(), kHeadBytes);
    batch->segments[0] = {bytes.data() + kHeadBytes, 600 - kHeadBytes};
    frame.segments = batch->segments.data();
    frame.segment_count = 1;
    batch->count = 1;
  }
};

TEST_CASE("DeviceTx: bad buffers are returned empty and the frame takes the next good one") {
  const std::vector<BadChain> bad_buffers = {
      {"address 0", {}, [](RawGuest& g) { g.add({{0, 2000, kWrite}}); }},
      {"last byte outside", {}, [](RawGuest& g) { g.add({{RawGuest::kEnd - 1999, 2000, kWrite}}); }},
      {"address wraps", {}, [](RawGuest& g) { g.add({{UINT64_MAX - 5, 2000, kWrite}}); }},
      {"length at its maximum", {}, [](RawGuest& g) { g.add({{kBuffer, UINT32_MAX, kWrite}}); }},
      {"readable", {}, [](RawGuest& g) { g.add({{kBuffer, 2000}}); }},
      {"readable at the end", {}, [](RawGuest& g) { g.add({{kBuffer, 1000, kWrite}, {kBuffer, 1000}}); }},
      {"readable first", {}, [](RawGuest& g) { g.add({{kBuffer, 10}, {kBuffer, 1000, kWrite}}); }},
      {"bad table", {}, [](RawGuest& g) { g.add({{kTable, 17, kIndirect}}); }},
      {"readable in a table", {}, [](RawGuest& g) { g.add_indirect({{kBuffer, 2000}}, kTable); }},
      {"nothing", {}, [](RawGuest& g) { g.add({{kBuffer, 0, kWrite}}); }},
      {"shorter than the header", {}, [](RawGuest& g) { g.add({{kBuffer, 11, kWrite}}); }},
  };
  for (const bool mergeable : {false, true}) {
    for (const uint64_t features : both_rings(kWithTables | feature_mask(VIRTIO_F_VERSION_1) |
                                              (mergeable ? feature_mask(VIRTIO_NET_F_MRG_RXBUF) : 0))) {
      for (const BadChain& bad : bad_buffers) {
        // A short buffer without mergeable buffers is too small, not bad: it stays (device_tx_test).
        if (!mergeable && (bad.what == std::string("nothing") || bad.what == std::string("shorter than the header"))) {
          continue;
        }
        CAPTURE(features);
        CAPTURE(bad.what);
        RawGuest guest(features);
        Pass pass;
        auto tx = make_device_tx(guest.config(), pass.counters);
        bad.add(guest);
        guest.add({{kBuffer + 0x4000, 612, kWrite}});
        OneFrame frame;
        CHECK(tx->send(*frame.batch, frame.index, pass.drops) == 1);
        const auto used = guest.reap();
        REQUIRE(used.size() == 2);
        CHECK(used[0].len == 0);
        CHECK(used[1].len == 612);
        CHECK(guest.read(kBuffer + 0x4000 + 12, 600) == frame.bytes);
        CHECK(tx->malformed() == 1);
        CHECK(tx->broken().empty());
        CHECK(pass.counters.frames.get() == 1);
      }
    }
  }
}

TEST_CASE("DeviceTx: a bad buffer in the middle of a mergeable frame returns what came before it empty") {
  for (const uint64_t features : both_rings(feature_mask(VIRTIO_NET_F_MRG_RXBUF))) {
    RawGuest guest(features);
    Pass pass;
    auto tx = make_device_tx(guest.config(), pass.counters);
    guest.add({{kBuffer, 300, kWrite}});
    guest.add({{0, 300, kWrite}});
    for (uint64_t i = 1; i < 4; ++i) guest.add({{kBuffer + i * 0x1000, 300, kWrite}});
    OneFrame frame;
    CHECK(tx->send(*frame.batch, frame.index, pass.drops) == 1);
    const auto used = guest.reap();
    REQUIRE(used.size() == 5);
    CHECK(used[0].len == 0);
    CHECK(used[1].len == 0);
    CHECK(used[2].len == 300);
    CHECK(used[3].len == 300);
    CHECK(used[4].len == 12);
    CHECK(guest.read(kBuffer + 0x1000 + 12, 288) ==
          std::vector<uint8_t>(frame.bytes.begin(), frame.bytes.begin() + 288));
  }
}

TEST_CASE("DeviceTx: broken rings take no more frames") {
  for (const bool packed : {false, true}) {
    RawGuest guest(both_rings()[packed ? 1 : 0]);
    Pass pass;
    auto tx = make_device_tx(guest.config(), pass.counters);
    if (packed) {
      *guest.slot(0) = {kBuffer, 2000, 16, static_cast<uint16_t>(packed_avail_flags(true) | kWrite)};
    } else {
      guest.avail()->idx = 100;
    }
    OneFrame frame;
    CHECK(tx->send(*frame.batch, frame.index, pass.drops) == 0);
    CHECK_FALSE(tx->broken().empty());
    CHECK(tx->send(*frame.batch, frame.index, pass.drops) == 0);
    CHECK(guest.reap().empty());
  }
}

TEST_CASE("DeviceTx: a split chain that loops is a bad buffer") {
  RawGuest guest(both_rings()[0]);
  Pass pass;
  auto tx = make_device_tx(guest.config(), pass.counters);
  *guest.desc(0) = {kBuffer, 1, kNext | kWrite, 0};
  guest.offer(0);
  OneFrame frame;
  CHECK(tx->send(*frame.batch, frame.index, pass.drops) == 0);
  CHECK(guest.reap().size() == 1);
  CHECK(tx->malformed() == 1);
}

TEST_CASE("DeviceTx: a guest of a thousand tiny buffers gets nothing, soon") {
  for (const uint64_t features : both_rings(kWithTables | feature_mask(VIRTIO_NET_F_MRG_RXBUF))) {
    RawGuest guest(features, 1024);
    Pass pass;
    auto tx = make_device_tx(guest.config(), pass.counters);
    std::vector<Desc> chain(1024, Desc{kBuffer, 0, kWrite});
    chain.back().len = 12;
    for (int i = 0; i < 1024; ++i) guest.add_indirect(chain, kTable);
    OneFrame frame;
    CHECK(tx->send(*frame.batch, frame.index, pass.drops) == 0);
    CHECK(guest.reap().empty());
    CHECK(tx->broken().empty());
  }
}

}  // namespace
}  // namespace sw
