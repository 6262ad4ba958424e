// SPDX-License-Identifier: Apache-2.0
// DeviceRxImpl: frames that a guest sends. Borrows them from the guest's transmitq and gives them back.
//
// Theory of operation. A cache line that the guest just wrote takes longer to arrive than everything we do with a
// frame, so peek works in two stages over the whole batch, and the first starts the loads of the second: turn
// descriptors into pointers and prefetch the first lines of every payload; load the heads. The common chain, one readable
// descriptor, takes a short path in both; anything else (several descriptors, indirect tables, buffers across regions)
// is gathered into the batch's segment pool. The virtio-net header is read only if an offload was negotiated: it usually
// lies in a line of its own. If lines come from far, those of the bodies are given back before release (line_watch.h).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "base/cache_line.h"
#include "virtio/copy.h"
#include "virtio/device_chain.h"
#include "virtio/device_queue.h"
#include "virtio/line_watch.h"
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
        rules_(driver_offloads(config.features)),
        bodies_(config.far_ticks) {}

  bool peek(Batch& batch, PortWorkerCounters& drops) override {
    batch_ = &batch;
    if (injected_count_ != 0) [[unlikely]] {
      return deliver_injected(batch);
    }
    if (ring_.is_idle()) return false;
    staged_count_ = 0;
    const uint32_t taken = stage(batch, drops);
    if (taken == 0) return false;
    if (bodies_.due()) [[unlikely]]
      look_at_body(batch);
    this->counters_->frames.add(taken);
    this->counters_->bytes.add(fill(batch, drops));
    if (!this->enabled_) [[unlikely]] {  // vhost-user "Ring states": a started but disabled ring discards
      drops.drop_rx(DropReason::kQueueDisabled, batch.count);
      batch.count = 0;
    }
    return true;
  }

  void release() override {
    if (bodies_.far()) [[unlikely]]
      give_back_bodies(*batch_);
    ring_.publish();
  }
  [[nodiscard]] uint32_t line_ticks() const override { return bodies_.ticks(); }

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
  struct Injected {
    uint32_t len;
    std::array<uint8_t, kHeadBytes> bytes;
  };
  // Descriptors looked at in one peek, so that one guest's strange chains cannot hold up the others.
  static constexpr uint32_t kMaxSteps = 2 * kMaxChain;

  // Take available chains: length and payload in their frames, pieces in the pool, prefetches under way. How many.
  uint32_t stage(Batch& batch, PortWorkerCounters& drops) {
    uint32_t taken = 0;
    uint32_t steps = 0;
    while (taken < kMaxBatch && steps < kMaxSteps) {
      const Taken run = stage_run(batch, kMaxBatch - taken);
      taken += run.count;
      // None left is all there is: another look would only take the driver's line away while it writes the next ones.
      Head head;
      if (!run.left_one || !ring_.fetch(head)) break;
      if ((head.flags & kFlagsOfInterest) == 0 && cursor_.moves_to(head.addr, head.len)) {
        ++steps;
        continue;
      }
      if (!stage_chain(batch, drops, head, steps)) break;
      ++taken;
    }
    return taken;
  }

  // The common chains at the read position: one readable descriptor, within the cursor's window, that holds header and
  // frame.
  Taken stage_run(Batch& batch, uint32_t most) {
    const uint32_t header_bytes = header_bytes_;
    const uint32_t longest = max_frame_bytes_ - kEthHeaderBytes;
    const GuestCursor::Window window = cursor_.window();
    Frame* frame = batch.frames.data() + staged_count_;
    const Taken taken = ring_.take_each(most, [&](const Head& head, uint32_t& /*written*/) {
      const uint32_t len = head.len - header_bytes;  // wraps to something huge when the header does not fit
      if ((head.flags & kFlagsOfInterest) != 0 || len - kEthHeaderBytes > longest) [[unlikely]]
        return false;
      if (!window.holds_short(head.addr, head.len)) [[unlikely]]
        return false;
      const uint8_t* const start = window.at(head.addr);
      const uint8_t* const payload = start + header_bytes;
      if constexpr (kOffload) prefetch_read(start);
      prefetch_read(payload);
      prefetch_read(payload + std::min(len, kHeadBytes) - 1);
      frame->len = len;
      frame->body.data = payload;
      ++frame;
      return true;
    });
    staged_count_ += taken.count;
    return taken;
  }

  // Any other chain. False: leave it for the next peek (no room in the pool), or the ring broke.
  bool stage_chain(Batch& batch, PortWorkerCounters& drops, Head& head, uint32_t& steps) {
    const uint32_t first = batch.segments_used;
    Gather<Segment> gather(cursor_, batch.segments.data() + first, kMaxSegments - first);
    uint16_t slots = 1;
    const Walk walk = ring_.walk(head, slots, gather);
    steps += std::max<uint32_t>(gather.work(), slots);
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
      Frame& staged = batch.frames[staged_count_++];
      staged.len = static_cast<uint32_t>(gather.total()) - header_bytes_;
      staged.body.data = nullptr;  // in pieces
      staged.segments = &batch.segments[first];
      staged.segment_count = static_cast<uint16_t>(gather.count());
      batch.segments_used = first + gather.count();
      for (uint32_t i = first; i < std::min(first + 2, batch.segments_used); ++i) {
        prefetch_read(batch.segments[i].data);
        prefetch_read(batch.segments[i].data + std::min(batch.segments[i].len, 64U) - 1);
      }
    }
    return true;
  }

  // Load every head and complete the frames that were staged, in place, or further front behind one that is dropped. The
  // bytes of all that were staged.
  uint64_t fill(Batch& batch, PortWorkerCounters& drops) {
    const uint32_t header_bytes = header_bytes_;
    const Frame* staged = batch.frames.data();
    const Frame* const end = staged + staged_count_;
    Frame* frame = batch.frames.data();
    uint64_t bytes = 0;
    for (; staged != end; ++staged) {
      const uint32_t len = staged->len;
      const uint32_t head_len = std::min(len, kHeadBytes);
      const uint8_t* const payload = staged->body.data;
      VnetHeader header;
      bytes += len;
      frame->len = len;
      frame->head_len = head_len;
      if (payload != nullptr) [[likely]] {
        copy_short(frame->head, payload, head_len);
        if constexpr (kOffload) std::memcpy(&header, payload - header_bytes, sizeof header);
        frame->segments = &frame->body;
        frame->segment_count = len > kHeadBytes ? 1 : 0;
        frame->body = {payload + kHeadBytes, len - head_len};
      } else {
        fill_from_pieces(batch, *staged, *frame, header);
      }
      frame->clear_marks();
      if constexpr (kOffload) {
        if (!accept_net_header(rules_, header, frame->head, head_len, len)) [[unlikely]] {
          drops.drop_rx(DropReason::kBadOffload);
          continue;
        }
        frame->offload = header.flags != 0;
        batch.may_have_offloads |= frame->offload;
        frame->vnet = header;
      }
      ++frame;
    }
    batch.count = static_cast<uint32_t>(frame - batch.frames.data());
    return bytes;
  }

  // How far is the last whole line of a staged frame's body, the one that prefetchers reach last?
  [[gnu::noinline, gnu::cold]] void look_at_body(const Batch& batch) {
    constexpr uint32_t kLeast = kHeadBytes + kLeastBody;
    for (uint32_t i = 0; i < staged_count_ && bodies_.wants_line(); ++i) {
      const Frame& staged = batch.frames[i];
      const Segment last = staged.body.data != nullptr ? Segment{staged.body.data, staged.len}
                                                       : staged.segments[staged.segment_count - 1];
      if (last.len >= kLeast) return bodies_.note(ticks_of_load(line_of(last.data + last.len) - kLineBytes));
    }
    bodies_.note_none();
  }

  // Header and head may be spread over any number of pieces, at any boundary (virtio 1.3 2.7.4).
  void fill_from_pieces(Batch& batch, const Frame& staged, Frame& frame, VnetHeader& header) {
    Segment* piece = &batch.segments[static_cast<size_t>(staged.segments - batch.segments.data())];
    Segment* const end = piece + staged.segment_count;
    std::array<uint8_t, kNetHeaderBytes> raw;
    consume(piece, raw.data(), header_bytes_);
    if constexpr (kOffload) std::memcpy(&header, raw.data(), sizeof header);
    consume(piece, frame.head, frame.head_len);
    frame.segments = piece;
    frame.segment_count = static_cast<uint16_t>(end - piece);
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
      frame.head_len = frame.len;
      frame.segments = batch.segments.data();
      frame.segment_count = 0;
      frame.clear_marks();
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
  LineWatch bodies_;
  const Batch* batch_ = nullptr;  // of the last peek
  uint32_t staged_count_ = 0;     // frames of the batch between stage() and fill(): length and where the payload is
  uint32_t injected_count_ = 0;
  std::array<Injected, 4> injected_;
};

}  // namespace sw
