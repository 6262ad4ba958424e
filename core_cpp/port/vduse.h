// SPDX-License-Identifier: Apache-2.0
// Port kind `vduse`: we are a virtio-net device of this machine, on its vDPA bus. With virtio_vdpa bound to it the host
// has a network interface, with vhost_vdpa a virtual machine or container has the device.
//
// Theory of operation. The device is made when the port opens, or taken over if a driver has it since before. Attaching
// it to the bus is left to the administrator, and the status says how. When the kernel gives the device up (it does if
// its messages stay unanswered for 30 s) or another process serves it, the port asks for it again every second. Closing
// the port removes the device, unless it is attached: then a driver may run on it, and the next switch takes it over.
//
// Stages (PortStatus::stage): waiting_for_device, waiting_for_attach, waiting_for_driver, rings, running.
#pragma once

#include <memory>
#include <string>

#include "port/port.h"
#include "vhost_kernel/vduse_backend.h"

namespace sw {

class VdusePort final : public Port, private VduseHost {
 public:
  VdusePort(const PortConfig& config, PortCounters counters, KernelCalls& kernel);
  ~VdusePort() override;

  Result<void> open(PortHost& host) override;
  void close() override;
  [[nodiscard]] std::vector<RxQueue*> rx_queues() const override;
  [[nodiscard]] std::vector<TxQueue*> tx_queues() const override;
  [[nodiscard]] PortStatus status() const override;
  // Drivers look at it when they start.
  Result<void> set_mtu(uint32_t mtu) override;

 private:
  void pause() override { host_->pause(*this); }
  void resume() override { host_->resume(*this); }
  void event(const std::string& kind, const std::string& detail) override;
  void lost(const std::string& why) override;

  Result<void> connect();
  void connect_later();
  void watch_health();
  void describe(PortStatus& status) const;

  const PortConfig config_;
  const PortCounters counters_;
  KernelCalls& kernel_;
  VduseOptions options_;
  PortHost* host_ = nullptr;
  std::unique_ptr<VduseBackend> backend_;
  EventLoop::TimerId health_timer_ = 0;
  EventLoop::TimerId retry_timer_ = 0;
  std::string waiting_;   // why the device is not ours
  std::string last_end_;  // why it was given up last
  VduseCounters totals_;
  uint64_t connects_ = 0;
  uint64_t disconnects_ = 0;
  uint64_t events_this_second_ = 0;  // what a hostile driver says must not drown the others
  uint64_t event_second_ = 0;
};

Result<std::unique_ptr<Port>> make_vduse(const PortConfig& config, PortCounters counters);
// With a kernel of the caller's choice.
Result<std::unique_ptr<Port>> make_vduse_on(KernelCalls& kernel, const PortConfig& config, PortCounters counters);

}  // namespace sw
