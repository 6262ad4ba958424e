// SPDX-License-Identifier: Apache-2.0
// Egress: the last step before a transmit queue. Checks the destination's MTU and finishes in software what its peer does
// not accept (checksum, segmentation). The common case, no offload in the batch, costs one test per group.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "net/frame.h"
#include "net/queue.h"

namespace sw {

// One per worker: scratch memory for frames that must be finished in software (256 KB).
class Egress {
 public:
  Egress();
  ~Egress();

  // Send batch.frames[index[...]] to `queue`, in order. `mtu`: L3 bytes the destination takes, 0 = no limit. Everything
  // that does not leave is counted in drops.tx_drops; `offered` and `segmented` are counted here too. The caller has shaped VLAN tags
  // and holds queue.lock() if the queue is shared.
  void send(Batch& batch, std::span<const uint8_t> index, TxQueue& queue, uint32_t mtu, PortWorkerCounters& drops);

 private:
  struct Scratch;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace sw
