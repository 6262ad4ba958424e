// SPDX-License-Identifier: Apache-2.0
// A thread of this process that stands still wherever it is, as one that a debugger or a real-time process keeps off the CPU.
#pragma once

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

namespace sw::testing {

class HeldThread {
 public:
  explicit HeldThread(int thread_id) {
    struct sigaction action{};
    action.sa_handler = [](int) {
      while (held()) nap();
      --inside();
    };
    REQUIRE(::sigaction(SIGUSR2, &action, nullptr) == 0);
    held() = true;
    ++inside();
    REQUIRE(::syscall(SYS_tgkill, ::getpid(), thread_id, SIGUSR2) == 0);
  }
  ~HeldThread() { release(); }
  HeldThread(const HeldThread&) = delete;
  HeldThread& operator=(const HeldThread&) = delete;

  static void release() {
    held() = false;
    while (inside() != 0) nap();
  }

 private:
  static void nap() {
    const timespec briefly{0, 100'000};
    ::nanosleep(&briefly, nullptr);
  }
  static std::atomic<bool>& held() {
    static std::atomic<bool> value{false};
    return value;
  }
  static std::atomic<int>& inside() {
    static std::atomic<int> value{0};
    return value;
  }
};

}  // namespace sw::testing
