// SPDX-License-Identifier: Apache-2.0
// What both directions of a device ring share: the guest's memory, the call eventfd, the reason it was stopped for.
#pragma once

#include <fcntl.h>

#include <cstdint>
#include <memory>
#include <string>

#include "base/event_signal.h"
#include "stats/counters.h"
#include "virtio/device_ring.h"
#include "virtio/guest_cursor.h"
#include "virtio/spec.h"

namespace sw {

// Queue is DeviceRx or DeviceTx; Ring is SplitRing or PackedRing.
template <class Queue, class Ring>
class DeviceQueue : public Queue {
 public:
  template <class... RingArgs>
  DeviceQueue(const DeviceRingConfig& config, QueueCounters& counters, RingArgs... ring_args)
      : Queue(counters),
        memory_(config.memory),
        cursor_(memory_.get()),
        header_bytes_(net_header_bytes(config.features)),
        enabled_(config.enabled),
        kick_fd_(config.kick_fd),
        call_(config.call),
        peer_(config.peer),
        ring_(config, ring_args...) {
    DeviceQueue::set_call_fd(config.call_fd);
    ring_.refuse_kicks();
  }

  void notify() final {
    if (ring_.must_signal() && call()) this->counters_->notifications.add(1);
  }
  [[nodiscard]] uint32_t base() const final { return ring_.base(); }
  [[nodiscard]] std::string broken() const final { return ring_.fault().text(); }
  [[nodiscard]] uint64_t malformed() const final { return malformed_.get(); }
  void set_call_fd(int fd) final {
    call_fd_ = fd;
    if (fd < 0) return;
    // The peer made the eventfd and may have left it blocking: a full counter must not stop a worker that has to write.
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK) == 0) ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
  }
  void signal_now() final { call(); }

 protected:
  const std::shared_ptr<const GuestMemory> memory_;
  GuestCursor cursor_;
  const uint32_t header_bytes_;
  const bool enabled_;
  const int kick_fd_;
  RingSignal* const call_;
  const std::shared_ptr<EventPeer> peer_;
  int call_fd_ = -1;
  Counter malformed_;
  Ring ring_;

 private:
  bool call() const {
    if (call_fd_ < 0) [[unlikely]] {
      if (call_ != nullptr) call_->signal();
      return call_ != nullptr;
    }
    // A full counter stays full: then the peer has not read it yet and will wake up anyway.
    (void)signal_eventfd(call_fd_, *peer_);
    return true;
  }
};

}  // namespace sw
