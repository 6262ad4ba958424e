// SPDX-License-Identifier: Apache-2.0
#include "bindings/convert.h"

#include <pybind11/stl.h>

#include <array>
#include <string_view>

namespace py = pybind11;

namespace sw {

namespace {

constexpr std::array<std::string_view, 4> kOwners = {"learned", "static", "external", "held"};  // by FdbOwner

VlanPolicy vlan_policy(const py::handle& vlan) {
  VlanPolicy policy;
  const py::object access = vlan["access"];
  if (!access.is_none()) {
    policy.access = true;
    policy.untagged = access.cast<uint16_t>();
    policy.trunk.reset();
    return policy;
  }
  policy.untagged = vlan["native"].cast<uint16_t>();
  const py::object trunk = vlan["trunk"];
  if (!trunk.is_none()) {
    policy.trunk.reset();
    for (const py::handle vid : trunk) policy.trunk.set(vid.cast<uint16_t>() & kVlanIdMask);
  }
  return policy;
}

RxChecksum rx_checksum(const std::string& name) {
  if (name == "fix") return RxChecksum::kFix;
  return name == "trust" ? RxChecksum::kTrust : RxChecksum::kAuto;
}

int or_none(const py::object& value) { return value.is_none() ? -1 : value.cast<int>(); }

py::list queues(const std::vector<QueueView>& views) {
  py::list list;
  for (const QueueView& view : views) {
    list.append(py::make_tuple(view.queue, view.worker, view.frames, view.bytes, view.notifications));
  }
  return list;
}

py::dict drops(const std::array<uint64_t, kDropReasons>& counts) {
  py::dict dict;
  for (size_t i = 0; i < kDropReasons; ++i) dict[py::str(std::string(kDropReasonNames[i]))] = counts[i];
  return dict;
}

py::dict to_python(const PortStats& port) {
  py::dict dict;
  dict["name"] = port.name;
  dict["rx"] = queues(port.rx);
  dict["tx"] = queues(port.tx);
  dict["rx_drops"] = drops(port.rx_drops);
  dict["tx_drops"] = drops(port.tx_drops);
  dict["replicated"] = port.replicated;
  dict["forwarded"] = port.forwarded;
  dict["offered"] = port.offered;
  dict["segmented"] = port.segmented;
  return dict;
}

py::dict to_python(const WorkerStats& worker) {
  py::dict dict;
  dict["worker"] = worker.worker;
  dict["cpu"] = worker.cpu;
  dict["thread_id"] = worker.thread_id;
  dict["busy_seconds"] = worker.busy_seconds;
  dict["idle_seconds"] = worker.idle_seconds;
  dict["sleep_seconds"] = worker.sleep_seconds;
  dict["loops"] = worker.loops;
  dict["wakeups"] = worker.wakeups;
  dict["batches"] = worker.batches;
  dict["frames"] = worker.frames;
  dict["batch_frames"] = worker.batch_frames;
  dict["rx_queues"] = worker.rx_queues;
  return dict;
}

py::dict to_python(const BridgeStats& bridge) {
  py::dict entries;
  for (size_t i = 0; i < kOwners.size(); ++i) entries[py::str(std::string(kOwners[i]))] = bridge.entries[i];
  py::dict events;
  events["learned"] = bridge.events.learned;
  events["moved"] = bridge.events.moved;
  events["aged"] = bridge.events.aged;
  events["evicted"] = bridge.events.evicted;
  events["flushed"] = bridge.events.flushed;
  events["refused_port_limit"] = bridge.events.refused_port_limit;
  events["refused_bridge_limit"] = bridge.events.refused_bridge_limit;
  events["refused_owner"] = bridge.events.refused_owner;
  py::dict dict;
  dict["name"] = bridge.name;
  dict["entries"] = entries;
  dict["events"] = events;
  dict["mac_limit"] = bridge.mac_limit;
  dict["capacity"] = bridge.capacity;
  dict["ageing"] = bridge.ageing_seconds;
  dict["events_lost"] = bridge.events.events_lost;
  return dict;
}

}  // namespace

PortSpec port_spec(const py::dict& spec) {
  PortSpec out;
  PortConfig& config = out.config;
  config.name = spec["name"].cast<std::string>();
  config.type = spec["type"].cast<std::string>();
  config.socket = spec["socket"].cast<std::string>();
  config.socket_owner_switch = spec["socket_owner"].cast<std::string>() != "peer";
  config.socket_mode = or_none(spec["socket_mode"]);
  config.socket_gid = or_none(spec["socket_gid"]);
  config.queues = spec["queues"].cast<uint32_t>();
  config.device = spec["device"].cast<std::string>();
  config.mtu = spec["mtu"].cast<uint32_t>();
  config.mac = spec["mac"].cast<uint64_t>();
  config.packed = spec["packed"].cast<bool>();
  config.offloads = spec["offloads"].cast<bool>();
  config.mergeable = spec["mergeable"].cast<bool>();
  config.vhost = spec["vhost"].cast<bool>();
  config.in_order = spec["in_order"].cast<bool>();
  config.ring_size = spec["ring_size"].cast<uint32_t>();
  config.fanout = spec["fanout"].cast<std::string>();
  config.checksum = rx_checksum(spec["checksum"].cast<std::string>());
  out.bridge = spec["bridge"].cast<std::string>();
  out.policy.enabled = spec["enabled"].cast<bool>();
  out.policy.learning = spec["learning"].cast<bool>();
  out.policy.flood = spec["flood"].cast<bool>();
  out.policy.isolated = spec["isolated"].cast<bool>();
  out.policy.mac_limit = spec["mac_limit"].cast<uint32_t>();
  out.policy.vlan = vlan_policy(spec["vlan"]);
  out.rx_affinity = spec["rx_affinity"].cast<std::map<uint32_t, int>>();
  return out;
}

py::dict to_python(const PortView& view) {
  py::list rings;
  for (const PortStatus::Ring& ring : view.status.rings) rings.append(py::make_tuple(ring.name, ring.facts));
  py::dict dict;
  dict["name"] = view.name;
  dict["type"] = view.type;
  dict["bridge"] = view.bridge;
  dict["up"] = view.status.up;
  dict["stage"] = view.status.stage;
  dict["detail"] = view.status.detail;
  dict["facts"] = view.status.facts;
  dict["counters"] = view.status.counters;
  dict["rings"] = rings;
  return dict;
}

py::dict to_python(const Stats& stats) {
  py::list ports;
  py::list workers;
  py::list bridges;
  for (const PortStats& port : stats.ports) ports.append(to_python(port));
  for (const WorkerStats& worker : stats.workers) workers.append(to_python(worker));
  for (const BridgeStats& bridge : stats.bridges) bridges.append(to_python(bridge));
  py::dict dict;
  dict["ports"] = ports;
  dict["workers"] = workers;
  dict["bridges"] = bridges;
  dict["plan_generation"] = stats.plan_generation;
  return dict;
}

py::tuple to_python(const FdbPage& page) {
  py::list entries;
  for (const NamedFdbEntry& entry : page.entries) {
    entries.append(py::make_tuple(entry.vlan, entry.mac, entry.port, kOwners.at(static_cast<size_t>(entry.owner)),
                                  entry.age_seconds));
  }
  return py::make_tuple(entries, page.matched);
}

py::tuple to_python(const FdbGroup& group) {
  std::string bytes;
  bytes.reserve(group.macs.size() * kMacBytes);
  for (const Mac mac : group.macs) {
    for (int shift = 40; shift >= 0; shift -= 8) bytes.push_back(static_cast<char>(mac >> shift));
  }
  return py::make_tuple(group.vlan, group.port, group.age_seconds, py::bytes(bytes));
}

std::vector<Mac> macs_from_bytes(const py::bytes& bytes) {
  const std::string_view text = bytes;
  std::vector<Mac> macs;
  macs.reserve(text.size() / kMacBytes);
  for (; text.size() >= kMacBytes * (macs.size() + 1);) {
    Mac mac = 0;
    for (const char byte : text.substr(kMacBytes * macs.size(), kMacBytes)) mac = mac << 8 | static_cast<uint8_t>(byte);
    macs.push_back(mac);
  }
  return macs;
}

py::tuple to_python(const Event& event) {
  return py::make_tuple(static_cast<double>(event.realtime_ns) / 1e9, event.kind, event.bridge, event.port,
                        event.old_port, event.vlan, event.mac, event.detail);
}

py::tuple to_python(const CaptureView& view) {
  py::list frames;
  for (const CapturedFrame& frame : view.frames) {
    frames.append(py::make_tuple(frame.realtime_ns, frame.way == CaptureWay::kRx, frame.queue,
                                 frame.drop == kNoDrop ? std::string_view() : name(frame.drop), frame.len,
                                 py::bytes(frame.bytes)));
  }
  return py::make_tuple(frames, view.missed, view.attached);
}

FdbOwner fdb_owner(const std::string& name) {
  for (size_t i = 0; i < kOwners.size(); ++i) {
    if (name == kOwners[i]) return static_cast<FdbOwner>(i);
  }
  raise(Error{0, "'" + name + "' is no owner of MAC table entries: learned, static, external or held"});
}

}  // namespace sw
