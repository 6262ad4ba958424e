// SPDX-License-Identifier: Apache-2.0
// Theory of operation. One AF_PACKET socket per queue, bound to the interface, in promiscuous mode; several share the
// traffic by flow (PACKET_FANOUT_HASH), or as the NIC has spread it over its receive queues (PACKET_FANOUT_QM). The port
// is attached while the interface exists and is up: a timer on the control loop looks, and takes the queues out of the
// plan or puts new ones in. The host's own stack still sees what we receive; an interface given to the switch should have
// no address of its own.
#include "port/afpacket.h"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <sys/socket.h>
#include <sys/utsname.h>

#include <cerrno>
#include <cstdlib>
#include <utility>
#include <vector>

#include "port/host_device.h"
#include "port/packet_queue.h"

namespace sw {

namespace {

constexpr uint64_t kTickMs = 250;
constexpr uint32_t kMaxFanout = 256;       // sockets of one group
constexpr int kCopyQueueBytes = 16 << 20;  // for frames that do not fit a slot
constexpr int kCopyThreshold = 1;          // any such frame
constexpr const char* kFewerQueues = " (8 MB for each queue: free memory, or give the port fewer queues)";

struct PacketQueue {
  UniqueFd fd;
  std::unique_ptr<PacketRx> rx;
  std::unique_ptr<PacketTx> tx;
};

class AfPacketPort : public Port {
 public:
  AfPacketPort(const PortConfig& config, PortCounters counters) : config_(config), counters_(counters) {}

  Result<void> open(PortHost& host) override;
  void close() override;
  [[nodiscard]] std::vector<RxQueue*> rx_queues() const override;
  [[nodiscard]] std::vector<TxQueue*> tx_queues() const override;
  [[nodiscard]] PortStatus status() const override;
  Result<void> set_mtu(uint32_t mtu) override;

 private:
  Result<void> attach();
  Result<PacketQueue> make_queue(uint32_t number, int& fanout_group);
  Result<bool> set_options(int fd) const;
  Result<void> bind_socket(int fd, int& fanout_group) const;
  void tick();
  void detach(const std::string& why);
  void collect_drops();

  PortConfig config_;
  PortCounters counters_;
  PortHost* host_ = nullptr;
  NetDevices devices_;
  Ticker ticker_;
  std::vector<PacketQueue> queues_;
  OffloadCaps caps_;
  NetDevice link_;  // as last seen
  bool exists_ = false;
  uint32_t slots_ = 0;
  uint32_t slot_bytes_ = 0;
  uint64_t attached_ = 0;
  uint64_t kernel_dropped_ = 0;
  uint64_t drops_to_report_ = 0;  // of queues that are gone
  std::string problem_;           // why it could not be attached again
};

// Does the kernel take GSO_UDP_L4 in a virtio-net header? There is no way to ask; Linux has it since 6.2.
bool kernel_takes_uso() {
  utsname name{};
  if (::uname(&name) != 0) return false;
  char* rest = nullptr;
  const long major = std::strtol(name.release, &rest, 10);
  const long minor = *rest == '.' ? std::strtol(rest + 1, nullptr, 10) : 0;
  return major > 6 || (major == 6 && minor >= 2);
}

Result<void> AfPacketPort::set_mtu(uint32_t mtu) {
  if (exists_) {
    if (auto fits = check_host_mtu(config_.device, link_, mtu); !fits) return fits;
  }
  config_.mtu = mtu;
  return {};
}

// Result: whether the queue has to leave out the host's own frames by itself.
Result<bool> AfPacketPort::set_options(int fd) const {
  const auto set = [fd](int option, int value) {
    return ::setsockopt(fd, SOL_PACKET, option, &value, sizeof value) == 0;
  };
  const std::string where = " for " + config_.device;
  if (!set(PACKET_VERSION, TPACKET_V2)) return Error{errno, "choose the ring format" + where};
  // Always, whatever `offloads` says: without it a frame whose checksum the sender left open could not be recognised.
  if (!set(PACKET_VNET_HDR, 1)) return Error{errno, "ask for virtio-net headers" + where};
  if (!set(PACKET_COPY_THRESH, kCopyThreshold)) return Error{errno, "ask for whole frames" + where};
  const int bytes = kCopyQueueBytes;
  if (::setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) != 0) {
    ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);  // as much as net.core.rmem_max allows
  }
  return !set(PACKET_IGNORE_OUTGOING, 1);
}

Result<void> AfPacketPort::bind_socket(int fd, int& fanout_group) const {
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = link_.index;
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return Error{errno, "bind to the interface " + config_.device};
  }
  packet_mreq membership{};
  membership.mr_ifindex = link_.index;
  membership.mr_type = PACKET_MR_PROMISC;
  if (::setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &membership, sizeof membership) != 0) {
    return Error{errno, "put " + config_.device + " into promiscuous mode"};
  }
  if (config_.queues == 1) return {};
  // The first socket lets the kernel choose a free group, the others join it.
  const int kind = (config_.fanout == "qm" ? PACKET_FANOUT_QM : PACKET_FANOUT_HASH) |
                   (fanout_group < 0 ? PACKET_FANOUT_FLAG_UNIQUEID : 0);
  const int argument = (fanout_group < 0 ? 0 : fanout_group) | kind << 16;
  if (::setsockopt(fd, SOL_PACKET, PACKET_FANOUT, &argument, sizeof argument) != 0) {
    return Error{errno, "share " + config_.device + " between " + std::to_string(config_.queues) + " queues"};
  }
  if (fanout_group < 0) {
    int chosen = 0;
    socklen_t length = sizeof chosen;
    if (::getsockopt(fd, SOL_PACKET, PACKET_FANOUT, &chosen, &length) != 0) {
      return Error{errno, "read the fan-out group of " + config_.device};
    }
    fanout_group = chosen & 0xffff;
  }
  return {};
}

Result<PacketQueue> AfPacketPort::make_queue(uint32_t number, int& fanout_group) {
  PacketQueue queue;
  // Protocol 0: nothing arrives before bind.
  queue.fd.reset(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!queue.fd) {
    if (errno != EPERM) return Error{errno, "open a packet socket for " + config_.device};
    return Error{0, "open a packet socket for " + config_.device +
                        ": this needs CAP_NET_RAW (run as root, or give the service AmbientCapabilities=CAP_NET_RAW)"};
  }
  const int fd = queue.fd.get();
  auto skip_outgoing = set_options(fd);
  if (!skip_outgoing) return skip_outgoing.error();
  auto ring = make_packet_ring(fd, link_.mtu);
  if (!ring) return Error{ring.error().code, ring.error().what + " for " + config_.device + kFewerQueues};
  slots_ = ring->slots;
  slot_bytes_ = ring->slot_bytes;
  void* const bodies =
      ::mmap(nullptr, PacketRx::kBodiesBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (bodies == MAP_FAILED) return Error{errno, "allocate receive buffers for " + config_.device + kFewerQueues};
  queue.rx = std::make_unique<PacketRx>(fd, std::move(*ring), Mapping(bodies, PacketRx::kBodiesBytes), *skip_outgoing,
                                        counters_.rx[number]);
  queue.tx = std::make_unique<PacketTx>(fd, caps_, link_.mtu, counters_.tx[number]);
  if (auto bound = bind_socket(fd, fanout_group); !bound) return bound.error();
  return queue;
}

Result<void> AfPacketPort::attach() {
  if (config_.offloads) caps_ = {.checksum = true, .tso4 = true, .tso6 = true, .ecn = true, .uso = kernel_takes_uso()};
  std::vector<PacketQueue> queues;
  int fanout_group = -1;
  for (uint32_t q = 0; q < config_.queues; ++q) {
    auto queue = make_queue(q, fanout_group);
    if (!queue) return queue.error();
    queues.push_back(std::move(*queue));
  }
  queues_ = std::move(queues);
  queues_.front().rx->kernel_drops.add(std::exchange(drops_to_report_, 0));
  problem_.clear();
  ++attached_;
  return {};
}

Result<void> AfPacketPort::open(PortHost& host) {
  host_ = &host;
  if (config_.device.empty()) return Error{0, "open an afpacket port: no device is given"};
  if (auto name = check_device_name(config_.device); !name) return name;
  if (config_.queues == 0 || config_.queues > kMaxFanout) {
    return Error{
        0, "share " + config_.device + " between " + std::to_string(config_.queues) + " queues: it can have 1 to 256"};
  }
  if (auto opened = devices_.open(); !opened) return opened;
  auto device = find_host_device(devices_, config_.device);
  if (!device) return device.error();
  link_ = *device;
  exists_ = true;
  if (auto fits = check_host_mtu(config_.device, link_, config_.mtu); !fits) return fits;
  // Sockets are made even if the interface is down, so that missing rights show now and not when it comes up.
  if (link_.up || config_.queues == 1) {
    if (auto attached = attach(); !attached) return attached;
    if (!link_.up) queues_.clear();
  }
  ticker_.start(host.loop(), kTickMs, [this] { tick(); });
  return {};
}

void AfPacketPort::close() {
  ticker_.stop();
  queues_.clear();
}

std::vector<RxQueue*> AfPacketPort::rx_queues() const {
  std::vector<RxQueue*> list;
  for (const PacketQueue& queue : queues_) list.push_back(queue.rx.get());
  return list;
}

std::vector<TxQueue*> AfPacketPort::tx_queues() const {
  std::vector<TxQueue*> list;
  for (const PacketQueue& queue : queues_) list.push_back(queue.tx.get());
  return list;
}

void AfPacketPort::tick() {
  auto device = find_host_device(devices_, config_.device);
  if (!device) {
    exists_ = false;
    problem_ = device.error().message();
    if (!queues_.empty()) detach("device_gone");
    return;
  }
  // Deleted and made again since the last look: the old sockets are bound to nothing.
  if (device->index != link_.index && !queues_.empty()) detach("device_gone");
  exists_ = true;
  const bool new_mtu = device->mtu != link_.mtu;
  link_ = *device;
  if (new_mtu) {
    for (const PacketQueue& queue : queues_) queue.tx->set_mtu(link_.mtu);
  }
  if (!link_.up) {
    problem_.clear();
    if (!queues_.empty()) detach("link_down");
    return;
  }
  if (!queues_.empty()) {
    collect_drops();
    return;
  }
  const std::string before = problem_;
  if (auto attached = attach(); !attached) {
    problem_ = attached.error().message();
    if (problem_ != before) host_->event(*this, "error", problem_);
    return;
  }
  {
    const PortPause publish(*host_, *this);
  }
  host_->event(*this, "link_up", config_.device);
}

void AfPacketPort::detach(const std::string& why) {
  {
    PortPause pause(*host_, *this);
    collect_drops();
    for (const PacketQueue& queue : queues_) drops_to_report_ += queue.rx->kernel_drops.pending();
    queues_.clear();
  }
  host_->event(*this, why, config_.device);
}

// PACKET_STATISTICS counts since it was last read.
void AfPacketPort::collect_drops() {
  for (PacketQueue& queue : queues_) {
    tpacket_stats stats{};
    socklen_t length = sizeof stats;
    if (::getsockopt(queue.fd.get(), SOL_PACKET, PACKET_STATISTICS, &stats, &length) != 0) continue;
    queue.rx->kernel_drops.add(stats.tp_drops);
    kernel_dropped_ += stats.tp_drops;
  }
}

PortStatus AfPacketPort::status() const {
  PortStatus status;
  status.facts["device"] = config_.device;
  status.counters["attached"] = attached_;
  status.counters["kernel_dropped"] = kernel_dropped_;
  if (!describe_host_device(status, config_.device, exists_, link_, !queues_.empty(), problem_)) return status;
  status.facts["offloads"] = caps_.uso ? "checksum, tso, uso" : caps_.checksum ? "checksum, tso" : "none";
  status.facts["queues"] = std::to_string(queues_.size());
  for (size_t q = 0; q < queues_.size(); ++q) {
    status.rings.push_back({"rx" + std::to_string(q),
                            {{"kind", "ring shared with the kernel"},
                             {"slots", std::to_string(slots_)},
                             {"slot_bytes", std::to_string(slot_bytes_)},
                             {"kernel_dropped", std::to_string(queues_[q].rx->kernel_drops.total())}}});
    status.rings.push_back({"tx" + std::to_string(q), {{"kind", "one sendmmsg per burst"}}});
  }
  return status;
}

}  // namespace

Result<std::unique_ptr<Port>> make_afpacket(const PortConfig& config, PortCounters counters) {
  return std::unique_ptr<Port>(std::make_unique<AfPacketPort>(config, counters));
}

}  // namespace sw
