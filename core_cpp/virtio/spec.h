// SPDX-License-Identifier: Apache-2.0
// Constants and wire layouts of virtio 1.3 (rings: 2.7 split, 2.8 packed; net: 5.1) and of vhost-user's feature bits,
// in the spec's own spelling. "virtio 1.3" in a comment anywhere in the core means this version.
//
// Feature constants are bit numbers, as in the spec: test with has_feature(), combine with feature_mask().
// Include this file before any <linux/v*.h>: those define some of the same names as macros.
#pragma once

#include <cstddef>
#include <cstdint>

#include "net/vnet_header.h"

namespace sw {

// --- Feature bits
// -----------------------------------------------------------------------------------------------------

// virtio-net (5.1.3)
inline constexpr uint32_t VIRTIO_NET_F_CSUM = 0;
inline constexpr uint32_t VIRTIO_NET_F_GUEST_CSUM = 1;
inline constexpr uint32_t VIRTIO_NET_F_CTRL_GUEST_OFFLOADS = 2;
inline constexpr uint32_t VIRTIO_NET_F_MTU = 3;
inline constexpr uint32_t VIRTIO_NET_F_MAC = 5;
inline constexpr uint32_t VIRTIO_NET_F_GSO = 6;  // legacy: HOST_TSO4 | HOST_TSO6 | HOST_ECN at once
inline constexpr uint32_t VIRTIO_NET_F_GUEST_TSO4 = 7;
inline constexpr uint32_t VIRTIO_NET_F_GUEST_TSO6 = 8;
inline constexpr uint32_t VIRTIO_NET_F_GUEST_ECN = 9;
inline constexpr uint32_t VIRTIO_NET_F_GUEST_UFO = 10;
inline constexpr uint32_t VIRTIO_NET_F_HOST_TSO4 = 11;
inline constexpr uint32_t VIRTIO_NET_F_HOST_TSO6 = 12;
inline constexpr uint32_t VIRTIO_NET_F_HOST_ECN = 13;
inline constexpr uint32_t VIRTIO_NET_F_HOST_UFO = 14;
inline constexpr uint32_t VIRTIO_NET_F_MRG_RXBUF = 15;
inline constexpr uint32_t VIRTIO_NET_F_STATUS = 16;
inline constexpr uint32_t VIRTIO_NET_F_CTRL_VQ = 17;
inline constexpr uint32_t VIRTIO_NET_F_CTRL_RX = 18;
inline constexpr uint32_t VIRTIO_NET_F_CTRL_VLAN = 19;
inline constexpr uint32_t VIRTIO_NET_F_CTRL_RX_EXTRA = 20;
inline constexpr uint32_t VIRTIO_NET_F_GUEST_ANNOUNCE = 21;
inline constexpr uint32_t VIRTIO_NET_F_MQ = 22;
inline constexpr uint32_t VIRTIO_NET_F_CTRL_MAC_ADDR = 23;
inline constexpr uint32_t VIRTIO_NET_F_GUEST_USO4 = 54;
inline constexpr uint32_t VIRTIO_NET_F_GUEST_USO6 = 55;
inline constexpr uint32_t VIRTIO_NET_F_HOST_USO = 56;
inline constexpr uint32_t VIRTIO_NET_F_HASH_REPORT = 57;
inline constexpr uint32_t VIRTIO_NET_F_GUEST_HDRLEN = 59;
inline constexpr uint32_t VIRTIO_NET_F_RSS = 60;
inline constexpr uint32_t VIRTIO_NET_F_RSC_EXT = 61;
inline constexpr uint32_t VIRTIO_NET_F_STANDBY = 62;
inline constexpr uint32_t VIRTIO_NET_F_SPEED_DUPLEX = 63;

// Every device (6); below 32 also the legacy ones
inline constexpr uint32_t VIRTIO_F_NOTIFY_ON_EMPTY = 24;
inline constexpr uint32_t VIRTIO_F_ANY_LAYOUT = 27;
inline constexpr uint32_t VIRTIO_F_INDIRECT_DESC = 28;
inline constexpr uint32_t VIRTIO_F_EVENT_IDX = 29;
inline constexpr uint32_t VIRTIO_F_VERSION_1 = 32;
inline constexpr uint32_t VIRTIO_F_ACCESS_PLATFORM = 33;
inline constexpr uint32_t VIRTIO_F_RING_PACKED = 34;
inline constexpr uint32_t VIRTIO_F_IN_ORDER = 35;
inline constexpr uint32_t VIRTIO_F_ORDER_PLATFORM = 36;
inline constexpr uint32_t VIRTIO_F_SR_IOV = 37;
inline constexpr uint32_t VIRTIO_F_NOTIFICATION_DATA = 38;
inline constexpr uint32_t VIRTIO_F_NOTIF_CONFIG_DATA = 39;
inline constexpr uint32_t VIRTIO_F_RING_RESET = 40;

// vhost and vhost-user
inline constexpr uint32_t VHOST_F_LOG_ALL = 26;
inline constexpr uint32_t VHOST_USER_F_PROTOCOL_FEATURES = 30;

template <class... Bits>
constexpr uint64_t feature_mask(Bits... bits) {
  return ((uint64_t{1} << bits) | ... | uint64_t{0});
}
constexpr bool has_feature(uint64_t features, uint32_t bit) { return (features >> bit & 1) != 0; }

// --- Split ring (2.7)
// -------------------------------------------------------------------------------------------------

inline constexpr uint16_t VRING_DESC_F_NEXT = 1;
inline constexpr uint16_t VRING_DESC_F_WRITE = 2;  // device writes
inline constexpr uint16_t VRING_DESC_F_INDIRECT = 4;

inline constexpr uint16_t VRING_USED_F_NO_NOTIFY = 1;      // device: do not kick me
inline constexpr uint16_t VRING_AVAIL_F_NO_INTERRUPT = 1;  // driver: do not call me

inline constexpr uint32_t kMaxRingSize = 32768;  // 2.7, 2.8: queue size at most 2^15

struct VringDesc {
  uint64_t addr;
  uint32_t len;
  uint16_t flags;
  uint16_t next;
};
static_assert(sizeof(VringDesc) == 16);
inline constexpr uint64_t kVringDescAlign = 16;

// Driver area. After ring[size] follows used_event (with EVENT_IDX).
struct VringAvail {
  uint16_t flags;
  uint16_t idx;
  uint16_t ring[];  // NOLINT: the wire layout
};
static_assert(sizeof(VringAvail) == 4 && offsetof(VringAvail, ring) == 4);
inline constexpr uint64_t kVringAvailAlign = 2;

struct VringUsedElem {
  uint32_t id;
  uint32_t len;
};
static_assert(sizeof(VringUsedElem) == 8);

// Device area. After ring[size] follows avail_event (with EVENT_IDX).
struct VringUsed {
  uint16_t flags;
  uint16_t idx;
  VringUsedElem ring[];  // NOLINT: the wire layout
};
static_assert(sizeof(VringUsed) == 4 && offsetof(VringUsed, ring) == 4);
inline constexpr uint64_t kVringUsedAlign = 4;

inline uint16_t& vring_used_event(VringAvail* avail, uint32_t size) { return avail->ring[size]; }
inline uint16_t& vring_avail_event(VringUsed* used, uint32_t size) {
  return *reinterpret_cast<uint16_t*>(&used->ring[size]);
}

// 2.7.7.2, 2.8.10: did the index move past `event` on its way from `old_idx` to `new_idx`? Modulo 2^16.
constexpr bool vring_need_event(uint16_t event, uint16_t new_idx, uint16_t old_idx) {
  return static_cast<uint16_t>(new_idx - event - 1) < static_cast<uint16_t>(new_idx - old_idx);
}

// --- Packed ring (2.8)
// ------------------------------------------------------------------------------------------------

inline constexpr uint32_t VRING_PACKED_DESC_F_AVAIL = 7;  // bit numbers in flags
inline constexpr uint32_t VRING_PACKED_DESC_F_USED = 15;
inline constexpr uint16_t kPackedAvailBit = 1U << VRING_PACKED_DESC_F_AVAIL;
inline constexpr uint16_t kPackedUsedBit = 1U << VRING_PACKED_DESC_F_USED;

struct VringPackedDesc {
  uint64_t addr;
  uint32_t len;
  uint16_t id;
  uint16_t flags;
};
static_assert(sizeof(VringPackedDesc) == 16);

// Driver and device event suppression structures.
struct VringPackedDescEvent {
  uint16_t off_wrap;  // descriptor offset | wrap << VRING_PACKED_EVENT_F_WRAP_CTR
  uint16_t flags;     // VRING_PACKED_EVENT_FLAG_*
};
static_assert(sizeof(VringPackedDescEvent) == 4);
inline constexpr uint64_t kVringPackedEventAlign = 4;

inline constexpr uint16_t VRING_PACKED_EVENT_FLAG_ENABLE = 0;
inline constexpr uint16_t VRING_PACKED_EVENT_FLAG_DISABLE = 1;
inline constexpr uint16_t VRING_PACKED_EVENT_FLAG_DESC = 2;  // with EVENT_IDX only
inline constexpr uint32_t VRING_PACKED_EVENT_F_WRAP_CTR = 15;

// Flags that make a descriptor available / used in a lap whose wrap counter is `wrap` (2.8.1).
constexpr uint16_t packed_avail_flags(bool wrap) { return wrap ? kPackedAvailBit : kPackedUsedBit; }
constexpr uint16_t packed_used_flags(bool wrap) {
  return wrap ? static_cast<uint16_t>(kPackedAvailBit | kPackedUsedBit) : uint16_t{0};
}
constexpr bool packed_is_avail(uint16_t flags, bool wrap) {
  return (flags & (kPackedAvailBit | kPackedUsedBit)) == packed_avail_flags(wrap);
}
constexpr bool packed_is_used(uint16_t flags, bool wrap) {
  return (flags & (kPackedAvailBit | kPackedUsedBit)) == packed_used_flags(wrap);
}

// --- virtio-net header (5.1.6)
// ----------------------------------------------------------------------------------------

// struct virtio_net_hdr with num_buffers: what every frame is preceded by, except with a legacy driver without
// mergeable buffers, where num_buffers is missing.
struct VnetHeaderMrg {
  VnetHeader base;
  uint16_t num_buffers;
};
static_assert(sizeof(VnetHeaderMrg) == 12);

inline constexpr uint32_t kLegacyNetHeaderBytes = 10;
inline constexpr uint32_t kNetHeaderBytes = 12;

// HASH_REPORT (20 bytes) is never offered here.
constexpr uint32_t net_header_bytes(uint64_t features) {
  return has_feature(features, VIRTIO_F_VERSION_1) || has_feature(features, VIRTIO_NET_F_MRG_RXBUF)
             ? kNetHeaderBytes
             : kLegacyNetHeaderBytes;
}

// --- virtio-net control queue (5.1.6.5)
// -------------------------------------------------------------------------------

inline constexpr uint8_t VIRTIO_NET_CTRL_RX = 0;  // class; its commands:
inline constexpr uint8_t VIRTIO_NET_CTRL_RX_PROMISC = 0;
inline constexpr uint8_t VIRTIO_NET_CTRL_MQ = 4;
inline constexpr uint8_t VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET = 0;

inline constexpr uint8_t VIRTIO_NET_OK = 0;  // what the device answers
inline constexpr uint8_t VIRTIO_NET_ERR = 1;

}  // namespace sw
