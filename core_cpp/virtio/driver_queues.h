// SPDX-License-Identifier: Apache-2.0
// DriverRxQueue and DriverTxQueue: frames in and out of a driver ring, written once for both ring formats.
//
// Theory of operation. `Ring` is one of the classes of driver_split.cc and driver_packed.cc. It moves chains of
// buffers:
//   ids()                      the DriverIds
//   add(parts, n)              make a chain of the next n free ids available; visible to the device after publish()
//   add_singles(n, ...)        the same for n chains of one buffer each
//   repost(n, ...)             the same for buffers that came back and were not given back, posted as before
//   publish()                  once per burst
//   reap<lengths>(limit, f)    f(head, used bytes, chain length) for completed chains, until about `limit` were seen or f
//                              gives false; without `lengths` the used bytes are not read where the ring need not be
//   has_used()                 something may be there to reap
//   kick_wanted()              the device asked to be told about what was published since the last call
//   arm(), disarm()            ask for notifications, or ask for silence
// A receive buffer's life: posted -> reaped (pending_[consumed_, reaped_)) -> shown in a Batch
// ([released_, consumed_)) -> posted again by release().
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/event_signal.h"
#include "virtio/copy.h"
#include "virtio/driver_ids.h"
#include "virtio/driver_ring.h"
#include "virtio/net_header.h"
#include "virtio/spec.h"

namespace sw {

// Used length of a chain whose used entry an in-order device skipped: all of it was written (virtio 1.3 2.7.9).
inline constexpr uint64_t kUsedWhole = UINT64_MAX;

// Where the buffers of a ring lie. The header sits directly in front of the 64-byte aligned payload.
struct DriverBuffers {
  explicit DriverBuffers(const DriverRingConfig& config)
      : base(config.buffers),
        device_base(config.device_address),
        stride(driver_buffer_stride(config.buffer_bytes)),
        bytes(config.buffer_bytes),
        header_bytes(net_header_bytes(config.features)) {}

  [[nodiscard]] uint8_t* payload(uint16_t id) const { return base + id * stride + kDriverHeadroom; }
  [[nodiscard]] uint8_t* header(uint16_t id) const { return payload(id) - header_bytes; }
  [[nodiscard]] uint64_t device_payload(uint16_t id) const { return device_base + id * stride + kDriverHeadroom; }
  [[nodiscard]] uint64_t device_header(uint16_t id) const { return device_payload(id) - header_bytes; }

  uint8_t* base;
  uint64_t device_base;
  uint64_t stride;
  uint32_t bytes;
  uint32_t header_bytes;
};

// What a device may ask of us in the header of a received frame, from the GUEST_* features that we accepted.
constexpr OffloadRules device_offloads(uint64_t features) {
  OffloadRules rules;
  rules.checksum = has_feature(features, VIRTIO_NET_F_GUEST_CSUM);
  rules.tso4 = has_feature(features, VIRTIO_NET_F_GUEST_TSO4);
  rules.tso6 = has_feature(features, VIRTIO_NET_F_GUEST_TSO6);
  rules.ecn = has_feature(features, VIRTIO_NET_F_GUEST_ECN);
  rules.uso = has_feature(features, VIRTIO_NET_F_GUEST_USO4) && has_feature(features, VIRTIO_NET_F_GUEST_USO6);
  return rules;
}

template <class Ring>
class DriverRxQueue final : public DriverRx {
 public:
  DriverRxQueue(const DriverRingConfig& config, QueueCounters& counters)
      : DriverRx(counters),
        ring_(config, /*device_writes=*/true),
        buffers_(config),
        accepted_(device_offloads(config.features)),
        mergeable_(has_feature(config.features, VIRTIO_NET_F_MRG_RXBUF)),
        max_frame_bytes_(config.max_frame_bytes),
        kick_fd_(config.kick_fd),
        peer_(config.peer),
        call_fd_(config.call_fd),
        pending_(std::bit_ceil(uint32_t{config.ring.size})),
        pending_mask_(static_cast<uint32_t>(pending_.size()) - 1) {
    const DriverBuffers buffers = buffers_;
    ring_.add_singles(ring_.ids().free_count(), buffers.header_bytes + buffers.bytes,
                      [=](uint16_t id) { return buffers.device_header(id); });
    ring_.publish();
  }

  bool peek(Batch& batch, PortWorkerCounters& drops) override {
    if (ring_.ids().failed()) return false;
    const uint32_t begin = consumed_;
    reap_to(kMaxBatch);
    uint64_t frames = 0;
    uint64_t bytes = 0;
    stalled_ = false;
    while (batch.count < kMaxBatch && consumed_ != reaped_) {
      const uint32_t len = take_frame(batch, drops);
      if (len == kNotTaken) break;
      ++frames;
      bytes += len;
    }
    if (frames != 0) {
      counters_->frames.add(frames);
      counters_->bytes.add(bytes);
    }
    return consumed_ != begin;
  }

  uint32_t take(std::span<UsedBuffer> used, bool look) override {
    if (ring_.ids().failed()) return 0;
    look ? reap_to<true>(kMaxBatch) : reap_to<false>(kMaxBatch);
    const uint32_t count = std::min(static_cast<uint32_t>(used.size()), reaped_ - consumed_);
    const DriverBuffers buffers = buffers_;  // locals: see DriverIds
    const Reaped* const pending = pending_.data();
    const uint32_t begin = consumed_;
    for (uint32_t i = 0; i < count; ++i) {
      const Reaped buffer = pending[(begin + i) & pending_mask_];
      used[i] = {buffers.payload(buffer.id), std::max(buffer.len, buffers.header_bytes) - buffers.header_bytes};
    }
    consumed_ = begin + count;
    return count;
  }

  // All buffers are posted from the start, so what comes back never meets a free one and need not queue behind it.
  void release() override {
    const DriverBuffers buffers = buffers_;
    const Reaped* const pending = pending_.data();
    const uint32_t mask = pending_mask_;
    const uint32_t begin = released_;
    ring_.repost(
        consumed_ - begin, buffers.header_bytes + buffers.bytes,
        [=](uint32_t i) { return pending[(begin + i) & mask].id; },
        [=](uint16_t id) { return buffers.device_header(id); });
    released_ = consumed_;
    ring_.publish();
  }

  void notify() override {
    if (ring_.kick_wanted() && signal_eventfd(kick_fd_, *peer_)) counters_->notifications.add(1);
  }

  bool arm() override {
    (void)drain_eventfd(call_fd_);
    return (ring_.arm() || (consumed_ != reaped_ && !stalled_)) && !ring_.ids().failed();
  }
  void disarm() override { ring_.disarm(); }
  [[nodiscard]] int wake_fd() const override { return call_fd_; }

  [[nodiscard]] std::string broken() const override { return ring_.ids().broken(); }
  void kick_now() override { (void)signal_eventfd(kick_fd_); }
  [[nodiscard]] uint32_t in_flight() const override { return ring_.ids().in_flight(); }

 private:
  static constexpr uint32_t kNotTaken = UINT32_MAX;
  struct Reaped {
    uint32_t len;  // bytes that the device wrote, header included; checked against the buffer
    uint16_t id;
  };

  Reaped& at(uint32_t position) { return pending_[position & pending_mask_]; }

  // Have at least `wanted` pending buffers if the device has used as many.
  template <bool kPrefetch = true>
  void reap_to(uint32_t wanted) {
    const uint32_t pending = reaped_ - consumed_;
    if (pending >= wanted) return;
    const DriverBuffers buffers = buffers_;
    const uint32_t room = buffers.header_bytes + buffers.bytes;
    Reaped* const list = pending_.data();
    uint32_t reaped = reaped_;
    ring_.template reap<true>(wanted - pending, [&, mask = pending_mask_](uint16_t id, uint64_t used, uint32_t) {
      if (used == kUsedWhole) used = room;
      if (used > room) [[unlikely]] {
        ring_.ids().fail("a used length exceeds its buffer");
        return false;
      }
      if constexpr (kPrefetch) {
        __builtin_prefetch(buffers.header(id));
        __builtin_prefetch(buffers.payload(id));
      }
      list[reaped++ & mask] = {static_cast<uint32_t>(used), id};
      return true;
    });
    reaped_ = reaped;
  }

  // Show the oldest pending frame in `batch`, or drop it. Its length, or kNotTaken if it must wait.
  uint32_t take_frame(Batch& batch, PortWorkerCounters& drops) {
    const Reaped first = at(consumed_);
    VnetHeaderMrg header{};
    std::memcpy(&header, buffers_.header(first.id), buffers_.header_bytes);
    if (first.len < buffers_.header_bytes) [[unlikely]] {
      ++consumed_;
      drops.drop_rx(DropReason::kMalformedDescriptor);
      return 0;
    }
    if (mergeable_ && header.num_buffers != 1) [[unlikely]]
      return take_merged(batch, drops, header);
    ++consumed_;
    const uint32_t len = first.len - buffers_.header_bytes;
    if (!fits(len, drops)) [[unlikely]]
      return len;
    Frame& frame = batch.frames[batch.count];
    const uint8_t* payload = buffers_.payload(first.id);
    std::memcpy(frame.head, payload, len <= 64 ? 64 : kHeadBytes);  // a buffer holds at least kHeadBytes
    frame.segments = &batch.segments[batch.segments_used];
    frame.segment_count = 0;
    if (len > kHeadBytes) {
      if (batch.segments_used == kMaxSegments) [[unlikely]] {
        --consumed_;  // the next batch has room
        return kNotTaken;
      }
      batch.segments[batch.segments_used++] = {payload + kHeadBytes, len - kHeadBytes};
      frame.segment_count = 1;
    }
    describe(frame, header.base, len, batch, drops);
    return len;
  }

  // virtio 1.3 5.1.6.4: num_buffers used buffers hold one frame; only the first begins with a header.
  [[gnu::noinline]] uint32_t take_merged(Batch& batch, PortWorkerCounters& drops, const VnetHeaderMrg& header) {
    const uint32_t count = header.num_buffers;
    reap_to(count);
    if (count == 0 || count > reaped_ - consumed_ + ring_.ids().in_flight()) {
      ring_.ids().fail("num_buffers of a received frame is impossible");
      return kNotTaken;
    }
    if (reaped_ - consumed_ < count) {
      stalled_ = true;  // nothing to do before the device uses more
      return kNotTaken;
    }
    uint32_t len = 0;
    for (uint32_t i = 0; i < count; ++i) len += at(consumed_ + i).len;
    len -= buffers_.header_bytes;
    const bool room = batch.segments_used + count <= kMaxSegments;
    if (!room && batch.count != 0) return kNotTaken;  // the next batch has
    if (!room) drops.drop_rx(DropReason::kFrameTooLong);
    if (room && fits(len, drops)) {
      Frame& frame = batch.frames[batch.count];
      gather(frame, std::min(len, kHeadBytes), count, batch);
      describe(frame, header.base, len, batch, drops);
    }
    consumed_ += count;
    return len;
  }

  void gather(Frame& frame, uint32_t head_len, uint32_t count, Batch& batch) {
    frame.segments = &batch.segments[batch.segments_used];
    uint32_t head_fill = 0;
    for (uint32_t i = 0; i < count; ++i) {
      const Reaped part = at(consumed_ + i);
      const uint32_t skip = i == 0 ? buffers_.header_bytes : 0;
      const uint8_t* from = buffers_.header(part.id) + skip;
      const uint32_t bytes = part.len - skip;
      const uint32_t into_head = std::min(bytes, head_len - head_fill);
      std::memcpy(frame.head + head_fill, from, into_head);
      head_fill += into_head;
      if (bytes > into_head) batch.segments[batch.segments_used++] = {from + into_head, bytes - into_head};
    }
    frame.segment_count = static_cast<uint16_t>(&batch.segments[batch.segments_used] - frame.segments);
  }

  bool fits(uint32_t len, PortWorkerCounters& drops) const {
    if (len >= kEthHeaderBytes && len <= max_frame_bytes_) [[likely]]
      return true;
    drops.drop_rx(len < kEthHeaderBytes ? DropReason::kFrameTooShort : DropReason::kFrameTooLong);
    return false;
  }

  // Bytes and segments of `frame` are in place: fill in the rest and count it into the batch, unless its header is bad.
  void describe(Frame& frame, VnetHeader header, uint32_t len, Batch& batch, PortWorkerCounters& drops) {
    frame.len = len;
    frame.head_len = std::min(len, kHeadBytes);
    frame.clear_marks();
    frame.offload = (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0 || header.gso_type != VIRTIO_NET_HDR_GSO_NONE;
    if (frame.offload) {
      if (!accept_net_header(accepted_, header, frame.head, frame.head_len, len)) [[unlikely]] {
        return drops.drop_rx(DropReason::kBadOffload);
      }
      batch.may_have_offloads = true;
    }
    frame.vnet = header;
    ++batch.count;
  }

  Ring ring_;
  const DriverBuffers buffers_;
  const OffloadRules accepted_;
  const bool mergeable_;
  const uint32_t max_frame_bytes_;
  const int kick_fd_;
  const std::shared_ptr<EventPeer> peer_;
  const int call_fd_;
  bool stalled_ = false;  // the oldest pending frame lacks buffers that the device has not used yet
  std::vector<Reaped> pending_;
  const uint32_t pending_mask_;
  uint32_t reaped_ = 0;  // free running positions: released_ <= consumed_ <= reaped_
  uint32_t consumed_ = 0;
  uint32_t released_ = 0;
};

template <class Ring>
class DriverTxQueue final : public DriverTx {
 public:
  DriverTxQueue(const DriverRingConfig& config, QueueCounters& counters)
      : DriverTx(counters),
        ring_(config, /*device_writes=*/false),
        buffers_(config),
        // Legacy (virtio 1.3 5.1.6.6): without ANY_LAYOUT the header has a descriptor of its own.
        header_alone_(!has_feature(config.features, VIRTIO_F_VERSION_1) &&
                      !has_feature(config.features, VIRTIO_F_ANY_LAYOUT)),
        kick_fd_(config.kick_fd),
        peer_(config.peer),
        plain_(config.ring.size),
        parts_(config.ring.size) {
    const OffloadRules rules = driver_offloads(config.features);
    caps_ = {rules.checksum, rules.tso4, rules.tso6, rules.ecn, rules.uso};
  }

  uint32_t send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) override {
    DriverIds& ids = ring_.ids();
    if (ids.free_count() < index.size()) reclaim();
    if (ids.failed()) [[unlikely]] {
      drops.drop_tx(DropReason::kDeviceError, index.size());
      return static_cast<uint32_t>(index.size());
    }
    uint32_t taken = 0;
    uint64_t frames = 0;
    uint64_t bytes = 0;
    for (const uint8_t number : index) {
      const Frame& frame = batch.frames[number];
      const bool single = frame.len <= buffers_.bytes && !header_alone_;
      const uint32_t parts =
          single ? 1 : (frame.len + buffers_.bytes - 1) / buffers_.bytes + static_cast<uint32_t>(header_alone_);
      if (ids.free_count() < parts) [[unlikely]] {
        if (parts > ids.size()) {  // virtio 1.3 2.7.5.3: a chain is never longer than the queue
          drops.drop_tx(DropReason::kBufferTooSmall);
          ++taken;
          continue;
        }
        reclaim();
        if (ids.failed() || ids.free_count() < parts) break;
      }
      single ? put_single(frame) : put_chain(frame, parts);
      ++taken;
      ++frames;
      bytes += frame.len;
    }
    if (frames != 0) {
      ring_.publish();
      counters_->frames.add(frames);
      counters_->bytes.add(bytes);
    }
    return taken;
  }

  uint32_t lend(std::span<uint8_t*> payloads) override {
    DriverIds& ids = ring_.ids();
    if (ids.free_count() < payloads.size()) reclaim();
    if (ids.failed()) [[unlikely]]
      return 0;
    const uint32_t count = std::min(static_cast<uint32_t>(payloads.size()), ids.free_count());
    const DriverBuffers buffers = buffers_;  // locals: see DriverIds
    uint8_t** const out = payloads.data();
    for (uint32_t i = 0; i < count; ++i) out[i] = buffers.payload(ids.next_free(i));
    return count;
  }

  void commit(uint32_t count, uint32_t bytes) override {
    const DriverBuffers buffers = buffers_;
    uint8_t* const plain = plain_.data();
    ring_.add_singles(count, buffers.header_bytes + bytes, [=](uint16_t id) {
      if (plain[id] == 0) [[unlikely]] {
        std::memset(buffers.header(id), 0, buffers.header_bytes);
        plain[id] = 1;
      }
      return buffers.device_header(id);
    });
    ring_.publish();
  }

  void notify() override {
    if (ring_.kick_wanted() && signal_eventfd(kick_fd_, *peer_)) counters_->notifications.add(1);
  }
  void reclaim() override {
    ring_.template reap<false>(UINT32_MAX, [this](uint16_t head, uint64_t, uint32_t chain) {
      ring_.ids().give_back(head, chain);
      return true;
    });
  }

  [[nodiscard]] std::string broken() const override { return ring_.ids().broken(); }
  void kick_now() override { (void)signal_eventfd(kick_fd_); }
  [[nodiscard]] uint32_t in_flight() const override { return ring_.ids().in_flight(); }

 private:
  void put_single(const Frame& frame) {
    const uint16_t id = ring_.ids().next_free(0);
    put_header(header_of(frame), id, !frame.offload);
    uint8_t* to = buffers_.payload(id);
    copy_short(to, frame.data(), frame.head_len);
    uint8_t* end = to + frame.head_len;
    for (uint32_t i = 0; i < frame.segment_count; ++i) {
      std::memcpy(end, frame.segments[i].data, frame.segments[i].len);
      end += frame.segments[i].len;
    }
    const DriverPart part{buffers_.device_header(id), buffers_.header_bytes + frame.len};
    ring_.add(&part, 1);
  }

  [[gnu::noinline]] void put_chain(const Frame& frame, uint32_t count) {
    DriverIds& ids = ring_.ids();
    uint32_t offset = 0;
    for (uint32_t i = 0; i < count; ++i) {
      const uint16_t id = ids.next_free(i);
      if (i == 0) put_header(header_of(frame), id, !frame.offload);
      if (i == 0 && header_alone_) {
        parts_[i] = {buffers_.device_header(id), buffers_.header_bytes};
        continue;
      }
      const uint32_t bytes = std::min(buffers_.bytes, frame.len - offset);
      copy_from_frame(frame, offset, buffers_.payload(id), bytes);
      offset += bytes;
      parts_[i] = i == 0 ? DriverPart{buffers_.device_header(id), buffers_.header_bytes + bytes}
                         : DriverPart{buffers_.device_payload(id), bytes};
    }
    ring_.add(parts_.data(), count);
  }

  // virtio 1.3 5.1.6.2: num_buffers is 0, and of the flags only NEEDS_CSUM is the driver's.
  static VnetHeaderMrg header_of(const Frame& frame) {
    VnetHeaderMrg header{};
    if (frame.offload) {
      header.base = frame.vnet;
      header.base.flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
    }
    return header;
  }

  // The header has a cache line of its own, and in the common case its bytes never change: then it is not touched.
  void put_header(const VnetHeaderMrg& header, uint16_t id, bool plain) {
    if (plain && plain_[id] != 0) return;
    std::memcpy(buffers_.header(id), &header, buffers_.header_bytes);
    plain_[id] = plain ? 1 : 0;
  }

  Ring ring_;
  const DriverBuffers buffers_;
  const bool header_alone_;
  const int kick_fd_;
  const std::shared_ptr<EventPeer> peer_;
  std::vector<uint8_t> plain_;     // of each buffer: its header is all zeros
  std::vector<DriverPart> parts_;  // scratch of put_chain
};

// Defined in driver_split.cc and driver_packed.cc.
std::unique_ptr<DriverRx> make_split_driver_rx(const DriverRingConfig& config, QueueCounters& counters);
std::unique_ptr<DriverTx> make_split_driver_tx(const DriverRingConfig& config, QueueCounters& counters);
std::unique_ptr<DriverRx> make_packed_driver_rx(const DriverRingConfig& config, QueueCounters& counters);
std::unique_ptr<DriverTx> make_packed_driver_tx(const DriverRingConfig& config, QueueCounters& counters);

}  // namespace sw
