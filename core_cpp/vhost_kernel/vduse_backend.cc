// SPDX-License-Identifier: Apache-2.0
// VDUSE back-end: messages and the device's life. vduse_rings.cc has the rings.
#include "vhost_kernel/vduse_backend.h"

#include <linux/vduse.h>
#include <sys/epoll.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "virtio/spec.h"

namespace sw {

namespace {

constexpr int kMessagesPerCall = 16;  // then the other sockets of the control loop get their turn
constexpr uint64_t kStartMs = 1;      // between our answer to DRIVER_OK and the kernel taking note of it

}  // namespace

VduseBackend::VduseBackend(VduseDevice device, uint64_t offered, EventLoop& loop, VduseHost& host,
                           QueueCounters& rx_counters, QueueCounters& tx_counters, VduseCounters& totals)
    : device_(std::move(device)),
      offered_(offered),
      loop_(loop),
      host_(host),
      rx_counters_(rx_counters),
      tx_counters_(tx_counters),
      totals_(totals) {}

VduseBackend::~VduseBackend() {
  loop_.cancel(start_timer_);
  for (Ring& ring : rings_) unwatch_kick(ring);
  loop_.remove(device_.fd());
}

Result<void> VduseBackend::open() {
  auto added = loop_.add(device_.fd(), EPOLLIN, [this](uint32_t events) { on_device(events); });
  if (added && device_.taken_over()) adopt_running_driver();
  return added;
}

// An interrupt is accepted only while the driver is up; a driver must bear one that means nothing (virtio 1.3 2.3).
void VduseBackend::adopt_running_driver() {
  if (!device_.interrupt(0)) return;
  auto features = device_.driver_features();
  if (!features) return;
  features_ = *features;
  status_ = kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk | kStatusDriverOk;
  adopted_ = true;
  if ((features_ & ~offered_) != 0) {
    for (Ring& ring : rings_) break_ring(ring, "its driver uses features that this port does not offer any more");
    return;
  }
  start_rings_soon(kStartMs);
}

bool VduseBackend::driver_up() const { return (status_ & kStatusDriverOk) != 0; }
bool VduseBackend::packed() const { return has_feature(features_, VIRTIO_F_RING_PACKED); }

void VduseBackend::shutdown() {
  loop_.cancel(std::exchange(start_timer_, 0));
  loop_.remove(device_.fd());
  stop_all();
}

void VduseBackend::on_device(uint32_t events) {
  for (int i = 0; i < kMessagesPerCall; ++i) {
    vduse_dev_request request{};
    if (!device_.receive(request)) {
      const int code = errno;
      if (code != EAGAIN && code != EINTR) {
        loop_.remove(device_.fd());
        return host_.lost(Error{code, "read a message of the VDUSE device"}.message());
      }
      break;
    }
    handle(request);
  }
  if ((events & (EPOLLERR | EPOLLHUP)) != 0) {
    loop_.remove(device_.fd());
    host_.lost("the kernel gave the device up, because a message was not answered in time");
  }
}

void VduseBackend::handle(const vduse_dev_request& request) {
  ++totals_.messages;
  vduse_dev_response response{};
  response.request_id = request.request_id;
  bool done = false;
  switch (request.type) {
    case VDUSE_GET_VQ_STATE:
      done = get_vq_state(request.vq_state.index, response);
      break;
    case VDUSE_SET_STATUS:
      done = set_status(request.s.status);
      break;
    case VDUSE_UPDATE_IOTLB:
      done = update_iotlb(request.iova.start, request.iova.last);
      break;
    default:
      break;
  }
  if (!done) ++totals_.refused;
  response.result = done ? VDUSE_REQ_RESULT_OK : VDUSE_REQ_RESULT_FAILED;
  // A request that timed out meanwhile is unknown to the kernel; it then gives the device up, which the next event says.
  (void)device_.answer(response);
}

// virtio 1.3 2.1, 3.1.1.
bool VduseBackend::set_status(uint8_t status) {
  if (status == 0 || (status & kStatusFailed) != 0) {
    stop_all();
    memory_.clear();
    features_ = 0;
    adopted_ = false;
    status_ = status;
    for (Ring& ring : rings_) {
      ring.broken.clear();
      ring.waiting.clear();
      ring.resumed = false;
    }
    return true;
  }
  const bool starts = (status & kStatusDriverOk) != 0 && !driver_up();
  if (starts) {
    auto features = device_.driver_features();
    if (!features) {
      host_.event("error", features.error().message());
      return false;
    }
    if ((*features & ~offered_) != 0 || !has_feature(*features, VIRTIO_F_VERSION_1)) {
      host_.event("error", "the driver wants features that were not offered, or is older than virtio 1.0");
      return false;
    }
    features_ = *features;
    kernel_knows_ = false;
    start_rings_soon(kStartMs);
  }
  status_ = status;
  return true;
}

bool VduseBackend::update_iotlb(uint64_t first, uint64_t last) {
  if (last < first) return false;
  if (!any_live()) {
    memory_.invalidate(first, last);
    return true;
  }
  const auto replaced = memory_.table();  // unmapped after the pause
  host_.pause();
  for (Ring& ring : rings_) retire(ring);
  memory_.invalidate(first, last);
  host_.resume();
  start_rings();  // with what the kernel shows now
  return true;
}

bool VduseBackend::get_vq_state(uint32_t index, vduse_dev_response& response) {
  if (index >= rings_.size()) return false;
  Ring& ring = rings_[index];
  if (const DeviceRing* live = ring.live(); live != nullptr) {
    host_.pause();  // a ring's position is its worker's
    ring.base = live->base();
    host_.resume();
  }
  response.vq_state.index = index;
  if (packed()) {
    auto& state = response.vq_state.packed;
    state.last_avail_idx = static_cast<uint16_t>(ring.base & 0x7fff);
    state.last_avail_counter = static_cast<uint16_t>(ring.base >> 15 & 1);
    state.last_used_idx = state.last_avail_idx;  // nothing is in flight
    state.last_used_counter = state.last_avail_counter;
  } else {
    response.vq_state.split.avail_index = static_cast<uint16_t>(ring.base);
  }
  return true;
}

}  // namespace sw
