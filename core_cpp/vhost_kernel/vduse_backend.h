// SPDX-License-Identifier: Apache-2.0
// VduseBackend: the device's side of one VDUSE device. Answers the kernel's messages and runs the driver's rings.
//
// Theory of operation (linux/vduse.h). Three messages come over the device's file and are answered at once: the driver
// changed the device status, mappings changed, where does a ring stand. A ring starts when all of this holds: the
// kernel knows DRIVER_OK (an interrupt is refused until then, and would be lost), the driver made the ring ready, and a
// buffer lies in it. The last one because the kernel shows the memory of a driver of its own only from its first buffer
// on. The first kick says when; a timer looks too, for drivers that make rings ready late. Once started, the ring's kick
// belongs to its worker.
//
// A device that was taken over from a predecessor (killed, or restarted) may have a driver running on it. Where its
// rings stand is in the rings: a split ring's used index, since buffers are returned in order, and a packed ring's
// descriptors (virtio/packed_position.h). Nothing is kept beside them.
//
// Rings change only between VduseHost::pause() and resume(). A driver that breaks a rule loses the ring until it resets
// the device; nothing else is touched.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "stats/counters.h"
#include "vhost_kernel/vduse_device.h"
#include "vhost_kernel/vduse_memory.h"
#include "virtio/device_ring.h"

namespace sw {

// What the back-end needs from the port it belongs to.
class VduseHost {
 public:
  virtual ~VduseHost() = default;
  virtual void pause() = 0;   // returns when no worker uses this port's queues any more; nestable
  virtual void resume() = 0;  // workers use what live_rx() and live_tx() say now
  virtual void event(const std::string& kind, const std::string& detail) = 0;
  // The device cannot be served any more, for this reason. The back-end may be destroyed later, not from here.
  virtual void lost(const std::string& why) = 0;
};

struct VduseCounters {
  uint64_t messages = 0;
  uint64_t refused = 0;  // messages that were answered with an error
  uint64_t rings_broken = 0;
};

class VduseBackend {
 public:
  struct Ring {
    std::unique_ptr<DeviceRx> rx;  // transmitq of the driver
    std::unique_ptr<DeviceTx> tx;  // receiveq of the driver
    std::unique_ptr<RingSignal> interrupt;
    UniqueFd kick;
    bool watched = false;  // the loop waits for the first kick
    uint16_t size = 0;
    uint32_t base = 0;     // where it stood when it stopped last, as GET_VRING_BASE
    bool resumed = false;  // base is its place in this life of the driver, the kernel's is older
    std::string waiting;   // why it does not run, for a person
    std::string broken;    // why it was stopped, until the driver resets the device

    [[nodiscard]] DeviceRing* live() const;
  };

  // `offered`: what the device was made with. Counters: one of each direction.
  VduseBackend(VduseDevice device, uint64_t offered, EventLoop& loop, VduseHost& host, QueueCounters& rx_counters,
               QueueCounters& tx_counters, VduseCounters& totals);
  ~VduseBackend();  // the host has paused the port, or called shutdown()
  VduseBackend(const VduseBackend&) = delete;
  VduseBackend& operator=(const VduseBackend&) = delete;

  Result<void> open();
  // Stop everything. The device itself stays open.
  void shutdown();
  [[nodiscard]] VduseDevice& device() { return device_; }

  // Look for rings that broke or can start. Every 100 ms or so.
  void check_health();

  [[nodiscard]] std::vector<RxQueue*> live_rx() const { return {rings_[1].rx.get()}; }
  [[nodiscard]] std::vector<TxQueue*> live_tx() const { return {rings_[0].tx.get()}; }

  // For status.
  [[nodiscard]] const std::array<Ring, VduseDevice::kQueues>& rings() const { return rings_; }
  [[nodiscard]] uint8_t device_status() const { return status_; }
  [[nodiscard]] uint64_t features() const { return features_; }
  [[nodiscard]] bool driver_up() const;
  [[nodiscard]] bool packed() const;
  [[nodiscard]] const VduseMemory& memory() const { return memory_; }

 private:
  void on_device(uint32_t events);
  void handle(const vduse_dev_request& request);
  bool set_status(uint8_t status);
  bool update_iotlb(uint64_t first, uint64_t last);
  bool get_vq_state(uint32_t index, vduse_dev_response& response);
  void start_rings_soon(uint64_t delay_ms);
  void start_rings();
  bool prepare(uint32_t index, DeviceRingConfig& config);
  bool place(Ring& ring, const vduse_vq_info& info, DeviceRingConfig& config);
  void start(uint32_t index, DeviceRingConfig config);
  void retire(Ring& ring);
  void break_ring(Ring& ring, const std::string& why);
  void stop_all();
  void watch_kick(uint32_t index);
  void unwatch_kick(Ring& ring);
  [[nodiscard]] bool any_live() const;
  void adopt_running_driver();

  VduseDevice device_;
  const uint64_t offered_;
  EventLoop& loop_;
  VduseHost& host_;
  QueueCounters& rx_counters_;
  QueueCounters& tx_counters_;
  VduseCounters& totals_;

  uint8_t status_ = 0;
  uint64_t features_ = 0;
  bool kernel_knows_ = false;  // of DRIVER_OK: it accepts interrupts
  bool adopted_ = false;       // the driver was running before us, and no reset came since
  VduseMemory memory_;
  std::array<Ring, VduseDevice::kQueues> rings_;
  EventLoop::TimerId start_timer_ = 0;
};

}  // namespace sw
