// SPDX-License-Identifier: Apache-2.0
// The Internet checksum (RFC 1071), and finishing the checksum that a NEEDS_CSUM frame left to the device.
//
// Theory of operation. The ones' complement sum does not care about byte order: summing 16-bit words as they lie in
// memory and storing the result as it is gives the right bytes on any machine. So nothing here swaps. Sums are carried
// as 64 bits without folding; that is exact for more data than any frame has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/cpu.h"
#include "net/frame.h"
#include "net/packet.h"

namespace sw {

// Sum of 16-bit words in memory order, added to `sum`. An odd last byte counts as if a zero followed.
uint64_t sum_bytes(const uint8_t* data, size_t bytes, uint64_t sum = 0);
// The same with the instructions of `level`, which the CPU must have: for tests and benchmarks.
uint64_t sum_bytes_at(VectorLevel level, const uint8_t* data, size_t bytes, uint64_t sum = 0);

// The 16-bit ones' complement sum. A checksum is its complement.
constexpr uint16_t fold_sum(uint64_t sum) {
  sum = (sum >> 32) + (sum & 0xffffffffU);
  sum = (sum >> 16) + (sum & 0xffffU);
  sum = (sum >> 16) + (sum & 0xffffU);
  sum = (sum >> 16) + (sum & 0xffffU);
  return static_cast<uint16_t>(sum);
}

// What to store for TCP and UDP: never 0, which means "no checksum" in UDP and equals 0xffff in both.
constexpr uint16_t transport_checksum(uint64_t sum) {
  const uint16_t checksum = static_cast<uint16_t>(~fold_sum(sum));
  return checksum == 0 ? 0xffff : checksum;
}

// Add the sum of a piece that begins at an odd (`odd`) or even place of the whole.
constexpr uint64_t add_piece(uint64_t sum, uint64_t piece, bool odd) {
  const uint16_t folded = fold_sum(piece);
  return sum + (odd ? __builtin_bswap16(folded) : folded);
}

// A checksum after one aligned 16-bit word under it changed (RFC 1624, equation 3). All three as they lie in memory.
constexpr uint16_t update_checksum(uint16_t checksum, uint16_t from, uint16_t to) {
  return static_cast<uint16_t>(
      ~fold_sum(uint64_t{static_cast<uint16_t>(~checksum)} + static_cast<uint16_t>(~from) + to));
}

// Sum of the TCP/UDP pseudo-header. `ip`: the network header of `packet`; `l4_bytes`: transport header and payload.
uint64_t sum_pseudo_header(const uint8_t* ip, const Packet& packet, uint32_t l4_bytes);

// Sum of frame bytes [offset, frame.len), wherever they are. Needs offset <= frame.len.
uint64_t sum_frame(const Frame& frame, uint32_t offset);

// Can the checksum that `vnet` asks for (NEEDS_CSUM) be stored in a frame of `bytes`? virtio 1.3 5.1.6.2.
constexpr bool checksum_fits(const VnetHeader& vnet, uint32_t bytes) {
  return uint32_t{vnet.csum_start} + vnet.csum_offset + 2 <= bytes;
}

// Finish a NEEDS_CSUM frame that lies in one piece: the field already holds the pseudo-header's sum. False, with
// nothing changed, when start and offset do not fit the frame.
bool finish_checksum(std::span<uint8_t> frame, const VnetHeader& vnet);

}  // namespace sw
