// SPDX-License-Identifier: Apache-2.0
// The choice of the ring format.
#include "virtio/driver_ring.h"

#include "virtio/driver_queues.h"

namespace sw {

std::unique_ptr<DriverRx> make_driver_rx(const DriverRingConfig& config, QueueCounters& counters) {
  return has_feature(config.features, VIRTIO_F_RING_PACKED) ? make_packed_driver_rx(config, counters)
                                                            : make_split_driver_rx(config, counters);
}

std::unique_ptr<DriverTx> make_driver_tx(const DriverRingConfig& config, QueueCounters& counters) {
  return has_feature(config.features, VIRTIO_F_RING_PACKED) ? make_packed_driver_tx(config, counters)
                                                            : make_split_driver_tx(config, counters);
}

}  // namespace sw
