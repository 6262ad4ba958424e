// SPDX-License-Identifier: Apache-2.0
// Back-end: from wishes to live rings. The only file that makes or destroys a ring, always inside a pause.
#include <fcntl.h>

#include <algorithm>
#include <utility>

#include "base/event_signal.h"
#include "vhost_user/backend.h"
#include "vhost_user/backend_detail.h"
#include "virtio/packed_position.h"
#include "virtio/spec.h"

namespace sw {

namespace {

constexpr uint64_t kDescriptorAlign = 16;  // virtio 1.3 2.7, 2.8
constexpr uint64_t kSplitAvailAlign = 2;
constexpr uint64_t kDefaultAlign = 4;

constexpr uint64_t kQuickBytes = 1ULL << 30;  // of memory, to unmap on this thread

bool misaligned(const uint8_t* address, uint64_t align) { return reinterpret_cast<uintptr_t>(address) % align != 0; }

int fd_of(const std::shared_ptr<UniqueFd>& fd) { return fd ? fd->get() : -1; }

bool make_nonblocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_NONBLOCK) != 0) return false;
  (void)::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
  return true;
}

void signal_err(const std::shared_ptr<UniqueFd>& fd) {
  if (!fd) return;
  (void)make_nonblocking(fd->get());
  (void)signal_eventfd(fd->get());
}

// What is still missing from a wish; empty when complete.
std::string missing_piece(const Backend::Wish& wish) {
  if (!wish.size) return "waits for its size (SET_VRING_NUM)";
  if (!wish.address) return "waits for its addresses (SET_VRING_ADDR)";
  if (!wish.base) return "waits for its start index (SET_VRING_BASE)";
  if (!wish.kicked) return "waits for its kick (SET_VRING_KICK)";
  return {};
}

// Split: any 16-bit index. Packed: an index inside the ring, with the wrap counter in bit 15; the used half of the word
// is not looked at, since a ring starts with nothing in flight.
bool base_fits(bool packed, uint32_t base, uint32_t size) { return packed ? (base & 0x7fff) < size : base <= 0xffff; }

}  // namespace

Backend::Plan Backend::plan_ring(const Wish& wish, const std::string& broken) const {
  Plan plan;
  const auto impossible = [&plan](std::string why) {
    plan.invalid = true;
    plan.why = std::move(why);
    return std::move(plan);
  };
  plan.why = missing_piece(wish);
  if (plan.why.empty() && !features_) plan.why = "waits for the features (SET_FEATURES)";
  if (plan.why.empty() && (!memory_ || memory_->regions().empty())) plan.why = "waits for guest memory";
  if (!plan.why.empty()) return plan;

  const bool packed = has_feature(*features_, VIRTIO_F_RING_PACKED);
  const auto size = static_cast<uint16_t>(*wish.size);
  if (!packed && (size & (size - 1)) != 0) return impossible("the size of a split ring must be a power of two");
  if (!base_fits(packed, *wish.base, size)) return impossible("its start index is impossible");
  const VhostVringAddr& address = *wish.address;
  const RingExtents extents = ring_extents(packed, size, has_feature(*features_, VIRTIO_F_EVENT_IDX));
  RingMemory& ring = plan.config.ring;
  ring.size = size;
  ring.descriptors = memory_->translate_whole(FrontendVirt{address.descriptors}, extents.descriptors);
  ring.driver_area = memory_->translate_whole(FrontendVirt{address.avail}, extents.driver_area);
  ring.device_area = memory_->translate_whole(FrontendVirt{address.used}, extents.device_area);
  if (ring.descriptors == nullptr || ring.driver_area == nullptr || ring.device_area == nullptr) {
    return impossible("its addresses are not (or not wholly) inside guest memory");
  }
  // Here, not there: a region may begin anywhere in the front-end's address space.
  if (misaligned(ring.descriptors, kDescriptorAlign) || misaligned(ring.device_area, kDefaultAlign) ||
      misaligned(ring.driver_area, packed ? kDefaultAlign : kSplitAvailAlign)) {
    return impossible("its addresses are misaligned");
  }
  if (!broken.empty()) {
    plan.why = "stopped: " + broken;
    return plan;
  }
  plan.config.features = *features_;
  plan.config.memory = memory_;
  plan.config.base = packed ? *wish.base & 0xffff : *wish.base;
  plan.config.call_fd = fd_of(wish.call);
  plan.config.peer = config_.peer;
  plan.config.kick_fd = fd_of(wish.kick);
  // vhost-user "Ring states": without PROTOCOL_FEATURES rings are born enabled.
  plan.config.enabled = wish.enabled || !has_feature(*features_, VHOST_USER_F_PROTOCOL_FEATURES);
  plan.config.log = active_log();
  plan.config.log_used = plan.config.log != nullptr && (address.flags & kVringFlagLog) != 0;
  plan.config.log_used_guest = address.log;
  plan.ready = true;
  return plan;
}

bool Backend::ring_enabled(const Ring& ring) const {
  return ring.wish.enabled || (features_ && !has_feature(*features_, VHOST_USER_F_PROTOCOL_FEATURES));
}

bool Backend::any_live() const {
  return std::any_of(rings_.begin(), rings_.end(), [](const Ring& ring) { return ring.live() != nullptr; });
}

// Make one ring what `next` says. Refused without effect when that is a mistake and was none before.
Result<void> Backend::change_ring(Ring& ring, Wish next) {
  const Plan plan = plan_ring(next, ring.broken);
  if (plan.invalid && !plan_ring(ring.wish, ring.broken).invalid) {
    return Error{0, ring_name(index_of(ring)) + ": " + plan.why};
  }
  const bool was_live = ring.live() != nullptr;
  if (!was_live && !plan.ready) {
    ring.wish = std::move(next);
    ring.waiting = plan.why;
    return {};
  }
  const Wish replaced = ring.wish;  // descriptors that are no longer wanted close after the pause
  const Pause pause(host_);
  retire(ring);
  if (was_live) next.base = ring.wish.base;
  ring.wish = std::move(next);
  start(ring);
  return {};
}

// Rebuild everything on new features, memory or log. Rings that the new memory does not hold wait for it to come back.
void Backend::reconfigure(std::optional<uint64_t> features, std::shared_ptr<const GuestMemory> memory,
                          std::shared_ptr<DirtyLog> log) {
  auto replaced_memory = memory_;  // unmapped after the pause
  const auto replaced_log = log_;
  const auto apply = [&] {
    for (Ring& ring : rings_) retire(ring);
    features_ = features;
    memory_ = std::move(memory);
    log_ = std::move(log);
    for (Ring& ring : rings_) start(ring);
  };
  if (std::any_of(rings_.begin(), rings_.end(), [](const Ring& ring) { return ring.wish.kicked; })) {
    const Pause pause(host_);
    apply();
  } else {
    apply();  // no ring runs and none can start
  }
  let_go(std::move(replaced_memory));
}

// Unmap, unless others use it. The pages of a guest that has ended are freed with our mapping, which takes a while if
// there are many: then elsewhere.
void Backend::let_go(std::shared_ptr<const GuestMemory> memory) const {
  if (!memory) return;
  uint64_t bytes = 0;
  for (const auto& region : memory->regions()) bytes += region->bytes;
  if (bytes > kQuickBytes) reaper_->drop(std::move(memory));
}

// Where a packed ring begins. When a switch died, QEMU repeats the place from which that one had started, so on a new
// connection the ring itself is asked, if it was used in a way that lets it answer.
uint16_t Backend::packed_base(const Ring& ring, const DeviceRingConfig& config) const {
  const auto told = static_cast<uint16_t>(config.base);
  if (ring.seen_running || !has_feature(config.features, VIRTIO_F_INDIRECT_DESC) ||
      has_feature(config.features, VIRTIO_F_IN_ORDER)) {
    return told;
  }
  const uint16_t found = find_packed_position(config.ring.descriptors, config.ring.size).value_or(told);
  if (found != told) {
    host_.event("ring_resumed", ring_name(index_of(ring)) + ": goes on at slot " + std::to_string(found & 0x7fff) +
                                    ", the front-end knew of " + std::to_string(told & 0x7fff));
  }
  return found;
}

void Backend::start(Ring& ring) {
  Plan plan = plan_ring(ring.wish, ring.broken);
  ring.waiting = plan.why;
  if (!plan.ready) return;
  const size_t index = index_of(ring);
  if (has_feature(plan.config.features, VIRTIO_F_RING_PACKED)) plan.config.base = packed_base(ring, plan.config);
  ring.seen_running = true;
  if (plan.config.call_fd >= 0) (void)make_nonblocking(plan.config.call_fd);
  if (is_rx(index)) {
    ring.rx = make_device_rx(plan.config, config_.rx_counters[index / 2]);
  } else {
    ring.tx = make_device_tx(plan.config, config_.tx_counters[index / 2]);
  }
  // The guest may wait for an answer to something done before we were here, or published by the ring's predecessor.
  ring.live()->signal_now();
  deliver_rarp();
}

// Destroy the live ring, keeping its position as the new base.
void Backend::retire(Ring& ring) {
  const DeviceRing* live = ring.live();
  if (live == nullptr) return;
  const std::string why = live->broken();
  ring.wish.base = live->base();
  ring.rx.reset();
  ring.tx.reset();
  if (!why.empty()) break_ring(ring, why);
}

// The guest broke a rule: its ring, already retired, stays down until the front-end stops it too. Other rings live on.
void Backend::break_ring(Ring& ring, const std::string& why) {
  ring.broken = why;
  ring.waiting = "stopped: " + why;
  ++counters_.rings_broken;
  signal_err(ring.wish.err);  // vhost-user "SET_VRING_ERR"
  host_.event("ring_broken", ring_name(index_of(ring)) + ": " + why);
}

// Device reset: rings stop and their set-up is forgotten; memory, features and event descriptors stay.
void Backend::stop_all() {
  std::vector<std::shared_ptr<UniqueFd>> replaced;  // closed after the pause
  const auto stop = [&] {
    for (Ring& ring : rings_) {
      retire(ring);
      replaced.push_back(std::move(ring.wish.kick));
      ring.wish.kick.reset();
      ring.wish.kicked = false;
      ring.wish.address.reset();
      if (ring.wish.base) ring.reset_base = std::exchange(ring.wish.base, std::nullopt);
      ring.broken.clear();
      ring.waiting = plan_ring(ring.wish, ring.broken).why;
    }
  };
  if (any_live()) {
    const Pause pause(host_);
    stop();
  } else {
    stop();
  }
}

void Backend::shutdown() { stop_all(); }

void Backend::check_health() {
  std::vector<std::pair<size_t, std::string>> sick;
  const bool faulted = memory_ && memory_->faulted();
  for (size_t i = 0; i < rings_.size(); ++i) {
    const DeviceRing* live = rings_[i].live();
    if (live == nullptr) continue;
    std::string why = live->broken();
    if (faulted) why = "the guest's memory file was truncated";
    // The flags of an eventfd are shared with the peer: one made blocking and filled would stop the worker that writes
    // it, on a system where it has to write (base/event_signal.h).
    const int call = fd_of(rings_[i].wish.call);
    if (call >= 0 && make_nonblocking(call)) {
      (void)drain_eventfd(call);  // frees a writer that waits already
      why = "its call eventfd was made blocking";
    }
    if (!why.empty()) sick.emplace_back(i, std::move(why));
  }
  if (sick.empty()) return;
  const Pause pause(host_);
  for (const auto& [index, why] : sick) {
    Ring& ring = rings_[index];
    retire(ring);  // reports what the ring itself knows
    if (ring.broken.empty()) break_ring(ring, why);
  }
}

void Backend::deliver_rarp() {
  if (!rarp_) return;
  for (Ring& ring : rings_) {
    if (!ring.rx || !ring_enabled(ring)) continue;
    ring.rx->inject(*rarp_);
    rarp_.reset();
    return;
  }
}

}  // namespace sw
