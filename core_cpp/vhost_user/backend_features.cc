// SPDX-License-Identifier: Apache-2.0
// Back-end: features, status, queue count, MTU, RARP.
#include <algorithm>

#include "net/ethernet.h"
#include "vhost_user/backend.h"
#include "vhost_user/backend_detail.h"
#include "vhost_user/features.h"
#include "virtio/spec.h"

namespace sw {

namespace {

constexpr uint64_t kLogAllMask = feature_mask(VHOST_F_LOG_ALL);
constexpr uint32_t kMinMtu = 68;  // RFC 791: what every IPv4 link must carry
constexpr uint32_t kMaxMtu = 65535;

// vhost-user SEND_RARP: a broadcast that moves the MAC tables of the network to where the guest is now (RFC 903,
// "request reverse", as peers send it).
std::array<uint8_t, 60> make_rarp(const std::array<uint8_t, kMacBytes>& mac) {
  std::array<uint8_t, 60> frame{};
  std::fill_n(frame.begin(), kMacBytes, uint8_t{0xff});
  std::copy(mac.begin(), mac.end(), frame.begin() + 6);
  store_be16(&frame[12], kEtherTypeRarp);
  store_be16(&frame[14], 1);               // Ethernet
  store_be16(&frame[16], kEtherTypeIpv4);  // protocol type
  frame[18] = kMacBytes;
  frame[19] = 4;
  store_be16(&frame[20], 3);  // request reverse
  std::copy(mac.begin(), mac.end(), frame.begin() + 22);
  std::copy(mac.begin(), mac.end(), frame.begin() + 32);
  return frame;
}

}  // namespace

Result<void> Backend::get_features(VhostMessage&, VhostMessage& reply) {
  reply.set<uint64_t>(config_.features);
  return {};
}

Result<void> Backend::set_features(VhostMessage& request, VhostMessage&) {
  const auto wanted = request.as<uint64_t>();
  if ((wanted & ~config_.features) != 0) {
    return Error{0, "features that were not offered: " + feature_names(wanted & ~config_.features)};
  }
  if (features_ && wanted == *features_) return {};
  // Front-ends repeat SET_FEATURES per queue pair and toggle LOG_ALL for a migration; anything else would change the
  // meaning of rings that are in use.
  if (features_ && any_live() && ((wanted ^ *features_) & ~kLogAllMask) != 0) {
    return Error{0, "features changed while rings run: " + feature_names((wanted ^ *features_) & ~kLogAllMask)};
  }
  const bool logged = logging();
  reconfigure(wanted, memory_, log_);
  if (logging() != logged) {
    host_.event("dirty_logging",
                logged ? "off: the migration is over" : "on: the guest begins to move to another host");
  }
  return {};
}

Result<void> Backend::get_protocol_features(VhostMessage&, VhostMessage& reply) {
  reply.set<uint64_t>(config_.protocol_features);
  return {};
}

Result<void> Backend::set_protocol_features(VhostMessage& request, VhostMessage&) {
  const auto wanted = request.as<uint64_t>();
  if ((wanted & ~config_.protocol_features) != 0) {
    return Error{
        0, "protocol features that were not offered: " + protocol_feature_names(wanted & ~config_.protocol_features)};
  }
  protocol_features_ = wanted;
  return {};
}

Result<void> Backend::get_queue_num(VhostMessage&, VhostMessage& reply) {
  // QEMU compares this with queue pairs, Cloud Hypervisor with rings: the number of rings passes both. Ring numbers
  // beyond what is served are refused when they are named.
  reply.set<uint64_t>(std::min<uint64_t>(kMaxVrings / 2, 2 * config_.rx_counters.size()));
  return {};
}

Result<void> Backend::set_owner(VhostMessage&, VhostMessage&) { return {}; }

Result<void> Backend::reset_owner(VhostMessage&, VhostMessage&) {
  stop_all();
  return {};
}

Result<void> Backend::set_status(VhostMessage& request, VhostMessage&) {
  const auto status = request.as<uint64_t>();
  if (status > 0xff) return Error{0, "a device status of more than 8 bits"};
  if (status == 0) stop_all();  // virtio 1.3 2.4: writing 0 resets the device
  device_status_ = status;
  return {};
}

Result<void> Backend::get_status(VhostMessage&, VhostMessage& reply) {
  reply.set<uint64_t>(device_status_);
  return {};
}

Result<void> Backend::net_set_mtu(VhostMessage& request, VhostMessage&) {
  const auto mtu = request.as<uint64_t>();
  if (mtu < kMinMtu || mtu > kMaxMtu)
    return Error{0, "an MTU of " + std::to_string(mtu) + " (68 to 65535 are possible)"};
  mtu_ = static_cast<uint32_t>(mtu);
  return {};
}

Result<void> Backend::send_rarp(VhostMessage& request, VhostMessage&) {
  std::array<uint8_t, kMacBytes> mac{};  // the first six bytes of the payload, in wire order
  std::transform(request.payload.begin(), request.payload.begin() + kMacBytes, mac.begin(),
                 [](std::byte byte) { return static_cast<uint8_t>(byte); });
  const bool zero = std::all_of(mac.begin(), mac.end(), [](uint8_t byte) { return byte == 0; });
  if (zero || (mac[0] & 1) != 0) return Error{0, "an address that no station can have"};
  rarp_ = make_rarp(mac);
  if (any_live()) {
    const Pause pause(host_);
    deliver_rarp();
  }
  return {};
}

}  // namespace sw
