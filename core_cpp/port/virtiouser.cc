// SPDX-License-Identifier: Apache-2.0
#include "port/virtiouser.h"

#include <algorithm>
#include <bit>
#include <cerrno>

#include "vhost_user/features.h"
#include "virtio/driver_features.h"
#include "virtio/spec.h"

namespace sw {

namespace {

constexpr uint64_t kHealthMs = 100;

uint64_t wanted_features(const PortConfig& config) {
  return usable_driver_features({.packed = config.packed,
                                 .in_order = config.in_order,
                                 .mergeable = config.mergeable,
                                 .offloads = config.offloads});
}

FrontendConfig frontend_config(const PortConfig& config, PortCounters counters) {
  FrontendConfig frontend;
  frontend.socket = config.socket;
  frontend.listen = config.socket_owner_switch;
  frontend.socket_mode = config.socket_mode;
  frontend.socket_gid = config.socket_gid;
  frontend.features = wanted_features(config);
  frontend.queue_pairs =
      static_cast<uint32_t>(std::min<size_t>({counters.rx.size(), counters.tx.size(), kMaxVrings / 2}));
  return frontend;
}

}  // namespace

VirtioUserPort::VirtioUserPort(const PortConfig& config, PortCounters counters)
    : config_(config), counters_(counters) {}

VirtioUserPort::~VirtioUserPort() { VirtioUserPort::close(); }

Result<void> VirtioUserPort::open(PortHost& host) {
  host_ = &host;
  frontend_ =
      std::make_unique<Frontend>(host.loop(), frontend_config(config_, counters_), static_cast<FrontendOwner&>(*this));
  if (auto opened = frontend_->open(); !opened) {
    frontend_.reset();
    host_ = nullptr;
    return opened;
  }
  watch_health();
  return {};
}

void VirtioUserPort::close() {
  if (host_ == nullptr) return;
  host_->loop().cancel(health_timer_);
  frontend_.reset();
  host_ = nullptr;
}

Result<const DriverMemory*> VirtioUserPort::negotiated(uint64_t features, uint32_t queue_pairs) {
  DriverMemoryOptions options;
  options.features = features;
  options.queue_pairs = queue_pairs;
  options.ring_size = static_cast<uint16_t>(config_.ring_size);
  auto device = DriverDevice::make(options, counters_.rx, counters_.tx);
  if (!device) return device.error();
  device_ = std::move(*device);
  return &device_->memory();
}

void VirtioUserPort::running() {
  {
    const PortPause paused(*host_, *this);
    running_ = true;
  }
  device_->kick_all();
  host_->event(*this, "connected", "to the device at " + config_.socket);
}

void VirtioUserPort::lost(const std::string& why) {
  const bool was_running = running_;
  if (was_running) {
    const PortPause paused(*host_, *this);
    running_ = false;
  }
  device_.reset();
  last_end_ = why;
  if (!was_running) return;
  ++disconnects_;
  host_->event(*this, "disconnected", why);
}

void VirtioUserPort::socket_event(const std::string& kind, const std::string& detail) {
  host_->event(*this, kind, detail);
}

void VirtioUserPort::watch_health() {
  health_timer_ = host_->loop().after(kHealthMs, [this] {
    if (device_) {
      if (const std::string broken = device_->broken(); !broken.empty()) {
        ++rings_broken_;
        host_->event(*this, "ring_broken", broken);
        frontend_->restart("the device broke the ring: " + broken);
      }
    }
    watch_health();
  });
}

std::vector<RxQueue*> VirtioUserPort::rx_queues() const {
  std::vector<RxQueue*> queues;
  if (!running_) return queues;
  for (const auto& queue : device_->rx()) queues.push_back(queue.get());
  return queues;
}

std::vector<TxQueue*> VirtioUserPort::tx_queues() const {
  std::vector<TxQueue*> queues;
  if (!running_) return queues;
  for (const auto& queue : device_->tx()) queues.push_back(queue.get());
  return queues;
}

PortStatus VirtioUserPort::status() const {
  PortStatus status;
  status.up = running_;
  auto& facts = status.facts;
  facts["socket"] = config_.socket;
  facts["socket_owner"] = config_.socket_owner_switch ? "switch" : "peer";
  facts["wanted_features"] = feature_names(wanted_features(config_));
  if (!last_end_.empty()) facts["last_disconnect"] = last_end_;
  if (!frontend_) {
    status.stage = "closed";
    return status;
  }
  status.stage = frontend_->stage_name();
  if (running_) {
    if (!frontend_->detail().empty()) facts["limits"] = frontend_->detail();
  } else {
    status.detail = frontend_->detail();
  }
  if (frontend_->offered() != 0) facts["offered_features"] = feature_names(frontend_->offered());
  status.counters = {
      {"connects", frontend_->times_running()}, {"disconnects", disconnects_}, {"rings_broken", rings_broken_}};
  if (!device_) return status;

  const uint64_t features = frontend_->features();
  facts["negotiated_features"] = feature_names(features);
  facts["protocol_features"] = protocol_feature_names(frontend_->protocol_features());
  facts["queues"] = std::to_string(frontend_->queue_pairs());
  facts["memory_bytes"] = std::to_string(device_->memory().bytes());
  if (!device_->memory().warning().empty()) facts["memory_warning"] = device_->memory().warning();
  const auto add_ring = [&](const std::string& name, size_t queue, const DriverRing& ring) {
    PortStatus::Ring shown;
    shown.name = name + std::to_string(queue);
    shown.facts["guest_queue"] = (name == "rx" ? "receiveq" : "transmitq") + std::to_string(queue);
    shown.facts["size"] = std::to_string(config_.ring_size);
    shown.facts["layout"] = has_feature(features, VIRTIO_F_RING_PACKED) ? "packed" : "split";
    if (const std::string broken = ring.broken(); !broken.empty()) shown.facts["broken"] = broken;
    status.rings.push_back(std::move(shown));
  };
  for (size_t q = 0; q < device_->rx().size(); ++q) add_ring("rx", q, *device_->rx()[q]);
  for (size_t q = 0; q < device_->tx().size(); ++q) add_ring("tx", q, *device_->tx()[q]);
  return status;
}

Result<std::unique_ptr<Port>> make_virtiouser(const PortConfig& config, PortCounters counters) {
  if (auto usable = check_unix_path(config.socket); !usable) return usable.error();
  if (config.ring_size == 0 || config.ring_size > kMaxRingSize || !std::has_single_bit(config.ring_size)) {
    return Error{
        EINVAL, "use rings of " + std::to_string(config.ring_size) + " entries (a power of two up to 32768 is needed)"};
  }
  if (counters.rx.empty() || counters.tx.empty()) return Error{EINVAL, "make a port without queues"};
  return std::unique_ptr<Port>(std::make_unique<VirtioUserPort>(config, counters));
}

}  // namespace sw
