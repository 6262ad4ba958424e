// SPDX-License-Identifier: Apache-2.0
// DeviceTxImpl: frames for a guest. Copies them into the buffers of the guest's receiveq.
//
// Theory of operation. One pass reads the first descriptors of as many buffers as there are frames, so that those loads
// overlap; then each frame is written to its buffer: header, head, body. A frame that does not fit one writable
// descriptor takes the long path: its buffers (several with VIRTIO_NET_F_MRG_RXBUF) are gathered first and taken only
// if all of them are there, because they must be returned together. The virtio-net header is compared before it is
// written: in a steady flow it does not change, and its cache line then stays with the guest.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "base/bytes.h"
#include "virtio/copy.h"
#include "virtio/device_chain.h"
#include "virtio/device_queue.h"
#include "virtio/dirty_log.h"

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
      : Base(config, counters, ring_args...), log_(config.log) {
    this->caps_ = device_tx_caps(config.features);
  }

  uint32_t send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) override {
    if (!this->enabled_) [[unlikely]] {
      return 0;
    }
    std::array<Head, kMaxBatch> heads;
    const auto wanted = static_cast<uint32_t>(index.size());
    uint32_t done = 0;
    sent_ = 0;
    sent_bytes_ = 0;
    steps_ = 0;
    Next next = Next::kGoOn;
    while (done < wanted && next != Next::kStop) {
      const uint32_t count = ring_.fetch(heads.data(), std::min(wanted - done, kMaxBatch));
      if (count == 0) break;
      uint32_t i = 0;
      next = Next::kGoOn;
      while (i < count && next == Next::kGoOn) {
        const uint32_t run = send_run(batch, index.data() + done, heads.data() + i, count - i);
        i += run;
        done += run;
        if (i == count) break;
        next = send_long(batch.frames[index[done]], drops);
        if (next != Next::kStop) ++done;
        ++i;
      }
    }
    ring_.publish();
    this->counters_->frames.add(sent_);
    this->counters_->bytes.add(sent_bytes_);
    return done;
  }

 private:
  enum class Next : uint8_t {
    kGoOn,
    kFetch,  // the frame is dealt with, but the ring position is no longer where the fetched heads say
    kStop,   // the frame is not dealt with: no room, or the ring broke
  };

  // Descriptors looked at in one send beyond the simple ones.
  static constexpr uint32_t kMaxSteps = 16 * kMaxChain;

  // The buffers at the beginning of `heads` that are one writable descriptor in one region, as host pointers. How many.
  uint32_t locate_run(const Head* heads, uint32_t count, uint8_t** to) {
    GuestCursor::Window window = cursor_.window();
    for (uint32_t i = 0; i < count; ++i) {
      const Head& head = heads[i];
      if ((head.flags & kFlagsOfInterest) != VRING_DESC_F_WRITE) [[unlikely]]
        return i;
      uint8_t* start = window.whole(head.addr, head.len);
      if (start == nullptr) [[unlikely]] {
        start = cursor_.whole(head.addr, head.len);
        if (start == nullptr) return i;
        window = cursor_.window();
      }
      to[i] = start;
      prefetch_read(start);
    }
    return count;
  }

  // The common case: frames that fit one writable descriptor each. How many of `index` went into the first of `heads`.
  uint32_t send_run(const Batch& batch, const uint8_t* index, const Head* heads, uint32_t count) {
    std::array<uint8_t*, kMaxBatch> to;
    std::array<uint32_t, kMaxBatch> lens;
    count = locate_run(heads, count, to.data());
    const uint32_t header_bytes = header_bytes_;
    uint64_t bytes = 0;
    uint32_t i = 0;
    for (; i < count; ++i) {
      const Frame& frame = batch.frames[index[i]];
      const uint32_t need = header_bytes + frame.len;
      if (heads[i].len < need) [[unlikely]]
        break;
      write_header(to[i], header_bytes, frame);
      write_frame(to[i] + header_bytes, frame);
      if constexpr (kLog) log_->mark(heads[i].addr, need);
      lens[i] = need;
      bytes += frame.len;
    }
    ring_.template take_run<true>(heads, lens.data(), i);
    sent_ += i;
    sent_bytes_ += bytes;
    return i;
  }

  static void write_frame(uint8_t* at, const Frame& frame) {
    copy_short(at, frame.data(), frame.head_len);
    at += frame.head_len;
    uint32_t left = frame.len - frame.head_len;
    for (const Segment* segment = frame.segments; left != 0; ++segment) {
      std::memcpy(at, segment->data, segment->len);
      at += segment->len;
      left -= segment->len;
    }
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

  // A frame for several descriptors or several buffers, or a buffer that is not as it should be.
  Next send_long(const Frame& frame, PortWorkerCounters& drops) {
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
        return Next::kFetch;
      }
      if (walk == Walk::kBad) {
        ring_.empty_since(mark);
        this->malformed_.add(1);
        continue;
      }
      ring_.rollback(mark);
      if (walk != Walk::kFull) return Next::kStop;
      drops.drop_tx(DropReason::kBufferTooSmall);
      return Next::kFetch;
    }
    return Next::kStop;
  }

  // Collect and take buffers for `need` bytes. kOk: all there; kFull: this frame will never fit; kBad: the last one
  // taken is bad; kBroken: no more buffers now, too much to look at, or the ring broke.
  Walk gather_buffers(uint32_t need, uint32_t& pieces, uint32_t& buffers, uint64_t& total) {
    while (total < need) {
      if (buffers == kMaxTaken || (!kMergeable && buffers == 1)) return Walk::kFull;
      Head head;
      if (steps_ >= kMaxSteps || ring_.fetch(&head, 1) == 0) return Walk::kBroken;
      Gather<WritePiece> gather(cursor_, pieces_.data() + pieces, kMaxChain - pieces);
      uint16_t slots = 1;
      const Walk walk = ring_.walk(head, slots, gather);
      steps_ += std::max<uint32_t>(gather.steps(), slots);
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
      if (filled < piece->len)
        copy_from_frame(frame, at + filled - header_bytes_, piece->data + filled, piece->len - filled);
      if constexpr (kLog) log_->mark(piece->guest, piece->len);
      at += piece->len;
    }
  }

  void count_sent(const Frame& frame) {
    ++sent_;
    sent_bytes_ += frame.len;
  }

  const std::shared_ptr<DirtyLog> log_;  // non-null if kLog
  uint32_t sent_ = 0;                    // of the send() under way
  uint64_t sent_bytes_ = 0;
  uint32_t steps_ = 0;
  std::array<WritePiece, kMaxChain> pieces_;
};

}  // namespace sw
