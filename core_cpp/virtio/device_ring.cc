// SPDX-License-Identifier: Apache-2.0
#include "virtio/device_ring.h"

#include "virtio/device_make.h"
#include "virtio/spec.h"

namespace sw {

RingExtents ring_extents(bool packed, uint16_t size, bool event_idx) {
  if (packed) {
    return {uint64_t{size} * sizeof(VringPackedDesc), sizeof(VringPackedDescEvent), sizeof(VringPackedDescEvent)};
  }
  const uint64_t event = event_idx ? sizeof(uint16_t) : 0;
  return {uint64_t{size} * sizeof(VringDesc), sizeof(VringAvail) + uint64_t{size} * sizeof(uint16_t) + event,
          sizeof(VringUsed) + uint64_t{size} * sizeof(VringUsedElem) + event};
}

std::unique_ptr<DeviceRx> make_device_rx(const DeviceRingConfig& config, QueueCounters& counters) {
  return has_feature(config.features, VIRTIO_F_RING_PACKED) ? make_packed_rx(config, counters)
                                                            : make_split_rx(config, counters);
}
std::unique_ptr<DeviceTx> make_device_tx(const DeviceRingConfig& config, QueueCounters& counters) {
  return has_feature(config.features, VIRTIO_F_RING_PACKED) ? make_packed_tx(config, counters)
                                                            : make_split_tx(config, counters);
}

}  // namespace sw
