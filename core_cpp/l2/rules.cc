// SPDX-License-Identifier: Apache-2.0
#include "l2/rules.h"

namespace sw {

void FloodSet::compute(uint16_t vlan, bool unknown, const PortPolicy& source, const BridgeView& bridge) {
  count_ = 0;
  drop_ = DropReason::kNoDestination;
  for (const PortPolicy* port : bridge.members) {
    if (port->id == source.id || !port->enabled || !port->vlan.carries(vlan)) continue;
    if (source.isolated && port->isolated) continue;
    if (unknown && !port->flood) {
      drop_ = DropReason::kFloodDisabled;  // somebody would be there, but does not want it
      continue;
    }
    ports_[count_++] = port->id;
  }
}

}  // namespace sw
