// SPDX-License-Identifier: Apache-2.0
// A guest that changes its descriptors, lengths and headers while we look at them. Under ASan a second look at a field
// that was checked before runs into RawGuest's inaccessible pages; the invariants below catch the rest. Not for TSan:
// the guest races on purpose, and payload bytes are plain memory.
#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "support/raw_guest.h"

#if !defined(__SANITIZE_THREAD__)

namespace sw {
namespace {

using testing::both_rings;
using testing::Desc;
using testing::Pass;
using testing::pattern_frame;
using testing::RawGuest;

constexpr uint64_t kBuffer = RawGuest::kBuffers;
constexpr uint64_t kTable = RawGuest::kBuffers + 0x80000;
constexpr int kRounds = 3000;

// Flips bits of `words` until destroyed, keeping an honest value every other time.
class Flipper {
 public:
  struct Word {
    uint32_t* at;
    std::vector<uint32_t> values;
  };
  explicit Flipper(std::vector<Word> words) : words_(std::move(words)), thread_([this] { run(); }) {}
  ~Flipper() {
    stop_.store(true);
    thread_.join();
  }

 private:
  void run() {
    for (uint32_t turn = 0; !stop_.load(std::memory_order_relaxed); ++turn) {
      for (const Word& word : words_) store_relaxed(*word.at, word.values[turn / 7 % word.values.size()]);
    }
  }
  std::vector<Word> words_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

uint32_t* word(const RawGuest& guest, uint64_t at) { return reinterpret_cast<uint32_t*>(guest.at(at)); }

// len and addr of descriptor `at` flip between an honest buffer and the last bytes of memory.
std::vector<Flipper::Word> descriptor_words(const RawGuest& guest, uint64_t at) {
  return {{word(guest, at), {static_cast<uint32_t>(kBuffer), static_cast<uint32_t>(RawGuest::kEnd - 80)}},
          {word(guest, at + 8), {76, 0xffffffff, 2000, 0, 80, 13}}};
}

// Everything a worker would touch of a batch.
void use(const Batch& batch, uint32_t max_bytes) {
  std::vector<uint8_t> copy;
  for (uint32_t i = 0; i < batch.count; ++i) {
    const Frame& frame = batch.frames[i];
    REQUIRE(frame.len >= kEthHeaderBytes);
    REQUIRE(frame.len <= max_bytes);
    uint64_t sum = frame.head_len;
    for (uint32_t s = 0; s < frame.segment_count; ++s) sum += frame.segments[s].len;
    REQUIRE(sum == frame.len);
    if (frame.offload) REQUIRE(frame.vnet.csum_start + frame.vnet.csum_offset + 2U <= frame.len);
    copy.resize(frame.len);
    copy_from_frame(frame, 0, copy.data(), frame.len);
  }
}

TEST_CASE("Regression: rx uses the descriptors and headers that it checked, though they change meanwhile") {
  for (const uint64_t features : both_rings(feature_mask(VIRTIO_F_INDIRECT_DESC, VIRTIO_NET_F_CSUM))) {
    for (const int shape : {0, 1, 2}) {  // one descriptor, a chain, a table
      CAPTURE(features);
      CAPTURE(shape);
      RawGuest guest(features);
      Pass pass;
      auto rx = make_device_rx(guest.config(), pass.counters);
      // The flipped descriptors keep their place: slot 0 (and 1) of the ring, or entry 0 of the table.
      std::vector<Flipper::Word> words = descriptor_words(guest, shape == 2 ? kTable : RawGuest::kRing);
      words.push_back({word(guest, kBuffer), {0, 1}});                          // NEEDS_CSUM on and off
      words.push_back({word(guest, kBuffer + 4), {0x0022'0000, 0xffff'0000}});  // csum_start 34 or 65535
      words.push_back({word(guest, kBuffer + 8), {16, 0xffff}});
      guest.write_table({{kBuffer, 76}, {kBuffer + 0x1000, 50}}, kTable);
      const Flipper flipper(std::move(words));
      for (int round = 0; round < kRounds && rx->broken().empty(); ++round) {
        std::vector<Desc> chain = {{kBuffer, 76}};
        if (shape == 1) chain.push_back({kBuffer + 0x1000, 50});
        if (shape == 2) chain = {{kTable, 32, VRING_DESC_F_INDIRECT}};
        guest.add(chain);
        if (pass.peek(*rx)) {
          use(*pass.batch, kMaxFrameBytes);
          rx->release();
        }
        guest.reap();
      }
      CHECK(pass.counters.frames.get() > 0);
    }
  }
}

TEST_CASE("Regression: tx writes only inside the buffers that it checked, though descriptors change meanwhile") {
  for (const uint64_t features : both_rings(feature_mask(VIRTIO_F_INDIRECT_DESC, VIRTIO_NET_F_MRG_RXBUF))) {
    for (const int shape : {0, 1, 2}) {
      CAPTURE(features);
      CAPTURE(shape);
      RawGuest guest(features);
      Pass pass;
      auto tx = make_device_tx(guest.config(), pass.counters);
      auto batch = std::make_unique<Batch>();
      const auto bytes = pattern_frame(900);
      Frame& frame = batch->frames[0];
      frame = {};
      frame.len = 900;
      frame.head_len = kHeadBytes;
      std::memcpy(frame.head, bytes.data(), kHeadBytes);
      batch->segments[0] = {bytes.data() + kHeadBytes, 900 - kHeadBytes};
      frame.segments = batch->segments.data();
      frame.segment_count = 1;
      batch->count = 1;
      const std::array<uint8_t, 1> index{0};
      constexpr uint16_t kWrite = VRING_DESC_F_WRITE;
      guest.write_table({{kBuffer, 76, kWrite}, {kBuffer + 0x1000, 50, kWrite}}, kTable);
      const Flipper flipper(descriptor_words(guest, shape == 2 ? kTable : RawGuest::kRing));
      uint64_t done = 0;
      for (int round = 0; round < kRounds && tx->broken().empty(); ++round) {
        std::vector<Desc> chain = {{kBuffer, 76, kWrite}};
        if (shape == 1) chain.push_back({kBuffer + 0x1000, 50, kWrite});
        if (shape == 2) chain = {{kTable, 32, VRING_DESC_F_INDIRECT}};
        guest.add(chain);
        done += tx->send(*batch, index, pass.drops);
        guest.reap();
      }
      CHECK((done > 0 || !tx->broken().empty()));
    }
  }
}

}  // namespace
}  // namespace sw

#endif
