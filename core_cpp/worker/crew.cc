// SPDX-License-Identifier: Apache-2.0
#include "worker/crew.h"

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
  plan->generation = plan_->generation + 1;
  for (const auto& worker : workers_) worker->publish(plan.get());
  for (const auto& worker : workers_) worker->wait_passed(plan->generation);
  plan_ = std::move(plan);
}

}  // namespace sw
