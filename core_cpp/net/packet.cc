// SPDX-License-Identifier: Apache-2.0
#include "net/packet.h"

#include <algorithm>

#include "net/ethernet.h"

namespace sw {

namespace {

constexpr int kMaxTags = 3;
constexpr int kMaxExtensionHeaders = 8;
constexpr uint32_t kIpv4HeaderBytes = 20;

constexpr uint8_t kHopByHop = 0;
constexpr uint8_t kRouting = 43;
constexpr uint8_t kFragment = 44;
constexpr uint8_t kDestinationOptions = 60;

void parse_transport(std::span<const uint8_t> start, Packet& packet) {
  if (packet.fragment) return;
  const size_t room = start.size() - packet.l4;
  if (packet.protocol == kProtocolUdp && room >= kUdpHeaderBytes) packet.l4_header_bytes = kUdpHeaderBytes;
  if (packet.protocol == kProtocolTcp && room >= kTcpHeaderBytes) {
    const uint32_t bytes = static_cast<uint32_t>(start[packet.l4 + 12U] >> 4) * 4;
    if (bytes >= kTcpHeaderBytes && bytes <= room) packet.l4_header_bytes = static_cast<uint16_t>(bytes);
  }
}

void parse_ipv4(std::span<const uint8_t> start, Packet& packet) {
  const uint8_t* const ip = start.data() + packet.l3;
  const size_t room = start.size() - packet.l3;
  if (room < kIpv4HeaderBytes || ip[0] >> 4 != 4) return;
  const uint32_t header = (ip[0] & 0x0fU) * 4;
  const uint16_t total = load_be16(ip + 2);
  if (header < kIpv4HeaderBytes || header > room || (total != 0 && total < header)) return;
  packet.ip_version = 4;
  packet.l3_bytes = total;
  packet.fragment = (load_be16(ip + 6) & 0x3fff) != 0;  // more fragments, or an offset
  packet.protocol = ip[9];
  packet.l4 = static_cast<uint16_t>(packet.l3 + header);
  parse_transport(start, packet);
}

void parse_ipv6(std::span<const uint8_t> start, Packet& packet) {
  const uint8_t* const ip = start.data() + packet.l3;
  if (start.size() - packet.l3 < kIpv6HeaderBytes || ip[0] >> 4 != 6) return;
  const uint16_t payload = load_be16(ip + 4);
  uint8_t next = ip[6];
  size_t at = packet.l3 + kIpv6HeaderBytes;
  for (int i = 0; i < kMaxExtensionHeaders; ++i) {
    if (next == kFragment) {
      packet.fragment = true;
      break;
    }
    if (next != kHopByHop && next != kRouting && next != kDestinationOptions) break;
    if (start.size() - at < 8) return;
    const size_t bytes = (start[at + 1] + 1U) * 8;
    if (start.size() - at < bytes) return;
    // With hops to go the checksum covers an address that is not in the IPv6 header: leave that to the ends.
    if (next == kRouting && start[at + 3] != 0) break;
    next = start[at];
    at += bytes;
  }
  packet.ip_version = 6;
  packet.l3_bytes = payload == 0 ? 0 : payload + kIpv6HeaderBytes;
  packet.protocol = next;
  packet.l4 = static_cast<uint16_t>(at);
  parse_transport(start, packet);
}

// Offsets are 16-bit, and no header begins later.
std::span<const uint8_t> addressable(std::span<const uint8_t> start) {
  return start.first(std::min<size_t>(start.size(), 0xffff));
}

}  // namespace

Packet parse_l3(std::span<const uint8_t> start, size_t l3, uint16_t ether_type) {
  start = addressable(start);
  Packet packet;
  packet.ether_type = ether_type;
  if (l3 > start.size()) return packet;
  packet.l3 = static_cast<uint16_t>(l3);
  if (ether_type == kEtherTypeIpv4) parse_ipv4(start, packet);
  if (ether_type == kEtherTypeIpv6) parse_ipv6(start, packet);
  return packet;
}

std::optional<Packet> parse_packet(std::span<const uint8_t> start, size_t ethernet) {
  start = addressable(start);
  if (ethernet > start.size() || start.size() - ethernet < kEthHeaderBytes) return std::nullopt;
  size_t at = ethernet + 2 * kMacBytes;
  uint16_t ether_type = load_be16(start.data() + at);
  for (int i = 0; i < kMaxTags && (ether_type == kEtherTypeVlan || ether_type == kEtherTypeServiceTag); ++i) {
    at += kVlanTagBytes;
    if (start.size() < at + 2) return std::nullopt;
    ether_type = load_be16(start.data() + at);
  }
  return parse_l3(start, at + 2, ether_type);
}

}  // namespace sw
