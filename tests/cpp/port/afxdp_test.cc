// SPDX-License-Identifier: Apache-2.0
// Frames through an afxdp port, in both directions.
#include "port/afxdp.h"

#include <doctest/doctest.h>
#include <sys/epoll.h>

#include "port/afxdp_bed.h"

using namespace sw;
using namespace sw::test;

TEST_CASE("afxdp: frames go both ways between the port and the wire") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  PortUnderTest uplink(make_afxdp, afxdp_config("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const PortStatus status = uplink.port->status();
  CHECK(status.stage == "running");
  CHECK(status.up);
  CHECK(status.facts.at("xdp") == "in the driver");
  CHECK(status.facts.at("queues") == "1");
  const RawSocket wire("veth-b");
  REQUIRE(wire.ok());
  const size_t sizes[] = {14, 60, 128, 129, 1514};
  for (const size_t bytes : sizes) REQUIRE(wire.send(test_frame(bytes, 7)));
  const auto got = uplink.receive(5);
  REQUIRE(got.size() == 5);
  for (size_t i = 0; i < 5; ++i) CHECK(got[i].first == test_frame(sizes[i], 7));
  CHECK(uplink.rx[0].frames.get() == 5);
  CHECK(uplink.rx[0].bytes.get() == 14 + 60 + 128 + 129 + 1514);

  CHECK(uplink.send({{test_frame(60, 1), {}}, {test_frame(1514, 2), {}}}, 300) == 2);
  CHECK(wire.receive() == test_frame(60, 1));
  CHECK(wire.receive() == test_frame(1514, 2));
  CHECK(uplink.tx[0].frames.get() == 2);
  CHECK(uplink.tx[0].bytes.get() == 1574);
}

TEST_CASE("afxdp: the rings go round many times, in order, both ways") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  PortUnderTest uplink(make_afxdp, afxdp_config("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket wire("veth-b");
  for (int round = 0; round < 120; ++round) {
    std::vector<std::pair<Bytes, VnetHeader>> burst;
    for (size_t i = 0; i < kMaxBatch; ++i) burst.push_back({test_frame(60 + i, static_cast<uint8_t>(i)), {}});
    for (const auto& frame : burst) REQUIRE(wire.send(frame.first));
    const auto got = uplink.receive(burst.size());
    REQUIRE(got.size() == burst.size());
    for (size_t i = 0; i < burst.size(); ++i) REQUIRE(got[i].first == burst[i].first);
    REQUIRE(uplink.send(burst) == burst.size());
    for (const auto& frame : burst) REQUIRE(wire.receive() == frame.first);
  }
  CHECK(uplink.rx[0].frames.get() == 120 * kMaxBatch);
  CHECK(uplink.tx[0].frames.get() == 120 * kMaxBatch);
  CHECK(uplink.port->status().counters.at("invalid_descriptors") == 0);
}

TEST_CASE("afxdp: tags are where they were on the wire, in both directions") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  PortUnderTest uplink(make_afxdp, afxdp_config("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket wire("veth-b");
  Bytes tagged = test_frame(1518, 3);
  const uint8_t tag[] = {0x81, 0, 0x60, 0x64};
  std::copy(std::begin(tag), std::end(tag), tagged.begin() + 12);
  REQUIRE(wire.send(tagged));
  const auto got = uplink.receive(1);
  REQUIRE(got.size() == 1);
  CHECK(got[0].first == tagged);
  CHECK(uplink.send({{tagged, {}}}) == 1);
  int seen = 0;
  CHECK(wire.receive(nullptr, &seen).size() == 1514);
  CHECK(seen == 0x6064);
}

TEST_CASE("afxdp: frames of MTU 9000 take several chunks both ways, longer ones are counted") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  REQUIRE(shell("ip link set veth-a mtu 9000 && ip link set veth-b mtu 9000"));
  PortUnderTest uplink(make_afxdp, afxdp_config("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  CHECK(uplink.port->status().facts.at("multi_buffer") == "yes");
  const RawSocket wire("veth-b");
  std::vector<Bytes> frames;
  for (const size_t bytes : {1791, 1792, 1793, 2048, 2049, 3584, 3585, 4096, 4097, 8000, 9014}) {
    Bytes frame = test_frame(bytes, 0);
    for (size_t i = 14; i < frame.size(); ++i) frame[i] = static_cast<uint8_t>(i * 7 + i / 256);
    frames.push_back(frame);
  }
  for (int round = 0; round < 100; ++round) {
    for (const Bytes& frame : frames) REQUIRE(wire.send(frame));
    const auto got = uplink.receive(frames.size());
    REQUIRE(got.size() == frames.size());
    for (size_t i = 0; i < frames.size(); ++i) REQUIRE(got[i].first == frames[i]);
    std::vector<std::pair<Bytes, VnetHeader>> burst;
    for (const Bytes& frame : frames) burst.push_back({frame, {}});
    REQUIRE(uplink.send(burst) == burst.size());
    for (const Bytes& frame : frames) REQUIRE(wire.receive() == frame);
  }
  CHECK(uplink.send({{test_frame(9015, 1), {}}, {test_frame(60, 2), {}}}) == 2);
  CHECK(wire.receive() == test_frame(60, 2));
  CHECK(uplink.dropped_tx(DropReason::kMtuExceeded) == 1);
  CHECK(uplink.port->status().counters.at("invalid_descriptors") == 0);
}

TEST_CASE("afxdp: a changed MTU counts for what is sent from then on") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  PortUnderTest uplink(make_afxdp, afxdp_config("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket wire("veth-b");
  CHECK(uplink.send({{test_frame(3000, 1), {}}}) == 1);
  CHECK(uplink.dropped_tx(DropReason::kMtuExceeded) == 1);
  REQUIRE(shell("ip link set veth-b mtu 4000 && ip link set veth-a mtu 4000"));
  REQUIRE(uplink.house.run_until([&] { return uplink.port->status().facts.at("mtu") == "4000"; }));
  CHECK(uplink.send({{test_frame(3000, 1), {}}}) == 1);
  CHECK(wire.receive() == test_frame(3000, 1));
}

TEST_CASE("afxdp: the unfinished checksums of a local sender are marked, unless they are to be trusted") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  for (const RxChecksum mode : {RxChecksum::kAuto, RxChecksum::kFix, RxChecksum::kTrust}) {
    PortConfig config = afxdp_config("veth-a");
    config.checksum = mode;
    PortUnderTest uplink(make_afxdp, config);
    REQUIRE_MESSAGE(uplink.opened, uplink.error);
    const RawSocket wire("veth-b");
    for (const int version : {4, 6}) {
      for (const bool udp : {false, true}) {
        OffloadShape shape;
        shape.ip_version = version;
        shape.udp = udp;
        shape.payload = 500;
        const OffloadFrame frame = make_offload_frame(shape);
        REQUIRE(wire.send(frame.bytes, frame.vnet));  // the kernel keeps the checksum unfinished, as its own frames'
        const auto got = uplink.receive(1);
        REQUIRE(got.size() == 1);
        CHECK(got[0].first == frame.bytes);
        CHECK(got[0].second.flags == (mode == RxChecksum::kTrust ? 0 : VIRTIO_NET_HDR_F_NEEDS_CSUM));
        if (mode != RxChecksum::kTrust) CHECK(got[0].second.csum_start == frame.vnet.csum_start);
      }
    }
  }
}

TEST_CASE("afxdp: an interface whose driver knows no XDP works in the generic path, large frames included") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  if (!shell("ip link add br0 type bridge && ip link set veth-a master br0 && ip link set br0 up")) {
    MESSAGE("skipped: this kernel has no bridge, the only interface here without XDP in its driver");
    return;
  }
  PortUnderTest uplink(make_afxdp, afxdp_config("br0"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  CHECK(uplink.port->status().facts.at("xdp").find("generic") == 0);
  const RawSocket wire("veth-b");
  REQUIRE(wire.send(test_frame(200, 1)));
  OffloadShape shape;
  shape.payload = 30'000;
  shape.gso_size = 1400;
  OffloadFrame large = make_offload_frame(shape);
  REQUIRE(wire.send(large.bytes, large.vnet));
  const auto got = uplink.receive(2);
  REQUIRE(got.size() == 2);
  CHECK(got[0].first == test_frame(200, 1));
  CHECK(got[1].first == large.bytes);
  CHECK(got[1].second.gso_type == VIRTIO_NET_HDR_GSO_TCPV4);
  CHECK(got[1].second.gso_size == 1500 - 40);
  CHECK(uplink.send({{test_frame(300, 2), {}}}) == 1);
  CHECK(wire.receive() == test_frame(300, 2));
}

TEST_CASE("afxdp: every queue serves its flows") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth(2));
  PortUnderTest uplink(make_afxdp, afxdp_config("veth-a", 2));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  CHECK(uplink.port->status().facts.at("queues") == "2");
  const RawSocket wire("veth-b");
  OffloadShape shape;
  for (uint8_t flow = 0; flow < 64; ++flow) {
    OffloadFrame frame = make_offload_frame(shape);
    frame.bytes[frame.l4] = flow;  // source port
    REQUIRE(wire.send(frame.bytes));
  }
  size_t got[2] = {0, 0};
  for (int round = 0; round < 1'000'000 && got[0] + got[1] < 64; ++round) {
    for (size_t q = 0; q < 2; ++q) {
      uplink.batch->clear();
      if (uplink.port->rx_queues()[q]->peek(*uplink.batch, uplink.drops)) uplink.port->rx_queues()[q]->release();
      got[q] += uplink.batch->count;
    }
  }
  CHECK(got[0] + got[1] == 64);
  CHECK(got[0] != 0);
  CHECK(got[1] != 0);
  CHECK(uplink.send({{test_frame(100, 1), {}}}, 1000, 1) == 1);
  CHECK(wire.receive() == test_frame(100, 1));
}

TEST_CASE("afxdp: frames of queues that are not served stay with the host") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth(2));
  PortUnderTest uplink(make_afxdp, afxdp_config("veth-a", 1));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  CHECK(uplink.port->status().facts.at("queues").find("1 of 2: frames that come in on the other 1 queue stay") == 0);
  const RawSocket host("veth-a");
  const RawSocket wire("veth-b");
  OffloadShape shape;
  for (uint8_t flow = 0; flow < 64; ++flow) {
    OffloadFrame frame = make_offload_frame(shape);
    frame.bytes[frame.l4] = flow;
    REQUIRE(wire.send(frame.bytes));
  }
  size_t ours = 0;
  size_t theirs = 0;
  while (!host.receive().empty()) ++theirs;
  if (theirs < 64) ours = uplink.receive(64 - theirs).size();
  CHECK(ours + theirs == 64);
  CHECK(ours != 0);
  CHECK(theirs != 0);
}

TEST_CASE("afxdp: frames that the kernel could not hand over are kernel_dropped, none goes uncounted") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  PortUnderTest uplink(make_afxdp, afxdp_config("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket wire("veth-b");
  for (int i = 0; i < 3000; ++i) REQUIRE(wire.send(test_frame(60, 1)));
  REQUIRE(uplink.house.run_until([&] { return uplink.port->status().counters["kernel_dropped"] != 0; }));
  const uint64_t lost = uplink.port->status().counters["kernel_dropped"];
  CHECK(uplink.receive(3000 - lost).size() == 3000 - lost);
  CHECK(uplink.rx[0].frames.get() == 3000);
  CHECK(uplink.dropped_rx(DropReason::kKernelDropped) == lost);
}

TEST_CASE("afxdp: frames that the kernel takes and loses are counted as lost") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  PortUnderTest uplink(make_afxdp, afxdp_config("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  REQUIRE(shell("ip link set veth-b down"));  // the port has not looked since
  CHECK(uplink.send({{test_frame(60, 1), {}}, {test_frame(60, 2), {}}}) == 2);
  CHECK(uplink.dropped_tx(DropReason::kDeviceError) == 2);
  CHECK(uplink.tx[0].frames.get() == 0);
  CHECK(uplink.tx[0].bytes.get() == 0);
  REQUIRE(uplink.house.run_until([&] { return uplink.port->status().stage == "no_carrier"; }));
  CHECK(uplink.send({{test_frame(60, 3), {}}}) == 1);
  CHECK(uplink.dropped_tx(DropReason::kLinkDown) == 1);
  REQUIRE(shell("ip link set veth-b up"));
  REQUIRE(uplink.house.run_until([&] { return uplink.port->status().up; }));
  const RawSocket wire("veth-b");
  CHECK(uplink.send({{test_frame(60, 4), {}}}) == 1);
  CHECK(wire.receive() == test_frame(60, 4));
}

TEST_CASE("afxdp: arm says whether a frame waits, and every frame wakes a sleeper once") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  PortUnderTest uplink(make_afxdp, afxdp_config("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  RxQueue* const queue = uplink.port->rx_queues()[0];
  const RawSocket wire("veth-b");
  // As a worker sleeps: edge-triggered.
  const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  REQUIRE(::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, queue->wake_fd(), &event) == 0);
  for (int round = 0; round < 3; ++round) {
    CHECK_FALSE(queue->arm());
    CHECK(::epoll_wait(epoll.get(), &event, 1, 0) == 0);
    REQUIRE(wire.send(test_frame(60, 1)));
    CHECK(::epoll_wait(epoll.get(), &event, 1, 5000) == 1);
    CHECK(queue->arm());
    queue->disarm();
    CHECK(uplink.receive(1).size() == 1);
    REQUIRE(uplink.send({{test_frame(60, 2), {}}}) == 1);  // what is sent wakes nobody
  }
}
