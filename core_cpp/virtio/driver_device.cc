// SPDX-License-Identifier: Apache-2.0
#include "virtio/driver_device.h"

namespace sw {

Result<std::unique_ptr<DriverDevice>> DriverDevice::make(const DriverMemoryOptions& options,
                                                         std::span<QueueCounters> rx_counters,
                                                         std::span<QueueCounters> tx_counters) {
  auto memory = DriverMemory::make(options);
  if (!memory) return memory.error();
  return make(std::move(*memory), rx_counters, tx_counters);
}

std::unique_ptr<DriverDevice> DriverDevice::make(std::unique_ptr<DriverMemory> memory,
                                                 std::span<QueueCounters> rx_counters,
                                                 std::span<QueueCounters> tx_counters) {
  auto device = std::make_unique<DriverDevice>();
  device->memory_ = std::move(memory);
  const auto& rings = device->memory_->rings();
  for (size_t q = 0; q < rings.size() / 2; ++q) {
    device->rx_.push_back(make_driver_rx(rings[2 * q].config, rx_counters[q]));
    device->tx_.push_back(make_driver_tx(rings[2 * q + 1].config, tx_counters[q]));
  }
  return device;
}

void DriverDevice::kick_all() {
  for (const auto& queue : rx_) queue->kick_now();
  for (const auto& queue : tx_) queue->kick_now();
}

std::string DriverDevice::broken() const {
  for (size_t q = 0; q < rx_.size(); ++q) {
    if (std::string why = rx_[q]->broken(); !why.empty()) return "receiveq " + std::to_string(q) + ": " + why;
    if (std::string why = tx_[q]->broken(); !why.empty()) return "transmitq " + std::to_string(q) + ": " + why;
  }
  return {};
}

}  // namespace sw
