// SPDX-License-Identifier: Apache-2.0
// What IEEE 802.1Q-2018 demands of a VLAN bridge, as far as a bridge without spanning tree meets it.
#include "l2/rules.h"
#include "l2/world.h"

namespace sw {
namespace {

using testing::access;
using testing::Bytes;
using testing::bytes;
using testing::plain;
using testing::trunk;
using testing::World;

constexpr Mac kA = 0x02000000000a;

TEST_CASE("802.1Q: none of the sixteen reserved addresses is forwarded or teaches") {
  // 802.1Q-2018 8.6.3, table 8-1: frames to a reserved address are not relayed, whatever the table says.
  for (uint32_t last = 0; last < 16; ++last) {
    World world({plain(1), plain(2)});
    world.fdb->set(0, 0x0180c2000000 + last, 2, FdbOwner::kStatic);
    Bytes frame = bytes("0180c2000000 02000000000a 0800");
    frame[5] = static_cast<uint8_t>(last);
    CHECK(world.send(1, frame).empty());
    CHECK(world.drops(DropReason::kReservedMac) == 1);
    CHECK(world.fdb->count(FdbOwner::kLearned) == 0);
  }
}

TEST_CASE("802.1Q: group addresses outside the reserved block are relayed") {
  // 802.1Q-2018 8.6.3: only the addresses of the table are filtered.
  World world({plain(1), plain(2)});
  CHECK(world.send(1, bytes("0180c2000010 02000000000a 0800")).size() == 1);
  CHECK(world.send(1, bytes("0180c2000020 02000000000a 0800")).size() == 1);
}

TEST_CASE("802.1Q: a group address is never learned as a source") {
  // 802.1Q-2018 8.7: an entry is made only if the source address denotes one station.
  World world({plain(1), plain(2)});
  world.send(1, bytes("02000000000b 01005e000001 0800"));
  world.send(1, bytes("02000000000b ffffffffffff 0800"));
  CHECK(world.fdb->entries().empty());
}

TEST_CASE("802.1Q: a frame that fails the ingress rule of its VLAN teaches nothing") {
  // 802.1Q-2018 8.6.2 comes before 8.7: filtered on ingress, a frame does not reach the learning process.
  World world({trunk(1, {10}), trunk(2, {10, 20})});
  CHECK(world.send(1, bytes("02000000000b 02000000000a 8100 0014 0800")).empty());
  CHECK(world.fdb->entries().empty());
}

TEST_CASE("802.1Q: the null VID classifies to the port's VLAN and keeps the priority") {
  // 802.1Q-2018 9.6, table 9-2: VID 0 carries priority only; 6.9: such a frame gets the port's VID.
  World world({access(1, 10), trunk(2, {10})});
  const auto out = world.send(1, bytes("02000000000b 02000000000a 8100 c000 0800"));
  CHECK(out.at(2)[0] == bytes("02000000000b 02000000000a 8100 c00a 0800"));
  CHECK(world.fdb->lookup(10, kA) == 1);
}

TEST_CASE("802.1Q: priority and drop eligibility survive from tag to tag") {
  // 802.1Q-2018 6.9.3, 9.6: PCP and DEI travel with the frame.
  World world({trunk(1, {10}), trunk(2, {10}), access(3, 10)});
  for (uint32_t bits = 0; bits < 16; ++bits) {
    Bytes frame = bytes("ffffffffffff 02000000000a 8100 000a 0800");
    frame[14] = static_cast<uint8_t>(frame[14] | bits << 4);
    CHECK(world.send(1, frame).at(2)[0] == frame);
  }
}

TEST_CASE("802.1Q: a frame leaves only through ports of its VLAN") {
  // 802.1Q-2018 8.6.4 (egress filtering): ports outside the member set of the VLAN do not transmit the frame.
  World world({access(1, 10), access(2, 10), access(3, 20), trunk(4, {20}), trunk(5, {10})});
  const auto out = world.send(1, bytes("ffffffffffff 02000000000a 0800"));
  CHECK(out.size() == 2);
  CHECK(out.contains(2));
  CHECK(out.contains(5));
}

TEST_CASE("802.1Q: the untagged set decides the form in which a frame leaves") {
  // 802.1Q-2018 6.9.2 (data requests): untagged on ports of the untagged set, tagged with the VID on others.
  // for others.
  World world({access(1, 10), trunk(2, {10}), trunk(3, {10}, 10)});
  const auto out = world.send(1, bytes("ffffffffffff 02000000000a 0800 77"));
  CHECK(out.at(2)[0] == bytes("ffffffffffff 02000000000a 8100 000a 0800 77"));
  CHECK(out.at(3)[0] == bytes("ffffffffffff 02000000000a 0800 77"));
}

TEST_CASE("802.1Q: a frame is never sent back through the port it came from") {
  // 802.1Q-2018 8.6.1: the reception port is not a potential transmission port.
  World world({plain(1), plain(2)});
  world.fdb->set(0, kA + 1, 1, FdbOwner::kStatic);
  CHECK(world.send(1, bytes("02000000000b 02000000000a 0800")).empty());
  CHECK_FALSE(world.send(1, bytes("ffffffffffff 02000000000a 0800")).contains(1));
}

TEST_CASE("802.1Q: the same address in two VLANs is two stations") {
  // 802.1Q-2018 8.8.8 (allocation of VIDs to FIDs), each VLAN its own FID: independent VLAN learning.
  World world({access(1, 10), access(2, 20), trunk(3, {10, 20})});
  world.send(1, bytes("ffffffffffff 02000000000a 0800"));
  world.send(2, bytes("ffffffffffff 02000000000a 0800"));
  CHECK(world.fdb->lookup(10, kA) == 1);
  CHECK(world.fdb->lookup(20, kA) == 2);
}

TEST_CASE("802.1Q: static entries do not age and are not replaced by learning") {
  // 802.1Q-2018 8.8.1: static information is not removed by ageing; 8.7: learning does not override it.
  World world({plain(1), plain(2)});
  world.fdb->set(0, kA, 2, FdbOwner::kStatic);
  world.send(1, bytes("ffffffffffff 02000000000a 0800"));
  world.fdb->sweep(1);
  for (uint64_t hour = 1; hour < 100; ++hour) world.fdb->sweep(hour * 3'600'000'000'000);
  CHECK(world.fdb->lookup(0, kA) == 2);
}

TEST_CASE("802.1Q: frames of one flow keep their order") {
  // 802.1Q-2018 8.6.6 and 6.5.3: frames of one VLAN, priority, source and destination are not misordered.
  World world({plain(1), plain(2)});
  std::vector<Bytes> frames;
  for (uint8_t i = 0; i < kMaxBatch; ++i) {
    frames.push_back(bytes("02000000000b 02000000000a 0800"));
    frames.back().push_back(i);
  }
  CHECK(world.send(1, frames).at(2) == frames);
}

}  // namespace
}  // namespace sw
