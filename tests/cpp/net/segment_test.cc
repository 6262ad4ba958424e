// SPDX-License-Identifier: Apache-2.0
#include "net/segment.h"

#include <doctest/doctest.h>

#include <cstring>
#include <functional>
#include <memory>

#include "net/checksum.h"
#include "net/offload_frames.h"

using namespace sw;
using namespace sw::test;

namespace {

std::vector<Bytes> cut(const OffloadFrame& frame) {
  const auto segmenter = Segmenter::make(frame.bytes, static_cast<uint32_t>(frame.bytes.size()), frame.vnet);
  std::vector<Bytes> out;
  if (!segmenter) return out;
  for (uint32_t i = 0; i < segmenter->count(); ++i) {
    const uint8_t* const payload = frame.bytes.data() + segmenter->payload_offset(i);
    Bytes segment(segmenter->header_bytes());
    segmenter->write_header(i, sum_bytes(payload, segmenter->payload_bytes(i)), segment.data());
    segment.insert(segment.end(), payload, payload + segmenter->payload_bytes(i));
    out.push_back(segment);
  }
  return out;
}

bool refused(OffloadFrame frame, const std::function<void(OffloadFrame&)>& change) {
  change(frame);
  return !Segmenter::make(frame.bytes, static_cast<uint32_t>(frame.bytes.size()), frame.vnet).has_value();
}

}  // namespace

TEST_CASE("Segmenter: makes exactly the frames of the plain implementation") {
  uint32_t seed = 0;
  for (const int version : {4, 6}) {
    for (const bool udp : {false, true}) {
      for (const int tags : {0, 1}) {
        for (const size_t options : {size_t{0}, size_t{8}, size_t{40}}) {
          for (const size_t payload : {0, 1, 999, 1000, 1001, 2000, 2001, 30'001, 65'000}) {
            OffloadShape shape;
            shape.ip_version = version;
            shape.udp = udp;
            shape.tags = tags;
            shape.ip_options = options;
            shape.tcp_options = udp ? 0 : 12;
            shape.payload = payload;
            shape.gso_size = payload == 30'001 ? 999 : 1000;
            shape.tcp_flags = 0x99;  // CWR ACK PSH FIN
            const OffloadFrame frame = make_offload_frame(shape, ++seed);
            const auto expected = naive_segments(frame);
            const auto got = cut(frame);
            REQUIRE(got.size() == expected.size());
            for (size_t i = 0; i < got.size(); ++i) {
              CAPTURE(i);
              REQUIRE(got[i] == expected[i]);
              REQUIRE(check_transport(got[i], frame) == "");
            }
          }
        }
      }
    }
  }
}

TEST_CASE("Segmenter: the longest segment is what an MTU must carry") {
  OffloadShape shape;
  shape.tags = 1;
  shape.payload = 5000;
  shape.gso_size = 1448;
  shape.tcp_options = 12;
  const OffloadFrame frame = make_offload_frame(shape);
  const auto segmenter = Segmenter::make(frame.bytes, static_cast<uint32_t>(frame.bytes.size()), frame.vnet);
  REQUIRE(segmenter);
  CHECK(segmenter->longest_l3_bytes() == 1500);
  shape.payload = 100;
  const OffloadFrame small = make_offload_frame(shape);
  CHECK(Segmenter::make(small.bytes, static_cast<uint32_t>(small.bytes.size()), small.vnet)->longest_l3_bytes() == 152);
}

TEST_CASE("Segmenter: padding behind the IP packet is not payload, length 0 means all of it") {
  OffloadShape shape;
  shape.payload = 3;
  shape.gso_size = 1000;
  OffloadFrame frame = make_offload_frame(shape);
  const OffloadFrame unpadded = frame;
  frame.bytes.resize(frame.bytes.size() + 3);
  CHECK(cut(frame) == naive_segments(unpadded));
  OffloadFrame no_length = unpadded;
  set16(no_length.bytes, no_length.l3 + 2, 0);
  CHECK(cut(no_length) == naive_segments(unpadded));
}

TEST_CASE("Segmenter: refuses what does not add up") {
  OffloadShape shape;
  shape.payload = 4000;
  shape.gso_size = 1000;
  const OffloadFrame good = make_offload_frame(shape);
  REQUIRE_FALSE(refused(good, [](OffloadFrame&) {}));
  struct Row {
    const char* what;
    std::function<void(OffloadFrame&)> change;
  };
  const Row rows[] = {
      {"gso_size 0", [](OffloadFrame& f) { f.vnet.gso_size = 0; }},
      {"gso_size so small that it makes a flood", [](OffloadFrame& f) { f.vnet.gso_size = 1; }},
      {"no NEEDS_CSUM", [](OffloadFrame& f) { f.vnet.flags = 0; }},
      {"type none", [](OffloadFrame& f) { f.vnet.gso_type = VIRTIO_NET_HDR_GSO_NONE; }},
      {"ECN alone", [](OffloadFrame& f) { f.vnet.gso_type = VIRTIO_NET_HDR_GSO_ECN; }},
      {"UFO", [](OffloadFrame& f) { f.vnet.gso_type = VIRTIO_NET_HDR_GSO_UDP; }},
      {"unknown type", [](OffloadFrame& f) { f.vnet.gso_type = 0x7f; }},
      {"TCPv6 on IPv4", [](OffloadFrame& f) { f.vnet.gso_type = VIRTIO_NET_HDR_GSO_TCPV6; }},
      {"USO on TCP", [](OffloadFrame& f) { f.vnet.gso_type = VIRTIO_NET_HDR_GSO_UDP_L4; }},
      {"csum_start elsewhere", [](OffloadFrame& f) { f.vnet.csum_start += 2; }},
      {"csum_start at the end", [](OffloadFrame& f) { f.vnet.csum_start = 0xffff; }},
      {"csum_offset of UDP", [](OffloadFrame& f) { f.vnet.csum_offset = 6; }},
      {"IP length beyond the frame", [](OffloadFrame& f) { set16(f.bytes, f.l3 + 2, 4100); }},
      {"IP length below the headers", [](OffloadFrame& f) { set16(f.bytes, f.l3 + 2, 30); }},
      {"fragment", [](OffloadFrame& f) { set16(f.bytes, f.l3 + 6, 0x2000); }},
      {"IP header length", [](OffloadFrame& f) { f.bytes[f.l3] = 0x41; }},
      {"TCP header length", [](OffloadFrame& f) { f.bytes[f.l4 + 12] = 0x10; }},
      {"cut in the TCP header", [](OffloadFrame& f) { f.bytes.resize(f.l4 + 19); }},
      {"cut in the Ethernet header", [](OffloadFrame& f) { f.bytes.resize(13); }},
      {"not IP", [](OffloadFrame& f) { set16(f.bytes, 12, 0x0806); }},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    CHECK(refused(good, row.change));
  }
}

TEST_CASE("Segmenter: ECN beside TCP is accepted, hdr_len is not believed") {
  OffloadShape shape;
  shape.payload = 4000;
  shape.gso_size = 1000;
  OffloadFrame frame = make_offload_frame(shape);
  frame.vnet.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
  for (const uint16_t lie : {uint16_t{0}, uint16_t{14}, uint16_t{0xffff}}) {
    frame.vnet.hdr_len = lie;
    CHECK(cut(frame) == naive_segments(frame));
  }
}

TEST_CASE("Segmenter: headers longer than its limit are refused") {
  OffloadShape shape;
  shape.ip_version = 6;
  shape.payload = 4000;
  shape.gso_size = 1000;
  shape.ip_options = 256 - 14 - 40 - 20;
  shape.ip_options = shape.ip_options / 8 * 8;
  CHECK(cut(make_offload_frame(shape)).size() == 4);
  shape.ip_options += 8;
  CHECK(cut(make_offload_frame(shape)).empty());
}
