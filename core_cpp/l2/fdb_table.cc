// SPDX-License-Identifier: Apache-2.0
#include "l2/fdb_table.h"

#include <bit>
#include <new>
#include <random>

#include "base/check.h"

namespace sw {

namespace {

constexpr size_t kFdbAlignment = 4096;  // so that small tables take no more pages than they must

constexpr uint8_t code_of(uint64_t ages, uint32_t slot) { return static_cast<uint8_t>(ages >> (8 * slot)); }

constexpr uint64_t with_code(uint64_t ages, uint32_t slot, uint8_t code) {
  return (ages & ~(uint64_t{0xff} << (8 * slot))) | uint64_t{code} << (8 * slot);
}

constexpr uint64_t with_next_version(uint64_t ages) { return ages + (uint64_t{1} << 56); }  // wraps, by design

}  // namespace

FdbTable::FdbTable(uint32_t buckets, Seed seed, std::pmr::memory_resource* memory)
    : memory_(memory), buckets_(nullptr), index_{nullptr, buckets - 1, seed}, used_((buckets + 63) / 64) {
  SW_CHECK(std::has_single_bit(buckets) && buckets >= kFdbMinBuckets);
  const size_t size = size_t{buckets} * sizeof(FdbBucket);
  void* const at = memory_->allocate(size, kFdbAlignment);
  std::memset(at, 0, size);  // touch it all now, so that no worker takes a page fault later
  buckets_ = static_cast<FdbBucket*>(at);
  index_.buckets = buckets_;
}

FdbTable::~FdbTable() { memory_->deallocate(buckets_, table_bytes(), kFdbAlignment); }

FdbTable::Seed FdbTable::random_seed() {
  std::random_device random;
  const auto word = [&random] { return uint64_t{random()} << 32 | random(); };
  return {word(), word() | 1};
}

size_t FdbTable::bytes() const { return table_bytes() + used_.size() * sizeof(uint64_t); }

FdbTable::Entry FdbTable::answer_second(const Query& query, uint16_t vlan) const {
  // The words of the first bucket were read before those of the second one. x86 keeps loads in order.
  std::atomic_signal_fence(std::memory_order_acquire);
  return find_in(buckets_[home(vlan, query.key >> 16, 1)], query.key | kChoiceBit);
}

bool FdbTable::refresh(uint16_t vlan, Mac mac, PortId port, uint8_t epoch) {
  const Entry entry = answer(ask(vlan, mac), vlan);
  if (entry.port() != port) return false;
  const Place place = place_of(entry);
  std::atomic_ref<uint64_t> ages(buckets_[place.bucket].ages);
  for (;;) {
    // The version is read before the word is confirmed, so that a word which is replaced later fails the swap below.
    // Acquire pairs with the release of write_code().
    uint64_t seen = ages.load(std::memory_order_acquire);
    if (load_acquire(*entry.at) != entry.word) return false;
    const uint8_t code = code_of(seen, place.slot);
    if (code == epoch || code > kFdbEpochs) return true;
    if (code == kFdbEmpty) return false;  // going away this moment
    if (ages.compare_exchange_weak(seen, with_code(seen, place.slot, epoch), std::memory_order_relaxed)) return true;
  }
}

FdbTable::Place FdbTable::empty_in(uint32_t bucket) const {
  const uint64_t ages = load_relaxed(buckets_[bucket].ages);
  for (uint32_t slot = 0; slot < kFdbSlots; ++slot) {
    if (code_of(ages, slot) == kFdbEmpty) return {bucket, slot};
  }
  return {};
}

FdbTable::Place FdbTable::make_room(uint16_t vlan, Mac mac, bool displace) {
  const std::array<uint32_t, 2> candidates = homes(vlan, mac);
  for (const uint32_t bucket : candidates) {
    if (const Place place = empty_in(bucket)) return place;
  }
  if (!displace) return {};
  for (const uint32_t bucket : candidates) {  // one step: somebody here can go to his other bucket
    for (uint32_t slot = 0; slot < kFdbSlots; ++slot) {
      const Place from{bucket, slot};
      if (const Place to = empty_in(other_home(bucket, word(from)))) {
        move(from, to);
        return from;
      }
    }
  }
  for (const uint32_t bucket : candidates) {  // two steps: somebody there can make room for somebody here
    for (uint32_t slot = 0; slot < kFdbSlots; ++slot) {
      const Place from{bucket, slot};
      const uint32_t next = other_home(bucket, word(from));
      if (next == candidates[0] || next == candidates[1]) continue;
      for (uint32_t next_slot = 0; next_slot < kFdbSlots; ++next_slot) {
        const Place via{next, next_slot};
        if (const Place to = empty_in(other_home(next, word(via)))) {
          move(via, to);
          move(from, via);
          return from;
        }
      }
    }
  }
  return {};
}

void FdbTable::put(Place place, uint16_t vlan, Mac mac, PortId port, uint8_t code) {
  const bool second = place.bucket != home(vlan, mac, 0);
  write_code(place, code);
  // Release pairs with the acquire in refresh(): who sees the word sees the version that came with it.
  store_release(buckets_[place.bucket].words[place.slot], mac << 16 | (second ? kChoiceBit : 0) | (uint64_t{port} + 1));
  used_[place.bucket / 64] |= uint64_t{1} << (place.bucket % 64);
}

void FdbTable::move(Place from, Place to) {
  const uint64_t entry = word(from);
  write_code(to, code_at(from));
  store_release(buckets_[to.bucket].words[to.slot], entry ^ kChoiceBit);
  used_[to.bucket / 64] |= uint64_t{1} << (to.bucket % 64);
  clear(from);
}

void FdbTable::set_port(Place place, PortId port) {
  store_release(buckets_[place.bucket].words[place.slot], (word(place) & ~kPortMask) | (uint64_t{port} + 1));
}

void FdbTable::set_code(Place place, uint8_t code) { write_code(place, code); }

void FdbTable::clear(Place place) {
  FdbBucket& bucket = buckets_[place.bucket];
  store_release(bucket.words[place.slot], 0);
  write_code(place, kFdbEmpty);
  constexpr uint64_t kAllCodes = (uint64_t{1} << 56) - 1;
  if ((load_relaxed(bucket.ages) & kAllCodes) == 0) used_[place.bucket / 64] &= ~(uint64_t{1} << (place.bucket % 64));
}

void FdbTable::write_code(Place place, uint8_t code) {
  std::atomic_ref<uint64_t> ages(buckets_[place.bucket].ages);
  uint64_t seen = ages.load(std::memory_order_relaxed);
  // A loop because workers refresh neighbours meanwhile. Release pairs with the acquire in refresh().
  while (!ages.compare_exchange_weak(seen, with_next_version(with_code(seen, place.slot, code)),
                                     std::memory_order_release, std::memory_order_relaxed)) {
  }
}

uint16_t FdbTable::vlan_at(Place place) const {
  const uint64_t entry = word(place);
  const uint32_t choice = (entry & kChoiceBit) != 0 ? 1 : 0;
  return static_cast<uint16_t>((home(0, entry >> 16, choice) ^ place.bucket) & kVlanIdMask);
}

uint32_t FdbTable::next_used(uint32_t from) const {
  if (from >= buckets()) return buckets();
  uint32_t index = from / 64;
  uint64_t bits = used_[index] & (~uint64_t{0} << (from % 64));
  while (bits == 0) {
    if (++index == used_.size()) return buckets();
    bits = used_[index];
  }
  return index * 64 + static_cast<uint32_t>(std::countr_zero(bits));
}

}  // namespace sw
