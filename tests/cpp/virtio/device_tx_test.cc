// SPDX-License-Identifier: Apache-2.0
// Frames for an honest guest: where their bytes go, and when the guest is told.
#include <doctest/doctest.h>

#include <vector>

#include "support/raw_guest.h"
#include "virtio/dirty_log.h"

namespace sw {
namespace {

using testing::both_rings;
using testing::Desc;
using testing::Pass;
using testing::pattern_frame;
using testing::RawGuest;
using testing::UsedBuffer;

constexpr uint64_t kBuffer = RawGuest::kBuffers;
constexpr uint64_t kTable = RawGuest::kBuffers + 0x80000;
constexpr uint16_t kWrite = VRING_DESC_F_WRITE;
constexpr uint64_t kMergeable = feature_mask(VIRTIO_NET_F_MRG_RXBUF);

// A batch whose frames are made of vectors: head of `head` bytes, body in two segments.
struct Frames {
  std::unique_ptr<Batch> batch = std::make_unique<Batch>();
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<uint8_t> index;

  explicit Frames(std::vector<std::vector<uint8_t>> frames) : bytes(std::move(frames)) {
    batch->clear();
    for (const auto& from : bytes) {
      Frame& frame = batch->frames[batch->count];
      frame = {};
      frame.len = static_cast<uint32_t>(from.size());
      frame.head_len = static_cast<uint16_t>(std::min<size_t>(from.size(), kHeadBytes));
      std::memcpy(frame.head, from.data(), frame.head_len);
      frame.segments = &batch->segments[batch->segments_used];
      const uint32_t body = frame.len - frame.head_len;
      if (body > 0) batch->segments[batch->segments_used++] = {from.data() + frame.head_len, (body + 1) / 2};
      if (body > 1) {
        batch->segments[batch->segments_used++] = {from.data() + frame.head_len + (body + 1) / 2, body / 2};
      }
      frame.segment_count = static_cast<uint16_t>(&batch->segments[batch->segments_used] - frame.segments);
      index.push_back(static_cast<uint8_t>(batch->count++));
    }
  }
  uint32_t send(TxQueue& tx, Pass& pass) const { return tx.send(*batch, index, pass.drops); }
};

std::vector<uint8_t> header_and(uint32_t header_bytes, uint16_t buffers, const std::vector<uint8_t>& frame) {
  std::vector<uint8_t> all(header_bytes);
  if (header_bytes == 12) std::memcpy(&all[10], &buffers, 2);
  all.insert(all.end(), frame.begin(), frame.end());
  return all;
}

TEST_CASE("DeviceTx: writes header and frame into one buffer, and not a byte more") {
  for (const uint64_t with : {uint64_t{0}, kMergeable}) {
    for (const uint64_t features : both_rings(with)) {
      for (const uint32_t bytes : {14U, 15U, 16U, 31U, 32U, 60U, 64U, 65U, 128U, 129U, 1514U, 9000U}) {
        CAPTURE(features);
        CAPTURE(bytes);
        RawGuest guest(features);
        Pass pass;
        auto tx = make_device_tx(guest.config(), pass.counters);
        const Frames frames({pattern_frame(bytes)});
        CHECK(frames.send(*tx, pass) == 0);  // no buffer yet
        const uint16_t id = guest.add({{kBuffer, 10000, kWrite}});
        CHECK(frames.send(*tx, pass) == 1);
        CHECK(guest.reap() == std::vector<UsedBuffer>{{id, 12 + bytes}});
        CHECK(guest.read(kBuffer, 12 + bytes) == header_and(12, 1, frames.bytes[0]));
        for (uint32_t i = 12 + bytes; i < 10000; ++i) REQUIRE(*guest.at(kBuffer + i) == RawGuest::kCanary);
        CHECK(pass.counters.frames.get() == 1);
        CHECK(pass.counters.bytes.get() == bytes);
      }
    }
  }
}

TEST_CASE("DeviceTx: fills ring after ring in order and stops where buffers end") {
  for (const uint64_t features : both_rings()) {
    for (const uint16_t size : {uint16_t{1}, uint16_t{4}, uint16_t{5}, uint16_t{128}}) {
      if (size == 5 && !has_feature(features, VIRTIO_F_RING_PACKED)) continue;
      CAPTURE(features);
      CAPTURE(size);
      RawGuest guest(features, size);
      Pass pass;
      auto tx = make_device_tx(guest.config(), pass.counters);
      std::vector<std::vector<uint8_t>> many;
      for (uint8_t i = 0; i < 64; ++i) many.push_back(pattern_frame(60, i));
      const Frames frames(std::move(many));
      for (int lap = 0; lap < 5; ++lap) {
        std::vector<uint16_t> ids;
        for (uint32_t i = 0; i < size; ++i) ids.push_back(guest.add({{kBuffer + i * 0x100, 0x100, kWrite}}));
        const uint32_t room = std::min<uint32_t>(size, 64);
        CHECK(frames.send(*tx, pass) == room);
        const auto used = guest.reap();
        REQUIRE(used.size() == room);
        for (uint32_t i = 0; i < room; ++i) {
          CHECK(used[i] == UsedBuffer{ids[i], 72});
          CHECK(guest.read(kBuffer + i * 0x100 + 12, 60) == frames.bytes[i]);
        }
        if (size > 64) {
          CHECK(frames.send(*tx, pass) == size - 64);
          CHECK(guest.reap().size() == size - 64U);
        }
      }
      CHECK(pass.all_rx_drops() == 0);
    }
  }
}

TEST_CASE("DeviceTx: spreads a frame over mergeable buffers and returns them together") {
  for (const uint64_t features : both_rings(kMergeable)) {
    for (const uint32_t buffer : {12U, 13U, 26U, 100U, 512U, 1526U}) {
      for (const uint32_t bytes : {60U, 150U, 1514U}) {
        CAPTURE(features);
        CAPTURE(buffer);
        CAPTURE(bytes);
        RawGuest guest(features, 256);
        Pass pass;
        auto tx = make_device_tx(guest.config(), pass.counters);
        const Frames frames({pattern_frame(bytes)});
        const uint32_t need = (12 + bytes + buffer - 1) / buffer;
        for (uint32_t i = 0; i + 1 < need; ++i) guest.add({{kBuffer + i * 0x800, buffer, kWrite}});
        CHECK(frames.send(*tx, pass) == 0);  // one buffer short: nothing is taken
        CHECK(guest.reap().empty());
        guest.add({{kBuffer + (need - 1) * 0x800, buffer, kWrite}});
        CHECK(frames.send(*tx, pass) == 1);
        const auto used = guest.reap();
        REQUIRE(used.size() == need);
        std::vector<uint8_t> got;
        for (uint32_t i = 0; i < need; ++i) {
          if (i + 1 < need) CHECK(used[i].len == buffer);  // 5.1.6.4.1: all but the last filled to the end
          const auto part = guest.read(kBuffer + i * 0x800, used[i].len);
          got.insert(got.end(), part.begin(), part.end());
          REQUIRE(*guest.at(kBuffer + i * 0x800 + used[i].len) == RawGuest::kCanary);
        }
        CHECK(got == header_and(12, static_cast<uint16_t>(need), frames.bytes[0]));
      }
    }
  }
}

TEST_CASE("DeviceTx: writes through chains, tables and across regions") {
  for (const uint64_t with : {uint64_t{0}, kMergeable}) {
    for (const uint64_t features : both_rings(with | feature_mask(VIRTIO_F_INDIRECT_DESC))) {
      CAPTURE(features);
      RawGuest guest(features);
      Pass pass;
      auto tx = make_device_tx(guest.config(), pass.counters);
      const Frames frames({pattern_frame(200)});
      const auto expected = header_and(12, 1, frames.bytes[0]);
      for (uint32_t cut = 1; cut < 212; cut += 3) {
        CAPTURE(cut);
        const std::vector<Desc> chain = {{kBuffer, cut, kWrite}, {kBuffer + 0x1000, 300, kWrite}};
        cut % 2 == 0 ? guest.add(chain) : guest.add_indirect(chain, kTable);
        CHECK(frames.send(*tx, pass) == 1);
        const auto used = guest.reap();
        REQUIRE(used.size() == 1);
        CHECK(used[0].len == 212);
        auto got = guest.read(kBuffer, cut);
        const auto rest = guest.read(kBuffer + 0x1000, 212 - cut);
        got.insert(got.end(), rest.begin(), rest.end());
        CHECK(got == expected);

        guest.add({{RawGuest::kSecond - cut, 512, kWrite}});
        CHECK(frames.send(*tx, pass) == 1);
        CHECK(guest.reap().size() == 1);
        CHECK(guest.read(RawGuest::kSecond - cut, 212) == expected);
      }
    }
  }
}

TEST_CASE("DeviceTx: buffers may lie in one region and another by turns") {
  for (const uint64_t features : both_rings()) {
    CAPTURE(features);
    RawGuest guest(features);
    Pass pass;
    auto tx = make_device_tx(guest.config(), pass.counters);
    std::vector<std::vector<uint8_t>> bytes;
    std::vector<uint64_t> at;
    for (uint32_t i = 0; i < 12; ++i) {
      bytes.push_back(pattern_frame(60 + 13 * i));
      at.push_back((i % 3 == 0 ? RawGuest::kSecond : kBuffer) + 0x400 * i);
      guest.add({{at.back(), 0x400, kWrite}});
    }
    const Frames frames(bytes);
    CHECK(frames.send(*tx, pass) == bytes.size());
    CHECK(guest.reap().size() == bytes.size());
    for (uint32_t i = 0; i < bytes.size(); ++i) {
      const auto expected = header_and(12, 1, bytes[i]);
      CHECK(guest.read(at[i], expected.size()) == expected);
    }
  }
}

TEST_CASE("DeviceTx: without mergeable buffers a frame that does not fit is dropped and the buffer stays") {
  for (const uint64_t features : both_rings()) {
    RawGuest guest(features);
    Pass pass;
    auto tx = make_device_tx(guest.config(), pass.counters);
    guest.add({{kBuffer, 100, kWrite}});
    const Frames frames({pattern_frame(89), pattern_frame(88), pattern_frame(14)});
    CHECK(frames.send(*tx, pass) == 2);  // dropped, sent; then no buffer is left
    CHECK(pass.tx_drops(DropReason::kBufferTooSmall) == 1);
    CHECK(pass.counters.frames.get() == 1);
    CHECK(guest.reap().size() == 1);
    CHECK(guest.read(kBuffer, 100) == header_and(12, 1, frames.bytes[1]));
  }
}

TEST_CASE("DeviceTx: speaks the legacy 10-byte header") {
  RawGuest guest(0);
  Pass pass;
  auto tx = make_device_tx(guest.config(), pass.counters);
  guest.add({{kBuffer, 10, kWrite}, {kBuffer + 0x100, 1514, kWrite}});
  guest.add({{kBuffer + 0x1000, 1524, kWrite}});
  const Frames frames({pattern_frame(60), pattern_frame(61)});
  CHECK(frames.send(*tx, pass) == 2);
  CHECK(guest.reap() == std::vector<UsedBuffer>{{0, 70}, {2, 71}});
  CHECK(guest.read(kBuffer, 10) == std::vector<uint8_t>(10));
  CHECK(guest.read(kBuffer + 0x100, 60) == frames.bytes[0]);
  CHECK(guest.read(kBuffer + 0x1000, 71) == header_and(10, 0, frames.bytes[1]));
}

TEST_CASE("DeviceTx: passes the offload header on when negotiated, and zeros otherwise") {
  for (const uint64_t with : {uint64_t{0}, feature_mask(VIRTIO_NET_F_GUEST_CSUM)}) {
    for (const uint64_t features : both_rings(with)) {
      for (const uint32_t buffer : {200U, 40U}) {  // the short and the long way
        RawGuest guest(features | kMergeable);
        Pass pass;
        auto tx = make_device_tx(guest.config(), pass.counters);
        CHECK(tx->caps().checksum == (with != 0));
        for (uint64_t i = 0; i < 16; ++i) guest.add({{kBuffer + i * 0x100, buffer, kWrite}});
        Frames frames({pattern_frame(60), pattern_frame(60)});
        Frame& frame = frames.batch->frames[0];
        frame.vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        frame.vnet.csum_start = 34;
        frame.vnet.csum_offset = 16;
        frame.offload = with != 0;
        CHECK(frames.send(*tx, pass) == 2);
        const auto first = guest.read(kBuffer, 10);
        const std::vector<uint8_t> expected = {1, 0, 0, 0, 0, 0, 34, 0, 16, 0};
        CHECK(first == (with != 0 ? expected : std::vector<uint8_t>(10)));
        const uint64_t second = buffer == 200 ? kBuffer + 0x100 : kBuffer + 0x200;
        CHECK(guest.read(second, 10) == std::vector<uint8_t>(10));
      }
    }
  }
}

TEST_CASE("DeviceTx: capabilities follow what the guest negotiated") {
  struct Row {
    uint64_t features;
    OffloadCaps caps;
  };
  const auto csum = feature_mask(VIRTIO_NET_F_GUEST_CSUM);
  const std::vector<Row> rows = {
      {0, {}},
      {csum, {true, false, false, false, false}},
      {csum | feature_mask(VIRTIO_NET_F_GUEST_TSO4), {true, true, false, false, false}},
      {csum | feature_mask(VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_ECN), {true, false, true, true, false}},
      {csum | feature_mask(VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6), {true, false, false, false, true}},
      {csum | feature_mask(VIRTIO_NET_F_GUEST_USO4), {true, false, false, false, false}},
      {feature_mask(VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_ECN), {}},  // without GUEST_CSUM: not valid
  };
  for (const Row& row : rows) {
    CAPTURE(row.features);
    RawGuest guest(row.features);
    Pass pass;
    const auto tx = make_device_tx(guest.config(), pass.counters);
    CHECK(tx->caps().checksum == row.caps.checksum);
    CHECK(tx->caps().tso4 == row.caps.tso4);
    CHECK(tx->caps().tso6 == row.caps.tso6);
    CHECK(tx->caps().ecn == row.caps.ecn);
    CHECK(tx->caps().uso == row.caps.uso);
  }
}

TEST_CASE("DeviceTx: dirty logging marks every page written, header included") {
  for (const uint64_t features : both_rings(kMergeable)) {
    CAPTURE(features);
    RawGuest guest(features);
    Pass pass;
    const UniqueFd fd(::memfd_create("log", MFD_CLOEXEC));
    REQUIRE(::ftruncate(fd.get(), 4096) == 0);
    auto log = DirtyLog::map(fd.get(), 0, 4096);
    REQUIRE(log);
    auto config = guest.config();
    config.log = *log;
    config.log_used = true;
    config.log_used_guest = RawGuest::kDevice;
    auto tx = make_device_tx(config, pass.counters);
    guest.add({{kBuffer + 0xff4, 1000, kWrite}});  // header on one page, frame on the next
    guest.add({{kBuffer + 0x3ff8, 400, kWrite}, {kBuffer + 0x6000, 4, kWrite}});
    guest.add({{kBuffer + 0x8000, 1000, kWrite}});  // second buffer of the second frame
    guest.add({{kBuffer + 0xa000, 1000, kWrite}});  // never used
    const Frames frames({pattern_frame(60), pattern_frame(500)});
    CHECK(frames.send(*tx, pass) == 2);
    std::vector<uint8_t> bits(4096);
    REQUIRE(::pread(fd.get(), bits.data(), bits.size(), 0) == 4096);
    const auto dirty = [&](uint64_t address) { return (bits[address / 4096 / 8] >> address / 4096 % 8 & 1) != 0; };
    for (const uint64_t page : {0x0ULL, 0x1000ULL, 0x3000ULL, 0x4000ULL, 0x6000ULL, 0x8000ULL}) {
      CAPTURE(page);
      CHECK(dirty(kBuffer + page));
    }
    for (const uint64_t page : {0x2000ULL, 0x5000ULL, 0x7000ULL, 0x9000ULL, 0xa000ULL}) {
      CAPTURE(page);
      CHECK_FALSE(dirty(kBuffer + page));
    }
    CHECK(dirty(RawGuest::kDevice));
    CHECK(dirty(RawGuest::kRing) == guest.packed());
  }
}

TEST_CASE("DeviceTx: a disabled ring takes nothing") {
  for (const uint64_t features : both_rings()) {
    RawGuest guest(features);
    Pass pass;
    auto config = guest.config();
    config.enabled = false;
    auto tx = make_device_tx(config, pass.counters);
    guest.add({{kBuffer, 1000, kWrite}});
    CHECK(Frames({pattern_frame(60)}).send(*tx, pass) == 0);
    CHECK(guest.reap().empty());
  }
}

TEST_CASE("DeviceTx: signals as the guest asked, at most once, and only after something was published") {
  // `wish` is what the guest writes before frames [1, 1 + count) are sent; the first notification is always made.
  struct Row {
    const char* what;
    uint64_t with;
    bool packed;
    uint16_t flags;  // avail flags, or driver event flags
    uint16_t event;  // used_event, or off_wrap
    uint32_t count;
    bool called;
  };
  const uint64_t idx = feature_mask(VIRTIO_F_EVENT_IDX);
  const uint16_t wrap = 0x8000;
  const std::vector<Row> rows = {
      {"split, wanted", 0, false, 0, 0, 1, true},
      {"split, refused", 0, false, VRING_AVAIL_F_NO_INTERRUPT, 0, 1, false},
      {"split, other flag bits are not looked at", 0, false, 0xfffe, 0, 1, true},
      {"split event, next one", idx, false, 0, 1, 1, true},
      {"split event, flags are not looked at", idx, false, VRING_AVAIL_F_NO_INTERRUPT, 1, 1, true},
      {"split event, later", idx, false, 0, 2, 1, false},
      {"split event, within the burst", idx, false, 0, 2, 3, true},
      {"split event, passed before", idx, false, 0, 0, 3, false},
      {"packed, wanted", 0, true, VRING_PACKED_EVENT_FLAG_ENABLE, 0, 1, true},
      {"packed, refused", 0, true, VRING_PACKED_EVENT_FLAG_DISABLE, 0, 1, false},
      {"packed, reserved value", 0, true, 3, 0, 1, true},
      {"packed event, next one", idx, true, VRING_PACKED_EVENT_FLAG_DESC, 1 | wrap, 1, true},
      {"packed event, later", idx, true, VRING_PACKED_EVENT_FLAG_DESC, 2 | wrap, 1, false},
      {"packed event, within the burst", idx, true, VRING_PACKED_EVENT_FLAG_DESC, 2 | wrap, 3, true},
      {"packed event, next lap", idx, true, VRING_PACKED_EVENT_FLAG_DESC, 1, 1, false},
      {"packed event, passed before", idx, true, VRING_PACKED_EVENT_FLAG_DESC, 0 | wrap, 3, false},
      {"packed event, refused", idx, true, VRING_PACKED_EVENT_FLAG_DISABLE, 1 | wrap, 1, false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    RawGuest guest(both_rings(row.with)[row.packed ? 1 : 0]);
    Pass pass;
    auto tx = make_device_tx(guest.config(), pass.counters);
    for (uint64_t i = 0; i < 8; ++i) guest.add({{kBuffer + i * 0x100, 0x100, kWrite}});
    full_fence();
    tx->notify();
    CHECK(guest.calls() == 0);  // nothing published yet
    CHECK(Frames({pattern_frame(60)}).send(*tx, pass) == 1);
    full_fence();
    tx->notify();
    CHECK(guest.calls() == 1);

    if (row.packed) {
      *guest.driver_event() = {row.event, row.flags};
    } else {
      guest.avail()->flags = row.flags;
      vring_used_event(guest.avail(), guest.size()) = row.event;
    }
    CHECK(Frames(std::vector<std::vector<uint8_t>>(row.count, pattern_frame(60))).send(*tx, pass) == row.count);
    full_fence();
    tx->notify();
    CHECK(guest.calls() == (row.called ? 1 : 0));
    tx->notify();
    CHECK(guest.calls() == 0);
    CHECK(pass.counters.notifications.get() == (row.called ? 2 : 1));
  }
}

TEST_CASE("DeviceTx: packed events are found across the end of the ring") {
  const uint64_t features = both_rings(feature_mask(VIRTIO_F_EVENT_IDX))[1];
  for (uint16_t start = 0; start < 8; ++start) {
    for (uint16_t target = 0; target < 8; ++target) {  // the event lies `target` buffers ahead, three are sent
      CAPTURE(start);
      CAPTURE(target);
      RawGuest guest(features, 8);
      Pass pass;
      auto tx = make_device_tx(guest.config(), pass.counters);
      for (uint16_t i = 0; i <= start; ++i) {
        guest.add({{kBuffer, 0x100, kWrite}});
        CHECK(Frames({pattern_frame(60)}).send(*tx, pass) == 1);
        guest.reap();
      }
      tx->notify();
      CHECK(guest.calls() == 1);
      const auto at = static_cast<uint16_t>(start + 1 + target);
      const auto off_wrap = static_cast<uint16_t>(at % 8 | (at / 8 % 2 == 0 ? 0x8000 : 0));
      *guest.driver_event() = {off_wrap, VRING_PACKED_EVENT_FLAG_DESC};
      for (int i = 0; i < 3; ++i) guest.add({{kBuffer, 0x100, kWrite}});
      CHECK(Frames(std::vector<std::vector<uint8_t>>(3, pattern_frame(60))).send(*tx, pass) == 3);
      tx->notify();
      CHECK(guest.calls() == (target < 3 ? 1 : 0));
    }
  }
}

TEST_CASE("DeviceTx: signal_now and a new call descriptor") {
  RawGuest guest(both_rings()[0]);
  Pass pass;
  auto tx = make_device_tx(guest.config(), pass.counters);
  tx->signal_now();
  CHECK(guest.calls() == 1);
  const UniqueFd other(::eventfd(0, EFD_CLOEXEC));  // blocking, as a peer may send it
  tx->set_call_fd(other.get());
  for (int i = 0; i < 3; ++i) tx->signal_now();
  CHECK(guest.calls() == 0);
  uint64_t count = 0;
  CHECK(::read(other.get(), &count, sizeof count) == sizeof count);
  CHECK(count == 3);
  count = UINT64_MAX - 1;
  REQUIRE(::write(other.get(), &count, sizeof count) == sizeof count);
  tx->signal_now();  // a full counter does not block
  tx->set_call_fd(-1);
  tx->signal_now();
  CHECK(guest.calls() == 0);
}

}  // namespace
}  // namespace sw
