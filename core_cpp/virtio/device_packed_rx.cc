// SPDX-License-Identifier: Apache-2.0
#include "virtio/device_make.h"
#include "virtio/device_packed.h"

namespace sw {

std::unique_ptr<DeviceRx> make_packed_rx(const DeviceRingConfig& config, QueueCounters& counters) {
  return make_rx<PackedRing>(config, counters, true);
}

}  // namespace sw
