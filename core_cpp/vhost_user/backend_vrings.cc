// SPDX-License-Identifier: Apache-2.0
// Back-end: the messages about one ring. They change its wish; backend_apply.cc does the rest.
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "vhost_user/backend.h"
#include "vhost_user/backend_detail.h"
#include "virtio/spec.h"

namespace sw {

namespace {

// A worker writes to this descriptor or sleeps on it, so it must be what the protocol says and must not block. Its
// flags are shared with the front-end; check_health() looks at them again.
Result<void> adopt_eventfd(int fd) {
  std::array<char, 64> target{};
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t bytes = ::readlink(link.c_str(), target.data(), target.size());
  if (bytes > 0 && std::string_view(target.data(), static_cast<size_t>(bytes)) != "anon_inode:[eventfd]") {
    return Error{0, "the file descriptor is no eventfd"};
  }
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return Error{errno, "make an eventfd non-blocking"};
  return {};
}

}  // namespace

Result<Backend::Ring*> Backend::ring_at(uint32_t index) {
  const size_t served = 2 * config_.rx_counters.size();
  if (index >= kMaxVrings) return Error{0, "ring " + std::to_string(index) + " (at most 256 are possible)"};
  if (index >= served) {
    return Error{0, ring_name(index) + " is beyond the " + std::to_string(served / 2) +
                        " queue pairs of this port: raise `queues` of the port or lower the guest's"};
  }
  if (index >= rings_.size()) rings_.resize(index + 1);
  return &rings_[index];
}

Result<Backend::Ring*> Backend::ring_of_fd_message(VhostMessage& request, std::shared_ptr<UniqueFd>& fd) {
  const auto value = request.as<uint64_t>();
  if ((value & ~(kVringIndexMask | kVringNoFd)) != 0) return Error{0, "a ring index of more than 8 bits"};
  if (!request.fds.empty()) {
    if (auto adopted = adopt_eventfd(request.fds.front().get()); !adopted) return adopted.error();
    fd = std::make_shared<UniqueFd>(std::move(request.fds.front()));
  }
  return ring_at(static_cast<uint32_t>(value & kVringIndexMask));
}

Result<void> Backend::set_vring_num(VhostMessage& request, VhostMessage&) {
  const auto state = request.as<VhostVringState>();
  auto ring = ring_at(state.index);
  if (!ring) return ring.error();
  if (state.num == 0 || state.num > kMaxRingSize) {
    return Error{0, ring_name(state.index) + " of " + std::to_string(state.num) + " entries (1 to 32768 are possible)"};
  }
  Wish next = (*ring)->wish;
  if (next.size == state.num) return {};
  if ((*ring)->live() != nullptr) return Error{0, ring_name(state.index) + " runs: its size cannot change"};
  next.size = state.num;
  return change_ring(**ring, std::move(next));
}

Result<void> Backend::set_vring_addr(VhostMessage& request, VhostMessage&) {
  const auto address = request.as<VhostVringAddr>();
  auto ring = ring_at(address.index);
  if (!ring) return ring.error();
  Wish next = (*ring)->wish;
  if (next.address && std::memcmp(&*next.address, &address, sizeof address) == 0) return {};
  next.address = address;
  return change_ring(**ring, std::move(next));
}

Result<void> Backend::set_vring_base(VhostMessage& request, VhostMessage&) {
  const auto state = request.as<VhostVringState>();
  auto ring = ring_at(state.index);
  if (!ring) return ring.error();
  if ((*ring)->live() != nullptr) return Error{0, ring_name(state.index) + " runs: its base cannot change"};
  Wish next = (*ring)->wish;
  next.base = state.num;
  return change_ring(**ring, std::move(next));
}

// vhost-user "Ring states": the ring stops. Also for one that never ran. What was said about it is forgotten, except
// base, call, err and enabled, which front-ends do not always repeat.
Result<void> Backend::get_vring_base(VhostMessage& request, VhostMessage& reply) {
  const auto state = request.as<VhostVringState>();
  auto found = ring_at(state.index);
  if (!found) return found.error();
  Ring& ring = **found;
  const Wish replaced = ring.wish;  // its kick is closed when no worker sleeps on it any more
  if (ring.live() != nullptr) {
    const Pause pause(host_);
    retire(ring);
  }
  ring.wish.address.reset();
  ring.wish.kicked = false;
  ring.wish.kick.reset();
  ring.broken.clear();
  ring.waiting = plan_ring(ring.wish, ring.broken).why;
  // QEMU before 8.1 resets the device first and asks afterwards, and goes on from the answer when a paused guest runs
  // on.
  const std::optional<uint32_t> stopped_at = ring.wish.base ? ring.wish.base : ring.reset_base;
  uint32_t base = stopped_at.value_or(0);
  if (features_ && has_feature(*features_, VIRTIO_F_RING_PACKED)) {
    // Everything taken was given back, so the used half equals the available half. A ring that never ran is in lap one.
    const uint32_t half = stopped_at ? base & 0xffff : 0x8000;
    base = half | half << 16;
  }
  reply.set(VhostVringState{state.index, base});
  return {};
}

// vhost-user "Ring states": the ring starts now, not at the first kick, since we poll and kicks sent while nobody
// listened are lost.
Result<void> Backend::set_vring_kick(VhostMessage& request, VhostMessage&) {
  std::shared_ptr<UniqueFd> kick;
  auto ring = ring_of_fd_message(request, kick);
  if (!ring) return ring.error();
  Wish next = (*ring)->wish;
  next.kicked = true;
  next.kick = std::move(kick);
  return change_ring(**ring, std::move(next));
}

Result<void> Backend::set_vring_call(VhostMessage& request, VhostMessage&) {
  std::shared_ptr<UniqueFd> call;
  auto found = ring_of_fd_message(request, call);
  if (!found) return found.error();
  Ring& ring = **found;
  const std::shared_ptr<UniqueFd> replaced = std::exchange(ring.wish.call, call);  // closed after the pause
  if (DeviceRing* live = ring.live(); live != nullptr) {
    const Pause pause(host_);
    live->set_call_fd(call ? call->get() : -1);
    if (!replaced && call) live->signal_now();  // what was published so far, nobody was told
  }
  return {};
}

Result<void> Backend::set_vring_err(VhostMessage& request, VhostMessage&) {
  std::shared_ptr<UniqueFd> err;
  auto ring = ring_of_fd_message(request, err);
  if (!ring) return ring.error();
  (*ring)->wish.err = std::move(err);
  return {};
}

Result<void> Backend::set_vring_enable(VhostMessage& request, VhostMessage&) {
  const auto state = request.as<VhostVringState>();
  auto ring = ring_at(state.index);
  if (!ring) return ring.error();
  if (state.num > 1) return Error{0, "enable takes 0 or 1, not " + std::to_string(state.num)};
  Wish next = (*ring)->wish;
  if (next.enabled == (state.num == 1)) return {};
  next.enabled = state.num == 1;
  return change_ring(**ring, std::move(next));
}

}  // namespace sw
