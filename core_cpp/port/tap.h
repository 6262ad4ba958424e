// SPDX-License-Identifier: Apache-2.0
// Port kind "tap": we are the user-space side of a tap device, the host's network stack is our peer.
#pragma once

#include <memory>

#include "base/result.h"
#include "port/port.h"

namespace sw {

Result<std::unique_ptr<Port>> make_tap(const PortConfig& config, PortCounters counters);

}  // namespace sw
