// SPDX-License-Identifier: Apache-2.0
// Validation of the virtio-net header that a guest put in front of a frame (virtio 1.3 5.1.6.2). Works on copies only:
// the header and the frame's first bytes as they were loaded.
#pragma once

#include <cstdint>

#include "net/ethernet.h"
#include "net/vnet_header.h"
#include "virtio/spec.h"

namespace sw {

// What the driver may ask of us, from its negotiated HOST_* features.
struct OffloadRules {
  bool checksum = false;
  bool tso4 = false;
  bool tso6 = false;
  bool ecn = false;
  bool uso = false;
};

constexpr OffloadRules driver_offloads(uint64_t features) {
  const bool legacy_gso = has_feature(features, VIRTIO_NET_F_GSO) && !has_feature(features, VIRTIO_F_VERSION_1);
  OffloadRules rules;
  rules.checksum = has_feature(features, VIRTIO_NET_F_CSUM);
  rules.tso4 = has_feature(features, VIRTIO_NET_F_HOST_TSO4) || legacy_gso;
  rules.tso6 = has_feature(features, VIRTIO_NET_F_HOST_TSO6) || legacy_gso;
  rules.ecn = has_feature(features, VIRTIO_NET_F_HOST_ECN) || legacy_gso;
  rules.uso = has_feature(features, VIRTIO_NET_F_HOST_USO);
  return rules;
}
constexpr bool any_offload(const OffloadRules& rules) {
  return rules.checksum || rules.tso4 || rules.tso6 || rules.ecn || rules.uso;
}

// Smallest payload of a segment: TCP's least send MSS (48) with full options. Less only multiplies work.
inline constexpr uint16_t kMinGsoSize = 8;
inline constexpr uint16_t kTcpChecksumOffset = 16;
inline constexpr uint16_t kUdpChecksumOffset = 6;
inline constexpr uint32_t kUdpHeaderBytes = 8;
// csum_start moves when a VLAN tag is pushed and must not wrap then.
inline constexpr uint32_t kMaxChecksumStart = 0xffff - 2 * kVlanTagBytes;

// Check `header` of a frame of `len` bytes whose first `head_len` bytes are `head`, and normalise it: bits nobody asked
// for are cleared and hdr_len is computed from the frame, because the driver's value is only a hint. False: refuse.
inline bool accept_net_header(const OffloadRules& rules, VnetHeader& header, const uint8_t* head, uint32_t head_len,
                              uint32_t len) {
  const bool needs_checksum = (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0;
  if (!needs_checksum) {
    // 5.1.6.2.1: segmentation needs the checksum offload beside it.
    if (header.gso_type != VIRTIO_NET_HDR_GSO_NONE) return false;
    header = {};
    return true;
  }
  if (!rules.checksum || header.csum_start < kEthHeaderBytes || header.csum_start > kMaxChecksumStart) return false;
  if (uint32_t{header.csum_start} + header.csum_offset + 2 > len) return false;
  header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  if (header.gso_type == VIRTIO_NET_HDR_GSO_NONE) {
    header.hdr_len = 0;
    header.gso_size = 0;
    return true;
  }

  const bool ecn = (header.gso_type & VIRTIO_NET_HDR_GSO_ECN) != 0;
  const uint8_t type = header.gso_type & static_cast<uint8_t>(~VIRTIO_NET_HDR_GSO_ECN);
  const bool tcp = (type == VIRTIO_NET_HDR_GSO_TCPV4 && rules.tso4) || (type == VIRTIO_NET_HDR_GSO_TCPV6 && rules.tso6);
  const bool udp = type == VIRTIO_NET_HDR_GSO_UDP_L4 && rules.uso && !ecn;
  if ((!tcp && !udp) || (ecn && !rules.ecn) || header.gso_size < kMinGsoSize) return false;
  if (header.csum_offset != (tcp ? kTcpChecksumOffset : kUdpChecksumOffset)) return false;

  // The transport header must be in the head: it is what segmentation edits. 13: as far as TCP's data offset.
  if (uint32_t{header.csum_start} + 13 > head_len) return false;
  const uint32_t transport = tcp ? uint32_t{head[header.csum_start + 12]} / 16 * 4 : kUdpHeaderBytes;
  const uint32_t headers = header.csum_start + transport;
  if (transport < kUdpHeaderBytes || (tcp && transport < 20) || headers > len) return false;
  header.hdr_len = static_cast<uint16_t>(headers);
  return true;
}

}  // namespace sw
