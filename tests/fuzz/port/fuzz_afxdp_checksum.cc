// SPDX-License-Identifier: Apache-2.0
// Fuzz: any frame of a local sender. Finding an unfinished checksum stays inside the frame, changes nothing but that
// checksum, and what is marked can be finished.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "net/checksum.h"
#include "port/afxdp_checksum.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sw;
  if (size < 3 + kEthHeaderBytes) return 0;
  const uint32_t mtu = 68 + (data[0] | uint32_t{data[1]} << 8) % 9000;
  const uint32_t cut = 1U + data[2];
  const uint8_t* const bytes = data + 3;
  const auto len = static_cast<uint32_t>(std::min<size_t>(size - 3, kMaxFrameBytes));

  auto frame = std::make_unique<Frame>();
  frame->len = len;
  frame->head_len = static_cast<uint16_t>(std::min(len, kHeadBytes));
  std::memcpy(frame->head, bytes, frame->head_len);
  auto body = std::make_unique<uint8_t[]>(len - frame->head_len);  // exactly as long as the rest
  std::memcpy(body.get(), bytes + frame->head_len, len - frame->head_len);
  std::array<Segment, 300> segments;
  frame->segments = segments.data();
  for (uint32_t at = 0; at < len - frame->head_len;) {
    const bool last = frame->segment_count + 1U == segments.size();
    const uint32_t left = len - frame->head_len - at;
    const uint32_t part = last ? left : std::min(cut, left);
    segments[frame->segment_count++] = {body.get() + at, part};
    at += part;
  }

  const bool taken = restore_offload(*frame, mtu);
  require(frame->len == len);
  auto after = std::make_unique<uint8_t[]>(len);
  copy_from_frame(*frame, 0, after.get(), len);
  uint32_t changed = 0;
  for (uint32_t i = 0; i < len; ++i) changed += after[i] != bytes[i] ? 1 : 0;
  require(changed <= 2);
  require(taken || len > mtu);
  if (!frame->offload) return 0;
  require(changed == 0);
  require(frame->vnet.flags == VIRTIO_NET_HDR_F_NEEDS_CSUM);
  require(frame->vnet.gso_type == VIRTIO_NET_HDR_GSO_NONE || frame->vnet.gso_size != 0);
  require(finish_checksum({after.get(), len}, frame->vnet));
  return 0;
}
