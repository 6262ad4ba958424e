// SPDX-License-Identifier: Apache-2.0
// Port kind "afpacket": an existing network interface of the host, through AF_PACKET sockets.
#pragma once

#include <memory>

#include "base/result.h"
#include "port/port.h"

namespace sw {

Result<std::unique_ptr<Port>> make_afpacket(const PortConfig& config, PortCounters counters);

}  // namespace sw
