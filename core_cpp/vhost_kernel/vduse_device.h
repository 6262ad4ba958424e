// SPDX-License-Identifier: Apache-2.0
// VduseDevice: a virtio-net device that this process serves to the kernel, /dev/vduse/NAME (linux/vduse.h).
//
// Theory of operation. A VDUSE device outlives its server. It is made over /dev/vduse/control; a device of our name
// that nobody has attached to the vDPA bus is made anew, one that is attached is taken over as it is, because a driver
// may be running on it. Attaching is the administrator's: who uses the device (virtio_vdpa, vhost_vdpa) is a question
// of the machine, not of the switch.
#pragma once

#include <cstdint>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "vhost_kernel/net_config.h"
#include "vhost_kernel/system.h"

struct vduse_dev_request;
struct vduse_dev_response;
struct vduse_iotlb_entry;
struct vduse_vq_info;

namespace sw {

struct VduseOptions {
  std::string name;
  uint64_t features = 0;  // offered
  NetConfigSpace config{};
  uint16_t ring_size = 256;  // at most
};

class VduseDevice {
 public:
  static constexpr uint32_t kQueues = 2;  // kernels refuse a control queue, without which there is one pair

  // An error whose code is EBUSY may pass (another process serves the device still), any other needs a person.
  static Result<VduseDevice> open(KernelCalls& kernel, const VduseOptions& options);

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] KernelCalls& kernel() const { return *kernel_; }
  // A driver may be running on it already: it was there, attached, before us.
  [[nodiscard]] bool taken_over() const { return taken_over_; }

  // Close it, and remove it from the system unless it is attached to the vDPA bus. False: it stays.
  bool remove();

  // One message; false with errno EAGAIN when there is none.
  bool receive(vduse_dev_request& request) const;
  [[nodiscard]] bool answer(const vduse_dev_response& response) const;

  [[nodiscard]] Result<uint64_t> driver_features() const;
  [[nodiscard]] bool ring_info(uint32_t index, vduse_vq_info& info) const;
  [[nodiscard]] bool set_kick(uint32_t index, int fd) const;  // -1: none
  // Interrupt the driver. False until the kernel knows that the driver is up (DRIVER_OK), a moment after it told us.
  bool interrupt(uint32_t index) const;
  // The first address range from entry.start on: its file descriptor, or -1.
  [[nodiscard]] int iotlb_file(vduse_iotlb_entry& entry) const;
  [[nodiscard]] Result<void> write_config(uint32_t offset, const void* data, uint32_t bytes) const;

 private:
  VduseDevice(KernelCalls& kernel, std::string name, UniqueFd fd, bool taken_over)
      : kernel_(&kernel), name_(std::move(name)), fd_(std::move(fd)), taken_over_(taken_over) {}
  [[nodiscard]] Result<void> set_up(const VduseOptions& options) const;

  KernelCalls* kernel_;
  std::string name_;
  UniqueFd fd_;
  bool taken_over_;
};

}  // namespace sw
