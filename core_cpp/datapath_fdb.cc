// SPDX-License-Identifier: Apache-2.0
// The datapath's MAC tables and its events, by name.
#include <algorithm>
#include <cerrno>
#include <tuple>
#include <utility>

#include "base/clock.h"
#include "datapath_records.h"
#include "l2/forward.h"

namespace sw {

namespace {

constexpr size_t kMaxEvents = 65536;  // waiting for the control plane; more are lost and counted

const char* event_name(FdbEventKind kind) {
  switch (kind) {
    case FdbEventKind::kLearned:
      return "fdb_learned";
    case FdbEventKind::kMoved:
      return "fdb_moved";
    case FdbEventKind::kAged:
      return "fdb_aged";
    case FdbEventKind::kEvicted:
      return "fdb_evicted";
    case FdbEventKind::kRefusedPortLimit:
      return "fdb_refused_port_limit";
    case FdbEventKind::kRefusedBridgeLimit:
      return "fdb_refused_bridge_limit";
    case FdbEventKind::kRefusedOwner:
      return "fdb_refused_owner";
    case FdbEventKind::kFlushed:
      return "fdb_flushed";
  }
  return "fdb_unknown";
}

}  // namespace

std::string Datapath::port_name(PortId id) const {
  return id < by_id_.size() && by_id_[id] != nullptr ? by_id_[id]->spec.config.name : std::string();
}

Result<PortId> Datapath::port_in(const std::string& port, const Bridge& bridge) {
  const PortRecord* const record = find(port);
  if (record == nullptr) return Error{ENOENT, "port " + port};
  if (record->bridge.get() != &bridge) {
    return Error{0, "port " + port + " is in bridge " + record->bridge->name + ", not " + bridge.name};
  }
  return record->id;
}

// The listings below hold no control lock: a walk over a million entries must not delay a guest's handshake.
Result<FdbPage> Datapath::fdb(const std::string& bridge, const FdbQuery& query) {
  std::shared_ptr<Bridge> found;
  PortId port = kNoPort;
  {
    const Guard guard(control_.mutex());
    auto result = find_bridge(bridge);
    if (!result) return result.error();
    found = *result;
    if (!query.port.empty()) {
      const PortRecord* const record = find(query.port);
      if (record == nullptr) return Error{ENOENT, "port " + query.port};
      port = record->id;
    }
  }
  std::vector<FdbEntry> entries = found->fdb.entries();
  std::erase_if(entries, [&](const FdbEntry& entry) {
    return (port != kNoPort && entry.port != port) || (query.vlan >= 0 && entry.vlan != query.vlan) ||
           (query.mac && entry.mac != *query.mac) || (query.owner >= 0 && entry.owner != FdbOwner(query.owner));
  });
  std::ranges::sort(entries, {}, [](const FdbEntry& entry) { return uint64_t{entry.vlan} << 48 | entry.mac; });
  FdbPage page{.entries = {}, .matched = entries.size()};
  entries.resize(std::min(entries.size(), query.most));
  page.entries.reserve(entries.size());
  const Guard guard(control_.mutex());
  for (const FdbEntry& entry : entries) {
    page.entries.push_back({entry.vlan, entry.mac, port_name(entry.port), entry.owner, entry.age_seconds});
  }
  return page;
}

Result<std::vector<FdbGroup>> Datapath::fdb_learned(const std::string& bridge) {
  std::shared_ptr<Bridge> found;
  {
    const Guard guard(control_.mutex());
    auto result = find_bridge(bridge);
    if (!result) return result.error();
    found = *result;
  }
  std::vector<FdbEntry> entries = found->fdb.entries();
  std::erase_if(entries, [](const FdbEntry& entry) { return entry.owner != FdbOwner::kLearned; });
  const auto alike = [](const FdbEntry& entry) { return std::tie(entry.vlan, entry.port, entry.age_seconds); };
  std::ranges::sort(entries, [&](const FdbEntry& a, const FdbEntry& b) {
    return std::tuple(alike(a), a.mac) < std::tuple(alike(b), b.mac);
  });
  std::vector<FdbGroup> groups;
  const Guard guard(control_.mutex());
  for (size_t i = 0; i < entries.size(); ++i) {
    const FdbEntry& entry = entries[i];
    if (i == 0 || alike(entries[i - 1]) != alike(entry)) {
      groups.push_back({entry.vlan, port_name(entry.port), entry.age_seconds, {}});
    }
    groups.back().macs.push_back(entry.mac);
  }
  // Of a port that has just gone: its entries are on their way out, too.
  std::erase_if(groups, [](const FdbGroup& group) { return group.port.empty(); });
  return groups;
}

Result<uint32_t> Datapath::fdb_restore(const std::string& bridge, const FdbGroup& group) {
  constexpr size_t kSlice = 1024;  // under one hold of the lock
  uint32_t restored = 0;
  for (size_t from = 0; from < group.macs.size(); from += kSlice) {
    const Guard guard(control_.mutex());
    auto found = find_bridge(bridge);
    if (!found) return found.error();
    auto port = port_in(group.port, **found);
    if (!port) return port.error();
    for (size_t at = from; at < std::min(from + kSlice, group.macs.size()); ++at) {
      const Mac mac = group.macs[at];
      FdbEntry present;
      if (mac == 0 || is_multicast(mac) || (*found)->fdb.find(group.vlan, mac, present)) continue;
      if ((*found)->fdb.set(group.vlan, mac, *port, FdbOwner::kLearned) != Fdb::SetResult::kFull) ++restored;
    }
  }
  return restored;
}

Result<void> Datapath::fdb_set(const std::string& bridge, uint16_t vlan, Mac mac, const std::string& port,
                               FdbOwner owner) {
  const Guard guard(control_.mutex());
  auto found = find_bridge(bridge);
  if (!found) return found.error();
  PortId id = kPortBlackhole;
  if (!port.empty()) {
    auto inside = port_in(port, **found);
    if (!inside) return inside.error();
    id = *inside;
  } else if (owner != FdbOwner::kStatic) {
    return Error{0, "only a static entry can drop"};
  }
  if (is_multicast(mac)) return Error{0, "a group address cannot be an entry"};
  if (mac == 0) return Error{0, "the zero address cannot be an entry"};
  if ((*found)->fdb.set(vlan, mac, id, owner) == Fdb::SetResult::kFull) {
    return Error{ENOSPC, "the MAC table of bridge " + bridge + " is full (mac_limit " +
                             std::to_string((*found)->fdb.mac_limit()) + ")"};
  }
  return {};
}

Result<bool> Datapath::fdb_del(const std::string& bridge, uint16_t vlan, Mac mac) {
  const Guard guard(control_.mutex());
  auto found = find_bridge(bridge);
  if (!found) return found.error();
  return (*found)->fdb.remove(vlan, mac);
}

Result<uint32_t> Datapath::fdb_flush(const std::string& bridge, const std::string* port, int vlan, int owner) {
  std::shared_ptr<Bridge> found;
  Fdb::Filter filter{.port = kNoPort, .vlan = vlan, .owner = owner};
  {
    const Guard guard(control_.mutex());
    auto result = find_bridge(bridge);
    if (!result) return result.error();
    found = *result;
    if (port != nullptr) {
      const PortRecord* const record = find(*port);
      if (record == nullptr) return Error{ENOENT, "port " + *port};
      filter.port = record->id;
    }
  }
  return found->fdb.flush(filter);
}

Result<bool> Datapath::fdb_release(const std::string& bridge, uint16_t vlan, Mac mac) {
  const Guard guard(control_.mutex());
  auto found = find_bridge(bridge);
  if (!found) return found.error();
  FdbEntry entry;
  if (!(*found)->fdb.find(vlan, mac, entry) || entry.owner != FdbOwner::kHeld) return false;
  (*found)->fdb.set(vlan, mac, entry.port, FdbOwner::kLearned);
  return true;
}

uint32_t Datapath::fdb_sweep() {
  std::vector<std::shared_ptr<Bridge>> all;
  {
    const Guard guard(control_.mutex());
    for (const auto& [name, bridge] : bridges_) all.push_back(bridge);
  }
  uint32_t removed = 0;
  for (const auto& bridge : all) removed += bridge->fdb.sweep(monotonic_ns());
  return removed;
}

Result<std::vector<std::string>> Datapath::explain(const std::string& port, std::span<const uint8_t> frame) {
  const Guard guard(control_.mutex());
  const PortRecord* const record = find(port);
  if (record == nullptr) return Error{ENOENT, "no such port"};
  for (const auto& view : crew_.plan().bridges) {
    const PortPolicy* const policy = view->ports[record->id];
    if (policy == nullptr) continue;
    std::vector<std::string> steps = sw::explain(frame, *policy, *view);
    for (std::string& step : steps) {  // the table knows numbers; people know names
      for (const auto& [name, other] : ports_) {
        const std::string number = "port #" + std::to_string(other->id) + "#";
        for (size_t at = step.find(number); at != std::string::npos; at = step.find(number)) {
          step.replace(at, number.size(), "port " + name);
        }
      }
    }
    return steps;
  }
  return Error{ENOENT, "the port is in no bridge"};
}

void Datapath::event(Port& port, const std::string& kind, const std::string& detail) {
  const PortRecord* const record = find(port);
  keep_event({.kind = "port_" + kind, .port = record == nullptr ? "" : record->spec.config.name, .detail = detail});
  signal_events();
}

void Datapath::keep_event(Event event) {
  event.realtime_ns = event.realtime_ns == 0 ? realtime_ns() : event.realtime_ns;
  if (events_.size() >= kMaxEvents) {
    events_.pop_front();
    ++events_lost_;
  }
  events_.push_back(std::move(event));
}

void Datapath::signal_events() {
  const uint64_t one = 1;
  (void)!::write(event_fd_.get(), &one, sizeof one);
}

void Datapath::collect_fdb_events() {
  const uint64_t offset = realtime_ns() - monotonic_ns();
  for (const auto& [name, bridge] : bridges_) {
    for (const FdbEvent& event : bridge->fdb.drain_events(kMaxEvents)) {
      keep_event({.realtime_ns = event.time_ns + offset,
                  .kind = event_name(event.kind),
                  .bridge = name,
                  .port = port_name(event.port),
                  .old_port = port_name(event.old_port),
                  .vlan = event.vlan,
                  .mac = event.mac});
    }
  }
}

std::vector<Event> Datapath::drain_events(size_t most) {
  const Guard guard(control_.mutex());
  uint64_t count = 0;
  (void)!::read(event_fd_.get(), &count, sizeof count);  // before looking: what comes later signals again
  collect_fdb_events();
  std::vector<Event> drained;
  while (!events_.empty() && drained.size() < most) {
    drained.push_back(std::move(events_.front()));
    events_.pop_front();
  }
  if (!events_.empty()) signal_events();
  return drained;
}

}  // namespace sw
