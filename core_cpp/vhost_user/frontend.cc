// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/frontend.h"

#include <algorithm>
#include <cerrno>

#include "base/clock.h"

namespace sw {

Frontend::Frontend(EventLoop& loop, FrontendConfig config, FrontendOwner& owner)
    : loop_(loop), config_(std::move(config)), owner_(owner) {}

Frontend::~Frontend() { close(); }

const char* Frontend::stage_name() const {
  switch (stage_) {
    case Stage::kClosed:
      return "closed";
    case Stage::kWaitingForPeer:
      return "waiting_for_peer";
    case Stage::kNegotiating:
      return "negotiating";
    case Stage::kSettingUpRings:
      return "setting_up_rings";
    case Stage::kRunning:
      return "running";
  }
  return "closed";
}

std::string Frontend::detail() const {
  const std::string trouble = stage_ == Stage::kWaitingForPeer && listening_ ? listening_->trouble() : std::string();
  return trouble.empty() ? detail_ : trouble;
}

Result<void> Frontend::open() {
  if (auto usable = check_unix_path(config_.socket); !usable) return usable;
  if (!config_.listen) {
    stage_ = Stage::kWaitingForPeer;
    connect();
    return {};
  }
  listening_ = std::make_unique<ListeningSocket>(
      loop_, ListeningSocket::Place{config_.socket, config_.socket_mode, config_.socket_gid}, [this] { accept(); },
      [this](const std::string& kind, const std::string& detail) { owner_.socket_event(kind, detail); });
  if (auto listening = listening_->open(); !listening) {
    listening_.reset();
    return listening;
  }
  stage_ = Stage::kWaitingForPeer;
  detail_ = "no back-end has connected to " + config_.socket + " yet";
  return {};
}

void Frontend::close() {
  if (stage_ == Stage::kClosed) return;
  listening_.reset();
  drop("closed");
  loop_.cancel(retry_timer_);
  stage_ = Stage::kClosed;
  detail_.clear();
}

void Frontend::restart(const std::string& why) {
  if (channel_) drop(why);
}

void Frontend::connect() {
  auto socket = connect_unix(config_.socket);
  if (socket) return connected(std::move(*socket));
  detail_ = "cannot reach a back-end: " + socket.error().message() + "; trying again until it is there";
  retry_later();
}

void Frontend::accept() {
  auto socket = listening_->accept();
  if (!socket) {
    if (socket.error().code == EAGAIN) return;
    // Out of descriptors, likely: the connection stays in the backlog, so look again later instead of spinning.
    detail_ = socket.error().message();
    return listening_->rest(kLongestRetryMs);
  }
  // A back-end that was restarted may be back before we noticed that it went.
  if (channel_) on_socket(EPOLLIN);
  if (!channel_) connected(std::move(*socket));  // otherwise: one back-end at a time
}

void Frontend::connected(UniqueFd socket) {
  channel_.emplace(std::move(socket), reaper_);
  watching_write_ = false;
  const auto added = loop_.add(channel_->fd(), EPOLLIN, [this](uint32_t events) { on_socket(events); });
  if (!added) return drop(added.error().message());
  stage_ = Stage::kNegotiating;
  detail_ = "connected, waiting for the back-end's answers";
  deadline_timer_ = loop_.after(config_.deadline_ms, [this] {
    const std::string waited_for = steps_.empty() ? "the handshake" : std::string(name(steps_.front().message.request));
    drop("the back-end did not answer " + waited_for + " in time; is it stopped or overloaded?");
  });
  if (auto started = start_handshake(); !started) return drop(started.error().message());
  watch();
}

void Frontend::on_socket(uint32_t events) {
  if (auto served = serve(events); !served) return drop(served.error().message());
  watch();
}

Result<void> Frontend::serve(uint32_t events) {
  if ((events & EPOLLOUT) != 0) {
    if (auto flushed = channel_->flush(); !flushed) return flushed;
  }
  VhostMessage message;
  for (;;) {
    switch (channel_->receive(message)) {
      case Channel::Receive::kAgain:
        return {};
      case Channel::Receive::kClosed:
        return Error{0, "the back-end closed the connection"};
      case Channel::Receive::kFailed:
        return channel_->error();
      case Channel::Receive::kMessage:
        if (auto handled = on_message(message); !handled) return handled;
    }
  }
}

// Watch for room to write only while something waits to be written.
void Frontend::watch() {
  const bool wanted = channel_->want_write();
  if (wanted == watching_write_) return;
  watching_write_ = wanted;
  if (auto watched = loop_.modify(channel_->fd(), wanted ? EPOLLIN | EPOLLOUT : EPOLLIN); !watched) {
    drop(watched.error().message());
  }
}

void Frontend::drop(const std::string& why) {
  loop_.cancel(deadline_timer_);
  if (channel_) loop_.remove(channel_->fd());
  // Rings first: the back-end may use them until its socket is closed, but nobody on our side does any more.
  if (owner_has_rings_) {
    owner_has_rings_ = false;
    owner_.lost(why);
  }
  channel_.reset();
  steps_.clear();
  awaiting_ = false;
  features_ = 0;
  protocol_features_ = 0;
  queue_pairs_ = 0;
  if (stage_ == Stage::kRunning && monotonic_ns() - running_since_ns_ > kLongestRetryMs * 1'000'000U) {
    retry_delay_ms_ = kFirstRetryMs;
  }
  stage_ = Stage::kWaitingForPeer;
  detail_ = why + (config_.listen ? "; waiting for it to connect again" : "; connecting again");
  if (!config_.listen) retry_later();
}

void Frontend::retry_later() {
  loop_.cancel(retry_timer_);
  retry_timer_ = loop_.after(retry_delay_ms_, [this] { connect(); });
  retry_delay_ms_ = std::min(retry_delay_ms_ * 2, kLongestRetryMs);
}

}  // namespace sw
