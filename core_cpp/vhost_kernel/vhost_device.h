// SPDX-License-Identifier: Apache-2.0
// VhostDevice: an open vhost character device (/dev/vhost-net, /dev/vhost-vdpa-N), and what all of them have in common:
// an owner, features, memory and rings. We are the driver; the kernel, or the hardware behind it, is the device.
//
// Theory of operation (linux/vhost.h). The device works in the address space of the process that owns it, so handing
// over memory means naming it: as a table of regions (vhost-net) or as IOTLB entries (vhost-vdpa). Addresses that the
// device sees are as DriverMemory says. The device closes with its file descriptor, which stops it and
// releases everything it had. Every failure says what was tried on which file.
#pragma once

#include <cstdint>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "vhost_kernel/system.h"
#include "virtio/driver_memory.h"

namespace sw {

class VhostDevice {
 public:
  // The owner is this process from here on. An error of open has no remedy yet: it depends on the device's kind.
  static Result<VhostDevice> open(KernelCalls& kernel, const std::string& path);

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] const std::string& path() const { return path_; }

  [[nodiscard]] Result<uint64_t> features() const;
  Result<void> set_features(uint64_t features);
  // vhost's own features (VHOST_BACKEND_F_*). 0 from a kernel that has none.
  [[nodiscard]] Result<uint64_t> backend_features() const;
  Result<void> set_backend_features(uint64_t features);

  // All of `memory`, as a table with one region.
  Result<void> set_memory_table(const DriverMemory& memory);
  // All of `memory`, as one IOTLB entry; unmap takes it back. Needs VHOST_BACKEND_F_IOTLB_MSG_V2 acknowledged, and
  // `batch` VHOST_BACKEND_F_IOTLB_BATCH: a device that loads its whole table at once then does so once.
  Result<void> map(const DriverMemory& memory, bool batch = false);
  Result<void> unmap(const DriverMemory& memory);

  // Size, position, addresses and eventfds of ring `index` of the device, which is ring `index` of its queues. Follows
  // set_features and the memory.
  Result<void> set_ring(uint32_t index, const DriverMemory::Ring& ring);
  // Written by the kernel when it stops a ring because of what it found in it. Not owned; -1: nobody is told.
  Result<void> set_ring_error_fd(uint32_t index, int fd);

  // Any other request of the device: "what PATH: why" on failure.
  Result<void> request(unsigned long number, void* argument, const std::string& what) const;

 private:
  VhostDevice(KernelCalls& kernel, std::string path, UniqueFd fd)
      : kernel_(&kernel), path_(std::move(path)), fd_(std::move(fd)) {}
  Result<void> send_iotlb(const DriverMemory& memory, uint8_t type, const std::string& what);

  KernelCalls* kernel_;
  std::string path_;
  UniqueFd fd_;
};

}  // namespace sw
