// SPDX-License-Identifier: Apache-2.0
// Counters with one writer. The writer adds with plain relaxed stores (no locked instruction); any thread may read.
// Each writer's counters have their own cache lines.
#pragma once

#include <array>
#include <cstdint>

#include "base/atomic.h"
#include "stats/drop_reason.h"

namespace sw {

class Counter {
 public:
  void add(uint64_t amount) { store_relaxed(value_, value_ + amount); }  // the one writer only
  [[nodiscard]] uint64_t get() const { return load_relaxed(value_); }    // anybody

 private:
  uint64_t value_ = 0;
};

// One direction of one queue. Written by whoever holds the queue at the time (one worker, or under the queue's lock);
// it belongs to the port, not to the ring, so it survives a guest's reset and never falls.
struct alignas(64) QueueCounters {
  Counter frames;
  Counter bytes;          // of Ethernet frames, without virtio-net header and FCS
  Counter notifications;  // eventfd writes to the peer
};

// What one worker saw of one port. Conservation, for every port, summed over workers (docs/architecture, "Counting"):
//   received frames + replicated = forwarded + sum(rx_drops)
//   offered + segmented          = transmitted frames + sum(tx_drops)
// and over the whole switch: sum(forwarded) = sum(offered).
struct alignas(64) PortWorkerCounters {
  std::array<Counter, kDropReasons> rx_drops;  // frames that entered at this port and went nowhere
  std::array<Counter, kDropReasons> tx_drops;  // frames meant for this port and not delivered
  Counter replicated;  // extra copies made of frames that entered here: flooding to k ports adds k - 1
  Counter forwarded;   // copies of frames that entered here, handed to some destination port
  Counter offered;     // frames handed to this port for transmission
  Counter segmented;   // extra frames made by software segmentation for this port: a frame cut in k adds k - 1

  void drop_rx(DropReason reason, uint64_t frames = 1) { rx_drops[static_cast<size_t>(reason)].add(frames); }
  void drop_tx(DropReason reason, uint64_t frames = 1) { tx_drops[static_cast<size_t>(reason)].add(frames); }
};

}  // namespace sw
