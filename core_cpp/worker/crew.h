// SPDX-License-Identifier: Apache-2.0
// Crew: all workers and the plan they run. publish() is the one place where plans change hands and are freed.
#pragma once

#include <memory>
#include <vector>

#include "worker/worker.h"

namespace sw {

class Crew {
 public:
  // One worker per entry of `cpus`; a negative entry is a worker without a CPU of its own.
  Crew(const std::vector<int>& cpus, Polling polling);
  ~Crew();

  Result<void> start();  // with an empty plan; on error nothing runs
  void stop();

  // Give every worker the new plan and return when none uses an older one (microseconds; a napping worker up to 50 us,
  // a blocked one is woken). Workers take it one after the other, so a receive queue that goes from one to another is
  // first left out of all plans: it never has two pollers. The generation is set here. Control lock held.
  void publish(std::unique_ptr<Plan> plan);

  [[nodiscard]] const Plan& plan() const { return *plan_; }
  [[nodiscard]] const std::vector<std::unique_ptr<Worker>>& workers() const { return workers_; }

 private:
  void hand_over(Plan& plan);

  std::vector<std::unique_ptr<Worker>> workers_;
  std::unique_ptr<Plan> plan_;
  uint64_t generation_ = 0;  // of the last plan handed over
};

// A plan in which `workers` workers have nothing to do.
std::unique_ptr<Plan> empty_plan(size_t workers);

}  // namespace sw
