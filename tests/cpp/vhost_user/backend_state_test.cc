// SPDX-License-Identifier: Apache-2.0
// The state of rings and features: order, refusals, starting and stopping.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <random>

#include "support/backend_bed.h"

namespace sw {
namespace {

using testing::BackendBed;
using testing::kPlainFeatures;
using testing::make_eventfd;

TEST_CASE("Backend: offers what it serves, and no feature that it does not") {
  BackendBed bed;
  const auto features = bed.get(VhostRequest::kGetFeatures);
  REQUIRE(features);
  CHECK(*features == offered_features({}));
  for (const uint32_t bit :
       {VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ, VIRTIO_F_RING_PACKED,
        VIRTIO_F_EVENT_IDX, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES}) {
    CHECK(has_feature(*features, bit));
  }
  for (const uint32_t bit : {VIRTIO_F_ACCESS_PLATFORM, VIRTIO_NET_F_GUEST_UFO, VIRTIO_F_NOTIFICATION_DATA,
                             VIRTIO_NET_F_RSS, VIRTIO_NET_F_HASH_REPORT}) {
    CHECK_FALSE(has_feature(*features, bit));
  }
  CHECK(bed.get(VhostRequest::kGetProtocolFeatures) == offered_protocol_features());
  CHECK(bed.get(VhostRequest::kGetMaxMemSlots) == 509U);
  CHECK(bed.get(VhostRequest::kGetStatus) == 0U);
}

TEST_CASE("offered_features: configuration takes away its parts and nothing else") {
  const uint64_t all = offered_features({.mtu = true});
  CHECK((all ^ offered_features({.packed = false, .mtu = true})) == feature_mask(VIRTIO_F_RING_PACKED));
  CHECK((all ^ offered_features({.mergeable = false, .mtu = true})) == feature_mask(VIRTIO_NET_F_MRG_RXBUF));
  CHECK((all ^ offered_features({.in_order = false, .mtu = true})) == feature_mask(VIRTIO_F_IN_ORDER));
  CHECK((all ^ offered_features({})) == feature_mask(VIRTIO_NET_F_MTU));
  const uint64_t offloads = all ^ offered_features({.offloads = false, .mtu = true});
  CHECK(feature_names(offloads) ==
        "csum,guest_csum,guest_tso4,guest_tso6,guest_ecn,host_tso4,host_tso6,host_ecn,guest_uso4,guest_uso6,host_uso");
}

TEST_CASE("Backend: the queue count passes as rings and as pairs, and never exceeds 128") {
  struct Row {
    size_t pairs;
    uint64_t answer;
  };
  for (const Row row : {Row{1, 2}, Row{4, 8}, Row{64, 128}, Row{128, 128}}) {
    BackendBed bed(row.pairs);
    CHECK(bed.get(VhostRequest::kGetQueueNum) == row.answer);
  }
}

// The pieces of one ring and of what it needs, each as a message.
using Step = std::function<void(BackendBed&)>;

TEST_CASE("Backend: a ring runs once all its pieces came, whatever their order") {
  const UniqueFd kick = make_eventfd();
  const UniqueFd call = make_eventfd();
  const std::array<Step, 8> steps = {
      [](BackendBed& bed) { CHECK(bed.ask(VhostRequest::kSetFeatures, kPlainFeatures) == 0); },
      [](BackendBed& bed) { CHECK(bed.share_memory() == 0); },
      [](BackendBed& bed) { CHECK(bed.ask(VhostRequest::kSetVringNum, VhostVringState{1, 256}) == 0); },
      [](BackendBed& bed) { CHECK(bed.ask(VhostRequest::kSetVringBase, VhostVringState{1, 0}) == 0); },
      [](BackendBed& bed) { CHECK(bed.ask(VhostRequest::kSetVringAddr, bed.address(1)) == 0); },
      [](BackendBed& bed) { CHECK(bed.ask(VhostRequest::kSetVringEnable, VhostVringState{1, 1}) == 0); },
      [&](BackendBed& bed) { CHECK(bed.ask(VhostRequest::kSetVringKick, uint64_t{1}, {kick.get()}) == 0); },
      [&](BackendBed& bed) { CHECK(bed.ask(VhostRequest::kSetVringCall, uint64_t{1}, {call.get()}) == 0); },
  };
  std::mt19937 random(20261122);
  std::array<size_t, steps.size()> order{};
  std::iota(order.begin(), order.end(), 0);
  for (int round = 0; round < 200; ++round) {
    std::shuffle(order.begin(), order.end(), random);
    CAPTURE(order);
    BackendBed bed;
    REQUIRE(bed.tell(VhostRequest::kSetProtocolFeatures, offered_protocol_features()));
    size_t needed = 7;  // all but the call descriptor and enable
    for (const size_t step : order) {
      steps.at(step)(bed);
      REQUIRE(bed.alive());
      needed -= step == 7 || step == 5 ? 0 : 1;
      CHECK(bed.live(1) == (needed == 1));
    }
    REQUIRE(bed.live(1));
    CHECK(bed.backend->live_rx().size() == 1);
    CHECK(testing::drain_eventfd(call.get()) != 0);  // the guest is told that somebody is here now
  }
}

TEST_CASE("Backend: a disabled transmitq is polled so that it discards, a disabled receiveq is not listed") {
  BackendBed bed;
  bed.run();
  bed.enable(0, false);
  bed.enable(1, false);
  CHECK(bed.backend->live_rx().size() == 1);
  CHECK(bed.backend->live_tx().empty());
  CHECK(bed.live(0));
  bed.enable(0);
  CHECK(bed.backend->live_tx().size() == 1);
}

TEST_CASE("Backend: any subset of the pairs may be enabled") {
  BackendBed bed(128, 32 << 20);
  bed.negotiate();
  REQUIRE(bed.share_memory() == 0);
  for (uint32_t i = 0; i < 256; ++i) {
    bed.set_up(i);
    if (i / 2 % 3 == 0) bed.enable(i);
  }
  REQUIRE(bed.alive());
  const auto tx = bed.backend->live_tx();
  REQUIRE(tx.size() == 127);
  for (size_t q = 0; q < tx.size(); ++q) CHECK((tx[q] != nullptr) == (q % 3 == 0));
  CHECK(bed.backend->live_rx().size() == 128);
}

TEST_CASE("Backend: rings start enabled when PROTOCOL_FEATURES was not negotiated") {
  BackendBed bed;
  REQUIRE(bed.tell(VhostRequest::kSetFeatures, kPlainFeatures & ~feature_mask(VHOST_USER_F_PROTOCOL_FEATURES)));
  bed.tell(VhostRequest::kSetMemTable, BackendBed::table({bed.whole()}), {bed.memory.fd()});
  bed.set_up(0);
  bed.set_up(1);
  CHECK(bed.backend->live_tx().size() == 1);
  CHECK(bed.backend->live_rx().size() == 1);
}

TEST_CASE("Backend: a ring without descriptors to notify through polls") {
  BackendBed bed;
  bed.negotiate();
  REQUIRE(bed.share_memory() == 0);
  bed.tell(VhostRequest::kSetVringNum, VhostVringState{1, 256});
  bed.tell(VhostRequest::kSetVringBase, VhostVringState{1, 0});
  bed.tell(VhostRequest::kSetVringAddr, bed.address(1));
  CHECK(bed.ask(VhostRequest::kSetVringCall, 1 | kVringNoFd) == 0);
  CHECK(bed.ask(VhostRequest::kSetVringKick, 1 | kVringNoFd) == 0);
  REQUIRE(bed.live(1));
  CHECK(bed.backend->live_rx()[0]->wake_fd() == -1);
}

TEST_CASE("Backend: GET_VRING_BASE stops the ring, forgets its place and works for one that never was") {
  BackendBed bed;
  bed.run();
  auto stop = [&](uint32_t index) {
    bed.peer.send(VhostRequest::kGetVringBase, VhostVringState{index, 0});
    bed.pump();
    return bed.peer.receive();
  };
  auto reply = stop(1);
  REQUIRE(reply);
  CHECK(reply->as<VhostVringState>().index == 1);
  CHECK(reply->as<VhostVringState>().num == 0);
  CHECK_FALSE(bed.live(1));
  CHECK(bed.live(0));
  CHECK(bed.backend->live_rx().empty());
  CHECK(stop(1));  // twice
  CHECK(stop(3));  // never set up
  // A bare kick does not bring it back: its address is of the time before.
  const UniqueFd kick = make_eventfd();
  CHECK(bed.ask(VhostRequest::kSetVringKick, uint64_t{1}, {kick.get()}) == 0);
  CHECK_FALSE(bed.live(1));
  bed.set_up(1, 256, 0);
  CHECK(bed.live(1));
}

TEST_CASE("Backend: GET_VRING_BASE returns the base that was set, and both halves of a packed one") {
  struct Row {
    uint64_t features;
    uint32_t set;
    uint32_t get;
  };
  const uint64_t packed = kPlainFeatures | feature_mask(VIRTIO_F_RING_PACKED);
  for (const Row row :
       {Row{kPlainFeatures, 77, 77}, Row{packed, 0x8005, 0x80058005}, Row{packed, 0x12340007, 0x00070007}}) {
    CAPTURE(row.set);
    BackendBed bed;
    bed.negotiate(row.features);
    REQUIRE(bed.share_memory() == 0);
    REQUIRE(bed.tell(VhostRequest::kSetVringBase, VhostVringState{1, row.set}));
    bed.peer.send(VhostRequest::kGetVringBase, VhostVringState{1, 0});
    bed.pump();
    auto reply = bed.peer.receive();
    REQUIRE(reply);
    CHECK(reply->as<VhostVringState>().num == row.get);
  }
}

TEST_CASE("Backend: kick, call and err may be exchanged while the ring runs, and the old ones are closed") {
  BackendBed bed;
  bed.run();
  const size_t before = testing::open_descriptors();
  for (int i = 0; i < 20; ++i) {
    const UniqueFd fresh = make_eventfd();
    for (const auto request : {VhostRequest::kSetVringKick, VhostRequest::kSetVringCall, VhostRequest::kSetVringErr}) {
      CHECK(bed.ask(request, uint64_t{1}, {fresh.get()}) == 0);
    }
    CHECK(bed.live(1));
  }
  CHECK(bed.ask(VhostRequest::kSetVringErr, 1 | kVringNoFd) == 0);
  CHECK(testing::open_descriptors() == before);
  CHECK(bed.backend->rings()[1].wish.enabled);  // none of them disables the ring
}

TEST_CASE("Backend: refuses what cannot be, with an answer when one is asked for, and keeps what it had") {
  struct Row {
    const char* name;
    std::function<std::optional<uint64_t>(BackendBed&)> send;
  };
  const auto num = [](uint32_t index, uint32_t value) {
    return [=](BackendBed& bed) { return bed.ask(VhostRequest::kSetVringNum, VhostVringState{index, value}); };
  };
  const auto address = [](std::function<void(VhostVringAddr&)> spoil) {
    return [=](BackendBed& bed) {
      VhostVringAddr at = bed.address(1);
      spoil(at);
      return bed.ask(VhostRequest::kSetVringAddr, at);
    };
  };
  const auto value = [](VhostRequest request, uint64_t payload) {
    return [=](BackendBed& bed) { return bed.ask(request, payload); };
  };
  const auto state = [](VhostRequest request, uint32_t index, uint32_t payload) {
    return [=](BackendBed& bed) { return bed.ask(request, VhostVringState{index, payload}); };
  };
  const std::vector<Row> rows = {
      {"size 0", num(2, 0)},
      {"size beyond 32768", num(2, 32769)},
      {"size 65536", num(2, 65536)},
      {"size of all ones", num(2, 0xffffffff)},
      {"size changes while running", num(1, 128)},
      {"base changes while running", state(VhostRequest::kSetVringBase, 1, 5)},
      {"ring beyond the port's queues", num(4, 256)},
      {"ring 255", num(255, 256)},
      {"ring 256", num(256, 256)},
      {"ring 0x10000", num(0x10000, 256)},
      {"ring 0xffff0001", num(0xffff0001, 256)},
      {"enable of ring 0xffff0001", state(VhostRequest::kSetVringEnable, 0xffff0001, 1)},
      {"enable with 2", state(VhostRequest::kSetVringEnable, 1, 2)},
      {"base of ring 0x80000001", state(VhostRequest::kSetVringBase, 0x80000001, 0)},
      {"kick of a long index", value(VhostRequest::kSetVringKick, 0x1'0000'0000 | kVringNoFd | 1)},
      {"call of ring 255", value(VhostRequest::kSetVringCall, 255 | kVringNoFd)},
      {"descriptors at null", address([](auto& at) { at.descriptors = 0; })},
      {"descriptors misaligned", address([](auto& at) { at.descriptors += 8; })},
      {"avail misaligned", address([](auto& at) { at.avail += 1; })},
      {"used misaligned", address([](auto& at) { at.used += 2; })},
      {"used beyond memory by one entry", address([](auto& at) { at.used += (4 << 20) - 0x10000 - 0x8000 - 256 * 8; })},
      {"avail at the end of the address space", address([](auto& at) { at.avail = ~uint64_t{1}; })},
      {"address of ring 256", address([](auto& at) { at.index = 256; })},
      {"feature that was not offered", value(VhostRequest::kSetFeatures, kPlainFeatures | 1ULL << 40)},
      {"features change while running", value(VhostRequest::kSetFeatures, kPlainFeatures | 1ULL << VIRTIO_F_EVENT_IDX)},
      {"protocol feature that was not offered", value(VhostRequest::kSetProtocolFeatures, kProtocolReplyAck | 1 << 5)},
      {"MTU 0", value(VhostRequest::kNetSetMtu, 0)},
      {"MTU 67", value(VhostRequest::kNetSetMtu, 67)},
      {"MTU 65536", value(VhostRequest::kNetSetMtu, 65536)},
      {"status of nine bits", value(VhostRequest::kSetStatus, 0x100)},
      {"RARP from nobody", value(VhostRequest::kSendRarp, 0)},
      {"RARP from a group", value(VhostRequest::kSendRarp, 0x01)},
      {"unknown request 45", [](BackendBed& bed) { return bed.ask(static_cast<VhostRequest>(45), uint64_t{0}); }},
      {"unknown request 0xffffffff",
       [](BackendBed& bed) { return bed.ask(static_cast<VhostRequest>(~0U), uint64_t{0}); }},
      {"features with 4 bytes", [](BackendBed& bed) { return bed.ask(VhostRequest::kSetFeatures, uint32_t{0}); }},
      {"owner with a payload", [](BackendBed& bed) { return bed.ask(VhostRequest::kSetOwner, uint64_t{0}); }},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    BackendBed bed;
    bed.run();
    const auto rx = bed.backend->live_rx();
    const int pauses = bed.host.pauses;
    const auto answer = row.send(bed);
    CHECK(bed.alive());
    REQUIRE(answer);
    CHECK(*answer != 0);
    CHECK(bed.host.pauses == pauses);  // not even disturbed
    CHECK(bed.backend->live_rx() == rx);
    CHECK(bed.counters.errors == 1);
    CHECK(bed.host.count("error") == 1);
    // Without asking for an answer, the same ends the connection: the two sides would not agree any more.
    BackendBed strict;
    strict.negotiate(kPlainFeatures, offered_protocol_features() & ~kProtocolReplyAck);
    strict.tell(VhostRequest::kSetMemTable, BackendBed::table({strict.whole()}), {strict.memory.fd()});
    for (const uint32_t i : {0U, 1U}) strict.set_up(i);
    REQUIRE(strict.live(1));
    CHECK_FALSE(row.send(strict));
    CHECK(strict.alive() == (std::string(row.name).find("unknown") == 0));
  }
}

TEST_CASE("Backend: an acknowledgement is sent only when it was negotiated and asked for") {
  BackendBed bed;
  CHECK_FALSE(bed.ask(VhostRequest::kSetFeatures, kPlainFeatures));  // not negotiated yet
  CHECK(bed.alive());
  // Negotiated by the very message that asks.
  CHECK(bed.ask(VhostRequest::kSetProtocolFeatures, offered_protocol_features()) == 0);
  CHECK(bed.ask(VhostRequest::kSetFeatures, kPlainFeatures) == 0);
  CHECK(bed.tell(VhostRequest::kSetFeatures, kPlainFeatures));
  CHECK_FALSE(bed.peer.receive());
  // Requests with an answer of their own give that one, once.
  bed.peer.send(VhostRequest::kGetFeatures, {}, kVhostVersion | kVhostFlagNeedReply);
  bed.pump();
  CHECK(bed.reply_u64(VhostRequest::kGetFeatures) == offered_features({}));
  CHECK_FALSE(bed.peer.receive());
}

TEST_CASE("Backend: SET_FEATURES may be repeated per queue pair while earlier pairs run") {
  BackendBed bed;
  bed.run();
  const int pauses = bed.host.pauses;
  CHECK(bed.ask(VhostRequest::kSetFeatures, kPlainFeatures) == 0);
  CHECK(bed.host.pauses == pauses);
  bed.set_up(3);
  CHECK(bed.live(1));
  CHECK(bed.live(3));
}

TEST_CASE("Backend: a guest may come back with other features after it stopped its rings") {
  BackendBed bed;
  const std::array<uint64_t, 3> lives = {feature_mask(VHOST_USER_F_PROTOCOL_FEATURES), kPlainFeatures,
                                         kPlainFeatures | feature_mask(VIRTIO_F_RING_PACKED)};
  bed.negotiate();
  REQUIRE(bed.share_memory() == 0);
  for (const uint64_t features : lives) {
    REQUIRE(bed.ask(VhostRequest::kSetFeatures, features) == 0);
    const bool packed = has_feature(features, VIRTIO_F_RING_PACKED);
    for (const uint32_t i : {0U, 1U}) {
      bed.set_up(i, 256, packed ? 0x8000 : 0);
      bed.enable(i);
    }
    REQUIRE(bed.live(0));
    REQUIRE(bed.live(1));
    for (const uint32_t i : {0U, 1U}) {
      bed.peer.send(VhostRequest::kGetVringBase, VhostVringState{i, 0});
      bed.pump();
      CHECK(bed.peer.receive());
    }
    CHECK_FALSE(bed.live(0));
  }
}

TEST_CASE("Backend: a ring's place is still told after a reset, as QEMU before 8.1 asks only then") {
  BackendBed bed;
  bed.negotiate();
  REQUIRE(bed.share_memory() == 0);
  const VhostVringAddr place = bed.address(1);
  bed.memory.data()[place.used - bed.memory.address() + 2] = 5;  // five chains were used
  bed.set_up(1, 256, 5);
  REQUIRE(bed.live(1));
  REQUIRE(bed.tell(VhostRequest::kSetStatus, uint64_t{0}));
  CHECK_FALSE(bed.live(1));
  bed.peer.send(VhostRequest::kGetVringBase, VhostVringState{1, 0});
  bed.pump();
  const auto reply = bed.peer.receive();
  REQUIRE(reply);
  CHECK(reply->as<VhostVringState>().num == 5);
}

TEST_CASE("Backend: RESET_OWNER and status 0 stop every ring; the guest can start again") {
  for (const bool owner : {true, false}) {
    BackendBed bed;
    bed.run(2);
    REQUIRE(bed.tell(VhostRequest::kSetStatus, uint64_t{0xf}));
    if (owner) {
      bed.peer.send(VhostRequest::kResetOwner);
      bed.pump();
    } else {
      REQUIRE(bed.tell(VhostRequest::kSetStatus, uint64_t{0}));
      CHECK(bed.get(VhostRequest::kGetStatus) == 0U);
    }
    REQUIRE(bed.alive());
    CHECK(bed.backend->live_rx().empty());
    CHECK(bed.backend->live_tx().empty());
    bed.set_up(1);
    CHECK(bed.live(1));
  }
}

TEST_CASE("Backend: the device status reads back as it was written") {
  BackendBed bed;
  for (const uint64_t status : {1, 3, 0xb, 0xf, 0x8f}) {
    REQUIRE(bed.tell(VhostRequest::kSetStatus, status));
    CHECK(bed.get(VhostRequest::kGetStatus) == status);
  }
}

TEST_CASE("Backend: the MTU is what the front-end says") {
  BackendBed bed;
  for (const uint64_t mtu : {68, 1500, 9000, 65535}) {
    REQUIRE(bed.tell(VhostRequest::kNetSetMtu, mtu));
    CHECK(bed.backend->mtu() == mtu);
  }
}

}  // namespace
}  // namespace sw
