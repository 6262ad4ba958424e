// SPDX-License-Identifier: Apache-2.0
#include "worker/worker.h"

#include <doctest/doctest.h>
#include <sys/eventfd.h>

#include "base/event_signal.h"
#include "base/stall_guard.h"
#include "l2/fdb.h"
#include "support/eventually.h"
#include "support/memory_queues.h"
#include "worker/crew.h"

using namespace sw;
using sw::testing::ethernet;
using sw::testing::RecordingTx;
using sw::testing::ScriptedRx;

namespace {

constexpr Mac kA = 0x02'00'00'00'00'01, kB = 0x02'00'00'00'00'02;

// Two or three ports in one bridge, one queue each, as seen by `workers` workers; port 0 is polled by the first worker,
// the others by the last.
struct House {
  explicit House(uint32_t worker_count = 1, PortId port_count = 2)
      : workers(worker_count), ports(port_count), by_worker(3 * worker_count) {}

  std::unique_ptr<Plan> plan(bool with_queues = true) {
    auto made = empty_plan(workers);
    auto view = std::make_unique<BridgeView>();
    view->fdb = &fdb;
    view->ports.resize(kMaxPorts, nullptr);
    for (PortId id = 0; id < ports; ++id) {
      auto policy = std::make_unique<PortPolicy>();
      policy->id = id;
      view->ports[id] = policy.get();
      view->members.push_back(policy.get());
      for (uint32_t w = 0; w < workers; ++w) {
        PlanTx& to = made->workers[w].tx[id];
        to.policy = policy.get();
        to.counters = &counters(w, id);
        to.shared = workers > 1;
        if (with_queues && connected[id]) to.queues = {&tx[id]};
      }
      const uint32_t poller = id == 0 ? 0 : workers - 1;
      if (with_queues) {
        made->workers[poller].rx.push_back({.queue = &rx[id],
                                            .queue_index = 0,
                                            .policy = policy.get(),
                                            .bridge = view.get(),
                                            .counters = &counters(poller, id),
                                            .load = &load[id]});
      }
      made->policies.push_back(std::move(policy));
    }
    made->bridges.push_back(std::move(view));
    return made;
  }

  PortWorkerCounters& counters(uint32_t worker, PortId id) { return by_worker[worker * 3 + id]; }

  const uint32_t workers;
  const PortId ports;
  Fdb fdb{1024, 300};
  std::array<QueueCounters, 3> rx_counters, tx_counters;
  std::array<ScriptedRx, 3> rx{ScriptedRx(rx_counters[0]), ScriptedRx(rx_counters[1]), ScriptedRx(rx_counters[2])};
  std::array<RecordingTx, 3> tx{RecordingTx(tx_counters[0]), RecordingTx(tx_counters[1]), RecordingTx(tx_counters[2])};
  std::array<bool, 3> connected{true, true, true};
  std::array<QueueLoad, 3> load;
  std::vector<PortWorkerCounters> by_worker;
};

template <class Condition>
bool within_seconds(int seconds, Condition condition) {
  for (sw::testing::Patience patience(std::chrono::seconds{seconds}); !condition();) {
    if (patience.over()) return false;
    std::this_thread::yield();
  }
  return true;
}

}  // namespace

TEST_CASE("worker: a frame reaches the other port, and the answer only its sender") {
  House house;
  auto plan = house.plan();
  Worker worker(0, -1, Polling::kBusy);
  house.rx[0].feed({ethernet(kB, kA, 64, 1)});
  CHECK(worker.poll_once(plan.get()));
  house.rx[1].feed({ethernet(kA, kB, 1514, 2)});
  CHECK(worker.poll_once(plan.get()));
  CHECK_FALSE(worker.poll_once(plan.get()));
  REQUIRE(house.tx[1].frames.size() == 1);
  CHECK(house.tx[1].frames[0] == ethernet(kB, kA, 64, 1));
  REQUIRE(house.tx[0].frames.size() == 1);
  CHECK(house.tx[0].frames[0] == ethernet(kA, kB, 1514, 2));
  CHECK(worker.counters().batches.get() == 2);
  CHECK(worker.counters().batch_frames[0].get() == 2);
  CHECK(house.rx[0].notified == 1);
  CHECK(house.tx[1].notified == 1);
}

TEST_CASE("worker: what a full or missing destination loses is counted there") {
  House house;
  house.tx[1].room = 2;
  auto plan = house.plan();
  Worker worker(0, -1, Polling::kBusy);
  house.rx[0].feed({ethernet(kB, kA), ethernet(kB, kA), ethernet(kB, kA)});
  worker.poll_once(plan.get());
  const PortWorkerCounters& to = house.counters(0, 1);
  CHECK(to.offered.get() == 3);
  CHECK(to.tx_drops[static_cast<size_t>(DropReason::kRingFull)].get() == 1);
  CHECK(house.tx_counters[1].frames.get() == 2);

  house.connected[1] = false;
  auto without = house.plan();
  without->generation = 1;
  house.rx[0].feed({ethernet(kB, kA)});
  worker.poll_once(without.get());
  CHECK(to.offered.get() == 4);
  CHECK(to.tx_drops[static_cast<size_t>(DropReason::kLinkDown)].get() == 1);
  CHECK(house.counters(0, 0).forwarded.get() == 4);
}

TEST_CASE("worker: a plan is passed by busy and by sleeping workers, and nothing old is touched afterwards") {
  for (const Polling polling : {Polling::kBusy, Polling::kAdaptive}) {
    House house;
    const UniqueFd kick(::eventfd(0, EFD_NONBLOCK));
    house.rx[0].wake = house.rx[1].wake = kick.get();
    Crew crew({-1}, polling);
    REQUIRE(crew.start());
    for (int i = 0; i < 200; ++i) {
      crew.publish(house.plan(i % 2 == 0));
      if (i % 2 == 1) {  // no plan names the queues now: they may be changed
        house.tx[1].frames.clear();
        house.rx[0].feed({ethernet(kB, kA)});
      }
    }
    crew.publish(house.plan());
    CHECK(within_seconds(10, [&] { return house.tx_counters[1].frames.get() == 100; }));
    crew.stop();
  }
}

TEST_CASE("worker: an adaptive worker blocks when idle and wakes by a kick") {
  House house;
  const UniqueFd kick(::eventfd(0, EFD_NONBLOCK));
  house.rx[0].wake = house.rx[1].wake = kick.get();
  Crew crew({-1}, Polling::kAdaptive);
  REQUIRE(crew.start());
  crew.publish(house.plan());
  const WorkerCounters& counters = crew.workers()[0]->counters();
  REQUIRE(within_seconds(10, [&] { return house.rx[0].armed.load() > house.rx[0].disarmed.load(); }));
  house.rx[0].feed({ethernet(kB, kA)});
  const uint64_t one = 1;
  REQUIRE(::write(kick.get(), &one, sizeof one) == sizeof one);
  CHECK(within_seconds(10, [&] { return counters.frames.get() == 1; }));
  CHECK(counters.sleep_tsc.get() > 0);
  crew.stop();
}

TEST_CASE("worker: two workers share a transmit queue under its lock, and no frame is unaccounted") {
  House house(2, 3);
  for (RecordingTx& tx : house.tx) tx.keep = false;
  Crew crew({-1, -1}, Polling::kBusy);
  REQUIRE(crew.start());
  house.rx[0].repeat(ethernet(kMacBroadcast, kA), 8);
  house.rx[1].repeat(ethernet(kMacBroadcast, kB), 8);
  crew.publish(house.plan());
  CHECK(within_seconds(20, [&] {
    return house.tx_counters[0].frames.get() > 1000 && house.tx_counters[1].frames.get() > 1000;
  }));  // port 2 hears both
  crew.publish(empty_plan(2));
  crew.stop();
  CHECK_FALSE(house.tx[2].overlapped);
  for (PortId id = 0; id < house.ports; ++id) {
    uint64_t forwarded = 0, replicated = 0, offered = 0, lost = 0;
    for (uint32_t w = 0; w < 2; ++w) {
      const PortWorkerCounters& seen = house.counters(w, id);
      forwarded += seen.forwarded.get();
      replicated += seen.replicated.get();
      offered += seen.offered.get();
      for (const Counter& drop : seen.tx_drops) lost += drop.get();
    }
    CHECK(house.rx_counters[id].frames.get() + replicated == forwarded);
    CHECK(offered == house.tx_counters[id].frames.get() + lost);
  }
}

TEST_CASE("worker: a receive queue that changes workers never has two pollers") {
  class WatchedRx : public ScriptedRx {
   public:
    using ScriptedRx::ScriptedRx;
    bool peek(Batch& batch, PortWorkerCounters& drops) override {
      if (users.fetch_add(1) != 0) overlapped = true;
      const bool taken = ScriptedRx::peek(batch, drops);
      if (!taken) --users;
      return taken;
    }
    void release() override {
      ScriptedRx::release();
      --users;
    }
    std::atomic<int> users{0};
    std::atomic<bool> overlapped{false};
  };
  House house(2);
  house.tx[0].keep = house.tx[1].keep = false;
  QueueCounters counters;
  WatchedRx watched(counters);
  watched.repeat(ethernet(kB, kA), 8);
  Crew crew({-1, -1}, Polling::kBusy);
  REQUIRE(crew.start());
  for (uint32_t i = 0; i < 300; ++i) {
    auto plan = house.plan();
    PlanRx rx = plan->workers[0].rx[0];
    const uint32_t poller = i % 2;
    rx.queue = &watched;
    rx.counters = &house.counters(poller, 0);
    plan->workers[0].rx.clear();
    plan->workers[poller].rx.push_back(rx);
    crew.publish(std::move(plan));
  }
  crew.publish(empty_plan(2));
  crew.stop();
  CHECK_FALSE(watched.overlapped);
  CHECK(watched.users == 0);
  CHECK(counters.frames.get() == house.counters(0, 0).forwarded.get() + house.counters(1, 0).forwarded.get());
}

TEST_CASE("worker: a peer that blocks its eventfd cannot hold up a change of plan") {
  class BlockingTx : public RecordingTx {
   public:
    using RecordingTx::RecordingTx;
    void notify() override {
      entered = true;
      const uint64_t most = UINT64_MAX - 1;
      (void)!::write(fd.get(), &most, sizeof most);  // fills the counter
      (void)!::write(fd.get(), &most, sizeof most);  // hangs: nobody reads it
    }
    const UniqueFd fd{::eventfd(0, 0)};
    std::atomic<bool> entered{false};
  };
  House house;
  QueueCounters counters;
  BlockingTx blocking(counters);
  auto plan = house.plan();
  plan->workers[0].tx[1].queues = {&blocking};
  Crew crew({-1}, Polling::kBusy);
  REQUIRE(crew.start());
  house.rx[0].feed({ethernet(kB, kA)});
  crew.publish(std::move(plan));
  REQUIRE(within_seconds(10, [&] { return blocking.entered.load(); }));
  crew.publish(house.plan());  // returns: that is the test
  house.rx[0].feed({ethernet(kB, kA)});
  CHECK(within_seconds(10, [&] { return house.tx_counters[1].frames.get() == 1; }));
  crew.stop();
}

TEST_CASE("worker: a peer that blocks its eventfd holds a worker once, though nobody waits for it") {
  class HostileTx : public RecordingTx {
   public:
    using RecordingTx::RecordingTx;
    void notify() override { (void)signal_eventfd(fd.get(), peer); }
    const UniqueFd fd{::eventfd(0, 0)};
    EventPeer peer;
  };
  House house;
  QueueCounters counters;
  HostileTx hostile(counters);
  const uint64_t most = UINT64_MAX - 1;
  REQUIRE(::write(hostile.fd.get(), &most, sizeof most) == sizeof most);
  auto plan = house.plan();
  plan->workers[0].tx[1].queues = {&hostile};
  Crew crew({-1}, Polling::kBusy);
  REQUIRE(crew.start());
  crew.publish(std::move(plan));
  for (int i = 0; i < 100; ++i) house.rx[0].feed({ethernet(kB, kA)});
  CHECK(within_seconds(10, [&] { return counters.frames.get() == 100; }));
  CHECK(hostile.peer.made_us_wait);
  crew.stop();
}

TEST_CASE("worker: is watched while it signals, also the first time after it slept, and not while it sleeps") {
  class WatchedTx : public RecordingTx {
   public:
    using RecordingTx::RecordingTx;
    void notify() override {
      if (!StallGuard::watches_this_thread()) ++unwatched;
      ++notified_frames;
    }
    std::atomic<uint32_t> unwatched{0}, notified_frames{0};
  };
  class SleepyRx : public ScriptedRx {
   public:
    using ScriptedRx::ScriptedRx;
    bool arm() override {  // the last thing before it sleeps
      if (StallGuard::watches_this_thread()) ++watched;
      return ScriptedRx::arm();
    }
    std::atomic<uint32_t> watched{0};
  };
  House house;
  QueueCounters rx_counters, tx_counters;
  SleepyRx rx(rx_counters);
  WatchedTx tx(tx_counters);
  const UniqueFd kick(::eventfd(0, EFD_NONBLOCK));
  rx.wake = house.rx[1].wake = kick.get();
  auto plan = house.plan();
  plan->workers[0].rx[0].queue = &rx;
  plan->workers[0].tx[1].queues = {&tx};
  Crew crew({-1}, Polling::kAdaptive);
  REQUIRE(crew.start());
  crew.publish(std::move(plan));
  for (uint32_t i = 1; i <= 3; ++i) {
    const uint32_t slept = rx.armed;
    REQUIRE(within_seconds(10, [&] { return rx.armed > slept; }));
    rx.feed({ethernet(kB, kA)});
    const uint64_t one = 1;
    REQUIRE(::write(kick.get(), &one, sizeof one) == sizeof one);
    REQUIRE(within_seconds(10, [&] { return tx.notified_frames == i; }));
  }
  const uint32_t slept = rx.armed;
  REQUIRE(within_seconds(10, [&] { return rx.armed > slept; }));
  crew.stop();
  CHECK(tx.unwatched == 0);
  CHECK(rx.watched == 0);
}

TEST_CASE("worker: a CPU that does not exist is an error that names it") {
  Worker worker(3, 1000, Polling::kBusy);
  auto plan = empty_plan(4);
  const auto started = worker.start(plan.get());
  REQUIRE_FALSE(started);
  CHECK(started.error().message().find("CPU 1000") != std::string::npos);
}
