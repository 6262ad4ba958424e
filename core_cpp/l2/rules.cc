// SPDX-License-Identifier: Apache-2.0
#include "l2/rules.h"

namespace sw {

Route route(PortId found, uint16_t vlan, const PortPolicy& source, const BridgeView& bridge) {
  if (found == kPortBlackhole) return {.drop = DropReason::kBlackhole};
  if (found == source.id) return {.drop = DropReason::kHairpin};
  // An entry may outlive its port for a moment: then the address is as good as unknown.
  const PortPolicy* const port = found < bridge.ports.size() ? bridge.ports[found] : nullptr;
  if (port == nullptr) return {};
  if (!port->enabled) return {.drop = DropReason::kPortDisabled};
  if (!port->vlan.carries(vlan)) return {.drop = DropReason::kVlanNotAllowed};
  if (source.isolated && port->isolated) return {.drop = DropReason::kIsolated};
  return {.port = found};
}

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
