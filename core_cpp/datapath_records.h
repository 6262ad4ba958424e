// SPDX-License-Identifier: Apache-2.0
// What the datapath keeps of a bridge and of a port. Private to datapath*.cc.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "datapath.h"
#include "worker/assignment.h"

namespace sw {

struct Datapath::Bridge {
  Bridge(std::string bridge_name, uint32_t mac_limit, uint32_t ageing_seconds, std::pmr::memory_resource* memory)
      : name(std::move(bridge_name)), fdb(mac_limit, ageing_seconds, memory) {}
  const std::string name;
  Fdb fdb;
};

struct Datapath::PortRecord {
  PortRecord(PortId port_id, PortSpec port_spec, std::shared_ptr<Bridge> its_bridge, size_t workers)
      : id(port_id),
        spec(std::move(port_spec)),
        bridge(std::move(its_bridge)),
        rx_counters(spec.config.queues),
        tx_counters(spec.config.queues),
        loads(spec.config.queues),
        last_busy_tsc(spec.config.queues, 0),
        worker_of(spec.config.queues, kUnassigned),
        by_worker(workers) {
    spec.policy.id = id;
  }

  const PortId id;
  PortSpec spec;
  const std::shared_ptr<Bridge> bridge;
  std::vector<QueueCounters> rx_counters;  // one per queue; the port and its queues point into them
  std::vector<QueueCounters> tx_counters;
  std::vector<QueueLoad> loads;         // per receive queue
  std::vector<uint64_t> last_busy_tsc;  // loads at the beginning of the balance window
  std::vector<int> worker_of;           // per receive queue; kept while the queue is away
  std::vector<PortWorkerCounters> by_worker;
  Captures captures;
  std::unique_ptr<Port> port;  // after the counters: destroyed before them
  int paused = 0;
  bool in_plan = false;  // the current plan names a queue of it
  bool leaving = false;  // being removed: in no plan at all
};

}  // namespace sw
