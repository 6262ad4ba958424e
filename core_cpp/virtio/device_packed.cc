// SPDX-License-Identifier: Apache-2.0
#include "virtio/device_packed.h"

#include "virtio/device_make.h"

namespace sw {

std::unique_ptr<DeviceRx> make_packed_rx(const DeviceRingConfig& config, QueueCounters& counters) {
  return make_rx<PackedRing>(config, counters, true);
}
std::unique_ptr<DeviceTx> make_packed_tx(const DeviceRingConfig& config, QueueCounters& counters) {
  return make_tx<PackedRing>(config, counters, false);
}

}  // namespace sw
