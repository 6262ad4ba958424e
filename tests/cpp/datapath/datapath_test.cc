// SPDX-License-Identifier: Apache-2.0
// The whole core with software guests: bridges and ports by name, under traffic.
#include "datapath.h"

#include <doctest/doctest.h>

#include <numeric>

#include "base/clock.h"
#include "rig.h"
#include "vhost_user/traffic.h"

using namespace sw;
using namespace sw::testing;

TEST_CASE("datapath: guests talk through two ports, and it is known who is where") {
  Rig rig;
  REQUIRE(rig.datapath.add_port(rig.spec("vm1")));
  REQUIRE(rig.datapath.add_port(rig.spec("vm2")));
  const auto a = rig.guest("vm1");
  const auto b = rig.guest("vm2", true);
  REQUIRE(a->send(ethernet(kB, kA, 60, 1), 0, {}, kPatienceMs));
  require_frame(*b, ethernet(kB, kA, 60, 1));
  REQUIRE(b->send(ethernet(kA, kB, 1514, 2), 0, {}, kPatienceMs));
  require_frame(*a, ethernet(kA, kB, 1514, 2));
  const auto entries = rig.datapath.fdb("br0");
  REQUIRE(entries);
  CHECK(entries->matched == 2);
  for (const NamedFdbEntry& entry : entries->entries) CHECK(entry.port == (entry.mac == kA ? "vm1" : "vm2"));
  size_t learned = 0;
  for (const Event& event : rig.datapath.drain_events(1000)) learned += event.kind == "fdb_learned" ? 1 : 0;
  CHECK(learned == 2);
  check_conservation(rig.datapath.stats());
}

TEST_CASE("datapath: what is wrong is said, and nothing is half-applied") {
  Rig rig;
  REQUIRE(rig.datapath.add_port(rig.spec("vm1")));
  const auto refused = [](const auto& result, const char* reason) {
    REQUIRE_FALSE(result);
    CAPTURE(result.error().message());
    CHECK(result.error().message().find(reason) != std::string::npos);
  };
  refused(rig.datapath.add_bridge("br0", 300, 1024), "exists");
  refused(rig.datapath.del_bridge("br0"), "vm1");
  refused(rig.datapath.add_port(rig.spec("vm1")), "exists");
  PortSpec spec = rig.spec("vm2");
  spec.bridge = "br9";
  refused(rig.datapath.add_port(spec), "br9");
  spec = rig.spec("vm2");
  spec.config.type = "carrier-pigeon";
  refused(rig.datapath.add_port(spec), "vhostuser");
  spec = rig.spec("vm2");
  spec.config.socket = rig.socket("no/such/directory/s");
  refused(rig.datapath.add_port(spec), "directory");
  spec = rig.spec("vm2");
  spec.rx_affinity = {{0, 77}};
  refused(rig.datapath.add_port(spec), "CPU 77");
  spec = rig.spec("vm1");
  spec.config.queues = 9;
  refused(rig.datapath.set_port(spec), "policy");
  refused(rig.datapath.del_port("vm9"), "no such port");
  refused(rig.datapath.set_bridge("br0", 300, 1U << 30), "mac_limit");
  refused(rig.datapath.fdb_set("br0", 0, kA, "vm9", FdbOwner::kStatic), "vm9");
  refused(rig.datapath.fdb_set("br0", 0, kMacBroadcast, "vm1", FdbOwner::kStatic), "group");
  CHECK(rig.datapath.ports().size() == 1);
}

TEST_CASE("datapath: ports come and go under traffic, and no frame of the others is unaccounted") {
  for (const size_t workers : {size_t{1}, size_t{2}}) {
    Rig rig(workers);
    REQUIRE(rig.datapath.add_port(rig.spec("vm1")));
    REQUIRE(rig.datapath.add_port(rig.spec("vm2")));
    const auto a = rig.guest("vm1");
    const auto b = rig.guest("vm2");
    std::atomic<bool> stop{false};
    uint64_t sent = 0;
    std::thread sender([&] {
      while (!stop) {
        if (a->send(ethernet(kB, kA, 100), 0, {}, kPatienceMs)) ++sent;
      }
    });
    for (int i = 0; i < 20; ++i) {
      REQUIRE(rig.datapath.add_port(rig.spec("extra")));
      if (i % 4 == 0) rig.guest("extra");
      PortSpec policy = rig.spec("extra");
      policy.policy.isolated = true;
      REQUIRE(rig.datapath.set_port(policy));
      REQUIRE(rig.datapath.del_port("extra"));
    }
    stop = true;
    sender.join();
    // Every frame sent arrives, or is counted as lost to a full ring; nothing else happens to any.
    uint64_t received = 0;
    uint64_t taken = 0;
    uint64_t full = 0;
    uint64_t unread = 0;  // what the guest's own list had no room for, as nobody reads it before
    Patience patience(kPatience);
    while ((taken != sent || received + full + unread != sent) && !patience.over()) {
      while (b->receive(10)) ++received;
      unread = b->status().dropped;
      for (const PortStats& port : rig.datapath.stats().ports) {
        if (port.name == "vm1") taken = sum_frames(port.rx);
        if (port.name == "vm2") full = port.tx_drops[static_cast<size_t>(DropReason::kRingFull)];
      }
    }
    CHECK(taken == sent);
    CHECK(received + full + unread == sent);
  }
}

TEST_CASE("datapath: busy queues that share a worker are spread, and no frame is lost or overtaken by it") {
  constexpr int kFirstWorker = -1;  // workers without a CPU are all named so; the first one of that name is meant
  Rig rig(2);
  const std::array<std::string, 4> names{"vm1", "vm2", "vm3", "vm4"};
  for (const std::string& name : names) {
    PortSpec spec = rig.spec(name);
    spec.rx_affinity = {{0, kFirstWorker}};
    REQUIRE(rig.datapath.add_port(spec));
  }
  // vm1 and vm2 flood vm3 and vm4.
  std::vector<TrafficOptions> load;
  for (size_t i = 0; i < names.size(); ++i) {
    TrafficOptions guest;
    guest.guest.socket = rig.socket(names[i]);
    guest.mac = kA + i;
    guest.peer = kA + (i + 2) % names.size();
    guest.send = i < 2;
    load.push_back(guest);
    // Nobody floods: a receiver hears one sender, so that its order can be judged.
    REQUIRE(rig.datapath.fdb_set("br0", 0, kA + i, names[i], FdbOwner::kStatic));
  }
  TrafficRunner runner(load, -1);
  REQUIRE(runner.start());
  REQUIRE(runner.wait_ready(kPatienceMs));
  const auto poller = [&rig](const std::string& name) {
    const std::vector<PortStats> ports = rig.datapath.stats().ports;
    return std::find_if(ports.begin(), ports.end(), [&](const PortStats& port) { return port.name == name; })
        ->rx[0]
        .worker;
  };
  for (const std::string& name : names) {
    CHECK(poller(name) == 0);
    // The pin goes, the queue stays, until they are spread: that may be at once.
    REQUIRE(rig.datapath.set_port(rig.spec(name)));
  }
  std::string detail;
  Patience patience(kPatience);
  while (detail.empty() && !patience.over()) {
    for (const Event& event : rig.datapath.drain_events(1000)) {
      if (event.kind == "queues_rebalanced") detail = event.detail;
    }
  }
  CAPTURE(detail);
  CHECK(detail.find("from worker 0 to 1") != std::string::npos);
  CHECK(poller("vm1") != poller("vm2"));
  // They go on where they are now.
  const auto received = [&runner] {
    const std::vector<TrafficStats> stats = runner.stats();
    return std::array<uint64_t, 2>{stats[2].rx_frames, stats[3].rx_frames};
  };
  const auto before = received();
  while ((received()[0] < before[0] + 1000 || received()[1] < before[1] + 1000) && !patience.over()) {
  }
  CHECK(received()[0] >= before[0] + 1000);
  CHECK(received()[1] >= before[1] + 1000);
  runner.stop();
  for (const TrafficStats& guest : runner.stats()) CHECK(guest.reordered == 0);
  const Stats stats = rig.datapath.stats();
  check_conservation(stats);
  for (const PortStats& port : stats.ports) {
    CAPTURE(port.name);
    CHECK(std::accumulate(port.rx_drops.begin(), port.rx_drops.end(), uint64_t{0}) == 0);
  }
}

TEST_CASE("datapath: two workers fill one guest's ring, and no frame is overtaken or unaccounted") {
  for (const bool packed : {false, true}) {
    for (const bool in_order : {false, true}) {
      CAPTURE(packed);
      CAPTURE(in_order);
      Rig rig(2, /*balance_ms=*/60'000);  // two queues on each, whoever connects first
      const std::array<std::string, 4> names{"vm1", "vm2", "vm3", "sink"};
      std::vector<TrafficOptions> load;
      for (size_t i = 0; i < names.size(); ++i) {
        REQUIRE(rig.datapath.add_port(rig.spec(names[i])));
        REQUIRE(rig.datapath.fdb_set("br0", 0, kA + i, names[i], FdbOwner::kStatic));
        TrafficOptions guest;
        guest.guest.socket = rig.socket(names[i]);
        guest.guest.packed = packed;
        guest.guest.in_order = in_order;
        guest.mac = kA + i;
        guest.peer = kA + 3;
        guest.send = i < 3;
        load.push_back(guest);
      }
      TrafficRunner runner(load, -1);
      REQUIRE(runner.start());
      REQUIRE(runner.wait_ready(kPatienceMs));
      const auto port = [&rig](const std::string& name) {
        const std::vector<PortStats> ports = rig.datapath.stats().ports;
        return *std::find_if(ports.begin(), ports.end(), [&](const PortStats& one) { return one.name == name; });
      };
      Patience patience(kPatience);
      while ((port("vm1").forwarded < 5000 || port("vm2").forwarded < 5000 || port("vm3").forwarded < 5000 ||
              runner.stats()[3].rx_frames < 5000) &&
             !patience.over()) {
      }
      CHECK(port("vm1").forwarded >= 5000);
      CHECK(port("vm2").forwarded >= 5000);
      CHECK(port("vm3").forwarded >= 5000);
      runner.set_sending(false);
      const auto arrived = [&] {
        const PortStats sink = port("sink");
        // Guests may be ready a moment before the workers know of the sink's ring.
        const uint64_t lost = sink.tx_drops[static_cast<size_t>(DropReason::kRingFull)] +
                              sink.tx_drops[static_cast<size_t>(DropReason::kLinkDown)];
        const std::vector<TrafficStats> guests = runner.stats();
        return guests[3].rx_frames + lost == guests[0].tx_frames + guests[1].tx_frames + guests[2].tx_frames;
      };
      while (!arrived() && !patience.over()) {
      }
      CHECK(arrived());
      CHECK(runner.stats()[3].reordered == 0);
      CHECK(runner.stats()[3].foreign == 0);
      runner.stop();
      for (const WorkerStats& worker : rig.datapath.stats().workers) CHECK(worker.frames > 0);
      check_conservation(rig.datapath.stats());
    }
  }
}

TEST_CASE("datapath: static entries name a port or drop, and go with their port") {
  Rig rig;
  REQUIRE(rig.datapath.add_port(rig.spec("vm1")));
  REQUIRE(rig.datapath.add_port(rig.spec("vm2")));
  REQUIRE(rig.datapath.fdb_set("br0", 0, kB, "vm2", FdbOwner::kStatic));
  REQUIRE(rig.datapath.fdb_set("br0", 0, 0x02'00'00'00'00'66, "", FdbOwner::kStatic));
  const auto a = rig.guest("vm1");
  REQUIRE(a->send(ethernet(0x02'00'00'00'00'66, kA), 0, {}, kPatienceMs));
  Patience patience(kPatience);
  const auto dropped = [&] {
    return rig.datapath.stats().ports.at(0).rx_drops[static_cast<size_t>(DropReason::kBlackhole)];
  };
  while (dropped() == 0 && !patience.over()) std::this_thread::yield();
  CHECK(dropped() == 1);
  REQUIRE(rig.datapath.del_port("vm2"));
  const auto entries = rig.datapath.fdb("br0");
  REQUIRE(entries);
  CHECK(entries->matched == 2);  // kA learned, the blackhole
  const auto flushed = rig.datapath.fdb_flush("br0", nullptr, -1, -1);
  REQUIRE(flushed);
  CHECK(*flushed == 1);
}

TEST_CASE("datapath: a listing holds what was asked for, first by VLAN and address") {
  Rig rig;
  REQUIRE(rig.datapath.add_port(rig.spec("vm1")));
  REQUIRE(rig.datapath.add_port(rig.spec("vm2")));
  REQUIRE(rig.datapath.fdb_set("br0", 10, kA, "vm1", FdbOwner::kStatic));
  REQUIRE(rig.datapath.fdb_set("br0", 5, kB, "vm1", FdbOwner::kLearned));
  REQUIRE(rig.datapath.fdb_set("br0", 5, kA, "vm2", FdbOwner::kLearned));
  REQUIRE(rig.datapath.fdb_set("br0", 5, kB + 1, "", FdbOwner::kStatic));
  struct Row {
    const char* what;
    FdbQuery query;
    size_t matched;
    std::vector<std::pair<uint16_t, Mac>> listed;
  };
  const int learned = static_cast<int>(FdbOwner::kLearned);
  const Row rows[] = {
      {"all", {}, 4, {{5, kA}, {5, kB}, {5, kB + 1}, {10, kA}}},
      {"the first two", {.most = 2}, 4, {{5, kA}, {5, kB}}},
      {"none of them", {.most = 0}, 4, {}},
      {"a port", {.port = "vm1"}, 2, {{5, kB}, {10, kA}}},
      {"a VLAN", {.vlan = 10}, 1, {{10, kA}}},
      {"an address", {.mac = kA}, 2, {{5, kA}, {10, kA}}},
      {"an owner", {.owner = learned}, 2, {{5, kA}, {5, kB}}},
      {"all filters", {.port = "vm2", .vlan = 5, .mac = kA, .owner = learned}, 1, {{5, kA}}},
      {"what is not there", {.port = "vm2", .vlan = 10}, 0, {}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    const auto page = rig.datapath.fdb("br0", row.query);
    REQUIRE(page);
    CHECK(page->matched == row.matched);
    std::vector<std::pair<uint16_t, Mac>> listed;
    for (const NamedFdbEntry& entry : page->entries) listed.emplace_back(entry.vlan, entry.mac);
    CHECK(listed == row.listed);
  }
  CHECK_FALSE(rig.datapath.fdb("br9"));
  CHECK_FALSE(rig.datapath.fdb("br0", {.port = "vm9"}));
}

TEST_CASE("datapath: learned entries are listed in groups, and put back where nothing is") {
  Rig rig;
  REQUIRE(rig.datapath.add_bridge("br1", 300, 8192));
  for (const char* name : {"vm1", "vm2"}) {
    PortSpec spec = rig.spec(name);
    spec.bridge = "br1";
    REQUIRE(rig.datapath.add_port(spec));
  }
  constexpr Mac kMany = 3000;  // more than are put back under one hold of the lock
  for (Mac i = 0; i < kMany; ++i) REQUIRE(rig.datapath.fdb_set("br1", 7, kA + i, "vm1", FdbOwner::kLearned));
  REQUIRE(rig.datapath.fdb_set("br1", 8, kB, "vm1", FdbOwner::kLearned));
  REQUIRE(rig.datapath.fdb_set("br1", 8, kA, "vm2", FdbOwner::kLearned));
  REQUIRE(rig.datapath.fdb_set("br1", 8, kB + 1, "vm2", FdbOwner::kStatic));
  const auto groups = rig.datapath.fdb_learned("br1");
  REQUIRE(groups);
  REQUIRE(groups->size() == 3);
  CHECK(groups->at(0).port == "vm1");
  CHECK(groups->at(0).vlan == 7);
  CHECK(groups->at(0).macs.size() == kMany);
  CHECK(groups->at(1).macs == std::vector<Mac>{kB});
  CHECK(groups->at(2).macs == std::vector<Mac>{kA});
  CHECK(groups->at(2).port == "vm2");

  REQUIRE(rig.datapath.fdb_flush("br1", nullptr, -1, -1));
  REQUIRE(rig.datapath.fdb_set("br1", 7, kA + 1, "vm2", FdbOwner::kStatic));  // pinned since: stays
  CHECK(*rig.datapath.fdb_restore("br1", groups->at(0)) == kMany - 1);
  CHECK(*rig.datapath.fdb_restore("br1", {8, "vm2", 0, {kMacBroadcast, 0, kA}}) == 1);
  CHECK(rig.datapath.fdb("br1", {.port = "vm2", .vlan = 7})->matched == 1);
  CHECK(rig.datapath.fdb("br1", {.port = "vm1"})->matched == kMany - 1);
  CHECK_FALSE(rig.datapath.fdb_restore("br1", {8, "vm9", 0, {kA}}));
  CHECK_FALSE(rig.datapath.fdb_restore("br9", groups->at(0)));
}

TEST_CASE("datapath: explain names ports as people do") {
  Rig rig;
  REQUIRE(rig.datapath.add_port(rig.spec("vm1")));
  REQUIRE(rig.datapath.add_port(rig.spec("vm2")));
  REQUIRE(rig.datapath.fdb_set("br0", 0, kB, "vm2", FdbOwner::kStatic));
  const auto steps = rig.datapath.explain("vm1", ethernet(kB, kA));
  REQUIRE(steps);
  REQUIRE_FALSE(steps->empty());
  CHECK(steps->back().find("vm2") != std::string::npos);
}
