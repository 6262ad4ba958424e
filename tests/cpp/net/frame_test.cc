// SPDX-License-Identifier: Apache-2.0
#include "net/frame.h"

#include <doctest/doctest.h>

#include <memory>
#include <vector>

namespace sw {
namespace {

using Bytes = std::vector<uint8_t>;

// A frame as a receive queue would give it: head loaded, the rest in two segments.
struct Loaded {
  explicit Loaded(Bytes whole, bool tagged) : bytes(std::move(whole)), frame(std::make_unique<Frame>()) {
    *frame = Frame{};
    frame->len = static_cast<uint32_t>(bytes.size());
    frame->head_len = static_cast<uint16_t>(std::min<size_t>(bytes.size(), kHeadBytes));
    std::memcpy(frame->head, bytes.data(), frame->head_len);
    const uint32_t rest = frame->len - frame->head_len, first = rest / 3;
    segments = {{bytes.data() + frame->head_len, first}, {bytes.data() + frame->head_len + first, rest - first}};
    frame->segments = segments.data();
    frame->segment_count = 2;
    frame->tagged = tagged;
  }
  [[nodiscard]] Bytes now() const {
    Bytes result(frame->len);
    copy_from_frame(*frame, 0, result.data(), frame->len);
    return result;
  }
  Bytes bytes;
  std::vector<Segment> segments;
  std::unique_ptr<Frame> frame;
};

Bytes ramp(size_t size) {
  Bytes result(size);
  for (size_t i = 0; i < size; ++i) result[i] = static_cast<uint8_t>(i * 13 + i / 256);
  return result;
}

Bytes with_tag(const Bytes& plain, uint16_t tci) {
  Bytes result = plain;
  const uint8_t tag[] = {0x81, 0x00, static_cast<uint8_t>(tci >> 8), static_cast<uint8_t>(tci)};
  result.insert(result.begin() + 12, tag, tag + 4);
  return result;
}

TEST_CASE("Frame: a tag is pushed and popped at every length, in any order, any number of times") {
  for (const size_t size : {14U, 15U, 18U, 60U, 64U, 123U, 124U, 125U, 127U, 128U, 129U, 132U, 1514U, 65535U}) {
    CAPTURE(size);
    const Bytes plain = ramp(size), tagged = with_tag(plain, 0xe00a);
    Loaded in(plain, false);
    in.frame->tci = 0xe00a;
    for (const char step : {'t', 't', 'u', 'u', 't', 'u', 't'}) {
      step == 't' ? shape_tagged(*in.frame) : shape_untagged(*in.frame);
      REQUIRE(in.now() == (step == 't' ? tagged : plain));
      REQUIRE(in.frame->tagged == (step == 't'));
    }
    Loaded out(tagged, true);
    out.frame->tci = 0xe00a;
    for (const char step : {'u', 'u', 't', 't', 'u', 't', 'u'}) {
      step == 't' ? shape_tagged(*out.frame) : shape_untagged(*out.frame);
      REQUIRE(out.now() == (step == 't' ? tagged : plain));
    }
    CHECK(in.bytes == plain);  // the source's memory is never written
    CHECK(out.bytes == tagged);
  }
}

TEST_CASE("Frame: the head never leaves its room") {
  for (const bool tagged : {false, true}) {
    Loaded in(ramp(200), tagged);
    for (int i = 0; i < 10; ++i) {
      shape_tagged(*in.frame);
      CHECK(in.frame->head_offset >= -static_cast<int>(kHeadRoom));
      CHECK(in.frame->head_offset + in.frame->head_len == kHeadBytes);
      shape_untagged(*in.frame);
      CHECK(in.frame->head_offset <= 4);
      CHECK(in.frame->head_offset + in.frame->head_len == kHeadBytes);
    }
  }
}

TEST_CASE("Frame: a tag that is there is rewritten, a priority tag too") {
  const Bytes plain = ramp(64);
  Loaded in(with_tag(plain, 0xe000), true);
  in.frame->tci = 0xe00a;
  shape_tagged(*in.frame);
  CHECK(in.now() == with_tag(plain, 0xe00a));
}

TEST_CASE("Frame: offload offsets move with the tag and come back") {
  Loaded in(ramp(100), false);
  in.frame->offload = true;
  in.frame->vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  in.frame->vnet.csum_start = 34;
  in.frame->vnet.csum_offset = 16;
  in.frame->vnet.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
  in.frame->vnet.hdr_len = 54;
  shape_tagged(*in.frame);
  CHECK(in.frame->vnet.csum_start == 38);
  CHECK(in.frame->vnet.csum_offset == 16);
  CHECK(in.frame->vnet.hdr_len == 58);
  shape_untagged(*in.frame);
  CHECK(in.frame->vnet.csum_start == 34);
  CHECK(in.frame->vnet.hdr_len == 54);
}

TEST_CASE("Frame: offsets that mean nothing stay as they are") {
  Loaded in(ramp(100), false);
  in.frame->offload = true;
  in.frame->vnet.flags = VIRTIO_NET_HDR_F_DATA_VALID;
  in.frame->vnet.csum_start = 34;
  in.frame->vnet.hdr_len = 54;
  shape_tagged(*in.frame);
  CHECK(in.frame->vnet.csum_start == 34);
  CHECK(in.frame->vnet.hdr_len == 54);
}

TEST_CASE("Frame: offsets that a guest made up saturate and do not wrap") {
  Loaded low(ramp(100), true);
  low.frame->offload = true;
  low.frame->vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  low.frame->vnet.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
  low.frame->vnet.csum_start = 3;
  low.frame->vnet.hdr_len = 1;
  shape_untagged(*low.frame);
  CHECK(low.frame->vnet.csum_start == 0);
  CHECK(low.frame->vnet.hdr_len == 0);
  Loaded high(ramp(100), false);
  high.frame->offload = true;
  high.frame->vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  high.frame->vnet.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
  high.frame->vnet.csum_start = 0xfffe;
  high.frame->vnet.hdr_len = 0;
  shape_tagged(*high.frame);
  CHECK(high.frame->vnet.csum_start == 0xffff);
  CHECK(high.frame->vnet.hdr_len == 0);  // no hint stays no hint
}

TEST_CASE("Frame: any part can be copied out of head and segments") {
  const Bytes bytes = ramp(700);
  const Loaded in(bytes, false);
  for (uint32_t offset = 0; offset <= 700; offset += 7) {
    for (uint32_t count = 0; offset + count <= 700; count += 31) {
      Bytes part(count + 1, 0xee);
      copy_from_frame(*in.frame, offset, part.data(), count);
      CHECK(std::memcmp(part.data(), bytes.data() + offset, count) == 0);
      CHECK(part[count] == 0xee);
    }
  }
}

}  // namespace
}  // namespace sw
