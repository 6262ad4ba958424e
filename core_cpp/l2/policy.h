// SPDX-License-Identifier: Apache-2.0
// What the configuration says about ports and bridges, in the form the forwarding pass reads. Immutable inside a Plan.
#pragma once

#include <bitset>
#include <cstdint>
#include <vector>

#include "net/ethernet.h"

namespace sw {

using PortId = uint16_t;  // dense slot number, reused after a port is gone
inline constexpr PortId kMaxPorts = 1024;
inline constexpr PortId kNoPort = 0xffff;

// Which VLANs a port carries. Default: a trunk of every VLAN whose untagged frames are VLAN 0 (a VLAN of its own),
// which passes all frames as they are: the behaviour of a plain switch.
struct VlanPolicy {
  bool access = false;    // true: member of `untagged` only, frames untagged on the wire
  uint16_t untagged = 0;  // VID of untagged frames: access VID, or the trunk's native VID (0: none)
  std::bitset<4096> trunk = std::bitset<4096>().set();  // VIDs that a trunk carries tagged (native is always carried)

  // VLAN 0 exists only where untagged frames stay unclassified: a port with another native VLAN would mix it with its
  // own.
  [[nodiscard]] bool carries(uint16_t vid) const {
    return vid == untagged || (!access && vid != 0 && trunk.test(vid & kVlanIdMask));
  }
};

struct PortPolicy {
  PortId id = kNoPort;
  bool enabled = true;  // administratively up
  bool learning = true;
  bool flood = true;       // receives frames with unknown unicast destination; broadcast and multicast always
  bool isolated = false;   // protected: exchanges nothing with other isolated ports
  uint32_t mac_limit = 0;  // learned MACs at most; 0: only the bridge's limit
  VlanPolicy vlan;
};

class Fdb;

// One bridge as a Plan shows it. `ports` is indexed by PortId and null for ports of other bridges.
struct BridgeView {
  Fdb* fdb = nullptr;                      // outlives the plan
  std::vector<const PortPolicy*> ports;    // kMaxPorts entries
  std::vector<const PortPolicy*> members;  // the non-null ones, enabled or not
  bool vlan_transparent = true;  // every member has the default VlanPolicy: no frame ever needs its tag edited
};

}  // namespace sw
