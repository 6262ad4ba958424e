// SPDX-License-Identifier: Apache-2.0
// Guest: a whole virtual machine's network card in software, for tests and users: connects to a switch's vhost-user
// port, sends and receives frames with their virtio-net headers. No hypervisor involved.
//
// Theory of operation. A thread of its own runs the Frontend and takes received frames into a list, woken by the
// switch's notifications like an interrupt-driven guest. One mutex guards everything; the thread holds it while
// callbacks run.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/event_loop.h"
#include "vhost_user/frontend.h"
#include "virtio/driver_device.h"

namespace sw {

struct GuestOptions {
  std::string socket;
  bool listen = false;  // true: the switch connects to us
  uint32_t queues = 1;  // queue pairs at most
  bool packed = false;
  bool mergeable = true;
  bool in_order = false;
  bool event_idx = false;
  bool offloads = false;  // checksum and TCP segmentation, both directions
  bool legacy = false;    // no VERSION_1: header of 10 bytes unless mergeable
  uint16_t ring_size = 256;
  std::optional<uint64_t> features;  // exactly these (where the switch offers them) instead of the choices above
  HugePages huge = HugePages::kOff;
};

// The virtio features that the options ask for.
uint64_t guest_features(const GuestOptions& options);
// Those of them without which the guest would not be what was asked for: the ring format, the header.
uint64_t guest_required_features(const GuestOptions& options);

struct GuestFrame {
  std::vector<uint8_t> bytes;
  VnetHeader vnet;
  uint32_t queue = 0;
};

struct GuestStatus {
  std::string stage;
  std::string detail;
  uint64_t features = 0;
  uint32_t queue_pairs = 0;
  uint64_t times_ready = 0;  // handshakes that succeeded
  std::string broken;        // rule that the switch broke, if it did
  uint64_t tx_frames = 0, tx_bytes = 0, rx_frames = 0, rx_bytes = 0;
  uint64_t kicks = 0;    // notifications that we sent
  uint64_t dropped = 0;  // received frames that were unusable or overflowed the list
};

class Guest : private FrontendOwner {
 public:
  explicit Guest(GuestOptions options);
  ~Guest() override;
  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;

  Result<void> start();
  void stop();  // disconnect; start() may follow

  // All of these: any thread, timeouts in milliseconds.
  bool wait_ready(uint64_t timeout_ms);
  // Hand a frame to the switch; waits for room in the ring. The header asks for checksum or segmentation. Error: not
  // ready, no such queue, ring full until the timeout, frame longer than a guest may send.
  Result<void> send(std::span<const uint8_t> frame, uint32_t queue, const VnetHeader& vnet, uint64_t timeout_ms);
  // The oldest received frame, in order per queue.
  std::optional<GuestFrame> receive(uint64_t timeout_ms);
  [[nodiscard]] GuestStatus status();

 private:
  Result<const DriverMemory*> negotiated(uint64_t features, uint32_t queue_pairs) override;
  void running() override;
  void lost(const std::string& why) override;

  void run();
  void take_frames(uint32_t queue);
  [[nodiscard]] bool ready() const { return ready_; }

  static constexpr size_t kMostWaitingFrames = 65'536;

  const GuestOptions options_;
  std::vector<QueueCounters> rx_counters_;
  std::vector<QueueCounters> tx_counters_;
  PortWorkerCounters drops_;

  std::mutex mutex_;  // everything below
  std::condition_variable changed_;
  EventLoop loop_;
  std::unique_ptr<Frontend> frontend_;
  std::unique_ptr<DriverDevice> device_;
  bool ready_ = false;
  bool stopping_ = false;
  std::deque<GuestFrame> received_;
  uint64_t overflowed_ = 0;
  std::unique_ptr<Batch> rx_batch_;
  std::unique_ptr<Batch> tx_batch_;
  std::thread thread_;
};

}  // namespace sw
