// SPDX-License-Identifier: Apache-2.0
#include "virtio/driver_memory.h"

#include <sys/eventfd.h>

#include <bit>
#include <cerrno>

#include "virtio/spec.h"

namespace sw {

namespace {

// Areas that different sides write never share a cache line, nor the pair of lines that the prefetcher loads together.
constexpr uint64_t kAreaAlign = 128;

constexpr uint64_t align(uint64_t bytes) { return (bytes + kAreaAlign - 1) / kAreaAlign * kAreaAlign; }

bool needs_big_buffers(uint64_t features) {
  const bool gso = has_feature(features, VIRTIO_NET_F_GUEST_TSO4) || has_feature(features, VIRTIO_NET_F_GUEST_TSO6) ||
                   has_feature(features, VIRTIO_NET_F_GUEST_USO4);
  return gso && !has_feature(features, VIRTIO_NET_F_MRG_RXBUF);
}

}  // namespace

Result<std::unique_ptr<DriverMemory>> DriverMemory::make(const DriverMemoryOptions& options) {
  const bool packed = has_feature(options.features, VIRTIO_F_RING_PACKED);
  const bool event_idx = has_feature(options.features, VIRTIO_F_EVENT_IDX);
  const uint16_t size = options.ring_size;
  if (size == 0 || size > kMaxRingSize || (!packed && !std::has_single_bit(size))) {
    return Error{EINVAL, "lay out a virtio ring of " + std::to_string(size) +
                             " entries (1 to 32768; a power of two for split rings)"};
  }
  if (options.buffer_bytes % 64 != 0 || options.buffer_bytes < kHeadBytes) {
    return Error{EINVAL, "lay out virtio buffers of " + std::to_string(options.buffer_bytes) +
                             " bytes (a multiple of 64, at least 128)"};
  }
  const RingExtents extents = ring_extents(packed, size, event_idx);
  const uint64_t ring_bytes = align(extents.descriptors) + align(extents.driver_area) + align(extents.device_area);
  const auto buffer_bytes = [&](bool receive) {
    return receive && needs_big_buffers(options.features) ? std::max(kDriverBigBufferBytes, options.buffer_bytes)
                                                          : options.buffer_bytes;
  };
  const uint64_t pair_bytes = 2 * ring_bytes + align(size * driver_buffer_stride(buffer_bytes(true))) +
                              align(size * driver_buffer_stride(buffer_bytes(false)));

  auto region = HugeRegion::make({"virtio-driver", pair_bytes * options.queue_pairs, options.huge, kHugePage2M, -1});
  if (!region) return region.error();
  uint8_t* next = reinterpret_cast<uint8_t*>(region->data());
  const auto carve = [&next](uint64_t bytes) {
    uint8_t* area = next;
    next += align(bytes);
    return area;
  };
  std::vector<Ring> rings(size_t{2} * options.queue_pairs);
  for (size_t i = 0; i < rings.size(); ++i) {
    Ring& ring = rings[i];
    ring.kick.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    ring.call.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!ring.kick || !ring.call) return Error{errno, "create the eventfds of a virtio ring"};
    ring.config.features = options.features;
    ring.config.ring.size = size;
    ring.config.ring.descriptors = carve(extents.descriptors);
    ring.config.ring.driver_area = carve(extents.driver_area);
    ring.config.ring.device_area = carve(extents.device_area);
    ring.config.buffer_bytes = buffer_bytes(i % 2 == 0);
    ring.config.buffers = carve(size * driver_buffer_stride(ring.config.buffer_bytes));
    ring.config.device_address = reinterpret_cast<uintptr_t>(ring.config.buffers);
    ring.config.kick_fd = ring.kick.get();
    ring.config.call_fd = ring.call.get();
  }
  return std::unique_ptr<DriverMemory>(new DriverMemory(std::move(*region), std::move(rings)));
}

void DriverMemory::place_at(uint64_t device_base) {
  device_base_ = device_base;
  for (Ring& ring : rings_) {
    ring.device_offset = device_base - address();
    ring.config.device_address = ring.device_address(ring.config.buffers);
  }
}

}  // namespace sw
