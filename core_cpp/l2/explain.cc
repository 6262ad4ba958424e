// SPDX-License-Identifier: Apache-2.0
// explain(): what would happen to one frame, in words. Decisions come from rules.h; only the words are made here.
#include <cstdio>
#include <string>

#include "l2/forward.h"
#include "l2/rules.h"

namespace sw {

namespace {

std::string text(Mac mac) {
  char buffer[18];
  std::snprintf(buffer, sizeof buffer, "%02x:%02x:%02x:%02x:%02x:%02x", static_cast<unsigned>(mac >> 40 & 0xff),
                static_cast<unsigned>(mac >> 32 & 0xff), static_cast<unsigned>(mac >> 24 & 0xff),
                static_cast<unsigned>(mac >> 16 & 0xff), static_cast<unsigned>(mac >> 8 & 0xff),
                static_cast<unsigned>(mac & 0xff));
  return buffer;
}

std::string hex(uint16_t value) {
  char buffer[8];
  std::snprintf(buffer, sizeof buffer, "0x%04x", value);
  return buffer;
}

std::string text(PortId port) { return "port #" + std::to_string(port) + "#"; }

const char* text(FdbOwner owner) {
  switch (owner) {
    case FdbOwner::kLearned:
      return "learned";
    case FdbOwner::kStatic:
      return "static";
    case FdbOwner::kExternal:
      return "external";
    case FdbOwner::kHeld:
      return "held";
  }
  return "unknown";
}

std::string verdict(DropReason reason) { return "verdict: drop (" + std::string(name(reason)) + ")"; }

std::string describe(std::span<const uint8_t> frame) {
  const uint16_t type = load_be16(frame.data() + 2 * kMacBytes);
  std::string line = "frame: " + text(load_mac(frame.data() + kMacBytes)) + " to " + text(load_mac(frame.data())) +
                     ", " + std::to_string(frame.size()) + " bytes, type " + hex(type);
  if (type == kEtherTypeVlan && frame.size() >= kEthHeaderBytes + kVlanTagBytes) {
    const uint16_t tci = load_be16(frame.data() + kEthHeaderBytes);
    line += ", tag with VID " + std::to_string(tci & kVlanIdMask) + " priority " + std::to_string(tci >> 13);
  }
  return line;
}

// One admission rule: how the frame passes it, or why it does not.
std::string admission_step(DropReason rule, const Admission& seen, const PortPolicy& port) {
  const bool fails = seen.drop == rule;
  const std::string vlan = std::to_string(seen.vlan);
  switch (rule) {
    case DropReason::kPortDisabled:
      return text(port.id) + (fails ? " is disabled" : " is enabled");
    case DropReason::kVlanMalformed:
      if (fails) return "tag: cut off, the frame ends inside it";
      return seen.tagged ? "tag: 802.1Q" : "tag: none";
    case DropReason::kVlanNotAllowed:
      if (fails && port.vlan.access) {
        return "VLAN: an access port takes no tagged frames, not even of its own VLAN " +
               std::to_string(port.vlan.untagged);
      }
      if (fails) return "VLAN: the trunk does not carry this VID";
      return "VLAN: classified to " + vlan + (seen.vlan == 0 ? " (untagged)" : port.vlan.access ? " (access)" : "");
    case DropReason::kReservedMac:
      return fails ? "destination: reserved for link-local protocols, never forwarded" : "destination: not reserved";
    case DropReason::kSourceZero:
      return fails ? "source: all zeros, nobody's address" : "source: not zero";
    case DropReason::kSourceMulticast:
      return fails ? "source: a group address cannot send" : "source: an individual address";
    default:
      return {};
  }
}

// What learning would do. `home`: where the source address will be found afterwards, kNoPort if nowhere.
std::string learning_step(const Admission& seen, const PortPolicy& port, const Fdb& fdb, PortId& home) {
  FdbEntry entry;
  const bool known = fdb.find(seen.vlan, seen.source, entry);
  home = known ? entry.port : kNoPort;
  if (!port.learning) return "learning: off at this port";
  if (known && entry.port == port.id) return "learning: source known here (" + std::string(text(entry.owner)) + ")";
  if (known && entry.owner != FdbOwner::kLearned) {
    return "learning: refused, a " + std::string(text(entry.owner)) + " entry keeps the source at " + text(entry.port);
  }
  if (port.mac_limit != 0 && fdb.count_learned_at(port.id) >= port.mac_limit) {
    return "learning: refused, the port has its " + std::to_string(port.mac_limit) + " addresses";
  }
  home = port.id;
  return known ? "learning: source would move here from " + text(entry.port) : "learning: source would be learned here";
}

std::string leaving(uint16_t vlan, PortId to, const BridgeView& bridge) {
  if (bridge.vlan_transparent) return text(to) + " as it is";
  return text(to) + (leaves_tagged(vlan, bridge.ports[to]->vlan) ? " tagged " + std::to_string(vlan) : " untagged");
}

}  // namespace

std::vector<std::string> explain(std::span<const uint8_t> frame, const PortPolicy& source, const BridgeView& bridge) {
  std::vector<std::string> steps;
  if (frame.size() < kEthHeaderBytes) {
    steps.push_back("frame: " + std::to_string(frame.size()) + " bytes, an Ethernet header has 14");
    steps.push_back(verdict(DropReason::kFrameTooShort));
    return steps;
  }
  steps.push_back(describe(frame));
  const Admission seen = admit(frame.data(), static_cast<uint32_t>(frame.size()), source);
  for (const DropReason rule : kAdmissionOrder) {
    steps.push_back(admission_step(rule, seen, source));
    if (seen.drop == rule) {
      steps.push_back(verdict(rule));
      return steps;
    }
  }
  PortId source_home;
  steps.push_back(learning_step(seen, source, *bridge.fdb, source_home));

  const bool group = is_multicast(seen.destination);
  if (group) {
    steps.push_back(seen.destination == kMacBroadcast ? "destination: broadcast" : "destination: multicast");
  } else {
    FdbEntry entry;
    const bool known = bridge.fdb->find(seen.vlan, seen.destination, entry);
    PortId at = known ? entry.port : kNoPort;
    if (seen.destination == seen.source) at = source_home;  // the frame teaches before it is looked up
    if (at == kNoPort) {
      steps.push_back("destination: unknown in VLAN " + std::to_string(seen.vlan));
    } else if (at == kPortBlackhole) {
      steps.push_back("destination: has a drop entry");
    } else {
      steps.push_back("destination: at " + text(at) + " (" + text(known ? entry.owner : FdbOwner::kLearned) + ")");
    }
    const Route found = route(at, seen.vlan, source, bridge);
    if (found.drop != kNoDrop) {
      steps.push_back(verdict(found.drop));
      return steps;
    }
    if (found.port != kNoPort) {
      steps.push_back("verdict: forward to " + leaving(seen.vlan, found.port, bridge));
      return steps;
    }
  }
  FloodSet flood;
  flood.compute(seen.vlan, !group, source, bridge);
  if (flood.ports().empty()) {
    steps.push_back(verdict(flood.drop()));
    return steps;
  }
  std::string line = "verdict: flood to ";
  for (const PortId port : flood.ports()) {
    if (port != flood.ports().front()) line += ", ";
    line += leaving(seen.vlan, port, bridge);
  }
  steps.push_back(line);
  return steps;
}

}  // namespace sw
