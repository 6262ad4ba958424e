// SPDX-License-Identifier: Apache-2.0
#include "l2/forward.h"

#include <map>
#include <random>

#include "l2/rules.h"
#include "world.h"

namespace sw {
namespace {

using testing::access;
using testing::Bytes;
using testing::bytes;
using testing::plain;
using testing::trunk;
using testing::World;

Bytes frame(Mac to, Mac from, uint8_t payload = 0, int tag = -1) {
  Bytes result(14);
  for (uint32_t i = 0; i < 6; ++i) {
    result[i] = static_cast<uint8_t>(to >> (40 - 8 * i));
    result[6 + i] = static_cast<uint8_t>(from >> (40 - 8 * i));
  }
  if (tag >= 0) {
    result[12] = 0x81;
    result.insert(result.begin() + 13, {0x00, static_cast<uint8_t>(tag >> 8), static_cast<uint8_t>(tag), 0x08});
  } else {
    result[12] = 0x08;
  }
  result.push_back(payload);
  return result;
}

constexpr Mac kA = 0x02000000000a, kB = 0x02000000000b, kC = 0x02000000000c;

TEST_CASE("Forwarder: an answer teaches, then frames go to one port only") {
  World world({plain(1), plain(2), plain(3)});
  CHECK(world.send(1, frame(kB, kA)).size() == 2);
  CHECK(world.send(2, frame(kA, kB)).size() == 1);
  const auto out = world.send(1, frame(kB, kA));
  CHECK(out.size() == 1);
  CHECK(out.contains(2));
}

TEST_CASE("Forwarder: order within source and destination is kept, floods included") {
  World world({plain(1), plain(2), plain(3)});
  world.fdb->set(0, kB, 2, FdbOwner::kStatic);
  std::vector<Bytes> frames;
  for (uint8_t i = 0; i < kMaxBatch; ++i) {
    frames.push_back(frame(i % 3 == 0 ? kMacBroadcast : i % 3 == 1 ? kB : kC, kA, i));
  }
  const auto out = world.send(1, frames);
  for (const auto& [port, got] : out) {
    for (size_t i = 1; i < got.size(); ++i) CHECK(got[i - 1].back() < got[i].back());
  }
  CHECK(out.at(2).size() == kMaxBatch);
  CHECK(out.at(3).size() == kMaxBatch - 21);
}

TEST_CASE("Forwarder: a move is followed by the frames after it, in the same batch too") {
  World world({plain(1), plain(2), plain(3)});
  world.send(2, frame(kA, kB));
  world.send(1, frame(kB, kA));
  CHECK(world.send(1, frame(kB, kA)).contains(2));
  world.send(3, frame(kMacBroadcast, kB));  // kB moves to port 3
  CHECK(world.send(1, frame(kB, kA)).contains(3));
  // A batch of port 1 in which kB itself shows up at port 1: afterwards it is a hairpin.
  const auto out = world.send(1, {frame(kB, kA, 1), frame(kMacBroadcast, kB, 2), frame(kB, kA, 3)});
  CHECK(out.at(3).size() == 2);
  CHECK(world.drops(DropReason::kHairpin) == 1);
}

TEST_CASE("Forwarder: removed, flushed and aged entries are unknown at once") {
  World world({plain(1), plain(2), plain(3)});
  const auto warm = [&] {
    world.send(2, frame(kA, kB));
    world.send(1, frame(kB, kA));
    CHECK(world.send(1, frame(kB, kA)).size() == 1);
  };
  warm();
  world.fdb->remove(0, kB);
  CHECK(world.send(1, frame(kB, kA)).size() == 2);
  warm();
  world.fdb->flush({.port = 2});
  CHECK(world.send(1, frame(kB, kA)).size() == 2);
  warm();
  world.fdb->sweep(1);
  world.fdb->sweep(1'000'000'000'000);
  world.fdb->sweep(2'000'000'000'000);
  CHECK(world.fdb->count(FdbOwner::kLearned) == 0);
  CHECK(world.send(1, frame(kB, kA)).size() == 2);
}

TEST_CASE("Forwarder: a source that was evicted is learned again from its next frame") {
  World world({plain(1), plain(2)}, 2);
  world.send(1, frame(kB, kA));
  world.send(1, frame(kB, kA));
  world.fdb->flush({});
  world.send(1, frame(kB, kA));
  CHECK(world.fdb->lookup(0, kA) == 1);
}

TEST_CASE("Forwarder: a source seen in every epoch does not expire") {
  World world({plain(1), plain(2)});
  uint64_t now = 1'000'000'000;
  world.fdb->sweep(now);
  for (uint32_t second = 0; second < 1000; ++second) {
    world.send(1, frame(kB, kA));
    world.fdb->sweep(now += 1'000'000'000);
  }
  CHECK(world.fdb->lookup(0, kA) == 1);
  CHECK(world.fdb->stats().learned == 1);
}

TEST_CASE("Forwarder: a port that does not learn still forwards") {
  World world({plain(1), plain(2)});
  world.policy(1).learning = false;
  CHECK(world.send(1, frame(kB, kA)).size() == 1);
  CHECK(world.fdb->count(FdbOwner::kLearned) == 0);
}

TEST_CASE("Forwarder: a port that does not learn admits no less strictly, to known stations too") {
  World world({plain(1), plain(2)});
  world.policy(1).learning = false;
  world.fdb->set(0, kB, 2, FdbOwner::kStatic);
  CHECK(world.send(1, {frame(kB, 0), frame(kB, kA)}).at(2).size() == 1);
  CHECK(world.drops(DropReason::kSourceZero) == 1);
}

TEST_CASE("Forwarder: a frame whose source may not be learned is forwarded all the same") {
  World world({plain(1), plain(2), plain(3)});
  world.fdb->set(0, kA, 3, FdbOwner::kStatic);
  CHECK(world.send(1, frame(kB, kA)).size() == 2);
  CHECK(world.fdb->lookup(0, kA) == 3);
  CHECK(world.fdb->stats().refused_owner == 1);
  world.policy(1).mac_limit = 1;
  for (Mac mac = 100; mac < 110; ++mac) CHECK(world.send(1, frame(kB, mac)).size() == 2);
  CHECK(world.fdb->count_learned_at(1) == 1);
  CHECK(world.fdb->stats().refused_port_limit == 9);
}

TEST_CASE("Forwarder: dropped frames teach nothing, hairpins do") {
  World world({access(1, 10), access(2, 10)});
  world.send(1, frame(kB, kA, 0, 20));
  world.send(1, frame(0x0180c2000000, kA));
  CHECK(world.fdb->count(FdbOwner::kLearned) == 0);
  world.fdb->set(10, kB, 1, FdbOwner::kStatic);
  world.send(1, frame(kB, kA));
  CHECK(world.drops(DropReason::kHairpin) == 1);
  CHECK(world.fdb->lookup(10, kA) == 1);
}

TEST_CASE("Forwarder: a new plan counts from the next frame on") {
  World world({plain(1), plain(2), plain(3)});
  world.send(2, frame(kA, kB));
  world.send(1, frame(kB, kA));
  CHECK(world.send(1, frame(kB, kA)).size() == 1);
  CHECK(world.send(1, frame(kMacBroadcast, kA)).size() == 2);
  CHECK(world.send(1, frame(kC, kA)).size() == 2);
  world.policy(2).enabled = false;
  world.plan();
  CHECK(world.send(1, frame(kB, kA)).empty());
  CHECK(world.drops(DropReason::kPortDisabled) == 1);
  CHECK(world.send(1, frame(kMacBroadcast, kA)).size() == 1);
  CHECK(world.send(1, frame(kC, kA)).size() == 1);
}

TEST_CASE("Forwarder: trains of equal headers with different tags are told apart") {
  World world({trunk(1, {10, 20}), access(2, 10), access(3, 20)});
  const auto out = world.send(1, {frame(kB, kA, 1, 10), frame(kB, kA, 2, 20), frame(kB, kA, 3, 10),
                                  frame(kB, kA, 4, 30), frame(kB, kA, 5, 20)});
  CHECK(out.at(2) == std::vector<Bytes>{frame(kB, kA, 1), frame(kB, kA, 3)});
  CHECK(out.at(3) == std::vector<Bytes>{frame(kB, kA, 2), frame(kB, kA, 5)});
  CHECK(world.drops(DropReason::kVlanNotAllowed) == 1);
}

TEST_CASE("Forwarder: a train after a dropped frame is still admitted on its own") {
  World world({plain(1), plain(2)});
  const auto out = world.send(1, {frame(kB, 0), frame(kB, 0), frame(kB, kA, 3), frame(kB, kA, 4), frame(kB, 0)});
  CHECK(out.at(2).size() == 2);
  CHECK(world.drops(DropReason::kSourceZero) == 3);
}

TEST_CASE("Forwarder: runs of every length keep their frames, between frames that go elsewhere") {
  World world({plain(1), plain(2), plain(3)});
  world.fdb->set(0, kB, 2, FdbOwner::kStatic);
  world.fdb->set(0, kC, 3, FdbOwner::kStatic);
  world.send(1, frame(kB, kA));
  for (uint8_t length = 1; length <= kMaxBatch - 2; ++length) {
    std::vector<Bytes> frames = {frame(kC, kA, 200)}, expected;
    for (uint8_t i = 0; i < length; ++i) expected.push_back(frame(kB, kA, i));
    frames.insert(frames.end(), expected.begin(), expected.end());
    frames.push_back(frame(kC, kA, 201));
    const auto out = world.send(1, frames);
    REQUIRE(out.at(2) == expected);
    REQUIRE(out.at(3) == std::vector<Bytes>{frame(kC, kA, 200), frame(kC, kA, 201)});
  }
}

TEST_CASE("Forwarder: a vendor's reserved address is not forwarded to, though somebody sent from it") {
  constexpr Mac kReserved = 0x00e02b000000, kOrdinary = 0x00e02b000001;
  World world({plain(1), plain(2), plain(3)});
  world.send(2, {frame(kA, kReserved), frame(kA, kOrdinary)});
  CHECK(world.send(1, {frame(kReserved, kA), frame(kReserved, kA)}).empty());
  CHECK(world.drops(DropReason::kReservedMac) == 2);
  const auto out = world.send(1, frame(kOrdinary, kA));
  CHECK(out.size() == 1);
  CHECK(out.contains(2));
}

TEST_CASE("Forwarder: what a port may not do is asked again, whatever the table knows") {
  World world({trunk(1, {10}), trunk(2, {10})});
  world.send(2, frame(kA, kB, 0, 10));
  world.send(1, frame(kB, kA, 0, 10));
  CHECK(world.send(1, frame(kB, kA, 0, 10)).size() == 1);
  world.policy(1).vlan.trunk.reset(10);
  world.plan();
  CHECK(world.send(1, {frame(kB, kA, 0, 10), frame(kB, kA, 1, 10)}).empty());
  CHECK(world.drops(DropReason::kVlanNotAllowed) == 2);
  world.policy(1).vlan.trunk.set(10);
  world.policy(1).enabled = false;
  world.plan();
  CHECK(world.send(1, frame(kB, kA, 0, 10)).empty());
  CHECK(world.drops(DropReason::kPortDisabled) == 1);
}

TEST_CASE("Forwarder: long frames keep their bodies through tag edits") {
  World world({trunk(1, {10}), access(2, 10), trunk(3, {10})});
  Bytes tagged = frame(kMacBroadcast, kA, 1, 0x600a), plain_frame = frame(kMacBroadcast, kA, 1);
  for (uint32_t i = 0; i < 1500; ++i) {
    tagged.push_back(static_cast<uint8_t>(i * 7));
    plain_frame.push_back(static_cast<uint8_t>(i * 7));
  }
  const auto out = world.send(1, tagged);
  CHECK(out.at(2)[0] == plain_frame);
  CHECK(out.at(3)[0] == tagged);
  Bytes back = plain_frame;
  CHECK(world.send(2, back).at(1)[0].size() == tagged.size());
}

TEST_CASE("Forwarder: one worker serves bridges that do not know each other") {
  World first({plain(1), plain(2)}), second({plain(3), plain(4)});
  first.fdb->set(0, kB, 2, FdbOwner::kStatic);
  second.fdb->set(0, kB, 4, FdbOwner::kStatic);
  for (int round = 0; round < 3; ++round) {
    CHECK(first.send(1, frame(kB, kA)).contains(2));
    std::swap(first.forwarder, second.forwarder);  // the same worker sees both
    CHECK(second.send(3, frame(kB, kA)).contains(4));
  }
}

// A switch written for clearness, with a map: every frame of random traffic must go where it says.
TEST_CASE("Forwarder: random traffic goes where a map-based switch sends it") {
  std::vector<PortPolicy> ports = {plain(0),           access(1, 10),      access(2, 20), trunk(3, {10, 20}),
                                   trunk(4, {10}, 20), trunk(5, {20}, 10), access(6, 10), trunk(7, {10, 20, 30})};
  ports[1].isolated = ports[6].isolated = true;
  ports[2].flood = false;
  ports[4].learning = false;
  World world(ports);
  world.fdb->set(10, 0x020000000003, 3, FdbOwner::kStatic);
  world.fdb->set(20, 0x020000000004, kPortBlackhole, FdbOwner::kStatic);
  std::map<std::pair<uint16_t, Mac>, PortId> table = {{{10, 0x020000000003}, PortId{3}},
                                                      {{20, 0x020000000004}, kPortBlackhole}};
  const auto is_static = [](uint16_t vlan, Mac mac) {
    return (vlan == 10 && mac == 0x020000000003) || (vlan == 20 && mac == 0x020000000004);
  };
  std::mt19937 random(2026);
  for (uint32_t round = 0; round < 3000; ++round) {
    const PortPolicy& from = ports[random() % 8];
    std::vector<Bytes> frames;
    std::map<PortId, std::vector<Bytes>> expected;
    const uint32_t count = 1 + static_cast<uint32_t>(random() % 20);
    for (uint32_t i = 0; i < count; ++i) {
      const Mac source = 0x020000000000 + random() % 12;
      const Mac destination = random() % 8 == 0 ? kMacBroadcast : 0x020000000000 + random() % 12;
      constexpr std::array<int, 6> kTags = {-1, -1, 0x6000, 10, 0x2014, 30};
      const int tag = kTags[random() % 6];
      const auto payload = static_cast<uint8_t>(random());
      frames.push_back(frame(destination, source, payload, tag));
      const int vid = tag < 0 ? 0 : tag & 0xfff;
      if (vid != 0 && (from.vlan.access || !from.vlan.carries(static_cast<uint16_t>(vid)))) continue;
      const auto vlan = vid != 0 ? static_cast<uint16_t>(vid) : from.vlan.untagged;
      if (from.learning && !is_static(vlan, source)) table[{vlan, source}] = from.id;
      const auto deliver = [&](const PortPolicy& to) {
        const bool with_tag = vlan != to.vlan.untagged;
        const int priority = tag < 0 ? 0 : tag & 0xf000;
        expected[to.id].push_back(frame(destination, source, payload, with_tag ? priority | vlan : -1));
      };
      const auto reachable = [&](const PortPolicy& to) {
        return to.id != from.id && to.vlan.carries(vlan) && !(to.isolated && from.isolated);
      };
      const auto known = table.find({vlan, destination});
      if (destination != kMacBroadcast && known != table.end()) {
        if (known->second != kPortBlackhole && reachable(ports[known->second])) deliver(ports[known->second]);
        continue;
      }
      for (const PortPolicy& to : ports) {
        if (reachable(to) && (to.flood || destination == kMacBroadcast)) deliver(to);
      }
    }
    REQUIRE(world.send(from.id, frames) == expected);
  }
}

}  // namespace
}  // namespace sw
