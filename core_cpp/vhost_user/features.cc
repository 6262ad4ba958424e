// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/features.h"

#include <array>
#include <string_view>
#include <utility>

#include "vhost_user/message.h"
#include "virtio/spec.h"

namespace sw {

namespace {

constexpr std::array<std::pair<uint32_t, std::string_view>, 40> kFeatureNames = {{
    {VIRTIO_NET_F_CSUM, "csum"},
    {VIRTIO_NET_F_GUEST_CSUM, "guest_csum"},
    {VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, "ctrl_guest_offloads"},
    {VIRTIO_NET_F_MTU, "mtu"},
    {VIRTIO_NET_F_MAC, "mac"},
    {VIRTIO_NET_F_GUEST_TSO4, "guest_tso4"},
    {VIRTIO_NET_F_GUEST_TSO6, "guest_tso6"},
    {VIRTIO_NET_F_GUEST_ECN, "guest_ecn"},
    {VIRTIO_NET_F_GUEST_UFO, "guest_ufo"},
    {VIRTIO_NET_F_HOST_TSO4, "host_tso4"},
    {VIRTIO_NET_F_HOST_TSO6, "host_tso6"},
    {VIRTIO_NET_F_HOST_ECN, "host_ecn"},
    {VIRTIO_NET_F_HOST_UFO, "host_ufo"},
    {VIRTIO_NET_F_MRG_RXBUF, "mrg_rxbuf"},
    {VIRTIO_NET_F_STATUS, "status"},
    {VIRTIO_NET_F_CTRL_VQ, "ctrl_vq"},
    {VIRTIO_NET_F_CTRL_RX, "ctrl_rx"},
    {VIRTIO_NET_F_CTRL_VLAN, "ctrl_vlan"},
    {VIRTIO_NET_F_CTRL_RX_EXTRA, "ctrl_rx_extra"},
    {VIRTIO_NET_F_GUEST_ANNOUNCE, "guest_announce"},
    {VIRTIO_NET_F_MQ, "mq"},
    {VIRTIO_NET_F_CTRL_MAC_ADDR, "ctrl_mac_addr"},
    {VIRTIO_F_NOTIFY_ON_EMPTY, "notify_on_empty"},
    {VHOST_F_LOG_ALL, "log_all"},
    {VIRTIO_F_ANY_LAYOUT, "any_layout"},
    {VIRTIO_F_INDIRECT_DESC, "indirect_desc"},
    {VIRTIO_F_EVENT_IDX, "event_idx"},
    {VHOST_USER_F_PROTOCOL_FEATURES, "protocol_features"},
    {VIRTIO_F_VERSION_1, "version_1"},
    {VIRTIO_F_ACCESS_PLATFORM, "access_platform"},
    {VIRTIO_F_RING_PACKED, "ring_packed"},
    {VIRTIO_F_IN_ORDER, "in_order"},
    {VIRTIO_F_ORDER_PLATFORM, "order_platform"},
    {VIRTIO_F_NOTIFICATION_DATA, "notification_data"},
    {VIRTIO_F_RING_RESET, "ring_reset"},
    {VIRTIO_NET_F_GUEST_USO4, "guest_uso4"},
    {VIRTIO_NET_F_GUEST_USO6, "guest_uso6"},
    {VIRTIO_NET_F_HOST_USO, "host_uso"},
    {VIRTIO_NET_F_HASH_REPORT, "hash_report"},
    {VIRTIO_NET_F_RSS, "rss"},
}};

std::string feature_name(uint32_t bit) {
  for (const auto& [number, text] : kFeatureNames) {
    if (number == bit) return std::string(text);
  }
  return "bit" + std::to_string(bit);
}

}  // namespace

uint64_t offered_features(const OfferOptions& options) {
  // CTRL_VQ and CTRL_RX are served by the front-end itself, but some front-ends drop MQ unless the back-end offers
  // them.
  uint64_t features =
      feature_mask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_STATUS,
                   VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX, VIRTIO_F_ANY_LAYOUT,
                   VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES);
  if (options.offloads) {
    features |=
        feature_mask(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
                     VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
                     VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6);
  }
  if (options.mergeable) features |= feature_mask(VIRTIO_NET_F_MRG_RXBUF);
  if (options.packed) features |= feature_mask(VIRTIO_F_RING_PACKED);
  if (options.in_order) features |= feature_mask(VIRTIO_F_IN_ORDER);
  if (options.mtu) features |= feature_mask(VIRTIO_NET_F_MTU);
  return features;
}

uint64_t offered_protocol_features() {
  return kProtocolMq | kProtocolLogShmfd | kProtocolRarp | kProtocolReplyAck | kProtocolNetMtu |
         kProtocolConfigureMemSlots | kProtocolStatus;
}

std::string feature_names(uint64_t features) {
  std::string names;
  for (uint32_t bit = 0; bit < 64; ++bit) {
    if (!has_feature(features, bit)) continue;
    if (!names.empty()) names += ',';
    names += feature_name(bit);
  }
  return names;
}

}  // namespace sw
