// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/traffic_station.h"

#include <algorithm>

#include "base/bytes.h"
#include "base/clock.h"
#include "net/ethernet.h"
#include "virtio/spec.h"

namespace sw {

namespace {

constexpr uint16_t kEtherTypeTest = 0x88b5;  // IEEE 802: local experimental
constexpr uint32_t kPlainDataAt = 16;        // of a frame of that type
constexpr uint32_t kTcpDataAt = 56;          // of a TCP frame, 2 bytes behind the header
constexpr uint32_t kIpAt = kEthHeaderBytes;
constexpr uint32_t kTcpAt = kIpAt + 20;
constexpr uint32_t kPayloadAt = kTcpAt + 20;
constexpr uint32_t kStreamsPerStation = 16;  // told apart by the receiver
constexpr uint64_t kLostAfterUs = 20'000;    // window: what has not arrived by then does not

void store_mac(uint8_t* to, Mac mac) {
  store_be16(to, static_cast<uint16_t>(mac >> 32));
  store_be32(to + 2, static_cast<uint32_t>(mac));
}

// Address `index` of those that `base` stands for. An odd factor scatters neighbours over the 2^24 possibilities.
Mac spread(Mac base, uint64_t index) { return base ^ ((index * 0x9e'3779U & 0xff'ffffU) << 8); }

struct Stamp {
  uint64_t sequence;
  uint64_t tsc;
  uint32_t stream;
};

uint64_t us(uint64_t count) {
  static const uint64_t tsc_per_us = tsc_hz() / 1'000'000U;
  return count * tsc_per_us;
}

}  // namespace

TrafficStation::TrafficStation(TrafficOptions options, uint16_t number, TrafficShared& shared)
    : options_(std::move(options)),
      number_(number),
      shared_(shared),
      rx_counters_(std::max(options_.guest.queues, 1U)),
      tx_counters_(rx_counters_.size()),
      template_(options_.frame_bytes),
      sequence_(rx_counters_.size()),
      last_seen_(shared.arrived.size() * kStreamsPerStation),
      batch_(std::make_unique<Batch>()),
      rate_(options_.rate) {
  build_template();
  FrontendConfig config;
  config.socket = options_.guest.socket;
  config.listen = options_.guest.listen;
  config.features = guest_features(options_.guest);
  config.required = guest_required_features(options_.guest);
  config.queue_pairs = static_cast<uint32_t>(rx_counters_.size());
  frontend_ = std::make_unique<Frontend>(shared.loop, config, static_cast<FrontendOwner&>(*this));
}

bool TrafficStation::limited() const {
  return !options_.send || options_.rate != 0 || !shared_.sending.load(std::memory_order_relaxed);
}

bool TrafficStation::step() {
  bool moved = false;
  for (const auto& queue : device_->rx()) moved |= in_place_ ? receive(*queue) : receive_frames(*queue);
  if (options_.send && shared_.sending.load(std::memory_order_relaxed)) moved |= send();
  if (!moved) return false;
  full_fence();
  for (const auto& queue : device_->rx()) queue->notify();
  for (const auto& queue : device_->tx()) queue->notify();
  return true;
}

TrafficStats TrafficStation::stats() const {
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

// ---- connection ----

Result<const DriverMemory*> TrafficStation::negotiated(uint64_t features, uint32_t queue_pairs) {
  DriverMemoryOptions options;
  options.features = features;
  options.queue_pairs = queue_pairs;
  options.ring_size = options_.guest.ring_size;
  options.huge = options_.guest.huge;
  // Without mergeable buffers a frame needs a buffer that holds it.
  if (!has_feature(features, VIRTIO_NET_F_MRG_RXBUF)) {
    options.buffer_bytes = std::max(options.buffer_bytes, (options_.frame_bytes + 63) / 64 * 64);
  }
  auto device = DriverDevice::make(options, rx_counters_, tx_counters_);
  if (!device) return device.error();
  device_ = std::move(*device);
  mergeable_ = has_feature(features, VIRTIO_NET_F_MRG_RXBUF);
  in_place_ = has_feature(features, VIRTIO_F_VERSION_1) && options_.frame_bytes <= options.buffer_bytes &&
              options_.gso_bytes == 0;
  if (in_place_) prepare_buffers();
  return &device_->memory();
}

void TrafficStation::running() {
  device_->kick_all();
  merged_left_ = 0;
  sent_ = 0;
  shared_.arrived[number_] = 0;
  begin_window(tsc_now());
  std::fill(last_seen_.begin(), last_seen_.end(), 0);
  ready_ = true;
  shared_.changed.notify_all();
}

void TrafficStation::lost(const std::string&) {
  ready_ = false;
  device_.reset();
}

// ---- frames ----

void TrafficStation::build_template() {
  for (size_t i = 0; i < template_.size(); ++i) template_[i] = static_cast<uint8_t>(i);
  uint8_t* frame = template_.data();
  if (options_.gso_bytes == 0) {
    store_be16(frame + 2 * kMacBytes, kEtherTypeTest);
    data_at_ = kPlainDataAt;
  } else {
    // A TCP segment as a kernel leaves it to the NIC: the checksum field holds the pseudo header's sum, which nobody
    // looks at before it is finished.
    data_at_ = kTcpDataAt;
    store_be16(frame + 2 * kMacBytes, kEtherTypeIpv4);
    std::fill(frame + kIpAt, frame + kPayloadAt, uint8_t{0});
    frame[kIpAt] = 0x45;
    store_be16(frame + kIpAt + 2, static_cast<uint16_t>(options_.frame_bytes - kEthHeaderBytes));
    frame[kIpAt + 8] = 64;  // time to live
    frame[kIpAt + 9] = 6;   // TCP
    store_be32(frame + kIpAt + 12, 0x0a000001);
    store_be32(frame + kIpAt + 16, 0x0a000002);
    frame[kTcpAt + 12] = 5 << 4;  // header length
    frame[kTcpAt + 13] = 0x10;    // ACK
  }
  address(frame, 0);
}

void TrafficStation::address(uint8_t* frame, uint64_t pair) const {
  store_mac(frame, spread(options_.peer, pair));
  store_mac(frame + kMacBytes, spread(options_.mac, pair));
}

void TrafficStation::stamp(uint8_t* frame, uint32_t stream, uint64_t sequence, uint64_t now) const {
  store_unaligned(frame + data_at_ + offsetof(Stamp, sequence), sequence);
  store_unaligned(frame + data_at_ + offsetof(Stamp, tsc), now);
  store_unaligned(frame + data_at_ + offsetof(Stamp, stream), stream);
}

// Every buffer of every transmitq holds a whole frame from the start.
void TrafficStation::prepare_buffers() {
  std::vector<uint8_t*> payloads(options_.guest.ring_size);
  for (uint32_t q = 0; q < device_->tx().size(); ++q) {
    const uint32_t count = device_->tx()[q]->lend(payloads);
    for (uint32_t i = 0; i < count; ++i) {
      std::copy(template_.begin(), template_.end(), payloads[i]);
      address(payloads[i], i % options_.pairs);
      stamp(payloads[i], number_ * kStreamsPerStation + q, 0, 0);
    }
  }
}

// ---- receiving ----

bool TrafficStation::receive(DriverRx& queue) {
  const bool look = options_.touch != TrafficTouch::kNever;
  std::array<UsedBuffer, kMaxBatch> used;
  const uint32_t count = queue.take(used, look);
  if (count == 0) return false;
  uint64_t frames = 0;
  uint64_t bytes = 0;
  const uint64_t now = options_.latency ? tsc_now() : 0;
  for (uint32_t i = 0; i < count; ++i) {
    bytes += used[i].bytes;
    if (!look) {
      ++frames;
      continue;
    }
    if (merged_left_ != 0) [[unlikely]] {
      --merged_left_;
      continue;
    }
    ++frames;
    // num_buffers is the last field of the header (virtio 1.3 5.1.6.1).
    if (mergeable_) merged_left_ = load_unaligned<uint16_t>(used[i].payload - sizeof(uint16_t)) - 1U;
    note(used[i].payload, now);
  }
  queue.counters().frames.add(frames);
  queue.counters().bytes.add(bytes);
  queue.release();
  return true;
}

bool TrafficStation::receive_frames(DriverRx& queue) {
  Batch& batch = *batch_;
  batch.clear();
  if (!queue.peek(batch, drops_)) return false;
  const uint64_t now = options_.latency ? tsc_now() : 0;
  for (uint32_t i = 0; i < batch.count; ++i) note(batch.frames[i].head, now);
  queue.release();
  return true;
}

// `frame`: its first 128 bytes, or all of them.
void TrafficStation::note(const uint8_t* frame, uint64_t now) {
  const uint16_t type = load_be16(frame + 2 * kMacBytes);
  const uint32_t at = type == kEtherTypeTest ? kPlainDataAt : kTcpDataAt;
  const auto stream = load_unaligned<uint32_t>(frame + at + offsetof(Stamp, stream));
  if ((type != kEtherTypeTest && type != kEtherTypeIpv4) || stream >= last_seen_.size()) [[unlikely]] {
    foreign_.add(1);
    return;
  }
  const auto sequence = load_unaligned<uint64_t>(frame + at + offsetof(Stamp, sequence));
  if (sequence < last_seen_[stream]) [[unlikely]] {
    reordered_.add(1);
  } else {
    last_seen_[stream] = sequence;
  }
  ++shared_.arrived[stream / kStreamsPerStation];
  if (options_.latency) shared_.latency.record(now - load_unaligned<uint64_t>(frame + at + offsetof(Stamp, tsc)));
}

// ---- sending ----

bool TrafficStation::send() {
  const uint32_t wanted = due();
  if (wanted == 0) return false;
  const uint32_t number = next_queue_;
  next_queue_ = (number + 1) % static_cast<uint32_t>(device_->tx().size());
  DriverTx& queue = *device_->tx()[number];
  const uint32_t sent = in_place_ ? send_in_place(queue, number, wanted) : send_frames(queue, number, wanted);
  sequence_[number] += sent;
  if (options_.pairs > 1) next_pair_ = (next_pair_ + sent) % options_.pairs;
  sent_ += sent;
  pace_sent_ += sent;
  return sent != 0;
}

uint32_t TrafficStation::send_in_place(DriverTx& queue, uint32_t queue_number, uint32_t wanted) {
  std::array<uint8_t*, kMaxBatch> payloads;
  const uint32_t count = queue.lend({payloads.data(), wanted});
  if (count == 0) return 0;
  if (options_.touch != TrafficTouch::kNever) {
    const uint32_t bytes =
        options_.touch == TrafficTouch::kHead ? std::min(options_.frame_bytes, 64U) : options_.frame_bytes;
    const uint32_t stream = number_ * kStreamsPerStation + queue_number % kStreamsPerStation;
    const uint64_t now = options_.latency ? tsc_now() : 0;
    uint64_t pair = next_pair_;
    for (uint32_t i = 0; i < count; ++i) {
      uint8_t* frame = payloads[i];
      bytes == 64 ? std::memcpy(frame, template_.data(), 64) : std::memcpy(frame, template_.data(), bytes);
      if (options_.pairs > 1) {
        address(frame, pair);
        if (++pair == options_.pairs) pair = 0;
      }
      stamp(frame, stream, sequence_[queue_number] + i, now);
    }
  }
  queue.commit(count, options_.frame_bytes);
  queue.counters().frames.add(count);
  queue.counters().bytes.add(uint64_t{count} * options_.frame_bytes);
  return count;
}

uint32_t TrafficStation::send_frames(DriverTx& queue, uint32_t queue_number, uint32_t wanted) {
  Batch& batch = *batch_;
  std::array<uint8_t, kMaxBatch> index;
  const uint64_t now = tsc_now();
  for (uint32_t i = 0; i < wanted; ++i) {
    index[i] = static_cast<uint8_t>(i);
    Frame& frame = batch.frames[i];
    frame.len = options_.frame_bytes;
    frame.head_len = std::min(frame.len, kHeadBytes);
    frame.head_offset = 0;
    std::copy_n(template_.data(), frame.head_len, frame.head);
    address(frame.head, (next_pair_ + i) % options_.pairs);
    stamp(frame.head, number_ * kStreamsPerStation + queue_number % kStreamsPerStation, sequence_[queue_number] + i,
          now);
    frame.vnet = {};
    frame.offload = options_.gso_bytes != 0;
    if (frame.offload) {
      frame.vnet = {VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4,      static_cast<uint16_t>(kPayloadAt),
                    options_.gso_bytes,          static_cast<uint16_t>(kTcpAt), 16};
    }
    batch.segments[i] = {template_.data() + frame.head_len, frame.len - frame.head_len};
    frame.segments = &batch.segments[i];
    frame.segment_count = frame.len > frame.head_len ? 1 : 0;
  }
  return queue.send(batch, {index.data(), wanted}, drops_);
}

// ---- pace ----

void TrafficStation::begin_pace(uint64_t now) {
  pace_begin_ = now;
  pace_sent_ = 0;
}

void TrafficStation::begin_window(uint64_t now) {
  begin_pace(now);
  room_seen_ = now;
  in_flight_base_ = sent_ - shared_.arrived[number_];
}

// How many frames to send now.
uint32_t TrafficStation::due() {
  if (const uint32_t serial = shared_.serial.load(std::memory_order_acquire); serial != serial_) [[unlikely]] {
    serial_ = serial;
    const uint64_t rate = shared_.rate.load(std::memory_order_relaxed);
    rate_ = rate == kTrafficOwnRate ? options_.rate : rate;
    begin_window(tsc_now());
  }
  uint32_t most = options_.burst;
  if (const uint64_t window = shared_.window.load(std::memory_order_relaxed); window != 0) most = due_by_window(window);
  if (rate_ == 0 || most == 0) return most;
  const uint64_t now = tsc_now();
  const auto elapsed = static_cast<double>(now - pace_begin_) / static_cast<double>(tsc_hz());
  const auto earned = static_cast<uint64_t>(elapsed * static_cast<double>(rate_));
  if (earned <= pace_sent_) return 0;
  const uint64_t owed = earned - pace_sent_;
  // Far behind, or counted for long: start anew rather than catch up with a flood or lose precision.
  if (owed > rate_ / 10 + kMaxBatch || elapsed > 60) begin_pace(now);
  return static_cast<uint32_t>(std::min<uint64_t>(owed, most));
}

// Frames that may be sent without having more than `window` under way.
uint32_t TrafficStation::due_by_window(uint64_t window) {
  const uint64_t in_flight = sent_ - shared_.arrived[number_] - in_flight_base_;
  const uint64_t now = tsc_now();
  if (in_flight < window) {
    room_seen_ = now;
    return static_cast<uint32_t>(std::min<uint64_t>(window - in_flight, options_.burst));
  }
  if (now - room_seen_ > us(kLostAfterUs)) begin_window(now);
  return 0;
}

}  // namespace sw
