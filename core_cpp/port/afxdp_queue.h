// SPDX-License-Identifier: Apache-2.0
// The two directions of an AF_XDP socket.
//
// Theory of operation. Receive: the kernel (or the NIC, with zero-copy) writes frames into chunks that the fill ring
// offers and announces them in the receive ring. A frame's first bytes are loaded into its head, the rest is referenced
// where it is; release puts the chunks back into the fill ring. No system call, but for a driver that ran out of chunks
// and asks to be told of new ones.
//
// Send: each frame is copied once, into free chunks of our slice; completed ones come back by the completion ring. Then
// one sendto per burst, if the kernel asks for it: always when it copies, since it then sends within that call; rarely
// with zero-copy. Frames that the kernel takes and loses in that call are counted as dropped.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "net/queue.h"
#include "port/afxdp_socket.h"
#include "port/kernel_frame.h"

namespace sw {

// What the control side knows of the interface and workers go by.
struct XdpLink {
  uint32_t mtu = 0;      // control: wo, workers: ro
  bool carrier = false;  // control: wo, workers: ro
};

class XdpRx : public RxQueue {
 public:
  // fix_checksums: frames may come from a local sender (afxdp_checksum.h).
  XdpRx(XdpSocket& socket, const XdpLink& link, bool fix_checksums, QueueCounters& counters)
      : RxQueue(counters), socket_(socket), link_(link), fix_checksums_(fix_checksums) {}
  bool peek(Batch& batch, PortWorkerCounters& drops) override;
  void release() override;
  void notify() override;
  bool arm() override;
  void disarm() override {}
  [[nodiscard]] int wake_fd() const override { return socket_.fd(); }

  KernelDrops kernel_drops;

 private:
  [[nodiscard]] uint32_t measure(uint32_t first, uint32_t available, uint32_t& bytes) const;
  void fill(Batch& batch, uint32_t first, uint32_t chunks, uint32_t bytes) const;
  [[nodiscard]] const uint8_t* chunk(const xdp_desc& desc) const { return socket_.slice().base() + desc.addr; }

  XdpSocket& socket_;
  const XdpLink& link_;
  const bool fix_checksums_;
  uint32_t taken_ = 0;  // descriptors borrowed since the last release
};

class XdpTx : public TxQueue {
 public:
  XdpTx(XdpSocket& socket, const XdpLink& link, QueueCounters& counters);
  uint32_t send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) override;

  [[nodiscard]] uint64_t wakeups() const { return wakeups_.get(); }  // system calls made

 private:
  struct Kicked {
    uint32_t lost = 0;     // frames that the kernel took and did not send
    bool refused = false;  // it takes none: the interface is down
  };
  [[nodiscard]] bool is_too_long(const Frame& frame) const;
  void reap();
  [[nodiscard]] bool make_room(uint32_t chunks);
  void put(const Frame& frame, uint32_t chunks);
  void publish();
  Kicked kick();

  XdpSocket& socket_;
  const XdpLink& link_;
  std::vector<uint64_t> free_;  // addresses of free chunks; the first free_count_ are valid
  uint32_t free_count_ = 0;
  uint32_t written_ = 0;  // descriptors not published yet
  bool refused_ = false;  // the last kick was, and nothing was taken since
  Kicked early_;          // kicks while the burst was still being copied
  Counter wakeups_;
};

// Tell the kernel that there is something to send. 0 or an errno.
int xdp_wake_sender(const XdpSocket& socket);

}  // namespace sw
