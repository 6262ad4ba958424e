// SPDX-License-Identifier: Apache-2.0
#include "base/event_loop.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "base/check.h"
#include "base/clock.h"

namespace sw {

EventLoop::EventLoop() : epoll_(::epoll_create1(EPOLL_CLOEXEC)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  SW_CHECK(epoll_ && wake_);
  auto added = add(wake_.get(), EPOLLIN, [this](uint32_t) {
    uint64_t count = 0;
    (void)!::read(wake_.get(), &count, sizeof count);
  });
  SW_CHECK(static_cast<bool>(added));
}

Result<void> EventLoop::add(int fd, uint32_t events, FdCallback callback) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return Error{errno, "watch a file descriptor"};
  watches_[fd] = std::make_shared<Watch>(Watch{std::move(callback)});
  return {};
}

Result<void> EventLoop::modify(int fd, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) != 0) return Error{errno, "watch a file descriptor"};
  return {};
}

void EventLoop::remove(int fd) {
  if (watches_.erase(fd) != 0) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

EventLoop::TimerId EventLoop::after(uint64_t delay_ms, TimerCallback callback) {
  const TimerId id = ++last_timer_;
  const auto timer = timers_.emplace(monotonic_ns() + delay_ms * 1'000'000U, std::make_pair(id, std::move(callback)));
  if (timer == timers_.begin()) wake();  // the loop may be asleep until a later time
  return id;
}

void EventLoop::cancel(TimerId id) {
  std::erase_if(timers_, [id](const auto& timer) { return timer.second.first == id; });
}

int EventLoop::next_timeout_ms(int limit_ms) const {
  if (timers_.empty()) return limit_ms;
  const uint64_t now = monotonic_ns();
  const uint64_t due = timers_.begin()->first;
  const uint64_t wait_ms = due <= now ? 0 : (due - now) / 1'000'000U + 1;
  const int wait = static_cast<int>(std::min<uint64_t>(wait_ms, 3'600'000U));
  return limit_ms < 0 ? wait : std::min(wait, limit_ms);
}

void EventLoop::run_due_timers() {
  while (!timers_.empty() && timers_.begin()->first <= monotonic_ns()) {
    auto callback = std::move(timers_.begin()->second.second);
    timers_.erase(timers_.begin());
    callback();
  }
}

void EventLoop::run_once(int timeout_ms, const std::function<void(const std::function<void()>&)>& around) {
  std::array<epoll_event, 64> ready{};
  int wait_ms = 0;
  around([&] { wait_ms = next_timeout_ms(timeout_ms); });
  const int count = ::epoll_wait(epoll_.get(), ready.data(), ready.size(), wait_ms);
  around([&] {
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = ready.at(static_cast<size_t>(i));
      const auto found = watches_.find(event.data.fd);
      if (found == watches_.end()) continue;  // removed by an earlier callback of this round
      const std::shared_ptr<Watch> keep = found->second;
      keep->callback(event.events);
    }
    run_due_timers();
  });
}

void EventLoop::wake() {
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof one);
}

}  // namespace sw
