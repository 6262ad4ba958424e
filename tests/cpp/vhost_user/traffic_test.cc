// SPDX-License-Identifier: Apache-2.0
// TrafficRunner against a device that gives every frame back, each option as a row.
#include "vhost_user/traffic.h"

#include <chrono>
#include <mutex>
#include <numeric>
#include <set>

#include "base/bytes.h"
#include "base/clock.h"
#include "stats/latency.h"
#include "support/echo_device.h"
#include "support/eventually.h"
#include "support/temp_dir.h"
#include "virtio/spec.h"

namespace sw::testing {
namespace {

TrafficOptions options_for(const TempDir& directory) {
  TrafficOptions options;
  options.guest.socket = directory.file("s");
  options.guest.huge = HugePages::kOff;
  options.mac = 0x0200'0000'0001;
  options.peer = 0x0200'0000'0002;
  return options;
}

uint64_t sum(const std::vector<uint64_t>& counts) { return std::accumulate(counts.begin(), counts.end(), uint64_t{0}); }

// What the device saw of the frames.
struct Seen {
  std::mutex mutex;
  uint64_t frames = 0;
  uint64_t gso = 0;            // frames that ask for segments of the wanted size
  std::set<uint64_t> stamps;   // sequence numbers
  std::set<uint64_t> sources;  // addresses

  std::function<void(const Frame&)> looker() {
    return [this](const Frame& frame) {
      const std::lock_guard lock(mutex);
      ++frames;
      const uint8_t* bytes = frame.data();
      const bool tcp = load_be16(bytes + 12) == kEtherTypeIpv4;
      stamps.insert(load_unaligned<uint64_t>(bytes + (tcp ? 56 : 16)));
      sources.insert(uint64_t{load_be32(bytes + 6)} << 16 | load_be16(bytes + 10));
      if (frame.offload && frame.vnet.gso_type == VIRTIO_NET_HDR_GSO_TCPV4 && frame.vnet.gso_size == 1448) ++gso;
    };
  }
};

}  // namespace

TEST_CASE("TrafficRunner: sends and receives bursts, limited and not, and counts them") {
  for (const uint64_t rate : {uint64_t{0}, uint64_t{20'000}}) {
    for (const bool packed : {false, true}) {
      CAPTURE(rate);
      CAPTURE(packed);
      TempDir directory;
      TrafficOptions options;
      options.guest.socket = directory.file("s");
      options.guest.packed = packed;
      options.guest.huge = HugePages::kOff;
      options.frame_bytes = packed ? 1518 : 64;
      options.rate = rate;
      options.mac = 0x0200'0000'0001;
      options.peer = 0x0200'0000'0002;
      options.pairs = 2;
      EchoThread device(options.guest.socket);
      TrafficRunner runner({options}, -1);
      REQUIRE(static_cast<bool>(runner.start()));
      REQUIRE(runner.wait_ready(5000));
      CHECK(eventually([&] { return runner.stats()[0].rx_frames > 1000; }));
      runner.stop();
      const TrafficStats stats = runner.stats()[0];
      CHECK(stats.tx_frames >= stats.rx_frames);
      CHECK(stats.tx_bytes == stats.tx_frames * options.frame_bytes);
      CHECK(stats.foreign == 0);
      CHECK(stats.reordered == 0);
    }
  }
}

TEST_CASE("TrafficRunner: what guests do with a frame's bytes") {
  struct Row {
    TrafficTouch touch;
    bool new_stamps;  // every lap of the ring, since the guest writes its frames
  };
  for (const Row row :
       {Row{TrafficTouch::kWhole, true}, Row{TrafficTouch::kHead, true}, Row{TrafficTouch::kNever, false}}) {
    for (const bool packed : {false, true}) {
      CAPTURE(static_cast<int>(row.touch));
      CAPTURE(packed);
      TempDir directory;
      TrafficOptions options = options_for(directory);
      options.touch = row.touch;
      options.guest.packed = packed;
      options.pairs = 3;
      Seen seen;
      EchoThread device(options.guest.socket, false, seen.looker());
      TrafficRunner runner({options}, -1);
      REQUIRE(static_cast<bool>(runner.start()));
      REQUIRE(eventually([&] { return runner.stats()[0].rx_frames > 2000; }));
      runner.stop();
      const std::lock_guard lock(seen.mutex);
      CHECK((seen.stamps.size() > 1000) == row.new_stamps);
      CHECK(seen.sources.size() == 3);
      CHECK(runner.stats()[0].foreign == 0);
    }
  }
}

TEST_CASE("TrafficRunner: segments for the other side to cut") {
  for (const bool packed : {false, true}) {
    CAPTURE(packed);
    TempDir directory;
    TrafficOptions options = options_for(directory);
    options.guest.packed = packed;
    options.gso_bytes = 1448;
    options.frame_bytes = 65'226;
    Seen seen;
    EchoThread device(options.guest.socket, false, seen.looker());
    TrafficRunner runner({options}, -1);
    runner.set_window(2);
    REQUIRE(static_cast<bool>(runner.start()));
    REQUIRE(eventually([&] { return runner.stats()[0].rx_frames > 50; }));
    runner.stop();
    const TrafficStats stats = runner.stats()[0];
    CHECK(stats.rx_bytes == stats.rx_frames * options.frame_bytes);
    CHECK(stats.foreign == 0);
    const std::lock_guard lock(seen.mutex);
    CHECK(seen.gso == seen.frames);
  }
}

TEST_CASE("TrafficRunner: every frame that arrives is in the histogram of latencies, if asked for") {
  for (const bool wanted : {false, true}) {
    CAPTURE(wanted);
    TempDir directory;
    TrafficOptions options = options_for(directory);
    options.latency = wanted;
    EchoThread device(options.guest.socket);
    const uint64_t began = tsc_now();
    TrafficRunner runner({options}, -1);
    REQUIRE(static_cast<bool>(runner.start()));
    REQUIRE(eventually([&] { return runner.stats()[0].rx_frames > 1000; }));
    runner.stop();
    const std::vector<uint64_t> counts = runner.latency();
    CHECK(sum(counts) == (wanted ? runner.stats()[0].rx_frames : 0));
    // No frame was under way for longer than all of this took.
    for (size_t bucket = LatencyHistogram::bucket_of(tsc_now() - began) + 1; bucket < counts.size(); ++bucket) {
      CHECK(counts[bucket] == 0);
    }
  }
}

TEST_CASE("TrafficRunner: a window bounds the frames under way, beside a rate too, and what is lost is made up for") {
  for (const uint64_t rate : {uint64_t{0}, uint64_t{1'000'000}}) {
    CAPTURE(rate);
    TempDir directory;
    TrafficOptions options = options_for(directory);
    options.rate = rate;
    EchoThread device(options.guest.socket);
    device.set_silent(true);
    const auto began = std::chrono::steady_clock::now();
    TrafficRunner runner({options}, -1);
    runner.set_window(5);
    REQUIRE(static_cast<bool>(runner.start()));
    // Nothing comes back: each time the runner gives frames up for lost, after 20 ms, five more.
    REQUIRE(eventually([&] { return runner.stats()[0].tx_frames >= 15; }));
    const uint64_t sent = runner.stats()[0].tx_frames;
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    CHECK(static_cast<double>(sent) <= 5 * (took.count() / 0.02 + 2));
    device.set_silent(false);
    CHECK(eventually([&] { return runner.stats()[0].rx_frames > 1000; }));
  }
}

TEST_CASE("TrafficRunner: rests, sends nothing and goes on, all over one connection") {
  TempDir directory;
  const TrafficOptions options = options_for(directory);
  EchoThread device(options.guest.socket);
  TrafficRunner runner({options}, -1);
  REQUIRE(static_cast<bool>(runner.start()));
  const auto comes_to_rest = [&runner] {
    TrafficStats last = runner.stats()[0];
    return eventually([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      const TrafficStats now = runner.stats()[0];
      const bool still = now.rx_frames == last.rx_frames && now.tx_frames == last.tx_frames;
      last = now;
      return still;
    });
  };
  for (int round = 0; round < 3; ++round) {
    CAPTURE(round);
    runner.set_sending(true);
    runner.set_active(true);
    const uint64_t before = runner.stats()[0].rx_frames;
    REQUIRE(eventually([&] { return runner.stats()[0].rx_frames > before + 500; }));
    runner.set_sending(false);
    CHECK(comes_to_rest());  // what is under way arrives, or found no room; then nothing moves any more
    runner.set_active(false);
    runner.set_sending(true);
    CHECK(comes_to_rest());  // after the round, at most, that had begun when it was told
  }
  CHECK(runner.stats()[0].times_ready == 1);
}

TEST_CASE("TrafficRunner: a rate is an upper bound, of each guest, with a window and without, and may change") {
  for (const uint64_t window : {uint64_t{0}, uint64_t{64}}) {
    CAPTURE(window);
    TempDir directory;
    TrafficOptions options = options_for(directory);
    options.rate = 1000;
    EchoThread device(options.guest.socket);
    const auto began = std::chrono::steady_clock::now();
    TrafficRunner runner({options}, -1);
    runner.set_window(window);
    REQUIRE(static_cast<bool>(runner.start()));
    REQUIRE(eventually([&] { return runner.stats()[0].rx_frames > 20; }));
    const uint64_t sent = runner.stats()[0].tx_frames;
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    CHECK(static_cast<double>(sent) <= took.count() * 1000 + options.burst);
    runner.set_rate(0);
    CHECK(eventually([&] { return runner.stats()[0].rx_frames > 50'000; }));
    runner.set_rate(kTrafficOwnRate);
    const TrafficLoad load = runner.load();
    CHECK(load.rounds > 0);
    CHECK(load.busy > 0);
  }
}

}  // namespace sw::testing
