// SPDX-License-Identifier: Apache-2.0
// VerbsTx: the transmit side of one queue of a verbs port.
//
// Theory of operation. Requests are numbered; request n uses slot n modulo the number of slots. A frame is copied into
// its slot and the whole burst is posted as one chain, one doorbell. Only every 32nd request asks for a completion:
// the queue works in order, so that one stands for all before it. A small frame whose bytes all lie in the head is
// carried by the request itself and needs no copy; frames below the Ethernet minimum are padded with zeros.
//
// Checksums that the sender left open are computed by the device where it can (TCP and UDP over IPv4, not fragmented),
// and otherwise in the slot. Nothing is sent from the guest's memory itself: its descriptors go back when the pass
// ends, before a device is done reading.
#pragma once

#include <array>

#include "net/queue.h"
#include "port/verbs_device.h"

namespace sw {

class VerbsTx : public TxQueue {
 public:
  struct Options {
    uint32_t mtu = 0;  // of the device: bytes of L3
    uint32_t max_inline = 0;
    bool checksum = false;  // the device computes checksums
    bool offloads = true;   // take frames with open checksums at all
  };
  VerbsTx(ibv_qp* qp, const VerbsSlots& slots, Options options, QueueCounters& counters);

  // Every frame is either taken by the device or dropped and counted here.
  uint32_t send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) override;

  [[nodiscard]] const VerbsFault& fault() const { return fault_; }

  static constexpr uint32_t kSignalEvery = 32;
  static constexpr uint32_t kMinFrameBytes = 60;  // without FCS
  static constexpr uint32_t kMostRefused = 64;    // requests in a row, then the device is taken for broken

 private:
  void reap();
  [[nodiscard]] uint32_t in_flight() const { return next_ - oldest_; }
  bool add(const Frame& frame, uint32_t request, PortWorkerCounters& drops);
  void post(uint32_t count, PortWorkerCounters& drops);

  ibv_qp* qp_;
  VerbsSlots slots_;
  Options options_;
  uint32_t next_ = 0;     // number of the next request
  uint32_t oldest_ = 0;   // number of the oldest one whose slot the device may still read
  uint32_t refused_ = 0;  // requests since the device last took one
  VerbsFault fault_;
  std::array<ibv_wc, 32> wc_;
  std::array<uint32_t, kMaxBatch> frame_bytes_;  // by request of this burst
  std::array<ibv_send_wr, kMaxBatch> requests_;
  std::array<ibv_sge, kMaxBatch> pieces_;
};

}  // namespace sw
