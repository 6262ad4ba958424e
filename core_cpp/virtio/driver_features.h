// SPDX-License-Identifier: Apache-2.0
// What our virtio-net driver can use of what a device offers, whatever the transport.
#pragma once

#include <cstdint>

namespace sw {

struct DriverFeatureOptions {
  bool packed = true;
  bool in_order = true;
  bool mergeable = true;
  bool offloads = true;  // checksum and segmentation
};

// All features that the driver rings can use. Those of the transport and of the configuration space are not among them.
uint64_t usable_driver_features(const DriverFeatureOptions& options);

// virtio 1.3 5.1.3.1: `features` without those that need another one that is missing.
uint64_t drop_dependent_features(uint64_t features);

}  // namespace sw
