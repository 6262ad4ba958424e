// SPDX-License-Identifier: Apache-2.0
// The rules of switching, one function per decision, without side effects. Forwarder applies them to batches, explain()
// puts them in words; because both call these functions they cannot disagree. docs/switching.md gives the reasons.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "l2/fdb.h"
#include "l2/policy.h"
#include "net/ethernet.h"
#include "stats/drop_reason.h"

namespace sw {

// Group addresses of link-local protocols, and the vendors' equivalents, that a bridge must not forward.
constexpr bool is_reserved(Mac mac) {
  if (mac >> 4 == 0x0180c200000) return true;  // IEEE 802.1Q table 8-1: STP, pause, LACP, 802.1X, LLDP ...
  const auto low = static_cast<uint32_t>(mac & 0xffffff);
  switch (mac >> 24) {
    case 0x01000c:  // Cisco: ISL; CDP, VTP, DTP, PAgP, UDLD; PVST+; uplink fast; and eight more of the STP family
      return low == 0 || low == 0xcccccc || low == 0xcccccd || low == 0xcdcdcd || low >> 3 == 0xccccc0 >> 3;
    case 0x00e02b:  // Extreme: EDP, EAPS
      return low == 0 || low == 4 || low == 6;
    default:
      return false;
  }
}

// May the frame come in, and as what? Rules in the order in which they are applied; the first that fails is `drop`. A
// frame that is dropped here teaches nothing.
struct Admission {
  DropReason drop = kNoDrop;
  bool tagged = false;  // outer tag with TPID 0x8100
  uint16_t vlan = 0;    // where the bridge classifies it
  uint16_t tci = 0;     // priority and VID to write when it leaves tagged
  Mac destination = 0;
  Mac source = 0;
};

inline constexpr std::array<DropReason, 6> kAdmissionOrder = {
    DropReason::kPortDisabled, DropReason::kVlanMalformed, DropReason::kVlanNotAllowed,
    DropReason::kReservedMac,  DropReason::kSourceZero,    DropReason::kSourceMulticast};

// `head`: the first bytes of the frame, at least 14.
inline Admission admit(const uint8_t* head, uint32_t head_len, const PortPolicy& port) {
  constexpr uint32_t kTypeAt = 2 * kMacBytes;
  Admission result;
  result.destination = load_mac(head);
  result.source = load_mac(head + kMacBytes);
  const VlanPolicy& policy = port.vlan;
  const auto dropped = [&result](DropReason reason) {
    result.drop = reason;
    return result;
  };
  if (!port.enabled) return dropped(DropReason::kPortDisabled);
  result.tagged = load_be16(head + kTypeAt) == kEtherTypeVlan;
  result.vlan = policy.untagged;
  if (result.tagged) {
    if (head_len < kEthHeaderBytes + kVlanTagBytes) return dropped(DropReason::kVlanMalformed);
    result.tci = load_be16(head + kTypeAt + 2);
    const uint16_t vid = result.tci & kVlanIdMask;
    if (vid != 0) {  // VID 0 is a priority tag: the frame counts as untagged and keeps its priority
      if (policy.access || !policy.carries(vid)) return dropped(DropReason::kVlanNotAllowed);
      result.vlan = vid;
    }
  }
  result.tci = static_cast<uint16_t>((result.tci & ~kVlanIdMask) | result.vlan);
  if (is_reserved(result.destination)) return dropped(DropReason::kReservedMac);
  if (result.source == 0) return dropped(DropReason::kSourceZero);
  if (is_multicast(result.source)) return dropped(DropReason::kSourceMulticast);
  return result;
}

// Where does a unicast frame go whose destination the table has at `found` (kNoPort: unknown)?
struct Route {
  DropReason drop = kNoDrop;
  PortId port = kNoPort;  // kNoPort without drop: flood
};
inline Route route(PortId found, uint16_t vlan, const PortPolicy& source, const BridgeView& bridge) {
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

// Who gets a flooded frame. `unknown`: unicast with unknown destination, which ports may refuse; broadcast and
// multicast go to all.
class FloodSet {
 public:
  void compute(uint16_t vlan, bool unknown, const PortPolicy& source, const BridgeView& bridge);
  [[nodiscard]] std::span<const PortId> ports() const { return {ports_.data(), count_}; }
  [[nodiscard]] DropReason drop() const { return drop_; }  // when ports() is empty

 private:
  uint32_t count_ = 0;
  DropReason drop_ = kNoDrop;
  std::array<PortId, kMaxPorts> ports_{};
};

// Does a frame of `vlan` leave through `port` with a tag? The port carries the VLAN.
constexpr bool leaves_tagged(uint16_t vlan, const VlanPolicy& port) { return vlan != port.untagged; }

}  // namespace sw
