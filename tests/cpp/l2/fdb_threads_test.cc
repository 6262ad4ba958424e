// SPDX-License-Identifier: Apache-2.0
// Several threads on one Fdb. Most useful under ThreadSanitizer; the invariants hold in every build.
#include <doctest/doctest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "l2/fdb.h"

namespace sw {
namespace {

PortPolicy port(PortId id) {
  PortPolicy policy;
  policy.id = id;
  return policy;
}

TEST_CASE("Fdb: readers, learners and control calls at once never see a foreign or torn entry") {
  Fdb fdb(3000, 60);
  constexpr uint32_t kMacs = 4000;  // more than the limit: evictions happen all the time
  // Port of a MAC is one of two that depend on it, so a reader can tell a wrong answer.
  const auto home = [](Mac mac, uint32_t which) { return static_cast<PortId>(mac % 50 * 2 + which); };
  for (Mac mac = 5000; mac < 5020; ++mac) fdb.set(1, mac, 500, FdbOwner::kStatic);
  std::atomic<bool> stop{false};
  std::atomic<uint32_t> wrong{0};
  std::vector<std::thread> threads;
  for (uint32_t learner = 0; learner < 2; ++learner) {
    threads.emplace_back([&, learner] {
      std::mt19937 random(learner);
      for (uint32_t i = 0; i < 60'000; ++i) {
        const Mac mac = 1 + random() % kMacs;
        fdb.learn(1, mac, port(home(mac, random() % 64 == 0 ? 1 : 0)));
        fdb.learn(1, 5000 + random() % 20, port(static_cast<PortId>(500 + random() % 2)));
      }
    });
  }
  threads.emplace_back([&] {
    std::mt19937 random(9);
    uint32_t bad = 0;
    while (!stop.load(std::memory_order_relaxed)) {
      const Mac mac = 1 + random() % kMacs;
      const PortId found = fdb.lookup(1, mac);
      if (found != kNoPort && found != home(mac, 0) && found != home(mac, 1)) ++bad;
      if (fdb.lookup(2, mac) != kNoPort) ++bad;
      if (fdb.lookup(1, 5000 + mac % 20) != 500) ++bad;
    }
    wrong += bad;
  });
  threads.emplace_back([&] {
    uint64_t now = 1;
    uint32_t round = 0;
    while (!stop.load(std::memory_order_relaxed)) {
      fdb.sweep(now += 1'000'000'000);
      fdb.drain_events(1000);
      if (++round % 16 == 0) fdb.flush({.port = static_cast<PortId>(round % 100)});
      if (round % 64 == 0) fdb.remove_port(static_cast<PortId>(round % 100));
      if (round % 32 == 0) fdb.set_ageing(round % 64 == 0 ? 60 : 100);
      for (const FdbEntry& entry : fdb.entries()) {
        if (entry.mac < 5000 && entry.port / 2 != entry.mac % 50) ++wrong;
      }
    }
  });
  threads[0].join();
  threads[1].join();
  stop = true;
  threads[2].join();
  threads[3].join();
  CHECK(wrong == 0);
  CHECK(fdb.count(FdbOwner::kStatic) == 20);
  // The counts are what a recount gives, and no MAC is in the table twice.
  uint32_t learned = 0;
  std::vector<uint32_t> seen(kMacs + 1);
  for (const FdbEntry& entry : fdb.entries()) {
    if (entry.owner != FdbOwner::kLearned) continue;
    ++learned;
    CHECK(++seen[entry.mac] == 1);
  }
  CHECK(fdb.count(FdbOwner::kLearned) == learned);
}

TEST_CASE("Fdb: a learner that finds the table locked gives up and later succeeds") {
  Fdb fdb(20'000, 300);
  std::atomic<bool> stop{false};
  std::thread control([&] {
    while (!stop.load(std::memory_order_relaxed)) (void)fdb.entries();
  });
  for (Mac mac = 1; mac <= 4'000; ++mac) {
    LearnResult result = LearnResult::kBusy;
    while ((result = fdb.learn(0, mac, port(1))) == LearnResult::kBusy) {
    }
    REQUIRE(result == LearnResult::kLearned);
  }
  stop = true;
  control.join();
  CHECK(fdb.count_learned_at(1) == 4'000);
}

}  // namespace
}  // namespace sw
