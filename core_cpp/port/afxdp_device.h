// SPDX-License-Identifier: Apache-2.0
// What AF_XDP has to know of an interface besides its link state: queues, driver, what it does to frames before we see
// them.
#pragma once

#include <cstdint>
#include <string>

#include "port/net_device.h"

namespace sw {

struct XdpDevice {
  uint32_t rx_queues = 1;
  uint32_t tx_queues = 1;
  std::string driver;             // empty: it does not say
  bool strips_vlan_tags = false;  // takes tags out of received frames (rx-vlan-offload)
};

XdpDevice read_xdp_device(const NetDevices& devices, const std::string& name);

// May frames come from a sender on this machine (or from the hypervisor's) that never passed a wire?
bool has_local_senders(const NetDevice& link, const XdpDevice& device);

}  // namespace sw
