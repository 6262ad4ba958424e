// SPDX-License-Identifier: Apache-2.0
// What workers do with an Fdb: look up, learn, and make room by evicting fairly. The table itself: fdb_table.h.
#include "l2/fdb.h"

#include <unistd.h>

#include <algorithm>
#include <bit>

#include "l2/fdb_impl.h"

namespace sw {

namespace {

constexpr uint64_t kRefusalEventNs = 100'000'000;
constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr uint32_t kEpochsPerAgeing = 60;

// How far one eviction looks: enough candidates for a good guess at the oldest one, few enough to bound the work.
constexpr uint32_t kEvictionCandidates = 64;
constexpr uint32_t kEvictionBuckets = 64;

// About 75 % load at the limit: two choices of seven slots fill that far without displacing much.
uint32_t buckets_for(uint32_t mac_limit) {
  const uint64_t wanted = (uint64_t{mac_limit} * 4 + kFdbSlots * 3 - 1) / (kFdbSlots * 3);
  return static_cast<uint32_t>(std::bit_ceil(std::max<uint64_t>(wanted, kFdbMinBuckets)));
}

}  // namespace

FdbAgeing::FdbAgeing(uint32_t ageing_seconds) : seconds(ageing_seconds) {
  if (ageing_seconds == 0) {
    length_ns = 60 * kSecondNs;
    expire_after = kNever;
    return;
  }
  length_ns = std::max(kSecondNs, ageing_seconds * kSecondNs / kEpochsPerAgeing);
  expire_after = std::min(ageing_seconds, kEpochsPerAgeing);
}

Fdb::Impl::Impl(uint32_t mac_limit, uint32_t seconds, std::pmr::memory_resource* memory)
    : table(buckets_for(mac_limit), FdbTable::random_seed(), memory),
      limit(mac_limit),
      ageing(seconds),
      ageing_seconds(seconds),
      events(std::clamp<size_t>(mac_limit, 1024, 16384)) {}

Fdb::Fdb(uint32_t mac_limit, uint32_t ageing_seconds, std::pmr::memory_resource* memory)
    : impl_(std::make_unique<Impl>(mac_limit, ageing_seconds, memory)), table_(&impl_->table) {}
Fdb::~Fdb() = default;

PortId Fdb::lookup(uint16_t vlan, Mac mac) const { return impl_->table.lookup(vlan, mac); }

LearnResult Fdb::learn(uint16_t vlan, Mac mac, const PortPolicy& port) {
  Impl& self = *impl_;
  if (self.table.refresh(vlan, mac, port.id, epoch())) return LearnResult::kKnown;
  if (!self.lock.try_lock()) return LearnResult::kBusy;
  const std::lock_guard guard(self.lock, std::adopt_lock);
  return self.learn(vlan, mac, port, *this);
}

LearnResult Fdb::Impl::learn(uint16_t vlan, Mac mac, const PortPolicy& port, Fdb& fdb) {
  const uint8_t epoch = fdb.epoch();
  const bool port_full = port.mac_limit != 0 && learned_at[port.id] >= port.mac_limit;
  if (const Place place = table.find(vlan, mac)) {
    const PortId old_port = table.port_at(place);
    const FdbOwner owner = owner_at(place);
    if (old_port == port.id) {  // put here since the first look
      if (owner == FdbOwner::kLearned) table.set_code(place, epoch);
      return LearnResult::kKnown;
    }
    if (owner != FdbOwner::kLearned) return refuse(FdbEventKind::kRefusedOwner, vlan, mac, port.id, old_port);
    if (port_full) return refuse(FdbEventKind::kRefusedPortLimit, vlan, mac, port.id, old_port);
    change_port(place, port.id);
    table.set_code(place, epoch);
    totals.moved.add(1);
    emit(FdbEventKind::kMoved, vlan, mac, port.id, old_port);
    return LearnResult::kMoved;
  }
  if (port_full) return refuse(FdbEventKind::kRefusedPortLimit, vlan, mac, port.id, kNoPort);
  bool evicted = false;
  if (total() >= limit) {
    if (limit == 0 || !evict_fairly(port.id, epoch)) {
      return refuse(FdbEventKind::kRefusedBridgeLimit, vlan, mac, port.id, kNoPort);
    }
    evicted = true;
  }
  Place place = table.make_room(vlan, mac, !passing);
  if (!place) {
    if (passing) return LearnResult::kBusy;  // a millisecond later it may displace again
    if (evicted || !evict_near(vlan, mac, epoch)) {
      return refuse(FdbEventKind::kRefusedBridgeLimit, vlan, mac, port.id, kNoPort);
    }
    place = table.make_room(vlan, mac, false);
  }
  insert(place, vlan, mac, port.id, FdbOwner::kLearned, epoch);
  totals.learned.add(1);
  emit(FdbEventKind::kLearned, vlan, mac, port.id);
  return LearnResult::kLearned;
}

LearnResult Fdb::Impl::refuse(FdbEventKind kind, uint16_t vlan, Mac mac, PortId port, PortId old_port) {
  size_t row = 0;
  if (kind == FdbEventKind::kRefusedPortLimit) {
    totals.refused_port_limit.add(1);
  } else if (kind == FdbEventKind::kRefusedBridgeLimit) {
    totals.refused_bridge_limit.add(1);
    row = 1;
  } else {
    totals.refused_owner.add(1);
    row = 2;
  }
  // A flooding guest refuses millions a second: one event tells the story, the counters tell the amount.
  const uint64_t now = monotonic_ns();
  uint64_t& last = last_refusal_ns[row][port];
  if (last == 0 || now - last >= kRefusalEventNs) {
    last = now;
    emit(kind, vlan, mac, port, old_port);
  }
  return LearnResult::kRefused;
}

// ---- eviction ----

// The port with most learned entries; `preferred` when it has as many as any, so that it pays for its own wish.
PortId Fdb::Impl::busiest(PortId preferred) const {
  PortId most = preferred < kMaxPorts && learned_at[preferred] > 0 ? preferred : kNoPort;
  uint32_t entries = most == kNoPort ? 0 : uint32_t{learned_at[most]};
  for (uint32_t port = 0; port < ports_seen; ++port) {
    if (learned_at[port] > entries) {
      entries = learned_at[port];
      most = static_cast<PortId>(port);
    }
  }
  return most;
}

bool Fdb::Impl::evict_fairly(PortId port, uint8_t epoch) {
  const PortId victim = busiest(port);
  if (victim == kNoPort) return false;
  Place oldest;
  uint32_t oldest_age = 0, candidates = 0, visited = 0;
  // Look at every non-empty bucket at most once, starting where the last eviction stopped. The busiest port has its
  // share of entries everywhere, so the first windows nearly always suffice; one with few entries is seen whole.
  for (uint32_t turn = 0; turn < 2; ++turn) {
    const uint32_t end = turn == 0 ? table.buckets() : hand;
    for (uint32_t bucket = table.next_used(turn == 0 ? hand : 0); bucket < end; bucket = table.next_used(bucket + 1)) {
      const FdbBucket seen = table.bucket(bucket);
      for (uint32_t slot = 0; slot < kFdbSlots; ++slot) {
        if (seen.port(slot) != victim || !fdb_ages(seen.code(slot))) continue;
        ++candidates;
        const uint32_t age = fdb_epochs_between(seen.code(slot), epoch);
        if (!oldest || age > oldest_age) {
          oldest = {bucket, slot};
          oldest_age = age;
        }
      }
      ++visited;
      const bool enough = candidates >= std::min<uint32_t>(kEvictionCandidates, learned_at[victim]);
      if (enough || (visited >= kEvictionBuckets && oldest)) {
        hand = bucket + 1 < table.buckets() ? bucket + 1 : 0;
        evict(oldest);
        return true;
      }
    }
  }
  if (oldest) evict(oldest);
  return static_cast<bool>(oldest);
}

bool Fdb::Impl::evict_near(uint16_t vlan, Mac mac, uint8_t epoch) {
  Place best;
  uint32_t best_share = 0, best_age = 0;
  for (const uint32_t bucket : table.homes(vlan, mac)) {
    for (uint32_t slot = 0; slot < kFdbSlots; ++slot) {
      const Place place{bucket, slot};
      if (!fdb_ages(table.code_at(place))) continue;
      const PortId port = table.port_at(place);
      const uint32_t share = port < kMaxPorts ? uint32_t{learned_at[port]} : 0;
      const uint32_t age = age_at(place, epoch);
      if (!best || share > best_share || (share == best_share && age > best_age)) {
        best = place;
        best_share = share;
        best_age = age;
      }
    }
  }
  if (best) evict(best);
  return static_cast<bool>(best);
}

void Fdb::Impl::evict(Place place) {
  totals.evicted.add(1);
  emit_at(FdbEventKind::kEvicted, place);
  erase(place);
}

// ---- changes that keep the counts ----

void Fdb::Impl::count(FdbOwner owner, PortId port, int change) {
  const auto add = [change](Shown<uint32_t>& value) { value = value + static_cast<uint32_t>(change); };  // -1 wraps
  add(owned[static_cast<size_t>(owner)]);
  if (owner == FdbOwner::kLearned && port < kMaxPorts) {
    add(learned_at[port]);
    ports_seen = std::max<uint32_t>(ports_seen, port + 1U);
  }
}

void Fdb::Impl::insert(Place place, uint16_t vlan, Mac mac, PortId port, FdbOwner owner, uint8_t epoch) {
  table.put(place, vlan, mac, port, fdb_code(owner, epoch));
  count(owner, port, 1);
}

void Fdb::Impl::erase(Place place) {
  count(owner_at(place), table.port_at(place), -1);
  table.clear(place);
}

void Fdb::Impl::change_port(Place place, PortId port) {
  const FdbOwner owner = owner_at(place);
  count(owner, table.port_at(place), -1);
  table.set_port(place, port);
  count(owner, port, 1);
}

void Fdb::Impl::change_owner(Place place, FdbOwner owner, uint8_t epoch) {
  const PortId port = table.port_at(place);
  count(owner_at(place), port, -1);
  table.set_code(place, fdb_code(owner, epoch));
  count(owner, port, 1);
}

FdbOwner Fdb::Impl::owner_at(Place place) const {
  switch (table.code_at(place)) {
    case kFdbStatic:
      return FdbOwner::kStatic;
    case kFdbExternal:
      return FdbOwner::kExternal;
    case kFdbHeld:
      return FdbOwner::kHeld;
    default:
      return FdbOwner::kLearned;
  }
}

uint32_t Fdb::Impl::age_at(Place place, uint8_t epoch) const {
  const uint8_t code = table.code_at(place);
  return fdb_ages(code) ? fdb_epochs_between(code, epoch) : 0;
}

// ---- events ----

void Fdb::Impl::emit(FdbEventKind kind, uint16_t vlan, Mac mac, PortId port, PortId old_port) {
  if (events.push({kind, vlan, port, old_port, mac, monotonic_ns()})) {
    signal();
  } else {
    totals.events_lost.add(1);
  }
}

void Fdb::Impl::emit_at(FdbEventKind kind, Place place) {
  emit(kind, table.vlan_at(place), table.mac_at(place), table.port_at(place));
}

// The first event after a drain wakes the consumer; until it comes and drains, more need not.
void Fdb::Impl::signal() {
  if (signalled || event_fd < 0) return;
  signalled = true;
  const uint64_t one = 1;
  (void)!::write(event_fd, &one, sizeof one);  // fails only when the counter is full, and then it is readable
}

}  // namespace sw
