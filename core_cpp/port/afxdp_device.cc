// SPDX-License-Identifier: Apache-2.0
#include "port/afxdp_device.h"

#include <linux/ethtool.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>

namespace sw {

namespace {

// Network cards of hypervisors: what looks like a device is the other end of a local cable.
constexpr std::array<std::string_view, 4> kParavirtual = {"virtio_net", "vmxnet3", "hv_netvsc", "vif"};

}  // namespace

XdpDevice read_xdp_device(const NetDevices& devices, const std::string& name) {
  XdpDevice device;
  // A driver that does not answer has one queue of each kind.
  ethtool_channels channels{};
  channels.cmd = ETHTOOL_GCHANNELS;
  if (devices.ethtool(name, &channels)) {
    device.rx_queues = std::max(1U, channels.combined_count + channels.rx_count);
    device.tx_queues = std::max(1U, channels.combined_count + channels.tx_count);
  }
  ethtool_drvinfo driver{};
  driver.cmd = ETHTOOL_GDRVINFO;
  if (devices.ethtool(name, &driver)) device.driver.assign(driver.driver, strnlen(driver.driver, sizeof driver.driver));
  ethtool_value flags{};
  flags.cmd = ETHTOOL_GFLAGS;
  if (devices.ethtool(name, &flags)) device.strips_vlan_tags = (flags.data & ETH_FLAG_RXVLAN) != 0;
  return device;
}

bool has_local_senders(const NetDevice& link, const XdpDevice& device) {
  return !link.kind.empty() || std::find(kParavirtual.begin(), kParavirtual.end(), device.driver) != kParavirtual.end();
}

}  // namespace sw
