// SPDX-License-Identifier: Apache-2.0
// The virtio-net header by value (virtio 1.3 5.1.6): the offload state that travels with a frame. The same struct is
// what tap and AF_PACKET speak, so it lives below the ring code.
#pragma once

#include <cstdint>

namespace sw {

struct VnetHeader {  // wire layout, little-endian, first 10 bytes of struct virtio_net_hdr
  uint8_t flags = 0;
  uint8_t gso_type = 0;
  uint16_t hdr_len = 0;      // a hint of the sender: never trusted
  uint16_t gso_size = 0;     // payload bytes of one segment
  uint16_t csum_start = 0;   // from the first byte of the frame
  uint16_t csum_offset = 0;  // from csum_start
};
static_assert(sizeof(VnetHeader) == 10);

inline constexpr uint8_t VIRTIO_NET_HDR_F_NEEDS_CSUM = 1;
inline constexpr uint8_t VIRTIO_NET_HDR_F_DATA_VALID = 2;
inline constexpr uint8_t VIRTIO_NET_HDR_GSO_NONE = 0;
inline constexpr uint8_t VIRTIO_NET_HDR_GSO_TCPV4 = 1;
inline constexpr uint8_t VIRTIO_NET_HDR_GSO_UDP = 3;  // UFO: never offered
inline constexpr uint8_t VIRTIO_NET_HDR_GSO_TCPV6 = 4;
inline constexpr uint8_t VIRTIO_NET_HDR_GSO_UDP_L4 = 5;  // USO
inline constexpr uint8_t VIRTIO_NET_HDR_GSO_ECN = 0x80;  // modifies TCPV4/TCPV6

}  // namespace sw
