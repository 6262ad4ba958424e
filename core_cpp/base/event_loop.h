// SPDX-License-Identifier: Apache-2.0
// EventLoop: one epoll set with callbacks and timers. One thread runs it; any thread may add and remove under the lock
// that `around` of run_once takes (the datapath's control lock). wake() needs no lock.
#pragma once

#include <sys/epoll.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <unordered_map>

#include "base/fd.h"
#include "base/result.h"

namespace sw {

class EventLoop {
 public:
  using FdCallback = std::function<void(uint32_t epoll_events)>;
  using TimerCallback = std::function<void()>;
  using TimerId = uint64_t;  // never 0

  EventLoop();

  // Watch `fd` (not owned) for EPOLLIN/EPOLLOUT/...; one callback per fd. A callback may remove any fd, its own
  // included.
  Result<void> add(int fd, uint32_t events, FdCallback callback);
  Result<void> modify(int fd, uint32_t events);
  void remove(int fd);  // call before closing the fd; unknown fds are ignored

  // Run `callback` once, `delay_ms` from now.
  TimerId after(uint64_t delay_ms, TimerCallback callback);
  void cancel(TimerId id);  // unknown or expired ids are ignored

  // Wait at most `timeout_ms` (-1: until something happens), then run what is due. `around` wraps the callbacks of one
  // round: the control loop passes a function that takes its lock.
  void run_once(int timeout_ms, const std::function<void(const std::function<void()>&)>& around);

  void wake();  // any thread: make run_once return soon

 private:
  struct Watch {
    FdCallback callback;
  };
  [[nodiscard]] int next_timeout_ms(int limit_ms) const;
  void run_due_timers();

  UniqueFd epoll_;
  UniqueFd wake_;
  std::unordered_map<int, std::shared_ptr<Watch>> watches_;
  std::multimap<uint64_t, std::pair<TimerId, TimerCallback>> timers_;  // key: monotonic ns when due
  TimerId last_timer_ = 0;
};

}  // namespace sw
