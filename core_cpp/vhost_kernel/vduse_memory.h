// SPDX-License-Identifier: Apache-2.0
// VduseMemory: what the driver of a VDUSE device lets us reach, as a GuestMemory whose addresses are IOVAs.
//
// Theory of operation. The kernel keeps the IOTLB and hands out a file for each range of it. It announces changes of
// what a virtual machine mapped, but not what it adds itself for a driver of its own: the bounce pages through which
// all of virtio_vdpa's buffers go appear with the first buffer. So the table is read again whenever a ring is about to
// start, which is when its first buffer is there; after that it only changes with an announcement. A page of a range
// that the driver never mapped raises SIGBUS, which the guard of MappedRegion turns into zeros and a mark.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "vhost_kernel/vduse_device.h"
#include "virtio/guest_memory.h"

namespace sw {

class VduseMemory {
 public:
  // Read the kernel's table. True: `table()` is another one than before. Ranges that cannot be mapped are left out, and
  // problem() says why.
  bool refresh(const VduseDevice& device);
  // The kernel says that these addresses changed: forget what was mapped there. True: something was.
  bool invalidate(uint64_t first, uint64_t last);
  void clear();

  [[nodiscard]] const std::shared_ptr<const GuestMemory>& table() const { return table_; }
  [[nodiscard]] const std::string& problem() const { return problem_; }

 private:
  bool use(std::vector<std::shared_ptr<MappedRegion>> regions);

  std::shared_ptr<const GuestMemory> table_ = std::make_shared<GuestMemory>();
  std::string problem_;
};

}  // namespace sw
