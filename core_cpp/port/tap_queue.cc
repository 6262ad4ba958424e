// SPDX-License-Identifier: Apache-2.0
#include "port/tap_queue.h"

#include <poll.h>
#include <unistd.h>

#include <utility>

#include "base/clock.h"

namespace sw {

TapRx::TapRx(int fd, Mapping bodies, QueueCounters& counters)
    : RxQueue(counters), fd_(fd), bodies_(std::move(bodies)), max_pause_tsc_(tsc_hz() / 1'000'000U * kMaxPauseUs) {}

// The poll took `cost_tsc`: pauses in proportion bound the share of the worker's time that an idle device can take.
void TapRx::found_nothing(uint64_t cost_tsc) {
  pause_tsc_ = std::min(std::max(2 * cost_tsc, 2 * pause_tsc_), max_pause_tsc_);
  next_poll_tsc_ = tsc_now() + pause_tsc_;
}

bool TapRx::peek(Batch& batch, PortWorkerCounters& drops) {
  const uint64_t start_tsc = tsc_now();
  if (pause_tsc_ != 0 && start_tsc < next_poll_tsc_) return false;
  kernel_drops.take_over(*counters_, drops);
  uint32_t taken = 0;
  uint64_t bytes = 0;
  for (; taken < kMaxBatch; ++taken) {
    Frame& frame = batch.frames[batch.count];
    auto* const body = reinterpret_cast<uint8_t*>(bodies_.data()) + size_t{batch.count} * kBodyBytes;
    TapHeader header;
    const iovec pieces[] = {{&header, sizeof header}, {frame.head, kHeadBytes}, {body, kBodyBytes}};
    const ssize_t got = ::readv(fd_, pieces, 3);
    // Nothing there (EAGAIN), or the device is gone (EBADFD), which the control side finds out by itself.
    if (got <= 0) break;
    if (static_cast<size_t>(got) < sizeof header + kEthHeaderBytes) {
      drops.drop_rx(DropReason::kFrameTooShort);
      continue;
    }
    const auto len = static_cast<uint32_t>(static_cast<size_t>(got) - sizeof header);
    bytes += len;
    if (len > kMaxFrameBytes) {
      drops.drop_rx(DropReason::kFrameTooLong);
      continue;
    }
    frame.len = len;
    frame.head_len = std::min(len, kHeadBytes);
    frame.segments = &batch.segments[batch.segments_used];
    frame.segment_count = 0;
    if (len > kHeadBytes) {
      batch.segments[batch.segments_used++] = {body, len - kHeadBytes};
      frame.segment_count = 1;
    }
    finish_received(frame, header.vnet);
    batch.may_have_offloads |= frame.offload;
    ++batch.count;
  }
  if (taken == 0) {
    found_nothing(tsc_now() - start_tsc);
    return false;
  }
  pause_tsc_ = 0;
  counters_->frames.add(taken);
  counters_->bytes.add(bytes);
  return true;
}

bool TapRx::arm() {
  // The descriptor needs no arming: it is readable as long as a frame waits.
  pollfd wait{fd_, POLLIN, 0};
  if (::poll(&wait, 1, 0) != 1 || (wait.revents & POLLIN) == 0) return false;
  pause_tsc_ = 0;  // the next peek must find it
  return true;
}

TapTx::TapTx(int fd, const OffloadCaps& caps, QueueCounters& counters)
    : TxQueue(counters), fd_(fd), linear_(kMaxFrameBytes) {
  caps_ = caps;
}

ssize_t TapTx::write_frame(const Frame& frame) {
  TapHeader header;
  header.vnet = header_for_kernel(frame);
  pieces_[0] = {&header, sizeof header};
  uint32_t count = 1;
  if (frame.segment_count + 2U <= kMaxIovecs) {
    count += gather(frame, &pieces_[1]);
  } else {
    copy_from_frame(frame, 0, linear_.data(), frame.len);
    pieces_[count++] = {linear_.data(), frame.len};
  }
  return ::writev(fd_, pieces_.data(), static_cast<int>(count));
}

uint32_t TapTx::send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) {
  uint64_t frames = 0;
  uint64_t bytes = 0;
  for (const uint8_t i : index) {
    const Frame& frame = batch.frames[i];
    if (write_frame(frame) >= 0) {
      ++frames;
      bytes += frame.len;
    } else {
      drops.drop_tx(reason_for_errno(errno));
    }
  }
  counters_->frames.add(frames);
  counters_->bytes.add(bytes);
  return static_cast<uint32_t>(index.size());
}

}  // namespace sw
