// SPDX-License-Identifier: Apache-2.0
// An Ethernet interface of the host that a port uses and does not own (afpacket, afxdp): it comes, goes, and changes by
// other hands, and nothing of it is changed here.
#pragma once

#include <string>

#include "port/net_device.h"
#include "port/port.h"

namespace sw {

Result<NetDevice> find_host_device(const NetDevices& devices, const std::string& name);

// May a port promise `mtu` (0: nothing) on this interface?
Result<void> check_host_mtu(const std::string& name, const NetDevice& link, uint32_t mtu);

// How far the interface is, as stage and detail of the port; `problem`: why it is not `attached` though it is up.
// False: it is not there, and there is nothing more to say.
bool describe_host_device(PortStatus& status, const std::string& name, bool exists, const NetDevice& link,
                          bool attached, const std::string& problem);

}  // namespace sw
