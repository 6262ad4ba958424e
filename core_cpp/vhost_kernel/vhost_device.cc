// SPDX-License-Identifier: Apache-2.0
#include "vhost_kernel/vhost_device.h"

#include <fcntl.h>

#include <cerrno>
#include <utility>

#include "vhost_kernel/uapi.h"

namespace sw {

namespace {

struct OneRegionTable {  // struct vhost_memory with room for its region
  __u32 count = 1;
  __u32 padding = 0;
  vhost_memory_region region{};
};
static_assert(sizeof(OneRegionTable) == sizeof(vhost_memory) + sizeof(vhost_memory_region));

std::string of_ring(uint32_t index) { return "of ring " + std::to_string(index) + " of"; }

}  // namespace

Result<VhostDevice> VhostDevice::open(KernelCalls& kernel, const std::string& path) {
  UniqueFd fd(kernel.open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return Error{errno, "open " + path};
  VhostDevice device(kernel, path, std::move(fd));
  if (auto owned = device.request(VHOST_SET_OWNER, nullptr, "become the owner of"); !owned) return owned.error();
  return device;
}

Result<void> VhostDevice::request(unsigned long number, void* argument, const std::string& what) const {
  if (kernel_->ioctl(fd_.get(), number, argument) >= 0) return {};
  return Error{errno, what + " " + path_};
}

Result<uint64_t> VhostDevice::features() const {
  __u64 features = 0;
  if (auto got = request(VHOST_GET_FEATURES, &features, "ask for the features of"); !got) return got.error();
  return uint64_t{features};
}

Result<void> VhostDevice::set_features(uint64_t features) {
  __u64 value = features;
  return request(VHOST_SET_FEATURES, &value, "set the features of");
}

Result<uint64_t> VhostDevice::backend_features() const {
  __u64 features = 0;
  if (auto got = request(VHOST_GET_BACKEND_FEATURES, &features, "ask for the back-end features of"); !got) {
    if (got.error().code == ENOTTY) return uint64_t{0};
    return got.error();
  }
  return uint64_t{features};
}

Result<void> VhostDevice::set_backend_features(uint64_t features) {
  __u64 value = features;
  return request(VHOST_SET_BACKEND_FEATURES, &value, "set the back-end features of");
}

Result<void> VhostDevice::set_memory_table(const DriverMemory& memory) {
  OneRegionTable table;
  table.region = {memory.device_base(), memory.bytes(), memory.address(), 0};
  return request(VHOST_SET_MEM_TABLE, &table,
                 "hand " + std::to_string(memory.bytes()) + " bytes of ring memory over to");
}

Result<void> VhostDevice::send_iotlb(const DriverMemory& memory, uint8_t type, const std::string& what) {
  vhost_msg_v2 message{};
  message.type = VHOST_IOTLB_MSG_V2;
  message.iotlb.iova = memory.device_base();
  message.iotlb.size = memory.bytes();
  message.iotlb.uaddr = memory.address();
  message.iotlb.perm = VHOST_ACCESS_RW;
  message.iotlb.type = type;
  const ssize_t sent = kernel_->write(fd_.get(), &message, sizeof message);
  if (sent == static_cast<ssize_t>(sizeof message)) return {};
  return Error{sent < 0 ? errno : EIO, what + " " + path_};
}

Result<void> VhostDevice::map(const DriverMemory& memory, bool batch) {
  const std::string what = "map " + std::to_string(memory.bytes()) + " bytes of ring memory for";
  if (batch) {
    if (auto begun = send_iotlb(memory, VHOST_IOTLB_BATCH_BEGIN, what); !begun) return begun;
  }
  if (auto mapped = send_iotlb(memory, VHOST_IOTLB_UPDATE, what); !mapped) return mapped;
  return batch ? send_iotlb(memory, VHOST_IOTLB_BATCH_END, what) : Result<void>();
}

Result<void> VhostDevice::unmap(const DriverMemory& memory) {
  return send_iotlb(memory, VHOST_IOTLB_INVALIDATE, "unmap the ring memory of");
}

Result<void> VhostDevice::set_ring(uint32_t index, const DriverMemory::Ring& ring) {
  const RingMemory& at = ring.config.ring;
  const bool packed = has_feature(ring.config.features, VIRTIO_F_RING_PACKED);
  vhost_vring_state state{index, at.size};
  if (auto set = request(VHOST_SET_VRING_NUM, &state, "set the size " + of_ring(index)); !set) return set;
  // Packed: avail index 0 with wrap counter 1 (virtio 1.3 2.8.1), the upper half, used, likewise.
  state = {index, packed ? 0x8000'8000U : 0U};
  if (auto set = request(VHOST_SET_VRING_BASE, &state, "set the position " + of_ring(index)); !set) return set;
  vhost_vring_addr areas{index,
                         0,
                         ring.device_address(at.descriptors),
                         ring.device_address(at.device_area),
                         ring.device_address(at.driver_area),
                         0};
  if (auto set = request(VHOST_SET_VRING_ADDR, &areas, "set the addresses " + of_ring(index)); !set) return set;
  vhost_vring_file file{index, ring.kick.get()};
  if (auto set = request(VHOST_SET_VRING_KICK, &file, "set the kick eventfd " + of_ring(index)); !set) return set;
  file = {index, ring.call.get()};
  return request(VHOST_SET_VRING_CALL, &file, "set the call eventfd " + of_ring(index));
}

Result<void> VhostDevice::set_ring_error_fd(uint32_t index, int fd) {
  vhost_vring_file file{index, fd};
  return request(VHOST_SET_VRING_ERR, &file, "set the error eventfd " + of_ring(index));
}

}  // namespace sw
