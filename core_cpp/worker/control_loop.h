// SPDX-License-Identifier: Apache-2.0
// ControlLoop: the one thread that serves sockets, timers and device events, and the lock under which everything on the
// control side runs. A call from Python takes the same lock for a moment, so a slow Python never stalls a guest.
#pragma once

#include <atomic>
#include <mutex>
#include <thread>

#include "base/event_loop.h"

namespace sw {

class ControlLoop {
 public:
  ~ControlLoop() { stop(); }

  void start();
  void stop();  // joins; callbacks stop; idempotent. Never from a callback.

  EventLoop& loop() { return loop_; }
  // Recursive: a port's callback, which runs under it, may call the datapath.
  std::recursive_mutex& mutex() { return mutex_; }

 private:
  EventLoop loop_;
  std::recursive_mutex mutex_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace sw
