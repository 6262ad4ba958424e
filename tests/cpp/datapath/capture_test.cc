// SPDX-License-Identifier: Apache-2.0
// Frames of a port, shown while they pass.
#include <doctest/doctest.h>

#include <thread>

#include "base/clock.h"
#include "rig.h"
#include "vhost_user/traffic.h"

using namespace sw;
using namespace sw::testing;

namespace {

// Reads until there are `count` frames.
std::vector<CapturedFrame> read_frames(Datapath& datapath, uint64_t capture, size_t count) {
  std::vector<CapturedFrame> frames;
  Patience patience(kPatience);
  while (frames.size() < count && !patience.over()) {
    auto view = datapath.capture_read(capture, 1000);
    REQUIRE(view);
    for (CapturedFrame& frame : view->frames) frames.push_back(std::move(frame));
    std::this_thread::yield();
  }
  CHECK(frames.size() == count);
  return frames;
}

// Frames for which a port had no queue.
uint64_t link_down(Datapath& datapath) {
  uint64_t frames = 0;
  for (const PortStats& port : datapath.stats().ports) {
    frames += port.tx_drops[static_cast<size_t>(DropReason::kLinkDown)];
  }
  return frames;
}

std::string text(const Bytes& bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

}  // namespace

TEST_CASE("capture: what enters and leaves a port is seen once, as it is, in both directions") {
  Rig rig;
  for (const char* name : {"vm1", "vm2"}) REQUIRE(rig.datapath.add_port(rig.spec(name)));
  const auto a = rig.guest("vm1");
  const auto b = rig.guest("vm2", true);
  const auto all = rig.datapath.capture_start("vm1", {});
  const auto leaving = rig.datapath.capture_start("vm1", {.rx = false, .most_bytes = 20});
  REQUIRE(all);
  REQUIRE(leaving);
  REQUIRE(a->send(ethernet(kB, kA, 1514, 1), 0, {}, kPatienceMs));
  require_frame(*b, ethernet(kB, kA, 1514, 1));
  REQUIRE(b->send(ethernet(kA, kB, 60, 2), 0, {}, kPatienceMs));
  require_frame(*a, ethernet(kA, kB, 60, 2));

  const std::vector<CapturedFrame> frames = read_frames(rig.datapath, *all, 2);
  CHECK(frames[0].way == CaptureWay::kRx);
  CHECK(frames[0].bytes == text(ethernet(kB, kA, 1514, 1)));
  CHECK(frames[0].drop == kNoDrop);
  CHECK(frames[1].way == CaptureWay::kTx);
  CHECK(frames[1].bytes == text(ethernet(kA, kB, 60, 2)));
  CHECK(frames[1].realtime_ns >= frames[0].realtime_ns);
  const std::vector<CapturedFrame> cut = read_frames(rig.datapath, *leaving, 1);
  CHECK(cut[0].len == 60);
  CHECK(cut[0].bytes == text(ethernet(kA, kB, 60, 2)).substr(0, 20));

  rig.datapath.capture_stop(*all);
  rig.datapath.capture_stop(*all);  // once more does nothing
  CHECK_FALSE(rig.datapath.capture_read(*all, 1));
  REQUIRE(a->send(ethernet(kB, kA, 60, 3), 0, {}, kPatienceMs));
  require_frame(*b, ethernet(kB, kA, 60, 3));
  REQUIRE(rig.datapath.capture_read(*leaving, 10));
}

TEST_CASE("capture: dropped frames alone, with the reason") {
  Rig rig;
  for (const char* name : {"vm1", "vm2"}) REQUIRE(rig.datapath.add_port(rig.spec(name)));
  REQUIRE(rig.datapath.fdb_set("br0", 0, 0x02'00'00'00'00'66, "", FdbOwner::kStatic));
  const auto a = rig.guest("vm1");
  const auto b = rig.guest("vm2");
  const auto capture = rig.datapath.capture_start("vm1", {.drops_only = true});
  REQUIRE(capture);
  struct Row {
    Mac destination, source;
    DropReason reason;
  };
  const Row rows[] = {
      {0x02'00'00'00'00'66, kA, DropReason::kBlackhole},
      {0x01'80'c2'00'00'00, kA, DropReason::kReservedMac},
      {kB, 0, DropReason::kSourceZero},
      {kA, kA, DropReason::kHairpin},
      {kMacBroadcast, 0x03'00'00'00'00'01, DropReason::kSourceMulticast},
  };
  for (const Row& row : rows) {
    REQUIRE(a->send(ethernet(row.destination, row.source), 0, {}, kPatienceMs));
    REQUIRE(a->send(ethernet(kB, kA), 0, {}, kPatienceMs));  // passes: not shown
    require_frame(*b, ethernet(kB, kA));
    const std::vector<CapturedFrame> frames = read_frames(rig.datapath, *capture, 1);
    CHECK(frames[0].drop == row.reason);
    CHECK(frames[0].bytes == text(ethernet(row.destination, row.source)));
    const auto port = rig.datapath.stats().ports.at(0);
    CHECK(port.rx_drops[static_cast<size_t>(row.reason)] == 1);
  }
}

TEST_CASE("capture: ends with its port, and there are not too many") {
  Rig rig;
  REQUIRE(rig.datapath.add_port(rig.spec("vm1")));
  CHECK_FALSE(rig.datapath.capture_start("vm9", {}));
  std::vector<uint64_t> running;
  for (int i = 0; i < 8; ++i) running.push_back(*rig.datapath.capture_start("vm1", {}));
  const auto refused = rig.datapath.capture_start("vm1", {});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message().find("8 captures") != std::string::npos);
  CHECK(rig.datapath.capture_read(running[0], 1)->attached);
  REQUIRE(rig.datapath.del_port("vm1"));
  CHECK_FALSE(rig.datapath.capture_read(running[0], 1)->attached);
  for (const uint64_t capture : running) rig.datapath.capture_stop(capture);
  REQUIRE(rig.datapath.add_port(rig.spec("vm1")));
  CHECK(rig.datapath.capture_start("vm1", {}));
}

TEST_CASE("capture: begun and ended under traffic of two workers, it costs no frame") {
  // vm3 has one queue for both workers: they share it, some through a capture and some not yet.
  Rig rig(2);
  std::vector<TrafficOptions> guests;
  const char* const names[] = {"vm1", "vm2", "vm3"};
  for (size_t i = 0; i < 3; ++i) {
    REQUIRE(rig.datapath.add_port(rig.spec(names[i])));
    TrafficOptions guest;
    guest.guest.socket = rig.socket(names[i]);
    guest.mac = kA + i;
    guest.peer = kA + (i + 1) % 3;
    guest.rate = 2000;
    guests.push_back(guest);
  }
  TrafficRunner runner(guests, -1);
  REQUIRE(runner.start());
  REQUIRE(runner.wait_ready(kPatienceMs));
  const uint64_t before = link_down(rig.datapath);  // the first guest does not wait for the others
  uint64_t seen = 0;
  Patience patience(kPatience);
  for (int round = 0; round < 40 || seen == 0; ++round) {
    REQUIRE(!patience.over());
    const auto capture = rig.datapath.capture_start(names[round % 3], {});
    REQUIRE(capture);
    std::this_thread::yield();
    for (int i = 0; i < 20; ++i) seen += rig.datapath.capture_read(*capture, 1000)->frames.size();
    rig.datapath.capture_stop(*capture);
  }
  runner.stop();
  check_conservation(rig.datapath.stats());
  CHECK(link_down(rig.datapath) == before);
}
