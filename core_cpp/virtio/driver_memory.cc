// SPDX-License-Identifier: Apache-2.0
#include "virtio/driver_memory.h"

#include <sys/eventfd.h>

#include <bit>
#include <cerrno>

#include "virtio/control_queue.h"
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
  if (options.control_entries > kMaxRingSize || (options.control_entries != 0 && options.control_entries < 2) ||
      (options.control_entries & (options.control_entries - 1)) != 0) {
    return Error{EINVAL, "lay out a control queue of " + std::to_string(options.control_entries) +
                             " entries (a power of two from 2 to 32768)"};
  }
  if (options.buffer_bytes % 64 != 0 || options.buffer_bytes < kHeadBytes) {
    return Error{EINVAL, "lay out virtio buffers of " + std::to_string(options.buffer_bytes) +
                             " bytes (a multiple of 64, at least 128)"};
  }
  const auto ring_bytes = [&](uint16_t entries) {
    const RingExtents extents = ring_extents(packed, entries, event_idx);
    return align(extents.descriptors) + align(extents.driver_area) + align(extents.device_area);
  };
  const auto buffer_bytes = [&](bool receive) {
    return receive && needs_big_buffers(options.features) ? std::max(kDriverBigBufferBytes, options.buffer_bytes)
                                                          : options.buffer_bytes;
  };
  const uint64_t pair_bytes = 2 * ring_bytes(size) + align(size * driver_buffer_stride(buffer_bytes(true))) +
                              align(size * driver_buffer_stride(buffer_bytes(false)));
  const uint64_t control_bytes =
      options.control_entries == 0 ? 0 : ring_bytes(options.control_entries) + align(kControlBufferBytes);

  auto region = HugeRegion::make(
      {"virtio-driver", pair_bytes * options.queue_pairs + control_bytes, options.huge, kHugePage2M, -1});
  if (!region) return region.error();
  uint8_t* next = reinterpret_cast<uint8_t*>(region->data());
  const auto carve = [&next](uint64_t bytes) {
    uint8_t* area = next;
    next += align(bytes);
    return area;
  };
  const auto lay_out = [&](Ring& ring, uint16_t entries, uint32_t buffer, uint64_t all_buffers) -> Result<void> {
    ring.kick.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    ring.call.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!ring.kick || !ring.call) return Error{errno, "create the eventfds of a virtio ring"};
    const RingExtents extents = ring_extents(packed, entries, event_idx);
    ring.config.features = options.features;
    ring.config.ring.size = entries;
    ring.config.ring.descriptors = carve(extents.descriptors);
    ring.config.ring.driver_area = carve(extents.driver_area);
    ring.config.ring.device_area = carve(extents.device_area);
    ring.config.buffer_bytes = buffer;
    ring.config.buffers = carve(all_buffers);
    ring.config.device_address = reinterpret_cast<uintptr_t>(ring.config.buffers);
    ring.config.kick_fd = ring.kick.get();
    ring.config.call_fd = ring.call.get();
    return {};
  };
  std::vector<Ring> rings(size_t{2} * options.queue_pairs);
  for (size_t i = 0; i < rings.size(); ++i) {
    const uint32_t buffer = buffer_bytes(i % 2 == 0);
    if (auto done = lay_out(rings[i], size, buffer, size * driver_buffer_stride(buffer)); !done) return done.error();
  }
  std::unique_ptr<Ring> control;
  if (options.control_entries != 0) {
    control = std::make_unique<Ring>();
    if (auto done = lay_out(*control, options.control_entries, kControlBufferBytes, kControlBufferBytes); !done) {
      return done.error();
    }
  }
  return std::unique_ptr<DriverMemory>(new DriverMemory(std::move(*region), std::move(rings), std::move(control)));
}

void DriverMemory::place_at(uint64_t device_base) {
  device_base_ = device_base;
  const auto place = [&](Ring& ring) {
    ring.device_offset = device_base - address();
    ring.config.device_address = ring.device_address(ring.config.buffers);
  };
  for (Ring& ring : rings_) place(ring);
  if (control_) place(*control_);
}

}  // namespace sw
