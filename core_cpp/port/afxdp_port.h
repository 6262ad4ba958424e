// SPDX-License-Identifier: Apache-2.0
// AfXdpPort: the port itself (afxdp.cc) and what it says of itself (afxdp_status.cc).
//
// Theory of operation. While the interface exists and is up the port is attached: an XDP program on the interface
// (afxdp_program.h), and for each of the first `queues` receive queues a socket (afxdp_socket.h) with its two directions
// (afxdp_queue.h). A timer on the control loop looks at the interface, takes the queues out of the plan or puts new ones
// in, and collects what the kernel could not hand over. Frames of the interface's other queues stay with the host.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "port/afxdp_device.h"
#include "port/afxdp_program.h"
#include "port/afxdp_queue.h"
#include "port/net_device.h"
#include "port/port.h"

namespace sw {

class AfXdpPort : public Port {
 public:
  AfXdpPort(const PortConfig& config, PortCounters counters) : config_(config), counters_(counters) {}

  Result<void> open(PortHost& host) override;
  void close() override;
  Result<void> set_mtu(uint32_t mtu) override;
  [[nodiscard]] std::vector<RxQueue*> rx_queues() const override;
  [[nodiscard]] std::vector<TxQueue*> tx_queues() const override;
  [[nodiscard]] PortStatus status() const override;

 private:
  struct Queue {
    std::unique_ptr<XdpSocket> socket;  // before its users: destroyed after them
    std::unique_ptr<XdpRx> rx;
    std::unique_ptr<XdpTx> tx;  // null: the interface has no transmit queue of this number
    XdpKernelCounts counts;     // as last read
  };
  // All that exists while the interface is in use.
  struct Attachment {
    UniqueFd promiscuous;  // a packet socket that keeps the interface so, and nothing else
    std::vector<Queue> queues;
    XdpProgram program;  // after the sockets: off the interface before they close
    XdpDevice device;
    bool fixes_checksums = false;
  };

  Result<void> attach(bool patient);
  [[nodiscard]] Result<UniqueFd> make_promiscuous() const;
  [[nodiscard]] XdpSocketRequest socket_request(uint32_t number, bool patient) const;
  [[nodiscard]] Result<Queue> make_queue(const XdpSocketRequest& request, const Attachment& attachment) const;
  [[nodiscard]] Result<void> check_queue_count(const XdpDevice& device) const;
  [[nodiscard]] Error too_large() const;
  [[nodiscard]] bool needs_fragments() const;
  void tick();
  void attach_again();
  void follow_link();
  void detach(const std::string& why);
  void collect_drops();
  void describe(PortStatus& status) const;

  PortConfig config_;
  PortCounters counters_;
  PortHost* host_ = nullptr;
  NetDevices devices_;
  Ticker ticker_;
  std::unique_ptr<Attachment> attachment_;
  NetDevice link_;      // as last seen
  XdpLink for_queues_;  // the part of it that workers read
  bool exists_ = false;
  uint64_t attached_ = 0;
  uint64_t kernel_dropped_ = 0;
  uint64_t invalid_descriptors_ = 0;
  std::string problem_;  // why it could not be attached again
  // Attaching may reset the queues of a NIC, so a port that cannot be attached tries ever more seldom.
  uint32_t wait_ticks_ = 0;
  uint32_t ticks_left_ = 0;
};

}  // namespace sw
