// SPDX-License-Identifier: Apache-2.0
// VerbsTx: the transmit side of one queue of a verbs port.
//
// Theory of operation. Slots are numbered for ever; number n is slot n modulo how many there are. A frame is copied into
// its slot and the whole burst is posted as one chain, one doorbell. Only the request that passes a multiple of 32 slots
// asks for a completion: the queue works in order, so that one stands for all before it. A small frame whose bytes all
// lie in the head is carried by the request itself and needs no copy; frames below the Ethernet minimum are padded with
// zeros.
//
// Checksums that the sender left open are computed by the device where it can (TCP and UDP over IPv4, not fragmented; over
// IPv6 without extension headers if it is known to), and otherwise in the slot. Large TCP segments are cut by the device where it can: its headers travel in the request,
// its payload lies in as many neighbouring slots as it needs. Others, and those that the device would not understand,
// are cut here, each piece into a slot of its own. A device that has segmentation and a library that refuses the request
// for it (mlx4) is asked once. Nothing is sent from the guest's memory itself: its descriptors go back when the pass
// ends, before a device is done reading.
#pragma once

#include <array>

#include "net/queue.h"
#include "net/segment.h"
#include "port/verbs_device.h"

namespace sw {

class VerbsTx : public TxQueue {
 public:
  struct Options {
    uint32_t mtu = 0;  // of the device: bytes of L3
    uint32_t max_inline = 0;
    bool checksum = false;        // the device computes checksums: TCP and UDP over IPv4
    bool checksum_v6 = false;     // and over IPv6
    bool offloads = true;         // take frames with open checksums at all
    uint32_t max_tso = 0;         // payload of a large segment that the device cuts; 0: it cuts none
    uint32_t max_tso_header = 0;  // headers in front of it
  };
  VerbsTx(ibv_qp* qp, const VerbsSlots& slots, Options options, QueueCounters& counters);

  // Every frame is either taken by the device or dropped and counted here.
  uint32_t send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) override;

  [[nodiscard]] const VerbsFault& fault() const { return fault_; }
  [[nodiscard]] bool device_cuts() const { return load_relaxed(device_cuts_); }  // anybody
  [[nodiscard]] uint64_t tso_frames() const { return tso_frames_.get(); }

  static constexpr uint32_t kSignalEvery = 32;
  static constexpr uint32_t kMinFrameBytes = 60;       // without FCS
  static constexpr uint32_t kMostRefused = 64;         // requests in a row, then the device is taken for broken
  static constexpr uint32_t kMaxTsoHeaderBytes = 144;  // Ethernet, one tag, IPv4 and TCP with all options

 private:
  struct Request {
    uint32_t end = 0;    // number behind its last slot
    uint32_t bytes = 0;  // of the frame
  };

  void reap();
  [[nodiscard]] uint32_t in_flight() const { return next_ - oldest_; }  // slots
  uint8_t* reserve(uint32_t slots, PortWorkerCounters& drops);
  ibv_send_wr& add_request(uint32_t slots, const uint8_t* data, uint32_t length, uint32_t frame_bytes);
  void add(const Frame& frame, PortWorkerCounters& drops);
  void add_large(const Frame& frame, PortWorkerCounters& drops);
  [[nodiscard]] bool device_can_cut(const Frame& frame, const Segmenter& segmenter, uint32_t slots) const;
  bool leave_to_device(const Frame& frame, const Segmenter& segmenter, PortWorkerCounters& drops);
  void cut(const Frame& frame, const Segmenter& segmenter, PortWorkerCounters& drops);
  void post(PortWorkerCounters& drops);
  bool refuse(uint32_t request, int error, PortWorkerCounters& drops);

  ibv_qp* qp_;
  VerbsSlots slots_;
  Options options_;
  uint32_t next_ = 0;     // number of the next slot
  uint32_t oldest_ = 0;   // number of the oldest one that the device may still read
  uint32_t refused_ = 0;  // requests since the device last took one
  bool device_cuts_;      // worker: wo, others: ro
  Counter tso_frames_;    // large segments that the device took to cut
  VerbsFault fault_;
  std::array<ibv_wc, 32> wc_;
  // The burst: requests that are written and not posted.
  uint32_t count_ = 0;
  uint32_t end_ = 0;  // number behind the last slot of the last one
  std::array<Request, kMaxBatch> burst_;
  std::array<ibv_send_wr, kMaxBatch> requests_;
  std::array<ibv_sge, kMaxBatch> pieces_;
  std::array<std::array<uint8_t, kMaxTsoHeaderBytes>, kMaxBatch> headers_;
};

}  // namespace sw
