// SPDX-License-Identifier: Apache-2.0
// When lines count as far, and that frames are the same bytes then.
#include "virtio/line_watch.h"

#include <doctest/doctest.h>

#include <set>
#include <string>
#include <vector>

#include "virtio/driver_loop.h"

namespace sw {
namespace {

constexpr uint32_t kFar = 300;

// Batches until a note is wanted.
uint32_t batches_until_due(LineWatch& watch) {
  uint32_t batches = 1;
  while (!watch.due()) ++batches;
  return batches;
}

// Notes that many lines of either sort, the far ones last or first.
void note_lines(LineWatch& watch, uint32_t near, uint32_t far, bool far_first) {
  for (uint32_t i = 0; i < near + far; ++i) {
    (void)batches_until_due(watch);
    REQUIRE(watch.wants_line());
    watch.note((i < (far_first ? far : near)) == far_first ? kFar : kFar - 1);
  }
}

TEST_CASE("LineWatch: most of the lines decide") {
  struct Row {
    const char* situation;
    uint32_t far_ticks, near, far;
    bool expected;
  };
  for (const Row& row : {
           Row{"all near", kFar, 15, 0, false},
           Row{"all far", kFar, 0, 15, true},
           Row{"one more far than near", kFar, 7, 8, true},
           Row{"one more near than far", kFar, 8, 7, false},
           Row{"lines cannot be given back on this CPU", 0, 0, 15, false},
       }) {
    for (const bool far_first : {false, true}) {
      CAPTURE(row.situation);
      LineWatch watch(row.far_ticks);
      CHECK(watch.ticks() == 0);
      note_lines(watch, row.near, row.far, far_first);
      CHECK(watch.far() == row.expected);
      CHECK(watch.ticks() == (row.far > row.near ? kFar : kFar - 1));
    }
  }
}

TEST_CASE("LineWatch: lines are looked at some batches apart, and rarely once it is decided") {
  LineWatch watch(kFar);
  for (uint32_t i = 0; i < LineWatch::kSamples; ++i) {
    CHECK(batches_until_due(watch) == LineWatch::kSpacing);
    watch.note(1);
  }
  CHECK(batches_until_due(watch) == LineWatch::kNearBatches);
  watch.note_none();  // a batch of short frames: another one will do
  CHECK(batches_until_due(watch) == LineWatch::kSpacing);
}

TEST_CASE("LineWatch: what is far goes without for a while before it is measured again") {
  LineWatch watch(kFar);
  note_lines(watch, 0, LineWatch::kSamples, false);
  REQUIRE(watch.far());
  CHECK(batches_until_due(watch) == LineWatch::kFarBatches);
  CHECK_FALSE(watch.wants_line());
  watch.note_none();
  CHECK_FALSE(watch.far());
  CHECK(batches_until_due(watch) == LineWatch::kSettleBatches);
  CHECK(watch.wants_line());
  watch.note(1);
  note_lines(watch, LineWatch::kSamples - 1, 0, false);
  CHECK_FALSE(watch.far());
}

TEST_CASE("Device rings: frames are the same bytes, near or far") {
  if (LineWatch::default_far_ticks() == 0) return;  // no CLFLUSHOPT here
  for (const uint64_t features : test::all_feature_sets()) {
    for (const uint32_t far_ticks : {uint32_t{1}, UINT32_MAX}) {
      CAPTURE(features);
      CAPTURE(far_ticks);
      test::Loop loop({.features = features, .far_ticks = far_ticks});
      const bool mergeable = has_feature(features, VIRTIO_NET_F_MRG_RXBUF);
      uint32_t number = 0;
      for (uint32_t pass = 0; pass < LineWatch::kSpacing * (LineWatch::kSamples + 4); ++pass) {
        std::vector<test::Bytes> sent;
        for (const uint32_t len : {1514U, 60U, 128U, 255U, 256U, 700U, mergeable ? 9000U : 1000U}) {
          sent.push_back(test::make_frame(len, number++));
        }
        REQUIRE(loop.driver_send(sent) == sent.size());
        REQUIRE(loop.device_pass() == sent.size());
        REQUIRE(loop.driver_receive() == sent);
      }
      CHECK(loop.device_rx->line_ticks() > 0);  // both have decided
      CHECK(loop.device_tx->line_ticks() > 0);
    }
  }
}

}  // namespace
}  // namespace sw
