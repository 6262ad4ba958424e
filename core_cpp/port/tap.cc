// SPDX-License-Identifier: Apache-2.0
// Theory of operation. A device of the configured name is made, or joined if it exists (a persistent tap), with one
// file descriptor per queue. A device that we made goes away with its last descriptor. If somebody deletes it while the
// port exists, the port takes its queues out of the plan and makes the device again; a timer on the control loop looks.
// With vhost-net the descriptors stay ours and the rings of TapVhost take the place of the reading and writing queues;
// rings that broke are made anew over the same device.
#include "port/tap.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <utility>
#include <vector>

#include "port/net_device.h"
#include "port/tap_queue.h"
#include "port/tap_vhost.h"

namespace sw {

namespace {

constexpr uint64_t kTickMs = 250;
constexpr const char* kTunPath = "/dev/net/tun";
constexpr uint32_t kMaxTapQueues = 256;  // the kernel's limit
// Since Linux 6.2; not in every distribution's headers.
constexpr unsigned kTunFeatureUso4 = 0x20;
constexpr unsigned kTunFeatureUso6 = 0x40;

struct TapQueue {
  UniqueFd fd;
  std::unique_ptr<TapRx> rx;  // neither with vhost-net
  std::unique_ptr<TapTx> tx;
};

class TapPort : public Port {
 public:
  TapPort(const PortConfig& config, PortCounters counters, KernelCalls& vhost_kernel)
      : config_(config), counters_(counters), vhost_kernel_(vhost_kernel) {}

  Result<void> open(PortHost& host) override;
  void close() override;
  [[nodiscard]] std::vector<RxQueue*> rx_queues() const override;
  [[nodiscard]] std::vector<TxQueue*> tx_queues() const override;
  [[nodiscard]] PortStatus status() const override;
  Result<void> set_mtu(uint32_t mtu) override;

 private:
  Result<void> attach();
  Result<UniqueFd> attach_queue(bool multi_queue);
  Result<OffloadCaps> negotiate(int fd) const;
  Result<void> add_queue(std::vector<TapQueue>& queues, UniqueFd fd) const;
  Result<std::unique_ptr<TapVhost>> start_vhost(const std::vector<TapQueue>& queues) const;
  Result<void> configure();
  void tick();
  void check_device();
  void check_rings();
  void detach();
  [[nodiscard]] bool attached() const { return !queues_.empty() && (!config_.vhost || vhost_); }

  PortConfig config_;
  PortCounters counters_;
  KernelCalls& vhost_kernel_;
  PortHost* host_ = nullptr;
  NetDevices devices_;
  Ticker ticker_;
  std::string device_;  // as configured, then as the kernel calls it
  std::vector<TapQueue> queues_;
  std::unique_ptr<TapVhost> vhost_;  // with config_.vhost; uses the queues' descriptors
  OffloadCaps caps_;
  NetDevice link_;           // as last seen
  uint64_t drops_seen_ = 0;  // link_.tx_dropped already handed to queue 0
  uint64_t kernel_dropped_ = 0;
  uint64_t recreated_ = 0;
  uint64_t rings_broken_ = 0;
  std::string problem_;  // why the device could not be made again
};

std::string attach_failure(const std::string& device, uint32_t queues, int error) {
  const std::string what = "attach to the tap device " + (device.empty() ? std::string("(new)") : device);
  const std::string name = device.empty() ? "NAME" : device;
  switch (error) {
    case EPERM:
      return what + ": this needs CAP_NET_ADMIN, or a device made for this user and set up: ip tuntap add dev " + name +
             " mode tap user USER" + (queues > 1 ? " multi_queue" : "") + " && ip link set dev " + name + " up";
    case EBUSY:
      return what + ": another process is using it; end that one, or give the port another device";
    case EINVAL:
      return what + ": an interface of this name exists and is not a tap" +
             (queues > 1 ? ", or a tap without multi_queue" : "") +
             "; choose another name (for the interface itself: type afpacket)";
    case E2BIG:
      return what + ": all its queues are in use";
    default:
      return what;
  }
}

Result<UniqueFd> TapPort::attach_queue(bool multi_queue) {
  UniqueFd fd(::open(kTunPath, O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!fd) {
    const int error = errno;
    std::string hint;
    if (error == ENOENT || error == ENODEV || error == ENXIO) {
      hint = " (load the module with: modprobe tun; a container needs --device /dev/net/tun)";
    } else if (error == EACCES || error == EPERM) {
      hint =
          " (everybody may open it on most machines: chmod 0666 /dev/net/tun; a container needs --device /dev/net/tun)";
    }
    return Error{error, "open " + std::string(kTunPath) + hint};
  }
  ifreq request{};
  device_.copy(request.ifr_name, kMaxDeviceName);
  const int flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (multi_queue ? IFF_MULTI_QUEUE : 0);
  request.ifr_flags = static_cast<short>(flags);
  if (::ioctl(fd.get(), TUNSETIFF, &request) != 0) {
    const int error = errno;
    const std::string what = attach_failure(device_, config_.queues, error);
    return Error{what.find(": ") == std::string::npos ? error : 0, what};
  }
  device_ = request.ifr_name;
  return fd;
}

// Offloads: what the kernel may hand us unfinished; it takes the same from us.
Result<OffloadCaps> TapPort::negotiate(int fd) const {
  int header_bytes = sizeof(TapHeader);
  if (::ioctl(fd, TUNSETVNETHDRSZ, &header_bytes) != 0) {
    return Error{errno, "set the virtio-net header size of " + device_};
  }
  OffloadCaps caps;
  constexpr unsigned kTcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
  if (config_.offloads && ::ioctl(fd, TUNSETOFFLOAD, kTcp | kTunFeatureUso4 | kTunFeatureUso6) == 0) {
    caps = {.checksum = true, .tso4 = true, .tso6 = true, .ecn = true, .uso = true};
  } else if (config_.offloads && ::ioctl(fd, TUNSETOFFLOAD, kTcp) == 0) {
    caps = {.checksum = true, .tso4 = true, .tso6 = true, .ecn = true, .uso = false};
  } else if (::ioctl(fd, TUNSETOFFLOAD, 0U) != 0) {
    return Error{errno, "set the offloads of " + device_};
  }
  return caps;
}

Result<void> TapPort::configure() {
  if (config_.mac != 0) {
    if (auto set = devices_.set_mac(device_, config_.mac); !set) return set;
  }
  if (config_.mtu != 0) {
    if (auto set = devices_.set_mtu(device_, config_.mtu); !set) return set;
  }
  if (auto set = devices_.set_up(device_); !set) return set;
  auto link = devices_.find(device_);
  if (!link) return link.error();
  link_ = *link;
  drops_seen_ = link_.tx_dropped;
  return {};
}

Result<void> TapPort::add_queue(std::vector<TapQueue>& queues, UniqueFd fd) const {
  TapQueue queue;
  if (!config_.vhost) {
    void* const bodies =
        ::mmap(nullptr, TapRx::kBodiesBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bodies == MAP_FAILED)
      return Error{errno, "allocate receive buffers for " + device_ +
                              " (4 MB for each queue: free memory, or give the port fewer queues)"};
    const size_t q = queues.size();
    queue.rx = std::make_unique<TapRx>(fd.get(), Mapping(bodies, TapRx::kBodiesBytes), counters_.rx[q]);
    queue.tx = std::make_unique<TapTx>(fd.get(), caps_, counters_.tx[q]);
  }
  queue.fd = std::move(fd);
  queues.push_back(std::move(queue));
  return {};
}

Result<std::unique_ptr<TapVhost>> TapPort::start_vhost(const std::vector<TapQueue>& queues) const {
  auto net = VhostNet::open(vhost_kernel_, config_.queues);
  if (!net) return net.error();
  std::vector<int> taps;
  for (const TapQueue& queue : queues) taps.push_back(queue.fd.get());
  return TapVhost::make(std::move(*net), taps, caps_, counters_);
}

Result<void> TapPort::attach() {
  if (config_.vhost) {  // before the device appears: nobody sees one that comes and goes because this fails
    if (auto usable = VhostNet::open(vhost_kernel_, 1); !usable) return usable.error();
  }
  std::vector<TapQueue> queues;
  for (uint32_t q = 0; q < config_.queues; ++q) {
    auto fd = attach_queue(config_.queues > 1);
    // A persistent device made with multi_queue wants the flag for a single queue too.
    if (!fd && config_.queues == 1) {
      auto again = attach_queue(true);
      if (again) fd = std::move(again);
    }
    if (!fd) return fd.error();
    auto caps = negotiate(fd->get());
    if (!caps) return caps.error();
    caps_ = *caps;
    if (auto added = add_queue(queues, std::move(*fd)); !added) return added;
  }
  if (auto configured = configure(); !configured) return configured;
  if (config_.vhost) {
    auto vhost = start_vhost(queues);
    if (!vhost) return vhost.error();
    vhost_ = std::move(*vhost);
  }
  queues_ = std::move(queues);
  problem_.clear();
  return {};
}

Result<void> TapPort::open(PortHost& host) {
  host_ = &host;
  device_ = config_.device;
  if (!device_.empty()) {
    if (auto name = check_device_name(device_); !name) return name;
  }
  if (config_.queues == 0 || config_.queues > kMaxTapQueues) {
    return Error{0, "give a tap device " + std::to_string(config_.queues) + " queues: it can have 1 to 256"};
  }
  if (auto opened = devices_.open(); !opened) return opened;
  if (auto attached = attach(); !attached) return attached;
  ticker_.start(host.loop(), kTickMs, [this] { tick(); });
  return {};
}

void TapPort::close() {
  ticker_.stop();
  vhost_.reset();
  queues_.clear();
}

std::vector<RxQueue*> TapPort::rx_queues() const {
  if (config_.vhost) return vhost_ ? vhost_->rx_queues() : std::vector<RxQueue*>();
  std::vector<RxQueue*> list;
  for (const TapQueue& queue : queues_) list.push_back(queue.rx.get());
  return list;
}

std::vector<TxQueue*> TapPort::tx_queues() const {
  if (config_.vhost) return vhost_ && link_.up ? vhost_->tx_queues() : std::vector<TxQueue*>();
  std::vector<TxQueue*> list;
  for (const TapQueue& queue : queues_) list.push_back(queue.tx.get());
  return list;
}

void TapPort::tick() {
  if (!queues_.empty()) {
    check_device();
    if (!queues_.empty() && config_.vhost) check_rings();
    if (!queues_.empty()) return;
  }
  const std::string before = problem_;
  if (auto attached = attach(); !attached) {
    problem_ = attached.error().message();
    if (problem_ != before) host_->event(*this, "error", problem_);
    return;
  }
  ++recreated_;
  {
    const PortPause publish(*host_, *this);
  }
  host_->event(*this, "device_back", device_ + " was made again");
}

void TapPort::check_device() {
  ifreq request{};
  if (::ioctl(queues_.front().fd.get(), TUNGETIFF, &request) != 0) {
    detach();
    return;
  }
  device_ = request.ifr_name;  // it may have been renamed
  auto link = devices_.find(device_);
  if (!link) return;  // moved to another network namespace: traffic flows, but we cannot see its state
  const bool turned = link->up != link_.up;
  link_ = *link;
  if (turned) {
    host_->event(*this, link_.up ? "link_up" : "link_down", device_);
    if (config_.vhost) {
      const PortPause publish(*host_, *this);  // tx_queues() says something else now
    }
  }
  if (link_.tx_dropped > drops_seen_ && attached()) {
    KernelDrops& drops = vhost_ ? vhost_->kernel_drops() : queues_.front().rx->kernel_drops;
    drops.add(link_.tx_dropped - drops_seen_);
    kernel_dropped_ += link_.tx_dropped - drops_seen_;
  }
  drops_seen_ = link_.tx_dropped;
}

// A ring that broke is replaced together with its neighbours: new memory, new vhost-net, the same device.
void TapPort::check_rings() {
  const std::string broken = vhost_ ? vhost_->broken() : std::string();
  if (vhost_ && broken.empty()) return;
  const PortPause pause(*host_, *this);
  if (vhost_) {
    ++rings_broken_;
    host_->event(*this, "ring_broken", broken);
    vhost_.reset();
  }
  auto vhost = start_vhost(queues_);
  if (vhost) {
    vhost_ = std::move(*vhost);
    problem_.clear();
    return;
  }
  const std::string before = std::exchange(problem_, vhost.error().message());
  if (problem_ != before) host_->event(*this, "error", problem_);
}

void TapPort::detach() {
  {
    PortPause pause(*host_, *this);
    vhost_.reset();
    queues_.clear();
  }
  host_->event(*this, "device_gone", device_ + " was deleted; it will be made again");
}

PortStatus TapPort::status() const {
  PortStatus status;
  status.up = attached() && link_.up;
  status.facts["device"] = device_;
  status.facts["mode"] = config_.vhost ? "vhost-net" : "read and write";
  status.counters["recreated"] = recreated_;
  status.counters["kernel_dropped"] = kernel_dropped_;
  if (queues_.empty()) {
    status.stage = "device_missing";
    status.detail = problem_.empty() ? "the tap device was deleted and is being made again" : problem_;
    return status;
  }
  if (!attached()) {
    status.stage = "vhost_failed";
    status.detail = problem_;
    return status;
  }
  status.stage = link_.up ? "running" : "device_down";
  if (!link_.up) status.detail = "the interface is down; set it up with: ip link set " + device_ + " up";
  status.facts["mac"] = mac_text(link_.mac);
  status.facts["mtu"] = std::to_string(link_.mtu);
  status.facts["offloads"] = caps_.uso ? "checksum, tso, uso" : caps_.checksum ? "checksum, tso" : "none";
  status.facts["queues"] = std::to_string(queues_.size());
  if (vhost_) {
    status.facts["memory_bytes"] = std::to_string(vhost_->memory().bytes());
    if (!vhost_->memory().warning().empty()) status.facts["memory_warning"] = vhost_->memory().warning();
    status.counters["rings_broken"] = rings_broken_;
  }
  uint64_t kicks = 0;
  for (size_t q = 0; q < queues_.size(); ++q) {
    const std::string number = std::to_string(q);
    const std::string ring = "split ring of " + std::to_string(TapVhost::kRingSize) + " entries";
    status.rings.push_back({"rx" + number, {{"kind", vhost_ ? ring : "one readv per frame"}}});
    status.rings.push_back({"tx" + number, {{"kind", vhost_ ? ring : "one writev per frame"}}});
    kicks += counters_.rx[q].notifications.get() + counters_.tx[q].notifications.get();
  }
  if (vhost_) status.counters["kicks"] = kicks;
  return status;
}

Result<void> TapPort::set_mtu(uint32_t mtu) {
  if (mtu != 0 && !queues_.empty()) {
    if (auto set = devices_.set_mtu(device_, mtu); !set) return set;
    link_.mtu = mtu;
  }
  config_.mtu = mtu;
  return {};
}

}  // namespace

Result<std::unique_ptr<Port>> make_tap(const PortConfig& config, PortCounters counters) {
  return make_tap(config, counters, KernelCalls::real());
}

Result<std::unique_ptr<Port>> make_tap(const PortConfig& config, PortCounters counters, KernelCalls& vhost_kernel) {
  return std::unique_ptr<Port>(std::make_unique<TapPort>(config, counters, vhost_kernel));
}

}  // namespace sw
