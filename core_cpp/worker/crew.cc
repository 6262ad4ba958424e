// SPDX-License-Identifier: Apache-2.0
#include "worker/crew.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

namespace sw {

namespace {

// The same queues; all that they refer to stays the other's.
std::unique_ptr<Plan> repeat(const Plan& plan) {
  auto same = std::make_unique<Plan>();
  same->workers = plan.workers;
  return same;
}

}  // namespace

std::unique_ptr<Plan> empty_plan(size_t workers) {
  auto plan = std::make_unique<Plan>();
  plan->workers.resize(workers);
  for (WorkerPlan& worker : plan->workers) worker.tx.resize(kMaxPorts);
  return plan;
}

Crew::Crew(const std::vector<int>& cpus, Polling polling, LongWait long_wait, uint32_t most_looks)
    : long_wait_(std::move(long_wait)), most_looks_(most_looks), plan_(empty_plan(cpus.size())) {
  for (size_t i = 0; i < cpus.size(); ++i) {
    workers_.push_back(std::make_unique<Worker>(static_cast<uint32_t>(i), cpus[i], polling));
  }
}

Crew::~Crew() { stop(); }

Result<void> Crew::start() {
  for (const auto& worker : workers_) {
    auto started = worker->start(plan_.get());
    if (!started) {
      stop();
      return started.error();
    }
  }
  return {};
}

void Crew::stop() {
  for (const auto& worker : workers_) worker->stop();
}

void Crew::publish(std::unique_ptr<Plan> plan) {
  auto first = without_moves(*plan);
  if (first) {
    hand_over(*first);
    wait_all(first->generation, Patience::kEndless);
  }
  hand_over(*plan);
  wait_all(plan->generation, Patience::kEndless);
  put_in_force(std::move(plan), std::move(first));
}

void Crew::extend(std::unique_ptr<Plan> plan) {
  auto first = without_moves(*plan);
  if (first) {  // a queue that moves is polled by its old worker until that one has passed
    hand_over(*first);
    wait_all(first->generation, Patience::kEndless);
  }
  hand_over(*plan);
  wait_all(plan->generation, Patience::kBounded);
  put_in_force(std::move(plan), std::move(first));
}

Result<void> Crew::try_publish(std::unique_ptr<Plan> plan) {
  auto first = without_moves(*plan);
  Plan& begin = first ? *first : *plan;
  hand_over(begin);
  if (const auto worker = wait_all(begin.generation, Patience::kBounded)) {
    // Some workers have it, and the one that hangs may have looked at it already.
    auto back = repeat(*plan_);
    hand_over(*back);
    retire(std::move(first));
    retire(std::move(plan));
    retire(std::exchange(repeated_, std::move(back)));
    return stuck(*worker);
  }
  if (first) {  // all have passed a plan without the queues that move: who comes first with the new one does no harm
    hand_over(*plan);
    wait_all(plan->generation, Patience::kBounded);
  }
  put_in_force(std::move(plan), std::move(first));
  return {};
}

Result<void> Crew::check() {
  auto same = repeat(*plan_);
  hand_over(*same);
  const auto worker = wait_all(same->generation, Patience::kBounded);
  retire(std::exchange(repeated_, std::move(same)));
  free_retired();
  if (worker) return stuck(*worker);
  return {};
}

// The plan without receive queues that another worker polls now; null when there are none. What they send through stays the
// plan's, which outlives it.
std::unique_ptr<Plan> Crew::without_moves(const Plan& plan) const {
  std::map<const QueueLoad*, size_t> pollers;
  for (size_t w = 0; w < plan_->workers.size(); ++w) {
    for (const PlanRx& rx : plan_->workers[w].rx) pollers[rx.load] = w;
  }
  const auto moves = [&pollers](const PlanRx& rx, size_t worker) {
    const auto found = pollers.find(rx.load);
    return found != pollers.end() && found->second != worker;
  };
  bool any = false;
  for (size_t w = 0; w < plan.workers.size(); ++w) {
    for (const PlanRx& rx : plan.workers[w].rx) any |= moves(rx, w);
  }
  if (!any) return nullptr;
  auto without = repeat(plan);
  for (size_t w = 0; w < without->workers.size(); ++w) {
    std::erase_if(without->workers[w].rx, [&](const PlanRx& rx) { return moves(rx, w); });
  }
  return without;
}

void Crew::hand_over(Plan& plan) {
  plan.generation = ++generation_;
  for (const auto& worker : workers_) worker->publish(&plan);
}

std::optional<uint32_t> Crew::wait_all(uint64_t generation, Patience patience) {
  std::optional<uint32_t> first_stuck;
  for (const auto& worker : workers_) {
    // Whoever hung a moment ago hangs now, or has passed at once.
    const bool given_up = late() == worker->index();
    if (given_up && patience == Patience::kBounded ? worker->passed(generation) : worker->wait_passed(generation, 0)) {
      continue;
    }
    bool passed = false;
    const auto wait = [&] {
      passed = !given_up && worker->wait_passed(generation, most_looks_);
      if (passed) return;
      late_for_ = generation;
      late_ = static_cast<int>(worker->index());
      while (patience == Patience::kEndless && !passed) passed = worker->wait_passed(generation, most_looks_);
    };
    if (long_wait_ && !(given_up && patience == Patience::kBounded)) {
      long_wait_(wait);
    } else {
      wait();
    }
    if (!passed && !first_stuck) first_stuck = worker->index();
  }
  return first_stuck;
}

std::optional<uint32_t> Crew::late() const {
  const int late = late_;
  if (late < 0 || workers_[static_cast<size_t>(late)]->passed(late_for_)) return {};
  return static_cast<uint32_t>(late);
}

Error Crew::stuck(uint32_t worker) const {
  const int cpu = workers_[worker]->cpu();
  return {worker_stuck_code(worker),
          "worker " + std::to_string(worker) + (cpu < 0 ? "" : " on CPU " + std::to_string(cpu)) +
              " does not go round its queues, so this was not done: is its thread stopped, or its CPU taken by a "
              "real-time process? Try again when it goes on (swctl workers), or restart switchd"};
}

void Crew::put_in_force(std::unique_ptr<Plan> plan, std::unique_ptr<Plan> first) {
  retire(std::move(first));
  retire(std::move(repeated_));
  retire(std::exchange(plan_, std::move(plan)));
  free_retired();
}

// A plan that nobody is given any more. Whoever has passed what was handed over last does not use it.
void Crew::retire(std::unique_ptr<Plan> plan) {
  if (plan) retired_.push_back({std::move(plan), generation_});
}

void Crew::free_retired() {
  std::erase_if(retired_, [this](const Retired& old) {
    return std::ranges::all_of(workers_, [&](const auto& worker) { return worker->passed(old.generation); });
  });
}

}  // namespace sw
