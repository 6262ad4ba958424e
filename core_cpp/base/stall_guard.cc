// SPDX-License-Identifier: Apache-2.0
#include "base/stall_guard.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace sw {

namespace {

thread_local bool watched = false;

}  // namespace

StallGuard::StallGuard(int signal) {
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = signal;
  event._sigev_un._tid = static_cast<pid_t>(::syscall(SYS_gettid));  // glibc 2.36 has no other name for it
  made_ = ::timer_create(CLOCK_MONOTONIC, &event, &timer_) == 0;
}

StallGuard::~StallGuard() {
  watched = false;
  if (made_) ::timer_delete(timer_);
}

void StallGuard::watch() {
  if (!made_) return;
  set(kPatienceNs);
  watched = true;
}

void StallGuard::rest() {
  if (!made_) return;
  watched = false;
  set(0);
}

bool StallGuard::watches_this_thread() { return watched; }

void StallGuard::set(uint64_t nanoseconds) {
  const timespec after{0, static_cast<long>(nanoseconds)};
  const itimerspec times{after, after};
  ::timer_settime(timer_, 0, &times, nullptr);
}

}  // namespace sw
