// SPDX-License-Identifier: Apache-2.0
#include "net/checksum.h"

#include <algorithm>

#include "base/bytes.h"

namespace sw {

uint64_t sum_pseudo_header(const uint8_t* ip, const Packet& packet, uint32_t l4_bytes) {
  uint64_t sum = packet.ip_version == 4 ? sum_bytes(ip + 12, 8) : sum_bytes(ip + 8, 32);
  sum += __builtin_bswap32(l4_bytes);
  sum += static_cast<uint64_t>(packet.protocol) << 8;
  return sum;
}

uint64_t sum_frame(const Frame& frame, uint32_t offset) {
  uint64_t sum = 0;
  uint32_t summed = 0;
  uint32_t skip = offset;
  const auto add = [&](const uint8_t* data, uint32_t bytes) {
    const uint32_t skipped = std::min(skip, bytes);
    skip -= skipped;
    bytes -= skipped;
    sum = add_piece(sum, sum_bytes(data + skipped, bytes), (summed & 1) != 0);
    summed += bytes;
  };
  add(frame.data(), frame.head_len);
  for (uint32_t i = 0; i < frame.segment_count; ++i) add(frame.segments[i].data, frame.segments[i].len);
  return sum;
}

bool finish_checksum(std::span<uint8_t> frame, const VnetHeader& vnet) {
  if (!checksum_fits(vnet, static_cast<uint32_t>(frame.size()))) return false;
  const uint64_t sum = sum_bytes(frame.data() + vnet.csum_start, frame.size() - vnet.csum_start);
  store_unaligned(frame.data() + vnet.csum_start + vnet.csum_offset, transport_checksum(sum));
  return true;
}

}  // namespace sw
