// SPDX-License-Identifier: Apache-2.0
// The packet inside a tunnel's packet: VXLAN (RFC 7348, with group policy or the generic protocol extension), GENEVE
// (RFC 8926), GRE (RFC 2784, 2890) and IP in IP (RFC 2003, 4213). For offload work; forwarding looks at the outer
// Ethernet header alone.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "net/packet.h"

namespace sw {

inline constexpr uint8_t kProtocolGre = 47;
inline constexpr uint8_t kGreChecksum = 0x80;  // flags in the first byte of a GRE header
inline constexpr uint8_t kGreSequence = 0x10;
inline constexpr uint32_t kGreChecksumOffset = 4;

// `outer`: what parse_packet or this found in `start`. nullopt: not a tunnel's packet. ip_version 0: no IP packet inside,
// or `start` ends before that can be told. VXLAN and GENEVE are told by their headers alone, as their UDP ports are
// whatever people configure: who acts on the answer must check more than that.
std::optional<Packet> parse_inner(std::span<const uint8_t> start, const Packet& outer);

}  // namespace sw
