// SPDX-License-Identifier: Apache-2.0
// From addresses that the control plane names to the device's objects. An address may come out of the layout of a
// Python object, so it is believed only when what lies there is what it should be: the memory is read through the
// kernel, which answers a bad address with an error instead of a crash, and number, type, state and the chain of
// pointers to one device context must all agree.
#pragma once

#include <infiniband/verbs.h>

#include <vector>

#include "base/result.h"
#include "port/nic.h"

namespace sw {

struct VerbsObjects {
  ibv_context* context = nullptr;
  std::vector<ibv_qp*> tx;
  std::vector<ibv_qp*> rx_qps;  // either these
  std::vector<ibv_wq*> rx_wqs;  // or these
};

Result<VerbsObjects> check_handles(const NicHandles& handles);

}  // namespace sw
