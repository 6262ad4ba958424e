// SPDX-License-Identifier: Apache-2.0
// ReserveCommitTx: what a transmit queue of several workers could be instead of a lock around the whole send. Kept to
// be measured against that lock (bench/scaling.py, docs/architecture.md), not used by the switch: split rings, buffers
// of one descriptor that hold any frame, no offloads.
//
// Theory of operation. The lock is held to take the next buffers (reserve) and to publish them (commit); between the
// two everybody copies into buffers of their own. Who is done before the buffers in front of his leaves a note, and
// whoever commits those publishes both, so nobody waits for another's copy.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "base/atomic.h"
#include "base/bytes.h"
#include "base/check.h"
#include "net/queue.h"
#include "virtio/copy.h"
#include "virtio/device_chain.h"
#include "virtio/device_ring.h"
#include "virtio/guest_cursor.h"
#include "virtio/spec.h"

namespace sw::gates {

class ReserveCommitTx final : public TxQueue {
 public:
  // `look_outside`: read the descriptors after the lock was given back. Faster, and of no use to a switch: a buffer
  // that turns out to be unfit cannot be given back to the ring any more.
  ReserveCommitTx(const DeviceRingConfig& config, QueueCounters& counters, bool look_outside)
      : TxQueue(counters),
        memory_(config.memory),
        descriptors_(config.ring.descriptors),
        avail_(reinterpret_cast<VringAvail*>(config.ring.driver_area)),
        used_(reinterpret_cast<VringUsed*>(config.ring.device_area)),
        mask_(static_cast<uint16_t>(config.ring.size - 1)),
        look_outside_(look_outside) {}

  uint32_t send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters&) override {
    std::array<Buffer, kMaxBatch> buffers;
    lock_.lock();
    const uint16_t first = read_;
    if (static_cast<uint16_t>(seen_ - read_) < index.size()) seen_ = load_acquire(avail_->idx);
    const uint32_t count =
        std::min<uint32_t>(static_cast<uint16_t>(seen_ - read_), static_cast<uint32_t>(index.size()));
    read_ = static_cast<uint16_t>(first + count);
    if (!look_outside_) look(buffers.data(), first, count);
    lock_.unlock();
    if (count == 0) return 0;
    if (look_outside_) look(buffers.data(), first, count);

    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; ++i) {
      const Frame& frame = batch.frames[index[i]];
      put(buffers[i], frame, used_->ring[static_cast<uint16_t>(first + i) & mask_]);
      bytes += frame.len;
    }
    lock_.lock();
    counters_->frames.add(count);
    counters_->bytes.add(bytes);
    commit({first, static_cast<uint16_t>(count)});
    lock_.unlock();
    return count;
  }

 private:
  struct Buffer {
    uint8_t* to;
    uint16_t id;
  };
  struct Part {
    uint16_t first, count;
  };
  static constexpr uint32_t kHeaderBytes = 12;

  void look(Buffer* buffers, uint16_t first, uint32_t count) const {
    GuestCursor cursor(memory_.get());
    for (uint32_t i = 0; i < count; ++i) {
      const uint16_t id = load_relaxed(avail_->ring[static_cast<uint16_t>(first + i) & mask_]);
      const RawDescriptor raw = load_descriptor(descriptors_ + size_t{id} * sizeof(VringDesc));
      buffers[i] = {cursor.whole(raw.low, low32(raw.high)), id};
      SW_CHECK(buffers[i].to != nullptr);
      prefetch_read(buffers[i].to);
    }
  }

  static void put(const Buffer& buffer, const Frame& frame, VringUsedElem& used) {
    uint8_t* at = buffer.to;
    constexpr uint32_t kOneBuffer = 1U << 16;  // num_buffers, behind csum_offset
    if (load_unaligned<uint64_t>(at) != 0) store_unaligned(at, uint64_t{0});
    if (load_unaligned<uint32_t>(at + 8) != kOneBuffer) store_unaligned(at + 8, kOneBuffer);
    copy_from_frame(frame, 0, at + kHeaderBytes, frame.len);
    const uint32_t filled = kHeaderBytes + frame.len;
    if (load_relaxed(used.id) != buffer.id) store_relaxed(used.id, buffer.id);
    if (load_relaxed(used.len) != filled) store_relaxed(used.len, filled);
  }

  void commit(Part part) {
    if (part.first != published_) {
      SW_CHECK(waiting_count_ < waiting_.size());
      waiting_[waiting_count_++] = part;
      return;
    }
    published_ = static_cast<uint16_t>(published_ + part.count);
    for (uint32_t i = 0; i < waiting_count_;) {
      if (waiting_[i].first != published_) {
        ++i;
        continue;
      }
      published_ = static_cast<uint16_t>(published_ + waiting_[i].count);
      waiting_[i] = waiting_[--waiting_count_];
      i = 0;
    }
    store_release(used_->idx, published_);
  }

  const std::shared_ptr<const GuestMemory> memory_;
  uint8_t* const descriptors_;
  VringAvail* const avail_;
  VringUsed* const used_;
  const uint16_t mask_;
  const bool look_outside_;
  alignas(64) Spinlock lock_;  // guards what follows
  uint16_t read_ = 0, seen_ = 0, published_ = 0;
  uint32_t waiting_count_ = 0;
  std::array<Part, 64> waiting_;  // copied, behind buffers that are not
};

}  // namespace sw::gates
