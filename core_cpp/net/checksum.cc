// SPDX-License-Identifier: Apache-2.0
#include "net/checksum.h"

#include <algorithm>

#include "base/bytes.h"

namespace sw {

uint64_t sum_bytes(const uint8_t* data, size_t bytes, uint64_t sum) {
  // 32-bit words into 64-bit accumulators: no carry to handle, and four chains hide the latency of the adds.
  uint64_t a = sum;
  uint64_t b = 0;
  uint64_t c = 0;
  uint64_t d = 0;
  for (; bytes >= 32; bytes -= 32, data += 32) {
    const auto w0 = load_unaligned<uint64_t>(data);
    const auto w1 = load_unaligned<uint64_t>(data + 8);
    const auto w2 = load_unaligned<uint64_t>(data + 16);
    const auto w3 = load_unaligned<uint64_t>(data + 24);
    a += (w0 & 0xffffffffU) + (w0 >> 32);
    b += (w1 & 0xffffffffU) + (w1 >> 32);
    c += (w2 & 0xffffffffU) + (w2 >> 32);
    d += (w3 & 0xffffffffU) + (w3 >> 32);
  }
  for (; bytes >= 4; bytes -= 4, data += 4) a += load_unaligned<uint32_t>(data);
  if (bytes >= 2) {
    b += load_unaligned<uint16_t>(data);
    bytes -= 2;
    data += 2;
  }
  if (bytes != 0) c += *data;  // little-endian: the first byte of a word is its low half
  return a + b + c + d;
}

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
