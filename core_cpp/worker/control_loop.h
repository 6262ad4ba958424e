// SPDX-License-Identifier: Apache-2.0
// ControlLoop: the one thread that serves sockets, timers and device events, and the locks under which everything on the
// control side runs. A call from Python takes them for a moment, so a slow Python never stalls a guest.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <thread>

#include "base/event_loop.h"

namespace sw {

// Two locks in one. Whoever changes something has both: the loop's callbacks, and the facade's changes. Whoever only looks has
// the second, `looking`. A change that waits long for a worker opens that one meanwhile (`ajar`): it stands still at a place
// where all that is guarded may be read, and a switch whose worker hangs can still be asked what is wrong. Recursive: a port's
// callback, which has both, may call the datapath.
class ControlLock {
 public:
  class Looking {
   public:
    void lock();
    void unlock();

   private:
    friend class ControlLock;
    std::recursive_mutex mutex_;
    uint32_t depth_ = 0;  // of its holder
  };

  void lock();
  bool try_lock();
  void unlock();
  Looking& looking() { return looking_; }
  // Runs `wait` with `looking` open. The caller has both locks, and has them again afterwards.
  void ajar(const std::function<void()>& wait);

 private:
  std::recursive_mutex changing_;
  Looking looking_;
};

class ControlLoop {
 public:
  ~ControlLoop() { stop(); }

  void start();
  void stop();  // joins; callbacks stop; idempotent. Never from a callback.

  EventLoop& loop() { return loop_; }
  ControlLock& mutex() { return mutex_; }

 private:
  EventLoop loop_;
  ControlLock mutex_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace sw
