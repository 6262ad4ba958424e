// SPDX-License-Identifier: Apache-2.0
// virtio 1.3 5.1.6, network device operation: what the device MUST do with headers and receive buffers. The rules of
// num_buffers over several buffers are checked for many sizes in device_tx_test.
#include <doctest/doctest.h>

#include <vector>

#include "support/raw_guest.h"

namespace sw {
namespace {

using testing::both_rings;
using testing::Pass;
using testing::pattern_frame;
using testing::RawGuest;

constexpr uint64_t kBuffer = RawGuest::kBuffers;
constexpr uint16_t kWrite = VRING_DESC_F_WRITE;

Frame& one_frame(Batch& batch, uint32_t bytes) {
  batch.clear();
  Frame& frame = batch.frames[0];
  frame = {};
  frame.len = bytes;
  frame.head_len = static_cast<uint16_t>(bytes);
  std::memcpy(frame.head, pattern_frame(bytes).data(), bytes);
  frame.segments = batch.segments.data();
  batch.count = 1;
  return frame;
}
const std::array<uint8_t, 1> kFirst{0};

TEST_CASE("5.1.6.2.2: flag bits that are not known are ignored") {
  for (const uint64_t features : both_rings(feature_mask(VIRTIO_NET_F_CSUM))) {
    RawGuest guest(features);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    VnetHeader header;
    header.flags = 0xfe;
    guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60), header)}});
    REQUIRE(pass.peek(*rx));
    REQUIRE(pass.batch->count == 1);
    CHECK_FALSE(pass.batch->frames[0].offload);
    CHECK(pass.batch->frames[0].vnet.flags == 0);
    rx->release();
  }
}

TEST_CASE("5.1.6.2.2: csum_start and csum_offset mean nothing without NEEDS_CSUM") {
  for (const uint64_t features : both_rings(feature_mask(VIRTIO_NET_F_CSUM))) {
    RawGuest guest(features);
    Pass pass;
    auto rx = make_device_rx(guest.config(), pass.counters);
    VnetHeader header;
    header.csum_start = 0xffff;
    header.csum_offset = 0xffff;
    guest.add({{kBuffer, guest.put_frame(kBuffer, pattern_frame(60), header)}});
    REQUIRE(pass.peek(*rx));
    REQUIRE(pass.batch->count == 1);
    CHECK(pass.batch->frames[0].vnet.csum_start == 0);
    rx->release();
  }
}

TEST_CASE("5.1.6.2.2: hdr_len is not relied on") {
  for (const uint64_t features : both_rings(feature_mask(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4))) {
    for (const uint16_t claimed : {uint16_t{0}, uint16_t{13}, uint16_t{0xffff}}) {
      RawGuest guest(features);
      Pass pass;
      auto rx = make_device_rx(guest.config(), pass.counters);
      auto bytes = pattern_frame(3000);
      bytes[34 + 12] = 5 << 4;
      const VnetHeader header{VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, claimed, 1460, 34, 16};
      guest.add({{kBuffer, guest.put_frame(kBuffer, bytes, header)}});
      REQUIRE(pass.peek(*rx));
      REQUIRE(pass.batch->count == 1);
      CHECK(pass.batch->frames[0].vnet.hdr_len == 54);
      rx->release();
    }
  }
}

TEST_CASE("5.1.6.3.2: without MRG_RXBUF one buffer is used and num_buffers is 1") {
  for (const uint64_t features : both_rings()) {
    RawGuest guest(features);
    Pass pass;
    auto tx = make_device_tx(guest.config(), pass.counters);
    for (const uint16_t garbage : {uint16_t{0}, uint16_t{1}, uint16_t{0xffff}}) {
      guest.write(kBuffer + 10, &garbage, sizeof garbage);
      guest.add({{kBuffer, 200, kWrite}});
      guest.add({{kBuffer + 0x1000, 200, kWrite}});
      one_frame(*pass.batch, 60);
      CHECK(tx->send(*pass.batch, kFirst, pass.drops) == 1);
      CHECK(guest.reap().size() == 1);
      CHECK(guest.read(kBuffer + 10, 2) == std::vector<uint8_t>{1, 0});
      CHECK(tx->send(*pass.batch, kFirst, pass.drops) == 1);  // the second buffer: keep the ring in step
      CHECK(guest.reap().size() == 1);
    }
  }
}

TEST_CASE("5.1.6.4.1: buffers of one frame are used together or not at all") {
  for (const uint64_t features : both_rings(feature_mask(VIRTIO_NET_F_MRG_RXBUF))) {
    RawGuest guest(features);
    Pass pass;
    auto tx = make_device_tx(guest.config(), pass.counters);
    one_frame(*pass.batch, 100);
    guest.add({{kBuffer, 60, kWrite}});
    CHECK(tx->send(*pass.batch, kFirst, pass.drops) == 0);
    CHECK(guest.reap().empty());
    guest.add({{kBuffer + 0x1000, 60, kWrite}});
    CHECK(tx->send(*pass.batch, kFirst, pass.drops) == 1);
    const auto used = guest.reap();
    REQUIRE(used.size() == 2);
    CHECK(used[0].len == 60);  // the first is filled to its end
    CHECK(used[1].len == 52);
    CHECK(guest.read(kBuffer + 10, 2) == std::vector<uint8_t>{2, 0});
  }
}

TEST_CASE("5.1.6.4.1: without GUEST_CSUM flags is 0, and gso_type is GSO_NONE without GUEST_TSO") {
  for (const uint64_t features : both_rings(feature_mask(VIRTIO_NET_F_MRG_RXBUF))) {
    for (const uint32_t buffer : {200U, 40U}) {
      RawGuest guest(features);
      Pass pass;
      auto tx = make_device_tx(guest.config(), pass.counters);
      CHECK_FALSE(tx->caps().checksum);
      CHECK_FALSE(tx->caps().tso4);
      for (uint64_t i = 0; i < 4; ++i) guest.add({{kBuffer + i * 0x1000, buffer, kWrite}});
      Frame& frame = one_frame(*pass.batch, 60);
      frame.vnet = {0xff, 0xff, 0xffff, 0xffff, 0xffff, 0xffff};  // left over from the sender; offload says finished
      CHECK(tx->send(*pass.batch, kFirst, pass.drops) == 1);
      CHECK(guest.read(kBuffer, 10) == std::vector<uint8_t>(10));
    }
  }
}

}  // namespace
}  // namespace sw
