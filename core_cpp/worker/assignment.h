// SPDX-License-Identifier: Apache-2.0
// Which worker polls which receive queue: pure arithmetic, no threads.
#pragma once

#include <cstdint>
#include <vector>

namespace sw {

inline constexpr int kUnassigned = -1;

struct QueueToAssign {
  int pinned = kUnassigned;   // worker index demanded by configuration, or kUnassigned
  int current = kUnassigned;  // worker that polls it now
  uint64_t load = 0;          // busy TSC ticks in the last window
};

// The worker of every queue. Pinned queues go where they must; queues that have a worker stay there (a move costs
// caches and a plan); new ones go to the worker with the least load, then with the fewest queues, in order of
// appearance.
std::vector<int> assign_queues(const std::vector<QueueToAssign>& queues, uint32_t workers);

// The same with a clean slate for the unpinned: heaviest queue first, each to the least loaded worker.
std::vector<int> spread_queues(const std::vector<QueueToAssign>& queues, uint32_t workers);

// Whether moving from one assignment to the other is worth it: the heaviest worker's load must fall by more than
// `least_gain` ticks. Without that margin, loads that go up and down would send queues to and fro.
bool spread_pays(const std::vector<QueueToAssign>& queues, const std::vector<int>& spread, uint32_t workers,
                 uint64_t least_gain);

}  // namespace sw
