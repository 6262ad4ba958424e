// SPDX-License-Identifier: Apache-2.0
// Port kind "tap": we are the user-space side of a tap device, the host's network stack is our peer. With `vhost` the
// kernel's vhost-net stands between: tap_vhost.h.
#pragma once

#include <memory>

#include "base/result.h"
#include "port/port.h"
#include "vhost_kernel/system.h"

namespace sw {

Result<std::unique_ptr<Port>> make_tap(const PortConfig& config, PortCounters counters);
// With vhost-net of another kernel than the real one.
Result<std::unique_ptr<Port>> make_tap(const PortConfig& config, PortCounters counters, KernelCalls& vhost_kernel);

}  // namespace sw
