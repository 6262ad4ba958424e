// SPDX-License-Identifier: Apache-2.0
// Port kind "afxdp": queues of a network interface of the host, past its network stack, through AF_XDP sockets.
#pragma once

#include <memory>

#include "base/result.h"
#include "port/port.h"

namespace sw {

Result<std::unique_ptr<Port>> make_afxdp(const PortConfig& config, PortCounters counters);

}  // namespace sw
