// SPDX-License-Identifier: Apache-2.0
#include "net/tunnel.h"

#include <array>

#include "net/ethernet.h"

namespace sw {

namespace {

constexpr uint8_t kProtocolIpv4 = 4;
constexpr uint8_t kProtocolIpv6 = 41;
constexpr uint16_t kEtherTypeBridging = 0x6558;  // transparent Ethernet bridging: an Ethernet frame follows

constexpr uint32_t kVxlanHeaderBytes = 8;
constexpr uint8_t kVxlanHasId = 0x08;
constexpr uint8_t kVxlanHasProtocol = 0x04;  // generic protocol extension: the fourth byte says what follows
constexpr uint8_t kVxlanHasPolicy = 0x80;    // group policy: two flags in the second byte, a number in the next two
constexpr uint8_t kVxlanPolicyFlags = 0x48;
constexpr uint32_t kGeneveHeaderBytes = 8;
constexpr uint32_t kGreHeaderBytes = 4;
constexpr uint8_t kGreKey = 0x20;

Packet parse_ethernet(std::span<const uint8_t> start, size_t at) { return parse_packet(start, at).value_or(Packet{}); }

bool is_carried(uint16_t type) {
  return type == kEtherTypeBridging || type == kEtherTypeIpv4 || type == kEtherTypeIpv6;
}

Packet parse_carried(std::span<const uint8_t> start, size_t at, uint16_t type) {
  return type == kEtherTypeBridging ? parse_ethernet(start, at) : parse_l3(start, at, type);
}

// What follows a VXLAN header, as an EtherType; 0: it is none. Flags that change what lies behind it (remote checksum
// offload, where an unfinished checksum is meant) make it none as well.
uint16_t carried_by_vxlan(const uint8_t* header) {
  const bool others_clear = header[1] == 0 && header[2] == 0;
  switch (header[0]) {
    case kVxlanHasId:
      return others_clear && header[3] == 0 ? kEtherTypeBridging : 0;
    case kVxlanHasId | kVxlanHasPolicy:
      return (header[1] & ~kVxlanPolicyFlags) == 0 ? kEtherTypeBridging : 0;
    case kVxlanHasId | kVxlanHasProtocol: {
      constexpr std::array<uint16_t, 4> kTypes = {0, kEtherTypeIpv4, kEtherTypeIpv6, kEtherTypeBridging};
      return others_clear && header[3] < kTypes.size() ? kTypes.at(header[3]) : uint16_t{0};
    }
    default:
      return 0;
  }
}

std::optional<Packet> parse_udp(std::span<const uint8_t> start, size_t at) {
  if (start.size() - at < kVxlanHeaderBytes) return Packet{};
  const uint8_t* const header = start.data() + at;
  const bool reserved_clear = header[7] == 0;
  if (const uint16_t carried = carried_by_vxlan(header); carried != 0 && reserved_clear) {
    return parse_carried(start, at + kVxlanHeaderBytes, carried);
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
  if (start.size() - at < kGreHeaderBytes) return Packet{};
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
