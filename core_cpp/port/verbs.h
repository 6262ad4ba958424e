// SPDX-License-Identifier: Apache-2.0
// Port kind "verbs": a NIC whose queues are ibverbs raw packet queue pairs, past the kernel. The control plane opens
// the device (port/nic.h); here frames move.
#pragma once

#include <memory>

#include "port/port.h"

namespace sw {

// Without libibverbs' header at build time this is an Error that says so.
Result<std::unique_ptr<Port>> make_verbs(const PortConfig& config, PortCounters counters);

}  // namespace sw
