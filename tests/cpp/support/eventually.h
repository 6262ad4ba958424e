// SPDX-License-Identifier: Apache-2.0
// Waiting for what another thread will make true.
#pragma once

#include <chrono>
#include <functional>
#include <thread>

namespace sw::testing {

// True as soon as the condition is; false after ten seconds without.
inline bool eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

}  // namespace sw::testing
