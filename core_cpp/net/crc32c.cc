// SPDX-License-Identifier: Apache-2.0
#include "net/crc32c.h"

#include <array>

#include "base/bytes.h"

namespace sw {

namespace {

constexpr uint32_t kSctpHeaderBytes = 12;

constexpr std::array<uint32_t, 256> make_table() {
  constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < table.size(); ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value & 1) != 0 ? value >> 1 ^ kPolynomial : value >> 1;
    table.at(byte) = value;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kTable = make_table();

}  // namespace

uint32_t crc32c(uint32_t state, const uint8_t* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) state = state >> 8 ^ kTable[(state ^ data[i]) & 0xff];
  return state;
}

bool finish_sctp(Frame& frame, uint32_t start) {
  if (start + kSctpHeaderBytes > frame.head_len) return false;
  uint8_t* const field = frame.data() + start + kSctpChecksumOffset;
  store_unaligned<uint32_t>(field, 0);  // counts as 0
  uint32_t state = crc32c(~0U, frame.data() + start, frame.head_len - start);
  for (uint32_t i = 0; i < frame.segment_count; ++i) {
    state = crc32c(state, frame.segments[i].data, frame.segments[i].len);
  }
  store_unaligned<uint32_t>(field, ~state);  // least significant byte first
  return true;
}

}  // namespace sw
