// SPDX-License-Identifier: Apache-2.0
// A worker that hangs: no change begins, nothing that it may use is freed, and whoever only looks is answered.
#include <doctest/doctest.h>

#include <thread>

#include "base/clock.h"
#include "rig.h"
#include "support/held_thread.h"

using namespace sw;
using namespace sw::testing;

namespace {

template <class Condition>
void wait_for(Condition condition) {
  const uint64_t deadline = monotonic_ns() + kPatienceMs * 1'000'000;
  while (!condition()) {
    REQUIRE(monotonic_ns() < deadline);
    std::this_thread::yield();
  }
}

bool stuck(const auto& result) { return !result && result.error().code == worker_stuck_code(0); }

}  // namespace

TEST_CASE("datapath: while a worker hangs changes are refused as they were, and all can be asked") {
  Rig rig;
  Datapath& datapath = rig.datapath;
  REQUIRE(datapath.add_port(rig.spec("vm1")));
  REQUIRE(datapath.add_port(rig.spec("vm2")));
  const auto a = rig.guest("vm1");
  auto b = rig.guest("vm2", true);
  PortSpec changed = rig.spec("vm1");
  changed.config.mtu = 9000;
  changed.policy.vlan.access = true;
  changed.policy.vlan.untagged = 10;
  const auto stage = [&](const char* port) { return datapath.port(port)->status.stage; };
  {
    const HeldThread held(datapath.stats().workers[0].thread_id);
    CHECK(stuck(datapath.del_port("vm1")));
    CHECK(stuck(datapath.set_port(changed)));
    CHECK(stuck(datapath.capture_start("vm1", {})));
    CHECK(stuck(datapath.check_workers()));
    CHECK(datapath.port("vm1")->status.facts.count("mtu") == 0);
    CHECK(stage("vm1") == "running");
    CHECK(datapath.stats().ports[0].rx[0].worker == 0);

    CHECK(datapath.add_port(rig.spec("vm3")));  // an undo may need it, and it takes nothing away
    b.reset();                                  // its memory is not unmapped before the worker has passed
    CHECK(datapath.set_bridge("br0", 200, 1024));
    CHECK(datapath.fdb_set("br0", 0, kA, "vm1", FdbOwner::kStatic));
    // The control loop waits for the worker now, with what a change needs.
    wait_for([&] { return stuck(datapath.del_bridge("none")); });
    CHECK(stuck(datapath.add_port(rig.spec("vm4"))));
    CHECK(stuck(datapath.del_port("vm1")));
    CHECK(datapath.ports().size() == 3);
    CHECK(datapath.stats().workers[0].thread_id != 0);
    CHECK(datapath.fdb("br0")->matched == 1);
    (void)datapath.drain_events(1000);
  }
  wait_for([&] { return stage("vm2") == "waiting_for_peer"; });
  const auto c = rig.guest("vm3");
  REQUIRE(datapath.check_workers());
  REQUIRE(datapath.fdb_del("br0", 0, kA));
  REQUIRE(a->send(ethernet(kB, kA, 60, 1), 0, {}, kPatienceMs));
  require_frame(*c, ethernet(kB, kA, 60, 1));
  REQUIRE(datapath.set_port(changed));
  REQUIRE(datapath.del_port("vm1"));
  CHECK(datapath.ports().size() == 2);
}
