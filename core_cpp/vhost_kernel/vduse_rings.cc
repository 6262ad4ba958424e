// SPDX-License-Identifier: Apache-2.0
// VDUSE back-end: from what the driver set up to live rings. Rings are made and destroyed here only, inside a pause.
#include <linux/vduse.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

#include "base/atomic.h"
#include "vhost_kernel/vduse_backend.h"
#include "virtio/packed_position.h"
#include "virtio/spec.h"

namespace sw {

namespace {

constexpr uint64_t kNotYetMs = 2;  // the kernel has not taken note of DRIVER_OK yet

class Interrupt final : public RingSignal {
 public:
  Interrupt(const VduseDevice& device, uint32_t index) : device_(&device), index_(index) {}
  // One system call, as the write to an eventfd that it stands for; the kernel queues the interrupt and returns.
  void signal() override { device_->interrupt(index_); }

 private:
  const VduseDevice* device_;
  uint32_t index_;
};

bool misaligned(const uint8_t* address, uint64_t align) { return reinterpret_cast<uintptr_t>(address) % align != 0; }

std::string ring_name(uint32_t index) { return index == 0 ? "receiveq 0" : "transmitq 0"; }

// Lies a buffer at the device's position?
bool has_buffer(const DeviceRingConfig& config) {
  if (!has_feature(config.features, VIRTIO_F_RING_PACKED)) {
    const auto* const avail = reinterpret_cast<const VringAvail*>(config.ring.driver_area);
    return load_acquire(avail->idx) != static_cast<uint16_t>(config.base);
  }
  const auto* const words = reinterpret_cast<const uint64_t*>(config.ring.descriptors +
                                                              size_t{config.base & 0x7fffU} * sizeof(VringPackedDesc));
  return packed_is_avail(static_cast<uint16_t>(load_acquire(words[1]) >> 48), (config.base & 0x8000U) != 0);
}

}  // namespace

DeviceRing* VduseBackend::Ring::live() const {
  if (rx) return rx.get();
  return tx.get();
}

bool VduseBackend::any_live() const {
  return std::any_of(rings_.begin(), rings_.end(), [](const Ring& ring) { return ring.live() != nullptr; });
}

void VduseBackend::start_rings_soon(uint64_t delay_ms) {
  loop_.cancel(start_timer_);
  start_timer_ = loop_.after(delay_ms, [this] {
    start_timer_ = 0;
    start_rings();
  });
}

void VduseBackend::start_rings() {
  if (!driver_up()) return;
  const auto waits = [](const Ring& ring) { return ring.live() == nullptr && ring.broken.empty(); };
  if (std::none_of(rings_.begin(), rings_.end(), waits)) return;
  if (!kernel_knows_) kernel_knows_ = device_.interrupt(0);
  if (!kernel_knows_) return start_rings_soon(kNotYetMs);

  const auto replaced = memory_.table();  // unmapped after the pause
  const bool changed = memory_.refresh(device_);
  host_.pause();
  if (changed) {
    for (Ring& ring : rings_) retire(ring);
  }
  for (uint32_t i = 0; i < rings_.size(); ++i) {
    DeviceRingConfig config;
    if (waits(rings_[i]) && prepare(i, config)) start(i, std::move(config));
  }
  host_.resume();
}

// All that a ring needs, or the reason in ring.waiting or ring.broken.
bool VduseBackend::prepare(uint32_t index, DeviceRingConfig& config) {
  Ring& ring = rings_[index];
  vduse_vq_info info{};
  if (!device_.ring_info(index, info)) {
    ring.waiting = "the kernel does not describe it";
    return false;
  }
  if (info.ready == 0) {
    ring.waiting = "the driver has not made it ready";
    return false;
  }
  watch_kick(index);
  if (!place(ring, info, config)) return false;
  // One that ran already has told its driver not to kick.
  if (!ring.resumed && !has_buffer(config)) {
    ring.waiting = index == 0 ? "the driver has not given it a buffer yet: bring the interface up"
                              : "the driver has not sent a frame yet";
    return false;
  }
  return true;
}

// Where it lies and where it stands.
bool VduseBackend::place(Ring& ring, const vduse_vq_info& info, DeviceRingConfig& config) {
  const bool is_packed = packed();
  if (info.num == 0 || info.num > kMaxRingSize || (!is_packed && !std::has_single_bit(info.num))) {
    break_ring(ring, "a ring of " + std::to_string(info.num) + " entries is impossible");
    return false;
  }
  const auto size = static_cast<uint16_t>(info.num);
  const RingExtents extents = ring_extents(is_packed, size, has_feature(features_, VIRTIO_F_EVENT_IDX));
  const auto& memory = memory_.table();
  RingMemory& at = config.ring;
  at.size = ring.size = size;
  at.descriptors = memory->translate_whole(GuestPhys{info.desc_addr}, extents.descriptors);
  at.driver_area = memory->translate_whole(GuestPhys{info.driver_addr}, extents.driver_area);
  at.device_area = memory->translate_whole(GuestPhys{info.device_addr}, extents.device_area);
  if (at.descriptors == nullptr || at.driver_area == nullptr || at.device_area == nullptr) {
    ring.waiting = "its addresses are not in the memory that the driver mapped";
    if (!memory_.problem().empty()) ring.waiting += " (" + memory_.problem() + ")";
    return false;
  }
  if (misaligned(at.descriptors, kVringDescAlign) || misaligned(at.device_area, kVringUsedAlign) ||
      misaligned(at.driver_area, is_packed ? kVringPackedEventAlign : kVringAvailAlign)) {
    break_ring(ring, "its addresses are misaligned");
    return false;
  }
  config.features = features_;
  config.memory = memory;
  if (!is_packed) {
    config.base = load_acquire(reinterpret_cast<const VringUsed*>(at.device_area)->idx);  // as the ring itself begins
  } else if (ring.resumed) {
    config.base = ring.base;
  } else if (!adopted_) {
    config.base = (info.packed.last_avail_idx & 0x7fffU) | (info.packed.last_avail_counter & 1U) << 15;
  } else if (const auto found = find_packed_position(at.descriptors, size)) {
    config.base = *found;
  } else {
    break_ring(ring, "where the former switch stood in it cannot be told: reset the driver (rebind it)");
    return false;
  }
  if (is_packed && (config.base & 0x7fffU) >= size) {
    break_ring(ring, "its start index is impossible");
    return false;
  }
  return true;
}

void VduseBackend::start(uint32_t index, DeviceRingConfig config) {
  Ring& ring = rings_[index];
  unwatch_kick(ring);
  if (!ring.interrupt) ring.interrupt = std::make_unique<Interrupt>(device_, index);
  config.call = ring.interrupt.get();
  config.kick_fd = ring.kick.get();
  if (index == 0) {
    ring.tx = make_device_tx(config, tx_counters_);
  } else {
    ring.rx = make_device_rx(config, rx_counters_);
  }
  ring.waiting.clear();
  // The driver may wait for an answer to something that was published by a predecessor.
  ring.live()->signal_now();
}

// The kernel kicks into this eventfd from now on, and at once if it had to hold a kick back.
void VduseBackend::watch_kick(uint32_t index) {
  Ring& ring = rings_[index];
  if (ring.watched) return;
  if (!ring.kick) {
    ring.kick.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!ring.kick) return;
  }
  if (!device_.set_kick(index, ring.kick.get())) return;
  ring.watched = static_cast<bool>(loop_.add(ring.kick.get(), EPOLLIN, [this, index](uint32_t) {
    uint64_t count = 0;
    (void)!::read(rings_[index].kick.get(), &count, sizeof count);
    start_rings();
  }));
}

void VduseBackend::unwatch_kick(Ring& ring) {
  if (std::exchange(ring.watched, false)) loop_.remove(ring.kick.get());
}

// Destroy the live ring, keeping its position.
void VduseBackend::retire(Ring& ring) {
  const DeviceRing* live = ring.live();
  if (live == nullptr) return;
  const std::string why = live->broken();
  ring.base = live->base();
  ring.resumed = true;
  ring.rx.reset();
  ring.tx.reset();
  ring.waiting = "about to start again";
  if (!why.empty()) break_ring(ring, why);
}

void VduseBackend::break_ring(Ring& ring, const std::string& why) {
  ring.broken = why;
  ring.waiting.clear();
  ++totals_.rings_broken;
  host_.event("ring_broken", ring_name(static_cast<uint32_t>(&ring - rings_.data())) + ": " + why);
}

void VduseBackend::stop_all() {
  loop_.cancel(std::exchange(start_timer_, 0));
  for (Ring& ring : rings_) unwatch_kick(ring);
  if (!any_live()) return;
  host_.pause();
  for (Ring& ring : rings_) retire(ring);
  host_.resume();
}

void VduseBackend::check_health() {
  const bool faulted = memory_.table()->faulted();
  for (Ring& ring : rings_) {
    const DeviceRing* live = ring.live();
    if (live == nullptr) continue;
    std::string why = live->broken();
    if (faulted) why = "the driver named memory that it had not mapped";
    if (why.empty()) continue;
    host_.pause();
    retire(ring);  // reports what the ring itself knows
    if (ring.broken.empty()) break_ring(ring, why);
    host_.resume();
  }
  start_rings();
}

}  // namespace sw
