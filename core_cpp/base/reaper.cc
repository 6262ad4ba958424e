// SPDX-License-Identifier: Apache-2.0
#include "base/reaper.h"

#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace sw {

namespace {

std::atomic<size_t> everywhere{0};

}  // namespace

struct Reaper::Shared {
  std::mutex mutex;
  std::deque<std::shared_ptr<const void>> waiting;
  size_t pending = 0;  // with the one that is being let go of
  bool running = false;

  void run() {
    std::unique_lock lock(mutex);
    while (!waiting.empty()) {
      std::shared_ptr<const void> object = std::move(waiting.front());
      waiting.pop_front();
      lock.unlock();
      object.reset();  // as long as it takes
      lock.lock();
      --pending;
      --everywhere;
    }
    running = false;
  }
};

Reaper::Reaper() : shared_(std::make_shared<Shared>()) {}

void Reaper::drop(std::shared_ptr<const void> object) {
  if (!object) return;
  const std::lock_guard guard(shared_->mutex);
  shared_->waiting.push_back(std::move(object));
  ++shared_->pending;
  ++everywhere;
  if (shared_->running) return;
  // The process's signals are for its other threads.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    std::thread([shared = shared_] {
      pthread_setname_np(pthread_self(), "sw-reaper");
      shared->run();
    }).detach();
    shared_->running = true;
  } catch (const std::system_error&) {
    // No thread to be had: the next call tries again, and pending() says that there is something left.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Reaper::close(UniqueFd fd) {
  if (fd) drop(std::make_shared<UniqueFd>(std::move(fd)));
}

void Reaper::hang_up(UniqueFd socket) {
  if (!socket) return;
  (void)::shutdown(socket.get(), SHUT_RDWR);  // from here on nothing more comes
  int unread = 0;
  if (::ioctl(socket.get(), FIONREAD, &unread) == 0 && unread == 0) return;
  close(std::move(socket));
}

size_t Reaper::pending() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->pending;
}

size_t Reaper::pending_everywhere() { return everywhere; }

}  // namespace sw
