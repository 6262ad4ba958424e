// SPDX-License-Identifier: Apache-2.0
#include "net/frame.h"

#include <algorithm>

namespace sw {

namespace {

constexpr uint32_t kMacPairBytes = 2 * kMacBytes;

void move_offload_offsets(Frame& frame, int delta) {
  if (!frame.offload) return;
  if ((frame.vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0) {
    frame.vnet.csum_start = static_cast<uint16_t>(frame.vnet.csum_start + delta);
  }
  if (frame.vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE) {
    frame.vnet.hdr_len = static_cast<uint16_t>(frame.vnet.hdr_len + delta);
  }
}

}  // namespace

void copy_from_frame(const Frame& frame, uint32_t offset, uint8_t* to, uint32_t bytes) {
  if (offset < frame.head_len) {
    const uint32_t part = std::min<uint32_t>(bytes, frame.head_len - offset);
    std::memcpy(to, frame.data() + offset, part);
    to += part;
    bytes -= part;
    offset = 0;
  } else {
    offset -= frame.head_len;
  }
  for (const Segment* segment = frame.segments; bytes > 0; ++segment) {
    if (offset >= segment->len) {
      offset -= segment->len;
      continue;
    }
    const uint32_t part = std::min(bytes, segment->len - offset);
    std::memcpy(to, segment->data + offset, part);
    to += part;
    bytes -= part;
    offset = 0;
  }
}

void shape_tagged(Frame& frame) {
  if (!frame.tagged) {
    uint8_t* const from = frame.data();
    std::memmove(from - kVlanTagBytes, from, kMacPairBytes);
    frame.head_offset = static_cast<int16_t>(frame.head_offset - static_cast<int>(kVlanTagBytes));
    frame.head_len += kVlanTagBytes;
    frame.len += kVlanTagBytes;
    frame.tagged = true;
    move_offload_offsets(frame, kVlanTagBytes);
  }
  store_be16(frame.data() + kMacPairBytes, kEtherTypeVlan);
  store_be16(frame.data() + kMacPairBytes + 2, frame.tci);
}

void shape_untagged(Frame& frame) {
  if (!frame.tagged) return;
  uint8_t* const from = frame.data();
  std::memmove(from + kVlanTagBytes, from, kMacPairBytes);
  frame.head_offset = static_cast<int16_t>(frame.head_offset + static_cast<int>(kVlanTagBytes));
  frame.head_len -= kVlanTagBytes;
  frame.len -= kVlanTagBytes;
  frame.tagged = false;
  move_offload_offsets(frame, -static_cast<int>(kVlanTagBytes));
}

}  // namespace sw
