// SPDX-License-Identifier: Apache-2.0
// The interface of every kind of port, as the control side sees it: everything here runs under the datapath's control
// lock. Workers see the port's queues only (net/queue.h).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "base/result.h"
#include "mem/region.h"
#include "net/queue.h"
#include "stats/counters.h"

namespace sw {

class NicSeat;
class Port;

// What a port may ask of the house it lives in. Implemented by the datapath.
class PortHost {
 public:
  virtual ~PortHost() = default;
  virtual EventLoop& loop() = 0;
  // Workers stop using every queue of this port; returns when all have passed (microseconds). Nestable. Only this port
  // is disturbed. Mutate or destroy queues only between pause and resume.
  virtual void pause(Port& port) = 0;
  // Publish the port's queues as rx_queues()/tx_queues() now say.
  virtual void resume(Port& port) = 0;
  // Something a person wants to know: "connected", "ring 3 stopped: avail index jumped". Rate-limited by the caller.
  virtual void event(Port& port, const std::string& kind, const std::string& detail) = 0;
};

// pause for a scope.
class PortPause {
 public:
  PortPause(PortHost& host, Port& port) : host_(host), port_(port) { host_.pause(port_); }
  ~PortPause() { host_.resume(port_); }
  PortPause(const PortPause&) = delete;
  PortPause& operator=(const PortPause&) = delete;

 private:
  PortHost& host_;
  Port& port_;
};

// Facts for `swctl port NAME`, /ports and metrics, as flat text and numbers so that a new port kind needs no new
// plumbing. Python shows them as they are; names are snake_case. Example keys: "socket", "stage", "remedy",
// "negotiated_features".
struct PortStatus {
  bool up = false;     // frames can flow
  std::string stage;   // where set-up stands, one word of a fixed set per kind: "waiting_for_peer", ..., "running"
  std::string detail;  // one sentence: why it is not up and what to do; when up, what is unusual, mostly nothing
  std::map<std::string, std::string> facts;
  std::map<std::string, uint64_t> counters;  // kind-specific totals: "reconnects", "messages", "rings_broken"
  struct Ring {
    std::string name;  // "rx0", "tx0"
    std::map<std::string, std::string> facts;
  };
  std::vector<Ring> rings;
};

class Port {
 public:
  virtual ~Port() = default;
  // Create sockets and devices. On error nothing is left behind and the port is destroyed.
  virtual Result<void> open(PortHost& host) = 0;
  // Undo open. The host has paused the port for good; queues may be destroyed.
  virtual void close() = 0;
  // Queues that workers may use now; null entries are queues that are not ready. Index = queue number. Stable between
  // pause and resume only.
  [[nodiscard]] virtual std::vector<RxQueue*> rx_queues() const = 0;
  [[nodiscard]] virtual std::vector<TxQueue*> tx_queues() const = 0;
  [[nodiscard]] virtual PortStatus status() const = 0;
  // Change the MTU (bytes of L3 payload) that the port announces, if the kind has one.
  virtual Result<void> set_mtu(uint32_t mtu) {
    (void)mtu;
    return {};
  }
  // Where the control plane brings the device, for kinds that cannot open it themselves (port/nic.h).
  virtual NicSeat* nic_seat() { return nullptr; }
};

// What an afxdp port makes of TCP and UDP checksums that it receives (port/afxdp_checksum.h).
enum class RxChecksum : uint8_t {
  kAuto,   // kFix on interfaces that local senders reach without a wire, kTrust on others
  kFix,    // finish those that look unfinished
  kTrust,  // take all as they are
};

// What the configuration says about a port, as far as the port itself needs it. Kinds ignore what is not theirs.
struct PortConfig {
  std::string name;
  std::string type;                 // "vhostuser", "virtiouser", "tap", "afpacket", "verbs", "afxdp"
  std::string socket;               // vhostuser, virtiouser: path
  bool socket_owner_switch = true;  // false: the peer listens, we connect and reconnect for ever
  int socket_mode = -1;             // octal bits for a socket that we create, -1: leave to umask
  int socket_gid = -1;              // group for a socket that we create, -1: leave
  uint32_t queues = 1;              // queue pairs at most
  std::string device;               // tap, afpacket, afxdp: interface name; verbs: RDMA device
  uint32_t mtu = 0;                 // 0: no limit announced
  uint64_t mac = 0;                 // virtiouser, tap: own address, 0: none
  bool packed = true;               // offer / accept packed rings
  bool vhost = false;               // tap: through the kernel's vhost-net
  bool offloads = true;             // offer checksum and segmentation offloads
  bool mergeable = true;            // offer / accept mergeable receive buffers
  bool in_order = true;             // offer / accept VIRTIO_F_IN_ORDER
  uint32_t ring_size = 256;         // virtiouser: entries per ring
  std::string fanout = "hash";      // afpacket with several queues: "hash" (by flow), "qm" (by the NIC's receive queue)

  RxChecksum checksum = RxChecksum::kAuto;  // afxdp

  // Where a port's own memory comes from (afxdp): told to the whole switch, not to a port.
  HugePages hugepages = HugePages::kAuto;
  size_t huge_page_bytes = kHugePage2M;
  int numa_node = -1;
};

// The one kind -> factory table (port/registry.cc). `counters` are the port's own, one per queue and direction, kept by
// the datapath for as long as the port exists: rx_counters[q], tx_counters[q] with q < config.queues.
struct PortCounters {
  std::span<QueueCounters> rx;
  std::span<QueueCounters> tx;
};
Result<std::unique_ptr<Port>> make_port(const PortConfig& config, PortCounters counters);

}  // namespace sw
