// SPDX-License-Identifier: Apache-2.0
// Where the headers of a frame are: VLAN tags, IPv4 with options or IPv6 with extension headers, TCP or UDP. For
// offload work and explanations; forwarding itself needs nothing above Ethernet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace sw {

inline constexpr uint8_t kProtocolTcp = 6;
inline constexpr uint8_t kProtocolUdp = 17;

inline constexpr uint32_t kIpv6HeaderBytes = 40;  // without extension headers
inline constexpr uint32_t kTcpHeaderBytes = 20;   // without options
inline constexpr uint32_t kUdpHeaderBytes = 8;
inline constexpr uint32_t kTcpChecksumOffset = 16;
inline constexpr uint32_t kUdpChecksumOffset = 6;

struct Packet {
  uint16_t ether_type = 0;       // behind the tags
  uint16_t l3 = 0;               // offset of the network header
  uint8_t ip_version = 0;        // 4 or 6; 0: not IP, or an IP header that contradicts itself or is cut off
  uint8_t protocol = 0;          // IP only: the first header that is not a walked extension header
  bool fragment = false;         // a part of a packet: nothing behind the IP header can be trusted to be a header
  uint32_t l3_bytes = 0;         // IP only: length of the packet from l3 as the header says; 0: it does not say
  uint16_t l4 = 0;               // IP only: offset of what `protocol` names
  uint16_t l4_header_bytes = 0;  // TCP with options, or UDP; 0: neither, cut off, or a fragment
};

// `start` is the frame or its first bytes; `ethernet`: where in it the Ethernet header begins, all offsets count from
// `start`. nullopt: not even an Ethernet header, or a cut-off tag. Reads inside `start` only; offsets returned are inside
// it too (l4 may equal its size when l4_header_bytes is 0).
std::optional<Packet> parse_packet(std::span<const uint8_t> start, size_t ethernet = 0);
// The same for a packet without an Ethernet header that begins at `l3`.
Packet parse_l3(std::span<const uint8_t> start, size_t l3, uint16_t ether_type);

}  // namespace sw
