// SPDX-License-Identifier: Apache-2.0
// DeviceRxImpl: frames that a guest sends. Borrows them from the guest's transmitq and gives them back.
//
// Theory of operation. A cache line that the guest just wrote takes longer to arrive than everything we do with a
// frame, so peek works in two stages over the whole batch, and the first starts the loads of the second: turn
// descriptors into pointers and prefetch the first lines of every payload; load the heads. The common chain, one readable
// descriptor, takes a short path in both; anything else (several descriptors, indirect tables, buffers across regions)
// is gathered into the batch's segment pool. The virtio-net header is read only if an offload was negotiated: it usually
// lies in a line of its own. If lines come from far, those of the bodies are given back before release (line_watch.h).
//
// A batch ends by work, too (kTurnWork), and what is left waits for the queue's next turn: descriptors and kilobytes of frames
// that did not take the short path count, and small segments, which make many frames of few. A chain that is dropped is a
// batch of its own, so that frame n of a batch is always chain n and frames can be left to the next one.
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
        plain_bytes_(std::min(max_frame_bytes_, kPlainBytes)),
        rules_(driver_offloads(config.features)),
        bodies_(config.far_ticks) {}

  bool peek(Batch& batch, PortWorkerCounters& drops) override {
    batch_ = &batch;
    if (injected_count_ != 0) [[unlikely]] {
      return deliver_injected(batch);
    }
    if (ring_.is_idle()) return false;
    batch.divisible = true;
    taken_ = 0;
    const uint32_t staged = stage(batch, drops);
    if (taken_ == 0) [[unlikely]] {
      batch.clear();
      return false;
    }
    if (bodies_.due()) [[unlikely]]
      look_at_body(batch, staged);
    bytes_ = fill(batch, staged, drops);
    if (!this->enabled_) [[unlikely]] {  // vhost-user "Ring states": a started but disabled ring discards
      drops.drop_rx(DropReason::kQueueDisabled, batch.count);
      batch.count = 0;
    }
    return true;
  }

  void cancel(const Batch& batch) override {
    for (uint32_t i = batch.count; i < taken_; ++i) bytes_ -= batch.frames[i].len;
    keep_taken(batch.count);
  }
  // Counts, too: what was cancelled comes again.
  void release() override {
    if (bodies_.far()) [[unlikely]]
      give_back_bodies(*batch_);
    this->counters_->frames.add(taken_);
    this->counters_->bytes.add(bytes_);
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
  // What counts beyond the short path: half a dozen frames of 64 KB in 17 to 45 pieces are a turn.
  static constexpr uint32_t kDescriptorWork = 4;
  static constexpr uint32_t kBytesPerWork = 1024;
  // The longest frame of the short path, where bytes are not counted: a jumbo frame.
  static constexpr uint32_t kPlainBytes = 9728;

  // Take available chains: length and payload in their frames, pieces in the pool, prefetches under way. How many frames.
  uint32_t stage(Batch& batch, PortWorkerCounters& drops) {
    uint32_t staged = 0;
    do {
      const Taken run = stage_run(batch, staged);
      taken_ = staged += run.count;
      // None left is all there is: another look would only take the driver's line away while it writes the next ones.
      Head head;
      if (!run.left_one || !ring_.fetch(head)) break;
      if ((head.flags & kFlagsOfInterest) == 0 && cursor_.moves_to(head.addr, head.len)) {
        batch.work += kDescriptorWork;
        continue;
      }
      if (!stage_chain(batch, staged, drops, head)) break;
      taken_ = ++staged;
    } while (staged < kMaxBatch && batch.work < kTurnWork);
    return staged;
  }

  // The common chains at the read position: one readable descriptor, within the cursor's window, that holds header and
  // frame. Apart, so that it has the registers for itself.
  [[gnu::noinline]] Taken stage_run(Batch& batch, uint32_t staged) {
    const uint32_t header_bytes = header_bytes_;
    const uint32_t longest = plain_bytes_ - kEthHeaderBytes;
    const GuestCursor::Window window = cursor_.window();
    Frame* frame = batch.frames.data() + staged;
    return ring_.take_each(kMaxBatch - staged, [&](const Head& head, uint32_t& /*written*/) {
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
  }

  // Any other chain as frame `staged`. False: it ends the batch; if the batch has frames, it is left for the next peek.
  [[gnu::noinline]] bool stage_chain(Batch& batch, uint32_t staged, PortWorkerCounters& drops, Head& head) {
    const uint32_t first = batch.segments_used;
    Gather<Segment> gather(cursor_, batch.segments.data() + first, kMaxSegments - first);
    uint16_t slots = 1;
    const Walk walk = ring_.walk(head, slots, gather);
    const uint64_t total = gather.total();
    batch.work += std::max<uint32_t>(gather.work(), slots) * kDescriptorWork;
    if (walk == Walk::kBroken) return false;
    const uint32_t header_bytes = header_bytes_;
    if (walk == Walk::kOk && total >= header_bytes + kEthHeaderBytes && total <= header_bytes + max_frame_bytes_) {
      Frame& frame = batch.frames[staged];
      frame.len = static_cast<uint32_t>(total) - header_bytes;
      frame.body.data = nullptr;  // in pieces
      frame.segments = &batch.segments[first];
      frame.segment_count = static_cast<uint16_t>(gather.count());
      batch.segments_used = first + gather.count();
      batch.work += frame.len / kBytesPerWork;
      for (uint32_t i = first; i < std::min(first + 2, batch.segments_used); ++i) {
        prefetch_read(batch.segments[i].data);
        prefetch_read(batch.segments[i].data + std::min(batch.segments[i].len, 64U) - 1);
      }
      ring_.take(head.id, slots, 0);
      return true;
    }
    if (staged != 0) return false;
    ring_.take(head.id, slots, 0);
    taken_ = 1;
    if (walk != Walk::kOk || total < header_bytes) {
      this->malformed_.add(1);
      drops.drop_rx(DropReason::kMalformedDescriptor);
    } else {
      drops.drop_rx(total < header_bytes + kEthHeaderBytes ? DropReason::kFrameTooShort : DropReason::kFrameTooLong);
    }
    return false;
  }

  // Load the heads of `staged` frames and complete them. The bytes of those that were taken.
  uint64_t fill(Batch& batch, uint32_t staged, PortWorkerCounters& drops) {
    const uint32_t header_bytes = header_bytes_;
    Frame* frame = batch.frames.data();
    const Frame* const end = frame + staged;
    uint64_t bytes = 0;
    for (; frame != end; ++frame) {
      const uint32_t len = frame->len;
      const uint32_t head_len = std::min(len, kHeadBytes);
      const uint8_t* const payload = frame->body.data;
      VnetHeader header;
      frame->head_len = head_len;
      if (payload != nullptr) [[likely]] {
        copy_short(frame->head, payload, head_len);
        if constexpr (kOffload) std::memcpy(&header, payload - header_bytes, sizeof header);
        frame->segments = &frame->body;
        frame->segment_count = len > kHeadBytes ? 1 : 0;
        frame->body = {payload + kHeadBytes, len - head_len};
      } else {
        fill_from_pieces(batch, *frame, header);
      }
      frame->clear_marks();
      if constexpr (kOffload) {
        if (!accept_net_header(rules_, header, frame->head, head_len, len)) [[unlikely]] {
          bytes += end_at_bad_frame(static_cast<uint32_t>(frame - batch.frames.data()), len, drops);
          break;
        }
        frame->offload = header.flags != 0;
        batch.may_have_offloads |= frame->offload;
        frame->vnet = header;
        if (header.gso_type != VIRTIO_NET_HDR_GSO_NONE && ends_with_segments(batch, *frame)) [[unlikely]] {
          bytes += len;
          ++frame;
          break;
        }
      }
      bytes += len;
    }
    batch.count = static_cast<uint32_t>(frame - batch.frames.data());
    return bytes;
  }

  // How far is the last whole line of a staged frame's body, the one that prefetchers reach last?
  [[gnu::noinline, gnu::cold]] void look_at_body(const Batch& batch, uint32_t count) {
    constexpr uint32_t kLeast = kHeadBytes + kLeastBody;
    for (uint32_t i = 0; i < count && bodies_.wants_line(); ++i) {
      const Frame& staged = batch.frames[i];
      const Segment last = staged.body.data != nullptr ? Segment{staged.body.data, staged.len}
                                                       : staged.segments[staged.segment_count - 1];
      if (last.len >= kLeast) return bodies_.note(ticks_of_load(line_of(last.data + last.len) - kLineBytes));
    }
    bodies_.note_none();
  }

  // A frame that is dropped is alone, as any such chain: if it is not the first one it stays for the next batch. Its bytes
  // if it was taken.
  [[gnu::noinline, gnu::cold]] uint32_t end_at_bad_frame(uint32_t number, uint32_t bytes, PortWorkerCounters& drops) {
    keep_taken(std::max(number, 1U));
    if (number != 0) return 0;
    drops.drop_rx(DropReason::kBadOffload);
    return bytes;
  }
  // Counts the segments that are smaller than they need to be. True: with them the batch has cost enough.
  [[gnu::noinline]] bool ends_with_segments(Batch& batch, const Frame& frame) {
    const uint32_t work = segment_work(frame);
    batch.work += work;
    const auto kept = static_cast<uint32_t>(&frame - batch.frames.data()) + 1;
    if (work == 0 || batch.work < kTurnWork || kept == taken_) return false;
    keep_taken(kept);
    return true;
  }

  // All chains but the first `frames` of this batch stay with the guest.
  void keep_taken(uint32_t frames) {
    ring_.give_back(taken_ - frames);
    taken_ = frames;
  }

  // Header and head may be spread over any number of pieces, at any boundary (virtio 1.3 2.7.4).
  void fill_from_pieces(Batch& batch, Frame& frame, VnetHeader& header) {
    Segment* piece = &batch.segments[static_cast<size_t>(frame.segments - batch.segments.data())];
    Segment* const end = piece + frame.segment_count;
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
    taken_ = injected_count_;
    bytes_ = bytes;
    injected_count_ = 0;
    return true;
  }

  const uint32_t max_frame_bytes_;
  const uint32_t plain_bytes_;
  const OffloadRules rules_;
  LineWatch bodies_;
  const Batch* batch_ = nullptr;  // of the last peek
  uint32_t taken_ = 0;            // chains of the last peek, and the bytes of their frames
  uint64_t bytes_ = 0;
  uint32_t injected_count_ = 0;
  std::array<Injected, 4> injected_;
};

}  // namespace sw
