// SPDX-License-Identifier: Apache-2.0
// VerbsRx: the receive side of one queue of a verbs port.
//
// Theory of operation. Every slot is a receive buffer; `wr_id` of its request is its number. A frame's head is read out
// of the slot once, the body is referenced there until release. Then the slot is free, and free slots are posted again
// in chains of 32 or more, one doorbell a chain: a few buffers less in a ring of a thousand delay nobody. Nothing that
// a completion says is believed before it is compared with what was posted.
#pragma once

#include <array>
#include <vector>

#include "base/result.h"
#include "net/queue.h"
#include "port/verbs_device.h"

namespace sw {

class VerbsRx : public RxQueue {
 public:
  // The device's object that receives: a queue pair, or a work queue behind an indirection table.
  struct Source {
    ibv_qp* qp = nullptr;
    ibv_wq* wq = nullptr;
    [[nodiscard]] ibv_cq* cq() const { return wq != nullptr ? wq->cq : qp->recv_cq; }
  };

  // checksum: the device verifies checksums, so its word that one is right is passed on.
  VerbsRx(Source source, const VerbsSlots& slots, bool checksum, const VerbsCalls& calls, QueueCounters& counters);

  Result<void> post_all();  // control, once, before a worker sees the queue

  bool peek(Batch& batch, PortWorkerCounters& drops) override;
  void release() override;
  bool arm() override;
  void disarm() override {}
  [[nodiscard]] int wake_fd() const override { return wake_fd_; }

  [[nodiscard]] const VerbsFault& fault() const { return fault_; }

  static constexpr uint32_t kPostChain = 32;

 private:
  [[nodiscard]] int poll();
  void take(const ibv_wc& wc, Batch& batch, PortWorkerCounters& drops);
  void fill(const ibv_wc& wc, Batch& batch);
  void post_free();
  [[nodiscard]] int post(ibv_recv_wr* first, ibv_recv_wr** bad) const;

  Source source_;
  ibv_cq* cq_;
  VerbsSlots slots_;
  bool checksum_;
  VerbsCalls calls_;
  int wake_fd_ = -1;

  std::vector<uint8_t> posted_;            // by slot: the device has it
  std::vector<uint32_t> free_;             // slots to post; room for all
  std::array<uint32_t, kMaxBatch> taken_;  // slots borrowed by the last peek
  uint32_t taken_count_ = 0;
  uint32_t stashed_ = 0;  // completions in wc_ that arm() found
  uint64_t frames_ = 0;   // of this peek
  uint64_t bytes_ = 0;
  VerbsFault fault_;
  std::array<ibv_wc, kMaxBatch> wc_;
  std::array<ibv_recv_wr, kMaxBatch> requests_;
  std::array<ibv_sge, kMaxBatch> pieces_;
};

}  // namespace sw
