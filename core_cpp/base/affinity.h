// SPDX-License-Identifier: Apache-2.0
// On which CPU a thread runs.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <string>

#include "base/result.h"

namespace sw {

// The calling thread runs on `cpu` (0 or more) and nowhere else from now on.
inline Result<void> pin_this_thread(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  const int error = ::pthread_setaffinity_np(::pthread_self(), sizeof set, &set);
  if (error != 0) return Error{error, "pin a thread to CPU " + std::to_string(cpu)};
  return {};
}

}  // namespace sw
