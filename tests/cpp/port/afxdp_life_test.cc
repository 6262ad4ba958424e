// SPDX-License-Identifier: Apache-2.0
// The life of an afxdp port: its interface comes and goes, it shares memory with others, it cannot be opened, it ends.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>

#include "port/afxdp_bed.h"
#include "port/afxdp_program.h"

using namespace sw;
using namespace sw::test;

TEST_CASE("afxdp: the port follows its interface down, up, away and back") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth(2));
  PortUnderTest uplink(make_afxdp, afxdp_config("veth-a", 2));
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
  CHECK(mappings("afxdp-frames") == 0);

  REQUIRE(make_queued_veth(1));
  CHECK(uplink.house.run_until([&] { return uplink.port->status().detail.find("ethtool -L") != std::string::npos; }));
  REQUIRE(shell("ip link del veth-a"));
  REQUIRE(make_queued_veth(2));
  CHECK(uplink.house.run_until([&] { return stage() == "running"; }));
  CHECK(uplink.house.pauses == uplink.house.resumes);
  REQUIRE(uplink.port->rx_queues().size() == 2);
  const RawSocket wire("veth-b");
  CHECK(uplink.send({{test_frame(60, 9), {}}}) == 1);
  CHECK(wire.receive() == test_frame(60, 9));
  REQUIRE(wire.send(test_frame(70, 8)));
}

TEST_CASE("afxdp: an interface that is down at first is used when it comes up") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  REQUIRE(shell("ip link set veth-a down"));
  PortUnderTest uplink(make_afxdp, afxdp_config("veth-a"));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  CHECK(uplink.port->rx_queues().empty());
  CHECK(uplink.port->status().stage == "device_down");
  REQUIRE(shell("ip link set veth-a up"));
  CHECK(uplink.house.run_until([&] { return uplink.port->status().up; }));
  CHECK(uplink.port->rx_queues().size() == 1);
}

TEST_CASE("afxdp: ports share their memory, and it lives as long as one of them") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth(2));
  REQUIRE(make_queued_veth(1, "veth-c", "veth-d"));
  const RawSocket wire_b("veth-b");
  const RawSocket wire_d("veth-d");
  auto first = std::make_unique<PortUnderTest>(make_afxdp, afxdp_config("veth-a", 2));
  REQUIRE_MESSAGE(first->opened, first->error);
  PortUnderTest second(make_afxdp, afxdp_config("veth-c"));
  REQUIRE_MESSAGE(second.opened, second.error);
  CHECK(mappings("afxdp-frames") == 1);
  const auto exchange = [](PortUnderTest& port, const RawSocket& wire, uint8_t fill) {
    for (uint8_t i = 0; i < 50; ++i) {
      CHECK(port.send({{test_frame(1000, fill), {}}}) == 1);
      CHECK(wire.receive() == test_frame(1000, fill));
    }
  };
  exchange(*first, wire_b, 1);
  REQUIRE(wire_d.send(test_frame(900, 2)));
  CHECK(second.receive(1).at(0).first == test_frame(900, 2));
  first.reset();  // the socket that registered the memory goes
  exchange(second, wire_d, 3);
  REQUIRE(wire_d.send(test_frame(800, 4)));
  CHECK(second.receive(1).at(0).first == test_frame(800, 4));
  PortUnderTest third(make_afxdp, afxdp_config("veth-a", 2));  // joins by the second
  REQUIRE_MESSAGE(third.opened, third.error);
  CHECK(mappings("afxdp-frames") == 1);
  exchange(third, wire_b, 5);
  exchange(second, wire_d, 6);
}

TEST_CASE("afxdp: more queues than one memory has slices take another one") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth(6));
  PortUnderTest uplink(make_afxdp, afxdp_config("veth-a", 6));
  REQUIRE_MESSAGE(uplink.opened, uplink.error);
  CHECK(mappings("afxdp-frames") == 2);
  const RawSocket wire("veth-b");
  for (size_t q = 0; q < 6; ++q) {
    CHECK(uplink.send({{test_frame(100 + q, 1), {}}}, 1000, q) == 1);
    CHECK(wire.receive() == test_frame(100 + q, 1));
  }
}

TEST_CASE("afxdp: opening and closing leaves nothing behind") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth(2));
  const auto once = [] {
    PortUnderTest uplink(make_afxdp, afxdp_config("veth-a", 2));
    REQUIRE_MESSAGE(uplink.opened, uplink.error);
  };
  once();
  const size_t before = descriptors();
  for (int round = 0; round < 20; ++round) once();
  CHECK(descriptors() == before);
  CHECK(mappings("afxdp-frames") == 0);
  CHECK(mappings("[xsk]") == 0);
  CHECK_FALSE(has_program("veth-a"));
}

TEST_CASE("afxdp: a killed switch leaves nothing on the interface") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  int ready[2];
  REQUIRE(::pipe2(ready, O_CLOEXEC) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    PortUnderTest uplink(make_afxdp, afxdp_config("veth-a"));
    const char result = uplink.opened ? 1 : 0;
    (void)!::write(ready[1], &result, 1);
    for (;;) ::pause();
  }
  char opened = 0;
  REQUIRE(::read(ready[0], &opened, 1) == 1);
  CHECK(opened == 1);
  CHECK(has_program("veth-a"));
  {
    const PortUnderTest other(make_afxdp, afxdp_config("veth-a"));
    CHECK_FALSE(other.opened);
  }
  REQUIRE(::kill(child, SIGKILL) == 0);
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  ::close(ready[0]);
  ::close(ready[1]);
  CHECK_FALSE(has_program("veth-a"));
  const PortUnderTest uplink(make_afxdp, afxdp_config("veth-a"));
  CHECK_MESSAGE(uplink.opened, uplink.error);
}

TEST_CASE("afxdp: what cannot be opened says why") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  PortConfig huge = afxdp_config("veth-a");
  huge.hugepages = HugePages::kRequired;
  huge.huge_page_bytes = kHugePage1G;
  struct Row {
    PortConfig config;
    const char* words;
  };
  const Row rows[] = {
      {afxdp_config(""), "no device"},
      {afxdp_config("a-name-of-16-chr"), "longer than 15 characters"},
      {afxdp_config("eth99"), "there is none of this name"},
      {afxdp_config("lo"), "not an Ethernet interface"},
      {afxdp_config("veth-a", 0), "one at least"},
      {afxdp_config("veth-a", 2), "it has 1 (see: ethtool -l veth-a)"},
      {huge, "get huge pages for afxdp-frames"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.words);
    const PortUnderTest other(make_afxdp, row.config);
    CHECK_FALSE(other.opened);
    CHECK_MESSAGE(other.error.find(row.words) != std::string::npos, other.error);
  }
  CHECK_FALSE(has_program("veth-a"));
}

TEST_CASE("afxdp: an interface that somebody else uses says so") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  const int index = static_cast<int>(::if_nametoindex("veth-a"));
  {
    const PortUnderTest owner(make_afxdp, afxdp_config("veth-a"));
    REQUIRE_MESSAGE(owner.opened, owner.error);
    const PortUnderTest other(make_afxdp, afxdp_config("veth-a"));
    CHECK_FALSE(other.opened);
    CHECK_MESSAGE(other.error.find("another AF_XDP socket has this queue") != std::string::npos, other.error);
  }
  auto program = XdpProgram::attach(index, "veth-a", 1);
  REQUIRE(program);
  const PortUnderTest other(make_afxdp, afxdp_config("veth-a"));
  CHECK_FALSE(other.opened);
  CHECK_MESSAGE(other.error.find("another XDP program is on it already") != std::string::npos, other.error);
}

TEST_CASE("afxdp: a lack of rights names the right") {
  const ScopedNetns netns;
  if (!netns.ok()) return;
  REQUIRE(make_queued_veth());
  {
    const WithoutCapability less(CAP_NET_RAW);
    const PortUnderTest other(make_afxdp, afxdp_config("veth-a"));
    CHECK_FALSE(other.opened);
    CHECK_MESSAGE(other.error.find("CAP_NET_RAW") != std::string::npos, other.error);
  }
  const WithoutCapability no_admin(CAP_SYS_ADMIN);
  const WithoutCapability no_bpf(39);  // CAP_BPF
  const PortUnderTest other(make_afxdp, afxdp_config("veth-a"));
  CHECK_FALSE(other.opened);
  CHECK_MESSAGE(other.error.find("CAP_BPF and CAP_NET_ADMIN") != std::string::npos, other.error);
}
