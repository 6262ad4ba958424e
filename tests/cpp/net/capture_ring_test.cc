// SPDX-License-Identifier: Apache-2.0
#include "net/capture_ring.h"

#include <doctest/doctest.h>

#include <memory>

using namespace sw;

namespace {

constexpr size_t kSize = size_t{256} << 10;

// A frame of `len` bytes that begin with `number`, the rest behind its head.
struct Made {
  Made(uint32_t number, uint32_t len) : bytes(len, static_cast<char>(number)), frame(std::make_unique<Frame>()) {
    frame->clear_marks();
    frame->len = len;
    frame->head_len = std::min(len, kHeadBytes);
    std::memcpy(frame->head, bytes.data(), frame->head_len);
    frame->body = {reinterpret_cast<const uint8_t*>(bytes.data()) + frame->head_len, len - frame->head_len};
    frame->segments = &frame->body;
    frame->segment_count = 1;
  }
  std::string bytes;
  std::unique_ptr<Frame> frame;
};

}  // namespace

TEST_CASE("capture ring: frames of every length come out whole and in order, round after round") {
  CaptureRing ring(kSize);
  uint32_t number = 0;
  // Lengths that leave every multiple of 8 at the end of the ring, and more than fits nowhere else.
  for (uint32_t len = 14; len <= kMaxFrameBytes; len = len < 400 ? len + 1 : len * 5 / 4) {
    const Made made(++number, len);
    for (int i = 0; i < 3; ++i) {
      ring.write(*made.frame, kMaxFrameBytes, CaptureWay::kTx, 7, DropReason::kRingFull, number);
    }
    const auto frames = ring.read(100);
    CAPTURE(len);
    REQUIRE(frames.size() == 3);
    for (const CapturedFrame& frame : frames) {
      CHECK(frame.bytes == made.bytes);
      CHECK(frame.len == len);
      CHECK(frame.queue == 7);
      CHECK(frame.realtime_ns == number);
      CHECK(frame.way == CaptureWay::kTx);
      CHECK(frame.drop == DropReason::kRingFull);
    }
  }
  CHECK(ring.missed() == 0);
}

TEST_CASE("capture ring: what finds no room is counted, and room comes with reading") {
  CaptureRing ring(kSize);
  const Made made(1, 1000);
  uint32_t written = 0;
  for (; ring.missed() == 0; ++written) ring.write(*made.frame, 4096, CaptureWay::kRx, 0, kNoDrop, 0);
  CHECK(written - 1 == kSize / 1024);  // 24 bytes of head each
  CHECK(ring.read(10).size() == 10);
  for (uint32_t i = 0; i < 10; ++i) ring.write(*made.frame, 4096, CaptureWay::kRx, 0, kNoDrop, 0);
  CHECK(ring.missed() == 1);
  ring.write(*made.frame, 4096, CaptureWay::kRx, 0, kNoDrop, 0);
  CHECK(ring.missed() == 2);
  CHECK(ring.read(1000).size() == written - 1);
  CHECK(ring.read(1000).empty());
}

TEST_CASE("capture ring: a frame is cut to what was asked for") {
  CaptureRing ring(kSize);
  const Made made(3, 300);
  for (const uint32_t most : {0U, 1U, 64U, 128U, 129U, 300U, 301U}) {
    ring.write(*made.frame, most, CaptureWay::kRx, 0, kNoDrop, 0);
    const auto frames = ring.read(2);
    REQUIRE(frames.size() == 1);
    CHECK(frames[0].len == 300);
    CHECK(frames[0].bytes == made.bytes.substr(0, most));
  }
}
