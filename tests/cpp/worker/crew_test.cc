// SPDX-License-Identifier: Apache-2.0
// A worker that hangs: what its colleagues go on with, and what is kept for it.
#include "worker/crew.h"

#include <doctest/doctest.h>

#include "base/clock.h"
#include "support/held_thread.h"

using namespace sw;
using sw::testing::HeldThread;

namespace {

constexpr uint32_t kLooks = 30;

// A plan without queues that tells whether it is kept.
std::unique_ptr<Plan> plan(std::weak_ptr<const void>& alive, size_t workers) {
  auto made = empty_plan(workers);
  made->owners.push_back(std::make_shared<int>(0));
  alive = made->owners.back();
  return made;
}

struct Bench {
  explicit Bench(size_t workers = 2)
      : crew(std::vector<int>(workers, -1), Polling::kBusy, [this](const auto& wait) { long_wait(wait); }, kLooks) {
    REQUIRE(crew.start());
    crew.publish(plan(first, workers));
  }
  void long_wait(const std::function<void()>& wait) {
    ++long_waits;
    if (during) during();
    wait();
  }
  [[nodiscard]] int thread(size_t worker) const { return crew.workers()[worker]->thread_id(); }

  int long_waits = 0;
  std::function<void()> during;
  std::weak_ptr<const void> first;
  Crew crew;
};

}  // namespace

TEST_CASE("Crew: a change that can be refused is, names the worker, and leaves the plan of before in force") {
  Bench bench;
  std::weak_ptr<const void> second;
  {
    const HeldThread held(bench.thread(1));
    auto published = bench.crew.try_publish(plan(second, 2));
    REQUIRE_FALSE(published);
    CHECK(published.error().code == worker_stuck_code(1));
    CHECK(published.error().what.starts_with("worker 1 does not go round its queues, so this was not done"));
    CHECK(bench.crew.late() == 1);
    CHECK(bench.crew.plan().owners[0] == bench.first.lock());
    CHECK_FALSE(second.expired());  // the worker may have looked at it already
    CHECK(bench.long_waits == 1);
    REQUIRE_FALSE(bench.crew.try_publish(plan(second, 2)));
    REQUIRE_FALSE(bench.crew.check());
    CHECK(bench.long_waits == 1);  // nobody waits a second time
  }
  while (bench.crew.late()) std::this_thread::yield();
  REQUIRE(bench.crew.check());
  CHECK(second.expired());
  CHECK_FALSE(bench.first.expired());
  REQUIRE(bench.crew.try_publish(plan(second, 2)));
  CHECK(bench.first.expired());
}

TEST_CASE("Crew: a plan that only adds holds without the worker that hangs, and the one of before is kept for it") {
  Bench bench;
  std::weak_ptr<const void> second;
  {
    const HeldThread held(bench.thread(0));
    bench.crew.extend(plan(second, 2));
    CHECK(bench.crew.plan().owners[0] == second.lock());
    CHECK_FALSE(bench.first.expired());
    CHECK(bench.crew.late() == 0);
  }
  while (bench.crew.late()) std::this_thread::yield();
  REQUIRE(bench.crew.check());
  CHECK(bench.first.expired());
}

TEST_CASE("Crew: a change after which memory goes waits as long as it takes, and says so to those who ask meanwhile") {
  Bench bench(1);
  std::weak_ptr<const void> second;
  HeldThread held(bench.thread(0));
  std::atomic<bool> waited{false};
  std::thread helper;
  bench.during = [&] {
    helper = std::thread([&] {
      while (!bench.crew.late()) std::this_thread::yield();
      CHECK_FALSE(bench.first.expired());
      waited = true;
      HeldThread::release();
    });
  };
  bench.crew.publish(plan(second, 1));
  CHECK(waited);
  helper.join();
  CHECK(bench.first.expired());
  CHECK_FALSE(bench.crew.late());
}
