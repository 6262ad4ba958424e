// SPDX-License-Identifier: Apache-2.0
#include "worker/assignment.h"

#include <algorithm>
#include <numeric>

namespace sw {

namespace {

struct Share {
  uint64_t load = 0;
  uint32_t queues = 0;
  bool operator<(const Share& other) const { return load != other.load ? load < other.load : queues < other.queues; }
};

size_t least_loaded(const std::vector<Share>& shares) {
  return static_cast<size_t>(std::min_element(shares.begin(), shares.end()) - shares.begin());
}

void take(std::vector<Share>& shares, size_t worker, uint64_t load) {
  shares[worker].load += load;
  shares[worker].queues += 1;
}

std::vector<int> place_pinned(const std::vector<QueueToAssign>& queues, std::vector<Share>& shares) {
  std::vector<int> result(queues.size(), kUnassigned);
  for (size_t i = 0; i < queues.size(); ++i) {
    if (queues[i].pinned == kUnassigned) continue;
    result[i] = queues[i].pinned;
    take(shares, static_cast<size_t>(queues[i].pinned), queues[i].load);
  }
  return result;
}

uint64_t heaviest(const std::vector<QueueToAssign>& queues, uint32_t workers, const std::vector<int>& assignment) {
  std::vector<uint64_t> loads(workers, 0);
  for (size_t i = 0; i < queues.size(); ++i) {
    if (assignment[i] >= 0) loads[static_cast<size_t>(assignment[i])] += queues[i].load;
  }
  return *std::max_element(loads.begin(), loads.end());
}

}  // namespace

std::vector<int> assign_queues(const std::vector<QueueToAssign>& queues, uint32_t workers) {
  std::vector<Share> shares(workers);
  std::vector<int> result = place_pinned(queues, shares);
  for (size_t i = 0; i < queues.size(); ++i) {
    if (result[i] != kUnassigned || queues[i].current == kUnassigned) continue;
    result[i] = queues[i].current;
    take(shares, static_cast<size_t>(queues[i].current), queues[i].load);
  }
  for (size_t i = 0; i < queues.size(); ++i) {
    if (result[i] != kUnassigned) continue;
    const size_t worker = least_loaded(shares);
    result[i] = static_cast<int>(worker);
    take(shares, worker, queues[i].load);
  }
  return result;
}

std::vector<int> spread_queues(const std::vector<QueueToAssign>& queues, uint32_t workers) {
  std::vector<Share> shares(workers);
  std::vector<int> result = place_pinned(queues, shares);
  std::vector<size_t> order(queues.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return queues[a].load > queues[b].load; });
  for (const size_t i : order) {
    if (result[i] != kUnassigned) continue;
    const size_t worker = least_loaded(shares);
    result[i] = static_cast<int>(worker);
    take(shares, worker, queues[i].load);
  }
  return result;
}

bool spread_pays(const std::vector<QueueToAssign>& queues, const std::vector<int>& spread, uint32_t workers,
                 uint64_t least_gain) {
  std::vector<int> now;
  now.reserve(queues.size());
  for (const QueueToAssign& queue : queues) now.push_back(queue.current);
  const uint64_t before = heaviest(queues, workers, now);
  const uint64_t after = heaviest(queues, workers, spread);
  return before > after && before - after > least_gain;
}

}  // namespace sw
