// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/traffic.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>

#include "base/bytes.h"
#include "base/clock.h"
#include "net/ethernet.h"

namespace sw {

namespace {

constexpr uint16_t kEtherTypeTest = 0x88b5;  // IEEE 802: local experimental
constexpr uint32_t kLeastBytes = 60;
constexpr uint32_t kMostBytes = 65'535;
constexpr uint32_t kSequenceAt = 16;
constexpr uint32_t kStreamAt = 24;
constexpr size_t kStreams = 16;  // told apart by the receiver

void store_mac(uint8_t* to, Mac mac) {
  store_be16(to, static_cast<uint16_t>(mac >> 32));
  store_be32(to + 2, static_cast<uint32_t>(mac));
}

}  // namespace

class TrafficRunner::Station final : public FrontendOwner {
 public:
  Station(TrafficOptions options, EventLoop& loop, std::condition_variable& changed)
      : options_(std::move(options)),
        changed_(changed),
        rx_counters_(std::max(options_.guest.queues, 1U)),
        tx_counters_(rx_counters_.size()),
        sequence_(rx_counters_.size()),
        body_(options_.frame_bytes),
        rx_batch_(std::make_unique<Batch>()),
        tx_batch_(std::make_unique<Batch>()) {
    for (size_t i = 0; i < body_.size(); ++i) body_[i] = static_cast<uint8_t>(i);
    for (uint32_t i = 0; i < kMaxBatch; ++i) {
      index_[i] = static_cast<uint8_t>(i);
      build_frame(i);
    }
    FrontendConfig config;
    config.socket = options_.guest.socket;
    config.listen = options_.guest.listen;
    config.features = guest_features(options_.guest);
    config.required = guest_required_features(options_.guest);
    config.queue_pairs = static_cast<uint32_t>(rx_counters_.size());
    frontend_ = std::make_unique<Frontend>(loop, config, static_cast<FrontendOwner&>(*this));
  }

  Frontend& frontend() { return *frontend_; }
  [[nodiscard]] bool ready() const { return ready_; }
  [[nodiscard]] bool limited() const { return options_.rate != 0 || !options_.send; }

  // One round of receiving and sending. True if frames moved.
  bool step() {
    bool moved = false;
    for (const auto& queue : device_->rx()) moved |= receive(*queue);
    if (options_.send) moved |= send();
    if (!moved) return false;
    full_fence();
    for (const auto& queue : device_->rx()) queue->notify();
    for (const auto& queue : device_->tx()) queue->notify();
    return true;
  }

  [[nodiscard]] TrafficStats stats() const {
    TrafficStats stats;
    stats.ready = ready_;
    stats.stage = frontend_->stage_name();
    stats.detail = frontend_->detail();
    stats.features = frontend_->features();
    stats.times_ready = frontend_->times_running();
    if (device_) {
      if (const std::string broken = device_->broken(); !broken.empty()) stats.detail = "ring broken: " + broken;
    }
    for (size_t q = 0; q < rx_counters_.size(); ++q) {
      stats.tx_frames += tx_counters_[q].frames.get();
      stats.tx_bytes += tx_counters_[q].bytes.get();
      stats.rx_frames += rx_counters_[q].frames.get();
      stats.rx_bytes += rx_counters_[q].bytes.get();
    }
    stats.foreign = foreign_.get();
    stats.reordered = reordered_.get();
    return stats;
  }

 private:
  Result<const DriverMemory*> negotiated(uint64_t features, uint32_t queue_pairs) override {
    DriverMemoryOptions options;
    options.features = features;
    options.queue_pairs = queue_pairs;
    options.ring_size = options_.guest.ring_size;
    options.huge = options_.guest.huge;
    auto device = DriverDevice::make(options, rx_counters_, tx_counters_);
    if (!device) return device.error();
    device_ = std::move(*device);
    return &device_->memory();
  }
  void running() override {
    device_->kick_all();
    ready_ = true;
    window_begin_ = tsc_now();
    window_sent_ = 0;
    last_seen_.fill(0);
    changed_.notify_all();
  }
  void lost(const std::string&) override {
    ready_ = false;
    device_.reset();
  }

  void build_frame(uint32_t number) {
    Frame& frame = tx_batch_->frames[number];
    frame.len = options_.frame_bytes;
    frame.head_len = static_cast<uint16_t>(std::min(frame.len, kHeadBytes));
    frame.head_offset = 0;
    std::copy_n(body_.data(), frame.head_len, frame.head);
    store_be16(frame.head + 2 * kMacBytes, kEtherTypeTest);
    address_frame(frame, 0);
    frame.vnet = {};
    frame.offload = false;
    tx_batch_->segments[number] = {body_.data() + frame.head_len, frame.len - frame.head_len};
    frame.segments = &tx_batch_->segments[number];
    frame.segment_count = frame.len > frame.head_len ? 1 : 0;
  }

  void address_frame(Frame& frame, size_t pair) {
    store_mac(frame.head, options_.peers[pair]);
    store_mac(frame.head + kMacBytes, options_.macs[pair]);
  }

  bool receive(RxQueue& queue) {
    Batch& batch = *rx_batch_;
    batch.clear();
    if (!queue.peek(batch, drops_)) return false;
    for (uint32_t i = 0; i < batch.count; ++i) {
      const uint8_t* head = batch.frames[i].head;
      if (load_be16(head + 2 * kMacBytes) != kEtherTypeTest) {
        foreign_.add(1);
        continue;
      }
      uint64_t& last = last_seen_[load_unaligned<uint16_t>(head + kStreamAt) % kStreams];
      const auto sequence = load_unaligned<uint64_t>(head + kSequenceAt);
      if (sequence < last) reordered_.add(1);
      last = std::max(last, sequence);
    }
    queue.release();
    return true;
  }

  bool send() {
    const uint32_t wanted = due();
    if (wanted == 0) return false;
    const size_t number = next_queue_;
    next_queue_ = (next_queue_ + 1) % device_->tx().size();
    DriverTx& queue = *device_->tx()[number];
    uint64_t& sequence = sequence_[number];
    for (uint32_t i = 0; i < wanted; ++i) {
      Frame& frame = tx_batch_->frames[i];
      store_unaligned(frame.head + kSequenceAt, sequence + i);
      store_unaligned(frame.head + kStreamAt, static_cast<uint16_t>(number));
      if (options_.macs.size() > 1) address_frame(frame, (next_pair_ + i) % options_.macs.size());
    }
    const uint32_t sent = queue.send(*tx_batch_, {index_.data(), wanted}, drops_);
    sequence += sent;
    next_pair_ = (next_pair_ + sent) % options_.macs.size();
    window_sent_ += sent;
    return sent != 0;
  }

  // How many frames to send now.
  uint32_t due() {
    if (options_.rate == 0) return options_.burst;
    const auto elapsed = static_cast<double>(tsc_now() - window_begin_) / static_cast<double>(tsc_hz());
    const auto earned = static_cast<uint64_t>(elapsed * static_cast<double>(options_.rate));
    if (earned <= window_sent_) return 0;
    const uint64_t owed = earned - window_sent_;
    // Far behind, or a long window: start a new one rather than catch up with a flood or lose precision.
    if (owed > options_.rate / 10 + kMaxBatch || elapsed > 60) {
      window_begin_ = tsc_now();
      window_sent_ = 0;
    }
    return static_cast<uint32_t>(std::min<uint64_t>(owed, options_.burst));
  }

  const TrafficOptions options_;
  std::condition_variable& changed_;
  std::vector<QueueCounters> rx_counters_;
  std::vector<QueueCounters> tx_counters_;
  PortWorkerCounters drops_;
  Counter foreign_;
  Counter reordered_;
  std::vector<uint64_t> sequence_;  // per transmitq
  std::array<uint64_t, kStreams> last_seen_{};
  std::vector<uint8_t> body_;
  std::unique_ptr<Batch> rx_batch_;
  std::unique_ptr<Batch> tx_batch_;
  std::array<uint8_t, kMaxBatch> index_{};
  size_t next_queue_ = 0;
  size_t next_pair_ = 0;
  uint64_t window_begin_ = 0;
  uint64_t window_sent_ = 0;
  bool ready_ = false;
  std::unique_ptr<DriverDevice> device_;
  std::unique_ptr<Frontend> frontend_;  // last: its end calls lost()
};

TrafficRunner::TrafficRunner(std::vector<TrafficOptions> guests, int cpu) : cpu_(cpu) {
  for (TrafficOptions& options : guests) {
    options.frame_bytes = std::clamp(options.frame_bytes, kLeastBytes, kMostBytes);
    options.burst = std::clamp(options.burst, 1U, kMaxBatch);
    if (options.macs.empty()) options.macs.push_back(0x0200'0000'0001);
    options.peers.resize(options.macs.size(), options.peers.empty() ? kMacBroadcast : options.peers.back());
    stations_.push_back(std::make_unique<Station>(std::move(options), loop_, changed_));
  }
}

TrafficRunner::~TrafficRunner() { stop(); }

Result<void> TrafficRunner::start() {
  if (thread_.joinable()) return {};
  for (const auto& station : stations_) {
    if (auto opened = station->frontend().open(); !opened) {
      for (const auto& other : stations_) other->frontend().close();
      return opened;
    }
  }
  stopping_ = false;
  thread_ = std::thread([this] { run(); });
  return {};
}

void TrafficRunner::stop() {
  stopping_ = true;
  loop_.wake();
  if (thread_.joinable()) thread_.join();
  const std::lock_guard lock(mutex_);
  for (const auto& station : stations_) station->frontend().close();
  changed_.notify_all();
}

void TrafficRunner::run() {
  if (cpu_ >= 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<size_t>(cpu_), &set);
    (void)::pthread_setaffinity_np(::pthread_self(), sizeof set, &set);  // unpinned is slower, not wrong
  }
  const uint64_t service_every = tsc_hz() / 1000;
  uint64_t serve_at = 0;
  while (!stopping_.load(std::memory_order_relaxed)) {
    bool any_ready = false;
    bool moved = false;
    bool limited = true;
    for (const auto& station : stations_) {
      if (!station->ready()) continue;
      any_ready = true;
      limited &= station->limited();
      moved |= station->step();
    }
    const uint64_t now = tsc_now();
    if (!any_ready || now >= serve_at) {
      serve_at = now + service_every;
      loop_.run_once(any_ready ? 0 : 100, [this](const std::function<void()>& callbacks) {
        const std::lock_guard lock(mutex_);
        callbacks();
      });
    }
    if (!moved && any_ready) {
      if (limited) std::this_thread::sleep_for(std::chrono::microseconds(20));
      __builtin_ia32_pause();
    }
  }
}

bool TrafficRunner::wait_ready(uint64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  const auto all_ready = [this] {
    return std::all_of(stations_.begin(), stations_.end(), [](const auto& station) { return station->ready(); });
  };
  changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return stopping_ || all_ready(); });
  return all_ready();
}

std::vector<TrafficStats> TrafficRunner::stats() {
  const std::lock_guard lock(mutex_);
  std::vector<TrafficStats> stats;
  for (const auto& station : stations_) stats.push_back(station->stats());
  return stats;
}

}  // namespace sw
