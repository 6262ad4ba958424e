// SPDX-License-Identifier: Apache-2.0
// What the control side does with an Fdb: set, remove, flush, age, list, count, drain events.
//
// Passes over the whole table take the lock for a slice at a time, so that workers go on learning. While a pass is
// under way nothing is displaced, or an entry could slip from the part not yet visited into the part that was.
#include <algorithm>

#include "l2/fdb.h"
#include "l2/fdb_impl.h"

namespace sw {

namespace {

constexpr uint32_t kSliceBuckets = 1024;
constexpr uint32_t kSurplusPerSweep = 4096;
constexpr uint32_t kPausesBetweenSlices = 200;  // some microseconds

// Calls visit(place) for every entry, a slice of buckets per hold of the lock, and after_slice() at the end of each
// slice, under the lock too. The caller holds self.control.
// Between slices it leaves the lock alone for a while: workers only ever try, so they need a gap that they can hit.
template <class Self, class Visit, class AfterSlice>
void for_each_entry(Self& self, Visit visit, AfterSlice after_slice) {
  const uint32_t buckets = self.table.buckets();
  for (uint32_t from = 0; from < buckets;) {
    for (uint32_t i = 0; from > 0 && i < kPausesBetweenSlices; ++i) __builtin_ia32_pause();
    const std::lock_guard guard(self.lock);
    self.passing = true;
    uint32_t visited = 0;
    for (from = self.table.next_used(from); from < buckets && visited < kSliceBuckets; ++visited) {
      for (uint32_t slot = 0; slot < kFdbSlots; ++slot) {
        const FdbTable::Place place{from, slot};
        if (self.table.code_at(place) != kFdbEmpty) visit(place);
      }
      from = self.table.next_used(from + 1);
    }
    after_slice();
    self.passing = from < buckets;
  }
}

}  // namespace

Fdb::SetResult Fdb::set(uint16_t vlan, Mac mac, PortId port, FdbOwner owner) {
  Impl& self = *impl_;
  const std::lock_guard control(self.control);
  const std::lock_guard guard(self.lock);
  if (const Impl::Place place = self.table.find(vlan, mac)) {
    if (self.table.port_at(place) != port) self.change_port(place, port);
    self.change_owner(place, owner, epoch());
    return SetResult::kReplaced;
  }
  if (self.total() >= self.limit) {
    if (!self.evict_fairly(kNoPort, epoch())) return SetResult::kFull;
  }
  Impl::Place place = self.table.make_room(vlan, mac, true);
  if (!place) {
    if (!self.evict_near(vlan, mac, epoch())) return SetResult::kFull;
    place = self.table.make_room(vlan, mac, false);
  }
  self.insert(place, vlan, mac, port, owner, epoch());
  return SetResult::kAdded;
}

bool Fdb::remove(uint16_t vlan, Mac mac) {
  Impl& self = *impl_;
  const std::lock_guard control(self.control);
  const std::lock_guard guard(self.lock);
  const Impl::Place place = self.table.find(vlan, mac);
  if (!place) return false;
  self.totals.flushed.add(1);
  self.emit_at(FdbEventKind::kFlushed, place);
  self.erase(place);
  return true;
}

template <class Matches>
uint32_t Fdb::remove_matching(Matches matches) {
  Impl& self = *impl_;
  const std::lock_guard control(self.control);
  uint32_t removed = 0, in_slice = 0;
  const auto visit = [&](Impl::Place place) {
    if (!matches(place)) return;
    self.emit_at(FdbEventKind::kFlushed, place);
    self.erase(place);
    ++in_slice;
  };
  for_each_entry(self, visit, [&] {
    if (in_slice == 0) return;
    self.totals.flushed.add(in_slice);
    removed += in_slice;
    in_slice = 0;
  });
  return removed;
}

uint32_t Fdb::flush(const Filter& filter) {
  Impl& self = *impl_;
  const auto matches = [&](Impl::Place place) {
    const FdbOwner owner = self.owner_at(place);
    const bool owner_matches = filter.owner < 0 ? owner == FdbOwner::kLearned || owner == FdbOwner::kHeld
                                                : owner == static_cast<FdbOwner>(filter.owner);
    return owner_matches && (filter.port == kNoPort || self.table.port_at(place) == filter.port) &&
           (filter.vlan < 0 || self.table.vlan_at(place) == filter.vlan);
  };
  return remove_matching(matches);
}

uint32_t Fdb::remove_port(PortId port) {
  return remove_matching([&](FdbTable::Place place) { return impl_->table.port_at(place) == port; });
}

uint32_t Fdb::sweep(uint64_t now_ns) {
  Impl& self = *impl_;
  const std::lock_guard control(self.control);
  uint32_t steps = 0;
  {
    const std::lock_guard guard(self.lock);
    if (self.epoch_began_ns == 0) self.epoch_began_ns = now_ns;
    self.swept_ns = std::max(self.swept_ns, now_ns);
    if (now_ns > self.epoch_began_ns) {
      const uint64_t passed = (now_ns - self.epoch_began_ns) / self.ageing.length_ns;
      // After a long pause, entries of the epoch in which it began must survive this sweep: nobody could refresh them
      // to a later one. (It also keeps ages far from a full turn of the epoch byte.)
      constexpr uint32_t kMostSteps = kFdbEpochs - FdbAgeing::kOldest - 2;
      steps = static_cast<uint32_t>(std::min<uint64_t>(
          passed, self.ageing.expire_after == FdbAgeing::kNever ? kMostSteps : self.ageing.expire_after));
      self.epoch_began_ns = passed == steps ? self.epoch_began_ns + passed * self.ageing.length_ns : now_ns;
      if (steps > 0) store_relaxed(epoch_, fdb_epoch_after(epoch_, steps));
    }
    uint32_t surplus = 0;
    while (self.total() > self.limit && surplus < kSurplusPerSweep && self.evict_fairly(kNoPort, epoch())) ++surplus;
  }
  if (steps == 0) return 0;
  uint32_t removed = 0, in_slice = 0;
  const auto visit = [&](Impl::Place place) {
    const uint32_t age = self.age_at(place, epoch());
    if (self.ageing.expire_after == FdbAgeing::kNever) {
      if (age > FdbAgeing::kOldest) self.table.set_code(place, fdb_epoch_before(epoch(), FdbAgeing::kOldest));
    } else if (age > self.ageing.expire_after) {
      self.emit_at(FdbEventKind::kAged, place);
      self.erase(place);
      ++in_slice;
    }
  };
  for_each_entry(self, visit, [&] {
    if (in_slice == 0) return;
    self.totals.aged.add(in_slice);
    removed += in_slice;
    in_slice = 0;
  });
  return removed;
}

void Fdb::set_ageing(uint32_t seconds) {
  Impl& self = *impl_;
  const std::lock_guard control(self.control);
  const std::lock_guard guard(self.lock);  // for the whole table: half of it in old epochs would make no sense
  if (seconds == self.ageing.seconds) return;
  const FdbAgeing next(seconds);
  const uint64_t oldest = next.expire_after == FdbAgeing::kNever ? FdbAgeing::kOldest : next.expire_after + 1;
  for (uint32_t bucket = self.table.next_used(0); bucket < self.table.buckets();
       bucket = self.table.next_used(bucket + 1)) {
    for (uint32_t slot = 0; slot < kFdbSlots; ++slot) {
      const Impl::Place place{bucket, slot};
      if (!fdb_ages(self.table.code_at(place))) continue;
      const uint64_t age = self.age_at(place, epoch()) * self.ageing.length_ns / next.length_ns;
      self.table.set_code(place, fdb_epoch_before(epoch(), static_cast<uint32_t>(std::min(age, oldest))));
    }
  }
  self.ageing = next;
  self.ageing_seconds = seconds;
  // An entry of the present epoch may have been seen this moment: count its new epochs from here.
  self.epoch_began_ns = self.swept_ns;
}

bool Fdb::find(uint16_t vlan, Mac mac, FdbEntry& entry) const {
  Impl& self = *impl_;
  const std::lock_guard guard(self.lock);
  const Impl::Place place = self.table.find(vlan, mac);
  if (place) entry = self.entry_at(place, epoch());
  return static_cast<bool>(place);
}

std::vector<FdbEntry> Fdb::entries() const {
  Impl& self = *impl_;
  const std::lock_guard control(self.control);
  std::vector<FdbEntry> all;
  {
    const std::lock_guard guard(self.lock);
    all.reserve(size_t{self.total()} +
                64);  // so that growing, with its page faults, hardly ever happens under the lock
  }
  for_each_entry(self, [&](Impl::Place place) { all.push_back(self.entry_at(place, epoch())); }, [] {});
  return all;
}

FdbEntry Fdb::Impl::entry_at(Place place, uint8_t epoch) const {
  const auto age_seconds = age_at(place, epoch) * (ageing.length_ns / 1'000'000) / 1000;
  return {table.vlan_at(place), table.mac_at(place), table.port_at(place), owner_at(place),
          static_cast<uint32_t>(age_seconds)};
}

uint32_t Fdb::count(FdbOwner owner) const { return impl_->owned[static_cast<size_t>(owner)]; }

uint32_t Fdb::count_learned_at(PortId port) const { return port < kMaxPorts ? uint32_t{impl_->learned_at[port]} : 0; }

FdbStats Fdb::stats() const {
  const FdbTotals& totals = impl_->totals;
  return {.learned = totals.learned.get(),
          .moved = totals.moved.get(),
          .aged = totals.aged.get(),
          .evicted = totals.evicted.get(),
          .flushed = totals.flushed.get(),
          .refused_port_limit = totals.refused_port_limit.get(),
          .refused_bridge_limit = totals.refused_bridge_limit.get(),
          .refused_owner = totals.refused_owner.get(),
          .events_lost = totals.events_lost.get()};
}

uint32_t Fdb::mac_limit() const { return impl_->limit; }

uint32_t Fdb::ageing_seconds() const { return impl_->ageing_seconds; }

void Fdb::set_mac_limit(uint32_t limit) {
  if (limit > capacity()) return;
  const std::lock_guard guard(impl_->lock);
  impl_->limit = limit;
}

uint32_t Fdb::capacity() const { return impl_->table.buckets() / 4 * 3 * kFdbSlots; }

size_t Fdb::memory_bytes() const { return impl_->table.bytes(); }

std::vector<FdbEvent> Fdb::drain_events(size_t most) {
  Impl& self = *impl_;
  std::vector<FdbEvent> drained;
  size_t waiting = 0;
  {
    const std::lock_guard guard(self.lock);
    waiting = self.events.waiting();
  }
  drained.reserve(std::min(most, waiting));  // outside the lock: it may take a page fault
  const std::lock_guard guard(self.lock);
  while (drained.size() < drained.capacity() && self.events.waiting() > 0) {
    drained.push_back(self.events.front());
    self.events.pop();
  }
  self.signalled = false;
  if (self.events.waiting() > 0) self.signal();
  return drained;
}

void Fdb::set_event_fd(int fd) {
  Impl& self = *impl_;
  const std::lock_guard guard(self.lock);
  self.event_fd = fd;
  self.signalled = false;
  if (self.events.waiting() > 0) self.signal();
}

}  // namespace sw
