// SPDX-License-Identifier: Apache-2.0
#include "net/crc32c.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <vector>

using namespace sw;

TEST_CASE("crc32c: the examples of RFC 3720 B.4") {
  struct Row {
    const char* what;
    std::vector<uint8_t> data;
    uint32_t crc;
  };
  std::vector<uint8_t> up(32);
  for (uint8_t i = 0; i < 32; ++i) up[i] = i;
  const std::vector<uint8_t> down(up.rbegin(), up.rend());
  const Row rows[] = {{"32 zeros", std::vector<uint8_t>(32, 0), 0x8a9136aa},
                      {"32 ones", std::vector<uint8_t>(32, 0xff), 0x62a8ab43},
                      {"incrementing", up, 0x46dd794e},
                      {"decrementing", down, 0x113fdb5c}};
  for (const Row& row : rows) {
    CAPTURE(row.what);
    CHECK(~crc32c(~0U, row.data.data(), row.data.size()) == row.crc);
    CHECK(~crc32c(crc32c(~0U, row.data.data(), 7), row.data.data() + 7, row.data.size() - 7) == row.crc);
  }
}

TEST_CASE("finish_sctp: the whole packet counts, whatever its field held; a header outside the head is refused") {
  std::vector<uint8_t> bytes(300);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(7 * i);
  for (const uint32_t start : {34U, 116U, 117U, 300U}) {
    CAPTURE(start);
    auto frame = std::make_unique<Frame>();
    frame->len = static_cast<uint32_t>(bytes.size());
    frame->head_len = kHeadBytes;
    std::memcpy(frame->head, bytes.data(), kHeadBytes);
    const std::array<Segment, 2> rest = {Segment{bytes.data() + kHeadBytes, 51},
                                         Segment{bytes.data() + kHeadBytes + 51, 300 - kHeadBytes - 51}};
    frame->segments = rest.data();
    frame->segment_count = 2;
    std::vector<uint8_t> expected = bytes;
    const bool fits = start <= kHeadBytes - 12;
    if (fits) {
      std::fill_n(expected.begin() + start + 8, 4, uint8_t{0});
      const uint32_t crc = ~crc32c(~0U, expected.data() + start, expected.size() - start);
      for (uint32_t i = 0; i < 4; ++i) expected[start + 8 + i] = static_cast<uint8_t>(crc >> 8 * i);
    }
    CHECK(finish_sctp(*frame, start) == fits);
    std::vector<uint8_t> got(bytes.size());
    copy_from_frame(*frame, 0, got.data(), 300);
    CHECK(got == expected);
  }
}
