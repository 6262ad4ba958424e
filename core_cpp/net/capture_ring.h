// SPDX-License-Identifier: Apache-2.0
// CaptureRing: copies of frames on their way from workers to whoever wants to see them. Workers never wait for it: what
// finds no room, or the ring in another worker's hands, is counted as missed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/atomic.h"
#include "net/frame.h"
#include "stats/drop_reason.h"

namespace sw {

enum class CaptureWay : uint8_t { kRx, kTx };  // the switch's: rx enters it

struct CapturedFrame {
  uint64_t realtime_ns;
  uint32_t len;  // of the frame; `bytes` may hold less
  uint16_t queue;
  CaptureWay way;
  DropReason drop;  // kNoDrop: it was not
  std::string bytes;
};

// Theory of operation. A ring of bytes: records of a header and a frame's bytes, each in one piece, at multiples of 8.
// What is left at the end and too small for the next record is skipped. Any worker writes, one at a time, under a lock
// that it only tries; one reader, which takes no lock. Offsets count for ever and are taken modulo the size.
class CaptureRing {
 public:
  explicit CaptureRing(size_t bytes);  // a power of two, at least 256 KB: a frame of the largest kind fits

  // ---- workers ----
  void write(const Frame& frame, uint32_t most_bytes, CaptureWay way, uint16_t queue, DropReason drop,
             uint64_t realtime_ns);

  // ---- the reader ----
  std::vector<CapturedFrame> read(size_t most);
  [[nodiscard]] uint64_t missed() const { return missed_.load(std::memory_order_relaxed); }

 private:
  struct Record;
  bool put(const Frame& frame, uint32_t stored, Record record);
  [[nodiscard]] uint8_t* at(uint64_t offset) { return bytes_.data() + (offset & (bytes_.size() - 1)); }
  [[nodiscard]] size_t left_at(uint64_t offset) const { return bytes_.size() - (offset & (bytes_.size() - 1)); }

  std::vector<uint8_t> bytes_;
  Spinlock writing_;
  alignas(64) uint64_t head_ = 0;  // written under writing_; release pairs with the reader's acquire
  alignas(64) uint64_t tail_ = 0;  // written by the reader; release pairs with the writer's acquire
  alignas(64) std::atomic<uint64_t> missed_{0};
};

}  // namespace sw
