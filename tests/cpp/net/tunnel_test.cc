// SPDX-License-Identifier: Apache-2.0
#include "net/tunnel.h"

#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <utility>

#include "net/tunnel_frames.h"

using namespace sw;
using namespace sw::test;

namespace {

struct Row {
  const char* what;
  TunnelShape shape;
};

const Row kRows[] = {
    {"VXLAN", {.kind = TunnelKind::kVxlan}},
    {"VXLAN over IPv6, tagged", {.kind = TunnelKind::kVxlan, .ip_version = 6, .tags = 2}},
    {"VXLAN with group policy", {.kind = TunnelKind::kVxlanPolicy}},
    {"VXLAN with the generic protocol extension", {.kind = TunnelKind::kVxlanGeneric}},
    {"VXLAN with an IP packet", {.kind = TunnelKind::kVxlanGenericIp, .ip_version = 6}},
    {"GENEVE", {.kind = TunnelKind::kGeneve}},
    {"GENEVE with options", {.kind = TunnelKind::kGeneve, .options = 252}},
    {"GENEVE with an IP packet", {.kind = TunnelKind::kGeneveIp, .ip_version = 6, .options = 4}},
    {"GRE with a frame", {.kind = TunnelKind::kGretap}},
    {"GRE with a frame, key and sequence number", {.kind = TunnelKind::kGretap, .options = 8}},
    {"GRE with an IP packet", {.kind = TunnelKind::kGre, .ip_version = 6}},
    {"GRE with an IP packet, and every field", {.kind = TunnelKind::kGre, .options = 12}},
    {"IP in IP", {.kind = TunnelKind::kIpInIp}},
    {"IP in IPv6", {.kind = TunnelKind::kIpInIp, .ip_version = 6}},
};

OffloadFrame inner_frame(int ip_version) {
  OffloadShape shape;
  shape.ip_version = ip_version;
  shape.tags = 1;
  shape.payload = 50;
  return make_offload_frame(shape);
}

// What the first `bytes` bytes of the frame say, in a copy of exactly that size: a read behind it is seen.
std::optional<Packet> inner_of(const Bytes& frame, size_t bytes) {
  auto exact = std::make_unique<uint8_t[]>(bytes);
  std::memcpy(exact.get(), frame.data(), bytes);
  const std::span<const uint8_t> start(exact.get(), bytes);
  const auto outer = parse_packet(start);
  return outer ? parse_inner(start, *outer) : std::nullopt;
}

}  // namespace

TEST_CASE("parse_inner: finds the packet that a tunnel carries") {
  for (const Row& row : kRows) {
    for (const int version : {4, 6}) {
      CAPTURE(row.what);
      CAPTURE(version);
      const OffloadFrame frame = make_tunnel_frame(inner_frame(version), row.shape);
      const auto inner = inner_of(frame.bytes, frame.bytes.size());
      REQUIRE(inner);
      CHECK(inner->ip_version == version);
      CHECK(inner->protocol == kProtocolTcp);
      CHECK(inner->l3 == frame.l3);
      CHECK(inner->l4 == frame.l4);
      CHECK(inner->l4 + inner->l4_header_bytes == frame.headers);
      CHECK(inner->l3 + inner->l3_bytes == frame.bytes.size());
    }
  }
}

TEST_CASE("parse_inner: every truncation is handled and offsets stay inside") {
  for (const Row& row : kRows) {
    CAPTURE(row.what);
    const OffloadFrame frame = make_tunnel_frame(inner_frame(6), row.shape);
    for (size_t bytes = 0; bytes < frame.headers; ++bytes) {
      const auto inner = inner_of(frame.bytes, bytes);
      if (!inner) continue;
      CHECK(inner->l4_header_bytes == 0);
      CHECK(inner->l4 <= bytes);
    }
  }
}

TEST_CASE("parse_inner: a tunnel's header that is cut off is not ruled out") {
  const OffloadFrame vxlan = make_tunnel_frame(inner_frame(4), {});
  const OffloadFrame gre = make_tunnel_frame(inner_frame(4), {.kind = TunnelKind::kGretap});
  for (const auto& [frame, header] : {std::pair{vxlan.bytes, size_t{42}}, std::pair{gre.bytes, size_t{34}}}) {
    const auto inner = inner_of(frame, header + 3);
    REQUIRE(inner);
    CHECK(inner->ip_version == 0);
  }
}

TEST_CASE("parse_inner: what is no tunnel's packet") {
  const OffloadFrame inner = inner_frame(4);
  const OffloadFrame vxlan = make_tunnel_frame(inner, {});
  const OffloadFrame geneve = make_tunnel_frame(inner, {.kind = TunnelKind::kGeneve});
  const OffloadFrame gre = make_tunnel_frame(inner, {.kind = TunnelKind::kGretap});
  const auto is_tunnel = [](Bytes bytes, size_t at, uint8_t value) {
    bytes.at(at) = value;
    return inner_of(bytes, bytes.size()).has_value();
  };
  const OffloadFrame policy = make_tunnel_frame(inner, {.kind = TunnelKind::kVxlanPolicy});
  const OffloadFrame generic = make_tunnel_frame(inner, {.kind = TunnelKind::kVxlanGeneric});
  constexpr size_t kL3 = 14;
  constexpr size_t kInUdp = 42;
  constexpr size_t kInIp = 34;
  CHECK(is_tunnel(vxlan.bytes, kInUdp + 4, 0xff));  // any network number
  CHECK_FALSE(is_tunnel(vxlan.bytes, kInUdp, 0));
  CHECK_FALSE(is_tunnel(vxlan.bytes, kInUdp, 0x0c));  // says what follows, and does not
  CHECK_FALSE(is_tunnel(vxlan.bytes, kInUdp, 0x8c));
  CHECK_FALSE(is_tunnel(vxlan.bytes, kInUdp, 0x18));
  CHECK_FALSE(is_tunnel(vxlan.bytes, kInUdp + 1, 0x20));  // remote checksum offload: unfinished on purpose
  CHECK_FALSE(is_tunnel(vxlan.bytes, kInUdp + 3, 1));
  CHECK_FALSE(is_tunnel(vxlan.bytes, kInUdp + 7, 1));
  CHECK_FALSE(is_tunnel(vxlan.bytes, kL3 + 9, 132));       // SCTP
  CHECK_FALSE(is_tunnel(vxlan.bytes, kL3 + 6, 0x20));      // a fragment
  CHECK_FALSE(is_tunnel(policy.bytes, kInUdp + 1, 0x20));  // remote checksum offload again
  CHECK_FALSE(is_tunnel(generic.bytes, kInUdp + 3, 4));    // network service header
  CHECK_FALSE(is_tunnel(generic.bytes, kInUdp + 2, 1));
  CHECK_FALSE(is_tunnel(geneve.bytes, kInUdp, 0x40));      // version 1
  CHECK_FALSE(is_tunnel(geneve.bytes, kInUdp + 2, 0x64));  // another protocol
  CHECK_FALSE(is_tunnel(geneve.bytes, kInUdp + 7, 1));     // reserved
  CHECK_FALSE(is_tunnel(gre.bytes, kInIp, 0x40));          // routing
  CHECK_FALSE(is_tunnel(gre.bytes, kInIp + 1, 1));         // version 1
  CHECK_FALSE(is_tunnel(gre.bytes, kInIp + 2, 0x88));      // another protocol
  CHECK_FALSE(inner_of(inner.bytes, inner.bytes.size()));  // TCP
}
