// SPDX-License-Identifier: Apache-2.0
// DeviceTxImpl: frames for a guest. Copies them into the buffers of the guest's receiveq.
//
// Theory of operation. One loop takes as many buffers as there are frames, so that the loads of their descriptors overlap;
// then each frame is written to its buffer: header, head, body. A frame that does not fit one writable
// descriptor takes the long path: its buffers (several with VIRTIO_NET_F_MRG_RXBUF) are gathered first and taken only
// if all of them are there, because they must be returned together. The virtio-net header is compared before it is
// written: in a steady flow it does not change, and its cache line then stays with the guest. If lines go far,
// bodies are written past the cache (line_watch.h).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "base/bytes.h"
#include "base/cache_line.h"
#include "virtio/copy.h"
#include "virtio/device_chain.h"
#include "virtio/device_queue.h"
#include "virtio/dirty_log.h"
#include "virtio/line_watch.h"

namespace sw {

// What the driver accepts unfinished (virtio 1.3 5.1.3.1: TSO and USO need GUEST_CSUM).
constexpr OffloadCaps device_tx_caps(uint64_t features) {
  OffloadCaps caps;
  caps.checksum = has_feature(features, VIRTIO_NET_F_GUEST_CSUM);
  caps.tso4 = caps.checksum && has_feature(features, VIRTIO_NET_F_GUEST_TSO4);
  caps.tso6 = caps.checksum && has_feature(features, VIRTIO_NET_F_GUEST_TSO6);
  caps.ecn = (caps.tso4 || caps.tso6) && has_feature(features, VIRTIO_NET_F_GUEST_ECN);
  caps.uso =
      caps.checksum && has_feature(features, VIRTIO_NET_F_GUEST_USO4) && has_feature(features, VIRTIO_NET_F_GUEST_USO6);
  return caps;
}

template <class Ring, bool kMergeable, bool kOffload, bool kLog>
class DeviceTxImpl final : public DeviceQueue<DeviceTx, Ring> {
  using Base = DeviceQueue<DeviceTx, Ring>;
  using Base::cursor_;
  using Base::header_bytes_;
  using Base::ring_;

 public:
  template <class... RingArgs>
  DeviceTxImpl(const DeviceRingConfig& config, QueueCounters& counters, RingArgs... ring_args)
      : Base(config, counters, ring_args...), log_(config.log), bodies_(config.far_ticks) {
    this->caps_ = device_tx_caps(config.features);
  }

  uint32_t send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) override {
    if (!this->enabled_) [[unlikely]] {
      return 0;
    }
    if (bodies_.due()) [[unlikely]]
      begin_look();
    far_or_look_ = bodies_.far() || looking_;
    const auto wanted = static_cast<uint32_t>(index.size());
    uint32_t done = 0;
    sent_ = 0;
    sent_bytes_ = 0;
    steps_ = 0;
    while (done < wanted) {
      const Taken run = send_run(batch, index.data() + done, wanted - done);
      done += run.count;
      if (!run.left_one) break;
      if (is_elsewhere()) continue;
      if (!send_long(batch.frames[index[done]], drops)) break;
      ++done;
    }
    if (far_or_look_) [[unlikely]]
      end_far();
    ring_.publish();
    this->counters_->frames.add(sent_);
    this->counters_->bytes.add(sent_bytes_);
    return done;
  }
  [[nodiscard]] uint32_t line_ticks() const override { return bodies_.ticks(); }

 private:
  // Descriptors looked at in one send beyond the simple ones.
  static constexpr uint32_t kMaxSteps = 4 * kMaxChain;

  // The next buffer stopped send_run() only because it lies in another region, which the cursor has moved to now.
  bool is_elsewhere() {
    Head head;
    if (steps_ >= kMaxSteps || !ring_.fetch(head)) return false;
    if ((head.flags & kFlagsOfInterest) != VRING_DESC_F_WRITE || !cursor_.moves_to(head.addr, head.len)) return false;
    ++steps_;
    return true;
  }

  // The common case: frames that fit one writable descriptor each, within the cursor's window. First all buffers are taken
  // and their headers' lines asked for, then they are written.
  Taken send_run(const Batch& batch, const uint8_t* index, uint32_t count) {
    struct Buffer {
      const Frame* frame;
      uint8_t* start;
    };
    std::array<Buffer, kMaxBatch> buffers;
    std::array<uint64_t, kLog ? kMaxBatch : 1> guest;
    const uint32_t header_bytes = header_bytes_;
    const GuestCursor::Window window = cursor_.window();
    Buffer* next = buffers.data();
    const Taken taken = ring_.take_each(count, [&](const Head& head, uint32_t& written) {
      const Frame& frame = batch.frames[*index];
      const uint32_t need = header_bytes + frame.len;
      constexpr uint32_t kLongest = GuestCursor::kShortBytes - kMaxFrameBytes - sizeof(VnetHeaderMrg);
      const bool fits = head.len - need <= kLongest;  // wraps to something huge when it does not
      if ((head.flags & kFlagsOfInterest) != VRING_DESC_F_WRITE || !fits) [[unlikely]]
        return false;
      if (!window.holds_short(head.addr, head.len)) [[unlikely]]
        return false;
      uint8_t* const start = window.at(head.addr);
      prefetch_read(start);
      if constexpr (kLog) guest[static_cast<size_t>(next - buffers.data())] = head.addr;
      *next++ = {&frame, start};
      ++index;
      written = need;
      return true;
    });
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < taken.count; ++i) {
      const Frame& frame = *buffers[i].frame;
      uint8_t* const start = buffers[i].start;
      write_header(start, header_bytes, frame);
      write_frame(start + header_bytes, frame);
      if constexpr (kLog) log_->mark(guest[i], header_bytes + frame.len);
      bytes += frame.len;
    }
    sent_bytes_ += bytes;
    sent_ += taken.count;
    return taken;
  }

  void write_frame(uint8_t* at, const Frame& frame) {
    copy_short(at, frame.data(), frame.head_len);
    const uint32_t left = frame.len - frame.head_len;
    if (left != 0) write_body(at + frame.head_len, frame.segments, left);
  }
  // Apart, so that the loop over short frames keeps its registers.
  [[gnu::noinline]] void write_body(uint8_t* at, const Segment* segment, uint32_t left) {
    if (far_or_look_) [[unlikely]]
      return write_far_body(at, segment, left);
    if (segment->len == left) [[likely]] {
      std::memcpy(at, segment->data, left);
      return;
    }
    for (; left != 0; ++segment) {
      std::memcpy(at, segment->data, segment->len);
      at += segment->len;
      left -= segment->len;
    }
  }

  [[gnu::noinline, gnu::cold]] void write_far_body(uint8_t* at, const Segment* segment, uint32_t left) {
    auto* copy = plain_copy;
    if (left >= kLeastBody) {
      look_at(at, left);
      if (bodies_.far()) copy = stream_copy;
    }
    for (; left != 0; at += segment->len, left -= segment->len, ++segment) copy(at, segment->data, segment->len);
  }

  // Without offloads every frame of every lap has the same header: compare, write only what differs.
  static void write_header(uint8_t* to, uint32_t header_bytes, const Frame& frame) {
    VnetHeaderMrg header{};
    if constexpr (kOffload) {
      if (frame.offload) [[unlikely]]
        header.base = frame.vnet;
    }
    header.num_buffers = 1;
    const auto first = load_unaligned<uint64_t>(&header);
    if (load_unaligned<uint64_t>(to) != first) store_unaligned(to, first);
    if (header_bytes == kNetHeaderBytes) {
      const auto last = load_unaligned<uint32_t>(reinterpret_cast<const uint8_t*>(&header) + 8);
      if (load_unaligned<uint32_t>(to + 8) != last) store_unaligned(to + 8, last);
    } else if (load_unaligned<uint16_t>(to + 8) != header.base.csum_offset) {
      store_unaligned(to + 8, header.base.csum_offset);
    }
  }

  // A frame for several descriptors or several buffers, or a buffer that is not as it should be. False: the frame is not
  // dealt with: no room, or the ring broke.
  bool send_long(const Frame& frame, PortWorkerCounters& drops) {
    const uint32_t need = header_bytes_ + frame.len;
    // Bad buffers go back empty. A guest whose buffers cost too much to look at gets no more frames in this call.
    while (steps_ < kMaxSteps) {
      ring_.reserve_taken(kMaxTaken);
      const uint32_t mark = ring_.mark();
      uint32_t pieces = 0;
      uint32_t buffers = 0;
      uint64_t total = 0;
      const Walk walk = gather_buffers(need, pieces, buffers, total);
      if (walk == Walk::kOk) {
        write_pieces(frame, need, buffers);
        count_sent(frame);
        return true;
      }
      if (walk == Walk::kBad) {
        ring_.empty_since(mark);
        this->malformed_.add(1);
        continue;
      }
      ring_.rollback(mark);
      if (walk != Walk::kFull) return false;
      drops.drop_tx(DropReason::kBufferTooSmall);
      return true;
    }
    return false;
  }

  // Collect and take buffers for `need` bytes. kOk: all there; kFull: this frame will never fit; kBad: the last one
  // taken is bad; kBroken: no more buffers now, too much to look at, or the ring broke.
  Walk gather_buffers(uint32_t need, uint32_t& pieces, uint32_t& buffers, uint64_t& total) {
    while (total < need) {
      if (buffers == kMaxTaken || (!kMergeable && buffers == 1)) return Walk::kFull;
      Head head;
      if (steps_ >= kMaxSteps || !ring_.fetch(head)) return Walk::kBroken;
      Gather<WritePiece> gather(cursor_, pieces_.data() + pieces, kMaxChain - pieces);
      uint16_t slots = 1;
      const Walk walk = ring_.walk(head, slots, gather);
      steps_ += std::max<uint32_t>(gather.work(), slots);
      // Full is fine if what was gathered suffices: the rest of the chain stays untouched.
      const bool enough = walk == Walk::kFull && total + gather.total() >= need;
      if (walk != Walk::kOk && walk != Walk::kBad && !enough) return walk;
      const auto fill = static_cast<uint32_t>(std::min(gather.total(), need - total));
      ring_.take(head.id, slots, fill);
      if (walk == Walk::kBad || gather.total() < (buffers == 0 ? header_bytes_ : 1)) return Walk::kBad;
      trim(pieces_.data() + pieces, gather.count(), fill, pieces);
      total += fill;
      ++buffers;
    }
    return Walk::kOk;
  }
  // Keep the first `bytes` bytes of the new pieces.
  static void trim(WritePiece* piece, uint32_t count, uint32_t bytes, uint32_t& pieces) {
    for (uint32_t i = 0; i < count && bytes > 0; ++i, ++piece, ++pieces) {
      piece->len = std::min(piece->len, bytes);
      bytes -= piece->len;
    }
  }

  void write_pieces(const Frame& frame, uint32_t need, uint32_t buffers) {
    VnetHeaderMrg header{};
    if constexpr (kOffload) {
      if (frame.offload) header.base = frame.vnet;
    }
    header.num_buffers = static_cast<uint16_t>(buffers);
    const auto* const header_raw = reinterpret_cast<const uint8_t*>(&header);
    uint32_t at = 0;
    for (const WritePiece* piece = pieces_.data(); at < need; ++piece) {
      uint32_t filled = 0;
      if (at < header_bytes_) {
        filled = std::min(piece->len, header_bytes_ - at);
        std::memcpy(piece->data, header_raw + at, filled);
      }
      if (filled < piece->len) {
        const uint32_t left = piece->len - filled;
        if (far_or_look_ && left >= kLeastBody) [[unlikely]]
          look_at(piece->data + filled, left);
        copy_from_frame(frame, at + filled - header_bytes_, piece->data + filled, left,
                        bodies_.far() ? stream_copy : plain_copy);
      }
      if constexpr (kLog) log_->mark(piece->guest, piece->len);
      at += piece->len;
    }
  }

  // How far are the lines that the guest read? Seen in one send, in the first body that is long enough.
  [[gnu::noinline, gnu::cold]] void begin_look() {
    looking_ = bodies_.wants_line();
    if (!looking_) bodies_.note_none();
  }
  // `bytes` from `at` on are about to be written.
  void look_at(uint8_t* at, uint32_t bytes) {
    if (!looking_) return;
    looking_ = false;
    bodies_.note(ticks_of_store(at + bytes - kLineBytes));
  }
  [[gnu::noinline, gnu::cold]] void end_far() {
    stream_fence();  // what was copied past the cache is there before publish() says so
    if (looking_) bodies_.note_none();
    looking_ = false;
  }

  void count_sent(const Frame& frame) {
    ++sent_;
    sent_bytes_ += frame.len;
  }

  const std::shared_ptr<DirtyLog> log_;  // non-null if kLog
  LineWatch bodies_;
  bool looking_ = false;      // a line is wanted for bodies_
  bool far_or_look_ = false;  // either, since this send() began: one test for frames of every day
  uint32_t sent_ = 0;         // of the send() under way
  uint64_t sent_bytes_ = 0;
  uint32_t steps_ = 0;
  std::array<WritePiece, kMaxChain> pieces_;
};

}  // namespace sw
