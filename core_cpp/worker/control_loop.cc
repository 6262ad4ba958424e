// SPDX-License-Identifier: Apache-2.0
#include "worker/control_loop.h"

#include <pthread.h>

namespace sw {

void ControlLock::Looking::lock() {
  mutex_.lock();
  ++depth_;
}

void ControlLock::Looking::unlock() {
  --depth_;
  mutex_.unlock();
}

void ControlLock::lock() {
  changing_.lock();
  looking_.lock();
}

bool ControlLock::try_lock() {
  if (!changing_.try_lock()) return false;
  looking_.lock();  // nobody who looks has it for long
  return true;
}

void ControlLock::unlock() {
  looking_.unlock();
  changing_.unlock();
}

void ControlLock::ajar(const std::function<void()>& wait) {
  const uint32_t depth = looking_.depth_;
  for (uint32_t i = 0; i < depth; ++i) looking_.unlock();
  wait();
  for (uint32_t i = 0; i < depth; ++i) looking_.lock();
}

void ControlLoop::start() {
  stopping_.store(false);
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "sw-control");
    const auto locked = [this](const std::function<void()>& callbacks) {
      const std::lock_guard<ControlLock> guard(mutex_);
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
