// SPDX-License-Identifier: Apache-2.0
// The life of bridges, ports and plans. Reading out is in datapath_stats.cc, the MAC tables in datapath_fdb.cc.
#include "datapath.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "datapath_records.h"
#include "worker/assignment.h"

namespace sw {

namespace {

bool same_identity(const PortConfig& a, const PortConfig& b) {
  return a.type == b.type && a.socket == b.socket && a.socket_owner_switch == b.socket_owner_switch &&
         a.socket_mode == b.socket_mode && a.socket_gid == b.socket_gid && a.queues == b.queues &&
         a.device == b.device && a.vhost == b.vhost && a.mac == b.mac && a.packed == b.packed &&
         a.offloads == b.offloads && a.mergeable == b.mergeable && a.in_order == b.in_order &&
         a.ring_size == b.ring_size && a.checksum == b.checksum && a.fanout == b.fanout;
}

bool is_default(const VlanPolicy& vlan) { return !vlan.access && vlan.untagged == 0 && vlan.trunk.all(); }

bool same_vlan(const VlanPolicy& a, const VlanPolicy& b) {
  return a.access == b.access && a.untagged == b.untagged && a.trunk == b.trunk;
}

}  // namespace

Datapath::Datapath(DatapathOptions options)
    : options_(std::move(options)),
      event_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      memory_(std::make_unique<Arena>()),
      crew_(options_.worker_cpus, options_.polling),
      by_id_(kMaxPorts, nullptr) {
  SW_CHECK(event_fd_);
  SW_CHECK(!options_.worker_cpus.empty());
}

Datapath::~Datapath() { stop(); }

Result<void> Datapath::start() {
  const Guard guard(control_.mutex());
  if (running_) return {};
  auto reserved = reserve_memory();
  if (!reserved) return reserved;
  auto started = crew_.start();
  if (!started) return started;
  control_.start();
  running_ = true;
  control_.loop().after(options_.balance_ms, [this] { balance(); });
  return {};
}

// The MAC tables live on huge pages if there are any: a million entries are 17 MB, 8 pages of 2 MB instead of 4096
// small ones. Without huge pages the heap is as good as a region of small pages, and takes nothing that is not used.
Result<void> Datapath::reserve_memory() {
  if (options_.hugepages == HugePages::kOff) return {};
  auto region = HugeRegion::make({.name = "switch-memory",
                                  .bytes = options_.memory_bytes,
                                  .huge = options_.hugepages,
                                  .huge_page_bytes = options_.huge_page_bytes,
                                  .numa_node = options_.numa_node});
  if (!region) return region.error();
  if (!region->warning().empty()) warnings_.push_back(region->warning());
  if (region->page_bytes() >= kHugePage2M) memory_ = std::make_unique<Arena>(std::move(*region));
  return {};
}

void Datapath::stop() {
  control_.stop();  // no callback runs from here on
  const Guard guard(control_.mutex());
  for (auto& [name, record] : ports_) record->leaving = true;
  if (!ports_.empty()) publish();
  for (auto& [name, record] : ports_) record->port->close();
  crew_.stop();
  ports_.clear();
  std::fill(by_id_.begin(), by_id_.end(), nullptr);
  running_ = false;
}

Result<void> Datapath::add_bridge(const std::string& name, uint32_t ageing_seconds, uint32_t mac_limit) {
  const Guard guard(control_.mutex());
  if (bridges_.contains(name)) return Error{EEXIST, "add bridge " + name};
  auto bridge = std::make_shared<Bridge>(name, mac_limit, ageing_seconds, memory_.get());
  bridge->fdb.set_event_fd(event_fd_.get());
  bridges_.emplace(name, std::move(bridge));
  publish();
  return {};
}

Result<void> Datapath::set_bridge(const std::string& name, uint32_t ageing_seconds, uint32_t mac_limit) {
  const Guard guard(control_.mutex());
  auto bridge = find_bridge(name);
  if (!bridge) return bridge.error();
  Fdb& fdb = (*bridge)->fdb;
  if (mac_limit > fdb.capacity()) {
    return Error{0, "bridge " + name + ": mac_limit " + std::to_string(mac_limit) +
                        " is more than the table made for it (" + std::to_string(fdb.capacity()) +
                        "); restart the switch with the larger limit"};
  }
  fdb.set_ageing(ageing_seconds);
  fdb.set_mac_limit(mac_limit);
  return {};
}

Result<void> Datapath::del_bridge(const std::string& name) {
  const Guard guard(control_.mutex());
  auto bridge = find_bridge(name);
  if (!bridge) return bridge.error();
  for (const auto& [port_name, record] : ports_) {
    if (record->bridge == *bridge) return Error{EBUSY, "delete bridge " + name + ": port " + port_name + " is in it"};
  }
  bridges_.erase(name);
  publish();
  return {};
}

Result<void> Datapath::check_affinity(const PortSpec& spec) const {
  for (const auto& [queue, cpu] : spec.rx_affinity) {
    if (queue >= spec.config.queues) {
      return Error{0, "rx_affinity names queue " + std::to_string(queue) + " of " + std::to_string(spec.config.queues)};
    }
    if (std::find(options_.worker_cpus.begin(), options_.worker_cpus.end(), cpu) == options_.worker_cpus.end()) {
      return Error{0, "rx_affinity names CPU " + std::to_string(cpu) + ", which no worker has"};
    }
  }
  return {};
}

Result<PortId> Datapath::free_port_id() const {
  const auto free = std::find(by_id_.begin(), by_id_.end(), nullptr);
  if (free == by_id_.end()) return Error{ENOSPC, "there are " + std::to_string(kMaxPorts) + " ports already"};
  return static_cast<PortId>(free - by_id_.begin());
}

Result<void> Datapath::add_port(const PortSpec& spec) {
  const Guard guard(control_.mutex());
  if (ports_.contains(spec.config.name)) return Error{EEXIST, "add port"};
  auto bridge = find_bridge(spec.bridge);
  if (!bridge) return bridge.error();
  auto affinity = check_affinity(spec);
  if (!affinity) return affinity;
  auto id = free_port_id();
  if (!id) return id.error();
  auto record = std::make_unique<PortRecord>(*id, spec, *bridge, crew_.workers().size());
  record->spec.config.hugepages = options_.hugepages;
  record->spec.config.huge_page_bytes = options_.huge_page_bytes;
  record->spec.config.numa_node = options_.numa_node;
  auto port = make_port(record->spec.config, PortCounters{record->rx_counters, record->tx_counters});
  if (!port) return port.error();
  record->port = std::move(*port);
  PortRecord& kept = *record;
  by_id_[*id] = &kept;
  ports_.emplace(spec.config.name, std::move(record));
  kept.paused = 1;  // nothing of it is published until it is open
  auto opened = kept.port->open(*this);
  if (!opened) {
    by_id_[*id] = nullptr;
    ports_.erase(spec.config.name);
    return opened;
  }
  kept.paused = 0;
  publish();
  return {};
}

Result<void> Datapath::set_port(const PortSpec& spec) {
  const Guard guard(control_.mutex());
  PortRecord* const record = find(spec.config.name);
  if (record == nullptr) return Error{ENOENT, "no such port"};
  if (!same_identity(record->spec.config, spec.config) || record->spec.bridge != spec.bridge) {
    return Error{0, "only policy can change on a live port; remove it and add it anew"};
  }
  auto affinity = check_affinity(spec);
  if (!affinity) return affinity;
  if (spec.config.mtu != record->spec.config.mtu) {
    auto changed = record->port->set_mtu(spec.config.mtu);
    if (!changed) return changed;
  }
  const bool forget = !same_vlan(record->spec.policy.vlan, spec.policy.vlan) || !spec.policy.enabled;
  const PortId id = record->id;
  record->spec = spec;
  record->spec.policy.id = id;
  publish();
  if (forget) record->bridge->fdb.flush({.port = id});  // what was learned there may be unreachable now
  return {};
}

Result<void> Datapath::del_port(const std::string& name) {
  const Guard guard(control_.mutex());
  PortRecord* const record = find(name);
  if (record == nullptr) return Error{ENOENT, "no such port"};
  record->leaving = true;
  publish();
  record->port->close();
  record->bridge->fdb.remove_port(record->id);
  collect_fdb_events();  // while the id still has a name
  by_id_[record->id] = nullptr;
  ports_.erase(name);
  return {};
}

void Datapath::pause(Port& port) {
  PortRecord* const record = find(port);
  SW_CHECK(record != nullptr);
  if (record->paused++ == 0 && record->in_plan) publish();
}

void Datapath::resume(Port& port) {
  PortRecord* const record = find(port);
  SW_CHECK(record != nullptr && record->paused > 0);
  if (--record->paused == 0) publish();
}

void Datapath::publish() {
  assign_rx_queues();
  crew_.publish(build_plan());
}

// Decide worker_of for every ready queue; a queue that is away keeps its place for its return.
void Datapath::assign_rx_queues() {
  std::vector<QueueToAssign> queues;
  std::vector<int*> places;
  for (const auto& [name, record] : ports_) {
    if (record->leaving || record->paused > 0) continue;
    const std::vector<RxQueue*> ready = record->port->rx_queues();
    for (size_t i = 0; i < ready.size(); ++i) {
      if (ready[i] == nullptr) continue;
      QueueToAssign queue{.current = record->worker_of[i],
                          .load = record->loads[i].busy_tsc.get() - record->last_busy_tsc[i]};
      const auto pin = record->spec.rx_affinity.find(static_cast<uint32_t>(i));
      if (pin != record->spec.rx_affinity.end()) {
        const auto& cpus = options_.worker_cpus;
        queue.pinned = static_cast<int>(std::find(cpus.begin(), cpus.end(), pin->second) - cpus.begin());
      }
      queues.push_back(queue);
      places.push_back(&record->worker_of[i]);
    }
  }
  const std::vector<int> result = assign_queues(queues, static_cast<uint32_t>(crew_.workers().size()));
  for (size_t i = 0; i < places.size(); ++i) *places[i] = result[i];
}

std::unique_ptr<Plan> Datapath::build_plan() {
  const size_t workers = crew_.workers().size();
  auto plan = empty_plan(workers);
  std::map<const Bridge*, BridgeView*> views;
  for (const auto& [name, bridge] : bridges_) {
    auto view = std::make_unique<BridgeView>();
    view->fdb = &bridge->fdb;
    view->ports.resize(kMaxPorts, nullptr);
    views[bridge.get()] = view.get();
    plan->bridges.push_back(std::move(view));
  }
  for (const auto& [name, record] : ports_) {
    record->in_plan = false;
    if (record->leaving) continue;
    auto policy = std::make_unique<const PortPolicy>(record->spec.policy);
    BridgeView& view = *views.at(record->bridge.get());
    view.ports[record->id] = policy.get();
    view.members.push_back(policy.get());
    view.vlan_transparent = view.vlan_transparent && is_default(policy->vlan);
    std::vector<RxQueue*> rx_queues;
    std::vector<TxQueue*> tx_queues;
    if (record->paused == 0) {
      rx_queues = record->port->rx_queues();
      tx_queues = record->port->tx_queues();
      if (!record->captures.empty()) put_captures_before(*record, *policy, view, rx_queues, tx_queues, *plan);
      std::erase(tx_queues, nullptr);
    }
    for (size_t i = 0; i < rx_queues.size(); ++i) {
      if (rx_queues[i] == nullptr) continue;
      const auto worker = static_cast<size_t>(record->worker_of[i]);
      plan->workers[worker].rx.push_back({.queue = rx_queues[i],
                                          .queue_index = static_cast<uint16_t>(i),
                                          .policy = policy.get(),
                                          .bridge = &view,
                                          .counters = &record->by_worker[worker],
                                          .load = &record->loads[i]});
      record->in_plan = true;
    }
    for (size_t worker = 0; worker < workers; ++worker) {
      PlanTx& tx = plan->workers[worker].tx[record->id];
      tx.policy = policy.get();
      tx.counters = &record->by_worker[worker];
      tx.mtu = record->spec.config.mtu;
      if (tx_queues.empty()) continue;
      record->in_plan = true;
      // Enough queues: a slice of their own for every worker. Too few: they share, under the queue's lock.
      const size_t count = tx_queues.size();
      if (count >= workers) {
        const size_t first = worker * count / workers;
        const size_t last = (worker + 1) * count / workers;
        tx.queues.assign(tx_queues.begin() + static_cast<std::ptrdiff_t>(first),
                         tx_queues.begin() + static_cast<std::ptrdiff_t>(last));
      } else {
        tx.queues = {tx_queues[worker % count]};
        tx.shared = true;
      }
    }
    plan->policies.push_back(std::move(policy));
  }
  return plan;
}

void Datapath::put_captures_before(const PortRecord& record, const PortPolicy& policy, const BridgeView& bridge,
                                   std::vector<RxQueue*>& rx, std::vector<TxQueue*>& tx, Plan& plan) {
  for (size_t i = 0; i < rx.size(); ++i) {
    if (rx[i] == nullptr) continue;
    const auto number = static_cast<uint16_t>(i);
    plan.capture_rx.push_back(std::make_unique<CaptureRx>(*rx[i], number, record.captures, policy, bridge));
    rx[i] = plan.capture_rx.back().get();
  }
  for (size_t i = 0; i < tx.size(); ++i) {
    if (tx[i] == nullptr) continue;
    plan.capture_tx.push_back(std::make_unique<CaptureTx>(*tx[i], static_cast<uint16_t>(i), record.captures));
    tx[i] = plan.capture_tx.back().get();
  }
}

// Once a window: if the busiest worker would be a good deal less busy with another spread, move queues.
void Datapath::balance() {
  if (crew_.workers().size() > 1) move_queues();
  for (const auto& [name, record] : ports_) {
    for (size_t i = 0; i < record->loads.size(); ++i) record->last_busy_tsc[i] = record->loads[i].busy_tsc.get();
  }
  control_.loop().after(options_.balance_ms, [this] { balance(); });
}

// A move is a plan: the queue changes hands between two batches (crew.h), so nothing is lost or reordered.
void Datapath::move_queues() {
  const auto workers = static_cast<uint32_t>(crew_.workers().size());
  std::vector<QueueToAssign> queues;
  std::vector<std::pair<PortRecord*, size_t>> places;
  for (const auto& [name, record] : ports_) {
    for (size_t i = 0; i < record->worker_of.size(); ++i) {
      if (record->worker_of[i] == kUnassigned) continue;
      const bool pinned = record->spec.rx_affinity.contains(static_cast<uint32_t>(i));
      queues.push_back({.pinned = pinned ? record->worker_of[i] : kUnassigned,
                        .current = record->worker_of[i],
                        .load = record->loads[i].busy_tsc.get() - record->last_busy_tsc[i]});
      places.emplace_back(record.get(), i);
    }
  }
  const std::vector<int> spread = spread_queues(queues, workers);
  const double window = static_cast<double>(tsc_hz() * options_.balance_ms) / 1000;
  const auto least_gain = static_cast<uint64_t>(window * options_.balance_gain);
  if (queues.empty() || !spread_pays(queues, spread, workers, least_gain)) return;
  std::string moves;
  for (size_t i = 0; i < places.size(); ++i) {
    const auto& [record, queue] = places[i];
    if (record->worker_of[queue] == spread[i]) continue;
    moves += (moves.empty() ? "" : ", ") + record->spec.config.name + "/" + std::to_string(queue) + " from worker " +
             std::to_string(record->worker_of[queue]) + " to " + std::to_string(spread[i]);
    record->worker_of[queue] = spread[i];
  }
  publish();
  keep_event({.kind = "queues_rebalanced", .detail = "by measured load: " + moves});
  signal_events();
}

Datapath::PortRecord* Datapath::find(const std::string& name) {
  const auto found = ports_.find(name);
  return found == ports_.end() ? nullptr : found->second.get();
}

Datapath::PortRecord* Datapath::find(const Port& port) {
  const auto found = std::find_if(ports_.begin(), ports_.end(),
                                  [&port](const auto& item) { return item.second->port.get() == &port; });
  return found == ports_.end() ? nullptr : found->second.get();
}

Result<std::shared_ptr<Datapath::Bridge>> Datapath::find_bridge(const std::string& name) {
  const auto found = bridges_.find(name);
  if (found == bridges_.end()) return Error{ENOENT, "bridge " + name};
  return found->second;
}

}  // namespace sw
