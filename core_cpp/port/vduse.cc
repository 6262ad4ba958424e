// SPDX-License-Identifier: Apache-2.0
#include "port/vduse.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <utility>

#include "base/clock.h"
#include "vhost_user/features.h"
#include "virtio/spec.h"

namespace sw {

namespace {

constexpr uint64_t kHealthMs = 100;
constexpr uint64_t kRetryMs = 1000;
constexpr uint64_t kEventsPerSecond = 16;

// What a device can offer that has no control queue. Not IN_ORDER: where a packed ring stands could then not be told
// from the ring, and a switch that was killed could not be replaced under a running driver.
uint64_t offered(const PortConfig& config) {
  uint64_t features = offered_features({.packed = config.packed,
                                        .offloads = config.offloads,
                                        .mergeable = config.mergeable,
                                        .in_order = false,
                                        .mtu = config.mtu != 0});
  features &= ~feature_mask(VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_GUEST_ANNOUNCE,
                            VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES);
  features |= feature_mask(VIRTIO_F_ACCESS_PLATFORM);
  if (config.mac != 0) features |= feature_mask(VIRTIO_NET_F_MAC);
  return features;
}

VduseOptions options_of(const PortConfig& config) {
  VduseOptions options;
  options.name = config.device;
  options.features = offered(config);
  options.ring_size = static_cast<uint16_t>(config.ring_size);
  for (int i = 0; i < 6; ++i) options.config.mac[i] = static_cast<uint8_t>(config.mac >> (40 - 8 * i));
  options.config.status = kNetStatusLinkUp;
  options.config.max_virtqueue_pairs = 1;
  options.config.mtu = static_cast<uint16_t>(config.mtu);
  return options;
}

std::string link_name(const std::string& path) {
  std::array<char, 256> target{};
  const ssize_t bytes = ::readlink(path.c_str(), target.data(), target.size());
  if (bytes <= 0) return {};
  const std::string text(target.data(), static_cast<size_t>(bytes));
  return text.substr(text.rfind('/') + 1);
}

}  // namespace

VdusePort::VdusePort(const PortConfig& config, PortCounters counters, KernelCalls& kernel)
    : config_(config), counters_(counters), kernel_(kernel), options_(options_of(config)) {}

VdusePort::~VdusePort() { VdusePort::close(); }

Result<void> VdusePort::open(PortHost& host) {
  host_ = &host;
  if (auto connected = connect(); !connected) {
    if (connected.error().code != EBUSY) {
      host_ = nullptr;
      return connected;
    }
    waiting_ = connected.error().message();
    connect_later();
  }
  watch_health();
  return {};
}

void VdusePort::close() {
  if (host_ == nullptr) return;
  host_->loop().cancel(health_timer_);
  host_->loop().cancel(retry_timer_);
  if (backend_) {
    backend_->shutdown();
    if (!backend_->device().remove()) {
      host_->event(*this, "device_stays",
                   "VDUSE device " + options_.name +
                       " is attached and stays for the next switch; to remove it: vdpa dev del " + options_.name);
    }
    backend_.reset();
  }
  host_ = nullptr;
}

Result<void> VdusePort::connect() {
  auto device = VduseDevice::open(kernel_, options_);
  if (!device) return device.error();
  VduseHost& self = *this;
  backend_ = std::make_unique<VduseBackend>(std::move(*device), options_.features, host_->loop(), self, counters_.rx[0],
                                            counters_.tx[0], totals_);
  if (auto opened = backend_->open(); !opened) {
    backend_.reset();
    return opened;
  }
  ++connects_;
  waiting_.clear();
  host_->event(
      *this, "connected",
      "serving VDUSE device " + options_.name + (backend_->device().taken_over() ? ", which was there already" : ""));
  return {};
}

void VdusePort::connect_later() {
  retry_timer_ = host_->loop().after(kRetryMs, [this] {
    retry_timer_ = 0;
    if (auto connected = connect(); !connected) {
      const std::string why = connected.error().message();
      if (why != waiting_) host_->event(*this, "waiting", why);
      waiting_ = why;
      connect_later();
    }
  });
}

void VdusePort::event(const std::string& kind, const std::string& detail) {
  const uint64_t second = monotonic_ns() / 1'000'000'000U;
  if (std::exchange(event_second_, second) != second) events_this_second_ = 0;
  if (++events_this_second_ <= kEventsPerSecond) host_->event(*this, kind, detail);
}

void VdusePort::lost(const std::string& why) {
  last_end_ = why;
  ++disconnects_;
  backend_->shutdown();
  host_->event(*this, "disconnected", why);
  // Not here: the back-end is calling.
  retry_timer_ = host_->loop().after(0, [this] {
    retry_timer_ = 0;
    backend_->shutdown();  // again: the health timer may have come first
    backend_->device().remove();
    backend_.reset();
    waiting_ = last_end_ + "; detach it with: vdpa dev del " + options_.name + ", and it is made anew";
    connect_later();
  });
}

void VdusePort::watch_health() {
  health_timer_ = host_->loop().after(kHealthMs, [this] {
    if (backend_) backend_->check_health();
    watch_health();
  });
}

std::vector<RxQueue*> VdusePort::rx_queues() const { return backend_ ? backend_->live_rx() : std::vector<RxQueue*>(); }
std::vector<TxQueue*> VdusePort::tx_queues() const { return backend_ ? backend_->live_tx() : std::vector<TxQueue*>(); }

Result<void> VdusePort::set_mtu(uint32_t mtu) {
  options_.config.mtu = static_cast<uint16_t>(mtu);
  if (!backend_) return {};
  return backend_->device().write_config(kNetConfigMtuOffset, &options_.config.mtu, sizeof options_.config.mtu);
}

void VdusePort::describe(PortStatus& status) const {
  const VduseBackend& backend = *backend_;
  const std::string bus = "/sys/bus/vdpa/devices/" + options_.name;
  const bool attached = ::access(bus.c_str(), F_OK) == 0;
  const std::string driver = link_name(bus + "/driver");
  auto& facts = status.facts;
  facts["attached"] = attached ? "yes" : "no";
  if (!driver.empty()) facts["driver"] = driver;
  facts["device_status"] = std::to_string(backend.device_status());
  if (!backend.memory().problem().empty()) facts["memory_problem"] = backend.memory().problem();
  if (!backend.driver_up()) {
    if (!attached) {
      status.stage = "waiting_for_attach";
      status.detail =
          "the device exists and is not on the vDPA bus; run: vdpa dev add name " + options_.name + " mgmtdev vduse";
    } else {
      status.stage = "waiting_for_driver";
      status.detail = driver.empty() ? "no driver has the device: load virtio_vdpa (an interface of this host) or "
                                       "vhost_vdpa (for a virtual machine)"
                                     : "the driver " + driver + " has not started the device" +
                                           (driver == "vhost_vdpa" ? ": start the virtual machine that uses it" : "");
    }
    return;
  }
  facts["negotiated_features"] = feature_names(backend.features());
  const auto& rings = backend.rings();
  for (size_t i = 0; i < rings.size(); ++i) {
    const auto& ring = rings[i];
    PortStatus::Ring shown;
    shown.name = i == 1 ? "rx0" : "tx0";
    shown.facts["guest_queue"] = i == 1 ? "transmitq0" : "receiveq0";
    shown.facts["size"] = std::to_string(ring.size);
    shown.facts["layout"] = backend.packed() ? "packed" : "split";
    shown.facts["started"] = ring.live() != nullptr ? "yes" : "no";
    if (!ring.waiting.empty()) shown.facts["waiting"] = ring.waiting;
    const DeviceRing* live = ring.live();
    const std::string broken = live != nullptr ? live->broken() : ring.broken;
    if (!broken.empty()) shown.facts["broken"] = broken;
    if (live == nullptr && status.detail.empty()) {
      status.detail = shown.facts["guest_queue"] + ": " + (broken.empty() ? ring.waiting : "stopped: " + broken);
    }
    status.rings.push_back(std::move(shown));
  }
  // A driver that only listens has nothing to send yet.
  status.up = rings[0].live() != nullptr || rings[1].live() != nullptr;
  status.stage = status.up ? "running" : "rings";
  if (status.up && rings[0].broken.empty() && rings[1].broken.empty()) status.detail.clear();
}

PortStatus VdusePort::status() const {
  PortStatus status;
  status.facts["device"] = options_.name;
  status.facts["offered_features"] = feature_names(options_.features);
  if (options_.config.mtu != 0) status.facts["mtu"] = std::to_string(options_.config.mtu);
  if (!last_end_.empty()) status.facts["last_disconnect"] = last_end_;
  status.counters = {{"connects", connects_},
                     {"disconnects", disconnects_},
                     {"messages", totals_.messages},
                     {"refused", totals_.refused},
                     {"rings_broken", totals_.rings_broken}};
  if (backend_) {
    describe(status);
  } else {
    status.stage = "waiting_for_device";
    status.detail = waiting_ + "; trying again for ever";
  }
  return status;
}

Result<std::unique_ptr<Port>> make_vduse_on(KernelCalls& kernel, const PortConfig& config, PortCounters counters) {
  if (config.ring_size == 0 || config.ring_size > kMaxRingSize || !std::has_single_bit(config.ring_size)) {
    return Error{
        EINVAL, "use rings of " + std::to_string(config.ring_size) + " entries (a power of two up to 32768 is needed)"};
  }
  if (counters.rx.empty() || counters.tx.empty()) return Error{EINVAL, "make port " + config.name + " without queues"};
  return std::unique_ptr<Port>(std::make_unique<VdusePort>(config, counters, kernel));
}

Result<std::unique_ptr<Port>> make_vduse(const PortConfig& config, PortCounters counters) {
  return make_vduse_on(KernelCalls::real(), config, counters);
}

}  // namespace sw
