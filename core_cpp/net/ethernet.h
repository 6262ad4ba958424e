// SPDX-License-Identifier: Apache-2.0
// Ethernet wire format: addresses, types, the 802.1Q tag. No I/O.
#pragma once

#include <cstdint>

#include "base/bytes.h"

namespace sw {

inline constexpr uint32_t kEthHeaderBytes = 14;
inline constexpr uint32_t kVlanTagBytes = 4;
inline constexpr uint32_t kMacBytes = 6;

inline constexpr uint16_t kEtherTypeIpv4 = 0x0800;
inline constexpr uint16_t kEtherTypeArp = 0x0806;
inline constexpr uint16_t kEtherTypeRarp = 0x8035;
inline constexpr uint16_t kEtherTypeVlan = 0x8100;  // 802.1Q customer tag: the only tag a bridge here acts on
inline constexpr uint16_t kEtherTypeIpv6 = 0x86dd;
inline constexpr uint16_t kEtherTypeServiceTag = 0x88a8;  // 802.1ad service tag: payload to a bridge here

inline constexpr uint16_t kVlanIdMask = 0x0fff;

// 48-bit address in the low bits, first byte on the wire in bits 47..40: 52:54:00:00:00:01 is 0x525400000001.
using Mac = uint64_t;

inline constexpr Mac kMacMask = 0xffff'ffff'ffffULL;
inline constexpr Mac kMacBroadcast = kMacMask;

inline Mac load_mac(const void* from) {
  return __builtin_bswap64(load_unaligned<uint64_t>(from)) >> 16;
}  // reads 8 bytes
constexpr bool is_multicast(Mac mac) { return (mac >> 40 & 1) != 0; }  // broadcast included

}  // namespace sw
