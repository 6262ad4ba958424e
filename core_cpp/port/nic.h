// SPDX-License-Identifier: Apache-2.0
// NicSeat: the part of a port whose device the control plane opens, because the library that can do it is Python's
// (pyverbs). The port owns the memory and moves the frames; the control plane owns the device's objects.
//
// The order is a contract. Up: reserve() tells the memory to register; the control plane makes queues on it; attach()
// takes the queues over, posts the receive buffers and gives the queues to the workers; then the control plane lets
// traffic in and set_link() says whether there is a cable. Down: detach() returns when no worker uses the queues any
// more; only then may the control plane destroy them, and only after that reserve() again or remove the port, which
// unmap the memory.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/result.h"

namespace sw {

// What the control plane must know to make queues.
struct NicMemory {
  uint64_t address = 0;  // to register with the device, all of it
  uint64_t bytes = 0;
  uint64_t page_bytes = 0;
  uint32_t rx_slots = 0;  // receive buffers of each queue: its queue of work and of completions must hold that many
  uint32_t tx_slots = 0;
};

// One object of the device's library by its address, and what the control plane believes it to be. Everything is
// compared with what is found there before any of it is used.
struct NicHandle {
  uint64_t pointer = 0;
  uint32_t number = 0;  // of the queue pair or work queue
  uint32_t type = 0;
  uint32_t state = 0;
};

struct NicHandles {
  uint32_t lkey = 0;                         // of the registered memory
  uint32_t max_inline = 0;                   // bytes that a send request can carry by itself
  bool rx_checksum = false;                  // the device verifies checksums
  bool tx_checksum = false;                  // the device computes checksums: TCP and UDP over IPv4
  bool tx_checksum_v6 = false;               // and over IPv6
  uint32_t max_tso = 0;                      // payload bytes of a TCP segment that the device cuts; 0: it cuts none
  uint32_t max_tso_header = 0;               // bytes of headers in front of it
  bool rx_work_queues = false;               // rx names work queues behind an indirection table, not queue pairs
  std::vector<NicHandle> rx;                 // at most one per queue of the port
  std::vector<NicHandle> tx;                 // queue pairs; one per queue of the port
  std::map<std::string, std::string> facts;  // for the port's status, as they are
};

class NicSeat {
 public:
  virtual ~NicSeat() = default;
  // Memory for frames of `mtu` bytes of L3, which are the longest that will be sent. Nothing may be attached, and what
  // was registered before is gone.
  virtual Result<NicMemory> reserve(uint32_t mtu) = 0;
  // The descriptor on which the device reports events.
  virtual Result<int> attach(const NicHandles& handles) = 0;
  // Also while nothing is attached: `why` is what the port's status shows.
  virtual void detach(const std::string& why) = 0;
  virtual void set_link(bool up, const std::string& why) = 0;
  // Why a worker gave up on the device; empty while it works.
  [[nodiscard]] virtual std::string fault() const = 0;
};

}  // namespace sw
