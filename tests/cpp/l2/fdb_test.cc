// SPDX-License-Identifier: Apache-2.0
// Why so long: one test for each rule of the table, and the random comparison with a map at the end.
#include "l2/fdb.h"

#include <doctest/doctest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <map>
#include <random>
#include <set>

#include "base/clock.h"
#include "base/fd.h"

namespace sw {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;

PortPolicy port(PortId id, uint32_t mac_limit = 0) {
  PortPolicy policy;
  policy.id = id;
  policy.mac_limit = mac_limit;
  return policy;
}

std::vector<FdbEventKind> kinds(Fdb& fdb) {
  std::vector<FdbEventKind> result;
  for (const FdbEvent& event : fdb.drain_events(100000)) result.push_back(event.kind);
  return result;
}

TEST_CASE("Fdb: a learned address is found at its port, in its VLAN") {
  Fdb fdb(100, 300);
  CHECK(fdb.learn(5, 0x525400000001, port(3)) == LearnResult::kLearned);
  CHECK(fdb.learn(5, 0x525400000001, port(3)) == LearnResult::kKnown);
  CHECK(fdb.lookup(5, 0x525400000001) == 3);
  CHECK(fdb.lookup(6, 0x525400000001) == kNoPort);
  CHECK(fdb.count(FdbOwner::kLearned) == 1);
  CHECK(fdb.count_learned_at(3) == 1);
  const std::vector<FdbEvent> events = fdb.drain_events(10);
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == FdbEventKind::kLearned);
  CHECK(events[0].vlan == 5);
  CHECK(events[0].mac == 0x525400000001);
  CHECK(events[0].port == 3);
  CHECK(events[0].time_ns <= monotonic_ns());
}

TEST_CASE("Fdb: an address that shows up elsewhere moves at once and says from where") {
  Fdb fdb(100, 300);
  fdb.learn(0, 7, port(1));
  fdb.drain_events(10);
  CHECK(fdb.learn(0, 7, port(2)) == LearnResult::kMoved);
  CHECK(fdb.lookup(0, 7) == 2);
  CHECK(fdb.count_learned_at(1) == 0);
  CHECK(fdb.count_learned_at(2) == 1);
  const std::vector<FdbEvent> events = fdb.drain_events(10);
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == FdbEventKind::kMoved);
  CHECK(events[0].port == 2);
  CHECK(events[0].old_port == 1);
  CHECK(fdb.stats().moved == 1);
}

TEST_CASE("Fdb: static, external and held entries do not move by learning") {
  for (const FdbOwner owner : {FdbOwner::kStatic, FdbOwner::kExternal, FdbOwner::kHeld}) {
    Fdb fdb(100, 300);
    CHECK(fdb.set(0, 7, 1, owner) == Fdb::SetResult::kAdded);
    CHECK(fdb.learn(0, 7, port(2)) == LearnResult::kRefused);
    CHECK(fdb.learn(0, 7, port(1)) == LearnResult::kKnown);
    CHECK(fdb.lookup(0, 7) == 1);
    CHECK(fdb.count(owner) == 1);
    CHECK(fdb.count(FdbOwner::kLearned) == 0);
    CHECK(fdb.stats().refused_owner == 1);
    const std::vector<FdbEvent> events = fdb.drain_events(10);
    REQUIRE(events.size() == 1);
    CHECK(events[0].kind == FdbEventKind::kRefusedOwner);
    CHECK(events[0].port == 2);
    CHECK(events[0].old_port == 1);
  }
}

TEST_CASE("Fdb: a held entry that is released moves again") {
  Fdb fdb(100, 300);
  fdb.learn(0, 7, port(1));
  CHECK(fdb.set(0, 7, 1, FdbOwner::kHeld) == Fdb::SetResult::kReplaced);
  CHECK(fdb.count_learned_at(1) == 0);
  CHECK(fdb.learn(0, 7, port(2)) == LearnResult::kRefused);
  CHECK(fdb.set(0, 7, 1, FdbOwner::kLearned) == Fdb::SetResult::kReplaced);
  CHECK(fdb.learn(0, 7, port(2)) == LearnResult::kMoved);
}

TEST_CASE("Fdb: a port at its limit learns nothing new, neither fresh nor by a move") {
  Fdb fdb(100, 300);
  for (Mac mac = 1; mac <= 3; ++mac) CHECK(fdb.learn(0, mac, port(1, 3)) == LearnResult::kLearned);
  CHECK(fdb.learn(0, 4, port(1, 3)) == LearnResult::kRefused);
  CHECK(fdb.learn(0, 3, port(1, 3)) == LearnResult::kKnown);
  CHECK(fdb.learn(0, 9, port(2)) == LearnResult::kLearned);
  CHECK(fdb.learn(0, 9, port(1, 3)) == LearnResult::kRefused);
  CHECK(fdb.lookup(0, 9) == 2);
  CHECK(fdb.lookup(0, 4) == kNoPort);
  CHECK(fdb.stats().refused_port_limit == 2);
  fdb.set(0, 100, 1, FdbOwner::kStatic);  // static entries do not use up what the guest may learn
  CHECK(fdb.count_learned_at(1) == 3);
  CHECK(fdb.remove(0, 1));
  CHECK(fdb.learn(0, 4, port(1, 3)) == LearnResult::kLearned);
}

TEST_CASE("Fdb: refusals are counted always and told at most ten times a second") {
  Fdb fdb(100, 300);
  fdb.learn(0, 1, port(1, 1));
  fdb.drain_events(10);
  const uint64_t begin = monotonic_ns();
  for (Mac mac = 2; mac < 2002; ++mac) fdb.learn(0, mac, port(1, 1));
  const uint64_t most = (monotonic_ns() - begin) / 100'000'000 + 1;
  const size_t told = fdb.drain_events(10000).size();
  CHECK(told >= 1);
  CHECK(told <= most);
  CHECK(fdb.stats().refused_port_limit == 2000);
  CHECK(fdb.stats().events_lost == 0);
}

TEST_CASE("Fdb: a full bridge evicts from the port that holds most") {
  Fdb fdb(100, 300);
  for (Mac mac = 1; mac <= 90; ++mac) fdb.learn(0, mac, port(1));
  for (Mac mac = 91; mac <= 100; ++mac) fdb.learn(0, mac, port(2));
  fdb.drain_events(1000);
  CHECK(fdb.learn(0, 200, port(3)) == LearnResult::kLearned);
  CHECK(fdb.count_learned_at(1) == 89);
  CHECK(fdb.count_learned_at(2) == 10);
  CHECK(fdb.count_learned_at(3) == 1);
  CHECK(fdb.count(FdbOwner::kLearned) == 100);
  CHECK(kinds(fdb) == std::vector{FdbEventKind::kEvicted, FdbEventKind::kLearned});
}

TEST_CASE("Fdb: a flooding port pays for its own flood") {
  Fdb fdb(1000, 300);
  for (Mac mac = 1; mac <= 20; ++mac) fdb.learn(0, mac, port(1));
  for (Mac mac = 1'000'000; mac < 1'020'000; ++mac) REQUIRE(fdb.learn(0, mac, port(2)) == LearnResult::kLearned);
  CHECK(fdb.count_learned_at(1) == 20);
  CHECK(fdb.count_learned_at(2) == 980);
  for (Mac mac = 1; mac <= 20; ++mac) CHECK(fdb.lookup(0, mac) == 1);
  CHECK(fdb.stats().evicted == 20'000 - 980);
}

TEST_CASE("Fdb: with equal shares the port that learns evicts its own") {
  Fdb fdb(20, 300);
  for (Mac mac = 1; mac <= 20; ++mac) fdb.learn(0, mac, port(static_cast<PortId>(mac % 2)));
  fdb.learn(0, 99, port(1));
  CHECK(fdb.count_learned_at(0) == 10);
  CHECK(fdb.count_learned_at(1) == 10);
}

TEST_CASE("Fdb: eviction takes the oldest first") {
  Fdb fdb(60, 60);
  uint64_t now = kSecond;
  fdb.sweep(now);
  for (Mac mac = 1; mac <= 60; ++mac) {  // one a second: address 1 is the oldest
    fdb.learn(0, mac, port(1));
    fdb.sweep(now += kSecond);
  }
  // The first sixty entries are all younger than the ageing time or just at it; none has expired.
  REQUIRE(fdb.count(FdbOwner::kLearned) == 60);
  for (Mac mac = 1; mac <= 30; ++mac) {
    fdb.learn(0, 1000 + mac, port(1));
    CHECK(fdb.lookup(0, mac) == kNoPort);
    CHECK(fdb.lookup(0, mac + 1) == 1);
  }
}

TEST_CASE("Fdb: eviction never takes static, external or held entries") {
  Fdb fdb(10, 300);
  for (Mac mac = 1; mac <= 4; ++mac) fdb.set(0, mac, 1, FdbOwner::kStatic);
  for (Mac mac = 5; mac <= 7; ++mac) fdb.set(0, mac, 1, FdbOwner::kExternal);
  for (Mac mac = 8; mac <= 9; ++mac) fdb.set(0, mac, 1, FdbOwner::kHeld);
  for (Mac mac = 100; mac < 200; ++mac) CHECK(fdb.learn(0, mac, port(2)) == LearnResult::kLearned);
  for (Mac mac = 1; mac <= 9; ++mac) CHECK(fdb.lookup(0, mac) == 1);
  CHECK(fdb.count(FdbOwner::kLearned) == 1);
}

TEST_CASE("Fdb: a bridge full of entries that stay refuses to learn and to set") {
  Fdb fdb(4, 300);
  for (Mac mac = 1; mac <= 4; ++mac) fdb.set(0, mac, 1, FdbOwner::kStatic);
  CHECK(fdb.learn(0, 9, port(2)) == LearnResult::kRefused);
  CHECK(fdb.stats().refused_bridge_limit == 1);
  CHECK(kinds(fdb) == std::vector{FdbEventKind::kRefusedBridgeLimit});
  CHECK(fdb.set(0, 9, 2, FdbOwner::kStatic) == Fdb::SetResult::kFull);
  CHECK(fdb.set(0, 4, 2, FdbOwner::kStatic) == Fdb::SetResult::kReplaced);
}

TEST_CASE("Fdb: a static entry makes room for itself in a bridge full of learned ones") {
  Fdb fdb(4, 300);
  for (Mac mac = 1; mac <= 4; ++mac) fdb.learn(0, mac, port(1));
  CHECK(fdb.set(0, 9, 2, FdbOwner::kStatic) == Fdb::SetResult::kAdded);
  CHECK(fdb.count(FdbOwner::kLearned) == 3);
  CHECK(fdb.count(FdbOwner::kStatic) == 1);
}

TEST_CASE("Fdb: limit zero learns nothing") {
  Fdb fdb(0, 300);
  CHECK(fdb.learn(0, 9, port(2)) == LearnResult::kRefused);
}

TEST_CASE("Fdb: a lowered limit is reached by the next sweep, from the largest port") {
  Fdb fdb(1000, 300);
  for (Mac mac = 1; mac <= 80; ++mac) fdb.learn(0, mac, port(1));
  for (Mac mac = 81; mac <= 100; ++mac) fdb.learn(0, mac, port(2));
  fdb.set_mac_limit(40);
  fdb.sweep(kSecond);
  CHECK(fdb.count(FdbOwner::kLearned) == 40);
  CHECK(fdb.count_learned_at(2) == 20);
  CHECK(fdb.mac_limit() == 40);
  fdb.set_mac_limit(fdb.capacity() + 1);
  CHECK(fdb.mac_limit() == 40);
  fdb.set_mac_limit(fdb.capacity());
  CHECK(fdb.mac_limit() == fdb.capacity());
}

TEST_CASE("Fdb: an entry expires between its ageing time and one epoch later") {
  for (const uint32_t ageing : {1U, 2U, 15U, 59U, 60U, 61U, 100U, 300U, 3600U}) {
    CAPTURE(ageing);
    Fdb fdb(100, ageing);
    const uint64_t epoch = std::max<uint64_t>(kSecond, ageing * kSecond / 60);
    uint64_t now = 5 * kSecond;
    fdb.sweep(now);
    fdb.learn(0, 1, port(1));
    const uint64_t seen = now;
    while (fdb.lookup(0, 1) != kNoPort) {
      REQUIRE(now - seen <= ageing * kSecond + epoch + kSecond);
      now += kSecond;
      fdb.sweep(now);
    }
    CHECK(now - seen >= ageing * kSecond);
    CHECK(fdb.stats().aged == 1);
    CHECK(fdb.count(FdbOwner::kLearned) == 0);
    CHECK(kinds(fdb) == std::vector{FdbEventKind::kLearned, FdbEventKind::kAged});
  }
}

TEST_CASE("Fdb: what is seen again does not expire, over several turns of the epoch byte") {
  Fdb fdb(100, 10);
  uint64_t now = kSecond;
  for (uint32_t second = 0; second < 1000; ++second) {
    fdb.sweep(now += kSecond);
    if (second % 9 == 0) fdb.learn(0, 1, port(1));
    REQUIRE(fdb.lookup(0, 1) == 1);
  }
  CHECK(fdb.stats().learned == 1);
}

TEST_CASE("Fdb: static, external and held entries never expire") {
  Fdb fdb(100, 1);
  fdb.set(0, 1, 1, FdbOwner::kStatic);
  fdb.set(0, 2, 1, FdbOwner::kExternal);
  fdb.set(0, 3, 1, FdbOwner::kHeld);
  uint64_t now = kSecond;
  for (uint32_t second = 0; second < 600; ++second) fdb.sweep(now += kSecond);
  for (Mac mac = 1; mac <= 3; ++mac) CHECK(fdb.lookup(0, mac) == 1);
}

TEST_CASE("Fdb: ageing 0 keeps learned entries for ever and their age stops at four hours") {
  Fdb fdb(100, 0);
  fdb.learn(0, 1, port(1));
  uint64_t now = kSecond;
  for (uint32_t minute = 0; minute < 1000; ++minute) fdb.sweep(now += 60 * kSecond);
  CHECK(fdb.lookup(0, 1) == 1);
  FdbEntry entry;
  REQUIRE(fdb.find(0, 1, entry));
  CHECK(entry.age_seconds == 240 * 60);
  fdb.learn(0, 1, port(1));
  REQUIRE(fdb.find(0, 1, entry));
  CHECK(entry.age_seconds == 0);
}

TEST_CASE("Fdb: a new ageing time counts from when an entry was last seen") {
  Fdb fdb(100, 300);
  uint64_t now = kSecond;
  const auto run = [&](uint32_t seconds) {
    for (uint32_t i = 0; i < seconds; ++i) fdb.sweep(now += kSecond);
  };
  fdb.sweep(now);
  fdb.learn(0, 1, port(1));
  run(100);
  fdb.learn(0, 2, port(1));
  FdbEntry entry;
  REQUIRE(fdb.find(0, 1, entry));
  CHECK(entry.age_seconds == 100);
  fdb.set_ageing(60);  // the first is too old by now, the second is not
  CHECK(fdb.ageing_seconds() == 60);
  run(2);
  CHECK(fdb.lookup(0, 1) == kNoPort);
  CHECK(fdb.lookup(0, 2) == 1);
  fdb.set_ageing(3600);
  run(1000);
  CHECK(fdb.lookup(0, 2) == 1);
  fdb.set_ageing(0);
  run(100);
  fdb.set_ageing(300);
  run(6);  // an epoch has five seconds now
  CHECK(fdb.lookup(0, 2) == kNoPort);
}

TEST_CASE("Fdb: a sweep after a long pause spares what was fresh when the pause began") {
  Fdb fdb(100, 10);
  uint64_t now = kSecond;
  fdb.sweep(now);
  fdb.learn(0, 1, port(1));
  fdb.sweep(now += 3600 * kSecond);
  CHECK(fdb.lookup(0, 1) == 1);
  fdb.sweep(now += kSecond);
  CHECK(fdb.lookup(0, 1) == kNoPort);
}

TEST_CASE("Fdb: flush takes learned and held entries that match, and others only by name") {
  Fdb fdb(100, 300);
  const auto fill = [&] {
    for (uint16_t vlan = 1; vlan <= 2; ++vlan) {
      fdb.learn(vlan, 1, port(1));
      fdb.learn(vlan, 2, port(2));
      fdb.set(vlan, 3, 1, FdbOwner::kStatic);
      fdb.set(vlan, 4, 1, FdbOwner::kExternal);
      fdb.set(vlan, 5, 2, FdbOwner::kHeld);
    }
  };
  fill();
  CHECK(fdb.flush({.port = 1}) == 2);
  fill();
  CHECK(fdb.flush({.vlan = 2}) == 3);
  fill();
  CHECK(fdb.flush({}) == 6);
  CHECK(fdb.count(FdbOwner::kStatic) == 2);
  CHECK(fdb.count(FdbOwner::kExternal) == 2);
  CHECK(fdb.flush({.vlan = 1, .owner = static_cast<int>(FdbOwner::kExternal)}) == 1);
  CHECK(fdb.flush({.owner = static_cast<int>(FdbOwner::kStatic)}) == 2);
  CHECK(fdb.flush({}) == 0);
  CHECK(fdb.stats().flushed == 2 + 3 + 6 + 1 + 2);
  CHECK(fdb.entries().size() == 1);
}

TEST_CASE("Fdb: remove_port takes every owner's entries of that port and no other") {
  Fdb fdb(10000, 300);
  for (Mac mac = 1; mac <= 3000; ++mac) fdb.learn(0, mac, port(static_cast<PortId>(mac % 3)));
  fdb.set(0, 10001, 1, FdbOwner::kStatic);
  fdb.set(0, 10002, 1, FdbOwner::kExternal);
  fdb.set(0, 10003, 1, FdbOwner::kHeld);
  fdb.set(0, 10004, kPortBlackhole, FdbOwner::kStatic);
  CHECK(fdb.remove_port(1) == 1003);
  CHECK(fdb.count_learned_at(1) == 0);
  for (const FdbEntry& entry : fdb.entries()) CHECK(entry.port != 1);
  CHECK(fdb.entries().size() == 2001);
  CHECK(fdb.lookup(0, 10004) == kPortBlackhole);
}

TEST_CASE("Fdb: remove forgets one entry of any owner") {
  Fdb fdb(100, 300);
  fdb.set(4, 1, 1, FdbOwner::kStatic);
  fdb.drain_events(10);
  CHECK_FALSE(fdb.remove(5, 1));
  CHECK(fdb.remove(4, 1));
  CHECK_FALSE(fdb.remove(4, 1));
  CHECK(fdb.lookup(4, 1) == kNoPort);
  CHECK(kinds(fdb) == std::vector{FdbEventKind::kFlushed});
}

TEST_CASE("Fdb: events wait in a bounded ring, oldest first, and losses are counted") {
  Fdb fdb(3000, 300);
  for (Mac mac = 1; mac <= 3000; ++mac) fdb.learn(0, mac, port(1));
  fdb.flush({});
  const uint64_t lost = fdb.stats().events_lost;
  std::vector<FdbEvent> events = fdb.drain_events(10);
  CHECK(events.size() == 10);
  CHECK(events[0].mac == 1);
  CHECK(events[9].mac == 10);
  for (;;) {
    const std::vector<FdbEvent> more = fdb.drain_events(1000);
    if (more.empty()) break;
    events.insert(events.end(), more.begin(), more.end());
  }
  CHECK(lost > 0);
  CHECK(events.size() + lost == 6000);
}

TEST_CASE("Fdb: the event descriptor is written once until the events are drained") {
  Fdb fdb(100, 300);
  const UniqueFd fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  const auto written = [&] {
    uint64_t count = 0;
    return ::read(fd.get(), &count, sizeof count) == sizeof count ? count : 0;
  };
  fdb.learn(0, 1, port(1));
  CHECK(written() == 0);
  fdb.set_event_fd(fd.get());
  CHECK(written() == 1);  // one was waiting already
  fdb.learn(0, 2, port(1));
  fdb.learn(0, 3, port(1));
  CHECK(written() == 0);
  fdb.drain_events(2);
  CHECK(written() == 1);  // one is left
  fdb.drain_events(100);
  CHECK(written() == 0);
  fdb.learn(0, 4, port(1));
  fdb.learn(0, 5, port(1));
  CHECK(written() == 1);
  fdb.set_event_fd(-1);
  fdb.drain_events(100);
  fdb.learn(0, 6, port(1));
  CHECK(written() == 0);
}

TEST_CASE("Fdb: a million addresses are learned, found and listed in about 17 MB") {
  Fdb fdb(1'000'000, 300);
  CHECK(fdb.memory_bytes() < 17'000'000);
  for (Mac mac = 0; mac < 1'000'000; ++mac) {
    const LearnResult result =
        fdb.learn(static_cast<uint16_t>(mac % 4000), 0x020000000000 + mac, port(static_cast<PortId>(mac % 1024)));
    REQUIRE(result == LearnResult::kLearned);
  }
  uint32_t missing = 0;
  for (Mac mac = 0; mac < 1'000'000; ++mac) {
    missing += fdb.lookup(static_cast<uint16_t>(mac % 4000), 0x020000000000 + mac) != mac % 1024;
  }
  CHECK(missing == 0);
  CHECK(fdb.entries().size() == 1'000'000);
  CHECK(fdb.count_learned_at(17) == fdb.count_learned_at(18));
  CHECK(fdb.remove_port(17) == 977);
  // Full: one more costs one of the ports that hold most.
  for (Mac mac = 0; mac < 10'000; ++mac) fdb.learn(0, 0x060000000000 + mac, port(1023));
  CHECK(fdb.count(FdbOwner::kLearned) == 1'000'000);
  CHECK(fdb.stats().evicted == 10'000 - 977);
}

TEST_CASE("Fdb: behaves as a map with rules, over fifty thousand random calls") {
  struct Known {
    PortId port;
    FdbOwner owner;
  };
  Fdb fdb(5000, 300);
  std::map<std::pair<uint16_t, Mac>, Known> model;
  std::mt19937 random(42);
  const auto learned_at = [&](PortId at) {
    uint32_t count = 0;
    for (const auto& [key, known] : model) count += known.owner == FdbOwner::kLearned && known.port == at;
    return count;
  };
  constexpr std::array<uint32_t, 8> kLimits = {0, 0, 0, 0, 5, 10, 20, 40};
  for (uint32_t step = 0; step < 50'000; ++step) {
    const auto vlan = static_cast<uint16_t>(random() % 4);
    const Mac mac = 0x020000000000 + random() % 400;
    const auto at = static_cast<PortId>(random() % 8);
    const auto known = model.find({vlan, mac});
    const auto action = random() % 1000;
    if (action < 800) {
      const LearnResult result = fdb.learn(vlan, mac, port(at, kLimits[at]));
      const bool full = kLimits[at] != 0 && learned_at(at) >= kLimits[at];
      if (known != model.end() && known->second.port == at) {
        REQUIRE(result == LearnResult::kKnown);
      } else if (known != model.end() && known->second.owner != FdbOwner::kLearned) {
        REQUIRE(result == LearnResult::kRefused);
      } else if (full) {
        REQUIRE(result == LearnResult::kRefused);
      } else {
        REQUIRE(result == (known == model.end() ? LearnResult::kLearned : LearnResult::kMoved));
        model[{vlan, mac}] = {at, FdbOwner::kLearned};
      }
    } else if (action < 900) {
      REQUIRE(fdb.lookup(vlan, mac) == (known == model.end() ? kNoPort : known->second.port));
    } else if (action < 940) {
      const auto owner = static_cast<FdbOwner>(random() % 4);
      fdb.set(vlan, mac, at, owner);
      model[{vlan, mac}] = {at, owner};
    } else if (action < 995) {
      REQUIRE(fdb.remove(vlan, mac) == (model.erase({vlan, mac}) == 1));
    } else {
      const uint32_t removed = fdb.flush({.port = at});
      REQUIRE(removed == std::erase_if(model, [&](const auto& item) {
                return item.second.port == at &&
                       (item.second.owner == FdbOwner::kLearned || item.second.owner == FdbOwner::kHeld);
              }));
    }
  }
  std::map<std::pair<uint16_t, Mac>, Known> listed;
  for (const FdbEntry& entry : fdb.entries()) listed[{entry.vlan, entry.mac}] = {entry.port, entry.owner};
  REQUIRE(listed.size() == model.size());
  for (const auto& [key, known] : model) {
    REQUIRE(listed.contains(key));
    CHECK(listed[key].port == known.port);
    CHECK(listed[key].owner == known.owner);
  }
  for (PortId at = 0; at < 8; ++at) CHECK(fdb.count_learned_at(at) == learned_at(at));
}

}  // namespace
}  // namespace sw
