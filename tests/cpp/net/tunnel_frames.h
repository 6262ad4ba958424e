// SPDX-License-Identifier: Apache-2.0
// Test frames inside tunnels, built byte by byte and sharing no code with net/.
#pragma once

#include "net/offload_frames.h"

namespace sw::test {

// Those in UDP first.
enum class TunnelKind : uint8_t {
  kVxlan,
  kVxlanPolicy,
  kVxlanGeneric,
  kVxlanGenericIp,
  kGeneve,
  kGeneveIp,
  kGretap,
  kGre,
  kIpInIp
};

struct TunnelShape {
  TunnelKind kind = TunnelKind::kVxlan;
  int ip_version = 4;     // of the outer packet
  int tags = 0;           // 802.1Q tags of the outer frame
  bool checksum = false;  // UDP, GRE: made for the inner packet as it will be
  size_t options = 0;     // GENEVE: bytes, multiple of 4. GRE: 4, 8, 12: key, key and sequence, and a wrong checksum
  uint16_t ip_id = 1;     // of the outer packet
};

// `inner` as a tunnel carries it. l3, l4, headers and vnet of the result are those of the inner packet. IP in IP needs the
// same version outside.
inline OffloadFrame make_tunnel_frame(const OffloadFrame& inner, const TunnelShape& shape) {
  const uint16_t inner_type = inner.bytes.at(inner.l3) >> 4 == 4 ? 0x0800 : 0x86dd;
  const bool udp = shape.kind < TunnelKind::kGretap;
  const bool ethernet = shape.kind != TunnelKind::kVxlanGenericIp && shape.kind != TunnelKind::kGeneveIp &&
                        shape.kind != TunnelKind::kGre && shape.kind != TunnelKind::kIpInIp;
  Bytes header;
  switch (shape.kind) {
    case TunnelKind::kVxlan:
      header = {8, 0, 0, 0, 0, 0, 7, 0};
      break;
    case TunnelKind::kVxlanPolicy:
      header = {0x88, 0x48, 0x12, 0x34, 0, 0, 7, 0};
      break;
    case TunnelKind::kVxlanGeneric:
      header = {0x0c, 0, 0, 3, 0, 0, 7, 0};
      break;
    case TunnelKind::kVxlanGenericIp:
      header = {0x0c, 0, 0, static_cast<uint8_t>(inner_type == 0x0800 ? 1 : 2), 0, 0, 7, 0};
      break;
    case TunnelKind::kGeneve:
    case TunnelKind::kGeneveIp:
      header = {static_cast<uint8_t>(shape.options / 4), 0};
      put16(header, ethernet ? 0x6558 : inner_type);
      header.insert(header.end(), {0, 0, 7, 0});
      header.insert(header.end(), shape.options, 0x11);
      break;
    case TunnelKind::kGretap:
    case TunnelKind::kGre:
      header = {static_cast<uint8_t>((shape.options >= 4 ? 0x20 : 0) | (shape.options >= 8 ? 0x10 : 0) |
                                     (shape.options >= 12 || shape.checksum ? 0x80 : 0)),
                0};
      put16(header, ethernet ? 0x6558 : inner_type);
      header.insert(header.end(), shape.checksum ? 4 : 0, 0);
      header.insert(header.end(), shape.options, 0x22);
      break;
    case TunnelKind::kIpInIp:
      break;
  }
  const uint8_t protocol = udp ? 17 : shape.kind != TunnelKind::kIpInIp ? 47 : inner_type == 0x0800 ? 4 : 41;
  const size_t stripped = ethernet ? 0 : inner.l3;

  OffloadFrame out;
  Bytes& b = out.bytes;
  b = {0x52, 0x54, 0, 0, 0, 0xb, 0x52, 0x54, 0, 0, 0, 0xa};
  for (int i = 0; i < shape.tags; ++i) {
    put16(b, 0x8100);
    put16(b, 300 + static_cast<size_t>(i));
  }
  put16(b, shape.ip_version == 4 ? 0x0800 : 0x86dd);
  const size_t l3 = b.size();
  const size_t l4_bytes = (udp ? 8 : 0) + header.size() + inner.bytes.size() - stripped;
  if (shape.ip_version == 4) {
    b.insert(b.end(), {0x45, 0});
    put16(b, (20 + l4_bytes) & 0xffff);
    put16(b, shape.ip_id);
    b.insert(b.end(), {0, 0, 64, protocol, 0, 0, 192, 168, 0, 1, 192, 168, 0, 2});
    set16(b, l3 + 10, 0xffffU - naive_sum(b, l3, b.size()));
  } else {
    b.insert(b.end(), {0x60, 0, 0, 0});
    put16(b, l4_bytes & 0xffff);
    b.insert(b.end(), {protocol, 64});
    for (int i = 0; i < 32; ++i) b.push_back(static_cast<uint8_t>(0x40 + i));
  }
  const size_t l4 = b.size();
  if (udp) {
    put16(b, 40000);
    put16(b, 4789);
    put16(b, l4_bytes & 0xffff);
    put16(b, 0);
  }
  b.insert(b.end(), header.begin(), header.end());
  const size_t moved = b.size() - stripped;
  b.insert(b.end(), inner.bytes.begin() + static_cast<long>(stripped), inner.bytes.end());
  out.l3 = inner.l3 + moved;
  out.l4 = inner.l4 + moved;
  out.headers = inner.headers + moved;
  out.vnet = inner.vnet;
  out.vnet.csum_start = static_cast<uint16_t>(out.l4);
  if (shape.checksum) {
    OffloadFrame whole = out;
    whole.vnet.gso_size = 0xffff;
    const Bytes finished = naive_segments(whole).at(0);
    const uint32_t pseudo = udp ? naive_pseudo_sum(finished, l3, protocol, finished.size() - l4) : 0;
    const uint16_t sum = naive_sum(finished, l4, finished.size(), pseudo);
    set16(b, l4 + (udp ? 6 : 4), udp && sum == 0xffff ? 0xffff : 0xffffU - sum);
  }
  return out;
}

// The segments that `inner`, a GSO frame, must become in the tunnel: each of its own segments, carried.
inline std::vector<Bytes> naive_tunnel_segments(const OffloadFrame& inner, TunnelShape shape) {
  std::vector<Bytes> out;
  for (const Bytes& bytes : naive_segments(inner)) {
    OffloadFrame piece = inner;
    piece.bytes = bytes;
    out.push_back(make_tunnel_frame(piece, shape).bytes);
    ++shape.ip_id;
  }
  return out;
}

}  // namespace sw::test
