// SPDX-License-Identifier: Apache-2.0
// Chooses the instance of the ring templates for a configuration. One .cc file per ring kind and direction includes it.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

#include "virtio/device_rx.h"
#include "virtio/device_tx.h"

namespace sw {

// Calls `make` with a std::bool_constant of the value.
template <class Make>
auto with_bool(bool value, Make make) {
  return value ? make(std::true_type{}) : make(std::false_type{});
}

template <class Ring, class... RingArgs>
std::unique_ptr<DeviceRx> make_rx(const DeviceRingConfig& config, QueueCounters& counters, RingArgs... args) {
  return with_bool(any_offload(driver_offloads(config.features)), [&](auto offload) -> std::unique_ptr<DeviceRx> {
    return std::make_unique<DeviceRxImpl<Ring, decltype(offload)::value>>(config, counters, args...);
  });
}

template <class Ring, class... RingArgs>
std::unique_ptr<DeviceTx> make_tx(const DeviceRingConfig& config, QueueCounters& counters, RingArgs... args) {
  return with_bool(has_feature(config.features, VIRTIO_NET_F_MRG_RXBUF), [&](auto mergeable) {
    return with_bool(device_tx_caps(config.features).checksum, [&](auto offload) {
      return with_bool(config.log != nullptr, [&](auto log) -> std::unique_ptr<DeviceTx> {
        return std::make_unique<
            DeviceTxImpl<Ring, decltype(mergeable)::value, decltype(offload)::value, decltype(log)::value>>(
            config, counters, args...);
      });
    });
  });
}

std::unique_ptr<DeviceRx> make_split_rx(const DeviceRingConfig& config, QueueCounters& counters);
std::unique_ptr<DeviceTx> make_split_tx(const DeviceRingConfig& config, QueueCounters& counters);
std::unique_ptr<DeviceRx> make_packed_rx(const DeviceRingConfig& config, QueueCounters& counters);
std::unique_ptr<DeviceTx> make_packed_tx(const DeviceRingConfig& config, QueueCounters& counters);

}  // namespace sw
