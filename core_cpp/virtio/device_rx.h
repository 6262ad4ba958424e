// SPDX-License-Identifier: Apache-2.0
// DeviceRxImpl: frames that a guest sends. Borrows them from the guest's transmitq and gives them back.
//
// Theory of operation. A cache line that the guest just wrote takes longer to arrive than everything we do with a
// frame, so peek works in stages over the whole batch and each stage starts the loads of the next: copy the
// descriptors; turn them into pointers and prefetch the first lines of every payload; load the heads. The common chain,
// one readable descriptor, takes a short path in every stage; anything else (several descriptors, indirect tables,
// buffers across regions) is gathered into the batch's segment pool. The virtio-net header is read only if an offload
// was negotiated: it usually lies in a line of its own.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "virtio/copy.h"
#include "virtio/device_chain.h"
#include "virtio/device_queue.h"
#include "virtio/net_header.h"

namespace sw {

template <class Ring, bool kOffload>
class DeviceRxImpl final : public DeviceQueue<DeviceRx, Ring> {
  using Base = DeviceQueue<DeviceRx, Ring>;
  using Base::cursor_;
  using Base::header_bytes_;
  using Base::ring_;

 public:
  template <class... RingArgs>
  DeviceRxImpl(const DeviceRingConfig& config, QueueCounters& counters, RingArgs... ring_args)
      : Base(config, counters, ring_args...),
        max_frame_bytes_(std::min(config.max_frame_bytes, kMaxFrameBytes)),
        rules_(driver_offloads(config.features)) {}

  bool peek(Batch& batch, PortWorkerCounters& drops) override {
    if (injected_count_ != 0) [[unlikely]] {
      return deliver_injected(batch);
    }
    if (ring_.is_idle()) return false;
    staged_count_ = 0;
    staged_bytes_ = 0;
    const uint32_t taken = stage(batch, drops);
    if (taken == 0) return false;
    this->counters_->frames.add(taken);
    this->counters_->bytes.add(staged_bytes_);
    if (!this->enabled_) [[unlikely]] {  // vhost-user "Ring states": a started but disabled ring discards
      drops.drop_rx(DropReason::kQueueDisabled, staged_count_);
      return true;
    }
    fill(batch, drops);
    return true;
  }

  void release() override { ring_.publish(); }

  bool arm() override {
    if (injected_count_ != 0) return true;
    if (ring_.fault().is_set()) return false;
    ring_.want_kicks();
    full_fence();  // pairs with the driver's, between making a chain available and reading our wish
    return ring_.has_more();
  }
  void disarm() override { ring_.refuse_kicks(); }
  [[nodiscard]] int wake_fd() const override { return this->kick_fd_; }

  void inject(std::span<const uint8_t> frame) override {
    if (frame.size() < kEthHeaderBytes || frame.size() > kHeadBytes || injected_count_ == injected_.size()) return;
    Injected& slot = injected_[injected_count_++];
    slot.len = static_cast<uint32_t>(frame.size());
    std::memcpy(slot.bytes.data(), frame.data(), frame.size());
  }

 private:
  // A chain between the stages.
  struct Staged {
    const uint8_t* payload;  // of a chain in one piece; the header lies in front of it. nullptr: in pieces
    uint32_t len;            // of the frame, without header
    uint16_t first_piece;    // of batch.segments, if it is in pieces
    uint16_t pieces;
  };
  struct Injected {
    uint32_t len;
    std::array<uint8_t, kHeadBytes> bytes;
  };
  // Descriptors looked at in one peek, so that one guest's strange chains cannot hold up the others.
  static constexpr uint32_t kMaxSteps = 4 * kMaxChain;

  // Take available chains: pointers to their payload in staged_, pieces in the pool, prefetches under way.
  uint32_t stage(Batch& batch, PortWorkerCounters& drops) {
    std::array<Head, kMaxBatch> heads;
    uint32_t taken = 0;
    uint32_t steps = 0;
    // Less than was asked for is all there is, unless fetch stopped at a chain: another look would only take the
    // driver's line away while it writes the next ones.
    bool more = true;
    while (more && taken < kMaxBatch && steps < kMaxSteps) {
      const uint32_t wanted = kMaxBatch - taken;
      const uint32_t count = ring_.fetch(heads.data(), wanted);
      more = count == wanted;
      uint32_t i = 0;
      while (i < count && steps < kMaxSteps) {
        const uint32_t run = stage_run(heads.data() + i, count - i);
        i += run;
        taken += run;
        if (i == count) break;
        if (!stage_chain(batch, drops, heads[i], steps)) return taken;
        more = true;
        ++i;
        ++taken;
      }
    }
    return taken;
  }

  // The common chains at the beginning of `heads`: one readable descriptor that holds header and frame. How many.
  uint32_t stage_run(const Head* heads, uint32_t count) {
    const uint32_t header_bytes = header_bytes_;
    const uint32_t longest = max_frame_bytes_ - kEthHeaderBytes;
    Staged* const staged = staged_.data() + staged_count_;
    GuestCursor::Window window = cursor_.window();
    uint64_t bytes = 0;
    uint32_t i = 0;
    for (; i < count; ++i) {
      const Head& head = heads[i];
      const uint32_t len = head.len - header_bytes;  // wraps to something huge when the header does not fit
      if ((head.flags & kFlagsOfInterest) != 0 || len - kEthHeaderBytes > longest) [[unlikely]]
        break;
      const uint8_t* start = window.whole(head.addr, head.len);
      if (start == nullptr) [[unlikely]] {
        start = cursor_.whole(head.addr, head.len);
        if (start == nullptr) break;
        window = cursor_.window();
      }
      staged[i] = {start + header_bytes, len, 0, 0};
      bytes += len;
      if constexpr (kOffload) prefetch_read(start);
      prefetch_read(start + header_bytes);
      prefetch_read(start + header_bytes + std::min(len, kHeadBytes) - 1);
    }
    ring_.template take_run<false>(heads, nullptr, i);
    staged_count_ += i;
    staged_bytes_ += bytes;
    return i;
  }

  // Any other chain. False: leave it for the next peek (no room in the pool), or the ring broke.
  bool stage_chain(Batch& batch, PortWorkerCounters& drops, Head& head, uint32_t& steps) {
    const uint32_t first = batch.segments_used;
    Gather<Segment> gather(cursor_, batch.segments.data() + first, kMaxSegments - first);
    uint16_t slots = 1;
    const Walk walk = ring_.walk(head, slots, gather);
    steps += std::max<uint32_t>(gather.steps(), slots);
    if (walk == Walk::kBroken || (walk == Walk::kFull && first != 0)) return false;
    ring_.take(head.id, slots, 0);
    if (walk != Walk::kOk || gather.total() < header_bytes_) {
      this->malformed_.add(1);
      drops.drop_rx(DropReason::kMalformedDescriptor);
    } else if (gather.total() < header_bytes_ + kEthHeaderBytes) {
      drops.drop_rx(DropReason::kFrameTooShort);
    } else if (gather.total() > uint64_t{header_bytes_} + max_frame_bytes_) {
      drops.drop_rx(DropReason::kFrameTooLong);
    } else {
      Staged& staged = staged_[staged_count_++];
      staged.payload = nullptr;
      staged.len = static_cast<uint32_t>(gather.total()) - header_bytes_;
      staged.first_piece = static_cast<uint16_t>(first);
      staged.pieces = static_cast<uint16_t>(gather.count());
      batch.segments_used = first + gather.count();
      staged_bytes_ += staged.len;
      for (uint32_t i = first; i < std::min(first + 2, batch.segments_used); ++i) {
        prefetch_read(batch.segments[i].data);
        prefetch_read(batch.segments[i].data + std::min(batch.segments[i].len, 64U) - 1);
      }
    }
    return true;
  }

  // Load every head and make Frames of what was staged.
  void fill(Batch& batch, PortWorkerCounters& drops) {
    const uint32_t count = staged_count_;
    const uint32_t header_bytes = header_bytes_;
    Frame* frame = batch.frames.data();
    for (uint32_t i = 0; i < count; ++i) {
      const Staged staged = staged_[i];
      const uint32_t head_len = std::min(staged.len, kHeadBytes);
      VnetHeader header;
      frame->len = staged.len;
      frame->head_len = static_cast<uint16_t>(head_len);
      frame->head_offset = 0;
      frame->vlan = 0;
      frame->tci = 0;
      frame->tagged = false;
      frame->offload = false;
      if (staged.payload != nullptr) [[likely]] {
        copy_short(frame->head, staged.payload, head_len);
        if constexpr (kOffload) std::memcpy(&header, staged.payload - header_bytes, sizeof header);
        frame->segments = &frame->body;
        frame->segment_count = staged.len > kHeadBytes ? 1 : 0;
        frame->body = {staged.payload + kHeadBytes, staged.len - head_len};
      } else {
        fill_from_pieces(batch, staged, *frame, header);
      }
      if constexpr (kOffload) {
        if (!accept_net_header(rules_, header, frame->head, head_len, frame->len)) [[unlikely]] {
          drops.drop_rx(DropReason::kBadOffload);
          continue;
        }
        frame->offload = header.flags != 0;
        batch.may_have_offloads |= frame->offload;
      }
      frame->vnet = header;
      ++frame;
    }
    batch.count = static_cast<uint32_t>(frame - batch.frames.data());
  }

  // Header and head may be spread over any number of pieces, at any boundary (virtio 1.3 2.7.4).
  void fill_from_pieces(Batch& batch, const Staged& staged, Frame& frame, VnetHeader& header) {
    Segment* piece = &batch.segments[staged.first_piece];
    Segment* const end = piece + staged.pieces;
    std::array<uint8_t, kNetHeaderBytes> raw;
    consume(piece, raw.data(), header_bytes_);
    std::memcpy(&header, raw.data(), sizeof header);
    consume(piece, frame.head, frame.head_len);
    frame.segments = piece;
    frame.segment_count = static_cast<uint16_t>(end - piece);
    if constexpr (!kOffload) header = {};
  }
  // Copy `bytes` bytes from the pieces, which hold that many, and cut them off; `piece` ends at the first non-empty
  // one.
  static void consume(Segment*& piece, uint8_t* to, uint32_t bytes) {
    while (bytes > 0) {
      const uint32_t part = std::min(bytes, piece->len);
      std::memcpy(to, piece->data, part);
      to += part;
      bytes -= part;
      piece->data += part;
      piece->len -= part;
      if (piece->len == 0) ++piece;
    }
  }

  bool deliver_injected(Batch& batch) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < injected_count_; ++i) {
      Frame& frame = batch.frames[batch.count++];
      frame.len = injected_[i].len;
      frame.head_len = static_cast<uint16_t>(frame.len);
      frame.head_offset = 0;
      frame.segments = batch.segments.data();
      frame.segment_count = 0;
      frame.vlan = 0;
      frame.tci = 0;
      frame.tagged = false;
      frame.offload = false;
      frame.vnet = {};
      std::memcpy(frame.head, injected_[i].bytes.data(), frame.len);
      bytes += frame.len;
    }
    this->counters_->frames.add(injected_count_);
    this->counters_->bytes.add(bytes);
    injected_count_ = 0;
    return true;
  }

  const uint32_t max_frame_bytes_;
  const OffloadRules rules_;
  uint32_t staged_count_ = 0;
  uint64_t staged_bytes_ = 0;  // of the frames in staged_
  std::array<Staged, kMaxBatch> staged_;
  uint32_t injected_count_ = 0;
  std::array<Injected, 4> injected_;
};

}  // namespace sw
