// SPDX-License-Identifier: Apache-2.0
// What queues of kernel interfaces and of NICs share: frames with a virtio-net header to and from the kernel, frames and
// an MTU, and the kernel's count of frames it could not give us.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>

#include "base/atomic.h"
#include "net/frame.h"
#include "stats/counters.h"

namespace sw {

inline constexpr uint32_t kMaxIovecs = 1024;  // of one message: UIO_MAXIOV

// The fields that every receive queue sets when it has filled the head.
inline void finish_received(Frame& frame, const VnetHeader& vnet) {
  frame.clear_marks();
  frame.vnet = vnet;
  frame.offload = (vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0 || vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE;
}

inline uint16_t ethertype(const Frame& frame) { return load_be16(frame.data() + 2 * kMacBytes); }

// More L3 bytes than `mtu`? One VLAN tag does not count, as on a switch.
inline bool exceeds_mtu(const Frame& frame, uint32_t mtu) {
  const uint32_t longest = mtu + kEthHeaderBytes;
  if (frame.len <= longest) [[likely]]
    return false;
  const uint16_t type = ethertype(frame);
  return frame.len > longest + kVlanTagBytes || (type != kEtherTypeVlan && type != kEtherTypeServiceTag);
}

// The header for the kernel. hdr_len is a hint that a guest may have filled with anything; the kernel refuses one
// beyond the frame and repairs one that is too small.
inline VnetHeader header_for_kernel(const Frame& frame) {
  VnetHeader vnet;
  if (frame.offload) vnet = frame.vnet;
  vnet.flags = frame.vnet.flags & (VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID);
  if (vnet.hdr_len > frame.len) vnet.hdr_len = 0;
  return vnet;
}

// The pieces of a frame behind its virtio-net header: 1 + segment_count entries are written.
inline uint32_t gather(const Frame& frame, iovec* out) {
  uint32_t count = 0;
  out[count++] = {const_cast<uint8_t*>(frame.data()), frame.head_len};
  for (uint32_t i = 0; i < frame.segment_count; ++i) {
    out[count++] = {const_cast<uint8_t*>(frame.segments[i].data), frame.segments[i].len};
  }
  return count;
}

// Why the kernel did not take a frame.
inline DropReason reason_for_errno(int error) {
  switch (error) {
    case EAGAIN:
    case ENOBUFS:
    case ENOMEM:
      return DropReason::kKernelBusy;
    case EIO:  // tap: the interface is down
    case EBADFD:
    case ENETDOWN:
    case ENODEV:
    case ENXIO:
      return DropReason::kLinkDown;
    case EMSGSIZE:
      return DropReason::kMtuExceeded;
    default:
      return DropReason::kDeviceError;
  }
}

// Frames that the kernel had for us and lost. The control side asks the kernel now and then and adds; the worker, which
// is the only writer of the counters, takes over what is new at its next peek.
class KernelDrops {
 public:
  void add(uint64_t frames) { store_relaxed(total_, total_ + frames); }  // control
  [[nodiscard]] uint64_t total() const { return load_relaxed(total_); }  // anybody
  [[nodiscard]] uint64_t pending() const { return total_ - taken_; }     // while no worker uses the queue
  void take_over(QueueCounters& counters, PortWorkerCounters& drops) {   // worker
    const uint64_t total = load_relaxed(total_);
    if (total == taken_) return;
    counters.frames.add(total - taken_);
    drops.drop_rx(DropReason::kKernelDropped, total - taken_);
    taken_ = total;
  }

 private:
  uint64_t total_ = 0;  // control: wo, worker: ro
  uint64_t taken_ = 0;  // worker
};

}  // namespace sw
