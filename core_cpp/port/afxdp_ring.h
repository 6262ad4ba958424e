// SPDX-License-Identifier: Apache-2.0
// XdpRing: one of the four rings of an AF_XDP socket, mapped. The kernel is on the other side; single producer, single
// consumer.
#pragma once

#include <cstdint>
#include <utility>

#include "base/atomic.h"
#include "base/mmap.h"
#include "port/afxdp_abi.h"

namespace sw {

template <class Entry>
class XdpRing {
 public:
  XdpRing() = default;
  XdpRing(Mapping memory, const xdp_ring_offset& offsets, uint32_t entries)
      : memory_(std::move(memory)),
        producer_(at<uint32_t>(offsets.producer)),
        consumer_(at<uint32_t>(offsets.consumer)),
        flags_(at<uint32_t>(offsets.flags)),
        entries_(at<Entry>(offsets.desc)),
        mask_(entries - 1) {}

  // Entries that the kernel has produced and we have not consumed yet, when we are the consumer.
  [[nodiscard]] uint32_t filled() {
    // Pairs with the kernel's release of the producer: the entries are written.
    if (theirs_ == ours_) theirs_ = load_acquire(*producer_);
    return theirs_ - ours_;
  }
  // Look again even if some are left.
  [[nodiscard]] uint32_t filled_now() {
    theirs_ = load_acquire(*producer_);
    return theirs_ - ours_;
  }
  // The entry `ahead` of our position, to read or to write.
  [[nodiscard]] Entry& entry(uint32_t ahead) const { return entries_[(ours_ + ahead) & mask_]; }

  void consume(uint32_t count) {
    ours_ += count;
    // Pairs with the kernel's acquire of the consumer: our reads of the entries are done.
    store_release(*consumer_, ours_);
  }
  void produce(uint32_t count) {
    ours_ += count;
    // Pairs with the kernel's acquire of the producer: the entries are written.
    store_release(*producer_, ours_);
  }
  // When we are the producer: what the kernel has not consumed.
  [[nodiscard]] uint32_t outstanding() const { return ours_ - load_acquire(*consumer_); }
  [[nodiscard]] bool needs_wakeup() const { return (load_relaxed(*flags_) & XDP_RING_NEED_WAKEUP) != 0; }

 private:
  template <class T>
  [[nodiscard]] T* at(uint64_t offset) const {
    return reinterpret_cast<T*>(memory_.data() + offset);
  }

  Mapping memory_;
  uint32_t* producer_ = nullptr;
  uint32_t* consumer_ = nullptr;
  uint32_t* flags_ = nullptr;
  Entry* entries_ = nullptr;
  uint32_t mask_ = 0;
  uint32_t ours_ = 0;    // our index: consumer or producer
  uint32_t theirs_ = 0;  // the kernel's producer as last seen, when we consume
};

}  // namespace sw
