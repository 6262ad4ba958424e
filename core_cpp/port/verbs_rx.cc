// SPDX-License-Identifier: Apache-2.0
#ifdef SW_HAVE_VERBS
#include "port/verbs_rx.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "port/kernel_frame.h"

namespace sw {

VerbsRx::VerbsRx(Source source, const VerbsSlots& slots, bool checksum, const VerbsCalls& calls,
                 QueueCounters& counters)
    : RxQueue(counters),
      source_(source),
      cq_(source.cq()),
      slots_(slots),
      checksum_(checksum),
      calls_(calls),
      posted_(slots.count, 0) {
  free_.reserve(slots.count);
  for (uint32_t slot = slots.count; slot > 0; --slot) free_.push_back(slot - 1);
  for (uint32_t i = 0; i < kMaxBatch; ++i) {
    pieces_[i] = {0, slots_.slot_bytes, slots_.lkey};
    requests_[i] = {0, nullptr, &pieces_[i], 1};
  }
  if (cq_->channel == nullptr || calls_.get_cq_event == nullptr || calls_.ack_cq_events == nullptr) return;
  const int flags = ::fcntl(cq_->channel->fd, F_GETFL);
  if (flags >= 0 && ::fcntl(cq_->channel->fd, F_SETFL, flags | O_NONBLOCK) == 0) wake_fd_ = cq_->channel->fd;
}

int VerbsRx::post(ibv_recv_wr* first, ibv_recv_wr** bad) const {
  return source_.wq != nullptr ? ibv_post_wq_recv(source_.wq, first, bad) : ibv_post_recv(source_.qp, first, bad);
}

// What the device refuses for want of room (ENOMEM) stays free and is tried again.
void VerbsRx::post_free() {
  while (!free_.empty()) {
    const auto count = static_cast<uint32_t>(std::min<size_t>(free_.size(), kMaxBatch));
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t slot = free_[free_.size() - 1 - i];
      pieces_[i].addr = reinterpret_cast<uintptr_t>(slots_.at(slot));
      requests_[i].wr_id = slot;
      requests_[i].next = i + 1 < count ? &requests_[i + 1] : nullptr;
    }
    ibv_recv_wr* bad = nullptr;
    const int error = post(requests_.data(), &bad);
    uint32_t done = count;
    if (error != 0)
      done = bad >= &requests_[0] && bad < &requests_[0] + count ? static_cast<uint32_t>(bad - &requests_[0]) : 0;
    for (uint32_t i = 0; i < done; ++i) {
      posted_[free_.back()] = 1;
      free_.pop_back();
    }
    if (error == 0) continue;
    if (error != ENOMEM) fault_.set(VerbsFault::Kind::kReceivePost, error);
    return;
  }
}

Result<void> VerbsRx::post_all() {
  post_free();
  if (fault_.is_set()) return Error{0, fault_.text()};
  if (free_.size() == slots_.count) return Error{0, "the device takes no receive buffers"};
  return {};
}

int VerbsRx::poll() {
  const int count = ibv_poll_cq(cq_, static_cast<int>(kMaxBatch), wc_.data());
  if (count >= 0 && count <= static_cast<int>(kMaxBatch)) return count;
  fault_.set(VerbsFault::Kind::kCompletions, count);
  return 0;
}

void VerbsRx::fill(const ibv_wc& wc, Batch& batch) {
  const uint8_t* const data = slots_.at(static_cast<uint32_t>(wc.wr_id));
  Frame& frame = batch.frames[batch.count++];
  const uint32_t in_head = std::min(wc.byte_len, kHeadBytes);
  std::memcpy(frame.head, data, in_head);
  frame.len = wc.byte_len;
  frame.head_len = in_head;
  frame.segments = &batch.segments[batch.segments_used];
  frame.segment_count = 0;
  if (wc.byte_len > in_head) {
    batch.segments[batch.segments_used++] = {data + in_head, wc.byte_len - in_head};
    frame.segment_count = 1;
  }
  VnetHeader vnet;
  const bool verified = checksum_ && (wc.wc_flags & IBV_WC_IP_CSUM_OK) != 0;
  if (verified) vnet.flags = VIRTIO_NET_HDR_F_DATA_VALID;
  finish_received(frame, vnet);
  frame.offload = verified;  // the header goes along: nothing is left to do, but there is something to tell
  batch.may_have_offloads |= verified;
}

void VerbsRx::take(const ibv_wc& wc, Batch& batch, PortWorkerCounters& drops) {
  if (wc.wr_id >= slots_.count || posted_[wc.wr_id] == 0) {
    fault_.set(VerbsFault::Kind::kCompletion, static_cast<int>(wc.wr_id));
    return;
  }
  posted_[wc.wr_id] = 0;
  taken_[taken_count_++] = static_cast<uint32_t>(wc.wr_id);
  if (wc.status != IBV_WC_SUCCESS) {
    fault_.set(VerbsFault::Kind::kStatus, wc.status);
    if (wc.status != IBV_WC_LOC_LEN_ERR) return;  // the request ended, no frame was there
    ++frames_;
    drops.drop_rx(DropReason::kFrameTooLong);
    return;
  }
  if (wc.byte_len > slots_.slot_bytes) {
    fault_.set(VerbsFault::Kind::kCompletion, static_cast<int>(wc.byte_len));
    return;
  }
  ++frames_;
  bytes_ += wc.byte_len;
  if (wc.byte_len < kEthHeaderBytes) {
    drops.drop_rx(DropReason::kFrameTooShort);
  } else {
    fill(wc, batch);
  }
}

bool VerbsRx::peek(Batch& batch, PortWorkerCounters& drops) {
  if (fault_.is_set()) return false;
  uint32_t count = stashed_;
  stashed_ = 0;
  if (count == 0) count = static_cast<uint32_t>(poll());
  if (count == 0) {
    if (free_.size() >= kPostChain) post_free();  // the device had no room for them
    return false;
  }
  for (uint32_t i = 0; i < count; ++i) {
    if (wc_[i].wr_id >= slots_.count) continue;
    const uint8_t* const data = slots_.at(static_cast<uint32_t>(wc_[i].wr_id));
    __builtin_prefetch(data);
    __builtin_prefetch(data + 64);
  }
  frames_ = 0;
  bytes_ = 0;
  for (uint32_t i = 0; i < count; ++i) take(wc_[i], batch, drops);
  counters_->frames.add(frames_);
  counters_->bytes.add(bytes_);
  return true;
}

void VerbsRx::release() {
  for (uint32_t i = 0; i < taken_count_; ++i) free_.push_back(taken_[i]);  // has room for all: no allocation
  taken_count_ = 0;
  if (free_.size() >= kPostChain && !fault_.is_set()) post_free();
}

// Completions cannot be looked at without taking them, so those that arrived meanwhile are kept for the next peek.
bool VerbsRx::arm() {
  if (wake_fd_ < 0 || fault_.is_set()) return false;
  ibv_cq* cq = nullptr;
  void* context = nullptr;
  unsigned events = 0;
  while (calls_.get_cq_event(cq_->channel, &cq, &context) == 0) ++events;
  if (events > 0) calls_.ack_cq_events(cq_, events);
  ibv_req_notify_cq(cq_, 0);
  if (stashed_ == 0) stashed_ = static_cast<uint32_t>(poll());
  return stashed_ > 0;
}

}  // namespace sw
#endif
