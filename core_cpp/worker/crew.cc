// SPDX-License-Identifier: Apache-2.0
#include "worker/crew.h"

#include <map>
#include <utility>

namespace sw {

std::unique_ptr<Plan> empty_plan(size_t workers) {
  auto plan = std::make_unique<Plan>();
  plan->workers.resize(workers);
  for (WorkerPlan& worker : plan->workers) worker.tx.resize(kMaxPorts);
  return plan;
}

Crew::Crew(const std::vector<int>& cpus, Polling polling) : plan_(empty_plan(cpus.size())) {
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
  std::map<const QueueLoad*, size_t> pollers;
  for (size_t w = 0; w < plan_->workers.size(); ++w) {
    for (const PlanRx& rx : plan_->workers[w].rx) pollers[rx.load] = w;
  }
  const auto moves = [&pollers](const PlanRx& rx, size_t worker) {
    const auto found = pollers.find(rx.load);
    return found != pollers.end() && found->second != worker;
  };
  Plan without;  // what the moving queues send through stays with `plan`, which outlives it
  bool any = false;
  for (size_t w = 0; w < plan->workers.size(); ++w) {
    for (const PlanRx& rx : plan->workers[w].rx) any |= moves(rx, w);
  }
  if (any) {
    without.workers = plan->workers;
    for (size_t w = 0; w < without.workers.size(); ++w) {
      std::erase_if(without.workers[w].rx, [&](const PlanRx& rx) { return moves(rx, w); });
    }
    hand_over(without);
  }
  hand_over(*plan);
  plan_ = std::move(plan);
}

void Crew::hand_over(Plan& plan) {
  plan.generation = ++generation_;
  for (const auto& worker : workers_) worker->publish(&plan);
  for (const auto& worker : workers_) worker->wait_passed(plan.generation);
}

}  // namespace sw
