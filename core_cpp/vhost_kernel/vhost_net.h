// SPDX-License-Identifier: Apache-2.0
// VhostNet: lets the kernel move frames between our virtio rings and a tap device, so that neither side pays a system
// call per frame.
//
// Theory of operation. /dev/vhost-net serves one queue pair per descriptor, with a thread of the kernel: ring 0 is the
// receiveq, ring 1 the transmitq. Each is connected to one queue of the tap. vhost-net knows ring features only; which
// offloads a frame may carry is between us and the tap, whose virtio-net header it hands through unread. It has split
// rings only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "net/queue.h"
#include "vhost_kernel/vhost_device.h"

namespace sw {

inline constexpr const char* kVhostNetPath = "/dev/vhost-net";

class VhostNet {
 public:
  static Result<std::unique_ptr<VhostNet>> open(KernelCalls& kernel, uint32_t queue_pairs);
  ~VhostNet() { stop(); }
  VhostNet(const VhostNet&) = delete;
  VhostNet& operator=(const VhostNet&) = delete;

  // Features for our rings: what the kernel has of those we use, and the offloads of a tap with `caps`.
  [[nodiscard]] uint64_t features(const OffloadCaps& caps) const;

  // Connect queue pair q of `memory`, which has features(), to the tap queue taps[q]. Both must stay until stop().
  Result<void> start(const DriverMemory& memory, std::span<const int> taps);
  // The kernel's threads are off the rings when this returns.
  void stop();

  // The kernel has stopped a ring since the last call.
  bool take_ring_error();

 private:
  explicit VhostNet(std::vector<VhostDevice> devices) : devices_(std::move(devices)) {}
  Result<void> start_pair(VhostDevice& device, std::span<const DriverMemory::Ring> rings, int tap);

  std::vector<VhostDevice> devices_;  // one per queue pair
  bool started_ = false;
  uint64_t ring_features_ = 0;
  UniqueFd ring_error_;  // eventfd
};

}  // namespace sw
