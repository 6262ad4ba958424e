// SPDX-License-Identifier: Apache-2.0
// One queue of a tap device: a file descriptor that takes and gives whole frames behind a virtio-net header.
//
// What it pays: one system call per frame in each direction, plus one per poll that finds nothing. The head is read
// straight into the Frame and the body into memory of ours, so the kernel's copy is the only one before the frame's
// own. A poll that finds nothing would tax every other port of the worker, loop after loop; so after one the queue is
// left alone for a moment, twice as long each time, 20 us at most. A worker that has nothing else to do naps longer
// than that.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "base/mmap.h"
#include "net/queue.h"
#include "port/kernel_frame.h"

namespace sw {

struct TapHeader {  // struct virtio_net_hdr_v1: what TUNSETVNETHDRSZ 12 means
  VnetHeader vnet;
  uint16_t num_buffers = 0;
};
static_assert(sizeof(TapHeader) == 12);

class TapRx : public RxQueue {
 public:
  TapRx(int fd, Mapping bodies, QueueCounters& counters);  // fd: not owned, non-blocking
  bool peek(Batch& batch, PortWorkerCounters& drops) override;
  void release() override {}
  bool arm() override;
  void disarm() override {}
  [[nodiscard]] int wake_fd() const override { return fd_; }

  KernelDrops kernel_drops;

  // Room for one byte more than the longest frame shows a frame that is too long. An odd number of cache lines, so that
  // the bodies of a batch do not compete for the same cache sets.
  static constexpr uint32_t kBodyBytes = (kMaxFrameBytes - kHeadBytes) / 64 * 64 + 64;
  static constexpr size_t kBodiesBytes = size_t{kMaxBatch} * kBodyBytes;
  static constexpr uint64_t kMaxPauseUs = 20;
  static_assert(kBodyBytes > kMaxFrameBytes - kHeadBytes && kBodyBytes / 64 % 2 == 1);

 private:
  void found_nothing(uint64_t cost_tsc);

  int fd_;
  Mapping bodies_;
  uint64_t max_pause_tsc_;
  uint64_t pause_tsc_ = 0;  // 0: the last poll found frames
  uint64_t next_poll_tsc_ = 0;
};

class TapTx : public TxQueue {
 public:
  TapTx(int fd, const OffloadCaps& caps, QueueCounters& counters);
  // Every frame is either taken by the kernel or dropped and counted here.
  uint32_t send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) override;

 private:
  ssize_t write_frame(const Frame& frame);

  int fd_;
  std::array<iovec, kMaxIovecs> pieces_;
  std::vector<uint8_t> linear_;  // for frames in more pieces than the kernel takes
};

}  // namespace sw
