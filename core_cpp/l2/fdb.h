// SPDX-License-Identifier: Apache-2.0
// Fdb: the MAC table of one bridge, keyed by (VLAN, MAC). Lock-free readers, writers under one short lock.
//
// Theory of operation. A bucket is one cache line: seven 8-byte words and one line of ages. A word holds MAC (48 bits),
// one bit that says which of its two hash functions put it here, and the port (15 bits), so a lookup needs one aligned
// load and never sees half an entry. The VLAN is not stored: bucket number = hash(MAC) XOR VLAN, and there are at least
// 4096 buckets, so a MAC found in a bucket under a given hash function belongs to exactly one VLAN. (fdb_table.h argues
// it.) Workers learn directly (try-lock: who does not get it leaves the frame unlearned, the next one retries). Ages
// are epochs: a worker stores the current epoch's byte at most once an epoch; sweep() removes what is old. Owners other
// than `learned` never age and never move by learning. Files: fdb_table (memory), fdb (workers), fdb_control (control
// side), fdb_impl.h (shared inside).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <memory_resource>
#include <vector>

#include "base/atomic.h"
#include "l2/policy.h"

namespace sw {

class FdbTable;

enum class FdbOwner : uint8_t {
  kLearned,   // by the datapath; ages, moves
  kStatic,    // by a person; stays until deleted
  kExternal,  // by a control plane (EVPN and the like); stays, flushed on its own
  kHeld,      // learned, then frozen at its port by move damping until released
};

inline constexpr PortId kPortBlackhole = 0x7ffe;  // frames to this MAC are dropped (static entries only)

struct FdbEntry {
  uint16_t vlan = 0;
  Mac mac = 0;
  PortId port = kNoPort;
  FdbOwner owner = FdbOwner::kLearned;
  uint32_t age_seconds = 0;  // since last seen, in steps of an epoch; 0 for owners that do not age
};

enum class FdbEventKind : uint8_t {
  kLearned,
  kMoved,
  kAged,
  kEvicted,
  kRefusedPortLimit,
  kRefusedBridgeLimit,
  kRefusedOwner,
  kFlushed
};

struct FdbEvent {
  FdbEventKind kind;
  uint16_t vlan;
  PortId port;      // where it is now, or where learning was refused
  PortId old_port;  // kMoved: where it was; kRefusedOwner: where the entry points
  Mac mac;
  uint64_t time_ns;  // monotonic
};

enum class LearnResult : uint8_t { kKnown, kLearned, kMoved, kRefused, kBusy };

struct FdbStats {  // monotonic totals
  uint64_t learned = 0, moved = 0, aged = 0, evicted = 0, flushed = 0;
  uint64_t refused_port_limit = 0, refused_bridge_limit = 0, refused_owner = 0;
  uint64_t events_lost = 0;  // the event ring was full
};

class alignas(64) Fdb {  // workers read its first line every burst: nothing else is written there
 public:
  // `mac_limit`: learned + static + external entries at most; sizes the table (about 75 % load at the limit).
  // `memory` outlives it and is used while it is made and destroyed only.
  Fdb(uint32_t mac_limit, uint32_t ageing_seconds,
      std::pmr::memory_resource* memory = std::pmr::get_default_resource());
  ~Fdb();

  // ---- workers ----
  // For lookups. They may miss an entry that is being displaced: the frame is then flooded once.
  [[nodiscard]] const FdbTable& table() const { return *table_; }
  [[nodiscard]] PortId lookup(uint16_t vlan, Mac mac) const;  // kNoPort: unknown
  // The source `mac` was seen at `port`. Refreshes, inserts or moves within the limits and emits an event for what
  // changed. kRefused results are also events, at most one per (port, reason) and 100 ms, counted always.
  LearnResult learn(uint16_t vlan, Mac mac, const PortPolicy& port);
  // The current epoch byte: the age of entries that were seen just now.
  [[nodiscard]] uint8_t epoch() const { return load_relaxed(epoch_); }

  // ---- control (any thread; takes the lock, waiting) ----
  enum class SetResult : uint8_t { kAdded, kReplaced, kFull };
  SetResult set(uint16_t vlan, Mac mac, PortId port, FdbOwner owner);  // static, external, restored learned, held
  bool remove(uint16_t vlan, Mac mac);
  // Remove entries that match all given filters; each is a kFlushed event. Static and external ones only when named by
  // `owner`.
  struct Filter {
    PortId port = kNoPort;  // kNoPort: any
    int vlan = -1;          // -1: any
    int owner = -1;         // FdbOwner, or -1: learned and held
  };
  uint32_t flush(const Filter& filter);
  uint32_t remove_port(PortId port);  // every owner: the port is gone. Call when no worker receives from it any more
  bool find(uint16_t vlan, Mac mac, FdbEntry& entry) const;
  [[nodiscard]] std::vector<FdbEntry> entries() const;
  // Numbers are read without the lock; each is right, together they are moments apart.
  [[nodiscard]] uint32_t count(FdbOwner owner) const;
  [[nodiscard]] uint32_t count_learned_at(PortId port) const;
  [[nodiscard]] FdbStats stats() const;
  [[nodiscard]] uint32_t mac_limit() const;
  [[nodiscard]] uint32_t ageing_seconds() const;
  // Beyond capacity() nothing changes. Below the present count, sweep() evicts the surplus fairly, some at a time.
  void set_mac_limit(uint32_t limit);
  [[nodiscard]] uint32_t capacity() const;  // the largest limit of this table
  void set_ageing(uint32_t seconds);        // 0: never
  // Advance the epoch to `now_ns` (monotonic) and remove what is older than the ageing time. Called about once a
  // second. An entry goes between the ageing time and one epoch more after it was last seen. After a pause of the
  // caller, however long, an entry that was fresh when it began has one epoch to be seen again.
  uint32_t sweep(uint64_t now_ns);
  // Oldest first, at most `most`. One consumer.
  std::vector<FdbEvent> drain_events(size_t most);
  // An eventfd to write when events wait (-1: none). Borrowed: several Fdbs may share it, and the consumer reads it,
  // before it drains. Written by sweep and control calls, and by workers, at most once per drain (first event after a
  // drain, or when a drain left some), never per event.
  void set_event_fd(int fd);
  [[nodiscard]] size_t memory_bytes() const;  // of the table

 private:
  struct Impl;
  template <class Matches>
  uint32_t remove_matching(Matches matches);

  std::unique_ptr<Impl> impl_;
  const FdbTable* table_;  // of impl_
  uint8_t epoch_ = 1;      // written by sweep() only
};

}  // namespace sw
