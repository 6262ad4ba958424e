// SPDX-License-Identifier: Apache-2.0
#include "port/afpacket.h"

#include <doctest/doctest.h>

#include "port/netns.h"

using namespace sw;
using namespace sw::test;

namespace {

PortConfig config_for(const std::string& device, uint32_t queues = 1) {
  PortConfig config;
  config.name = "uplink";
  config.type = "afpacket";
  config.device = device;
  config.queues = queues;
  return config;
}

bool make_veth() {
  return shell("ip link add veth-a type veth peer name veth-b && ip link set veth-a up && ip link set veth-b up");
}

Bytes tagged_frame(size_t bytes, uint16_t tci, uint8_t fill) {
  Bytes frame = test_frame(bytes, fill);
  const uint8_t tag[] = {0x81, 0, static_cast<uint8_t>(tci >> 8), static_cast<uint8_t>(tci)};
  frame.insert(frame.begin() + 12, std::begin(tag), std::end(tag));
  return frame;
}

}  // namespace

TEST_CASE("afpacket: frames go both ways between the port and the wire") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_veth());
  PortUnderTest uplink(make_afpacket, config_for("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  CHECK(uplink.port->status().stage == "running");
  const RawSocket wire("veth-b");
  REQUIRE(wire.ok());
  for (const size_t bytes : {60, 128, 129, 1514}) REQUIRE(wire.send(test_frame(bytes, 7)));
  const auto got = uplink.receive(4);
  REQUIRE(got.size() == 4);
  CHECK(got[0].first == test_frame(60, 7));
  CHECK(got[1].first == test_frame(128, 7));
  CHECK(got[2].first == test_frame(129, 7));
  CHECK(got[3].first == test_frame(1514, 7));
  CHECK(uplink.rx[0].frames.get() == 4);
  CHECK(uplink.rx[0].bytes.get() == 60 + 128 + 129 + 1514);

  CHECK(uplink.send({{test_frame(60, 1), {}}, {test_frame(1514, 2), {}}}, 300) == 2);
  CHECK(wire.receive() == test_frame(60, 1));
  CHECK(wire.receive() == test_frame(1514, 2));
  CHECK(uplink.tx[0].frames.get() == 2);
  CHECK(uplink.tx[0].bytes.get() == 1574);
}

TEST_CASE("afpacket: frames for other addresses are received, the host's own are not") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_veth());
  PortUnderTest uplink(make_afpacket, config_for("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket host("veth-a");
  const RawSocket wire("veth-b");
  REQUIRE(host.send(test_frame(60, 1)));
  REQUIRE(uplink.send({{test_frame(60, 2), {}}}) == 1);
  REQUIRE(wire.send(test_frame(60, 3)));
  const auto got = uplink.receive(1);
  REQUIRE(got.size() == 1);
  CHECK(got[0].first == test_frame(60, 3));
  CHECK(uplink.rx[0].frames.get() == 1);
}

TEST_CASE("afpacket: the ring goes round many times in order") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_veth());
  PortUnderTest uplink(make_afpacket, config_for("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket wire("veth-b");
  uint8_t next = 0;
  for (int round = 0; round < 100; ++round) {
    for (int i = 0; i < 100; ++i) REQUIRE(wire.send(test_frame(60 + static_cast<size_t>(i), static_cast<uint8_t>(i))));
    const auto got = uplink.receive(100);
    REQUIRE(got.size() == 100);
    for (const auto& frame : got) {
      REQUIRE(frame.first == test_frame(60U + next, next));
      next = static_cast<uint8_t>((next + 1) % 100);
    }
  }
}

TEST_CASE("afpacket: VLAN tags are where they were on the wire, in both directions") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_veth());
  PortUnderTest uplink(make_afpacket, config_for("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket wire("veth-b");
  const std::vector<Bytes> frames = {tagged_frame(60, 100, 1), tagged_frame(124, 0x6064, 2), tagged_frame(125, 5, 3),
                                     tagged_frame(1514, 4094, 4), tagged_frame(100, 0, 5)};
  for (const Bytes& frame : frames) REQUIRE(wire.send(frame));
  const auto got = uplink.receive(frames.size());
  REQUIRE(got.size() == frames.size());
  for (size_t i = 0; i < frames.size(); ++i) CHECK(got[i].first == frames[i]);

  CHECK(uplink.send({{frames[1], {}}, {frames[3], {}}}) == 2);
  int tag = 0;
  CHECK(wire.receive(nullptr, &tag) == test_frame(124, 2));  // the kernel took the tag out for the receiver
  CHECK(tag == 0x6064);
  CHECK(wire.receive(nullptr, &tag) == test_frame(1514, 4));
  CHECK(tag == 4094);
}

TEST_CASE("afpacket: unfinished checksums and large frames pass in both directions, tagged or not") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_veth());
  PortUnderTest uplink(make_afpacket, config_for("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket wire("veth-b");
  for (const int version : {4, 6}) {
    for (const int tags : {0, 1}) {
      CAPTURE(version);
      CAPTURE(tags);
      OffloadShape shape;
      shape.ip_version = version;
      shape.tags = tags;
      shape.payload = 60'000;
      shape.gso_size = 1400;
      const OffloadFrame large = make_offload_frame(shape);
      shape.payload = 100;
      shape.gso_size = 0;
      const OffloadFrame small = make_offload_frame(shape);
      REQUIRE(wire.send(small.bytes, small.vnet));
      REQUIRE(wire.send(large.bytes, large.vnet));
      REQUIRE(wire.send(test_frame(80, 9)));
      REQUIRE(wire.send(large.bytes, large.vnet));
      const auto got = uplink.receive(4);
      REQUIRE(got.size() == 4);
      CHECK(got[0].first == small.bytes);
      CHECK(got[0].second.flags == VIRTIO_NET_HDR_F_NEEDS_CSUM);
      CHECK(got[0].second.csum_start == small.vnet.csum_start);
      CHECK(got[0].second.csum_offset == 16);
      CHECK(got[2].first == test_frame(80, 9));
      for (const size_t i : {1U, 3U}) {
        CHECK(got[i].first == large.bytes);
        CHECK(got[i].second.gso_type == large.vnet.gso_type);
        CHECK(got[i].second.gso_size == 1400);
        CHECK(got[i].second.csum_start == large.vnet.csum_start);
      }

      OffloadFrame lying = large;
      lying.vnet.hdr_len = 0xffff;
      CHECK(uplink.send({{lying.bytes, lying.vnet}, {small.bytes, small.vnet}}, 4000) == 2);
      VnetHeader vnet;
      int tag = 0;
      CHECK(wire.receive(&vnet, &tag).size() == large.bytes.size() - 4U * static_cast<size_t>(tags));
      CHECK(vnet.gso_type == large.vnet.gso_type);
      CHECK(vnet.gso_size == 1400);
      CHECK(tag == (tags == 1 ? 100 : -1));
      CHECK(wire.receive(&vnet).size() == small.bytes.size() - 4U * static_cast<size_t>(tags));
      CHECK(vnet.flags == VIRTIO_NET_HDR_F_NEEDS_CSUM);
    }
  }
}

TEST_CASE("afpacket: frames that the kernel refuses are counted and the others pass") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_veth());
  PortUnderTest uplink(make_afpacket, config_for("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket wire("veth-b");
  VnetHeader bad;
  bad.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  bad.csum_start = 5000;
  CHECK(uplink.send({{test_frame(60, 1), {}},
                     {test_frame(1600, 2), {}},
                     {test_frame(70, 3), {}},
                     {test_frame(60, 4), bad},
                     {test_frame(80, 5), {}}}) == 5);
  CHECK(wire.receive() == test_frame(60, 1));
  CHECK(wire.receive() == test_frame(70, 3));
  CHECK(wire.receive() == test_frame(80, 5));
  CHECK(uplink.tx[0].frames.get() == 3);
  CHECK(uplink.dropped_tx(DropReason::kMtuExceeded) == 1);
  CHECK(uplink.dropped_tx(DropReason::kDeviceError) == 1);
}

TEST_CASE("afpacket: frames in more pieces than the kernel takes arrive whole and in order") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_veth());
  PortUnderTest uplink(make_afpacket, config_for("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket wire("veth-b");
  const Bytes pieces = test_frame(kHeadBytes + kMaxSegments, 5);
  CHECK(uplink.send({{test_frame(60, 1), {}}, {pieces, {}}, {test_frame(60, 2), {}}}, 1) == 3);
  CHECK(wire.receive() == test_frame(60, 1));
  CHECK(wire.receive() == pieces);
  CHECK(wire.receive() == test_frame(60, 2));
}

TEST_CASE("afpacket: frames lost by a full ring are kernel_dropped, none goes uncounted") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_veth());
  PortUnderTest uplink(make_afpacket, config_for("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket wire("veth-b");
  for (int i = 0; i < 3000; ++i) REQUIRE(wire.send(test_frame(60, 1)));
  REQUIRE(uplink.house.run_until([&] { return uplink.port->status().counters["kernel_dropped"] != 0; }));
  const uint64_t lost = uplink.port->status().counters["kernel_dropped"];
  CHECK(uplink.receive(3000 - lost).size() == 3000 - lost);
  CHECK(uplink.rx[0].frames.get() == 3000);
  CHECK(uplink.dropped_rx(DropReason::kKernelDropped) == lost);
}

TEST_CASE("afpacket: queues share the flows of the interface") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_veth());
  PortUnderTest uplink(make_afpacket, config_for("veth-a", 2));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket wire("veth-b");
  OffloadShape shape;
  for (uint8_t flow = 0; flow < 64; ++flow) {
    OffloadFrame frame = make_offload_frame(shape);
    frame.bytes[frame.l4] = flow;  // source port
    REQUIRE(wire.send(frame.bytes, frame.vnet));
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

TEST_CASE("afpacket: queues share the frames as the receive queues of the NIC do") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(
      shell("ip link add veth-a numrxqueues 2 numtxqueues 2 type veth peer name veth-b numrxqueues 2 numtxqueues 2"));
  REQUIRE(shell("ip link set veth-a up && ip link set veth-b up"));
  PortConfig config = config_for("veth-a", 2);
  config.fanout = "qm";
  PortUnderTest uplink(make_afpacket, config);
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket wire("veth-b");
  for (uint8_t i = 0; i < 64; ++i) REQUIRE(wire.send(test_frame(60, i)));
  // One flow, one queue of the NIC: all of it comes out of one socket, and in order.
  const bool second = uplink.port->rx_queues()[1]->arm();
  const auto got = uplink.receive(64, second ? 1 : 0);
  REQUIRE(got.size() == 64);
  for (uint8_t i = 0; i < 64; ++i) CHECK(got[i].first == test_frame(60, i));
}

TEST_CASE("afpacket: large frames whose pieces exceed the MTU are mtu_exceeded, as the MTU is now") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_veth());
  PortUnderTest uplink(make_afpacket, config_for("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket wire("veth-b");
  const auto large = [](int tags, uint16_t l3_bytes) {
    OffloadShape shape;
    shape.tags = tags;
    shape.payload = 20'000;
    shape.gso_size = 1000;
    OffloadFrame frame = make_offload_frame(shape);
    frame.vnet.gso_size = static_cast<uint16_t>(l3_bytes - (frame.headers - frame.l3));
    return std::pair(frame.bytes, frame.vnet);
  };
  CHECK(uplink.send({large(0, 1500), large(0, 1501), large(1, 1500), large(1, 1501), {test_frame(60, 1), {}}}, 8000) ==
        5);
  CHECK(uplink.dropped_tx(DropReason::kMtuExceeded) == 2);
  CHECK(uplink.tx[0].frames.get() == 3);
  CHECK(wire.receive().size() > 20'000);
  CHECK(wire.receive().size() > 20'000);
  CHECK(wire.receive() == test_frame(60, 1));

  REQUIRE(shell("ip link set veth-a mtu 1400"));
  REQUIRE(uplink.house.run_until([&] { return uplink.port->status().facts["mtu"] == "1400"; }));
  CHECK(uplink.send({large(0, 1400), large(0, 1401)}, 8000) == 2);
  CHECK(uplink.dropped_tx(DropReason::kMtuExceeded) == 3);
}

TEST_CASE("afpacket: what the kernel dropped before the interface went down is still counted") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_veth());
  PortUnderTest uplink(make_afpacket, config_for("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const RawSocket wire("veth-b");
  for (int i = 0; i < 3000; ++i) REQUIRE(wire.send(test_frame(60, 1)));
  REQUIRE(shell("ip link set veth-a down"));
  REQUIRE(uplink.house.run_until([&] { return uplink.port->rx_queues().empty(); }));
  const uint64_t lost = uplink.port->status().counters["kernel_dropped"];
  CHECK(lost > 0);
  REQUIRE(shell("ip link set veth-a up"));
  REQUIRE(uplink.house.run_until([&] { return uplink.port->status().up; }));
  REQUIRE(wire.send(test_frame(60, 2)));
  CHECK(uplink.receive(1).size() == 1);
  CHECK(uplink.dropped_rx(DropReason::kKernelDropped) == lost);
}

TEST_CASE("afpacket: arm says whether a frame waits, and the descriptor is then readable") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_veth());
  PortUnderTest uplink(make_afpacket, config_for("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  RxQueue* const queue = uplink.port->rx_queues()[0];
  pollfd wait{queue->wake_fd(), POLLIN, 0};
  CHECK_FALSE(queue->arm());
  CHECK(::poll(&wait, 1, 0) == 0);
  const RawSocket wire("veth-b");
  REQUIRE(wire.send(test_frame(60, 1)));
  CHECK(::poll(&wait, 1, 1000) == 1);
  CHECK(queue->arm());
  queue->disarm();
  CHECK(uplink.receive(1).size() == 1);
  CHECK_FALSE(queue->arm());
  CHECK(::poll(&wait, 1, 0) == 0);
}

TEST_CASE("afpacket: the port follows its interface down, up, away and back") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_veth());
  PortUnderTest uplink(make_afpacket, config_for("veth-a", 2));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  const auto stage = [&] { return uplink.port->status().stage; };
  REQUIRE(shell("ip link set veth-a down"));
  CHECK(uplink.send({{test_frame(60, 1), {}}}) == 1);
  CHECK(uplink.dropped_tx(DropReason::kLinkDown) == 1);
  CHECK_FALSE(uplink.port->rx_queues()[0]->arm());
  CHECK(uplink.house.run_until([&] { return stage() == "device_down" && uplink.port->rx_queues().empty(); }));
  CHECK(uplink.port->status().detail.find("ip link set veth-a up") != std::string::npos);

  REQUIRE(shell("ip link set veth-a up"));
  CHECK(uplink.house.run_until([&] { return stage() == "running"; }));
  REQUIRE(shell("ip link set veth-b down"));
  CHECK(uplink.house.run_until([&] { return stage() == "no_carrier"; }));
  REQUIRE(shell("ip link del veth-a"));
  CHECK(uplink.house.run_until([&] { return stage() == "device_missing"; }));
  CHECK_FALSE(uplink.port->status().up);

  REQUIRE(make_veth());
  CHECK(uplink.house.run_until([&] { return stage() == "running"; }));
  CHECK(uplink.house.pauses == uplink.house.resumes);
  REQUIRE(uplink.port->rx_queues().size() == 2);
  const RawSocket wire("veth-b");
  CHECK(uplink.send({{test_frame(60, 9), {}}}) == 1);
  CHECK(wire.receive() == test_frame(60, 9));
}

TEST_CASE("afpacket: an interface that is down at first is used when it comes up") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  for (const uint32_t queues : {1U, 2U}) {
    REQUIRE(make_veth());
    REQUIRE(shell("ip link set veth-a down"));
    PortUnderTest uplink(make_afpacket, config_for("veth-a", queues));
    REQUIRE_MESSAGE(uplink.opened, uplink.error);
    CHECK(uplink.port->rx_queues().empty());
    CHECK(uplink.port->status().stage == "device_down");
    REQUIRE(shell("ip link set veth-a up"));
    CHECK(uplink.house.run_until([&] { return uplink.port->status().up; }));
    CHECK(uplink.port->rx_queues().size() == queues);
    REQUIRE(shell("ip link del veth-a"));
  }
}

TEST_CASE("afpacket: what cannot be opened says why") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_veth());
  struct Row {
    PortConfig config;
    const char* words;
  };
  const Row rows[] = {
      {config_for(""), "no device"},
      {config_for("a-name-of-16-chr"), "longer than 15 characters"},
      {config_for("eth99"), "there is none of this name"},
      {config_for("lo"), "not an Ethernet interface"},
      {config_for("veth-a", 0), "1 to 256"},
      {[] {
         PortConfig config = config_for("veth-a");
         config.mtu = 9000;
         return config;
       }(),
       "own is 1500; raise it with: ip link set dev veth-a mtu 9000"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.words);
    const PortUnderTest other(make_afpacket, row.config);
    CHECK_FALSE(other.opened);
    CHECK_MESSAGE(other.error.find(row.words) != std::string::npos, other.error);
  }
  const WithoutCapability less(CAP_NET_RAW);
  const PortUnderTest other(make_afpacket, config_for("veth-a"));
  CHECK_FALSE(other.opened);
  CHECK_MESSAGE(other.error.find("CAP_NET_RAW") != std::string::npos, other.error);
}
