// SPDX-License-Identifier: Apache-2.0
#include "net/frame.h"

#include <algorithm>

namespace sw {

namespace {

constexpr uint32_t kMacPairBytes = 2 * kMacBytes;

// hdr_len 0 means that the sender gave no hint.
uint16_t moved(uint16_t offset, int delta) { return static_cast<uint16_t>(std::clamp(offset + delta, 0, 0xffff)); }

void move_offload_offsets(Frame& frame, int delta) {
  if (!frame.offload) return;
  if ((frame.vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0) {
    frame.vnet.csum_start = moved(frame.vnet.csum_start, delta);
  }
  if (frame.vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE && frame.vnet.hdr_len != 0) {
    frame.vnet.hdr_len = moved(frame.vnet.hdr_len, delta);
  }
}

// Push (+4) or pop (-4) the room of a tag by moving the two addresses; the head begins there now.
void move_front(Frame& frame, int delta) {
  uint8_t* const from = frame.data();
  std::memmove(from - delta, from, kMacPairBytes);
  frame.head_offset = static_cast<int16_t>(frame.head_offset - delta);
  frame.head_len = frame.head_len + delta;
  frame.len = static_cast<uint32_t>(static_cast<int>(frame.len) + delta);
  move_offload_offsets(frame, delta);
}

}  // namespace

void copy_from_frame(const Frame& frame, uint32_t offset, uint8_t* to, uint32_t bytes,
                     void (*copy)(uint8_t* to, const uint8_t* from, size_t bytes)) {
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
    copy(to, segment->data + offset, part);
    to += part;
    bytes -= part;
    offset = 0;
  }
}

void shape_tagged(Frame& frame) {
  if (!frame.tagged) {
    move_front(frame, kVlanTagBytes);
    frame.tagged = true;
  }
  store_be16(frame.data() + kMacPairBytes, kEtherTypeVlan);
  store_be16(frame.data() + kMacPairBytes + 2, frame.tci);
}

void shape_untagged(Frame& frame) {
  if (!frame.tagged) return;
  move_front(frame, -static_cast<int>(kVlanTagBytes));
  frame.tagged = false;
}

}  // namespace sw
