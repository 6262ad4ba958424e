// SPDX-License-Identifier: Apache-2.0
// Turning descriptor chains into host memory: Gather collects the pieces of one chain, walk_table follows an indirect
// table. What is common to split and packed rings; the rings themselves follow their own direct descriptors.
//
// Theory of operation. A descriptor is copied to a local once and only the local is looked at. Each one costs a step
// whether it is empty or not, so a chain is bounded in steps and in pieces, whatever it says.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/atomic.h"
#include "net/frame.h"
#include "virtio/guest_cursor.h"
#include "virtio/spec.h"

namespace sw {

// The most descriptors of one chain, direct and indirect ones each: what QEMU and the Linux driver stay below, too.
inline constexpr uint32_t kMaxChain = 1024;
// The most buffers that one frame may be spread over (VIRTIO_NET_F_MRG_RXBUF).
inline constexpr uint32_t kMaxTaken = 256;

// The first descriptor of a chain, copied once.
struct Head {
  uint64_t addr;
  uint32_t len;
  uint16_t flags;
  uint16_t next;  // split: next descriptor
  uint16_t id;    // what the used element names: split head index, packed buffer id (valid here if it is the only one)
};

// What take_each() of a ring took.
struct Taken {
  uint32_t count = 0;
  bool left_one = false;  // more was there, but the next chain was not taken
};

// A head with none of these set holds a whole readable buffer; with WRITE alone a whole writable one.
inline constexpr uint16_t kFlagsOfInterest = VRING_DESC_F_NEXT | VRING_DESC_F_WRITE | VRING_DESC_F_INDIRECT;

enum class Walk : uint8_t {
  kOk,
  kFull,    // more pieces than there is room for
  kBad,     // the chain breaks a rule
  kBroken,  // the ring does: its fault is set
};

// A piece of guest memory that a tx ring writes. Segment (net/frame.h) is its sibling for rx.
struct WritePiece {
  uint8_t* data;
  uint32_t len;
  uint64_t guest;
};

// Collects the pieces of one chain into `pieces`. Piece is Segment or WritePiece.
template <class Piece>
class Gather {
 public:
  static constexpr bool kWrites = std::is_same_v<Piece, WritePiece>;

  Gather(GuestCursor& cursor, Piece* pieces, uint32_t room) : cursor_(cursor), pieces_(pieces), room_(room) {}

  // One descriptor. kOk, kFull or kBad.
  Walk add(uint64_t addr, uint32_t len, uint16_t flags) {
    if (((flags & VRING_DESC_F_WRITE) != 0) != kWrites) return Walk::kBad;
    ++steps_;
    uint64_t left = len;
    while (left > 0) {  // more than once when the buffer spans regions
      uint64_t contiguous = 0;
      uint8_t* const host = cursor_.part(addr, left, contiguous);
      if (host == nullptr) return Walk::kBad;
      if (count_ == room_) return Walk::kFull;
      Piece& piece = pieces_[count_++];
      piece.data = host;
      piece.len = static_cast<uint32_t>(contiguous);
      if constexpr (kWrites) piece.guest = addr;
      addr += contiguous;
      left -= contiguous;
    }
    total_ += len;
    return Walk::kOk;
  }

  [[nodiscard]] GuestCursor& cursor() { return cursor_; }
  [[nodiscard]] uint32_t count() const { return count_; }
  // What the chain cost: descriptors, or pieces where buffers span many regions.
  [[nodiscard]] uint32_t work() const { return std::max(steps_, count_); }
  [[nodiscard]] uint64_t total() const { return total_; }

 private:
  GuestCursor& cursor_;
  Piece* const pieces_;
  const uint32_t room_;
  uint32_t count_ = 0;
  uint32_t steps_ = 0;
  uint64_t total_ = 0;
};

// A descriptor of ring memory, read once. Relaxed: the index or flags that published it was acquired before.
struct RawDescriptor {
  uint64_t low;   // addr
  uint64_t high;  // len, and what the ring kind puts behind it
};
inline RawDescriptor load_descriptor(const uint8_t* from) {
  const auto* const words = reinterpret_cast<const uint64_t*>(from);  // 16-byte aligned, checked when the ring started
  return {load_relaxed(words[0]), load_relaxed(words[1])};
}
constexpr uint32_t low32(uint64_t word) { return static_cast<uint32_t>(word); }
constexpr uint16_t bits32(uint64_t word) { return static_cast<uint16_t>(word >> 32); }
constexpr uint16_t bits48(uint64_t word) { return static_cast<uint16_t>(word >> 48); }

// A descriptor of an indirect table, read once, wherever it lies: tables need no alignment and may span regions.
inline bool load_guest_descriptor(GuestCursor& cursor, uint64_t addr, RawDescriptor& out) {
  auto* to = reinterpret_cast<uint8_t*>(&out);
  uint64_t left = sizeof out;
  while (left > 0) {
    uint64_t contiguous = 0;
    const uint8_t* const host = cursor.part(addr, left, contiguous);
    if (host == nullptr) return false;
    std::memcpy(to, host, contiguous);
    to += contiguous;
    addr += contiguous;
    left -= contiguous;
  }
  return true;
}

// Follow an indirect table (virtio 1.3 2.7.5.3, 2.8.7). A split table is linked by `next`, a packed one is an array.
template <bool kPacked, class Piece>
Walk walk_table(Gather<Piece>& gather, uint64_t table, uint32_t bytes) {
  const auto entries = static_cast<uint32_t>(bytes / sizeof(VringDesc));
  if (bytes % sizeof(VringDesc) != 0 || entries == 0 || entries > kMaxChain) return Walk::kBad;
  if (table + bytes < table) return Walk::kBad;
  uint32_t at = 0;
  for (uint32_t i = 0; i < entries; ++i) {
    RawDescriptor raw;
    if (!load_guest_descriptor(gather.cursor(), table + uint64_t{at} * sizeof(VringDesc), raw)) return Walk::kBad;
    const uint16_t flags = kPacked ? bits48(raw.high) : bits32(raw.high);
    if ((flags & VRING_DESC_F_INDIRECT) != 0) return Walk::kBad;  // 2.7.5.3.1: no table in a table
    const Walk added = gather.add(raw.low, low32(raw.high), flags);
    if (added != Walk::kOk) return added;
    if constexpr (kPacked) {
      ++at;  // 2.8.7: NEXT is reserved in a table, and some drivers set it
    } else {
      if ((flags & VRING_DESC_F_NEXT) == 0) return Walk::kOk;
      at = bits48(raw.high);
      if (at >= entries) return Walk::kBad;
    }
  }
  return kPacked ? Walk::kOk : Walk::kBad;  // a split table with more links than entries is a loop
}

}  // namespace sw
