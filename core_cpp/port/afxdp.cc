// SPDX-License-Identifier: Apache-2.0
#include "port/afxdp.h"

#include <linux/if_packet.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "port/afxdp_port.h"
#include "port/host_device.h"

namespace sw {

namespace {

constexpr uint64_t kTickMs = 250;
constexpr uint32_t kMaxWaitTicks = 32;  // 8 s

}  // namespace

Result<void> AfXdpPort::check_queue_count(const XdpDevice& device) const {
  if (config_.queues <= device.rx_queues) return {};
  return Error{0, "serve " + std::to_string(config_.queues) + " queues of " + config_.device + ": it has " +
                      std::to_string(device.rx_queues) + " (see: ethtool -l " + config_.device +
                      "); lower `queues`, or give it more with: ethtool -L " + config_.device + " combined " +
                      std::to_string(config_.queues)};
}

bool AfXdpPort::needs_fragments() const { return link_.mtu + kEthHeaderBytes + kVlanTagBytes > kXdpReceiveBytes; }

Error AfXdpPort::too_large() const {
  return {0, "receive frames of MTU " + std::to_string(link_.mtu) + " from " + config_.device +
                 ": they do not fit one buffer, and several need Linux 6.6 and a driver that can; use: ip link set " +
                 config_.device + " mtu " + std::to_string(kXdpReceiveBytes - kEthHeaderBytes - kVlanTagBytes)};
}

// A switch takes frames for any address. The membership ends with the socket, also when we die.
Result<UniqueFd> AfXdpPort::make_promiscuous() const {
  UniqueFd fd(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
  packet_mreq membership{};
  membership.mr_ifindex = link_.index;
  membership.mr_type = PACKET_MR_PROMISC;
  if (!fd || ::setsockopt(fd.get(), SOL_PACKET, PACKET_ADD_MEMBERSHIP, &membership, sizeof membership) != 0) {
    return Error{errno, "put " + config_.device + " into promiscuous mode (this needs CAP_NET_RAW)"};
  }
  return fd;
}

XdpSocketRequest AfXdpPort::socket_request(uint32_t number, bool patient) const {
  return {.index = link_.index,
          .device = config_.device,
          .queue = number,
          .fragments = needs_fragments(),
          .patient = patient,
          .memory = {
              .huge = config_.hugepages, .huge_page_bytes = config_.huge_page_bytes, .numa_node = config_.numa_node}};
}

Result<AfXdpPort::Queue> AfXdpPort::make_queue(const XdpSocketRequest& request, const Attachment& attachment) const {
  const uint32_t number = request.queue;
  auto socket = XdpSocket::open(request);
  if (!socket) return socket.error();
  Queue queue;
  queue.socket = std::move(*socket);
  if (needs_fragments() && !queue.socket->mode().fragments) return too_large();
  queue.rx = std::make_unique<XdpRx>(*queue.socket, for_queues_, attachment.fixes_checksums, counters_.rx[number]);
  if (number < attachment.device.tx_queues) {
    queue.tx = std::make_unique<XdpTx>(*queue.socket, for_queues_, counters_.tx[number]);
  }
  return queue;
}

Result<void> AfXdpPort::attach(bool patient) {
  auto made = std::make_unique<Attachment>();
  made->device = read_xdp_device(devices_, config_.device);
  if (auto counted = check_queue_count(made->device); !counted) return counted;
  made->fixes_checksums = config_.checksum == RxChecksum::kFix ||
                          (config_.checksum == RxChecksum::kAuto && has_local_senders(link_, made->device));
  // Rights are asked for one after the other, the most common lack first.
  auto zero_copy = probe_zero_copy(socket_request(0, patient));
  if (!zero_copy) return zero_copy.error();
  auto program = XdpProgram::attach(link_.index, config_.device, made->device.rx_queues);
  if (!program) return program.error();
  made->program = std::move(*program);
  if (needs_fragments() && !made->program.takes_fragments()) return too_large();
  auto promiscuous = make_promiscuous();
  if (!promiscuous) return promiscuous.error();
  made->promiscuous = std::move(*promiscuous);
  for (uint32_t number = 0; number < config_.queues; ++number) {
    XdpSocketRequest request = socket_request(number, patient || *zero_copy);  // the probe had queue 0 a moment ago
    request.zero_copy = *zero_copy && made->program.in_driver();
    auto queue = make_queue(request, *made);
    if (!queue) return queue.error();
    if (auto served = made->program.serve(number, queue->socket->fd()); !served) return served;
    made->queues.push_back(std::move(*queue));
  }
  if (made->device.strips_vlan_tags && link_.kind.empty() && attached_ == 0) {
    host_->event(*this, "warning",
                 config_.device +
                     " takes VLAN tags out of received frames, and AF_XDP does not show them: turn that off "
                     "with: ethtool -K " +
                     config_.device + " rxvlan off");
  }
  attachment_ = std::move(made);
  follow_link();
  problem_.clear();
  ++attached_;
  return {};
}

Result<void> AfXdpPort::open(PortHost& host) {
  host_ = &host;
  if (config_.device.empty()) return Error{0, "open an afxdp port: no device is given"};
  if (auto name = check_device_name(config_.device); !name) return name;
  if (config_.queues == 0) return Error{0, "serve 0 queues of " + config_.device + ": one at least"};
  if (auto opened = devices_.open(); !opened) return opened;
  auto device = find_host_device(devices_, config_.device);
  if (!device) return device.error();
  link_ = *device;
  exists_ = true;
  if (auto fits = check_host_mtu(config_.device, link_, config_.mtu); !fits) return fits;
  // Also if the interface is down, so that what is missing shows now and not when it comes up; some drivers cannot then.
  const auto attached = attach(true);
  if (!attached && (link_.up || attached.error().code != ENETDOWN)) return attached;
  if (!link_.up) attachment_.reset();
  ticker_.start(host.loop(), kTickMs, [this] { tick(); });
  return {};
}

Result<void> AfXdpPort::set_mtu(uint32_t mtu) {
  if (exists_) {
    if (auto fits = check_host_mtu(config_.device, link_, mtu); !fits) return fits;
  }
  config_.mtu = mtu;
  return {};
}

void AfXdpPort::close() {
  ticker_.stop();
  attachment_.reset();
}

std::vector<RxQueue*> AfXdpPort::rx_queues() const {
  std::vector<RxQueue*> list;
  if (!attachment_) return list;
  for (const Queue& queue : attachment_->queues) list.push_back(queue.rx.get());
  return list;
}

std::vector<TxQueue*> AfXdpPort::tx_queues() const {
  std::vector<TxQueue*> list;
  if (!attachment_) return list;
  for (const Queue& queue : attachment_->queues) {
    if (queue.tx) list.push_back(queue.tx.get());
  }
  return list;
}

void AfXdpPort::follow_link() {
  store_relaxed(for_queues_.mtu, link_.mtu);
  store_relaxed(for_queues_.carrier, link_.running);
}

void AfXdpPort::tick() {
  auto device = find_host_device(devices_, config_.device);
  if (!device) {
    exists_ = false;
    problem_ = device.error().message();
    if (attachment_) detach("device_gone");
    return;
  }
  if (device->index != link_.index || device->up != link_.up || device->mtu != link_.mtu) wait_ticks_ = ticks_left_ = 0;
  // Deleted and made again since the last look: the old sockets are bound to nothing.
  if (device->index != link_.index && attachment_) detach("device_gone");
  exists_ = true;
  link_ = *device;
  follow_link();
  if (!link_.up) {
    problem_.clear();
    if (attachment_) detach("link_down");
    return;
  }
  if (attachment_ && needs_fragments() && !attachment_->queues.front().socket->mode().fragments) {
    detach("error");  // its MTU was raised; attaching anew says what to do
  }
  if (attachment_) {
    collect_drops();
  } else if (ticks_left_ > 0) {
    --ticks_left_;
  } else {
    attach_again();
  }
}

void AfXdpPort::attach_again() {
  const std::string before = problem_;
  if (auto attached = attach(false); !attached) {
    problem_ = attached.error().message();
    wait_ticks_ = ticks_left_ = std::min(2 * wait_ticks_ + 1, kMaxWaitTicks);
    if (problem_ != before) host_->event(*this, "error", problem_);
    return;
  }
  wait_ticks_ = 0;
  {
    const PortPause publish(*host_, *this);
  }
  host_->event(*this, "link_up", config_.device);
}

void AfXdpPort::detach(const std::string& why) {
  collect_drops();
  {
    PortPause pause(*host_, *this);
    attachment_.reset();
  }
  host_->event(*this, why, config_.device);
}

void AfXdpPort::collect_drops() {
  for (Queue& queue : attachment_->queues) {
    auto now = queue.socket->kernel_counts();
    if (!now) continue;
    const uint64_t lost = now->rx_lost - queue.counts.rx_lost;
    queue.rx->kernel_drops.add(lost);
    kernel_dropped_ += lost;
    invalid_descriptors_ += now->invalid_descriptors - queue.counts.invalid_descriptors;
    queue.counts = *now;
  }
}

Result<std::unique_ptr<Port>> make_afxdp(const PortConfig& config, PortCounters counters) {
  return std::unique_ptr<Port>(std::make_unique<AfXdpPort>(config, counters));
}

}  // namespace sw
