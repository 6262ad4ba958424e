// SPDX-License-Identifier: Apache-2.0
// What an honest guest sends arrives, whatever the shape of its chains.
#include <doctest/doctest.h>
#include <sys/eventfd.h>

#include <vector>

#include "support/raw_guest.h"
#include "virtio/dirty_log.h"

namespace sw {
namespace {

using testing::both_rings;
using testing::bytes_of;
using testing::Desc;
using testing::Pass;
using testing::pattern_frame;
using testing::RawGuest;
using testing::UsedBuffer;

constexpr uint64_t kBuffer = RawGuest::kBuffers;
constexpr uint64_t kTable = RawGuest::kBuffers + 0x80000;

TEST_CASE("DeviceRx: borrows frames of one descriptor and returns them") {
  for (const uint64_t features : both_rings()) {
    for (const uint32_t bytes : {14U, 60U, 64U, 65U, 127U, 128U, 129U, 1514U, 65535U}) {
      CAPTURE(features);
      CAPTURE(bytes);
      RawGuest guest(features);
      Pass pass;
      auto rx = make_device_rx(guest.config(), pass.counters);
      CHECK_FALSE(pass.peek(*rx));
      const auto frame = pattern_frame(bytes);
      const uint16_t id = guest.add({{kBuffer, guest.put_frame(kBuffer, frame)}});
      REQUIRE(pass.peek(*rx));
      REQUIRE(pass.batch->count == 1);
      const Frame& got = pass.batch->frames[0];
      CHECK(bytes_of(got) == frame);
      CHECK(got.head_len == std::min(bytes, kHeadBytes));
      CHECK(got.head_offset == 0);
      CHECK(got.vlan == 0);
      CHECK_FALSE(got.tagged);
      CHECK_FALSE(got.offload);
      CHECK_FALSE(pass.batch->may_have_offloads);
      CHECK(guest.reap().empty());  // borrowed until release
      rx->release();
      CHECK(guest.reap() == std::vector<UsedBuffer>{{id, 0}});
      CHECK_FALSE(pass.peek(*rx));
      CHECK(pass.counters.frames.get() == 1);
      CHECK(pass.counters.bytes.get() == bytes);
      CHECK(pass.all_rx_drops() == 0);
    }
  }
}

TEST_CASE("DeviceRx: goes round rings of every size, in batches of at most 64") {
  for (const uint64_t with : {uint64_t{0}, feature_mask(VIRTIO_F_IN_ORDER)}) {
    for (const uint64_t features : both_rings(with)) {
      for (const uint16_t size : {uint16_t{1}, uint16_t{2}, uint16_t{3}, uint16_t{8}, uint16_t{256}}) {
        if (size == 3 && !has_feature(features, VIRTIO_F_RING_PACKED)) continue;
        CAPTURE(features);
        CAPTURE(size);
        RawGuest guest(features, size);
        Pass pass;
        auto rx = make_device_rx(guest.config(), pass.counters);
        uint8_t sent = 0;
        uint8_t received = 0;
        for (uint32_t lap = 0; lap < 7; ++lap) {
          const uint32_t burst = lap % 2 == 0 ? size : (size + 1U) / 2;
          std::vector<uint16_t> ids;
          for (uint32_t i = 0; i < burst; ++i) {
            const uint64_t at = kBuffer + i * 0x100;
            ids.push_back(guest.add({{at, guest.put_frame(at, pattern_frame(60, sent++))}}));
          }
          std::vector<UsedBuffer> returned;
          while (pass.peek(*rx)) {
            CHECK(pass.batch->count <= kMaxBatch);
            for (uint32_t i = 0; i < pass.batch->count; ++i) {
              CHECK(bytes_of(pass.batch->frames[i]) == pattern_frame(60, received++));
            }
            rx->release();
            for (const UsedBuffer& used : guest.reap()) returned.push_back(used);
          }
          REQUIRE_FALSE(returned.empty());
          CHECK(returned.back().id == ids.back());
          const bool batched = has_feature(features, VIRTIO_F_IN_ORDER) && guest.packed();
          const uint32_t entries = batched ? (burst + kMaxBatch - 1) / kMaxBatch : burst;
          CHECK(returned.size() == entries);
        }
        CHECK(sent == received);
        CHECK(rx->broken().empty());
      }
    }
  }
}

TEST_CASE("DeviceRx: header and payload may be cut at any byte") {
  const auto frame = pattern_frame(300);
  for (const uint64_t features : both_rings(feature_mask(VIRTIO_F_INDIRECT_DESC, VIRTIO_NET_F_CSUM))) {
    for (const bool indirect : {false, true}) {
      RawGuest guest(features);
      Pass pass;
      auto rx = make_device_rx(guest.config(), pass.counters);
      VnetHeader header;
      header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
      header.csum_start = 34;
      header.csum_offset = 6;
      for (uint32_t cut = 1; cut < 312; ++cut) {
        CAPTURE(features);
        CAPTURE(indirect);
        CAPTURE(cut);
        const uint32_t bytes = guest.put_frame(kBuffer, frame, header);
        guest.write(kBuffer + 0x1000, guest.at(kBuffer + cut), bytes - cut);
        const std::vector<Desc> chain = {{kBuffer, cut}, {kBuffer + 0x1000, bytes - cut}};
        indirect ? guest.add_indirect(chain, kTable) : guest.add(chain);
        REQUIRE(pass.peek(*rx));
        REQUIRE(pass.batch->count == 1);
        CHECK(bytes_of(pass.batch->frames[0]) == frame);
        CHECK(pass.batch->frames[0].vnet.csum_start == 34);
        CHECK(pass.batch->may_have_offloads);
        rx->release();
        CHECK(guest.reap().size() == 1);
      }
    }
  }
}

TEST_CASE("DeviceRx: accepts chains of single bytes and empty descriptors between them") {
  for (const uint64_t features : both_rings()) {
    CAPTURE(features);
    RawGuest guest(features, 256);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    const auto frame = pattern_frame(70);
    const uint32_t bytes = guest.put_frame(kBuffer, frame);
    std::vector<Desc> chain;
    for (uint32_t i = 0; i < bytes; ++i) {
      chain.push_back({kBuffer + i, 1});
      chain.push_back({kBuffer, 0});
    }
    guest.add(chain);
    REQUIRE(pass.peek(*rx));
    REQUIRE(pass.batch->count == 1);
    CHECK(bytes_of(pass.batch->frames[0]) == frame);
    CHECK(pass.batch->frames[0].segment_count <= 1);
    rx->release();
    CHECK(guest.reap().size() == 1);
  }
}

TEST_CASE("DeviceRx: buffers and indirect tables may span regions") {
  for (const uint64_t features : both_rings(feature_mask(VIRTIO_F_INDIRECT_DESC))) {
    RawGuest guest(features);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    const auto frame = pattern_frame(200);
    for (uint32_t before = 1; before < 212; before += 7) {
      CAPTURE(before);
      const uint64_t at = RawGuest::kSecond - before;
      const uint32_t bytes = guest.put_frame(at, frame);
      guest.add({{at, bytes}});
      REQUIRE(pass.peek(*rx));
      REQUIRE(pass.batch->count == 1);
      CHECK(bytes_of(pass.batch->frames[0]) == frame);
      rx->release();
    }
    const uint32_t bytes = guest.put_frame(kBuffer, frame);
    for (uint32_t before = 1; before < 32; ++before) {
      CAPTURE(before);
      guest.add_indirect({{kBuffer, 20}, {kBuffer + 20, bytes - 20}}, RawGuest::kSecond - before);
      REQUIRE(pass.peek(*rx));
      REQUIRE(pass.batch->count == 1);
      CHECK(bytes_of(pass.batch->frames[0]) == frame);
      rx->release();
    }
  }
}

TEST_CASE("DeviceRx: whole buffers may lie in one region and another by turns, in one batch") {
  for (const uint64_t features : both_rings()) {
    CAPTURE(features);
    RawGuest guest(features);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    std::vector<std::vector<uint8_t>> frames;
    for (uint32_t i = 0; i < 12; ++i) {
      frames.push_back(pattern_frame(60 + 13 * i));
      const uint64_t at = (i % 3 == 0 ? RawGuest::kSecond : kBuffer) + 0x400 * i;
      guest.add({{at, guest.put_frame(at, frames.back())}});
    }
    REQUIRE(pass.peek(*rx));
    REQUIRE(pass.batch->count == frames.size());
    for (uint32_t i = 0; i < frames.size(); ++i) {
      CHECK(bytes_of(pass.batch->frames[i]) == frames[i]);
      CHECK(pass.batch->frames[i].segments == &pass.batch->frames[i].body);  // none went the long way
    }
    rx->release();
    CHECK(guest.reap().size() == frames.size());
    CHECK(pass.all_rx_drops() == 0);
  }
}

TEST_CASE("DeviceRx: a batch ends where its segment pool does, and the next one goes on") {
  for (const uint64_t features : both_rings(feature_mask(VIRTIO_F_INDIRECT_DESC))) {
    CAPTURE(features);
    RawGuest guest(features);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    const auto frame = pattern_frame(700);
    const uint32_t bytes = guest.put_frame(kBuffer, frame);
    std::vector<Desc> chain;
    for (uint32_t i = 0; i < bytes; ++i) chain.push_back({kBuffer + i, 1});
    for (int i = 0; i < 3; ++i) guest.add_indirect(chain, kTable);
    for (int i = 0; i < 3; ++i) {
      REQUIRE(pass.peek(*rx));
      REQUIRE(pass.batch->count == 1);
      CHECK(bytes_of(pass.batch->frames[0]) == frame);
      rx->release();
    }
    CHECK_FALSE(pass.peek(*rx));
    CHECK(guest.reap().size() == 3);
  }
}

TEST_CASE("DeviceRx: speaks the legacy 10-byte header") {
  RawGuest guest(feature_mask(VIRTIO_NET_F_CSUM));
  CHECK(guest.header_bytes() == 10);
  Pass pass;
  auto rx = make_device_rx(guest.config(), pass.counters);
  const auto frame = pattern_frame(60);
  VnetHeader header;
  header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  header.csum_start = 20;
  header.csum_offset = 8;
  const uint32_t bytes = guest.put_frame(kBuffer, frame, header);
  guest.add({{kBuffer, 10}, {kBuffer + 10, bytes - 10}});  // 2.7.4.1: legacy drivers put the header into the first one
  REQUIRE(pass.peek(*rx));
  CHECK(bytes_of(pass.batch->frames[0]) == frame);
  CHECK(pass.batch->frames[0].vnet.csum_offset == 8);
  rx->release();
}

TEST_CASE("DeviceRx: does not look at the header when no offload was negotiated") {
  for (const uint64_t features : both_rings()) {
    RawGuest guest(features);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    VnetHeader header;
    header.flags = 0xff;
    header.gso_type = 0x7f;
    header.csum_start = 0xffff;
    const auto frame = pattern_frame(64);
    guest.add({{kBuffer, guest.put_frame(kBuffer, frame, header)}});
    guest.put_frame(kBuffer + 0x1000, frame, header);
    guest.add({{kBuffer + 0x1000, 5}, {kBuffer + 0x1005, 71}});
    REQUIRE(pass.peek(*rx));
    REQUIRE(pass.batch->count == 2);
    for (int i = 0; i < 2; ++i) {
      CHECK_FALSE(pass.batch->frames[i].offload);
      CHECK(pass.batch->frames[i].vnet.flags == 0);
      CHECK(pass.batch->frames[i].vnet.csum_start == 0);
    }
    rx->release();
  }
}

TEST_CASE("DeviceRx: a disabled ring takes and discards") {
  for (const uint64_t features : both_rings()) {
    RawGuest guest(features);
    Pass pass;
    auto config = guest.config();
    config.enabled = false;
    auto rx = make_device_rx(config, pass.counters);
    for (int i = 0; i < 3; ++i) guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60))}});
    CHECK(pass.peek(*rx));
    CHECK(pass.batch->count == 0);
    CHECK(pass.rx_drops(DropReason::kQueueDisabled) == 3);
    CHECK(pass.counters.frames.get() == 3);
    rx->release();
    CHECK(guest.reap().size() == 3);
  }
}

TEST_CASE("DeviceRx: injected frames come first, once, and count as received") {
  for (const uint64_t features : both_rings()) {
    RawGuest guest(features);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    const auto rarp = pattern_frame(60, 9);
    const auto frame = pattern_frame(64);
    guest.add({{kBuffer, guest.put_frame(kBuffer, frame)}});
    rx->inject(rarp);
    rx->inject(pattern_frame(129));  // too long
    rx->inject(pattern_frame(13));   // no Ethernet header
    CHECK(rx->arm());
    REQUIRE(pass.peek(*rx));
    REQUIRE(pass.batch->count == 1);
    CHECK(bytes_of(pass.batch->frames[0]) == rarp);
    rx->release();
    CHECK(guest.reap().empty());
    REQUIRE(pass.peek(*rx));
    REQUIRE(pass.batch->count == 1);
    CHECK(bytes_of(pass.batch->frames[0]) == frame);
    rx->release();
    CHECK(guest.reap().size() == 1);
    CHECK(pass.counters.frames.get() == 2);
    CHECK(pass.counters.bytes.get() == 124);
  }
}

TEST_CASE("DeviceRx: tells its position, and a new ring goes on from there") {
  for (const uint64_t features : both_rings()) {
    CAPTURE(features);
    RawGuest guest(features, 4);
    Pass pass;
    auto config = guest.config();
    uint8_t seed = 0;
    for (int life = 0; life < 6; ++life) {
      auto rx = make_device_rx(config, pass.counters);
      for (int i = 0; i < 3; ++i) {
        guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60, seed))}});
        REQUIRE(pass.peek(*rx));
        CHECK(bytes_of(pass.batch->frames[0]) == pattern_frame(60, seed++));
        rx->release();
        CHECK(guest.reap().size() == 1);
      }
      const uint32_t base = rx->base();
      if (guest.packed()) {
        CHECK((base >> 16) == (base & 0xffff));  // drained: both halves agree
        config.base = base & 0xffff;
      } else {
        CHECK(base == static_cast<uint32_t>(3 * (life + 1)));
        config.base = base;
      }
    }
  }
}

TEST_CASE("DeviceRx: a split ring trusts the used index rather than a stale base") {
  RawGuest guest(feature_mask(VIRTIO_F_VERSION_1));
  Pass pass;
  {
    auto rx = make_device_rx(guest.config(), pass.counters);
    guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60))}});
    REQUIRE(pass.peek(*rx));
    rx->release();
  }
  guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(61))}});
  auto rx = make_device_rx(guest.config(), pass.counters);  // base 0 again, as after a crash
  REQUIRE(pass.peek(*rx));
  CHECK(pass.batch->count == 1);
  CHECK(pass.batch->frames[0].len == 61);
}

TEST_CASE("DeviceRx: dirty logging marks the used ring only") {
  for (const uint64_t features : both_rings()) {
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
    auto rx = make_device_rx(config, pass.counters);
    guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60))}});
    REQUIRE(pass.peek(*rx));
    rx->release();
    std::vector<uint8_t> bits(4096);
    REQUIRE(::pread(fd.get(), bits.data(), bits.size(), 0) == 4096);
    const auto dirty = [&](uint64_t address) { return (bits[address / 4096 / 8] >> address / 4096 % 8 & 1) != 0; };
    CHECK(dirty(RawGuest::kDevice));
    CHECK(dirty(RawGuest::kRing) == guest.packed());  // used descriptors go to the descriptor area
    CHECK_FALSE(dirty(kBuffer));
  }
}

TEST_CASE("DeviceRx: while it polls it asks for no kicks, and when it sleeps it looks again") {
  for (const uint64_t with : {uint64_t{0}, feature_mask(VIRTIO_F_EVENT_IDX)}) {
    for (const uint64_t features : both_rings(with)) {
      CAPTURE(features);
      RawGuest guest(features);
      Pass pass;
      const UniqueFd kick(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
      auto config = guest.config();
      config.kick_fd = kick.get();
      auto rx = make_device_rx(config, pass.counters);
      CHECK(rx->wake_fd() == kick.get());
      // Would an honest driver kick after making the buffer at index `idx` available?
      const auto kick_wanted = [&](uint16_t idx) {
        if (guest.packed()) return guest.device_event()->flags != VRING_PACKED_EVENT_FLAG_DISABLE;
        if (guest.event_idx()) {
          CHECK(guest.used()->flags == 0);
          return vring_need_event(vring_avail_event(guest.used(), guest.size()), static_cast<uint16_t>(idx + 1), idx);
        }
        return (guest.used()->flags & VRING_USED_F_NO_NOTIFY) == 0;
      };
      guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60))}});
      REQUIRE(pass.peek(*rx));
      rx->release();
      CHECK_FALSE(kick_wanted(1));
      CHECK_FALSE(rx->arm());
      CHECK(kick_wanted(1));
      rx->disarm();
      guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60))}});
      CHECK(rx->arm());  // work arrived meanwhile
      rx->disarm();
      REQUIRE(pass.peek(*rx));
      rx->release();
      CHECK_FALSE(kick_wanted(2));
    }
  }
}

}  // namespace
}  // namespace sw
