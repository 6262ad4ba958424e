// SPDX-License-Identifier: Apache-2.0
// The configuration space of a virtio-net device (virtio 1.3 5.1.4), as far as we read or write it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sw {

inline constexpr uint32_t kVirtioIdNet = 1;            // virtio 1.3 5
inline constexpr uint16_t kNetStatusLinkUp = 1;        // 5.1.4.1 VIRTIO_NET_S_LINK_UP
inline constexpr uint32_t kNetConfigBytes = 12;        // up to and with the MTU
inline constexpr uint32_t kNetConfigStatusOffset = 6;  // of `status`
inline constexpr uint32_t kNetConfigMtuOffset = 10;    // of `mtu`

struct NetConfigSpace {
  uint8_t mac[6];
  uint16_t status;
  uint16_t max_virtqueue_pairs;
  uint16_t mtu;
};
static_assert(sizeof(NetConfigSpace) == kNetConfigBytes && offsetof(NetConfigSpace, status) == kNetConfigStatusOffset &&
              offsetof(NetConfigSpace, mtu) == kNetConfigMtuOffset);

// virtio 1.3 2.1: device status.
inline constexpr uint8_t kStatusAcknowledge = 1;
inline constexpr uint8_t kStatusDriver = 2;
inline constexpr uint8_t kStatusDriverOk = 4;
inline constexpr uint8_t kStatusFeaturesOk = 8;
inline constexpr uint8_t kStatusNeedsReset = 64;
inline constexpr uint8_t kStatusFailed = 128;

}  // namespace sw
