// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/listening.h"

#include <sys/epoll.h>

#include <utility>

namespace sw {

namespace {

constexpr uint64_t kLookMs = 3000;  // between two looks whether the socket is still there

}  // namespace

ListeningSocket::ListeningSocket(EventLoop& loop, Place place, std::function<void()> on_peer,
                                 std::function<void(const std::string&, const std::string&)> on_event)
    : loop_(loop), place_(std::move(place)), on_peer_(std::move(on_peer)), on_event_(std::move(on_event)) {}

Result<void> ListeningSocket::open() {
  auto listening = listen();
  if (listening) look_later();
  return listening;
}

void ListeningSocket::close() {
  loop_.cancel(std::exchange(look_timer_, 0));
  loop_.cancel(std::exchange(rest_timer_, 0));
  if (listener_) loop_.remove(listener_.fd());
  listener_.close();
}

Result<void> ListeningSocket::listen() {
  auto listener = UnixListener::open(place_.path, place_.mode, place_.gid);
  if (!listener) return listener.error();
  listener_ = std::move(*listener);
  auto watched = watch();
  if (!watched) listener_.close();
  return watched;
}

Result<void> ListeningSocket::watch() {
  return loop_.add(listener_.fd(), EPOLLIN, [this](uint32_t) { on_peer_(); });
}

void ListeningSocket::look_later() {
  look_timer_ = loop_.after(kLookMs, [this] {
    if (!listener_ || listener_.removed()) {
      if (listener_) loop_.remove(listener_.fd());
      loop_.cancel(std::exchange(rest_timer_, 0));
      auto again = listen();
      failed_ = again ? std::string() : again.error().message();
      if (again) on_event_("listening", place_.path + " was removed by somebody: listening there again");
    }
    look_later();
  });
}

void ListeningSocket::rest(uint64_t delay_ms) {
  loop_.remove(listener_.fd());
  loop_.cancel(rest_timer_);
  rest_timer_ = loop_.after(delay_ms, [this] {
    rest_timer_ = 0;
    if (auto watched = watch(); !watched) on_event_("error", watched.error().message());
  });
}

std::string ListeningSocket::trouble() const {
  return failed_.empty() ? std::string() : "the socket was removed, and to make it again failed: " + failed_;
}

}  // namespace sw
