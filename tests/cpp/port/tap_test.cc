// SPDX-License-Identifier: Apache-2.0
#include "port/tap.h"

#include <doctest/doctest.h>

#include "port/net_device.h"
#include "port/netns.h"

using namespace sw;
using namespace sw::test;

namespace {

PortConfig config_for(const std::string& device, uint32_t queues = 1) {
  PortConfig config;
  config.name = "host";
  config.type = "tap";
  config.device = device;
  config.queues = queues;
  return config;
}

}  // namespace

TEST_CASE("tap: frames go both ways between the port and the host") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  PortUnderTest tap(make_tap, config_for("tap-t"));
  REQUIRE_MESSAGE(tap.opened, tap.error);
  CHECK(tap.port->status().up);
  CHECK(tap.port->status().stage == "running");
  const RawSocket host("tap-t");
  REQUIRE(host.ok());
  for (const size_t bytes : {60, 128, 129, 1514}) REQUIRE(host.send(test_frame(bytes, 7)));
  const auto got = tap.receive(4);
  REQUIRE(got.size() == 4);
  CHECK(got[0].first == test_frame(60, 7));
  CHECK(got[1].first == test_frame(128, 7));
  CHECK(got[2].first == test_frame(129, 7));
  CHECK(got[3].first == test_frame(1514, 7));
  CHECK(tap.rx[0].frames.get() == 4);
  CHECK(tap.rx[0].bytes.get() == 60 + 128 + 129 + 1514);

  CHECK(tap.send({{test_frame(60, 1), {}}, {test_frame(1514, 2), {}}}, 300) == 2);
  CHECK(host.receive() == test_frame(60, 1));
  CHECK(host.receive() == test_frame(1514, 2));
  CHECK(tap.tx[0].frames.get() == 2);
  CHECK(tap.tx[0].bytes.get() == 1574);
}

TEST_CASE("tap: a frame in more pieces than the kernel takes arrives whole") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  PortUnderTest tap(make_tap, config_for("tap-t"));
  REQUIRE_MESSAGE(tap.opened, tap.error);
  const RawSocket host("tap-t");
  CHECK(tap.send({{test_frame(kHeadBytes + kMaxSegments, 5), {}}}, 1) == 1);
  CHECK(host.receive() == test_frame(kHeadBytes + kMaxSegments, 5));
}

TEST_CASE("tap: unfinished checksums and large frames pass in both directions") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  PortUnderTest tap(make_tap, config_for("tap-t"));
  REQUIRE_MESSAGE(tap.opened, tap.error);
  const OffloadCaps caps = tap.port->tx_queues()[0]->caps();
  CHECK(caps.checksum);
  CHECK(caps.tso4);
  CHECK(caps.tso6);
  CHECK(caps.ecn);
  const RawSocket host("tap-t");
  for (const int version : {4, 6}) {
    OffloadShape shape;
    shape.ip_version = version;
    shape.payload = 60'000;
    shape.gso_size = 1400;
    const OffloadFrame large = make_offload_frame(shape);
    shape.payload = 100;
    shape.gso_size = 0;
    const OffloadFrame small = make_offload_frame(shape);

    REQUIRE(host.send(large.bytes, large.vnet));
    REQUIRE(host.send(small.bytes, small.vnet));
    const auto got = tap.receive(2);
    REQUIRE(got.size() == 2);
    CHECK(got[0].first == large.bytes);
    CHECK(got[0].second.gso_type == large.vnet.gso_type);
    CHECK(got[0].second.gso_size == 1400);
    CHECK(got[0].second.csum_start == large.vnet.csum_start);
    CHECK(got[1].first == small.bytes);
    CHECK(got[1].second.csum_offset == 16);

    OffloadFrame lying = large;
    lying.vnet.hdr_len = 0xffff;  // a guest's hint must not cost the frame
    CHECK(tap.send({{lying.bytes, lying.vnet}, {small.bytes, small.vnet}}, 4000) == 2);
    VnetHeader vnet;
    CHECK(host.receive(&vnet) == large.bytes);
    CHECK(vnet.gso_type == large.vnet.gso_type);
    CHECK(vnet.gso_size == 1400);
    CHECK(host.receive(&vnet) == small.bytes);
    CHECK(vnet.flags == VIRTIO_NET_HDR_F_NEEDS_CSUM);
  }
}

TEST_CASE("tap: with offloads off the kernel hands over finished frames") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  PortConfig config = config_for("tap-t");
  config.offloads = false;
  PortUnderTest tap(make_tap, config);
  REQUIRE_MESSAGE(tap.opened, tap.error);
  CHECK_FALSE(tap.port->tx_queues()[0]->caps().checksum);
  const RawSocket host("tap-t");
  OffloadShape shape;
  shape.payload = 3000;
  shape.gso_size = 1400;
  const OffloadFrame large = make_offload_frame(shape);
  REQUIRE(host.send(large.bytes, large.vnet));
  const auto got = tap.receive(3);
  REQUIRE(got.size() == 3);
  for (const auto& [bytes, vnet] : got) {
    CHECK(vnet.gso_type == 0);
    CHECK(check_transport(bytes, large) == "");
  }
}

TEST_CASE("tap: the device gets the address and MTU that were asked for, and a new MTU") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  PortConfig config = config_for("tap-t");
  config.mac = 0x5254'0000'0042;
  config.mtu = 4000;
  PortUnderTest tap(make_tap, config);
  REQUIRE_MESSAGE(tap.opened, tap.error);
  NetDevices devices;
  REQUIRE(devices.open());
  auto device = devices.find("tap-t");
  REQUIRE(device);
  CHECK(device->mac == 0x5254'0000'0042);
  CHECK(device->mtu == 4000);
  CHECK(device->up);
  CHECK(tap.port->set_mtu(1400));
  CHECK(devices.find("tap-t")->mtu == 1400);
  CHECK_FALSE(tap.port->set_mtu(10));
}

TEST_CASE("tap: without a name the kernel chooses one, and the device goes with the port") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  NetDevices devices;
  REQUIRE(devices.open());
  std::string name;
  {
    PortUnderTest tap(make_tap, config_for(""));
    REQUIRE_MESSAGE(tap.opened, tap.error);
    name = tap.port->status().facts["device"];
    CHECK(devices.find(name));
  }
  auto gone = devices.find(name);
  REQUIRE_FALSE(gone);
  CHECK(gone.error().code == ENODEV);
}

TEST_CASE("tap: a device that existed stays when the port goes") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  NetDevices devices;
  REQUIRE(devices.open());
  for (const char* kind : {"", " multi_queue"}) {
    REQUIRE(shell(std::string("ip tuntap add dev tap-t mode tap vnet_hdr") + kind));
    {
      PortUnderTest tap(make_tap, config_for("tap-t"));
      REQUIRE_MESSAGE(tap.opened, tap.error);
    }
    CHECK(devices.find("tap-t"));
    REQUIRE(shell(std::string("ip tuntap del dev tap-t mode tap") + kind));
  }
}

TEST_CASE("tap: several queues share the device") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  PortUnderTest tap(make_tap, config_for("tap-t", 2));
  REQUIRE_MESSAGE(tap.opened, tap.error);
  CHECK(tap.port->rx_queues().size() == 2);
  const RawSocket host("tap-t");
  CHECK(tap.send({{test_frame(100, 1), {}}}, 1000, 1) == 1);
  CHECK(host.receive() == test_frame(100, 1));
  OffloadShape shape;
  for (uint8_t flow = 0; flow < 64; ++flow) {
    OffloadFrame frame = make_offload_frame(shape);
    frame.bytes[frame.l4] = flow;  // source port
    REQUIRE(host.send(frame.bytes, frame.vnet));
  }
  size_t got = 0;
  for (int round = 0; round < 1'000'000 && got < 64; ++round) {
    for (size_t q = 0; q < 2; ++q) {
      tap.batch->clear();
      if (tap.port->rx_queues()[q]->peek(*tap.batch, tap.drops)) tap.port->rx_queues()[q]->release();
      got += tap.batch->count;
    }
  }
  CHECK(got == 64);
}

TEST_CASE("tap: arm says whether a frame waits, and the descriptor is then readable") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  PortUnderTest tap(make_tap, config_for("tap-t"));
  REQUIRE_MESSAGE(tap.opened, tap.error);
  RxQueue* const queue = tap.port->rx_queues()[0];
  CHECK_FALSE(queue->arm());
  const RawSocket host("tap-t");
  REQUIRE(host.send(test_frame(60, 1)));
  CHECK(queue->arm());
  pollfd wait{queue->wake_fd(), POLLIN, 0};
  CHECK(::poll(&wait, 1, 1000) == 1);
  queue->disarm();
  CHECK(tap.receive(1).size() == 1);
  CHECK_FALSE(queue->arm());
}

TEST_CASE("tap: a frame that arrives after idle polls is found, and at once when arm saw it") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  PortUnderTest tap(make_tap, config_for("tap-t"));
  REQUIRE_MESSAGE(tap.opened, tap.error);
  const RawSocket host("tap-t");
  RxQueue* const queue = tap.port->rx_queues()[0];
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < 1000; ++i) {
      tap.batch->clear();
      REQUIRE_FALSE(queue->peek(*tap.batch, tap.drops));
    }
    REQUIRE(host.send(test_frame(60, 1)));
    if (round % 2 == 0) {
      REQUIRE(queue->arm());
      tap.batch->clear();
      REQUIRE(queue->peek(*tap.batch, tap.drops));
      queue->release();
    } else {
      REQUIRE(tap.receive(1).size() == 1);
    }
  }
}

TEST_CASE("tap: frames for an interface that is down are link_down") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  PortUnderTest tap(make_tap, config_for("tap-t"));
  REQUIRE_MESSAGE(tap.opened, tap.error);
  REQUIRE(shell("ip link set tap-t down"));
  CHECK(tap.send({{test_frame(60, 1), {}}}) == 1);
  CHECK(tap.dropped_tx(DropReason::kLinkDown) == 1);
  CHECK(tap.house.run_until([&] { return !tap.port->status().up; }));
  CHECK(tap.port->status().stage == "device_down");
  CHECK(tap.port->status().detail.find("ip link set tap-t up") != std::string::npos);
  REQUIRE(shell("ip link set tap-t up"));
  CHECK(tap.house.run_until([&] { return tap.port->status().up; }));
}

TEST_CASE("tap: frames that the kernel could not queue are kernel_dropped") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  PortUnderTest tap(make_tap, config_for("tap-t"));
  REQUIRE_MESSAGE(tap.opened, tap.error);
  REQUIRE(shell("ip link set tap-t txqueuelen 10"));
  const RawSocket host("tap-t");
  for (int i = 0; i < 100; ++i) (void)host.send(test_frame(60, 1));  // some are refused at once
  REQUIRE(tap.house.run_until([&] { return tap.port->status().counters["kernel_dropped"] != 0; }));
  const uint64_t lost = tap.port->status().counters["kernel_dropped"];
  const size_t got = tap.receive(1).size();
  CHECK(tap.dropped_rx(DropReason::kKernelDropped) == lost);
  CHECK(tap.rx[0].frames.get() == lost + got);
}

TEST_CASE("tap: a deleted device is made again and traffic flows") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  PortUnderTest tap(make_tap, config_for("tap-t", 2));
  REQUIRE_MESSAGE(tap.opened, tap.error);
  REQUIRE(shell("ip link del tap-t"));
  CHECK(tap.send({{test_frame(60, 1), {}}}) == 1);
  CHECK(tap.dropped_tx(DropReason::kLinkDown) == 1);
  tap.batch->clear();
  CHECK_FALSE(tap.port->rx_queues()[0]->peek(*tap.batch, tap.drops));
  CHECK_FALSE(tap.port->rx_queues()[0]->arm());
  REQUIRE(tap.house.run_until([&] { return tap.port->status().counters["recreated"] == 1; }));
  CHECK(tap.port->status().up);
  CHECK(tap.house.pauses == tap.house.resumes);
  CHECK(tap.house.events.size() == 2);
  const RawSocket host("tap-t");
  REQUIRE(host.ok());
  CHECK(tap.send({{test_frame(60, 9), {}}}) == 1);
  CHECK(host.receive() == test_frame(60, 9));
}

TEST_CASE("tap: what cannot be opened says why") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  struct Row {
    PortConfig config;
    const char* words;
  };
  PortUnderTest first(make_tap, config_for("tap-t"));
  REQUIRE_MESSAGE(first.opened, first.error);
  REQUIRE(shell("ip link add veth-a type veth peer name veth-b"));
  const Row rows[] = {
      {config_for("a-name-of-16-chr"), "longer than 15 characters"},
      {config_for("a/b"), "character"},
      {config_for("tap-t"), "another process is using it"},
      {config_for("veth-a"), "is not a tap"},
      {config_for("tap-q", 300), "1 to 256"},
      {config_for("tap-q", 0), "1 to 256"},
      {[] {
         PortConfig config = config_for("tap-q");
         config.mtu = 65535;
         return config;
       }(),
       "to 65535: the interface takes 65521 at most"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.words);
    const PortUnderTest other(make_tap, row.config);
    CHECK_FALSE(other.opened);
    CHECK_MESSAGE(other.error.find(row.words) != std::string::npos, other.error);
  }
  const WithoutCapability less(CAP_NET_ADMIN);
  const PortUnderTest other(make_tap, config_for("tap-u"));
  CHECK_FALSE(other.opened);
  CHECK_MESSAGE(other.error.find("CAP_NET_ADMIN") != std::string::npos, other.error);
}
