// SPDX-License-Identifier: Apache-2.0
// DriverIds: which buffers of a driver ring are free, which the device holds and how they are chained. Private memory:
// the device cannot change it, and nothing it writes into the ring is believed before it was compared with this.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <string>
#include <vector>

namespace sw {

// A piece of a descriptor chain, as the device addresses it.
struct DriverPart {
  uint64_t address;
  uint32_t len;
};

class DriverIds {
 public:
  explicit DriverIds(uint16_t size)
      : size_(size),
        mask_(std::bit_ceil(uint32_t{size}) - 1),
        fifo_(size_t{mask_} + 1),
        next_(size),
        chain_(size),
        free_end_(size) {
    for (uint16_t id = 0; id < size; ++id) fifo_[id] = id;
  }

  [[nodiscard]] uint16_t size() const { return size_; }
  [[nodiscard]] uint32_t free_count() const { return free_end_ - free_begin_; }
  // The id that will be used `ahead` places from now; ahead < free_count().
  [[nodiscard]] uint16_t next_free(uint32_t ahead) const { return fifo_[(free_begin_ + ahead) & mask_]; }

  // Move the next `count` free ids into one chain and return its head.
  uint16_t take_chain(uint32_t count) {
    const uint16_t head = next_free(0);
    for (uint32_t i = 0; i + 1 < count; ++i) next_[next_free(i)] = next_free(i + 1);
    chain_[head] = static_cast<uint16_t>(count);
    free_begin_ += count;
    in_flight_ += count;
    return head;
  }
  // Call `use(id)` for the next `count` free ids, which become chains of one.
  template <class Use>
  void take_singles(uint32_t count, Use use) {
    const uint16_t* const fifo =
        fifo_.data();  // locals: what `use` stores must not make the compiler read members again
    uint16_t* const chain = chain_.data();
    const uint32_t mask = mask_;
    const uint32_t begin = free_begin_;
    for (uint32_t i = 0; i < count; ++i) {
      const uint16_t id = fifo[(begin + i) & mask];
      chain[id] = 1;
      use(id);
    }
    free_begin_ = begin + count;
    in_flight_ += count;
  }
  // Call `use(id)` for `count` ids that the device returned and nobody gave back, id_of(0) and so on: chains of one again.
  template <class IdOf, class Use>
  void retake_singles(uint32_t count, IdOf id_of, Use use) {
    uint16_t* const chain = chain_.data();
    for (uint32_t i = 0; i < count; ++i) {
      const uint16_t id = id_of(i);
      chain[id] = 1;
      use(id);
    }
    in_flight_ += count;
  }
  // The device returned `head`: its chain's length, 0 if it does not hold such a chain. The ids stay out of use until
  // give_back. landed() follows with the sum of many.
  uint32_t complete(uint32_t head) {
    if (head >= size_) return 0;
    const uint32_t count = chain_[head];
    chain_[head] = 0;
    return count;
  }
  void landed(uint32_t buffers) { in_flight_ -= buffers; }
  void give_back(uint16_t head, uint32_t count) {
    for (uint16_t id = head; count != 0; id = next_[id], --count) fifo_[free_end_++ & mask_] = id;
  }
  [[nodiscard]] uint32_t in_flight() const { return in_flight_; }

  // The device broke a rule: stop for good. The reason is a literal; any thread may read it.
  void fail(const char* reason) { broken_.store(reason, std::memory_order_relaxed); }
  [[nodiscard]] bool failed() const { return broken_.load(std::memory_order_relaxed) != nullptr; }
  [[nodiscard]] std::string broken() const {
    const char* reason = broken_.load(std::memory_order_relaxed);
    return reason == nullptr ? std::string() : std::string(reason);
  }

 private:
  uint16_t size_;
  uint32_t mask_;                // of positions in fifo_
  std::vector<uint16_t> fifo_;   // free ids; first in, first out, so that a lap of an in-order device repeats itself
  std::vector<uint16_t> next_;   // id -> following id of its chain
  std::vector<uint16_t> chain_;  // head -> length of the chain that the device holds, 0: none
  uint32_t free_begin_ = 0;      // free running, as free_end_
  uint32_t free_end_;
  uint32_t in_flight_ = 0;
  std::atomic<const char*> broken_{nullptr};
};

}  // namespace sw
