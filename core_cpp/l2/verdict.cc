// SPDX-License-Identifier: Apache-2.0
#include "l2/verdict.h"

#include "l2/fdb.h"
#include "l2/rules.h"

namespace sw {

DropReason verdict(const uint8_t* head, uint32_t head_len, const PortPolicy& source, const BridgeView& bridge) {
  const Admission seen = admit(head, head_len, source);
  if (seen.drop != kNoDrop) return seen.drop;
  const bool group = is_multicast(seen.destination);
  if (!group) {
    PortId found = bridge.fdb->lookup(seen.vlan, seen.destination);
    // A frame teaches before it is looked up.
    if (found == kNoPort && source.learning && seen.destination == seen.source) found = source.id;
    const Route way = route(found, seen.vlan, source, bridge);
    if (way.drop != kNoDrop || way.port != kNoPort) return way.drop;
  }
  FloodSet all;
  all.compute(seen.vlan, !group, source, bridge);
  return all.ports().empty() ? all.drop() : kNoDrop;
}

}  // namespace sw
