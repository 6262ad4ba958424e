// SPDX-License-Identifier: Apache-2.0
#include "virtio/device_make.h"
#include "virtio/device_split.h"

namespace sw {

std::unique_ptr<DeviceRx> make_split_rx(const DeviceRingConfig& config, QueueCounters& counters) {
  return make_rx<SplitRing>(config, counters);
}

}  // namespace sw
