// SPDX-License-Identifier: Apache-2.0
// RxQueue and TxQueue: one direction of one ring of a port, as a worker sees it. Direction is the switch's: rx enters
// the switch, tx leaves it. Called by one worker at a time; no allocation, lock, log or exception; syscalls only where
// noted. Queues have cache lines of their own: what one worker writes into its queue never takes a line from another.
#pragma once

#include <cstdint>
#include <span>

#include "base/atomic.h"
#include "net/frame.h"
#include "stats/counters.h"

namespace sw {

class alignas(64) RxQueue {
 public:
  explicit RxQueue(QueueCounters& counters) : counters_(&counters) {}
  virtual ~RxQueue() = default;
  RxQueue(const RxQueue&) = delete;
  RxQueue& operator=(const RxQueue&) = delete;

  // Borrow up to kMaxBatch frames into the cleared `batch`. Every frame taken from the peer is counted in counters();
  // one that cannot be used is also counted in drops.rx_drops and does not appear in the batch. True when anything was
  // taken, even if all of it was dropped: then release must follow before the next peek.
  virtual bool peek(Batch& batch, PortWorkerCounters& drops) = 0;
  // Give back everything the last peek took and publish it once. notify() follows later.
  virtual void release() = 0;

  // Tell the peer what was published if it asked to be told. The worker calls it at the end of its loop, after one
  // fence for all queues. At most one eventfd write.
  virtual void notify() {}

  // Sleeping: arm() asks the peer for notifications on wake_fd() and returns true if work arrived meanwhile (then do
  // not sleep). disarm() asks it to stop. wake_fd() is readable when there is work, -1 if it cannot wake anybody.
  virtual bool arm() = 0;
  virtual void disarm() = 0;
  [[nodiscard]] virtual int wake_fd() const = 0;

  [[nodiscard]] QueueCounters& counters() const { return *counters_; }

 protected:
  QueueCounters* counters_;  // owned by the port, outlives the queue
};

// What the peer behind a transmit queue accepts unfinished. Anything else is finished in software before send().
struct OffloadCaps {
  bool checksum = false;  // NEEDS_CSUM frames
  bool tso4 = false;      // GSO_TCPV4
  bool tso6 = false;      // GSO_TCPV6
  bool ecn = false;       // GSO_ECN beside tso4/tso6
  bool uso = false;       // GSO_UDP_L4
};

class alignas(64) TxQueue {
 public:
  explicit TxQueue(QueueCounters& counters) : counters_(&counters) {}
  virtual ~TxQueue() = default;
  TxQueue(const TxQueue&) = delete;
  TxQueue& operator=(const TxQueue&) = delete;

  // Copy the frames batch.frames[index[0..n)], in this order, to the peer and publish once. Returns how many left, or
  // were dropped and counted in drops.tx_drops, from the front; the caller owns and counts the rest (kRingFull). Frames
  // that left are counted in counters().
  virtual uint32_t send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) = 0;
  virtual void notify() {}  // as RxQueue::notify

  [[nodiscard]] const OffloadCaps& caps() const { return caps_; }
  [[nodiscard]] QueueCounters& counters() const { return *counters_; }
  Spinlock& lock() { return *lock_; }  // taken by workers only when the Plan gives this queue to several

 protected:
  // To stand in front of `behind`: with its lock, counters and present caps.
  explicit TxQueue(TxQueue& behind) : caps_(behind.caps_), counters_(behind.counters_), lock_(behind.lock_) {}

  OffloadCaps caps_;
  QueueCounters* counters_;

 private:
  Spinlock own_lock_;
  Spinlock* const lock_ = &own_lock_;
};

}  // namespace sw
