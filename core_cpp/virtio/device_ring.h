// SPDX-License-Identifier: Apache-2.0
// The device's side of a virtqueue, as a queue of a port: the guest's transmitq is our RxQueue, its receiveq our
// TxQueue. Split or packed, header size, mergeable, in-order, event index and dirty logging are fixed when the ring
// starts (templates in the .cc files), never tested per frame.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/event_signal.h"
#include "net/queue.h"
#include "virtio/guest_memory.h"
#include "virtio/line_watch.h"

namespace sw {

class DirtyLog;

// Where a ring lies, in host pointers whose whole extents were checked (spec names: descriptor area, driver area =
// avail ring or driver event suppression, device area = used ring or device event suppression).
struct RingMemory {
  uint16_t size = 0;
  uint8_t* descriptors = nullptr;
  uint8_t* driver_area = nullptr;
  uint8_t* device_area = nullptr;
};

// Signals the driver where that is no write to an eventfd. Called by the worker, once a burst at most.
class RingSignal {
 public:
  virtual ~RingSignal() = default;
  virtual void signal() = 0;
};

struct DeviceRingConfig {
  uint64_t features = 0;  // as negotiated
  RingMemory ring;
  std::shared_ptr<const GuestMemory> memory;
  uint32_t base = 0;           // as SET_VRING_BASE: split 16-bit avail index; packed low half = index | wrap << 15
  int call_fd = -1;            // not owned; -1: the peer polls
  RingSignal* call = nullptr;  // not owned; used if call_fd is -1
  std::shared_ptr<EventPeer> peer = std::make_shared<EventPeer>();  // who holds call_fd
  int kick_fd = -1;                                                 // not owned; wake_fd()
  bool enabled = true;                    // false: an rx ring discards (queue_disabled), a tx ring takes nothing
  uint32_t max_frame_bytes = 65535 + 18;  // rx: longer frames are dropped (frame_too_long)
  std::shared_ptr<DirtyLog> log;          // non-null while VHOST_F_LOG_ALL
  uint64_t log_used_guest = 0;            // guest address of the device area for the log, if log_used
  bool log_used = false;                  // VHOST_VRING_F_LOG on this ring
  uint32_t far_ticks = LineWatch::default_far_ticks();  // of a cache line that comes from far; 0: none does
};

// Bytes of ring memory for `size` entries; alignment 16/2/4 (split), 16/4/4 (packed). virtio 1.3 2.7, 2.8.
struct RingExtents {
  uint64_t descriptors, driver_area, device_area;
};
RingExtents ring_extents(bool packed, uint16_t size, bool event_idx);

// What the control side may ask of a device ring. All but broken() only while the port is paused.
class DeviceRing {
 public:
  virtual ~DeviceRing() = default;
  [[nodiscard]] virtual uint32_t base() const = 0;  // as GET_VRING_BASE must return it (packed: both halves)
  // Why the ring was stopped for good (the guest broke a rule), empty while healthy. Any thread.
  [[nodiscard]] virtual std::string broken() const = 0;
  virtual void set_call_fd(int fd) = 0;
  virtual void signal_now() = 0;  // write the call eventfd whatever the suppression says: on start, after a restart
  // Buffers that broke a rule (bad address, direction, loop) and were returned empty. Any thread.
  [[nodiscard]] virtual uint64_t malformed() const = 0;
  // How long the cache lines of frame bodies take to come from the guest, or to be taken away from it where frames go to
  // it, in ticks (line_watch.h); 0: not known yet. Any thread.
  [[nodiscard]] virtual uint32_t line_ticks() const = 0;
};

class DeviceRx : public RxQueue, public DeviceRing {
 public:
  using RxQueue::RxQueue;
  // The next peek delivers this frame ahead of the guest's (RARP after a migration). Paused only. 14 to 128 bytes; up
  // to 4 may wait, further ones are ignored.
  virtual void inject(std::span<const uint8_t> frame) = 0;
};

class DeviceTx : public TxQueue, public DeviceRing {
 public:
  using TxQueue::TxQueue;
};

std::unique_ptr<DeviceRx> make_device_rx(const DeviceRingConfig& config, QueueCounters& counters);
std::unique_ptr<DeviceTx> make_device_tx(const DeviceRingConfig& config, QueueCounters& counters);

}  // namespace sw
