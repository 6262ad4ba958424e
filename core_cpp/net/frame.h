// SPDX-License-Identifier: Apache-2.0
// Frame and Batch: borrowed Ethernet frames on their way through one pass of a worker.
//
// Theory of operation. A Frame is not a copy and not a buffer: its first bytes (at most kHeadBytes) were loaded once
// into `head`, every decision is taken on them and they are what is written to the destination, so a guest cannot
// change what was checked. The rest stays in the source's memory, as segments, until the one copy. Whoever filled the
// Batch (RxQueue::peek) keeps the memory valid until RxQueue::release. Edits (VLAN tag, checksum) change the head only;
// the source's memory is never written.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "net/ethernet.h"
#include "net/vnet_header.h"

namespace sw {

inline constexpr uint32_t kMaxBatch = 64;
inline constexpr uint32_t kHeadBytes = 128;     // most bytes of a frame that are loaded into the head
inline constexpr uint32_t kHeadRoom = 8;        // space in front of the head for a pushed tag
inline constexpr uint32_t kMaxSegments = 1024;  // body segments of all frames of a batch together
inline constexpr uint32_t kMaxFrameBytes = 65535 + kEthHeaderBytes + kVlanTagBytes;  // GSO frame; larger is dropped

// A run of bytes of the source's memory. May change under our feet: copy it, never decide on it.
struct Segment {
  const uint8_t* data;
  uint32_t len;
};

struct alignas(64) Frame {
  uint32_t len;             // bytes of the whole frame, head included, as it would leave now
  uint32_t head_len;        // bytes of it in the head; min(len, kHeadBytes) when peeked, +-4 after a tag edit
  const Segment* segments;  // the rest: total length is len - head_len
  // Marks: all 0 when peeked, but for offload and vnet of a frame that asks for something.
  int16_t head_offset;  // where it begins relative to `head`: -4 with a pushed tag, +4 with a popped one
  uint16_t vlan;        // VID the bridge classified it to; 0 = untagged on a trunk without native VLAN
  uint16_t tci;         // PCP, DEI and VID to write when it leaves tagged
  bool tagged;          // the head carries an 802.1Q tag at this moment
  bool offload;         // vnet asks for work (checksum or segmentation): cheap test for the common case
  VnetHeader vnet;
  uint16_t segment_count;
  Segment body;  // where `segments` of a frame in one piece points: no pool, no index
  uint8_t headroom[kHeadRoom];
  uint8_t head[kHeadBytes];  // 64-byte aligned

  void clear_marks() {  // by two stores instead of one a member
    constexpr size_t kFirst = offsetof(Frame, head_offset);
    std::memset(reinterpret_cast<uint8_t*>(this) + kFirst, 0, offsetof(Frame, segment_count) - kFirst);
  }

  // It may be in `headroom`: by a pointer, as `head` itself must not be indexed below 0.
  [[nodiscard]] uint8_t* data() {
    uint8_t* const first = head;
    return first + head_offset;
  }
  [[nodiscard]] const uint8_t* data() const {
    const uint8_t* const first = head;
    return first + head_offset;
  }
};
static_assert(sizeof(Frame) == 192 && offsetof(Frame, head) == 64);

// Up to kMaxBatch Frames of one receive queue. One per worker, reused for ever, never copied. Frames that were dropped
// while peeking do not appear, but their descriptors are given back by release all the same.
struct Batch {
  uint32_t count = 0;              // valid frames
  uint32_t segments_used = 0;      // of `segments`
  bool may_have_offloads = false;  // false: no frame of this batch has `offload` set
  std::array<Frame, kMaxBatch> frames;
  std::array<Segment, kMaxSegments> segments;

  void clear() {
    count = 0;
    segments_used = 0;
    may_have_offloads = false;
  }
};

inline void plain_copy(uint8_t* to, const uint8_t* from, size_t bytes) { std::memcpy(to, from, bytes); }

// Copy frame bytes [offset, offset + bytes) to `to`, head first, then segments, these by `copy`. Needs offset + bytes <=
// frame.len.
void copy_from_frame(const Frame& frame, uint32_t offset, uint8_t* to, uint32_t bytes,
                     void (*copy)(uint8_t* to, const uint8_t* from, size_t bytes) = plain_copy);

// Make the frame leave with / without an 802.1Q tag. Both can be applied in any order any number of times (a flooded
// frame leaves tagged here and untagged there). Offsets in `vnet` move along. Needs head_len >= 14 (18 if tagged). A
// tag that is there already is rewritten to `tci`. The source's offsets may be nonsense: they saturate, and the egress
// checks them.
void shape_tagged(Frame& frame);
void shape_untagged(Frame& frame);

}  // namespace sw
