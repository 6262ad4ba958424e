// SPDX-License-Identifier: Apache-2.0
#include "worker/capture.h"

#include <utility>

#include "base/clock.h"
#include "l2/verdict.h"

namespace sw {

CaptureRx::CaptureRx(RxQueue& behind, uint16_t number, Captures captures, const PortPolicy& policy,
                     const BridgeView& bridge)
    : RxQueue(behind.counters()),
      behind_(behind),
      number_(number),
      captures_(std::move(captures)),
      policy_(policy),
      bridge_(bridge) {}

bool CaptureRx::peek(Batch& batch, PortWorkerCounters& drops) {
  if (!behind_.peek(batch, drops)) return false;
  const uint64_t now = realtime_ns();
  for (uint32_t i = 0; i < batch.count; ++i) {
    const Frame& frame = batch.frames[i];
    const DropReason drop = verdict(frame.data(), frame.head_len, policy_, bridge_);
    for (const auto& capture : captures_) {
      const CaptureOptions& wanted = capture->options;
      if (!wanted.rx || (wanted.drops_only && drop == kNoDrop)) continue;
      capture->ring.write(frame, wanted.most_bytes, CaptureWay::kRx, number_, drop, now);
    }
  }
  return true;
}

CaptureTx::CaptureTx(TxQueue& behind, uint16_t number, Captures captures)
    : TxQueue(behind), behind_(behind), number_(number), captures_(std::move(captures)) {}

uint32_t CaptureTx::send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) {
  const uint32_t gone = behind_.send(batch, index, drops);
  caps_ = behind_.caps();  // a device may have turned out not to be able to
  const uint64_t now = realtime_ns();
  for (uint32_t i = 0; i < index.size(); ++i) {
    const DropReason drop = i < gone ? kNoDrop : DropReason::kRingFull;
    for (const auto& capture : captures_) {
      const CaptureOptions& wanted = capture->options;
      if (!wanted.tx || (wanted.drops_only && drop == kNoDrop)) continue;
      capture->ring.write(batch.frames[index[i]], wanted.most_bytes, CaptureWay::kTx, number_, drop, now);
    }
  }
  return gone;
}

}  // namespace sw
