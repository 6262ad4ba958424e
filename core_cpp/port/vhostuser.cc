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

// Time of the control loop for one port: this much at once, then a tenth of it all. A guest with 128 queue pairs, the
// most there can be, changes a ring 770 times when it starts.
constexpr double kTimeBurstNs = 1e9;
constexpr double kTimeShare = 0.1;
constexpr uint64_t kPauseNs = 200'000;    // for a change of rings, beside what it takes: workers have work with it, too
constexpr uint64_t kConnectNs = 200'000;  // for a connection
constexpr uint64_t kLongestRestMs = 1000;
constexpr uint64_t kThrottleTellNs = 60'000'000'000;

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
      event_budget_(kEventBurst),
      time_budget_ns_(kTimeBurstNs) {}

VhostUserPort::~VhostUserPort() { VhostUserPort::close(); }

Result<void> VhostUserPort::open(PortHost& host) {
  host_ = &host;
  event_refill_ns_ = time_refill_ns_ = monotonic_ns();
  if (config_.socket_owner_switch) {
    listening_ = std::make_unique<ListeningSocket>(
        host.loop(), ListeningSocket::Place{config_.socket, config_.socket_mode, config_.socket_gid},
        [this] { on_listener(); }, [this](const std::string& kind, const std::string& detail) { event(kind, detail); });
    return listening_->open();
  }
  connect();
  return {};
}

void VhostUserPort::close() {
  if (host_ == nullptr) return;
  EventLoop& loop = host_->loop();
  loop.cancel(health_timer_);
  loop.cancel(retry_timer_);
  loop.cancel(rest_timer_);
  listening_.reset();
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

void VhostUserPort::pause() {
  charge(kPauseNs);
  host_->pause(*this);
}
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

void VhostUserPort::on_listener() {
  for (int i = 0; i < kAcceptsPerCall; ++i) {
    if (const uint64_t delay_ms = rest_ms(); delay_ms != 0) return listening_->rest(delay_ms);
    auto peer = listening_->accept();
    if (peer) {
      charge(kConnectNs);
      admit(std::move(*peer));
      continue;
    }
    const int code = peer.error().code;
    if (code == EAGAIN || code == EINTR || code == ECONNABORTED) return;
    // Out of descriptors or memory: the connection stays in the backlog, so look again later instead of spinning.
    event("error", peer.error().message());
    return listening_->rest(kAcceptRetryMs);
  }
}

void VhostUserPort::admit(UniqueFd peer) {
  if (backend_ && peer_gone()) detach("the peer closed the connection");
  if (backend_) {
    ++refused_;
    event("refused", "a second peer connected to " + config_.socket + " and was sent away: one guest per socket");
    reaper_->hang_up(std::move(peer));
    return;
  }
  if (reaper_->stuck()) {
    ++refused_;
    last_end_ = "it gave us file descriptors that cannot be closed; peers are sent away until they are";
    event("refused", "a peer connected to " + config_.socket +
                         " and was sent away: too many file descriptors that came " +
                         "on this socket still wait to be closed");
    reaper_->hang_up(std::move(peer));
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
  if (peer && reaper_->stuck()) {
    reaper_->hang_up(std::move(*peer));
    peer = Error{0, "too many file descriptors that came from " + config_.socket + " still wait to be closed"};
  }
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
  backend_ = std::make_unique<Backend>(std::move(peer), config, self, totals_, reaper_);
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
  host_->loop().cancel(std::exchange(rest_timer_, 0));
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
  if (const uint64_t delay_ms = rest_ms(); delay_ms != 0) return rest(delay_ms);
  const uint64_t began_ns = monotonic_ns();
  auto handled = backend_->on_socket(epoll_events);
  charge(monotonic_ns() - began_ns);
  if (!handled) {
    detach(handled.error().message());
    return;
  }
  const uint32_t wanted = backend_->wanted_events();
  if (wanted == watched_) return;
  watched_ = wanted;
  if (auto modified = host_->loop().modify(backend_->fd(), wanted); !modified) detach(modified.error().message());
}

// --- What a peer may take of the control loop's time

void VhostUserPort::charge(uint64_t ns) { time_budget_ns_ -= static_cast<double>(ns); }

// How long the peer has to wait; 0: it has not used up its time.
uint64_t VhostUserPort::rest_ms() {
  const uint64_t now = monotonic_ns();
  time_budget_ns_ = std::min(kTimeBurstNs, time_budget_ns_ + static_cast<double>(now - time_refill_ns_) * kTimeShare);
  time_refill_ns_ = now;
  if (time_budget_ns_ >= 0) return 0;
  return std::clamp<uint64_t>(static_cast<uint64_t>(-time_budget_ns_ / kTimeShare / 1e6), 1, kLongestRestMs);
}

// Its messages wait in the socket, and so does the news that it has gone.
void VhostUserPort::rest(uint64_t delay_ms) {
  ++throttled_;
  const uint64_t now = monotonic_ns();
  if (throttled_ == 1 || now - throttle_told_ns_ > kThrottleTellNs) {
    throttle_told_ns_ = now;
    event("throttled", "the peer keeps the control loop busy (" + std::to_string(totals_.messages) +
                           " messages so far): it is read a tenth of the time");
  }
  host_->loop().remove(backend_->fd());
  rest_timer_ = host_->loop().after(delay_ms, [this] {
    rest_timer_ = 0;
    auto added = host_->loop().add(backend_->fd(), watched_, [this](uint32_t events) { on_socket(events); });
    if (!added) detach(added.error().message());
  });
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
