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
// Readers compare all words of a bucket at once, by vector loads that x86-64 does not tear within a word. What they
// conclude beyond equality comes from one more load of the word that matched, checked again. A displaced entry is
// copied to its other bucket before the original goes, so at worst a reader that looked at the second bucket too early
// misses it once, and the frame is flooded. Workers ask in two steps, ask() for the whole batch and then answer(), so
// that the buckets' lines arrive together.
//
// Ages. Byte i of `ages` says who owns slot i: 0 empty, 1..250 learned and last seen in that epoch, 253..255 owners
// that do not age. Byte 7 is a version that every change of the bucket's slots or owners increments. Workers refresh an
// age without the lock by compare-and-swap of the whole word, which fails when the slot changed its meaning meanwhile:
// a late refresh cannot turn a static entry into one that ages. (The version wraps: exactly 256 changes of one bucket
// between two neighbouring instructions of a worker would be needed to deceive it.)
//
// Hashes are keyed by a random seed of the table, so a guest cannot choose MACs that meet in one bucket.
#pragma once

#include <nmmintrin.h>

#include <array>
#include <bit>
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
  // Where is (vlan, mac)? Asked, but not looked at yet.
  struct Query {
    uint64_t key;            // MAC << 16
    const FdbBucket* first;  // under the first hash; its line is on the way
  };
  // What leads from an address to its buckets. Small, so that loops take a copy that stays in registers.
  struct Index {
    const FdbBucket* buckets;
    uint32_t mask;
    Seed seed;

    // The secret product keeps guests from choosing where their addresses meet; it is not linear, as a CRC alone would
    // be. But steps of equal size stay steps of equal size in it, so that one seed of 150 put the consecutive addresses
    // of a vendor into a few of the buckets. The CRC of its halves scatters them under every seed.
    [[nodiscard]] uint64_t hash(uint64_t key, uint32_t choice) const {
      const auto product = static_cast<unsigned __int128>(key ^ seed.add) * seed.multiply;
      const auto low = static_cast<uint64_t>(product), high = static_cast<uint64_t>(product >> 64);
      return choice == 0 ? _mm_crc32_u64(static_cast<uint32_t>(low), high)
                         : _mm_crc32_u64(static_cast<uint32_t>(high), low);
    }
    [[nodiscard]] uint32_t home(uint16_t vlan, uint64_t key, uint32_t choice) const {
      return (static_cast<uint32_t>(hash(key, choice)) ^ (vlan & kVlanIdMask)) & mask;
    }
    [[nodiscard]] Query ask(uint16_t vlan, uint64_t key) const {
      const Query query{key, &buckets[home(vlan, key, 0)]};
      __builtin_prefetch(query.first);
      return query;
    }
  };
  // An entry as it was read at one moment. Two words, so that it stays in registers.
  struct Entry {
    uint64_t word = 0;             // 0: there is none
    const uint64_t* at = nullptr;  // where it lies in its bucket

    explicit operator bool() const { return word != 0; }
    [[nodiscard]] PortId port() const { return static_cast<PortId>((word & kPortMask) - 1); }  // kNoPort: no entry
  };

  // `buckets`: a power of two, at least kFdbMinBuckets, taken from `memory`. Throws std::bad_alloc.
  FdbTable(uint32_t buckets, Seed seed, std::pmr::memory_resource* memory = std::pmr::get_default_resource());
  ~FdbTable();
  FdbTable(const FdbTable&) = delete;
  FdbTable& operator=(const FdbTable&) = delete;
  static Seed random_seed();

  // ---- any thread ----
  [[nodiscard]] const Index& index() const { return index_; }
  [[nodiscard]] Query ask(uint16_t vlan, Mac mac) const { return index_.ask(vlan, mac << 16); }
  [[nodiscard]] Entry answer(const Query& query, uint16_t vlan) const {
    const Entry entry = find_in(*query.first, query.key);
    return entry ? entry : answer_second(query, vlan);
  }
  // Is the address known at `port`, and of an age that need not be renewed in `epoch`? A moment's truth, as all of this.
  [[nodiscard]] bool is_fresh_at(const Query& query, uint16_t vlan, PortId port, uint8_t epoch) const {
    const FdbBucket* bucket = query.first;
    uint32_t slots = matching<0>(*bucket, query.key | (uint64_t{port} + 1));  // at most one: nothing is there twice
    if (slots == 0) [[unlikely]] {
      const Entry entry = answer_second(query, vlan);
      if (entry.port() != port) return false;
      bucket = bucket_of(entry.at);
      slots = 1U << (2 * slot_of(entry.at));
    }
    const auto code = static_cast<uint8_t>(load_relaxed(bucket->ages) >> (4 * std::countr_zero(slots)));
    return code == epoch || code > kFdbEpochs;
  }
  [[nodiscard]] PortId lookup(uint16_t vlan, Mac mac) const { return answer(ask(vlan, mac), vlan).port(); }
  // True when (vlan, mac) is known at `port`; then its age is `epoch` now, if it ages.
  bool refresh(uint16_t vlan, Mac mac, PortId port, uint8_t epoch);

  // ---- under the Fdb's lock ----
  [[nodiscard]] Place find(uint16_t vlan, Mac mac) const {
    const Entry entry = answer(ask(vlan, mac), vlan);
    return entry ? place_of(entry) : Place{};
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
  [[nodiscard]] uint32_t buckets() const { return index_.mask + 1; }
  [[nodiscard]] size_t bytes() const;

 private:
  static constexpr uint64_t kPortMask = 0x7fff;
  static constexpr uint64_t kChoiceBit = 0x8000;

  [[nodiscard]] uint32_t home(uint16_t vlan, Mac mac, uint32_t choice) const {
    return index_.home(vlan, mac << 16, choice);
  }
  // Where the entry `word` of `bucket` would live under its other hash: XOR with the VLAN cancels out.
  [[nodiscard]] uint32_t other_home(uint32_t bucket, uint64_t word) const {
    const uint64_t key = word & ~uint64_t{0xffff};
    return (bucket ^ static_cast<uint32_t>(index_.hash(key, 0) ^ index_.hash(key, 1))) & index_.mask;
  }
  [[nodiscard]] Entry answer_second(const Query& query, uint16_t vlan) const;
  [[nodiscard]] Place place_of(const Entry& entry) const {
    return {static_cast<uint32_t>(bucket_of(entry.at) - buckets_), slot_of(entry.at)};
  }
  static const FdbBucket* bucket_of(const uint64_t* word) {
    return reinterpret_cast<const FdbBucket*>(reinterpret_cast<uintptr_t>(word) & ~(sizeof(FdbBucket) - 1));
  }
  static uint32_t slot_of(const uint64_t* word) {
    return reinterpret_cast<uintptr_t>(word) % sizeof(FdbBucket) / sizeof(uint64_t);
  }
  // The entry of `key`, a MAC << 16 with the choice bit.
  [[nodiscard]] static Entry find_in(const FdbBucket& bucket, uint64_t key) {
    for (uint32_t slots = matching<15>(bucket, key); slots != 0; slots &= slots - 1) {
      const auto slot = static_cast<uint32_t>(std::countr_zero(slots)) / 2;
      // Acquire pairs with the release in move(): who sees the original gone sees the copy in the second bucket.
      const uint64_t word = load_acquire(bucket.words[slot]);
      // The XOR leaves port + 1 if it matches, and 0 if MAC 0 is compared with an empty slot.
      if ((word ^ key) - 1 < kPortMask) [[likely]]
        return {word, &bucket.words[slot]};
    }
    return {};
  }
  // The slots whose words are `word`, but for their lowest kIgnored bits: bit 2 * slot of each.
  template <int kIgnored>
  static uint32_t matching(const FdbBucket& bucket, uint64_t word) {
#if defined(__SANITIZE_THREAD__)  // which would call the vector load a race
    uint32_t found = 0;
    for (uint32_t slot = 0; slot < kFdbSlots; ++slot) {
      if (load_relaxed(bucket.words[slot]) >> kIgnored == word >> kIgnored) found |= 1U << (2 * slot);
    }
    return found;
#else
    constexpr uint32_t kEachSlot = 0x1555;  // one of two bits, and not those of the ages
    const __m128i wanted = _mm_set1_epi64x(static_cast<long long>(word >> kIgnored));
    const auto* const pairs = reinterpret_cast<const __m128i*>(&bucket);
    const auto compare = [pairs, wanted](uint32_t pair) {
      return _mm_cmpeq_epi64(_mm_srli_epi64(_mm_load_si128(pairs + pair), kIgnored), wanted);
    };
    const __m128i front = _mm_packs_epi32(compare(0), compare(1));
    const __m128i back = _mm_packs_epi32(compare(2), compare(3));
    return static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(front, back))) & kEachSlot;
#endif
  }
  [[nodiscard]] size_t table_bytes() const { return (size_t{index_.mask} + 1) * sizeof(FdbBucket); }
  [[nodiscard]] uint64_t word(Place place) const { return load_relaxed(buckets_[place.bucket].words[place.slot]); }
  [[nodiscard]] Place empty_in(uint32_t bucket) const;
  void move(Place from, Place to);
  void write_code(Place place, uint8_t code);

  std::pmr::memory_resource* memory_;
  FdbBucket* buckets_;
  Index index_;
  std::vector<uint64_t> used_;  // a bit per bucket: not empty. Lock holders only; makes passes over sparse tables cheap
};

}  // namespace sw
