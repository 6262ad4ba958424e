// SPDX-License-Identifier: Apache-2.0
#include "l2/fdb_table.h"

#include <doctest/doctest.h>

#include <map>
#include <random>
#include <set>
#include <vector>

namespace sw {
namespace {

constexpr FdbTable::Seed kSeed{0x1234'5678'9abc'def0, 0x9e37'79b9'7f4a'7c15};

bool insert(FdbTable& table, uint16_t vlan, Mac mac, PortId port, uint8_t code = 1) {
  const FdbTable::Place place = table.make_room(vlan, mac, true);
  if (place) table.put(place, vlan, mac, port, code);
  return static_cast<bool>(place);
}

// MACs whose first bucket is `bucket` in VLAN 0: what a guest would send who knew the seed.
std::vector<Mac> aimed_at(const FdbTable& table, uint32_t bucket, size_t count) {
  std::vector<Mac> macs;
  for (Mac mac = 0x020000000000; macs.size() < count; ++mac) {
    if (table.homes(0, mac)[0] == bucket) macs.push_back(mac);
  }
  return macs;
}

TEST_CASE("FdbTable: a bucket is one cache line and a million entries take 17 MB") {
  CHECK(sizeof(FdbBucket) == 64);
  const FdbTable table(1 << 18, kSeed);  // what an Fdb makes for a limit of 1,000,000
  CHECK(table.bytes() < 17'000'000);
}

TEST_CASE("FdbTable: the same MAC in every VLAN is 4096 different entries") {
  FdbTable table(kFdbMinBuckets, kSeed);
  constexpr Mac kMac = 0x525400000001;
  for (uint32_t vlan = 0; vlan < 4096; ++vlan) {
    REQUIRE(insert(table, static_cast<uint16_t>(vlan), kMac, static_cast<PortId>(vlan % 1000)));
  }
  for (uint32_t vlan = 0; vlan < 4096; ++vlan) {
    REQUIRE(table.lookup(static_cast<uint16_t>(vlan), kMac) == vlan % 1000);
    REQUIRE(table.vlan_at(table.find(static_cast<uint16_t>(vlan), kMac)) == vlan);
  }
}

TEST_CASE("FdbTable: a MAC is found in no VLAN but its own") {
  FdbTable table(kFdbMinBuckets, kSeed);
  constexpr Mac kMac = 0x525400000002;
  REQUIRE(insert(table, 7, kMac, 3));
  for (uint32_t vlan = 0; vlan < 4096; ++vlan) {
    REQUIRE(table.lookup(static_cast<uint16_t>(vlan), kMac) == (vlan == 7 ? 3 : kNoPort));
  }
}

TEST_CASE("FdbTable: address zero and the highest port are ordinary values") {
  FdbTable table(kFdbMinBuckets, kSeed);
  CHECK(table.lookup(0, 0) == kNoPort);
  REQUIRE(insert(table, 0, 0, 0));
  REQUIRE(insert(table, 4095, kMacMask, 0x7ffe));
  CHECK(table.lookup(0, 0) == 0);
  CHECK(table.lookup(4095, kMacMask) == 0x7ffe);
  table.clear(table.find(0, 0));
  CHECK(table.lookup(0, 0) == kNoPort);
}

TEST_CASE("FdbTable: a million random entries are all found, and unknown ones are not") {
  FdbTable table(1 << 18, FdbTable::random_seed());
  std::mt19937_64 random(11);
  std::vector<std::pair<uint16_t, Mac>> keys;
  for (uint32_t i = 0; i < 1'000'000; ++i) {
    const Mac mac = (random() & kMacMask & ~(Mac{1} << 40)) >> 1 << 1;  // even ones are known
    keys.emplace_back(static_cast<uint16_t>(random() % 4096), mac);
    if (!table.find(keys.back().first, mac))
      REQUIRE(insert(table, keys.back().first, mac, static_cast<PortId>(mac % 1021)));
  }
  uint32_t wrong = 0, phantom = 0;
  for (const auto& [vlan, mac] : keys) {
    wrong += table.lookup(vlan, mac) != mac % 1021;
    phantom += table.lookup(vlan, mac + 1) != kNoPort;
  }
  CHECK(wrong == 0);
  CHECK(phantom == 0);
}

TEST_CASE("FdbTable: addresses at equal steps spread over the buckets under every seed") {
  struct Row {
    FdbTable::Seed seed;
    int step_bits;
  };
  // Seeds under whose plain product such addresses meet in so few buckets that a table three quarters full, or far less,
  // has no room for the next; then a new one each run.
  const std::vector<Row> rows = {
      {{0x17a9e44dd7fec4f1, 0xe3d278c08c008051}, 16},  // no room after 2539 of them
      {{0x1cf4dcb5962daa5c, 0xb143afe423a350b9}, 8},   // 9120
      {{0x3b06905fdccc8153, 0xddc964fcea69cee1}, 16},  // 5505
      {{0x27a1993ff8b03159, 0x6ee2a3204d637b57}, 0},   // 8266
      {{0x0d87a641cc303d58, 0x1f6f934a09478c01}, 20},  // 10034
      {{0x7920be3c79d2cac7, 0x59fd5c5e0ac52ecf}, 4},   // 3369
      {FdbTable::random_seed(), 0},
      {FdbTable::random_seed(), 16},
  };
  constexpr uint32_t kEntries = kFdbMinBuckets * kFdbSlots * 3 / 4;
  for (const Row& row : rows) {
    CAPTURE(row.seed.add);
    CAPTURE(row.seed.multiply);
    CAPTURE(row.step_bits);
    FdbTable table(kFdbMinBuckets, row.seed);
    uint32_t in_first = 0;
    for (Mac i = 0; i < kEntries; ++i) {
      const Mac mac = 0x020000000000 + (i << row.step_bits);
      REQUIRE(insert(table, 1, mac, 1));
      in_first += table.find(1, mac).bucket == table.homes(1, mac)[0];
    }
    CHECK(in_first > kEntries * 9 / 10);  // as of random addresses: 93 % need no look at their second bucket
  }
}

TEST_CASE("FdbTable: displacement fills the table far beyond three quarters") {
  FdbTable table(kFdbMinBuckets, kSeed);
  uint32_t entries = 0;
  std::mt19937_64 random(5);
  std::vector<Mac> macs;
  for (;;) {
    const Mac mac = random() & kMacMask;
    if (!insert(table, 0, mac, 5)) break;
    macs.push_back(mac);
    ++entries;
  }
  CHECK(entries > kFdbMinBuckets * kFdbSlots * 90 / 100);
  for (const Mac mac : macs) REQUIRE(table.lookup(0, mac) == 5);
}

TEST_CASE("FdbTable: keys aimed at one bucket fill it and overflow to their second buckets") {
  FdbTable table(kFdbMinBuckets, kSeed);
  const std::vector<Mac> macs = aimed_at(table, 100, 300);
  for (const Mac mac : macs) REQUIRE(insert(table, 0, mac, 9));
  for (const Mac mac : macs) CHECK(table.lookup(0, mac) == 9);
  CHECK(table.vlan_at(table.find(0, macs.back())) == 0);
}

TEST_CASE("FdbTable: two tables put the same addresses into different buckets") {
  const FdbTable first(kFdbMinBuckets, FdbTable::random_seed()), second(kFdbMinBuckets, FdbTable::random_seed());
  const std::vector<Mac> macs = aimed_at(first, 0, 50);
  std::set<uint32_t> buckets;
  for (const Mac mac : macs) buckets.insert(second.homes(0, mac)[0]);
  CHECK(buckets.size() > 25);  // aimed at one bucket of the first, spread over the second
}

TEST_CASE("FdbTable: without displacement a full pair of buckets has no room") {
  FdbTable table(kFdbMinBuckets, kSeed);
  const std::vector<Mac> macs = aimed_at(table, 0, 8);
  for (uint32_t i = 0; i < 7; ++i) REQUIRE(insert(table, 0, macs[i], 1));
  const uint32_t second = table.homes(0, macs[7])[1];
  for (const Mac mac : aimed_at(table, second, 7)) REQUIRE(insert(table, 0, mac, 2));
  CHECK_FALSE(table.make_room(0, macs[7], false));
  CHECK(table.make_room(0, macs[7], true));
}

TEST_CASE("FdbTable: a refresh ages learned entries only, at their port only") {
  FdbTable table(kFdbMinBuckets, kSeed);
  REQUIRE(insert(table, 1, 0xaa, 4, 10));
  REQUIRE(insert(table, 1, 0xbb, 4, kFdbStatic));
  CHECK(table.refresh(1, 0xaa, 4, 11));
  CHECK(table.code_at(table.find(1, 0xaa)) == 11);
  CHECK_FALSE(table.refresh(1, 0xaa, 5, 12));
  CHECK_FALSE(table.refresh(2, 0xaa, 4, 12));
  CHECK(table.code_at(table.find(1, 0xaa)) == 11);
  CHECK(table.refresh(1, 0xbb, 4, 12));
  CHECK(table.code_at(table.find(1, 0xbb)) == kFdbStatic);
}

TEST_CASE("FdbTable: an entry is fresh at its port, in its epoch or without age, in every slot of both buckets") {
  FdbTable table(kFdbMinBuckets, kSeed);
  const std::vector<Mac> macs = aimed_at(table, 40, 20);  // seven fill the first bucket, the others their second ones
  for (size_t i = 0; i < macs.size(); ++i) {
    REQUIRE(insert(table, 0, macs[i], static_cast<PortId>(i), i % 2 == 0 ? uint8_t{9} : kFdbHeld));
  }
  std::set<uint32_t> slots;
  for (size_t i = 0; i < macs.size(); ++i) {
    const auto port = static_cast<PortId>(i);
    const FdbTable::Query query = table.ask(0, macs[i]);
    CHECK(table.is_fresh_at(query, 0, port, 9));
    CHECK(table.is_fresh_at(query, 0, port, 10) == (i % 2 != 0));
    CHECK_FALSE(table.is_fresh_at(query, 0, static_cast<PortId>(port + 1), 9));
    if (table.find(0, macs[i]).bucket == 40) slots.insert(table.find(0, macs[i]).slot);
  }
  CHECK(slots.size() == kFdbSlots);
  CHECK_FALSE(table.is_fresh_at(table.ask(0, macs.back() + 1), 0, 3, 9));
  CHECK_FALSE(table.is_fresh_at(table.ask(0, 0), 0, 0, 9));  // an empty slot is no entry of MAC 0
}

TEST_CASE("FdbTable: age bytes and ports follow an entry that is displaced") {
  FdbTable table(kFdbMinBuckets, kSeed);
  const std::vector<Mac> macs = aimed_at(table, 77, 60);
  std::map<Mac, std::pair<PortId, uint8_t>> model;
  for (size_t i = 0; i < macs.size(); ++i) {
    const auto port = static_cast<PortId>(i);
    const auto code = static_cast<uint8_t>(i % 3 == 0 ? kFdbStatic : 1 + i);
    REQUIRE(insert(table, 0, macs[i], port, code));
    model[macs[i]] = {port, code};
  }
  for (const auto& [mac, expected] : model) {
    const FdbTable::Place place = table.find(0, mac);
    REQUIRE(place);
    CHECK(table.port_at(place) == expected.first);
    CHECK(table.code_at(place) == expected.second);
    CHECK(table.mac_at(place) == mac);
  }
}

TEST_CASE("FdbTable: next_used visits exactly the buckets that hold something") {
  FdbTable table(kFdbMinBuckets, kSeed);
  CHECK(table.next_used(0) == table.buckets());
  std::set<uint32_t> buckets;
  for (Mac mac = 1; mac <= 100; ++mac) {
    REQUIRE(insert(table, 0, mac, 1));
    buckets.insert(table.find(0, mac).bucket);
  }
  std::set<uint32_t> visited;
  for (uint32_t at = table.next_used(0); at < table.buckets(); at = table.next_used(at + 1)) visited.insert(at);
  CHECK(visited == buckets);
  for (Mac mac = 1; mac <= 100; ++mac) table.clear(table.find(0, mac));
  CHECK(table.next_used(0) == table.buckets());
  CHECK(table.next_used(table.buckets()) == table.buckets());
}

}  // namespace
}  // namespace sw
