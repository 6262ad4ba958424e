// SPDX-License-Identifier: Apache-2.0
#include "vhost_kernel/vhost_net.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "vhost_kernel/uapi.h"

namespace sw {

namespace {

// VHOST_NET_F_VIRTIO_NET_HDR, bit 27, must stay clear: the header is the tap's business.
constexpr uint64_t kNeeded = feature_mask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF);
constexpr uint64_t kWelcome = feature_mask(VIRTIO_F_EVENT_IDX);

Error not_opened(const Error& error) {
  const std::string instead = "; or leave out `vhost: true`, and every frame costs a system call";
  switch (error.code) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
      return {0, error.message() + " (load the module with: modprobe vhost_net; a container needs --device " +
                     kVhostNetPath + ")" + instead};
    case EACCES:
    case EPERM:
      return {0, error.message() +
                     " (the switch needs to read and write it: a udev rule such as KERNEL==\"vhost-net\", "
                     "GROUP=\"kvm\", MODE=\"0660\", and its user in that group)" +
                     instead};
    default:
      return error;
  }
}

}  // namespace

Result<std::unique_ptr<VhostNet>> VhostNet::open(KernelCalls& kernel, uint32_t queue_pairs) {
  std::vector<VhostDevice> devices;
  for (uint32_t q = 0; q < queue_pairs; ++q) {
    auto device = VhostDevice::open(kernel, kVhostNetPath);
    if (!device) return not_opened(device.error());
    devices.push_back(std::move(*device));
  }
  auto net = std::unique_ptr<VhostNet>(new VhostNet(std::move(devices)));
  const auto offered = net->devices_.front().features();
  if (!offered) return offered.error();
  if ((*offered & kNeeded) != kNeeded) {
    return Error{ENOTSUP, std::string(kVhostNetPath) + " of this kernel lacks " +
                              (has_feature(*offered, VIRTIO_F_VERSION_1) ? "mergeable receive buffers" : "virtio 1") +
                              ", which Linux has since 4.0; leave out `vhost: true`"};
  }
  net->ring_features_ = *offered & (kNeeded | kWelcome);
  net->ring_error_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!net->ring_error_) return Error{errno, "create the eventfd for ring errors of " + std::string(kVhostNetPath)};
  return net;
}

uint64_t VhostNet::features(const OffloadCaps& caps) const {
  uint64_t features = ring_features_;
  if (caps.checksum) features |= feature_mask(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM);
  if (caps.tso4) features |= feature_mask(VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_TSO4);
  if (caps.tso6) features |= feature_mask(VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_GUEST_TSO6);
  if (caps.ecn) features |= feature_mask(VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_GUEST_ECN);
  if (caps.uso) {
    features |= feature_mask(VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6);
  }
  return features;
}

Result<void> VhostNet::start(const DriverMemory& memory, std::span<const int> taps) {
  started_ = true;
  for (size_t q = 0; q < devices_.size(); ++q) {
    VhostDevice& device = devices_[q];
    Result<void> done = device.set_features(ring_features_);
    if (done) done = device.set_memory_table(memory);
    if (done) done = start_pair(device, std::span(memory.rings()).subspan(2 * q, 2), taps[q]);
    if (!done) {
      stop();
      return done;
    }
  }
  return {};
}

Result<void> VhostNet::start_pair(VhostDevice& device, std::span<const DriverMemory::Ring> rings, int tap) {
  for (uint32_t i = 0; i < 2; ++i) {
    if (auto set = device.set_ring(i, rings[i]); !set) return set;
    if (auto set = device.set_ring_error_fd(i, ring_error_.get()); !set) return set;
  }
  for (uint32_t i = 0; i < 2; ++i) {
    vhost_vring_file file{i, tap};
    if (auto set = device.request(VHOST_NET_SET_BACKEND, &file, "connect the tap to"); !set) return set;
  }
  return {};
}

void VhostNet::stop() {
  if (!std::exchange(started_, false)) return;
  for (VhostDevice& device : devices_) {
    for (uint32_t i = 0; i < 2; ++i) {
      vhost_vring_file file{i, VHOST_FILE_UNBIND};
      // Waits for the kernel's thread to leave the ring. A ring that never had a backend refuses, which is as good.
      (void)device.request(VHOST_NET_SET_BACKEND, &file, "disconnect the tap from");
    }
  }
}

bool VhostNet::take_ring_error() {
  uint64_t count = 0;
  return ::read(ring_error_.get(), &count, sizeof count) == sizeof count;
}

}  // namespace sw
