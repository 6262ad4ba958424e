// SPDX-License-Identifier: Apache-2.0
// TapVhost: the queues of a tap port whose frames the kernel's vhost-net moves: we are the virtio driver, a thread of
// the kernel is the device, and the tap is behind it.
//
// What it pays: no system call per frame. A worker that is busy publishes ring entries, and writes an eventfd once a
// burst when the kernel's thread has gone to sleep. Frames are copied once more than with `read`, by that thread and
// not by the worker. What becomes of a frame behind the ring nobody tells us: while the interface is down the port shows
// no transmit queue, so that its frames are dropped and counted here.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "port/kernel_frame.h"
#include "port/port.h"
#include "vhost_kernel/vhost_net.h"
#include "virtio/driver_device.h"

namespace sw {

class TapVhost {
 public:
  TapVhost();
  ~TapVhost();
  TapVhost(const TapVhost&) = delete;
  TapVhost& operator=(const TapVhost&) = delete;

  // Deep rings ride out the moments in which the kernel's thread waits for a CPU.
  static constexpr uint16_t kRingSize = 1024;

  // Queue pair q moves frames of taps[q], which stay open as long as this exists. The taps have a virtio-net header of
  // 12 bytes and offloads `caps`.
  static Result<std::unique_ptr<TapVhost>> make(std::unique_ptr<VhostNet> net, std::span<const int> taps,
                                                const OffloadCaps& caps, PortCounters counters);

  [[nodiscard]] std::vector<RxQueue*> rx_queues() const;
  [[nodiscard]] std::vector<TxQueue*> tx_queues() const;
  [[nodiscard]] const DriverMemory& memory() const { return device_->memory(); }
  KernelDrops& kernel_drops();
  // Why a ring stands still for good, or empty. Tells once what the kernel reported.
  [[nodiscard]] std::string broken();

 private:
  class FirstRx;

  std::unique_ptr<DriverDevice> device_;
  std::unique_ptr<FirstRx> first_rx_;
  std::unique_ptr<VhostNet> net_;  // goes first: then the kernel is off the rings
};

}  // namespace sw
