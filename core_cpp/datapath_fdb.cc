// SPDX-License-Identifier: Apache-2.0
// The datapath's MAC tables and its events, by name.
#include <cerrno>
#include <ctime>
#include <utility>

#include "base/clock.h"
#include "datapath_records.h"
#include "l2/forward.h"

namespace sw {

namespace {

constexpr size_t kMaxEvents = 65536;  // waiting for the control plane; more are lost and counted

uint64_t realtime_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<uint64_t>(now.tv_nsec);
}

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

// The table calls below hold no control lock: a walk over a million entries must not delay a guest's handshake.
Result<std::vector<NamedFdbEntry>> Datapath::fdb(const std::string& bridge) {
  std::shared_ptr<Bridge> found;
  {
    const Guard guard(control_.mutex());
    auto result = find_bridge(bridge);
    if (!result) return result.error();
    found = *result;
  }
  const std::vector<FdbEntry> entries = found->fdb.entries();
  std::vector<NamedFdbEntry> named;
  named.reserve(entries.size());
  const Guard guard(control_.mutex());
  for (const FdbEntry& entry : entries) {
    named.push_back({entry.vlan, entry.mac, port_name(entry.port), entry.owner, entry.age_seconds});
  }
  return named;
}

Result<void> Datapath::fdb_set(const std::string& bridge, uint16_t vlan, Mac mac, const std::string& port,
                               FdbOwner owner) {
  const Guard guard(control_.mutex());
  auto found = find_bridge(bridge);
  if (!found) return found.error();
  PortId id = kPortBlackhole;
  if (!port.empty()) {
    const PortRecord* const record = find(port);
    if (record == nullptr) return Error{ENOENT, "port " + port};
    if (record->bridge != *found)
      return Error{0, "port " + port + " is in bridge " + record->bridge->name + ", not " + bridge};
    id = record->id;
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
