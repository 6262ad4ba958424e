// SPDX-License-Identifier: Apache-2.0
// VdpaSession: one period in which a vhost-vdpa device (/dev/vhost-vdpa-N) is ours and runs on our rings.
//
// Theory of operation (linux/vhost.h; virtio 1.3 3.1.1 for the order of the status bits). start() opens the device,
// resets it, agrees on features, reads the configuration space, maps the rings' memory into the device's address space
// in one batch, hands over rings, says DRIVER_OK and gives the device its orders over the control queue. Every step may
// sleep: hardware builds its queues, a VDUSE device asks a daemon, and an order waits for its answer. So start() and
// the destructor (which closes, and so resets, the device) belong on a thread of their own; everything else is quick.
//
// The device sees our memory at our own addresses if its IOVA range allows that, and otherwise from the range's first
// address on. All rings, the control queue's too, lie in address space 0, which a device may have several of.
//
// The control queue is used if it has something to say: how many queue pairs (VIRTIO_NET_F_MQ, when more than one are
// wished for), and that frames to every address are to come in (VIRTIO_NET_F_CTRL_RX), which a port of a switch needs.
// VLAN filters stay unnegotiated, so that the device passes every tag (5.1.6.5.3). A device that has fewer pairs than
// asked is an error; one that cannot or will not be promiscuous is used as it is, and limits() says so.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "vhost_kernel/net_config.h"
#include "vhost_kernel/vhost_device.h"
#include "virtio/driver_device.h"

namespace sw {

struct VdpaWishes {
  std::string device;     // path
  uint64_t features = 0;  // usable, of rings and offloads
  uint32_t queue_pairs = 1;
  uint32_t ring_size = 256;     // a power of two; the device may want smaller ones
  uint64_t answer_ms = 10'000;  // how long a command on the control queue may take
};

enum class Promiscuous : uint8_t { kOn, kNotOffered, kRefused };

class VdpaSession {
 public:
  // An error whose code is EINVAL is final; after any other one the device may come, or be given free.
  static Result<std::unique_ptr<VdpaSession>> start(KernelCalls& kernel, const VdpaWishes& wishes);
  ~VdpaSession();
  VdpaSession(const VdpaSession&) = delete;
  VdpaSession& operator=(const VdpaSession&) = delete;

  // Make the queues: receive buffers are posted, the device is kicked. Once.
  DriverDevice& make_queues(std::span<QueueCounters> rx_counters, std::span<QueueCounters> tx_counters);

  // Does the device still live? A device that is being removed loses its file first and waits for us to close it.
  [[nodiscard]] Result<void> check() const;
  // Read the configuration space again: link state and the like.
  Result<void> refresh_config();
  // Readable when the configuration changed.
  [[nodiscard]] int config_fd() const { return config_changed_.get(); }

  [[nodiscard]] uint64_t offered() const { return offered_; }
  [[nodiscard]] uint64_t features() const { return features_; }
  [[nodiscard]] uint32_t queue_pairs() const { return queue_pairs_; }
  [[nodiscard]] uint32_t device_queue_pairs() const { return device_queue_pairs_; }  // that it could have
  [[nodiscard]] Promiscuous promiscuous() const { return promiscuous_; }
  [[nodiscard]] uint32_t ring_size() const { return ring_size_; }
  [[nodiscard]] const NetConfigSpace& config() const { return config_; }
  [[nodiscard]] bool link_up() const;
  [[nodiscard]] const std::string& limits() const { return limits_; }  // what we asked for and did not get
  [[nodiscard]] uint64_t memory_bytes() const { return memory_bytes_; }
  [[nodiscard]] const std::string& memory_warning() const { return memory_warning_; }
  [[nodiscard]] uint64_t device_base() const { return device_base_; }

 private:
  explicit VdpaSession(VhostDevice device);
  Result<void> identify();
  Result<void> negotiate(const VdpaWishes& wishes);
  Result<void> choose_queues(const VdpaWishes& wishes);
  Result<void> hand_over_memory();
  Result<void> share_address_space();
  Result<void> hand_over_rings();
  Result<void> give_orders(uint64_t answer_ms);
  [[nodiscard]] uint32_t control_ring() const;  // its number
  // Ring numbers of the device, with their rings: those of the queues and the control queue's.
  [[nodiscard]] std::vector<std::pair<uint32_t, const DriverMemory::Ring*>> rings() const;
  Result<void> set_status(uint8_t bits);
  [[nodiscard]] Result<uint8_t> status() const;

  // Destroyed from the bottom up: the device is closed, and so leaves the memory alone, before that goes.
  std::unique_ptr<DriverMemory> memory_;  // until make_queues()
  std::unique_ptr<DriverDevice> queues_;
  UniqueFd config_changed_;
  VhostDevice device_;

  uint64_t identity_ = 0;  // of the file that was opened
  uint64_t offered_ = 0;
  uint64_t features_ = 0;
  uint64_t offered_backend_features_ = 0;
  uint64_t backend_features_ = 0;  // that we took
  uint8_t status_ = 0;
  uint32_t queue_pairs_ = 1;
  uint32_t device_queue_pairs_ = 1;
  uint32_t ring_size_ = 0;
  uint32_t control_entries_ = 0;  // 0: no control queue
  Promiscuous promiscuous_ = Promiscuous::kNotOffered;
  NetConfigSpace config_{};
  std::string limits_;
  uint64_t memory_bytes_ = 0;
  std::string memory_warning_;
  uint64_t device_base_ = 0;
};

}  // namespace sw
