// SPDX-License-Identifier: Apache-2.0
// Capture: what a person wants to see of a port's frames, and the queues that a plan puts in front of the port's own while
// somebody looks. Without a capture nothing of this is on a frame's way.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "l2/policy.h"
#include "net/capture_ring.h"
#include "net/queue.h"

namespace sw {

struct CaptureOptions {
  bool rx = true;                        // what enters the switch, as the peer gave it
  bool tx = true;                        // what leaves it, as the peer gets it
  bool drops_only = false;               // what the rules refuse, and what found no room in the peer's ring
  uint32_t most_bytes = kMaxFrameBytes;  // of each frame
};

struct Capture {
  static constexpr size_t kRingBytes = size_t{4} << 20;
  explicit Capture(const CaptureOptions& wanted) : options(wanted), ring(kRingBytes) {}

  const CaptureOptions options;
  CaptureRing ring;
};
using Captures = std::vector<std::shared_ptr<Capture>>;

// Both belong to one plan, as policy and bridge do; the queue behind them outlives it.
class CaptureRx final : public RxQueue {
 public:
  CaptureRx(RxQueue& behind, uint16_t number, Captures captures, const PortPolicy& policy, const BridgeView& bridge);

  bool peek(Batch& batch, PortWorkerCounters& drops) override;
  void release() override { behind_.release(); }
  void notify() override { behind_.notify(); }
  bool arm() override { return behind_.arm(); }
  void disarm() override { behind_.disarm(); }
  [[nodiscard]] int wake_fd() const override { return behind_.wake_fd(); }

 private:
  RxQueue& behind_;
  const uint16_t number_;
  const Captures captures_;
  const PortPolicy& policy_;
  const BridgeView& bridge_;
};

// Has the lock of the queue behind it: for a moment some workers send through the one and some through the other.
class CaptureTx final : public TxQueue {
 public:
  CaptureTx(TxQueue& behind, uint16_t number, Captures captures);

  uint32_t send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) override;
  void notify() override { behind_.notify(); }

 private:
  TxQueue& behind_;
  const uint16_t number_;
  const Captures captures_;
};

}  // namespace sw
