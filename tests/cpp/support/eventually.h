// SPDX-License-Identifier: Apache-2.0
// Waiting for what another thread will make true.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>

namespace sw::testing {

// Ends after so many seconds in which there was a look at least every tenth of one: a process, or a machine, that stood
// still for longer had no chance to do what is waited for.
class Patience {
 public:
  explicit Patience(std::chrono::milliseconds most = std::chrono::seconds(10)) : left_(most) {}
  [[nodiscard]] bool over() {
    const auto now = std::chrono::steady_clock::now();
    left_ -= std::min<std::chrono::nanoseconds>(now - seen_, std::chrono::milliseconds(100));
    seen_ = now;
    return left_ < std::chrono::nanoseconds(0);
  }

 private:
  std::chrono::nanoseconds left_;
  std::chrono::steady_clock::time_point seen_ = std::chrono::steady_clock::now();
};

// True as soon as the condition is; false after ten seconds without.
inline bool eventually(const std::function<bool()>& condition) {
  for (Patience patience; !condition();) {
    if (patience.over()) return false;
    std::this_thread::yield();
  }
  return true;
}

}  // namespace sw::testing
