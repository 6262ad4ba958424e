// SPDX-License-Identifier: Apache-2.0
// Worker: a pinned polling thread. It moves frames from the receive queues of its plan to the transmit queues of
// theirs.
//
// Theory of operation. One loop: look at the plan pointer; poll every receive queue once (peek a batch, decide, send each
// destination's group, give the batch back); then one full fence and all notifications that the loop left owing. Nothing
// in it locks, allocates or calls the kernel, but for those notifications and for going to sleep.
//
// - Quiescence: `seen_generation` is stored (release) after a plan was adopted. When it has reached G, the worker holds no
//   pointer of any plan before G: the control side may free those plans and change the queues they named.
// - Sleep (adaptive): spin, then pause, then short naps, then ask every queue for notifications, look once more (arm), and
//   block in epoll. publish() and stop() write the wake eventfd, so a sleeping worker passes at once.
// - A worker that a hostile peer holds in a system call (a full eventfd made blocking) is taken out of it by a signal: by
//   its StallGuard, and by whoever waits for it. It happens once for each port (base/event_signal.h).
#pragma once

#include <pthread.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "base/stall_guard.h"
#include "l2/forward.h"
#include "port/egress.h"
#include "worker/plan.h"

namespace sw {

enum class Polling : uint8_t { kAdaptive, kBusy };

inline constexpr uint32_t kBatchBuckets = 7;  // batches of 1, 2-3, 4-7, 8-15, 16-31, 32-63, 64 frames

// One writer: the worker. Times in TSC ticks.
struct alignas(64) WorkerCounters {
  Counter busy_tsc;
  Counter idle_tsc;   // polling in vain, pausing, sleeping
  Counter sleep_tsc;  // the part of idle spent off the CPU
  Counter loops;
  Counter wakeups;  // returns from blocking sleep
  Counter batches;
  Counter frames;
  std::array<Counter, kBatchBuckets> batch_frames;
};

class Worker {
 public:
  // `cpu` < 0: not pinned.
  Worker(uint32_t index, int cpu, Polling polling);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  Result<void> start(const Plan* plan);  // fails when the CPU does not exist or is not allowed
  void stop();                           // joins; idempotent

  // Control side. The plan must outlive the worker's use: wait_passed(next plan's generation) or stop().
  void publish(const Plan* plan);
  void wait_passed(uint64_t generation) const;

  [[nodiscard]] const WorkerCounters& counters() const { return counters_; }
  [[nodiscard]] uint32_t index() const { return index_; }
  [[nodiscard]] int cpu() const { return cpu_; }
  [[nodiscard]] int thread_id() const { return thread_id_.load(std::memory_order_relaxed); }

  // One loop on the calling thread, for tests and benchmarks that drive a worker by hand. True when frames moved.
  bool poll_once(const Plan* plan);

 private:
  void run();
  void adopt(const Plan* plan);
  bool poll_all();
  bool pass(const PlanRx& rx);
  void send_groups(const PlanRx& rx);
  void notify_all();
  void account(bool worked);
  void watch_stalls();
  void idle_step();
  void block();
  bool build_epoll();

  const uint32_t index_;
  const int cpu_;
  const Polling polling_;

  // Written by the control side, read by the worker.
  alignas(64) std::atomic<const Plan*> plan_{nullptr};
  std::atomic<bool> stopping_{false};
  UniqueFd wake_;

  // Written by the worker, read by the control side.
  alignas(64) std::atomic<uint64_t> seen_generation_{0};
  std::atomic<bool> blocked_{false};  // in epoll or about to be: publish must write wake_
  std::atomic<int> thread_id_{0};
  WorkerCounters counters_;

  // The worker's own.
  alignas(64) const Plan* current_ = nullptr;
  const WorkerPlan* mine_ = nullptr;
  uint64_t last_tsc_ = 0;
  uint64_t idle_since_tsc_ = 0;
  static constexpr uint64_t kResting = UINT64_MAX;
  uint64_t watch_due_tsc_ = kResting;  // when the guard is to be put off again
  StallGuard* guard_ = nullptr;
  uint32_t nap_ns_ = 0;
  std::vector<RxQueue*> owed_rx_;                   // owe their peer a look at its notification wish
  std::vector<std::pair<TxQueue*, bool>> owed_tx_;  // with: is it shared
  UniqueFd epoll_;  // over wake_ and the queues' wake_fd(), edge-triggered; closed when the plan changes
  Batch batch_;
  Groups groups_;
  Forwarder forwarder_;
  Egress egress_;
  std::thread thread_;
  pthread_t thread_id_posix_{};  // of thread_, for const access
};

}  // namespace sw
