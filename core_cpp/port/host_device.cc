// SPDX-License-Identifier: Apache-2.0
#include "port/host_device.h"

#include <net/if_arp.h>

#include <cerrno>

namespace sw {

Result<NetDevice> find_host_device(const NetDevices& devices, const std::string& name) {
  auto device = devices.find(name);
  if (!device) {
    if (device.error().code != ENODEV) return device.error();
    return Error{0, "open the interface " + name + ": there is none of this name (see: ip link)"};
  }
  if (device->hardware_type != ARPHRD_ETHER) {
    return Error{0, "open the interface " + name + ": it is not an Ethernet interface (hardware type " +
                        std::to_string(device->hardware_type) + ")"};
  }
  return device;
}

Result<void> check_host_mtu(const std::string& name, const NetDevice& link, uint32_t mtu) {
  if (mtu <= link.mtu) return {};
  return Error{0, "send frames with an MTU of " + std::to_string(mtu) + " to " + name + ": the interface's own is " +
                      std::to_string(link.mtu) + "; raise it with: ip link set dev " + name + " mtu " +
                      std::to_string(mtu)};
}

bool describe_host_device(PortStatus& status, const std::string& name, bool exists, const NetDevice& link,
                          bool attached, const std::string& problem) {
  if (!exists) {
    status.stage = "device_missing";
    status.detail = "the interface " + name + " is gone; the port continues when it is back";
    return false;
  }
  if (!link.up) {
    status.stage = "device_down";
    status.detail = "the interface is down; set it up with: ip link set " + name + " up";
  } else if (!attached) {
    status.stage = "device_down";
    status.detail = problem.empty() ? "the interface came up a moment ago" : problem;
  } else if (!link.running) {
    status.stage = "no_carrier";
    status.detail = "the interface is up but has no carrier: check the cable or the other end";
  } else {
    status.stage = "running";
    status.up = true;
  }
  status.facts["mac"] = mac_text(link.mac);
  status.facts["mtu"] = std::to_string(link.mtu);
  return true;
}

}  // namespace sw
