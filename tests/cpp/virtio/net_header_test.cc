// SPDX-License-Identifier: Apache-2.0
#include "virtio/net_header.h"

#include <doctest/doctest.h>

#include <array>
#include <vector>

namespace sw {
namespace {

constexpr uint8_t kCsum = VIRTIO_NET_HDR_F_NEEDS_CSUM;
constexpr uint8_t kTcp4 = VIRTIO_NET_HDR_GSO_TCPV4;
constexpr uint8_t kTcp6 = VIRTIO_NET_HDR_GSO_TCPV6;
constexpr uint8_t kUdp = VIRTIO_NET_HDR_GSO_UDP_L4;
constexpr uint8_t kEcn = VIRTIO_NET_HDR_GSO_ECN;

const OffloadRules kAll = {true, true, true, true, true};

TEST_CASE("Net header: checksum and segmentation requests are accepted exactly when they are possible") {
  struct Row {
    const char* what;
    OffloadRules rules;
    VnetHeader header;  // flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
    uint32_t len;
    bool accepted;
  };
  const std::vector<Row> rows = {
      {"nothing asked", kAll, {}, 14, true},
      {"checksum in the last two bytes", kAll, {kCsum, 0, 0, 0, 34, 24}, 60, true},
      {"checksum one byte past the end", kAll, {kCsum, 0, 0, 0, 34, 25}, 60, false},
      {"checksum one byte before the end", kAll, {kCsum, 0, 0, 0, 34, 23}, 60, true},
      {"start at the limit", kAll, {kCsum, 0, 0, 0, 0xffff, 0}, 65553, false},
      {"start and offset wrap 16 bits", kAll, {kCsum, 0, 0, 0, 0xffff, 0xffff}, 65553, false},
      {"offset alone at the limit", kAll, {kCsum, 0, 0, 0, 34, 0xffff}, 65553, false},
      {"start inside the Ethernet header", kAll, {kCsum, 0, 0, 0, 13, 16}, 60, false},
      {"start behind the Ethernet header", kAll, {kCsum, 0, 0, 0, 14, 16}, 60, true},
      {"checksum not negotiated", {false, true, true, true, true}, {kCsum, 0, 0, 0, 34, 16}, 60, false},
      {"unknown flags are ignored", kAll, {0xfe, 0, 0, 0, 0xffff, 0xffff}, 60, true},
      {"TSO without checksum", kAll, {0, kTcp4, 54, 1460, 34, 16}, 3000, false},
      {"TSO v4", kAll, {kCsum, kTcp4, 54, 1460, 34, 16}, 3000, true},
      {"TSO v6", kAll, {kCsum, kTcp6, 74, 1440, 54, 16}, 3000, true},
      {"TSO v4 with ECN", kAll, {kCsum, kTcp4 | kEcn, 54, 1460, 34, 16}, 3000, true},
      {"USO", kAll, {kCsum, kUdp, 42, 1460, 34, 6}, 3000, true},
      {"UFO", kAll, {kCsum, VIRTIO_NET_HDR_GSO_UDP, 42, 1460, 34, 6}, 3000, false},
      {"ECN alone", kAll, {kCsum, kEcn, 54, 1460, 34, 16}, 3000, false},
      {"ECN with USO", kAll, {kCsum, kUdp | kEcn, 42, 1460, 34, 6}, 3000, false},
      {"unknown type", kAll, {kCsum, 2, 54, 1460, 34, 16}, 3000, false},
      {"all bits", kAll, {kCsum, 0xff, 54, 1460, 34, 16}, 3000, false},
      {"segment size 0", kAll, {kCsum, kTcp4, 54, 0, 34, 16}, 3000, false},
      {"segment size 1", kAll, {kCsum, kTcp4, 54, 1, 34, 16}, 3000, false},
      {"segment size at its maximum", kAll, {kCsum, kTcp4, 54, 0xffff, 34, 16}, 3000, true},
      {"v4 not negotiated", {true, false, true, true, true}, {kCsum, kTcp4, 54, 1460, 34, 16}, 3000, false},
      {"v6 not negotiated", {true, true, false, true, true}, {kCsum, kTcp6, 74, 1440, 54, 16}, 3000, false},
      {"ECN not negotiated", {true, true, true, false, true}, {kCsum, kTcp4 | kEcn, 54, 1460, 34, 16}, 3000, false},
      {"USO not negotiated", {true, true, true, true, false}, {kCsum, kUdp, 42, 1460, 34, 6}, 3000, false},
      {"TSO with the checksum elsewhere", kAll, {kCsum, kTcp4, 54, 1460, 34, 6}, 3000, false},
      {"USO with the checksum elsewhere", kAll, {kCsum, kUdp, 42, 1460, 34, 16}, 3000, false},
      {"transport header behind the head", kAll, {kCsum, kTcp4, 54, 1460, 116, 16}, 3000, false},
      {"TCP header longer than the frame", kAll, {kCsum, kTcp4, 54, 1460, 34, 16}, 53, false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    std::array<uint8_t, 128> head{};
    if (row.header.csum_start + 12U < head.size()) head[row.header.csum_start + 12U] = 5 << 4;
    VnetHeader header = row.header;
    CHECK(accept_net_header(row.rules, header, head.data(), std::min(row.len, 128U), row.len) == row.accepted);
  }
}

TEST_CASE("Net header: hdr_len comes from the frame, whatever the driver says") {
  for (const uint16_t claimed : {uint16_t{0}, uint16_t{54}, uint16_t{0xffff}}) {
    std::array<uint8_t, 128> head{};
    head[34 + 12] = 8 << 4;  // 32 bytes of TCP header
    VnetHeader header{kCsum, kTcp4, claimed, 1448, 34, 16};
    REQUIRE(accept_net_header(kAll, header, head.data(), 128, 3000));
    CHECK(header.hdr_len == 66);
    head[34 + 12] = 4 << 4;  // shorter than any TCP header
    header = {kCsum, kTcp4, claimed, 1448, 34, 16};
    CHECK_FALSE(accept_net_header(kAll, header, head.data(), 128, 3000));
  }
}

TEST_CASE("Net header: what was not asked for is cleared") {
  std::array<uint8_t, 128> head{};
  VnetHeader header{0xfe, 0, 99, 98, 97, 96};
  REQUIRE(accept_net_header(kAll, header, head.data(), 60, 60));
  CHECK(header.flags == 0);
  CHECK(header.hdr_len == 0);
  CHECK(header.csum_start == 0);
  header = {0xff, 0, 99, 98, 34, 16};
  REQUIRE(accept_net_header(kAll, header, head.data(), 60, 60));
  CHECK(header.flags == kCsum);
  CHECK(header.gso_size == 0);
  CHECK(header.csum_start == 34);
}

TEST_CASE("Net header: legacy GSO means every TCP segmentation") {
  const OffloadRules legacy = driver_offloads(feature_mask(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GSO));
  CHECK((legacy.checksum && legacy.tso4 && legacy.tso6 && legacy.ecn && !legacy.uso));
  const OffloadRules modern = driver_offloads(feature_mask(VIRTIO_NET_F_GSO, VIRTIO_F_VERSION_1));
  CHECK_FALSE(any_offload(modern));
}

}  // namespace
}  // namespace sw
