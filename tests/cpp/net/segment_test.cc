// SPDX-License-Identifier: Apache-2.0
#include "net/segment.h"

#include <doctest/doctest.h>

#include <cstring>
#include <functional>
#include <memory>

#include "net/checksum.h"
#include "net/tunnel_frames.h"

using namespace sw;
using namespace sw::test;

namespace {

std::vector<Bytes> cut(const OffloadFrame& frame) {
  const auto segmenter = Segmenter::make(frame.bytes, static_cast<uint32_t>(frame.bytes.size()), frame.vnet);
  std::vector<Bytes> out;
  if (!segmenter) return out;
  for (uint32_t i = 0; i < segmenter->count(); ++i) {
    const uint8_t* const payload = frame.bytes.data() + segmenter->payload_offset(i);
    Bytes segment(segmenter->header_bytes());
    segmenter->write_header(i, sum_bytes(payload, segmenter->payload_bytes(i)), segment.data());
    segment.insert(segment.end(), payload, payload + segmenter->payload_bytes(i));
    out.push_back(segment);
  }
  return out;
}

bool refused(OffloadFrame frame, const std::function<void(OffloadFrame&)>& change) {
  change(frame);
  return !Segmenter::make(frame.bytes, static_cast<uint32_t>(frame.bytes.size()), frame.vnet).has_value();
}

}  // namespace

TEST_CASE("Segmenter: makes exactly the frames of the plain implementation") {
  uint32_t seed = 0;
  for (const int version : {4, 6}) {
    for (const bool udp : {false, true}) {
      for (const int tags : {0, 1}) {
        for (const size_t options : {size_t{0}, size_t{8}, size_t{40}}) {
          for (const size_t payload : {0, 1, 999, 1000, 1001, 2000, 2001, 30'001, 65'000}) {
            OffloadShape shape;
            shape.ip_version = version;
            shape.udp = udp;
            shape.tags = tags;
            shape.ip_options = options;
            shape.tcp_options = udp ? 0 : 12;
            shape.payload = payload;
            shape.gso_size = payload == 30'001 ? 999 : 1000;
            shape.tcp_flags = 0x99;  // CWR ACK PSH FIN
            const OffloadFrame frame = make_offload_frame(shape, ++seed);
            const auto expected = naive_segments(frame);
            const auto got = cut(frame);
            REQUIRE(got.size() == expected.size());
            for (size_t i = 0; i < got.size(); ++i) {
              CAPTURE(i);
              REQUIRE(got[i] == expected[i]);
              REQUIRE(check_transport(got[i], frame) == "");
            }
          }
        }
      }
    }
  }
}

TEST_CASE("Segmenter: the longest segment is what an MTU must carry") {
  OffloadShape shape;
  shape.tags = 1;
  shape.payload = 5000;
  shape.gso_size = 1448;
  shape.tcp_options = 12;
  const OffloadFrame frame = make_offload_frame(shape);
  const auto segmenter = Segmenter::make(frame.bytes, static_cast<uint32_t>(frame.bytes.size()), frame.vnet);
  REQUIRE(segmenter);
  CHECK(segmenter->longest_l3_bytes() == 1500);
  shape.payload = 100;
  const OffloadFrame small = make_offload_frame(shape);
  CHECK(Segmenter::make(small.bytes, static_cast<uint32_t>(small.bytes.size()), small.vnet)->longest_l3_bytes() == 152);
}

TEST_CASE("Segmenter: padding behind the IP packet is not payload, length 0 means all of it") {
  OffloadShape shape;
  shape.payload = 3;
  shape.gso_size = 1000;
  OffloadFrame frame = make_offload_frame(shape);
  const OffloadFrame unpadded = frame;
  frame.bytes.resize(frame.bytes.size() + 3);
  CHECK(cut(frame) == naive_segments(unpadded));
  OffloadFrame no_length = unpadded;
  set16(no_length.bytes, no_length.l3 + 2, 0);
  CHECK(cut(no_length) == naive_segments(unpadded));
}

TEST_CASE("Segmenter: refuses what does not add up") {
  OffloadShape shape;
  shape.payload = 4000;
  shape.gso_size = 1000;
  const OffloadFrame good = make_offload_frame(shape);
  REQUIRE_FALSE(refused(good, [](OffloadFrame&) {}));
  struct Row {
    const char* what;
    std::function<void(OffloadFrame&)> change;
  };
  const Row rows[] = {
      {"gso_size 0", [](OffloadFrame& f) { f.vnet.gso_size = 0; }},
      {"gso_size so small that it makes a flood", [](OffloadFrame& f) { f.vnet.gso_size = 1; }},
      {"no NEEDS_CSUM", [](OffloadFrame& f) { f.vnet.flags = 0; }},
      {"type none", [](OffloadFrame& f) { f.vnet.gso_type = VIRTIO_NET_HDR_GSO_NONE; }},
      {"ECN alone", [](OffloadFrame& f) { f.vnet.gso_type = VIRTIO_NET_HDR_GSO_ECN; }},
      {"UFO", [](OffloadFrame& f) { f.vnet.gso_type = VIRTIO_NET_HDR_GSO_UDP; }},
      {"unknown type", [](OffloadFrame& f) { f.vnet.gso_type = 0x7f; }},
      {"TCPv6 on IPv4", [](OffloadFrame& f) { f.vnet.gso_type = VIRTIO_NET_HDR_GSO_TCPV6; }},
      {"USO on TCP", [](OffloadFrame& f) { f.vnet.gso_type = VIRTIO_NET_HDR_GSO_UDP_L4; }},
      {"csum_start elsewhere", [](OffloadFrame& f) { f.vnet.csum_start += 2; }},
      {"csum_start at the end", [](OffloadFrame& f) { f.vnet.csum_start = 0xffff; }},
      {"csum_offset of UDP", [](OffloadFrame& f) { f.vnet.csum_offset = 6; }},
      {"IP length beyond the frame", [](OffloadFrame& f) { set16(f.bytes, f.l3 + 2, 4100); }},
      {"IP length below the headers", [](OffloadFrame& f) { set16(f.bytes, f.l3 + 2, 30); }},
      {"fragment", [](OffloadFrame& f) { set16(f.bytes, f.l3 + 6, 0x2000); }},
      {"IP header length", [](OffloadFrame& f) { f.bytes[f.l3] = 0x41; }},
      {"TCP header length", [](OffloadFrame& f) { f.bytes[f.l4 + 12] = 0x10; }},
      {"cut in the TCP header", [](OffloadFrame& f) { f.bytes.resize(f.l4 + 19); }},
      {"cut in the Ethernet header", [](OffloadFrame& f) { f.bytes.resize(13); }},
      {"not IP", [](OffloadFrame& f) { set16(f.bytes, 12, 0x0806); }},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    CHECK(refused(good, row.change));
  }
}

TEST_CASE("Segmenter: ECN beside TCP is accepted, hdr_len is not believed") {
  OffloadShape shape;
  shape.payload = 4000;
  shape.gso_size = 1000;
  OffloadFrame frame = make_offload_frame(shape);
  frame.vnet.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
  for (const uint16_t lie : {uint16_t{0}, uint16_t{14}, uint16_t{0xffff}}) {
    frame.vnet.hdr_len = lie;
    CHECK(cut(frame) == naive_segments(frame));
  }
}

TEST_CASE("Segmenter: headers longer than its limit are refused") {
  OffloadShape shape;
  shape.ip_version = 6;
  shape.payload = 4000;
  shape.gso_size = 1000;
  shape.ip_options = 256 - 14 - 40 - 20;
  shape.ip_options = shape.ip_options / 8 * 8;
  CHECK(cut(make_offload_frame(shape)).size() == 4);
  shape.ip_options += 8;
  CHECK(cut(make_offload_frame(shape)).empty());
}

namespace {

struct TunnelRow {
  const char* what;
  TunnelShape shape;
};

const TunnelRow kTunnelRows[] = {
    {"VXLAN", {.kind = TunnelKind::kVxlan}},
    {"VXLAN, outer checksum", {.kind = TunnelKind::kVxlan, .checksum = true}},
    {"VXLAN over IPv6, tagged", {.kind = TunnelKind::kVxlan, .ip_version = 6, .tags = 1}},
    {"VXLAN over IPv6, outer checksum", {.kind = TunnelKind::kVxlan, .ip_version = 6, .checksum = true}},
    {"VXLAN with group policy", {.kind = TunnelKind::kVxlanPolicy, .tags = 2, .checksum = true}},
    {"VXLAN with an IP packet", {.kind = TunnelKind::kVxlanGenericIp, .checksum = true}},
    {"GENEVE with options", {.kind = TunnelKind::kGeneve, .checksum = true, .options = 12}},
    {"GENEVE with an IP packet", {.kind = TunnelKind::kGeneveIp, .ip_version = 6, .checksum = true}},
    {"GRE with a frame", {.kind = TunnelKind::kGretap, .tags = 1}},
    {"GRE with a frame, checksum and key", {.kind = TunnelKind::kGretap, .checksum = true, .options = 4}},
    {"GRE with an IP packet, checksum", {.kind = TunnelKind::kGre, .ip_version = 6, .checksum = true}},
    {"IP in IP", {.kind = TunnelKind::kIpInIp}},
    {"IP in IPv6", {.kind = TunnelKind::kIpInIp, .ip_version = 6, .tags = 1}},
};

}  // namespace

TEST_CASE("Segmenter: a packet in a tunnel is cut, and each segment is carried as the tunnel's sender would") {
  uint32_t seed = 0;
  for (const TunnelRow& row : kTunnelRows) {
    for (const int version : {4, 6}) {
      for (const bool udp : {false, true}) {
        for (const size_t payload : {0, 1000, 1001, 5003, 60'000}) {
          CAPTURE(row.what);
          CAPTURE(version);
          CAPTURE(udp);
          CAPTURE(payload);
          OffloadShape shape;
          shape.ip_version = version;
          shape.udp = udp;
          shape.tags = payload == 1001 ? 1 : 0;
          shape.ip_options = payload == 5003 ? 8 : 0;
          shape.tcp_options = udp ? 0 : 12;
          shape.payload = payload;
          shape.gso_size = payload == 5003 ? 999 : 1000;
          shape.tcp_flags = 0x99;
          const OffloadFrame inner = make_offload_frame(shape, ++seed);
          const OffloadFrame frame = make_tunnel_frame(inner, row.shape);
          const auto segmenter = Segmenter::make(frame.bytes, static_cast<uint32_t>(frame.bytes.size()), frame.vnet);
          REQUIRE(segmenter);
          CHECK(segmenter->in_tunnel());
          const auto expected = naive_tunnel_segments(inner, row.shape);
          CHECK(segmenter->longest_l3_bytes() == expected[0].size() - 14 - 4 * static_cast<size_t>(row.shape.tags));
          const auto got = cut(frame);
          REQUIRE(got.size() == expected.size());
          for (size_t i = 0; i < got.size(); ++i) {
            CAPTURE(i);
            REQUIRE(got[i] == expected[i]);
          }
        }
      }
    }
  }
}

TEST_CASE("Segmenter: a tunnel in a tunnel is cut, a third one is not looked for") {
  OffloadShape shape;
  shape.payload = 4000;
  shape.gso_size = 1000;
  const OffloadFrame inner = make_offload_frame(shape);
  const TunnelShape gre{.kind = TunnelKind::kGretap, .checksum = true};
  const TunnelShape vxlan{.kind = TunnelKind::kVxlan, .ip_version = 6, .checksum = true};
  const OffloadFrame once = make_tunnel_frame(inner, gre);
  const OffloadFrame twice = make_tunnel_frame(once, vxlan);
  std::vector<Bytes> expected;
  for (const Bytes& bytes : naive_tunnel_segments(inner, gre)) {
    OffloadFrame piece = once;
    piece.bytes = bytes;
    expected.push_back(make_tunnel_frame(piece, vxlan).bytes);
  }
  CHECK(cut(twice) == expected);
  CHECK(cut(make_tunnel_frame(twice, {.kind = TunnelKind::kGeneve})).empty());
}

TEST_CASE("Segmenter: refuses a tunnel that does not add up") {
  OffloadShape shape;
  shape.payload = 4000;
  shape.gso_size = 1000;
  const OffloadFrame inner = make_offload_frame(shape);
  const auto carried = [&](const TunnelShape& tunnel) { return make_tunnel_frame(inner, tunnel); };
  const OffloadFrame vxlan = carried({.checksum = true});
  REQUIRE_FALSE(refused(vxlan, [](OffloadFrame&) {}));
  struct Row {
    const char* what;
    OffloadFrame frame;
    std::function<void(OffloadFrame&)> change;
  };
  const auto keep = [](OffloadFrame&) {};
  const Row rows[] = {
      {"GRE that numbers its packets", carried({.kind = TunnelKind::kGre, .options = 8}), keep},
      {"longer headers than any", carried({.kind = TunnelKind::kGeneve, .options = 252}), keep},
      {"csum_start at the outer UDP header", vxlan, [](OffloadFrame& f) { f.vnet.csum_start = 34; }},
      {"csum_start in the VXLAN header", vxlan, [](OffloadFrame& f) { f.vnet.csum_start = 44; }},
      {"csum_start in the inner packet's payload", vxlan, [](OffloadFrame& f) { f.vnet.csum_start += 20; }},
      {"not a tunnel's header", vxlan, [](OffloadFrame& f) { f.bytes[42] = 0x33; }},
      {"a fragment of the outer packet", vxlan, [](OffloadFrame& f) { set16(f.bytes, 20, 0x2000); }},
      {"inner packet shorter than the outer one", vxlan, [](OffloadFrame& f) { set16(f.bytes, f.l3 + 2, 4000); }},
      {"outer packet beyond the frame", vxlan,
       [](OffloadFrame& f) {
         set16(f.bytes, 16, get16(f.bytes, 16) + 1U);
         set16(f.bytes, f.l3 + 2, get16(f.bytes, f.l3 + 2) + 1U);
       }},
      {"type of the outer packet", vxlan, [](OffloadFrame& f) { f.vnet.gso_type = VIRTIO_NET_HDR_GSO_UDP_L4; }},
      {"inner packet of the other version", vxlan, [](OffloadFrame& f) { f.vnet.gso_type = VIRTIO_NET_HDR_GSO_TCPV6; }},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    CHECK(refused(row.frame, row.change));
  }
}
