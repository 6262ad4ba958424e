// SPDX-License-Identifier: Apache-2.0
// What the vhost-user specification demands of a back-end, one test a rule, cited by heading.
#include <doctest/doctest.h>

#include "support/backend_bed.h"
#include "support/split_driver.h"

namespace sw {
namespace {

using testing::BackendBed;
using testing::kPlainFeatures;
using testing::make_eventfd;
using testing::SplitDriver;

constexpr std::array<uint8_t, 60> kFrame = {0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x88, 0xb5};

struct Taken {
  uint32_t frames = 0;
  uint64_t discarded = 0;
};
Taken take(RxQueue* queue) {
  Batch batch;
  PortWorkerCounters drops;
  if (queue->peek(batch, drops)) queue->release();
  return {batch.count, drops.rx_drops[static_cast<size_t>(DropReason::kQueueDisabled)].get()};
}

TEST_CASE("Spec: replies carry the request number, version 1 and the reply flag, and nothing else") {
  // vhost-user "Header": flags of a reply are version 0x1 and bit 2; NEED_REPLY (bit 3) belongs to requests.
  BackendBed bed;
  bed.peer.send(VhostRequest::kGetFeatures, {}, kVhostVersion | kVhostFlagNeedReply);
  bed.pump();
  const auto reply = bed.peer.receive();
  REQUIRE(reply);
  CHECK(reply->request == VhostRequest::kGetFeatures);
  CHECK(reply->flags == 0x5);
  CHECK(reply->size == 8);
}

TEST_CASE("Spec: PROTOCOL_FEATURES is offered, and its messages work before SET_FEATURES") {
  // vhost-user "GET_PROTOCOL_FEATURES": legal when bit 30 is in GET_FEATURES, even before it is acknowledged.
  BackendBed bed;
  REQUIRE((*bed.get(VhostRequest::kGetFeatures) & 1ULL << 30) != 0);
  const auto offered = bed.get(VhostRequest::kGetProtocolFeatures);
  REQUIRE(offered);
  CHECK(bed.tell(VhostRequest::kSetProtocolFeatures, *offered));
}

TEST_CASE("Spec: with REPLY_ACK, zero means done and anything else means it failed") {
  // vhost-user "REPLY_ACK": a u64 payload, for messages that have no reply of their own.
  BackendBed bed;
  REQUIRE(bed.tell(VhostRequest::kSetProtocolFeatures, kProtocolReplyAck));
  CHECK(bed.ask(VhostRequest::kSetFeatures, kPlainFeatures) == 0);
  CHECK(bed.ask(VhostRequest::kSetFeatures, ~uint64_t{0}) != 0);
}

TEST_CASE("Spec: a ring starts disabled when PROTOCOL_FEATURES was negotiated") {
  // vhost-user "Ring states": initialised in a disabled state, enabled by SET_VRING_ENABLE.
  BackendBed bed;
  bed.negotiate();
  REQUIRE(bed.share_memory() == 0);
  bed.set_up(0);
  CHECK(bed.live(0));
  CHECK(bed.backend->live_tx().empty());
  bed.enable(0);
  CHECK(bed.backend->live_tx().size() == 1);
}

TEST_CASE("Spec: a ring starts enabled when PROTOCOL_FEATURES was not negotiated") {
  // vhost-user "Ring states".
  BackendBed bed;
  REQUIRE(bed.tell(VhostRequest::kSetFeatures, feature_mask(VIRTIO_F_VERSION_1)));
  bed.tell(VhostRequest::kSetMemTable, BackendBed::table({bed.whole()}), {bed.memory.fd()});
  bed.set_up(0);
  CHECK(bed.backend->live_tx().size() == 1);
}

TEST_CASE("Spec: a started and disabled transmitq is processed and what it carries is discarded") {
  // vhost-user "Ring states": a net back-end must process and discard what comes on a disabled TX ring.
  BackendBed bed;
  bed.run();
  bed.enable(1, false);
  SplitDriver driver(bed, 1);
  driver.push(kFrame);
  REQUIRE(bed.backend->live_rx().size() == 1);
  const Taken taken = take(bed.backend->live_rx()[0]);
  CHECK(taken.frames == 0);
  CHECK(taken.discarded == 1);
  CHECK(load_acquire(driver.used()->idx) == 1);
}

TEST_CASE("Spec: disabling and enabling loses no frame that was not taken meanwhile") {
  // vhost-user "Ring states": enabling concerns processing only, not the ring's position.
  BackendBed bed;
  bed.run();
  SplitDriver driver(bed, 1);
  driver.push(kFrame);
  bed.enable(1, false);
  bed.enable(1);
  CHECK(take(bed.backend->live_rx()[0]).frames == 1);
}

TEST_CASE("Spec: GET_VRING_BASE stops the ring and returns where it stands") {
  // vhost-user "Ring states" and "GET_VRING_BASE": the index of the next available entry.
  BackendBed bed;
  bed.run();
  SplitDriver driver(bed, 1);
  for (int i = 0; i < 5; ++i) driver.push(kFrame);
  CHECK(take(bed.backend->live_rx()[0]).frames == 5);
  driver.push(kFrame);
  bed.peer.send(VhostRequest::kGetVringBase, VhostVringState{1, 0});
  bed.pump();
  const auto reply = bed.peer.receive();
  REQUIRE(reply);
  CHECK(reply->as<VhostVringState>().num == 5);
  CHECK(bed.backend->live_rx().empty());
  // Started again from there, the sixth frame is the next.
  bed.set_up(1, 256, 5);
  CHECK(take(bed.backend->live_rx()[0]).frames == 1);
}

TEST_CASE("Spec: SET_VRING_KICK, CALL and ERR with the invalid-descriptor flag bring none") {
  // vhost-user "SET_VRING_KICK": bit 8 of the payload, then the ring is polled.
  BackendBed bed;
  bed.run();
  for (const auto request : {VhostRequest::kSetVringKick, VhostRequest::kSetVringCall, VhostRequest::kSetVringErr}) {
    CHECK(bed.ask(request, 1 | kVringNoFd) == 0);
  }
  CHECK(bed.live(1));
  CHECK(bed.backend->live_rx()[0]->wake_fd() == -1);
}

TEST_CASE("Spec: a table of eight regions is taken") {
  // vhost-user "Multiple memory regions": at most eight in one table.
  BackendBed bed;
  bed.negotiate();
  VhostMemTable table{8, 0, {}};
  for (uint64_t i = 0; i < 8; ++i) table.regions.at(i) = {i << 20, 4096, bed.memory.address() + (i << 12), i << 12};
  CHECK(bed.ask(VhostRequest::kSetMemTable, table, std::vector<int>(8, bed.memory.fd())) == 0);
  CHECK(bed.backend->memory()->regions().size() == 8);
}

TEST_CASE("Spec: REM_MEM_REG names a region by its addresses and size, and a descriptor with it is not an error") {
  // vhost-user "REM_MEM_REG": the back-end must accept, and close, a descriptor sent by old front-ends.
  BackendBed bed;
  bed.negotiate();
  VhostSingleRegion slot{0, bed.whole()};
  REQUIRE(bed.ask(VhostRequest::kAddMemReg, slot, {bed.memory.fd()}) == 0);
  slot.region.mmap_offset = 4096;
  CHECK(bed.ask(VhostRequest::kRemMemReg, slot, {bed.memory.fd()}) == 0);
  CHECK(bed.backend->memory()->regions().empty());
}

TEST_CASE("Spec: with LOG_ALL, pages that the device writes are marked, the used ring only when it asks") {
  // vhost-user "Migration": guest memory writes always, ring writes when VHOST_VRING_F_LOG is set on the ring.
  for (const bool log_used : {false, true}) {
    CAPTURE(log_used);
    BackendBed bed;
    bed.run();
    const testing::SharedFile log(4096);
    bed.peer.send(VhostRequest::kSetLogBase, VhostLog{4096, 0}, {log.fd()});
    bed.pump();
    REQUIRE(bed.peer.receive());
    REQUIRE(bed.ask(VhostRequest::kSetFeatures, kPlainFeatures | feature_mask(VHOST_F_LOG_ALL)) == 0);
    VhostVringAddr address = bed.address(1);
    address.flags = log_used ? kVringFlagLog : 0;
    REQUIRE(bed.ask(VhostRequest::kSetVringAddr, address) == 0);
    SplitDriver driver(bed, 1);
    driver.push(kFrame);
    REQUIRE(take(bed.backend->live_rx()[0]).frames == 1);
    const uint64_t page = address.log / 4096;
    CHECK((log.data()[page / 8] >> page % 8 & 1) == (log_used ? 1 : 0));
  }
}

TEST_CASE("Spec: SEND_RARP makes the network learn where the guest is now") {
  // vhost-user "SEND_RARP": broadcast a fake RARP for the address in the payload.
  BackendBed bed;
  bed.run();
  REQUIRE(bed.ask(VhostRequest::kSendRarp, uint64_t{0x0252}) == 0);
  CHECK(take(bed.backend->live_rx()[0]).frames == 1);
}

TEST_CASE("Spec: writing status 0 resets the device") {
  // virtio 1.3 2.4: the device must stop; rings need a new set-up.
  BackendBed bed;
  bed.run();
  REQUIRE(bed.tell(VhostRequest::kSetStatus, uint64_t{0}));
  CHECK_FALSE(bed.live(0));
  CHECK_FALSE(bed.live(1));
}

}  // namespace
}  // namespace sw
