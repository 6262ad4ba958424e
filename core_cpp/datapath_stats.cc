// SPDX-License-Identifier: Apache-2.0
// Reading out: one walk over the counters. Each is exact; those of a running switch are moments apart.
#include <algorithm>
#include <cerrno>

#include "base/clock.h"
#include "datapath_records.h"

namespace sw {

namespace {

std::vector<QueueView> queue_views(const std::vector<QueueCounters>& counters, const std::vector<int>* workers) {
  std::vector<QueueView> views;
  views.reserve(counters.size());
  for (size_t i = 0; i < counters.size(); ++i) {
    views.push_back({static_cast<uint32_t>(i), workers == nullptr ? -1 : (*workers)[i], counters[i].frames.get(),
                     counters[i].bytes.get(), counters[i].notifications.get()});
  }
  return views;
}

}  // namespace

PortStats Datapath::port_stats(const PortRecord& record) const {
  PortStats stats{};
  stats.name = record.spec.config.name;
  stats.rx = queue_views(record.rx_counters, &record.worker_of);
  stats.tx = queue_views(record.tx_counters, nullptr);
  const std::vector<RxQueue*> ready = record.port->rx_queues();
  for (size_t i = 0; i < stats.rx.size(); ++i) {
    if (i >= ready.size() || ready[i] == nullptr) stats.rx[i].worker = -1;
  }
  for (const PortWorkerCounters& worker : record.by_worker) {
    for (size_t reason = 0; reason < kDropReasons; ++reason) {
      stats.rx_drops[reason] += worker.rx_drops[reason].get();
      stats.tx_drops[reason] += worker.tx_drops[reason].get();
    }
    stats.replicated += worker.replicated.get();
    stats.forwarded += worker.forwarded.get();
    stats.offered += worker.offered.get();
    stats.segmented += worker.segmented.get();
  }
  return stats;
}

WorkerStats Datapath::worker_stats(const Worker& worker) const {
  const auto hz = static_cast<double>(tsc_hz());
  const WorkerCounters& counters = worker.counters();
  WorkerStats stats{};
  stats.worker = worker.index();
  stats.cpu = worker.cpu();
  stats.thread_id = worker.thread_id();
  stats.busy_seconds = static_cast<double>(counters.busy_tsc.get()) / hz;
  stats.idle_seconds = static_cast<double>(counters.idle_tsc.get()) / hz;
  stats.sleep_seconds = static_cast<double>(counters.sleep_tsc.get()) / hz;
  stats.loops = counters.loops.get();
  stats.wakeups = counters.wakeups.get();
  stats.batches = counters.batches.get();
  stats.frames = counters.frames.get();
  for (size_t i = 0; i < kBatchBuckets; ++i) stats.batch_frames[i] = counters.batch_frames[i].get();
  for (const PlanRx& rx : crew_.plan().workers[worker.index()].rx) {
    stats.rx_queues.push_back(port_name(rx.policy->id) + "/" + std::to_string(rx.queue_index));
  }
  return stats;
}

std::vector<uint64_t> Datapath::worker_rounds() const {
  std::vector<uint64_t> rounds;  // the crew is made with the datapath and never changes
  for (const auto& worker : crew_.workers()) rounds.push_back(worker->counters().loops.get());
  return rounds;
}

Stats Datapath::stats() {
  const Guard guard(control_.mutex());
  Stats stats{};
  for (const auto& [name, record] : ports_) stats.ports.push_back(port_stats(*record));
  for (const auto& worker : crew_.workers()) stats.workers.push_back(worker_stats(*worker));
  for (const auto& [name, bridge] : bridges_) {
    BridgeStats view{};
    view.name = name;
    for (size_t owner = 0; owner < view.entries.size(); ++owner) {
      view.entries[owner] = bridge->fdb.count(static_cast<FdbOwner>(owner));
    }
    view.events = bridge->fdb.stats();
    view.mac_limit = bridge->fdb.mac_limit();
    view.capacity = bridge->fdb.capacity();
    view.ageing_seconds = bridge->fdb.ageing_seconds();
    stats.bridges.push_back(view);
  }
  stats.plan_generation = crew_.plan().generation;
  return stats;
}

std::vector<PortView> Datapath::ports() {
  const Guard guard(control_.mutex());
  std::vector<PortView> views;
  for (const auto& [name, record] : ports_) {
    views.push_back({name, record->spec.config.type, record->bridge->name, record->port->status()});
  }
  return views;
}

Result<PortView> Datapath::port(const std::string& name) {
  const Guard guard(control_.mutex());
  const PortRecord* const record = find(name);
  if (record == nullptr) return Error{ENOENT, "no such port"};
  return PortView{name, record->spec.config.type, record->bridge->name, record->port->status()};
}

}  // namespace sw
