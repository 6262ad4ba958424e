// SPDX-License-Identifier: Apache-2.0
#include "port/net_device.h"

#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace sw {

namespace {

ifreq request_for(const std::string& name) {
  ifreq request{};
  name.copy(request.ifr_name, kMaxDeviceName);
  return request;
}

// The kind in the attributes nested in IFLA_LINKINFO.
std::string read_kind(const uint8_t* at, size_t left) {
  while (left >= sizeof(rtattr)) {
    const auto attribute = load_unaligned<rtattr>(at);
    if (attribute.rta_len < sizeof(rtattr) || attribute.rta_len > left) break;
    if (attribute.rta_type == IFLA_INFO_KIND) {
      const std::string text(reinterpret_cast<const char*>(at + RTA_LENGTH(0)), attribute.rta_len - RTA_LENGTH(0));
      return text.substr(0, text.find('\0'));
    }
    const size_t step = std::min<size_t>(RTA_ALIGN(attribute.rta_len), left);
    at += step;
    left -= step;
  }
  return {};
}

// The attributes of one RTM_NEWLINK message of `bytes`.
NetDevice read_link(const nlmsghdr* message, size_t bytes) {
  const auto* const info = static_cast<const ifinfomsg*>(NLMSG_DATA(message));
  NetDevice device;
  device.index = info->ifi_index;
  device.hardware_type = info->ifi_type;
  device.up = (info->ifi_flags & IFF_UP) != 0;
  device.running = device.up && (info->ifi_flags & IFF_RUNNING) != 0;
  size_t left = bytes - NLMSG_LENGTH(sizeof *info);
  const auto* at = reinterpret_cast<const uint8_t*>(info) + NLMSG_ALIGN(sizeof *info);
  while (left >= sizeof(rtattr)) {
    const auto attribute = load_unaligned<rtattr>(at);
    if (attribute.rta_len < sizeof(rtattr) || attribute.rta_len > left) break;
    const uint8_t* const value = at + RTA_LENGTH(0);
    const size_t value_bytes = attribute.rta_len - RTA_LENGTH(0);
    if (attribute.rta_type == IFLA_MTU && value_bytes >= 4) device.mtu = load_unaligned<uint32_t>(value);
    if (attribute.rta_type == IFLA_MAX_MTU && value_bytes >= 4) device.max_mtu = load_unaligned<uint32_t>(value);
    if (attribute.rta_type == IFLA_ADDRESS && value_bytes == kMacBytes) {
      device.mac = static_cast<Mac>(load_be16(value)) << 32 | load_be32(value + 2);
    }
    if (attribute.rta_type == IFLA_LINKINFO) device.kind = read_kind(value, value_bytes);
    if (attribute.rta_type == IFLA_STATS64 && value_bytes >= offsetof(rtnl_link_stats64, multicast)) {
      device.tx_dropped = load_unaligned<uint64_t>(value + offsetof(rtnl_link_stats64, tx_dropped));
    }
    const size_t step = std::min<size_t>(RTA_ALIGN(attribute.rta_len), left);
    at += step;
    left -= step;
  }
  return device;
}

// Changing an interface failed. What it takes, and who can do it instead.
Error change_failure(int error, const std::string& what, const std::string& command) {
  if (error != EPERM) return {error, what};
  return {0, what + ": this needs CAP_NET_ADMIN, or do it beforehand: ip link set dev " + command};
}

}  // namespace

Result<void> check_device_name(const std::string& name) {
  const std::string what = "use '" + name + "' as the name of an interface: ";
  if (name.size() > kMaxDeviceName) return Error{0, what + "it is longer than 15 characters"};
  if (name.empty() || name == "." || name == "..") return Error{0, what + "it is not a name"};
  if (name.find_first_of("/:% \t\n") != std::string::npos) {
    return Error{0, what + "it contains a character that names cannot have"};
  }
  return {};
}

Result<void> NetDevices::open() {
  netlink_.reset(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!netlink_) return Error{errno, "open a netlink socket to look up interfaces"};
  // The kernel answers within the call that asks; the limit is for the impossible case.
  const timeval limit{1, 0};
  ::setsockopt(netlink_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  ioctl_.reset(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!ioctl_) return Error{errno, "open a socket to configure interfaces"};
  return {};
}

Result<NetDevice> NetDevices::find(const std::string& name) const {
  struct {
    nlmsghdr header;
    ifinfomsg info;
    rtattr attribute;
    char name[kMaxDeviceName + 1];
  } ask{};
  ask.header.nlmsg_len = sizeof ask;
  ask.header.nlmsg_type = RTM_GETLINK;
  ask.header.nlmsg_flags = NLM_F_REQUEST;
  ask.info.ifi_family = AF_UNSPEC;
  ask.attribute.rta_type = IFLA_IFNAME;
  ask.attribute.rta_len = static_cast<unsigned short>(RTA_LENGTH(sizeof ask.name));
  name.copy(ask.name, kMaxDeviceName);
  const std::string what = "look up the interface " + name;
  if (::send(netlink_.get(), &ask, sizeof ask, 0) < 0) return Error{errno, what};
  alignas(nlmsghdr) std::array<uint8_t, 16384> answer;
  const ssize_t got = ::recv(netlink_.get(), answer.data(), answer.size(), 0);
  if (got < 0) return Error{errno, what};
  const auto bytes = static_cast<size_t>(got);
  const auto* const message = reinterpret_cast<const nlmsghdr*>(answer.data());
  if (bytes < sizeof *message || message->nlmsg_len > bytes) return Error{EPROTO, what};
  if (message->nlmsg_type == NLMSG_ERROR && bytes >= NLMSG_LENGTH(sizeof(nlmsgerr))) {
    return Error{-static_cast<const nlmsgerr*>(NLMSG_DATA(message))->error, what};
  }
  if (message->nlmsg_type != RTM_NEWLINK || message->nlmsg_len < NLMSG_LENGTH(sizeof(ifinfomsg))) {
    return Error{EPROTO, what};
  }
  return read_link(message, message->nlmsg_len);
}

Result<void> NetDevices::set_up(const std::string& name) const {
  ifreq request = request_for(name);
  if (::ioctl(ioctl_.get(), SIOCGIFFLAGS, &request) != 0) return Error{errno, "read the flags of " + name};
  if ((request.ifr_flags & IFF_UP) != 0) return {};
  request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP);
  if (::ioctl(ioctl_.get(), SIOCSIFFLAGS, &request) == 0) return {};
  return change_failure(errno, "set the interface " + name + " up", name + " up");
}

Result<void> NetDevices::set_mtu(const std::string& name, uint32_t mtu) const {
  ifreq request = request_for(name);
  request.ifr_mtu = static_cast<int>(mtu);
  if (::ioctl(ioctl_.get(), SIOCSIFMTU, &request) != 0) {
    const int error = errno;
    const std::string what = "set the MTU of " + name + " to " + std::to_string(mtu);
    const auto device = find(name);
    if (device && device->mtu == mtu) return {};  // who may not change it may have it as it is
    if (error != EINVAL || !device || device->max_mtu == 0) {
      return change_failure(error, what, name + " mtu " + std::to_string(mtu));
    }
    return Error{0, what + ": the interface takes " + std::to_string(device->max_mtu) + " at most"};
  }
  return {};
}

Result<void> NetDevices::set_mac(const std::string& name, Mac mac) const {
  ifreq request = request_for(name);
  request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
  for (uint32_t i = 0; i < kMacBytes; ++i) {
    request.ifr_hwaddr.sa_data[i] = static_cast<char>(mac >> (8 * (kMacBytes - 1 - i)));
  }
  if (::ioctl(ioctl_.get(), SIOCSIFHWADDR, &request) == 0) return {};
  const int error = errno;
  if (const auto device = find(name); device && device->mac == mac) return {};
  return change_failure(error, "set the address of " + name + " to " + mac_text(mac),
                        name + " address " + mac_text(mac));
}

bool NetDevices::ethtool(const std::string& name, void* request) const {
  ifreq outer = request_for(name);
  outer.ifr_data = static_cast<char*>(request);
  return ::ioctl(ioctl_.get(), SIOCETHTOOL, &outer) == 0;
}

void Ticker::start(EventLoop& loop, uint64_t period_ms, std::function<void()> tick) {
  stop();
  loop_ = &loop;
  period_ms_ = period_ms;
  tick_ = std::move(tick);
  arm();
}

void Ticker::arm() {
  timer_ = loop_->after(period_ms_, [this] {
    arm();
    tick_();
  });
}

void Ticker::stop() {
  if (loop_ != nullptr) loop_->cancel(timer_);
  loop_ = nullptr;
}

std::string mac_text(Mac mac) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (int shift = 44; shift >= 0; shift -= 4) {
    text += kDigits[mac >> shift & 15];
    if (shift % 8 == 0 && shift != 0) text += ':';
  }
  return text;
}

}  // namespace sw
