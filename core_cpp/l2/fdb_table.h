// SPDX-License-Identifier: Apache-2.0
// FdbTable: the memory of an Fdb. Buckets of one cache line, lock-free readers, one writer at a time. No policy here.
//
// Theory of operation. An entry is one 8-byte word {MAC 48 bits, hash choice 1, port + 1 in 15}; 0 is an empty slot.
// Seven words and one word of ages make a bucket. Each MAC has two hashes, and the bucket of (vlan, mac) under choice c
// is (hash_c(mac) XOR vlan), masked to the table's size.
//
// Why a match is exact although the VLAN is not stored: the table has at least 4096 buckets, so the XOR with the 12-bit
// VLAN is not cut off by the mask. A word in bucket b with MAC m and choice c was put there for the one VLAN
// (hash_c(m) XOR b) & 0xfff; a reader that came to b through (m, c) came with exactly that VLAN. Where both hashes lead
// to the same bucket the choice bit keeps the two meanings apart.
//
// Readers load each word once; all that they conclude comes from that one load, so no re-check is needed. (A vector
// version, whose 64-byte load is atomic per 8-byte lane only, must load the lane that matched once more and check
// that.) A displaced entry is copied to its other bucket before the original goes, so at worst a reader that looked at
// the second bucket too early misses it once, and the frame is flooded.
//
// Ages. Byte i of `ages` says who owns slot i: 0 empty, 1..250 learned and last seen in that epoch, 253..255 owners
// that do not age. Byte 7 is a version that every change of the bucket's slots or owners increments. Workers refresh an
// age without the lock by compare-and-swap of the whole word, which fails when the slot changed its meaning meanwhile:
// a late refresh cannot turn a static entry into one that ages. (The version wraps: exactly 256 changes of one bucket
// between two neighbouring instructions of a worker would be needed to deceive it.)
//
// Hashes are keyed by a random seed of the table, so a guest cannot choose MACs that meet in one bucket.
#pragma once

#include <array>
#include <cstdint>
#include <memory_resource>
#include <vector>

#include "base/atomic.h"
#include "l2/policy.h"
#include "net/ethernet.h"

namespace sw {

inline constexpr uint32_t kFdbSlots = 7;
inline constexpr uint32_t kFdbMinBuckets = 4096;  // as many as VLANs: see above

struct alignas(64) FdbBucket {
  std::array<uint64_t, kFdbSlots> words;  // written under the Fdb's lock, read by everybody
  uint64_t ages;                          // written under the lock and by refreshing workers, always by CAS

  [[nodiscard]] PortId port(uint32_t slot) const { return static_cast<PortId>((words[slot] & 0x7fff) - 1); }
  [[nodiscard]] uint8_t code(uint32_t slot) const { return static_cast<uint8_t>(ages >> (8 * slot)); }
};
static_assert(sizeof(FdbBucket) == 64);

// Values of an age byte.
inline constexpr uint8_t kFdbEmpty = 0;
inline constexpr uint8_t kFdbEpochs = 250;  // epochs are 1..250, then 1 again
inline constexpr uint8_t kFdbHeld = 253;
inline constexpr uint8_t kFdbExternal = 254;
inline constexpr uint8_t kFdbStatic = 255;
constexpr bool fdb_ages(uint8_t code) { return code != kFdbEmpty && code <= kFdbEpochs; }

class FdbTable {
 public:
  struct Seed {
    uint64_t add;
    uint64_t multiply;
  };
  struct Place {
    uint32_t bucket = 0;
    uint32_t slot = kFdbSlots;
    explicit operator bool() const { return slot < kFdbSlots; }
  };

  // `buckets`: a power of two, at least kFdbMinBuckets, taken from `memory`. Throws std::bad_alloc.
  FdbTable(uint32_t buckets, Seed seed, std::pmr::memory_resource* memory = std::pmr::get_default_resource());
  ~FdbTable();
  FdbTable(const FdbTable&) = delete;
  FdbTable& operator=(const FdbTable&) = delete;
  static Seed random_seed();

  // ---- any thread ----
  [[nodiscard]] PortId lookup(uint16_t vlan, Mac mac) const;
  void prefetch(uint16_t vlan, Mac mac) const { __builtin_prefetch(&buckets_[home(vlan, mac, 0)]); }
  // True when (vlan, mac) is known at `port`; then its age is `epoch` now, if it ages.
  bool refresh(uint16_t vlan, Mac mac, PortId port, uint8_t epoch);

  // ---- under the Fdb's lock ----
  [[nodiscard]] Place find(uint16_t vlan, Mac mac) const {
    uint64_t word;
    return locate(vlan, mac, word);
  }
  // An empty place where (vlan, mac) may be put, made by displacing others when `displace`; none if that does not help.
  Place make_room(uint16_t vlan, Mac mac, bool displace);
  // Fill an empty place that make_room() found.
  void put(Place place, uint16_t vlan, Mac mac, PortId port, uint8_t code);
  void set_port(Place place, PortId port);
  void set_code(Place place, uint8_t code);
  void clear(Place place);

  [[nodiscard]] Mac mac_at(Place place) const { return word(place) >> 16; }
  [[nodiscard]] PortId port_at(Place place) const { return static_cast<PortId>((word(place) & kPortMask) - 1); }
  [[nodiscard]] uint16_t vlan_at(Place place) const;
  [[nodiscard]] uint8_t code_at(Place place) const {
    return static_cast<uint8_t>(load_relaxed(buckets_[place.bucket].ages) >> (8 * place.slot));
  }
  // A copy of one bucket, for scans that look at all its slots.
  [[nodiscard]] FdbBucket bucket(uint32_t number) const {
    FdbBucket copy;
    for (uint32_t slot = 0; slot < kFdbSlots; ++slot) copy.words[slot] = load_relaxed(buckets_[number].words[slot]);
    copy.ages = load_relaxed(buckets_[number].ages);
    return copy;
  }

  // Both buckets of (vlan, mac): who must make room when make_room() found none.
  [[nodiscard]] std::array<uint32_t, 2> homes(uint16_t vlan, Mac mac) const {
    return {home(vlan, mac, 0), home(vlan, mac, 1)};
  }
  // The first bucket from `from` on that is not empty, or buckets().
  [[nodiscard]] uint32_t next_used(uint32_t from) const;
  [[nodiscard]] uint32_t buckets() const { return mask_ + 1; }
  [[nodiscard]] size_t bytes() const;

 private:
  static constexpr uint64_t kPortMask = 0x7fff;
  static constexpr uint64_t kChoiceBit = 0x8000;

  // Low half: choice 0, high half: choice 1.
  [[nodiscard]] uint64_t hashes(Mac mac) const {
    const auto product = static_cast<unsigned __int128>(mac ^ seed_.add) * seed_.multiply;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  }
  [[nodiscard]] uint32_t home(uint16_t vlan, Mac mac, uint32_t choice) const {
    return (static_cast<uint32_t>(hashes(mac) >> (32 * choice)) ^ (vlan & kVlanIdMask)) & mask_;
  }
  // Where the entry `word` of `bucket` would live under its other hash: XOR with the VLAN cancels out.
  [[nodiscard]] uint32_t other_home(uint32_t bucket, uint64_t word) const {
    const uint64_t both = hashes(word >> 16);
    return (bucket ^ static_cast<uint32_t>(both ^ both >> 32)) & mask_;
  }
  // As find(), with the word that matched.
  Place locate(uint16_t vlan, Mac mac, uint64_t& word) const;
  [[nodiscard]] size_t table_bytes() const { return (size_t{mask_} + 1) * sizeof(FdbBucket); }
  [[nodiscard]] uint64_t word(Place place) const { return load_relaxed(buckets_[place.bucket].words[place.slot]); }
  [[nodiscard]] Place empty_in(uint32_t bucket) const;
  void move(Place from, Place to);
  void write_code(Place place, uint8_t code);

  std::pmr::memory_resource* memory_;
  FdbBucket* buckets_;
  uint32_t mask_;
  Seed seed_;
  std::vector<uint64_t> used_;  // a bit per bucket: not empty. Lock holders only; makes passes over sparse tables cheap
};

}  // namespace sw
