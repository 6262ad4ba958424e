// SPDX-License-Identifier: Apache-2.0
// Egress: the last step before a transmit queue. Checks the destination's MTU and finishes in software what its peer
// does not accept (checksum, segmentation). The common case, no offload in the batch, costs one test per group.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "net/frame.h"
#include "net/queue.h"

namespace sw {

// One per worker: scratch memory for frames that must be finished in software (70 KB).
//
// Theory of operation. A frame that needs work gets a new head in scratch memory; its body stays in the source's memory
// and is referenced from there, whole or in pieces, so that the transmit queue's copy remains the only one. The
// checksum is summed over the body in place: a guest that changes the body meanwhile gets a wrong checksum on its own
// frame. Frames that need nothing travel along in the scratch batch when it is their turn, so order is kept and the
// queue publishes once per 64 frames.
class Egress {
 public:
  Egress();
  ~Egress();

  // Send batch.frames[index[...]] to `queue`, in order; at most kMaxBatch of them. `mtu`: L3 bytes the destination
  // takes, 0 = no limit. Everything that does not leave is counted in drops.tx_drops; `offered` and `segmented` are
  // counted here too. The caller has shaped VLAN tags and holds queue.lock() if the queue is shared.
  void send(Batch& batch, std::span<const uint8_t> index, TxQueue& queue, uint32_t mtu, PortWorkerCounters& drops);

 private:
  void send_finished(const Batch& batch, std::span<const uint8_t> index, TxQueue& queue, PortWorkerCounters& drops);

  struct Scratch;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace sw
