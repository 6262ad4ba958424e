// SPDX-License-Identifier: Apache-2.0
// Port kind `virtiouser`: we are the driver, another switch (OVS-DPDK, VPP, testpmd, one of ours) is the vhost-user
// device.
//
// Theory of operation. With socket_owner_switch false the other switch listens (OVS: type=dpdkvhostuser) and we
// connect, for ever; with true we listen and it connects (OVS: type=dpdkvhostuserclient). The Frontend negotiates;
// queues are made when it knows the features and shown to workers when the device has taken over every ring. When the
// device goes or breaks a rule, workers are taken off the queues first, and the next connection starts with new memory
// and new rings.
//
// Stages (PortStatus::stage): waiting_for_peer, negotiating, setting_up_rings, running.
#pragma once

#include <memory>
#include <string>

#include "port/port.h"
#include "vhost_user/frontend.h"
#include "virtio/driver_device.h"

namespace sw {

class VirtioUserPort final : public Port, private FrontendOwner {
 public:
  VirtioUserPort(const PortConfig& config, PortCounters counters);
  ~VirtioUserPort() override;

  Result<void> open(PortHost& host) override;
  void close() override;
  [[nodiscard]] std::vector<RxQueue*> rx_queues() const override;
  [[nodiscard]] std::vector<TxQueue*> tx_queues() const override;
  [[nodiscard]] PortStatus status() const override;

 private:
  Result<const DriverMemory*> negotiated(uint64_t features, uint32_t queue_pairs) override;
  void running() override;
  void lost(const std::string& why) override;
  void socket_event(const std::string& kind, const std::string& detail) override;
  void watch_health();

  const PortConfig config_;
  const PortCounters counters_;
  PortHost* host_ = nullptr;
  std::unique_ptr<Frontend> frontend_;
  std::unique_ptr<DriverDevice> device_;
  bool running_ = false;  // device_'s queues may be used
  EventLoop::TimerId health_timer_ = 0;
  std::string last_end_;  // why the last connection ended
  uint64_t disconnects_ = 0;
  uint64_t rings_broken_ = 0;
};

Result<std::unique_ptr<Port>> make_virtiouser(const PortConfig& config, PortCounters counters);

}  // namespace sw
