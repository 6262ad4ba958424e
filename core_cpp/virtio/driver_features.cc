// SPDX-License-Identifier: Apache-2.0
#include "virtio/driver_features.h"

#include "virtio/spec.h"

namespace sw {

uint64_t usable_driver_features(const DriverFeatureOptions& options) {
  uint64_t features = feature_mask(VIRTIO_F_VERSION_1, VIRTIO_F_EVENT_IDX, VIRTIO_F_ANY_LAYOUT);
  if (options.packed) features |= feature_mask(VIRTIO_F_RING_PACKED);
  if (options.in_order) features |= feature_mask(VIRTIO_F_IN_ORDER);
  if (options.mergeable) features |= feature_mask(VIRTIO_NET_F_MRG_RXBUF);
  if (options.offloads) {
    features |= feature_mask(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_ECN,
                             VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_CSUM);
    // Without mergeable buffers every receive buffer would have to hold 64 KB.
    if (options.mergeable) {
      features |= feature_mask(VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_ECN,
                               VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6);
    }
  }
  return features;
}

uint64_t drop_dependent_features(uint64_t features) {
  const auto needs = [&features](uint64_t dependents, uint64_t any_of) {
    if ((features & any_of) == 0) features &= ~dependents;
  };
  const auto bit = [](auto... bits) { return feature_mask(bits...); };
  needs(bit(VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4,
            VIRTIO_NET_F_GUEST_USO6),
        bit(VIRTIO_NET_F_GUEST_CSUM));
  needs(bit(VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO),
        bit(VIRTIO_NET_F_CSUM));
  needs(bit(VIRTIO_NET_F_GUEST_ECN), bit(VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6));
  needs(bit(VIRTIO_NET_F_HOST_ECN), bit(VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6));
  needs(bit(VIRTIO_F_RING_PACKED, VIRTIO_F_IN_ORDER), bit(VIRTIO_F_VERSION_1));
  return features;
}

}  // namespace sw
