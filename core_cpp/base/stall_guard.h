// SPDX-License-Identifier: Apache-2.0
// StallGuard: takes its thread out of a system call that takes longer than it should.
//
// Theory of operation. A timer of the kernel sends the thread a signal whose handler does nothing, but ends the call with
// EINTR: when it was not put off for kPatienceNs, and again after every further kPatienceNs. Putting it off is a system
// call of its own, so the thread does that now and then, and ends the timer before it sleeps on purpose.
#pragma once

#include <time.h>

#include <cstdint>

namespace sw {

class StallGuard {
 public:
  static constexpr uint64_t kPatienceNs = 10'000'000;

  // For the calling thread, which calls everything else, too. `signal`: its handler was installed without SA_RESTART.
  // Where the system has no timer for us watch() does nothing.
  explicit StallGuard(int signal);
  ~StallGuard();
  StallGuard(const StallGuard&) = delete;
  StallGuard& operator=(const StallGuard&) = delete;

  void watch();  // from now on; called again in time, it is put off
  void rest();   // until the next watch()

  static bool watches_this_thread();

 private:
  void set(uint64_t nanoseconds);

  timer_t timer_{};
  bool made_ = false;
};

}  // namespace sw
