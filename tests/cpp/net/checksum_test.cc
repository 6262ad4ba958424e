// SPDX-License-Identifier: Apache-2.0
#include "net/checksum.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <random>

#include "base/bytes.h"
#include "net/offload_frames.h"

using namespace sw;
using namespace sw::test;

namespace {

uint16_t swap(uint16_t value) { return __builtin_bswap16(value); }

// A frame whose body is cut into segments of the given sizes (the last one takes the rest).
struct BorrowedFrame {
  Frame frame{};
  std::vector<Segment> segments;
  BorrowedFrame(const Bytes& bytes, size_t head, const std::vector<size_t>& cuts) {
    frame.len = static_cast<uint32_t>(bytes.size());
    frame.head_len = static_cast<uint16_t>(std::min(bytes.size(), head));
    std::memcpy(frame.head, bytes.data(), frame.head_len);
    size_t at = frame.head_len;
    for (const size_t cut : cuts) {
      const size_t part = std::min(cut, bytes.size() - at);
      segments.push_back({bytes.data() + at, static_cast<uint32_t>(part)});
      at += part;
    }
    segments.push_back({bytes.data() + at, static_cast<uint32_t>(bytes.size() - at)});
    frame.segments = segments.data();
    frame.segment_count = static_cast<uint16_t>(segments.size());
  }
};

}  // namespace

TEST_CASE("sum_bytes: equals the plain RFC 1071 sum for every length and alignment") {
  std::mt19937 random(7);
  Bytes data(300);
  for (auto& byte : data) byte = static_cast<uint8_t>(random());
  for (size_t from = 0; from < 9; ++from) {
    for (size_t bytes = 0; from + bytes <= data.size(); ++bytes) {
      const uint16_t fast = swap(fold_sum(sum_bytes(data.data() + from, bytes)));
      REQUIRE(fast % 0xffff == naive_sum(data, from, from + bytes) % 0xffff);
    }
  }
}

TEST_CASE("sum_bytes: carries survive the largest frame of ones") {
  const Bytes ones(65553, 0xff);
  CHECK(swap(fold_sum(sum_bytes(ones.data(), ones.size()))) % 0xffff == naive_sum(ones, 0, ones.size()) % 0xffff);
}

TEST_CASE("fold_sum: folds the largest value without losing the carry") {
  CHECK(fold_sum(~uint64_t{0}) == 0xffff);
  CHECK(fold_sum(0) == 0);
  CHECK(fold_sum(0x1'0000) == 1);
  CHECK(fold_sum(0xffff'ffff'0000'0001ULL) == 1);
}

TEST_CASE("update_checksum: equals the checksum computed anew") {
  std::mt19937 random(3);
  Bytes header(20);
  for (int round = 0; round < 1000; ++round) {
    for (auto& byte : header) byte = static_cast<uint8_t>(random());
    set16(header, 10, 0);
    const auto before = static_cast<uint16_t>(~fold_sum(sum_bytes(header.data(), 20)));
    const auto from = load_unaligned<uint16_t>(&header[4]);
    const auto to = static_cast<uint16_t>(random());
    store_unaligned(&header[4], to);
    const auto after = static_cast<uint16_t>(~fold_sum(sum_bytes(header.data(), 20)));
    REQUIRE(update_checksum(before, from, to) % 0xffff == after % 0xffff);
  }
}

TEST_CASE("finish_checksum: completes TCP and UDP over IPv4 and IPv6") {
  for (const int version : {4, 6}) {
    for (const bool udp : {false, true}) {
      for (const size_t payload : {0, 1, 2, 31, 1400, 1461}) {
        OffloadShape shape;
        shape.ip_version = version;
        shape.udp = udp;
        shape.payload = payload;
        OffloadFrame frame = make_offload_frame(shape);
        REQUIRE(finish_checksum(frame.bytes, frame.vnet));
        CHECK(check_transport(frame.bytes, frame) == "");
      }
    }
  }
}

TEST_CASE("finish_checksum: a sum of zero is sent as 0xffff") {
  OffloadShape shape;
  shape.udp = true;
  shape.payload = 2;
  OffloadFrame frame = make_offload_frame(shape);
  // Choose the payload so that everything adds up to 0xffff.
  set16(frame.bytes, frame.headers, 0);
  const uint16_t sum = naive_sum(frame.bytes, frame.l4, frame.bytes.size());
  set16(frame.bytes, frame.headers, 0xffffU - sum);
  REQUIRE(finish_checksum(frame.bytes, frame.vnet));
  CHECK(get16(frame.bytes, frame.l4 + 6) == 0xffff);
  CHECK(check_transport(frame.bytes, frame) == "");
}

TEST_CASE("finish_checksum: offsets outside the frame are refused and change nothing") {
  struct Row {
    uint16_t start, offset;
    bool fits;
  };
  const Row rows[] = {{98, 0, true},      {99, 0, false},     {0, 98, true},           {0, 99, false},
                      {0xffff, 0, false}, {0, 0xffff, false}, {0xffff, 0xffff, false}, {50, 49, false}};
  for (const Row& row : rows) {
    CAPTURE(row.start);
    CAPTURE(row.offset);
    auto exact = std::make_unique<uint8_t[]>(100);  // the sanitizer sees a byte too far
    VnetHeader vnet;
    vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    vnet.csum_start = row.start;
    vnet.csum_offset = row.offset;
    CHECK(finish_checksum({exact.get(), 100}, vnet) == row.fits);
    if (!row.fits) CHECK(std::all_of(exact.get(), exact.get() + 100, [](uint8_t byte) { return byte == 0; }));
  }
}

TEST_CASE("sum_frame: equals the sum of the linear frame however the body is cut") {
  std::mt19937 random(11);
  for (int round = 0; round < 500; ++round) {
    Bytes bytes(60 + random() % 3000);
    for (auto& byte : bytes) byte = static_cast<uint8_t>(random());
    std::vector<size_t> cuts;
    for (uint32_t i = 0; i < random() % 6; ++i) cuts.push_back(random() % 400);
    const BorrowedFrame borrowed(bytes, 60 + random() % 69, cuts);
    const auto offset = static_cast<uint32_t>(random() % (bytes.size() + 1));
    const uint16_t fast = swap(fold_sum(sum_frame(borrowed.frame, offset)));
    REQUIRE(fast % 0xffff == naive_sum(bytes, offset, bytes.size()) % 0xffff);
  }
}

TEST_CASE("checksum: the AVX2 twin agrees with the plain one, at any length and alignment") {
  if (vector_level() < VectorLevel::kAvx2) {
    MESSAGE("left out: this CPU has no AVX2");
    return;
  }
  std::mt19937_64 random(7);
  std::vector<uint8_t> bytes(4096 + 64);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  for (size_t length = 0; length <= 4000; length += length < 300 ? 1 : 37) {
    const size_t start = random() % 64;
    CHECK(sum_bytes_at(VectorLevel::kAvx2, &bytes[start], length, 5) ==
          sum_bytes_at(VectorLevel::kBase, &bytes[start], length, 5));
  }
}
