// SPDX-License-Identifier: Apache-2.0
// NetDevices: what the control side of a kernel-backed port asks of network interfaces: look one up, bring it up, set
// its MTU and address. Works in the network namespace the process was in when open() was called.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/event_loop.h"
#include "base/fd.h"
#include "base/result.h"
#include "net/ethernet.h"

namespace sw {

inline constexpr size_t kMaxDeviceName = 15;

// Nothing if `name` can be an interface's name, otherwise an Error that says why not.
Result<void> check_device_name(const std::string& name);

struct NetDevice {
  int index = 0;
  uint16_t hardware_type = 0;  // ARPHRD_ETHER, ...
  bool up = false;             // administratively
  bool running = false;        // up, and with a carrier
  uint32_t mtu = 0;
  uint32_t max_mtu = 0;  // 0: the kernel does not say
  Mac mac = 0;
  std::string kind;         // of a virtual interface: "veth", "bridge", ...; empty: a device
  uint64_t tx_dropped = 0;  // by the interface, in the direction from the kernel
};

class NetDevices {
 public:
  Result<void> open();
  [[nodiscard]] Result<NetDevice> find(const std::string& name) const;  // ENODEV: no such interface
  [[nodiscard]] Result<void> set_up(const std::string& name) const;
  [[nodiscard]] Result<void> set_mtu(const std::string& name, uint32_t mtu) const;
  [[nodiscard]] Result<void> set_mac(const std::string& name, Mac mac) const;
  // SIOCETHTOOL: `request` is one of the structs of linux/ethtool.h, its command filled in. False with errno.
  [[nodiscard]] bool ethtool(const std::string& name, void* request) const;

 private:
  UniqueFd netlink_;
  UniqueFd ioctl_;
};

// Calls a function every `period_ms` from start() to stop(), on the control loop.
class Ticker {
 public:
  ~Ticker() { stop(); }
  void start(EventLoop& loop, uint64_t period_ms, std::function<void()> tick);
  void stop();

 private:
  void arm();

  EventLoop* loop_ = nullptr;
  uint64_t period_ms_ = 0;
  std::function<void()> tick_;
  EventLoop::TimerId timer_ = 0;
};

std::string mac_text(Mac mac);

}  // namespace sw
