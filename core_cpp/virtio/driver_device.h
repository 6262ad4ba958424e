// SPDX-License-Identifier: Apache-2.0
// DriverDevice: all queues of one virtio-net driver, with their memory: what exists between "negotiated" and "lost".
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "virtio/driver_memory.h"
#include "virtio/driver_ring.h"

namespace sw {

class DriverDevice {
 public:
  // Queue q counts in rx_counters[q] and tx_counters[q].
  static Result<std::unique_ptr<DriverDevice>> make(const DriverMemoryOptions& options,
                                                    std::span<QueueCounters> rx_counters,
                                                    std::span<QueueCounters> tx_counters);
  // The same over memory that exists already.
  static std::unique_ptr<DriverDevice> make(std::unique_ptr<DriverMemory> memory, std::span<QueueCounters> rx_counters,
                                            std::span<QueueCounters> tx_counters);

  [[nodiscard]] const DriverMemory& memory() const { return *memory_; }
  [[nodiscard]] const std::vector<std::unique_ptr<DriverRx>>& rx() const { return rx_; }
  [[nodiscard]] const std::vector<std::unique_ptr<DriverTx>>& tx() const { return tx_; }

  // Kick every ring once, so that a device that waits for a first kick begins.
  void kick_all();
  // The first broken ring, "receiveq 0: ...", or empty. Any thread.
  [[nodiscard]] std::string broken() const;

 private:
  std::unique_ptr<DriverMemory> memory_;  // outlives the queues
  std::vector<std::unique_ptr<DriverRx>> rx_;
  std::vector<std::unique_ptr<DriverTx>> tx_;
};

}  // namespace sw
