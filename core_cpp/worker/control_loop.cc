// SPDX-License-Identifier: Apache-2.0
#include "worker/control_loop.h"

#include <pthread.h>

namespace sw {

void ControlLoop::start() {
  stopping_.store(false);
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "sw-control");
    const auto locked = [this](const std::function<void()>& callbacks) {
      const std::lock_guard<std::recursive_mutex> guard(mutex_);
      callbacks();
    };
    while (!stopping_.load()) loop_.run_once(1000, locked);
  });
}

void ControlLoop::stop() {
  if (!thread_.joinable()) return;
  stopping_.store(true);
  loop_.wake();
  thread_.join();
}

}  // namespace sw
