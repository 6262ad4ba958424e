// SPDX-License-Identifier: Apache-2.0
#include "port/vdpa.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <thread>
#include <utility>

#include "vhost_user/features.h"
#include "virtio/driver_features.h"
#include "virtio/spec.h"

namespace sw {

namespace {

constexpr uint64_t kHealthMs = 100;
constexpr uint64_t kFirstRetryMs = 50;
constexpr uint64_t kLastRetryMs = 1000;

VdpaWishes wishes_of(const PortConfig& config, PortCounters counters) {
  VdpaWishes wishes;
  wishes.device = config.device;
  wishes.features = usable_driver_features({.packed = config.packed,
                                            .in_order = config.in_order,
                                            .mergeable = config.mergeable,
                                            .offloads = config.offloads});
  wishes.queue_pairs = static_cast<uint32_t>(std::min(counters.rx.size(), counters.tx.size()));
  wishes.ring_size = config.ring_size;
  return wishes;
}

void close_elsewhere(std::unique_ptr<VdpaSession> session) {
  std::thread([closing = std::move(session)]() mutable { closing.reset(); }).detach();
}

std::string promiscuous_text(Promiscuous promiscuous) {
  switch (promiscuous) {
    case Promiscuous::kOn:
      return "on";
    case Promiscuous::kRefused:
      return "refused by the device";
    case Promiscuous::kNotOffered:
      break;
  }
  return "not offered by the device";
}

std::string mac_text(const uint8_t* mac) {
  char text[18];
  std::snprintf(text, sizeof text, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
  return text;
}

}  // namespace

// Written by the thread before `done` is signalled, read by the control loop after.
struct VdpaPort::Attempt {
  UniqueFd done{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::atomic<bool> over{false};
  Result<std::unique_ptr<VdpaSession>> result = Error{0, "under way"};
};

VdpaPort::VdpaPort(const PortConfig& config, PortCounters counters, KernelCalls& kernel)
    : config_(config), counters_(counters), kernel_(kernel), wishes_(wishes_of(config, counters)) {}

VdpaPort::~VdpaPort() { VdpaPort::close(); }

Result<void> VdpaPort::open(PortHost& host) {
  host_ = &host;
  begin();
  watch_health();
  return {};
}

void VdpaPort::close() {
  if (host_ == nullptr) return;
  EventLoop& loop = host_->loop();
  loop.cancel(health_timer_);
  loop.cancel(retry_timer_);
  if (attempt_) loop.remove(attempt_->done.get());
  attempt_.reset();  // its thread keeps it, and closes what it still gets
  if (session_) {
    loop.remove(session_->config_fd());
    queues_ = nullptr;
    close_elsewhere(std::move(session_));
  }
  host_ = nullptr;
}

void VdpaPort::begin() {
  auto attempt = std::make_shared<Attempt>();
  if (!attempt->done) return retry_later();
  if (!host_->loop().add(attempt->done.get(), EPOLLIN, [this](uint32_t) { finish(); })) return retry_later();
  attempt_ = attempt;
  std::thread([attempt, &kernel = kernel_, wishes = wishes_] {
    attempt->result = VdpaSession::start(kernel, wishes);
    attempt->over.store(true, std::memory_order_release);  // pairs with finish()
    const uint64_t one = 1;
    (void)!::write(attempt->done.get(), &one, sizeof one);
  }).detach();
}

void VdpaPort::finish() {
  if (!attempt_->over.load(std::memory_order_acquire)) return;
  const auto attempt = std::move(attempt_);
  host_->loop().remove(attempt->done.get());
  if (attempt->result) return adopt(std::move(*attempt->result));
  const std::string why = attempt->result.error().message();
  if (why != waiting_) host_->event(*this, "waiting", why);
  waiting_ = why;
  retry_later();
}

void VdpaPort::retry_later() {
  retry_ms_ = std::clamp(retry_ms_ * 2, kFirstRetryMs, kLastRetryMs);
  retry_timer_ = host_->loop().after(retry_ms_, [this] {
    retry_timer_ = 0;
    begin();
  });
}

void VdpaPort::adopt(std::unique_ptr<VdpaSession> session) {
  if (!host_->loop().add(session->config_fd(), EPOLLIN, [this](uint32_t) { on_config_change(); })) {
    close_elsewhere(std::move(session));
    return retry_later();
  }
  {
    const PortPause paused(*host_, *this);
    session_ = std::move(session);
    queues_ = &session_->make_queues(counters_.rx, counters_.tx);
  }
  waiting_.clear();
  retry_ms_ = 0;
  ++connects_;
  const std::string& limits = session_->limits();
  host_->event(*this, "connected", "to the device " + config_.device + (limits.empty() ? "" : "; " + limits));
}

void VdpaPort::drop(const std::string& why) {
  host_->loop().remove(session_->config_fd());
  auto closing = std::move(session_);
  {
    const PortPause paused(*host_, *this);
    queues_ = nullptr;
  }
  close_elsewhere(std::move(closing));
  last_end_ = why;
  ++disconnects_;
  host_->event(*this, "disconnected", why);
  retry_later();
}

void VdpaPort::on_config_change() {
  const bool was_up = session_->link_up();
  if (auto read = session_->refresh_config(); !read) return drop(read.error().message());
  const bool is_up = session_->link_up();
  if (is_up == was_up) return;
  ++link_changes_;
  {
    const PortPause paused(*host_, *this);  // a port whose link is down offers no queues
  }
  host_->event(*this, is_up ? "link_up" : "link_down", config_.device);
}

void VdpaPort::watch_health() {
  health_timer_ = host_->loop().after(kHealthMs, [this] {
    if (session_) {
      if (const std::string broken = queues_->broken(); !broken.empty()) {
        ++rings_broken_;
        host_->event(*this, "ring_broken", broken);
        drop("the device broke the ring: " + broken);
      } else if (auto alive = session_->check(); !alive) {
        drop(alive.error().message());
      }
    }
    watch_health();
  });
}

std::vector<RxQueue*> VdpaPort::rx_queues() const {
  std::vector<RxQueue*> queues;
  if (queues_ == nullptr || !session_->link_up()) return queues;
  for (const auto& queue : queues_->rx()) queues.push_back(queue.get());
  return queues;
}

std::vector<TxQueue*> VdpaPort::tx_queues() const {
  std::vector<TxQueue*> queues;
  if (queues_ == nullptr || !session_->link_up()) return queues;
  for (const auto& queue : queues_->tx()) queues.push_back(queue.get());
  return queues;
}

PortStatus VdpaPort::status() const {
  PortStatus status;
  auto& facts = status.facts;
  facts["device"] = config_.device;
  facts["wanted_features"] = feature_names(wishes_.features);
  if (!last_end_.empty()) facts["last_disconnect"] = last_end_;
  status.counters = {{"connects", connects_},
                     {"disconnects", disconnects_},
                     {"rings_broken", rings_broken_},
                     {"link_changes", link_changes_}};
  if (!session_) {
    status.stage = waiting_.empty() && attempt_ ? "setting_up" : "waiting_for_device";
    status.detail =
        waiting_.empty() ? "the device " + config_.device + " is being set up" : waiting_ + "; trying again for ever";
    return status;
  }
  const VdpaSession& session = *session_;
  status.up = session.link_up();
  status.stage = status.up ? "running" : "link_down";
  if (!status.up) status.detail = "the device says that its link is down: see its cable, or its other side";
  const uint64_t features = session.features();
  facts["offered_features"] = feature_names(session.offered());
  facts["negotiated_features"] = feature_names(features);
  facts["queues"] = std::to_string(session.queue_pairs());
  facts["device_queues"] = std::to_string(session.device_queue_pairs());
  facts["promiscuous"] = promiscuous_text(session.promiscuous());
  facts["memory_bytes"] = std::to_string(session.memory_bytes());
  if (!session.memory_warning().empty()) facts["memory_warning"] = session.memory_warning();
  if (!session.limits().empty()) facts["limits"] = session.limits();
  if (has_feature(features, VIRTIO_NET_F_MAC)) facts["mac"] = mac_text(session.config().mac);
  if (has_feature(features, VIRTIO_NET_F_MTU)) facts["device_mtu"] = std::to_string(session.config().mtu);
  const auto add_ring = [&](const std::string& name, size_t queue, const DriverRing& ring) {
    PortStatus::Ring shown;
    shown.name = name + std::to_string(queue);
    shown.facts["guest_queue"] = (name == "rx" ? "receiveq" : "transmitq") + std::to_string(queue);
    shown.facts["size"] = std::to_string(session.ring_size());
    shown.facts["layout"] = has_feature(features, VIRTIO_F_RING_PACKED) ? "packed" : "split";
    if (const std::string broken = ring.broken(); !broken.empty()) shown.facts["broken"] = broken;
    status.rings.push_back(std::move(shown));
  };
  for (size_t q = 0; q < queues_->rx().size(); ++q) add_ring("rx", q, *queues_->rx()[q]);
  for (size_t q = 0; q < queues_->tx().size(); ++q) add_ring("tx", q, *queues_->tx()[q]);
  return status;
}

Result<std::unique_ptr<Port>> make_vdpa_on(KernelCalls& kernel, const PortConfig& config, PortCounters counters) {
  if (config.device.empty()) {
    return Error{EINVAL, "make port " + config.name + ": it needs the device's file, such as /dev/vhost-vdpa-0"};
  }
  if (config.ring_size == 0 || config.ring_size > kMaxRingSize || !std::has_single_bit(config.ring_size)) {
    return Error{
        EINVAL, "use rings of " + std::to_string(config.ring_size) + " entries (a power of two up to 32768 is needed)"};
  }
  if (counters.rx.empty() || counters.tx.empty()) return Error{EINVAL, "make a port without queues"};
  return std::unique_ptr<Port>(std::make_unique<VdpaPort>(config, counters, kernel));
}

Result<std::unique_ptr<Port>> make_vdpa(const PortConfig& config, PortCounters counters) {
  return make_vdpa_on(KernelCalls::real(), config, counters);
}

}  // namespace sw
