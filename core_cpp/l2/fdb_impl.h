// SPDX-License-Identifier: Apache-2.0
// The inside of an Fdb, shared by fdb.cc (what workers do) and fdb_control.cc (what the control side does).
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <vector>

#include "base/atomic.h"
#include "base/clock.h"
#include "l2/fdb.h"
#include "l2/fdb_table.h"
#include "stats/counters.h"

namespace sw {

inline constexpr size_t kFdbOwners = 4;
inline constexpr size_t kRefusalKinds = 3;  // kRefusedPortLimit, kRefusedBridgeLimit, kRefusedOwner

// Events wait here between the worker or control call that made them and drain_events(). Under the Fdb's lock.
class FdbEventRing {
 public:
  explicit FdbEventRing(size_t size) : ring_(size) {}
  [[nodiscard]] bool push(const FdbEvent& event) {
    if (tail_ - head_ == ring_.size()) return false;
    ring_[tail_++ % ring_.size()] = event;
    return true;
  }
  [[nodiscard]] const FdbEvent& front() const { return ring_[head_ % ring_.size()]; }
  void pop() { ++head_; }
  [[nodiscard]] size_t waiting() const { return tail_ - head_; }

 private:
  std::vector<FdbEvent> ring_;
  size_t head_ = 0, tail_ = 0;
};

// Ageing in epochs. `length_ns` is at least a second and a sixtieth of the ageing time, so that a worker rewrites an
// age at most 60 times before it could expire.
struct FdbAgeing {
  uint32_t seconds;
  uint64_t length_ns;     // of an epoch
  uint32_t expire_after;  // entries older than this many epochs go; kNever: none
  static constexpr uint32_t kNever = 255;
  static constexpr uint32_t kOldest = 240;  // with kNever: ages stop growing here

  explicit FdbAgeing(uint32_t ageing_seconds);
};

// A number that is changed under the lock and read by anybody: looking at statistics must not keep workers from
// learning.
template <class T>
class Shown {
 public:
  Shown(T value = {}) : value_(value) {}                                 // NOLINT(google-explicit-constructor)
  operator T() const { return value_.load(std::memory_order_relaxed); }  // NOLINT(google-explicit-constructor)
  Shown& operator=(T value) {
    value_.store(value, std::memory_order_relaxed);
    return *this;
  }

 private:
  std::atomic<T> value_;
};

struct FdbTotals {  // FdbStats as they are counted
  Counter learned, moved, aged, evicted, flushed;
  Counter refused_port_limit, refused_bridge_limit, refused_owner;
  Counter events_lost;
};

struct Fdb::Impl {
  using Place = FdbTable::Place;

  Impl(uint32_t mac_limit, uint32_t seconds, std::pmr::memory_resource* memory);

  FdbTable table;
  std::mutex control;  // one control call at a time; taken before `lock`
  Spinlock lock;       // guards all that follows and every change of the table's slots
  Shown<uint32_t> limit;
  FdbAgeing ageing;
  Shown<uint32_t> ageing_seconds;  // as in `ageing`
  uint64_t epoch_began_ns = 0;     // 0: sweep() was never called
  uint64_t swept_ns = 0;           // when sweep() was last called
  bool passing = false;            // a pass over the table released the lock half-way: entries must not change buckets
  uint32_t hand = 0;               // bucket where the search for the next eviction starts
  uint32_t ports_seen = 0;         // ids below this ever had a learned entry
  std::array<Shown<uint32_t>, kMaxPorts> learned_at{};
  std::array<Shown<uint32_t>, kFdbOwners> owned{};
  std::array<std::array<uint64_t, kMaxPorts>, kRefusalKinds> last_refusal_ns{};
  FdbTotals totals;
  FdbEventRing events;
  int event_fd = -1;
  bool signalled = false;  // event_fd was written since the last drain

  [[nodiscard]] uint32_t total() const { return owned[0] + owned[1] + owned[2] + owned[3]; }

  // Every change of who owns what goes through these four, so that the counts stay true.
  void insert(Place place, uint16_t vlan, Mac mac, PortId port, FdbOwner owner, uint8_t epoch);
  void erase(Place place);
  void change_port(Place place, PortId port);
  void change_owner(Place place, FdbOwner owner, uint8_t epoch);

  [[nodiscard]] FdbOwner owner_at(Place place) const;
  [[nodiscard]] FdbEntry entry_at(Place place, uint8_t epoch) const;
  [[nodiscard]] uint32_t age_at(Place place, uint8_t epoch) const;  // epochs; 0 for owners that do not age

  // Remove one learned entry for the sake of a new one at `port`, fairly. False: there is no learned entry.
  bool evict_fairly(PortId port, uint8_t epoch);
  // The same among the entries that stand in the way of (vlan, mac), when its buckets are full.
  bool evict_near(uint16_t vlan, Mac mac, uint8_t epoch);
  void evict(Place place);

  LearnResult learn(uint16_t vlan, Mac mac, const PortPolicy& port, Fdb& fdb);
  LearnResult refuse(FdbEventKind kind, uint16_t vlan, Mac mac, PortId port, PortId old_port);

  void emit(FdbEventKind kind, uint16_t vlan, Mac mac, PortId port, PortId old_port = kNoPort);
  void emit_at(FdbEventKind kind, Place place);
  void signal();

 private:
  void count(FdbOwner owner, PortId port, int change);
  [[nodiscard]] PortId busiest(PortId preferred) const;
};

// Code of a new entry: owners that do not age have one of their own.
constexpr uint8_t fdb_code(FdbOwner owner, uint8_t epoch) {
  switch (owner) {
    case FdbOwner::kStatic:
      return kFdbStatic;
    case FdbOwner::kExternal:
      return kFdbExternal;
    case FdbOwner::kHeld:
      return kFdbHeld;
    case FdbOwner::kLearned:
      break;
  }
  return epoch;
}

// Epochs from `then` to `now`, both 1..kFdbEpochs on a circle.
constexpr uint32_t fdb_epochs_between(uint8_t then, uint8_t now) {
  return (static_cast<uint32_t>(now) + kFdbEpochs - then) % kFdbEpochs;
}
constexpr uint8_t fdb_epoch_before(uint8_t now, uint32_t age) {
  return static_cast<uint8_t>((now - 1U + kFdbEpochs - age % kFdbEpochs) % kFdbEpochs + 1);
}
constexpr uint8_t fdb_epoch_after(uint8_t now, uint32_t steps) {
  return static_cast<uint8_t>((now - 1U + steps) % kFdbEpochs + 1);
}

}  // namespace sw
