// SPDX-License-Identifier: Apache-2.0
#include "net/capture_ring.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"

namespace sw {

struct CaptureRing::Record {
  uint64_t realtime_ns;
  uint32_t len;
  uint32_t stored;  // bytes that follow; kSkip: none, the next record is at the beginning of the ring
  uint16_t queue;
  CaptureWay way;
  DropReason drop;
};

namespace {

constexpr uint32_t kSkip = ~0U;

constexpr size_t padded(size_t bytes) { return (bytes + 7) & ~size_t{7}; }

}  // namespace

CaptureRing::CaptureRing(size_t bytes) : bytes_(bytes) {
  SW_CHECK(std::has_single_bit(bytes) && bytes >= size_t{256} << 10);
}

void CaptureRing::write(const Frame& frame, uint32_t most_bytes, CaptureWay way, uint16_t queue, DropReason drop,
                        uint64_t realtime_ns) {
  const uint32_t stored = std::min(frame.len, most_bytes);
  bool kept = false;
  if (writing_.try_lock()) {
    kept = put(frame, stored, {realtime_ns, frame.len, stored, queue, way, drop});
    writing_.unlock();
  }
  if (!kept) missed_.fetch_add(1, std::memory_order_relaxed);
}

bool CaptureRing::put(const Frame& frame, uint32_t stored, Record record) {
  const size_t bytes = padded(sizeof(Record) + stored);
  const size_t left = left_at(head_);
  const size_t skipped = bytes > left ? left : 0;
  if (head_ + skipped + bytes - load_acquire(tail_) > bytes_.size()) return false;
  if (skipped >= sizeof(Record)) {
    const Record skip{.realtime_ns = 0, .len = 0, .stored = kSkip, .queue = 0, .way = {}, .drop = {}};
    std::memcpy(at(head_), &skip, sizeof skip);
  }
  uint8_t* const to = at(head_ + skipped);
  std::memcpy(to, &record, sizeof record);
  copy_from_frame(frame, 0, to + sizeof record, stored);
  store_release(head_, head_ + skipped + bytes);
  return true;
}

std::vector<CapturedFrame> CaptureRing::read(size_t most) {
  std::vector<CapturedFrame> frames;
  const uint64_t head = load_acquire(head_);
  uint64_t tail = tail_;
  while (tail != head && frames.size() < most) {
    Record record;
    if (left_at(tail) < sizeof record) {
      tail += left_at(tail);
      continue;
    }
    std::memcpy(&record, at(tail), sizeof record);
    if (record.stored == kSkip) {
      tail += left_at(tail);
      continue;
    }
    frames.push_back({record.realtime_ns, record.len, record.queue, record.way, record.drop,
                      std::string(reinterpret_cast<const char*>(at(tail) + sizeof record), record.stored)});
    tail += padded(sizeof record + record.stored);
  }
  store_release(tail_, tail);
  return frames;
}

}  // namespace sw
