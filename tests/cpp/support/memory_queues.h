// SPDX-License-Identifier: Apache-2.0
// Queues in plain memory for tests of what sits above the rings: a script of frames in, a record of frames out.
#pragma once

#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "net/queue.h"

namespace sw::testing {

using Bytes = std::vector<uint8_t>;

// An Ethernet frame of `size` bytes from `source` to `destination`, EtherType 0x88b5, filled with `fill`.
inline Bytes ethernet(Mac destination, Mac source, size_t size = 64, uint8_t fill = 0) {
  Bytes frame(size, fill);
  for (size_t i = 0; i < kMacBytes; ++i) {
    frame[i] = static_cast<uint8_t>(destination >> (40 - 8 * i));
    frame[6 + i] = static_cast<uint8_t>(source >> (40 - 8 * i));
  }
  frame[12] = 0x88;
  frame[13] = 0xb5;
  return frame;
}

// Frames to deliver, one batch per element. Thread-safe against a test that feeds it while a worker polls.
class ScriptedRx : public RxQueue {
 public:
  using RxQueue::RxQueue;

  void feed(std::vector<Bytes> batch) {
    const std::lock_guard<std::mutex> guard(mutex_);
    batches_.push_back(std::move(batch));
  }
  // Deliver `frame` for ever, `count` times a batch.
  void repeat(Bytes frame, uint32_t count) {
    const std::lock_guard<std::mutex> guard(mutex_);
    repeated_.assign(count, frame);
  }

  bool peek(Batch& batch, PortWorkerCounters&) override {
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      if (!batches_.empty()) {
        held_ = std::move(batches_.front());
        batches_.pop_front();
      } else if (!repeated_.empty()) {
        held_ = repeated_;
      } else {
        return false;
      }
    }
    for (const Bytes& bytes : held_) {
      Frame& frame = batch.frames.at(batch.count++);
      frame.len = static_cast<uint32_t>(bytes.size());
      frame.head_len = static_cast<uint16_t>(std::min<size_t>(bytes.size(), kHeadBytes));
      frame.head_offset = 0;
      std::memcpy(frame.head, bytes.data(), frame.head_len);
      frame.segment_count = 0;
      if (bytes.size() > kHeadBytes) {
        batch.segments.at(batch.segments_used) = {bytes.data() + kHeadBytes,
                                                  static_cast<uint32_t>(bytes.size() - kHeadBytes)};
        frame.segments = &batch.segments.at(batch.segments_used++);
        frame.segment_count = 1;
      }
      frame.vlan = frame.tci = 0;
      frame.tagged = frame.offload = false;
      frame.vnet = {};
      counters_->bytes.add(bytes.size());
    }
    counters_->frames.add(held_.size());
    return true;
  }
  void release() override { held_.clear(); }
  void notify() override { ++notified; }
  bool arm() override {
    ++armed;
    const std::lock_guard<std::mutex> guard(mutex_);
    return !batches_.empty() || !repeated_.empty();
  }
  void disarm() override { ++disarmed; }
  [[nodiscard]] int wake_fd() const override { return wake; }

  int wake = -1;
  std::atomic<uint32_t> notified{0}, armed{0}, disarmed{0};

 private:
  std::mutex mutex_;
  std::deque<std::vector<Bytes>> batches_;
  std::vector<Bytes> repeated_;
  std::vector<Bytes> held_;
};

// Remembers what was sent; takes at most `room` frames.
class RecordingTx : public TxQueue {
 public:
  using TxQueue::TxQueue;

  uint32_t send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters&) override {
    if (users.fetch_add(1) != 0) overlapped = true;
    uint32_t sent = 0;
    for (; sent < index.size() && sent < room; ++sent) {
      const Frame& frame = batch.frames.at(index[sent]);
      if (keep) {
        Bytes bytes(frame.len);
        copy_from_frame(frame, 0, bytes.data(), frame.len);
        frames.push_back(std::move(bytes));
      }
      counters_->frames.add(1);
      counters_->bytes.add(frame.len);
    }
    users.fetch_sub(1);
    return sent;
  }
  void notify() override { ++notified; }

  uint32_t room = UINT32_MAX;
  bool keep = true;
  bool overlapped = false;  // two threads were inside at once
  std::vector<Bytes> frames;
  uint32_t notified = 0;

 private:
  std::atomic<int> users{0};
};

}  // namespace sw::testing
