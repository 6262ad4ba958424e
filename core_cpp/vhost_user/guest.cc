// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/guest.h"

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "virtio/spec.h"

namespace sw {

uint64_t guest_features(const GuestOptions& options) {
  if (options.features) return *options.features;
  uint64_t features = 0;
  if (!options.legacy) features |= feature_mask(VIRTIO_F_VERSION_1);
  if (options.packed) features |= feature_mask(VIRTIO_F_RING_PACKED);
  if (options.mergeable) features |= feature_mask(VIRTIO_NET_F_MRG_RXBUF);
  if (options.in_order) features |= feature_mask(VIRTIO_F_IN_ORDER);
  if (options.event_idx) features |= feature_mask(VIRTIO_F_EVENT_IDX);
  if (options.offloads) {
    features |=
        feature_mask(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
                     VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
                     VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6);
  }
  return features;
}

uint64_t guest_required_features(const GuestOptions& options) {
  return guest_features(options) & feature_mask(VIRTIO_F_VERSION_1, VIRTIO_F_RING_PACKED, VIRTIO_NET_F_MRG_RXBUF,
                                                VIRTIO_F_IN_ORDER, VIRTIO_F_EVENT_IDX);
}

Guest::Guest(GuestOptions options)
    : options_(std::move(options)),
      rx_counters_(std::max(options_.queues, 1U)),
      tx_counters_(std::max(options_.queues, 1U)),
      rx_batch_(std::make_unique<Batch>()),
      tx_batch_(std::make_unique<Batch>()) {}

Guest::~Guest() { stop(); }

Result<void> Guest::start() {
  const std::lock_guard lock(mutex_);
  if (thread_.joinable()) return {};
  FrontendConfig config;
  config.socket = options_.socket;
  config.listen = options_.listen;
  config.features = guest_features(options_);
  config.required = guest_required_features(options_);
  config.queue_pairs = static_cast<uint32_t>(rx_counters_.size());
  frontend_ = std::make_unique<Frontend>(loop_, config, static_cast<FrontendOwner&>(*this));
  if (auto opened = frontend_->open(); !opened) {
    frontend_.reset();
    return opened;
  }
  stopping_ = false;
  thread_ = std::thread([this] { run(); });
  return {};
}

void Guest::stop() {
  std::thread thread;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    thread = std::move(thread_);
  }
  loop_.wake();
  if (thread.joinable()) thread.join();
  const std::lock_guard lock(mutex_);
  frontend_.reset();
  changed_.notify_all();
}

void Guest::run() {
  for (;;) {
    loop_.run_once(-1, [this](const std::function<void()>& callbacks) {
      const std::lock_guard lock(mutex_);
      if (!stopping_) callbacks();
    });
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
  }
}

Result<const DriverMemory*> Guest::negotiated(uint64_t features, uint32_t queue_pairs) {
  DriverMemoryOptions options;
  options.features = features;
  options.queue_pairs = queue_pairs;
  options.ring_size = options_.ring_size;
  options.huge = options_.huge;
  auto device = DriverDevice::make(options, rx_counters_, tx_counters_);
  if (!device) return device.error();
  device_ = std::move(*device);
  return &device_->memory();
}

void Guest::running() {
  for (uint32_t q = 0; q < device_->rx().size(); ++q) {
    const int fd = device_->rx()[q]->wake_fd();
    (void)!loop_.add(fd, EPOLLIN, [this, q](uint32_t) { take_frames(q); });
    take_frames(q);
  }
  device_->kick_all();
  ready_ = true;
  changed_.notify_all();
}

void Guest::lost(const std::string&) {
  ready_ = false;
  if (!device_) return;
  for (const auto& queue : device_->rx()) loop_.remove(queue->wake_fd());
  device_.reset();
  changed_.notify_all();
}

// Empty the queue, then ask to be notified of more.
void Guest::take_frames(uint32_t queue) {
  RxQueue& rx = *device_->rx()[queue];
  do {
    for (rx_batch_->clear(); rx.peek(*rx_batch_, drops_); rx_batch_->clear()) {
      for (uint32_t i = 0; i < rx_batch_->count; ++i) {
        const Frame& frame = rx_batch_->frames[i];
        if (received_.size() == kMostWaitingFrames) {
          ++overflowed_;
          continue;
        }
        GuestFrame& copy = received_.emplace_back();
        copy.bytes.resize(frame.len);
        copy_from_frame(frame, 0, copy.bytes.data(), frame.len);
        copy.vnet = frame.vnet;
        copy.queue = queue;
      }
      rx.release();
    }
  } while (rx.arm());
  full_fence();
  rx.notify();
  changed_.notify_all();
}

bool Guest::wait_ready(uint64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [this] { return ready_ || stopping_; }) &&
         ready_;
}

Result<void> Guest::send(std::span<const uint8_t> frame, uint32_t queue, const VnetHeader& vnet, uint64_t timeout_ms) {
  if (frame.size() < kEthHeaderBytes || frame.size() > kMaxFrameBytes) {
    return Error{EMSGSIZE, "send a frame of " + std::to_string(frame.size()) + " bytes (14 to " +
                               std::to_string(kMaxFrameBytes) + ")"};
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  std::unique_lock lock(mutex_);
  for (;;) {
    if (!ready_) return Error{ENOTCONN, "send a frame: not connected (" + (frontend_ ? frontend_->detail() : "") + ")"};
    if (queue >= device_->tx().size()) {
      return Error{EINVAL,
                   "send a frame on queue " + std::to_string(queue) + " of " + std::to_string(device_->tx().size())};
    }
    DriverTx& tx = *device_->tx()[queue];
    Batch& batch = *tx_batch_;
    batch.clear();
    Frame& out = batch.frames[0];
    out.len = static_cast<uint32_t>(frame.size());
    out.head_len = static_cast<uint32_t>(std::min<size_t>(frame.size(), kHeadBytes));
    out.head_offset = 0;
    std::copy_n(frame.data(), out.head_len, out.head);
    batch.segments[0] = {frame.data() + out.head_len, out.len - out.head_len};
    out.segments = batch.segments.data();
    out.segment_count = out.len > out.head_len ? 1 : 0;
    out.vnet = vnet;
    out.offload = vnet.flags != 0 || vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE;
    batch.count = 1;
    const uint8_t first = 0;
    const uint64_t before = tx.counters().frames.get();
    const uint32_t taken = tx.send(batch, {&first, 1}, drops_);
    full_fence();
    tx.notify();
    if (tx.counters().frames.get() != before) return {};
    if (taken != 0) return Error{EIO, "send a frame: " + (tx.broken().empty() ? "too long for the ring" : tx.broken())};
    // The ring is full, and a transmitq's notifications are off: look again soon.
    if (std::chrono::steady_clock::now() >= deadline) {
      return Error{EAGAIN, "send a frame: the switch takes none, its ring is full"};
    }
    changed_.wait_for(lock, std::chrono::microseconds(200));
  }
}

std::optional<GuestFrame> Guest::receive(uint64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [this] { return !received_.empty() || stopping_; });
  if (received_.empty()) return std::nullopt;
  GuestFrame frame = std::move(received_.front());
  received_.pop_front();
  return frame;
}

GuestStatus Guest::status() {
  const std::lock_guard lock(mutex_);
  GuestStatus status;
  status.stage = frontend_ ? frontend_->stage_name() : "closed";
  if (frontend_) {
    status.detail = frontend_->detail();
    status.features = frontend_->features();
    status.queue_pairs = frontend_->queue_pairs();
    status.times_ready = frontend_->times_running();
  }
  if (device_) status.broken = device_->broken();
  for (size_t q = 0; q < rx_counters_.size(); ++q) {
    status.rx_frames += rx_counters_[q].frames.get();
    status.rx_bytes += rx_counters_[q].bytes.get();
    status.tx_frames += tx_counters_[q].frames.get();
    status.tx_bytes += tx_counters_[q].bytes.get();
    status.kicks += tx_counters_[q].notifications.get() + rx_counters_[q].notifications.get();
  }
  status.dropped = overflowed_;
  for (const Counter& drop : drops_.rx_drops) status.dropped += drop.get();
  return status;
}

}  // namespace sw
