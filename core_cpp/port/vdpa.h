// SPDX-License-Identifier: Apache-2.0
// Port kind `vdpa`: a device that speaks virtio itself, behind /dev/vhost-vdpa-N (a NIC with vDPA, the kernel's
// simulator, another switch behind VDUSE). We are its driver.
//
// Theory of operation. Taking the device into service and letting go of it sleep in the kernel for as long as the
// device likes, so both happen on threads that own nothing of the port: start() runs on one and leaves its session in
// an Attempt; a session that is done with is closed by another. The control loop only collects results. While the port
// runs, the device's file is looked at every 100 ms: when it is about to be removed the kernel takes the file away and
// waits for us to let go. Then, and whenever it fails, the port is down, and asks for the device again every second at
// most, for ever.
//
// Stages (PortStatus::stage): waiting_for_device, setting_up, link_down, running.
#pragma once

#include <memory>
#include <string>

#include "port/port.h"
#include "vhost_kernel/vdpa_session.h"

namespace sw {

class VdpaPort final : public Port {
 public:
  VdpaPort(const PortConfig& config, PortCounters counters, KernelCalls& kernel);
  ~VdpaPort() override;

  Result<void> open(PortHost& host) override;
  void close() override;
  [[nodiscard]] std::vector<RxQueue*> rx_queues() const override;
  [[nodiscard]] std::vector<TxQueue*> tx_queues() const override;
  [[nodiscard]] PortStatus status() const override;

 private:
  struct Attempt;
  void begin();
  void finish();
  void adopt(std::unique_ptr<VdpaSession> session);
  void drop(const std::string& why);
  void retry_later();
  void watch_health();
  void on_config_change();

  const PortConfig config_;
  const PortCounters counters_;
  KernelCalls& kernel_;
  const VdpaWishes wishes_;
  PortHost* host_ = nullptr;
  std::shared_ptr<Attempt> attempt_;      // under way on its thread
  std::unique_ptr<VdpaSession> session_;  // in service
  DriverDevice* queues_ = nullptr;        // session_'s
  EventLoop::TimerId health_timer_ = 0;
  EventLoop::TimerId retry_timer_ = 0;
  uint64_t retry_ms_ = 0;
  std::string waiting_;   // why the device is not ours
  std::string last_end_;  // why it was given up last
  uint64_t connects_ = 0;
  uint64_t disconnects_ = 0;
  uint64_t rings_broken_ = 0;
  uint64_t link_changes_ = 0;
};

Result<std::unique_ptr<Port>> make_vdpa(const PortConfig& config, PortCounters counters);
// With a kernel of the caller's choice.
Result<std::unique_ptr<Port>> make_vdpa_on(KernelCalls& kernel, const PortConfig& config, PortCounters counters);

}  // namespace sw
