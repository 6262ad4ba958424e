// SPDX-License-Identifier: Apache-2.0
// What driver queues of both ring formats share: offload rules and the choice of the format.
#include "virtio/driver_ring.h"

#include "virtio/driver_queues.h"

namespace sw {

OffloadCaps driver_accepted_offloads(uint64_t features) {
  OffloadCaps caps;
  caps.checksum = has_feature(features, VIRTIO_NET_F_GUEST_CSUM);
  caps.tso4 = has_feature(features, VIRTIO_NET_F_GUEST_TSO4);
  caps.tso6 = has_feature(features, VIRTIO_NET_F_GUEST_TSO6);
  caps.ecn = has_feature(features, VIRTIO_NET_F_GUEST_ECN);
  caps.uso = has_feature(features, VIRTIO_NET_F_GUEST_USO4) && has_feature(features, VIRTIO_NET_F_GUEST_USO6);
  return caps;
}

OffloadCaps driver_offered_offloads(uint64_t features) {
  const bool all = has_feature(features, VIRTIO_NET_F_GSO);  // legacy: every HOST_TSO at once
  OffloadCaps caps;
  caps.checksum = has_feature(features, VIRTIO_NET_F_CSUM);
  caps.tso4 = all || has_feature(features, VIRTIO_NET_F_HOST_TSO4);
  caps.tso6 = all || has_feature(features, VIRTIO_NET_F_HOST_TSO6);
  caps.ecn = all || has_feature(features, VIRTIO_NET_F_HOST_ECN);
  caps.uso = has_feature(features, VIRTIO_NET_F_HOST_USO);
  return caps;
}

bool driver_accepts_offload(const VnetHeader& header, const OffloadCaps& accepted, uint32_t len) {
  const bool needs_checksum = (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0;
  if (needs_checksum) {
    if (!accepted.checksum) return false;
    if (uint32_t{header.csum_start} + header.csum_offset + 2 > len) return false;
  }
  if (header.gso_type == VIRTIO_NET_HDR_GSO_NONE) return true;
  if (header.gso_size == 0 || !needs_checksum) return false;
  if ((header.gso_type & VIRTIO_NET_HDR_GSO_ECN) != 0 && !accepted.ecn) return false;
  switch (header.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
    case VIRTIO_NET_HDR_GSO_TCPV4:
      return accepted.tso4;
    case VIRTIO_NET_HDR_GSO_TCPV6:
      return accepted.tso6;
    case VIRTIO_NET_HDR_GSO_UDP_L4:
      return accepted.uso && header.gso_type == VIRTIO_NET_HDR_GSO_UDP_L4;
    default:
      return false;
  }
}

std::unique_ptr<DriverRx> make_driver_rx(const DriverRingConfig& config, QueueCounters& counters) {
  return has_feature(config.features, VIRTIO_F_RING_PACKED) ? make_packed_driver_rx(config, counters)
                                                            : make_split_driver_rx(config, counters);
}

std::unique_ptr<DriverTx> make_driver_tx(const DriverRingConfig& config, QueueCounters& counters) {
  return has_feature(config.features, VIRTIO_F_RING_PACKED) ? make_packed_driver_tx(config, counters)
                                                            : make_split_driver_tx(config, counters);
}

}  // namespace sw
