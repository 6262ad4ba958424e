// SPDX-License-Identifier: Apache-2.0
// Plan: the immutable description of what every worker polls and where it may send. The control side builds a new one
// for every change, publishes it to all workers and frees the old one after they have passed (worker/worker.h).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "l2/policy.h"
#include "net/queue.h"

namespace sw {

// What a worker measured of one receive queue it polls. Belongs to the port, so it survives plans.
struct alignas(64) QueueLoad {
  Counter busy_tsc;  // spent in passes that moved frames of this queue
};

struct PlanRx {
  RxQueue* queue = nullptr;
  uint16_t queue_index = 0;
  const PortPolicy* policy = nullptr;
  const BridgeView* bridge = nullptr;
  PortWorkerCounters* counters = nullptr;  // of this worker, for the port
  QueueLoad* load = nullptr;               // tells receive queues apart, whatever stands in front of them
};

// A destination port as one worker sees it.
struct PlanTx {
  const PortPolicy* policy = nullptr;      // null: no such port
  PortWorkerCounters* counters = nullptr;  // of this worker, for the port
  std::vector<TxQueue*> queues;            // this worker's share of the port's ready queues; empty: link down
  bool shared = false;                     // other workers send to them too: take the queue's lock
  uint32_t mtu = 0;                        // L3 bytes, 0: no limit
};

struct WorkerPlan {
  std::vector<PlanRx> rx;
  std::vector<PlanTx> tx;  // indexed by PortId, kMaxPorts entries
};

struct Plan {
  uint64_t generation = 0;
  std::vector<std::unique_ptr<const PortPolicy>> policies;
  std::vector<std::unique_ptr<const BridgeView>> bridges;
  std::vector<WorkerPlan> workers;
  // In front of the queues of ports that somebody looks at.
  std::vector<std::unique_ptr<RxQueue>> capture_rx;
  std::vector<std::unique_ptr<TxQueue>> capture_tx;
};

}  // namespace sw
