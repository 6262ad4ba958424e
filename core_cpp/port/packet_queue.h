// SPDX-License-Identifier: Apache-2.0
// One AF_PACKET socket as a pair of queues.
//
// Theory of operation. Receive: a TPACKET_V2 ring. The kernel copies each frame into a slot with its virtio-net header
// in front; a poll that finds nothing costs a load, a frame costs no system call. Slots hold the interface's MTU. A
// frame that does not fit (GRO and GSO make up to 64 KB) is kept whole by the kernel as well (PACKET_COPY_THRESH) and
// fetched with one recvmsg. So small frames get thousands of slots in a few megabytes, where 64 KB slots would give a
// hundred; and unlike with TPACKET_V3 no frame waits for a block to fill. The kernel takes the VLAN tag out of the
// frame; it is put back here.
//
// Send: one sendmmsg per burst of up to 64 frames, each with its virtio-net header; the kernel copies the frame in that
// call. A transmit ring would need the same system call, a copy by us, and slots of 64 KB; over a veth, where the kernel
// must copy once more, it was no faster with 64 bytes and mostly slower with 1514 (noisy). Frames go through the
// interface's queueing discipline: PACKET_QDISC_BYPASS would save little on an interface without one, would hide our
// frames from tc and tcpdump, and makes the kernel drop every GSO frame that the hardware cannot cut.
#pragma once

#include <linux/if_packet.h>
#include <sys/socket.h>

#include <array>
#include <vector>

#include "base/mmap.h"
#include "base/result.h"
#include "net/queue.h"
#include "port/kernel_frame.h"

namespace sw {

struct PacketRing {
  Mapping memory;
  uint32_t slot_bytes = 0;
  uint32_t slots = 0;
};

// Make the receive ring of an AF_PACKET socket that is not bound yet, for frames up to `mtu`.
Result<PacketRing> make_packet_ring(int fd, uint32_t mtu);

class PacketRx : public RxQueue {
 public:
  // fd: not owned. skip_outgoing: the kernel could not be told to leave out what the host sends itself.
  PacketRx(int fd, PacketRing ring, Mapping bodies, bool skip_outgoing, QueueCounters& counters);
  bool peek(Batch& batch, PortWorkerCounters& drops) override;
  void release() override;
  bool arm() override;
  void disarm() override {}
  [[nodiscard]] int wake_fd() const override { return fd_; }

  KernelDrops kernel_drops;

  static constexpr uint32_t kBodyBytes = (kMaxFrameBytes + 64) / 64 * 64 + 64;
  static constexpr size_t kBodiesBytes = size_t{kMaxBatch} * kBodyBytes;

 private:
  struct Received {
    const uint8_t* data = nullptr;
    uint32_t bytes = 0;
    VnetHeader vnet;
  };
  [[nodiscard]] tpacket2_hdr& slot(uint32_t number) const {
    return *reinterpret_cast<tpacket2_hdr*>(ring_.memory.data() + size_t{number} * ring_.slot_bytes);
  }
  [[nodiscard]] bool fetch(const tpacket2_hdr& header, uint32_t status, uint8_t* body, Received& out) const;
  static void fill(Batch& batch, const Received& received, const tpacket2_hdr& header, uint32_t status);

  int fd_;
  bool skip_outgoing_;
  PacketRing ring_;
  Mapping bodies_;      // for frames that did not fit their slot
  uint32_t next_ = 0;   // slot to read next
  uint32_t taken_ = 0;  // slots borrowed since
};

class PacketTx : public TxQueue {
 public:
  PacketTx(int fd, const OffloadCaps& caps, uint32_t mtu, QueueCounters& counters);
  // Control side: the interface's MTU has changed.
  void set_mtu(uint32_t mtu) { store_relaxed(mtu_, mtu); }
  // Every frame is either taken by the kernel or dropped and counted here.
  uint32_t send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) override;

 private:
  static constexpr uint32_t kPieces = 2 * kMaxSegments + 2 * kMaxBatch;

  [[nodiscard]] bool pieces_fit(const Frame& frame) const;
  void send_run(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops);
  void add_message(uint32_t number, const Frame& frame);

  int fd_;
  uint32_t mtu_;  // control: wo, worker: ro
  uint32_t pieces_used_ = 0;
  std::array<mmsghdr, kMaxBatch> messages_{};
  std::array<VnetHeader, kMaxBatch> headers_;
  std::array<iovec, kPieces> pieces_;
  std::vector<uint8_t> linear_;  // for a frame in more pieces than the kernel takes
};

}  // namespace sw
