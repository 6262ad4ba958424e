// SPDX-License-Identifier: Apache-2.0
#include "worker/capture.h"

#include <utility>

#include "base/clock.h"
#include "l2/verdict.h"

namespace sw {

namespace {

void show_to(const Captures& captures, const Frame& frame, CaptureWay way, uint16_t queue, DropReason drop,
             uint64_t now) {
  for (const auto& capture : captures) {
    const CaptureOptions& wanted = capture->options;
    if (!(way == CaptureWay::kRx ? wanted.rx : wanted.tx) || (wanted.drops_only && drop == kNoDrop)) continue;
    capture->ring.write(frame, wanted.most_bytes, way, queue, drop, now);
  }
}

}  // namespace

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
    show_to(captures_, frame, CaptureWay::kRx, number_, verdict(frame.data(), frame.head_len, policy_, bridge_), now);
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
    show_to(captures_, batch.frames[index[i]], CaptureWay::kTx, number_, drop, now);
  }
  return gone;
}

}  // namespace sw
