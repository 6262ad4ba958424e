// SPDX-License-Identifier: Apache-2.0
// DriverMemory: the rings, buffers and eventfds of a virtio-net driver, in one memory file that a device can map.
// Addresses that the device sees are our own pointers (identity mapping), unless it is told to see them elsewhere.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "mem/region.h"
#include "virtio/driver_ring.h"

namespace sw {

struct DriverMemoryOptions {
  uint64_t features = 0;  // as negotiated: format of the rings, size of the buffers
  uint32_t queue_pairs = 1;
  uint16_t ring_size = 256;                    // power of two for split rings
  uint32_t buffer_bytes = kDriverBufferBytes;  // receive buffers grow by themselves where GSO frames need it
  uint16_t control_entries = 0;                // of the control queue's ring, a power of two; 0: no control queue
  HugePages huge = HugePages::kAuto;
};

class DriverMemory {
 public:
  // One ring: receiveq q is ring 2q, transmitq q is ring 2q + 1.
  struct Ring {
    DriverRingConfig config;  // ready for make_driver_rx or make_driver_tx
    UniqueFd kick;
    UniqueFd call;
    uint64_t device_offset = 0;  // device address - our pointer, modulo 2^64

    [[nodiscard]] uint64_t device_address(const uint8_t* area) const {
      return reinterpret_cast<uintptr_t>(area) + device_offset;
    }
  };

  static Result<std::unique_ptr<DriverMemory>> make(const DriverMemoryOptions& options);

  // The device sees the first byte at `device_base`. Before queues are made of the rings.
  void place_at(uint64_t device_base);
  [[nodiscard]] uint64_t device_base() const { return device_base_; }

  [[nodiscard]] const std::vector<Ring>& rings() const { return rings_; }
  [[nodiscard]] std::vector<Ring>& rings() { return rings_; }
  // The control queue's; its buffers are for a ControlQueue. Null without one.
  [[nodiscard]] const Ring* control() const { return control_.get(); }
  [[nodiscard]] int fd() const { return region_.fd(); }
  [[nodiscard]] uint64_t address() const { return reinterpret_cast<uintptr_t>(region_.data()); }
  [[nodiscard]] uint64_t bytes() const { return region_.size(); }
  [[nodiscard]] const std::string& warning() const { return region_.warning(); }  // huge pages missing

 private:
  DriverMemory(HugeRegion region, std::vector<Ring> rings, std::unique_ptr<Ring> control)
      : region_(std::move(region)), rings_(std::move(rings)), control_(std::move(control)), device_base_(address()) {}

  HugeRegion region_;
  std::vector<Ring> rings_;
  std::unique_ptr<Ring> control_;
  uint64_t device_base_;
};

}  // namespace sw
