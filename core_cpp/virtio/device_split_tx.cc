// SPDX-License-Identifier: Apache-2.0
#include "virtio/device_make.h"
#include "virtio/device_split.h"

namespace sw {

std::unique_ptr<DeviceTx> make_split_tx(const DeviceRingConfig& config, QueueCounters& counters) {
  return make_tx<SplitRing>(config, counters);
}

}  // namespace sw
