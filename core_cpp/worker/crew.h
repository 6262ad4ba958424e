// SPDX-License-Identifier: Apache-2.0
// Crew: all workers and the plan they run. Here plans change hands, and are freed.
//
// Theory of operation. Workers take a plan one after the other, so a receive queue that goes from one to another is first
// left out of all plans: it never has two pollers. A plan is kept until every worker has passed a later one.
//
// A worker may never pass: its thread is stopped, or its CPU taken. Who waits for it does so for as long as kMostLooks says,
// and the next one not at all, until it goes on. What happens then depends on what the change takes away:
// - a change that can be refused (try_publish) is taken back: all workers get what they had;
// - one that only adds (extend) holds without that worker, which takes it when it goes on;
// - one that must not return before all have passed (publish), since memory is unmapped after it, goes on waiting.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "worker/worker.h"

namespace sw {

class Crew {
 public:
  static constexpr uint32_t kMostLooks =
      5000;  // of a millisecond: the kernel may keep a thread waiting for a second or two
  // Runs the wait that it is given; for a long one, so that others may do something meanwhile.
  using LongWait = std::function<void(const std::function<void()>& wait)>;

  // One worker per entry of `cpus`; a negative entry is a worker without a CPU of its own.
  Crew(const std::vector<int>& cpus, Polling polling, LongWait long_wait = {}, uint32_t most_looks = kMostLooks);
  ~Crew();

  Result<void> start();  // with an empty plan; on error nothing runs
  void stop();

  // Give every worker the new plan and return when none uses an older one (microseconds; a napping worker up to 50 us,
  // a blocked one is woken). The generation is set here. Control lock held, as for all that follow.
  void publish(std::unique_ptr<Plan> plan);
  // The same for a plan that names every queue of the one before: need not wait for a worker that hangs.
  void extend(std::unique_ptr<Plan> plan);
  // The same for a plan that names no queue beside those of the one before. On error, of stuck(), it was taken back.
  Result<void> try_publish(std::unique_ptr<Plan> plan);
  // Whether all workers would pass now.
  Result<void> check();

  // The worker that somebody waited for in vain and that has not gone on since; any thread.
  [[nodiscard]] std::optional<uint32_t> late() const;
  [[nodiscard]] Error stuck(uint32_t worker) const;  // why something was not done; its code is worker_stuck_code

  [[nodiscard]] const Plan& plan() const { return *plan_; }
  [[nodiscard]] const std::vector<std::unique_ptr<Worker>>& workers() const { return workers_; }

 private:
  struct Retired {
    std::unique_ptr<Plan> plan;
    uint64_t generation;  // of the plan that came after it
  };
  enum class Patience : uint8_t { kBounded, kEndless };

  [[nodiscard]] std::unique_ptr<Plan> without_moves(const Plan& plan) const;
  void hand_over(Plan& plan);
  std::optional<uint32_t> wait_all(uint64_t generation, Patience patience);
  void put_in_force(std::unique_ptr<Plan> plan, std::unique_ptr<Plan> first);
  void retire(std::unique_ptr<Plan> plan);
  void free_retired();

  const LongWait long_wait_;
  const uint32_t most_looks_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::unique_ptr<Plan> plan_;
  std::unique_ptr<Plan> repeated_;  // what workers have, if it is not plan_ itself but a plan with the same queues
  std::vector<Retired> retired_;    // what a worker may still use
  uint64_t generation_ = 0;         // of the last plan handed over
  std::atomic<int> late_{-1};
  std::atomic<uint64_t> late_for_{0};  // which generation it had not passed
};

// The code of an Error that is about a worker that hangs, and about nothing that the system refused: all there is to say is in
// its `what`.
constexpr int worker_stuck_code(uint32_t worker) { return -1 - static_cast<int>(worker); }

// A plan in which `workers` workers have nothing to do.
std::unique_ptr<Plan> empty_plan(size_t workers);

}  // namespace sw
