// SPDX-License-Identifier: Apache-2.0
#include "net/tunnel.h"

#include "net/ethernet.h"

namespace sw {

namespace {

constexpr uint8_t kProtocolIpv4 = 4;
constexpr uint8_t kProtocolIpv6 = 41;
constexpr uint8_t kProtocolGre = 47;
constexpr uint16_t kEtherTypeBridging = 0x6558;  // transparent Ethernet bridging: an Ethernet frame follows

constexpr uint32_t kVxlanHeaderBytes = 8;
constexpr uint8_t kVxlanHasId = 0x08;  // the flag that RFC 7348 has, and no other
constexpr uint32_t kGeneveHeaderBytes = 8;
constexpr uint32_t kGreHeaderBytes = 4;
constexpr uint8_t kGreChecksum = 0x80;
constexpr uint8_t kGreKey = 0x20;
constexpr uint8_t kGreSequence = 0x10;

Packet parse_ethernet(std::span<const uint8_t> start, size_t at) { return parse_packet(start, at).value_or(Packet{}); }

bool is_carried(uint16_t type) {
  return type == kEtherTypeBridging || type == kEtherTypeIpv4 || type == kEtherTypeIpv6;
}

Packet parse_carried(std::span<const uint8_t> start, size_t at, uint16_t type) {
  return type == kEtherTypeBridging ? parse_ethernet(start, at) : parse_l3(start, at, type);
}

std::optional<Packet> parse_udp(std::span<const uint8_t> start, size_t at) {
  if (start.size() - at < kVxlanHeaderBytes) return std::nullopt;
  const uint8_t* const header = start.data() + at;
  const bool reserved_clear = header[7] == 0;
  if (header[0] == kVxlanHasId && header[1] == 0 && load_be16(header + 2) == 0 && reserved_clear) {
    return parse_ethernet(start, at + kVxlanHeaderBytes);
  }
  const uint32_t options = (header[0] & 0x3fU) * 4;
  const bool version_0 = header[0] >> 6 == 0;
  const uint16_t type = load_be16(header + 2);
  if (version_0 && reserved_clear && is_carried(type)) {
    return parse_carried(start, at + kGeneveHeaderBytes + options, type);
  }
  return std::nullopt;
}

std::optional<Packet> parse_gre(std::span<const uint8_t> start, size_t at) {
  if (start.size() - at < kGreHeaderBytes) return std::nullopt;
  const uint8_t flags = start[at];
  const uint16_t type = load_be16(&start[at + 2]);
  // Routing (RFC 1701) and versions that are not GRE but PPTP are not looked into.
  if ((flags & ~(kGreChecksum | kGreKey | kGreSequence)) != 0 || start[at + 1] != 0 || !is_carried(type)) {
    return std::nullopt;
  }
  size_t bytes = kGreHeaderBytes;
  for (const uint8_t field : {kGreChecksum, kGreKey, kGreSequence}) bytes += (flags & field) != 0 ? 4 : 0;
  return parse_carried(start, at + bytes, type);
}

}  // namespace

std::optional<Packet> parse_inner(std::span<const uint8_t> start, const Packet& outer) {
  if (outer.ip_version == 0 || outer.fragment) return std::nullopt;
  switch (outer.protocol) {
    case kProtocolUdp:
      if (outer.l4_header_bytes == 0) return std::nullopt;
      return parse_udp(start, size_t{outer.l4} + outer.l4_header_bytes);
    case kProtocolGre:
      return parse_gre(start, outer.l4);
    case kProtocolIpv4:
      return parse_l3(start, outer.l4, kEtherTypeIpv4);
    case kProtocolIpv6:
      return parse_l3(start, outer.l4, kEtherTypeIpv6);
    default:
      return std::nullopt;
  }
}

}  // namespace sw
