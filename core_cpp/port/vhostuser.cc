// SPDX-License-Identifier: Apache-2.0
#include "port/vhostuser.h"

#include <poll.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/clock.h"
#include "vhost_user/features.h"

namespace sw {

namespace {

constexpr uint64_t kHealthMs = 100;
constexpr uint64_t kFirstRetryMs = 10;
constexpr uint64_t kLastRetryMs = 500;
constexpr uint64_t kAcceptRetryMs = 100;  // when this process has no free descriptor
constexpr int kAcceptsPerCall = 16;

// Events of one port: this many at once, then this many a second. What a hostile guest says must not drown the others.
constexpr double kEventBurst = 16;
constexpr double kEventsPerSecond = 1;

BackendConfig backend_config(const PortConfig& config, PortCounters counters) {
  const size_t pairs = std::min<size_t>({counters.rx.size(), counters.tx.size(), kMaxVrings / 2});
  const OfferOptions options{.packed = config.packed,
                             .offloads = config.offloads,
                             .mergeable = config.mergeable,
                             .in_order = config.in_order,
                             .mtu = config.mtu != 0};
  return {.features = offered_features(options),
          .protocol_features = offered_protocol_features(),
          .rx_counters = counters.rx.first(pairs),
          .tx_counters = counters.tx.first(pairs),
          .mtu = config.mtu};
}

}  // namespace

VhostUserPort::VhostUserPort(const PortConfig& config, PortCounters counters)
    : config_(config),
      backend_config_(backend_config(config, counters)),
      mtu_(config.mtu),
      event_budget_(kEventBurst) {}

VhostUserPort::~VhostUserPort() { VhostUserPort::close(); }

Result<void> VhostUserPort::open(PortHost& host) {
  host_ = &host;
  event_refill_ns_ = monotonic_ns();
  if (config_.socket_owner_switch) return listen();
  connect();
  return {};
}

void VhostUserPort::close() {
  if (host_ == nullptr) return;
  EventLoop& loop = host_->loop();
  loop.cancel(health_timer_);
  loop.cancel(retry_timer_);
  if (listener_) loop.remove(listener_.fd());
  listener_.close();
  if (backend_) {
    loop.remove(backend_->fd());
    backend_.reset();
  }
  host_ = nullptr;
}

std::vector<RxQueue*> VhostUserPort::rx_queues() const {
  return backend_ ? backend_->live_rx() : std::vector<RxQueue*>();
}
std::vector<TxQueue*> VhostUserPort::tx_queues() const {
  return backend_ ? backend_->live_tx() : std::vector<TxQueue*>();
}

Result<void> VhostUserPort::set_mtu(uint32_t mtu) {
  mtu_ = mtu;
  return {};
}

void VhostUserPort::pause() { host_->pause(*this); }
void VhostUserPort::resume() { host_->resume(*this); }

void VhostUserPort::event(const std::string& kind, const std::string& detail) {
  const uint64_t now = monotonic_ns();
  event_budget_ =
      std::min(kEventBurst, event_budget_ + static_cast<double>(now - event_refill_ns_) / 1e9 * kEventsPerSecond);
  event_refill_ns_ = now;
  if (event_budget_ < 1) {
    ++events_held_back_;
    return;
  }
  event_budget_ -= 1;
  const uint64_t held_back = std::exchange(events_held_back_, 0);
  host_->event(
      *this, kind,
      held_back == 0 ? detail : detail + " (" + std::to_string(held_back) + " events before it were held back)");
}

// --- Where connections come from

Result<void> VhostUserPort::listen() {
  auto listener = UnixListener::open(config_.socket, config_.socket_mode, config_.socket_gid);
  if (!listener) return listener.error();
  listener_ = std::move(*listener);
  auto added = host_->loop().add(listener_.fd(), EPOLLIN, [this](uint32_t) { on_listener(); });
  if (!added) listener_.close();
  return added;
}

void VhostUserPort::on_listener() {
  for (int i = 0; i < kAcceptsPerCall; ++i) {
    auto peer = listener_.accept();
    if (peer) {
      admit(std::move(*peer));
      continue;
    }
    const int code = peer.error().code;
    if (code == EAGAIN || code == EINTR || code == ECONNABORTED) return;
    // Out of descriptors or memory: the connection stays in the backlog, so look again later instead of spinning.
    event("error", peer.error().message());
    host_->loop().remove(listener_.fd());
    retry_timer_ = host_->loop().after(kAcceptRetryMs, [this] {
      retry_timer_ = 0;
      auto added = host_->loop().add(listener_.fd(), EPOLLIN, [this](uint32_t) { on_listener(); });
      if (!added) event("error", added.error().message());
    });
    return;
  }
}

void VhostUserPort::admit(UniqueFd peer) {
  if (backend_ && peer_gone()) detach("the peer closed the connection");
  if (backend_) {
    ++refused_;
    event("refused", "a second peer connected to " + config_.socket + " and was sent away: one guest per socket");
    return;
  }
  attach(std::move(peer));
}

// The old connection may have ended in the same round of the loop in which the new one arrived.
bool VhostUserPort::peer_gone() const {
  pollfd look{backend_->fd(), POLLRDHUP, 0};
  return ::poll(&look, 1, 0) == 1 && (look.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

void VhostUserPort::connect() {
  auto peer = connect_unix(config_.socket);
  if (peer) {
    connect_error_ = {};
    attach(std::move(*peer));
    return;
  }
  const bool news = peer.error().code != connect_error_.code;
  connect_error_ = peer.error();
  if (news) event("waiting", waiting_detail());
  retry_ms_ = std::clamp(retry_ms_ * 2, kFirstRetryMs, kLastRetryMs);
  connect_later(retry_ms_);
}

void VhostUserPort::connect_later(uint64_t delay_ms) {
  retry_timer_ = host_->loop().after(delay_ms, [this] {
    retry_timer_ = 0;
    connect();
  });
}

// --- The connection

void VhostUserPort::attach(UniqueFd peer) {
  attached_ns_ = monotonic_ns();
  BackendConfig config = backend_config_;
  config.mtu = mtu_;
  BackendHost& self = *this;
  backend_ = std::make_unique<Backend>(std::move(peer), config, self, totals_);
  watched_ = backend_->wanted_events();
  ++connects_;
  event("connected", config_.socket);
  auto added = host_->loop().add(backend_->fd(), watched_, [this](uint32_t events) { on_socket(events); });
  if (!added) {
    detach(added.error().message());
    return;
  }
  watch_health();
}

void VhostUserPort::detach(const std::string& reason) {
  host_->loop().remove(backend_->fd());
  host_->loop().cancel(std::exchange(health_timer_, 0));
  backend_->shutdown();
  const bool heard = backend_->heard();
  backend_.reset();
  ++disconnects_;
  last_end_ = reason;
  event("disconnected", reason);
  if (config_.socket_owner_switch) return;
  // A peer that really was there is worth an attempt at once, one that only opens and closes is not.
  const bool lasted = heard && monotonic_ns() - attached_ns_ > kLastRetryMs * 1'000'000U;
  retry_ms_ = lasted ? 0 : std::clamp(retry_ms_ * 2, kFirstRetryMs, kLastRetryMs);
  connect_later(retry_ms_);
}

void VhostUserPort::on_socket(uint32_t epoll_events) {
  if (auto handled = backend_->on_socket(epoll_events); !handled) {
    detach(handled.error().message());
    return;
  }
  const uint32_t wanted = backend_->wanted_events();
  if (wanted == watched_) return;
  watched_ = wanted;
  if (auto modified = host_->loop().modify(backend_->fd(), wanted); !modified) detach(modified.error().message());
}

void VhostUserPort::watch_health() {
  health_timer_ = host_->loop().after(kHealthMs, [this] {
    backend_->check_health();
    watch_health();
  });
}

Result<std::unique_ptr<Port>> make_vhostuser(const PortConfig& config, PortCounters counters) {
  if (auto checked = check_unix_path(config.socket); !checked) return checked.error();
  if (counters.rx.empty() || counters.tx.empty()) return Error{EINVAL, "make port " + config.name + " without queues"};
  return std::unique_ptr<Port>(std::make_unique<VhostUserPort>(config, counters));
}

}  // namespace sw
