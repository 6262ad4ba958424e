// SPDX-License-Identifier: Apache-2.0
// XdpSocket: one AF_XDP socket bound to one queue of an interface, with its four rings and its slice of a UMEM.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "port/afxdp_ring.h"
#include "port/afxdp_umem.h"

namespace sw {

// What the kernel counts for a socket since it was made.
struct XdpKernelCounts {
  uint64_t rx_lost = 0;             // frames that came and could not be handed over
  uint64_t rx_ring_full = 0;        // the part of it for which the receive ring had no place
  uint64_t rx_fill_ring_empty = 0;  // how often there was no chunk to receive into
  uint64_t invalid_descriptors = 0;
};

struct XdpSocketRequest {
  int index = 0;       // of the interface
  std::string device;  // its name, for messages
  uint32_t queue = 0;
  bool zero_copy = false;  // from probe_zero_copy
  bool fragments = false;  // wanted: a frame does not fit one chunk
  bool patient = false;    // wait a little for a queue whose last socket was closed a moment ago
  XdpMemoryOptions memory;
};

class XdpSocket {
 public:
  static Result<std::unique_ptr<XdpSocket>> open(const XdpSocketRequest& request);
  XdpSocket(const XdpSocket&) = delete;
  XdpSocket& operator=(const XdpSocket&) = delete;
  ~XdpSocket() = default;

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] const XdpMode& mode() const { return slice_.umem().mode; }
  [[nodiscard]] const XdpSlice& slice() const { return slice_; }
  [[nodiscard]] Result<XdpKernelCounts> kernel_counts() const;

  XdpRing<xdp_desc> rx;
  XdpRing<uint64_t> fill;
  XdpRing<xdp_desc> tx;
  XdpRing<uint64_t> completion;
  // The kernel had no room for all that is in `tx`: it must be told again. Written by who sends, read by who receives,
  // because that one looks in every loop.
  bool tx_pending = false;

 private:
  XdpSocket() = default;
  Result<void> create(const std::string& device);
  Result<void> make_rings();
  Result<void> register_umem();
  Result<void> join_umem(const XdpSocketRequest& request);
  Result<void> bind_first(const XdpSocketRequest& request);

  UniqueFd fd_;
  XdpSlice slice_;  // after the descriptor: given back before it closes
};

// Can the driver send and receive from our memory without a copy on this queue? `fragments`: it must, in several chunks.
// Errors are those that copying would have as well: no right, queue taken.
Result<bool> probe_zero_copy(const XdpSocketRequest& request);

}  // namespace sw
