// SPDX-License-Identifier: Apache-2.0
#include "worker/worker.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "base/affinity.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/event_signal.h"

namespace sw {

namespace {

// The ladder of an idle worker, in microseconds since the last frame. A frame that comes while it naps waits at most
// kNapMaxNs plus the timer's slack; one that comes while it is blocked waits for an eventfd wake-up.
constexpr uint64_t kSpinUs = 20;
constexpr uint64_t kPauseUs = 60;
constexpr uint64_t kNapUs = 1000;
constexpr uint32_t kNapMinNs = 2'000;
constexpr uint32_t kNapMaxNs = 50'000;
constexpr uint64_t kPatienceNs = 20'000'000;  // wait_passed: then the worker is taken out of whatever call it hangs in
constexpr int kBlockMs = 1000;  // a blocked worker still turns over once a second, so that its counters move

// A peer can make its eventfd blocking and full behind our back, and a worker that writes to it then hangs. This signal
// ends the call with EINTR; what it does else is nothing.
const int kNudgeSignal = SIGRTMIN + 5;

void install_nudge_handler() {
  struct sigaction action{};
  action.sa_handler = [](int) {};
  action.sa_flags = 0;  // no SA_RESTART: the call must end
  ::sigaction(kNudgeSignal, &action, nullptr);
}

uint32_t batch_bucket(uint32_t frames) { return static_cast<uint32_t>(std::bit_width(frames)) - 1; }

}  // namespace

Worker::Worker(uint32_t index, int cpu, Polling polling)
    : index_(index), cpu_(cpu), polling_(polling), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  SW_CHECK(wake_);
  SW_CHECK(batch_bucket(kMaxBatch) == kBatchBuckets - 1);
}

Worker::~Worker() { stop(); }

Result<void> Worker::start(const Plan* plan) {
  if (cpu_ >= 0) {
    // Tried here first so that the error reaches a person; the thread repeats it for itself.
    cpu_set_t old_set;
    pthread_getaffinity_np(pthread_self(), sizeof old_set, &old_set);
    const Result<void> pinned = pin_this_thread(cpu_);
    pthread_setaffinity_np(pthread_self(), sizeof old_set, &old_set);
    if (!pinned) {
      return Error{pinned.error().code, "pin worker " + std::to_string(index_) + " to CPU " + std::to_string(cpu_)};
    }
  }
  plan_.store(plan, std::memory_order_release);
  install_nudge_handler();
  thread_ = std::thread([this] { run(); });
  thread_id_posix_ = thread_.native_handle();
  return {};
}

void Worker::stop() {
  if (!thread_.joinable()) return;
  stopping_.store(true, std::memory_order_release);
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof one);
  thread_.join();
}

void Worker::publish(const Plan* plan) {
  plan_.store(plan, std::memory_order_seq_cst);
  // Pairs with block(): either we see blocked_ and wake it, or it sees the plan before it sleeps.
  full_fence();
  if (blocked_.load(std::memory_order_seq_cst)) {
    const uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof one);
  }
}

void Worker::wait_passed(uint64_t generation) const {
  if (!thread_.joinable()) return;  // not started: nobody uses any plan
  uint64_t nudge_at_ns = 0;
  for (uint32_t spins = 0; seen_generation_.load(std::memory_order_acquire) < generation; ++spins) {
    if (spins < 1000) {
      _mm_pause();
      continue;
    }
    ::sched_yield();  // the worker may share our CPU
    const uint64_t now = monotonic_ns();
    if (nudge_at_ns == 0) nudge_at_ns = now + kPatienceNs;
    if (now > nudge_at_ns) {
      ::pthread_kill(thread_id_posix_, kNudgeSignal);
      nudge_at_ns = now + kPatienceNs;
    }
  }
}

void Worker::run() {
  thread_id_.store(static_cast<int>(::syscall(SYS_gettid)), std::memory_order_relaxed);
  const std::string thread_name = "sw-worker" + std::to_string(index_);
  pthread_setname_np(pthread_self(), thread_name.c_str());
  ::prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);    // naps end on time, not 50 us late
  if (cpu_ >= 0) (void)pin_this_thread(cpu_);  // start() has seen that it can be
  (void)signals_never_wait();                  // makes what the first signal of this thread needs
  StallGuard guard(kNudgeSignal);
  guard_ = &guard;
  last_tsc_ = idle_since_tsc_ = tsc_now();
  while (!stopping_.load(std::memory_order_acquire)) {
    const Plan* plan = plan_.load(std::memory_order_acquire);
    if (plan != current_) [[unlikely]]
      adopt(plan);
    const bool worked = poll_all();
    account(worked);
    if (!worked) idle_step();
  }
  guard_ = nullptr;
}

bool Worker::poll_once(const Plan* plan) {
  if (plan != current_) adopt(plan);
  return poll_all();
}

void Worker::adopt(const Plan* plan) {
  epoll_.reset();  // before anybody closes the fds in it: the peer holds them open too, so they would not leave by
                   // themselves
  forwarder_.reset();
  current_ = plan;
  mine_ = &plan->workers[index_];
  size_t queues = 0;
  for (const PlanTx& tx : mine_->tx) queues += tx.queues.size();
  owed_rx_.reserve(mine_->rx.size());
  owed_tx_.reserve(queues);
  // Pairs with wait_passed: all uses of older plans happen before.
  seen_generation_.store(plan->generation, std::memory_order_release);
}

bool Worker::poll_all() {
  bool worked = false;
  for (const PlanRx& rx : mine_->rx) worked |= pass(rx);
  if (worked) notify_all();
  return worked;
}

bool Worker::pass(const PlanRx& rx) {
  batch_.clear();
  if (!rx.queue->peek(batch_, *rx.counters)) return false;
  if (batch_.count != 0) {
    forwarder_.forward(batch_, *rx.policy, *rx.bridge, *rx.counters, groups_);
    send_groups(rx);
    counters_.batches.add(1);
    counters_.frames.add(batch_.count);
    counters_.batch_frames[batch_bucket(batch_.count)].add(1);
  }
  rx.queue->release();
  owed_rx_.push_back(rx.queue);
  const uint64_t now = tsc_now();
  rx.load->busy_tsc.add(now - last_tsc_);
  counters_.busy_tsc.add(now - last_tsc_);
  last_tsc_ = now;
  return true;
}

void Worker::send_groups(const PlanRx& rx) {
  for (const PortId port : groups_.touched()) {
    const PlanTx& tx = mine_->tx[port];
    const std::span<const uint8_t> frames = groups_.of(port);
    if (tx.queues.empty()) {
      tx.counters->offered.add(frames.size());
      tx.counters->drop_tx(DropReason::kLinkDown, frames.size());
      continue;
    }
    if (!rx.bridge->vlan_transparent) shape_group(batch_, frames, *tx.policy);
    const size_t count = tx.queues.size();
    TxQueue* const queue = count == 1 ? tx.queues[0] : tx.queues[rx.queue_index % count];
    if (tx.shared) queue->lock().lock();
    egress_.send(batch_, frames, *queue, tx.mtu, *tx.counters);
    if (tx.shared) queue->lock().unlock();
    if (std::none_of(owed_tx_.begin(), owed_tx_.end(), [queue](const auto& owed) { return owed.first == queue; })) {
      owed_tx_.emplace_back(queue, tx.shared);
    }
  }
  groups_.clear();
}

void Worker::notify_all() {
  // Between "used entries are published" (all passes of this loop) and "does the peer want to be told" (notify of each
  // queue): virtio 1.3 2.7.7.2 and 2.8.10. One for all.
  full_fence();
  if (watch_due_tsc_ == kResting) [[unlikely]]
    watch_stalls();
  for (RxQueue* queue : owed_rx_) queue->notify();
  for (const auto& [queue, shared] : owed_tx_) {
    if (shared) queue->lock().lock();
    queue->notify();
    if (shared) queue->lock().unlock();
  }
  owed_rx_.clear();
  owed_tx_.clear();
}

void Worker::account(bool worked) {
  counters_.loops.add(1);
  const uint64_t now = tsc_now();
  if (worked) {
    counters_.busy_tsc.add(now - last_tsc_);
    idle_since_tsc_ = now;
    nap_ns_ = kNapMinNs;
  } else {
    counters_.idle_tsc.add(now - last_tsc_);
  }
  last_tsc_ = now;
  if (now > watch_due_tsc_) [[unlikely]]
    watch_stalls();
}

void Worker::watch_stalls() {
  static const uint64_t patience_tsc = tsc_hz() / (1'000'000'000 / StallGuard::kPatienceNs);
  if (guard_ != nullptr) guard_->watch();
  watch_due_tsc_ = tsc_now() + patience_tsc / 2;
}

void Worker::idle_step() {
  if (polling_ == Polling::kBusy) {
    _mm_pause();
    return;
  }
  static const uint64_t tsc_per_us = tsc_hz() / 1'000'000U;
  const uint64_t idle_us = (last_tsc_ - idle_since_tsc_) / tsc_per_us;
  if (idle_us < kSpinUs) return;
  if (idle_us < kPauseUs) {
    for (int i = 0; i < 16; ++i) _mm_pause();
    return;
  }
  if (idle_us < kNapUs) {
    const timespec nap{0, static_cast<long>(nap_ns_)};
    ::nanosleep(&nap, nullptr);
    nap_ns_ = std::min(nap_ns_ * 2, kNapMaxNs);
    const uint64_t now = tsc_now();
    counters_.sleep_tsc.add(now - last_tsc_);
    counters_.idle_tsc.add(now - last_tsc_);
    last_tsc_ = now;
    return;
  }
  block();
}

bool Worker::build_epoll() {
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return false;
  // Edge-triggered: nobody reads the kick eventfds, so their counters stay above zero for ever; an edge comes with
  // every write. Adding an already readable fd reports once, which costs one vain turn.
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  bool complete = ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) == 0;
  for (const PlanRx& rx : mine_->rx) {
    const int fd = rx.queue->wake_fd();
    if (fd < 0 || (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0 && errno != EEXIST)) complete = false;
  }
  if (!complete) epoll_.reset();
  return complete;
}

void Worker::block() {
  if (guard_ != nullptr && watch_due_tsc_ != kResting) guard_->rest();
  watch_due_tsc_ = kResting;
  if (!epoll_ && !build_epoll()) {  // a queue that cannot wake us: go on napping
    nap_ns_ = kNapMaxNs;
    const timespec nap{0, static_cast<long>(nap_ns_)};
    ::nanosleep(&nap, nullptr);
  } else {
    bool work = false;
    for (const PlanRx& rx : mine_->rx) work |= rx.queue->arm();
    blocked_.store(true, std::memory_order_seq_cst);
    full_fence();  // pairs with publish
    const bool changed = plan_.load(std::memory_order_seq_cst) != current_ || stopping_.load(std::memory_order_seq_cst);
    if (!work && !changed) {
      std::array<epoll_event, 8> events{};
      ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), kBlockMs);
      counters_.wakeups.add(1);
    }
    blocked_.store(false, std::memory_order_seq_cst);
    for (const PlanRx& rx : mine_->rx) rx.queue->disarm();
    // Woken by a peer, it polls at once and climbs the ladder anew; woken by nothing it would spin for a millisecond,
    // so a vain wake-up goes straight back to sleep: idle_since stays.
  }
  const uint64_t now = tsc_now();
  counters_.sleep_tsc.add(now - last_tsc_);
  counters_.idle_tsc.add(now - last_tsc_);
  last_tsc_ = now;
}

}  // namespace sw
