// SPDX-License-Identifier: Apache-2.0
#include "net/packet.h"

#include <doctest/doctest.h>

#include <cstring>
#include <memory>

#include "net/offload_frames.h"

using namespace sw;
using namespace sw::test;

namespace {

// Parse a copy of exactly `bytes` bytes, so that a read behind them is seen by the sanitizer.
std::optional<Packet> parse_exact(const Bytes& frame, size_t bytes) {
  auto exact = std::make_unique<uint8_t[]>(bytes);
  std::memcpy(exact.get(), frame.data(), bytes);
  return parse_packet({exact.get(), bytes});
}

}  // namespace

TEST_CASE("parse_packet: finds headers behind tags, options and extension headers") {
  for (const int version : {4, 6}) {
    for (const bool udp : {false, true}) {
      for (const int tags : {0, 1, 2, 3}) {
        for (const size_t options : {size_t{0}, size_t{8}, size_t{40}}) {
          OffloadShape shape;
          shape.ip_version = version;
          shape.udp = udp;
          shape.tags = tags;
          shape.ip_options = options;
          shape.tcp_options = 12;
          shape.payload = 50;
          const OffloadFrame frame = make_offload_frame(shape);
          const auto packet = parse_exact(frame.bytes, frame.bytes.size());
          REQUIRE(packet);
          CHECK(packet->ip_version == version);
          CHECK(packet->protocol == (udp ? 17 : 6));
          CHECK(packet->l3 == frame.l3);
          CHECK(packet->l4 == frame.l4);
          CHECK(packet->l4 + packet->l4_header_bytes == frame.headers);
          CHECK(packet->l3_bytes == frame.bytes.size() - frame.l3);
          CHECK_FALSE(packet->fragment);
        }
      }
    }
  }
}

TEST_CASE("parse_packet: every truncation is handled and offsets stay inside") {
  for (const int version : {4, 6}) {
    OffloadShape shape;
    shape.ip_version = version;
    shape.tags = 1;
    shape.ip_options = 24;
    shape.tcp_options = 20;
    const OffloadFrame frame = make_offload_frame(shape);
    for (size_t bytes = 0; bytes < frame.headers; ++bytes) {
      const auto packet = parse_exact(frame.bytes, bytes);
      CHECK(packet.has_value() == (bytes >= 18));
      if (packet) {
        CHECK(packet->l4_header_bytes == 0);
        CHECK(packet->l4 <= bytes);
      }
    }
  }
}

TEST_CASE("parse_packet: headers that lie are not IP or have no transport") {
  OffloadShape shape;
  const OffloadFrame good = make_offload_frame(shape);
  const auto with = [&](size_t at, uint8_t value) {
    Bytes bytes = good.bytes;
    bytes.at(at) = value;
    return *parse_exact(bytes, bytes.size());
  };
  CHECK(with(good.l3, 0x55).ip_version == 0);    // version 5 behind the IPv4 type
  CHECK(with(good.l3, 0x44).ip_version == 0);    // header of 16 bytes
  CHECK(with(good.l3, 0x4f).ip_version == 0);    // header longer than the frame
  CHECK(with(good.l3 + 3, 19).ip_version == 0);  // total length below the header
  CHECK(with(good.l3 + 6, 0x20).fragment);       // more fragments
  CHECK(with(good.l3 + 7, 1).fragment);          // offset
  CHECK(with(good.l3 + 7, 1).l4_header_bytes == 0);
  CHECK(with(good.l4 + 12, 0x40).l4_header_bytes == 0);  // TCP header of 16 bytes
  CHECK(with(good.l4 + 12, 0xf0).l4_header_bytes == 0);  // TCP header longer than the frame
  CHECK(with(good.l3 + 9, 50).l4_header_bytes == 0);     // ESP
  CHECK(with(12, 0x88).ip_version == 0);
}

TEST_CASE("parse_packet: IPv6 fragments and routing headers with hops to go have no transport") {
  OffloadShape shape;
  shape.ip_version = 6;
  shape.ip_options = 8;
  OffloadFrame frame = make_offload_frame(shape);
  frame.bytes.at(frame.l3 + 6) = 44;
  auto packet = parse_exact(frame.bytes, frame.bytes.size());
  CHECK(packet->fragment);
  CHECK(packet->l4_header_bytes == 0);
  frame.bytes.at(frame.l3 + 6) = 43;
  frame.bytes.at(frame.l3 + 40 + 3) = 1;
  CHECK(parse_exact(frame.bytes, frame.bytes.size())->l4_header_bytes == 0);
  frame.bytes.at(frame.l3 + 40 + 3) = 0;
  CHECK(parse_exact(frame.bytes, frame.bytes.size())->l4_header_bytes == 20);
}
