// SPDX-License-Identifier: Apache-2.0
// For tests of kernel-backed ports: a network namespace for the length of a test, a socket that plays the host or the
// wire, and a house for one port.
#pragma once

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "net/offload_frames.h"
#include "port/port.h"
#include "support/eventually.h"

namespace sw::test {

// This thread is in a new network namespace until the end of the scope. ok() false: not allowed to (not root).
class ScopedNetns {
 public:
  ScopedNetns() : old_(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)) {
    ok_ = old_ && ::unshare(CLONE_NEWNET) == 0;
    if (!ok_) {
      MESSAGE("skipped: a network namespace of its own needs root");
      return;
    }
    // No router solicitations or neighbour discovery among the frames of a test.
    std::ofstream("/proc/sys/net/ipv6/conf/all/disable_ipv6") << 1;
    std::ofstream("/proc/sys/net/ipv6/conf/default/disable_ipv6") << 1;
  }
  ~ScopedNetns() {
    if (ok_) (void)::setns(old_.get(), CLONE_NEWNET);
  }
  ScopedNetns(const ScopedNetns&) = delete;
  ScopedNetns& operator=(const ScopedNetns&) = delete;
  [[nodiscard]] bool ok() const { return ok_; }

 private:
  UniqueFd old_;
  bool ok_ = false;
};

inline bool shell(const std::string& command) { return std::system((command + " >/dev/null 2>&1").c_str()) == 0; }

// This thread lacks the capability until the end of the scope.
class WithoutCapability {
 public:
  explicit WithoutCapability(int capability) {
    ::syscall(SYS_capget, &header_, before_);
    __user_cap_data_struct less[2] = {before_[0], before_[1]};
    less[capability / 32].effective &= ~(1U << (capability % 32));
    ::syscall(SYS_capset, &header_, less);
  }
  ~WithoutCapability() { ::syscall(SYS_capset, &header_, before_); }
  WithoutCapability(const WithoutCapability&) = delete;
  WithoutCapability& operator=(const WithoutCapability&) = delete;

 private:
  __user_cap_header_struct header_{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct before_[2]{};
};

// The kernel's end of an interface: a raw packet socket with virtio-net headers.
class RawSocket {
 public:
  explicit RawSocket(const std::string& device) : fd_(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0)) {
    const int on = 1;
    const int buffer = 32 << 20;
    ::setsockopt(fd_.get(), SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on);
    ::setsockopt(fd_.get(), SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on);
    ::setsockopt(fd_.get(), SOL_PACKET, PACKET_AUXDATA, &on, sizeof on);
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(ETH_P_ALL);
    address.sll_ifindex = static_cast<int>(::if_nametoindex(device.c_str()));
    ok_ =
        address.sll_ifindex != 0 && ::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] bool send(const Bytes& frame, const VnetHeader& vnet = {}) const {
    const iovec pieces[] = {{const_cast<VnetHeader*>(&vnet), sizeof vnet},
                            {const_cast<uint8_t*>(frame.data()), frame.size()}};
    return ::writev(fd_.get(), pieces, 2) == static_cast<ssize_t>(sizeof vnet + frame.size());
  }
  // The next frame within a second, empty if there is none. A stripped VLAN tag is reported in `tag`.
  Bytes receive(VnetHeader* vnet = nullptr, int* tag = nullptr) const {
    pollfd wait{fd_.get(), POLLIN, 0};
    if (::poll(&wait, 1, 1000) != 1) return {};
    Bytes frame(70'000);
    VnetHeader header;
    iovec pieces[] = {{&header, sizeof header}, {frame.data(), frame.size()}};
    alignas(cmsghdr) char control[256];
    msghdr message{};
    message.msg_iov = pieces;
    message.msg_iovlen = 2;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t got = ::recvmsg(fd_.get(), &message, MSG_DONTWAIT);
    if (got < static_cast<ssize_t>(sizeof header)) return {};
    frame.resize(static_cast<size_t>(got) - sizeof header);
    if (vnet != nullptr) *vnet = header;
    if (tag != nullptr) *tag = -1;
    const cmsghdr* const aux = CMSG_FIRSTHDR(&message);
    if (tag != nullptr && aux != nullptr && aux->cmsg_type == PACKET_AUXDATA) {
      const auto* const data = reinterpret_cast<const tpacket_auxdata*>(CMSG_DATA(aux));
      if ((data->tp_status & TP_STATUS_VLAN_VALID) != 0) *tag = data->tp_vlan_tci;
    }
    return frame;
  }

 private:
  UniqueFd fd_;
  bool ok_ = false;
};

// What the datapath is to a port, for one port and no workers.
struct House : PortHost {
  EventLoop event_loop;
  int pauses = 0;
  int resumes = 0;
  std::vector<std::string> events;

  EventLoop& loop() override { return event_loop; }
  void pause(Port&) override { ++pauses; }
  void resume(Port&) override { ++resumes; }
  void event(Port&, const std::string& kind, const std::string& detail) override {
    events.push_back(kind + ": " + detail);
  }
  // Turn the loop until `done`, at most ten seconds.
  bool run_until(const std::function<bool()>& done) {
    for (testing::Patience patience; !done();) {
      if (patience.over()) return false;
      event_loop.run_once(20, [](const std::function<void()>& body) { body(); });
    }
    return true;
  }
};

struct PortUnderTest {
  House house;
  std::vector<QueueCounters> rx;
  std::vector<QueueCounters> tx;
  PortWorkerCounters drops;
  std::unique_ptr<Batch> batch = std::make_unique<Batch>();
  std::unique_ptr<Port> port;
  std::string error;  // of open
  bool opened = false;

  using Factory = Result<std::unique_ptr<Port>> (*)(const PortConfig&, PortCounters);
  PortUnderTest(Factory make, const PortConfig& config) : rx(config.queues), tx(config.queues) {
    auto made = make(config, PortCounters{rx, tx});
    if (!made) {
      error = made.error().message();
      return;
    }
    port = std::move(*made);
    auto result = port->open(house);
    opened = static_cast<bool>(result);
    if (!opened) error = result.error().message();
  }
  ~PortUnderTest() {
    if (opened) port->close();
  }
  PortUnderTest(const PortUnderTest&) = delete;
  PortUnderTest& operator=(const PortUnderTest&) = delete;

  // Poll queue `q` until `want` frames came, at most ten seconds; as linear frames, with their headers.
  std::vector<std::pair<Bytes, VnetHeader>> receive(size_t want, size_t q = 0) {
    std::vector<std::pair<Bytes, VnetHeader>> out;
    testing::Patience patience;
    RxQueue* const queue = port->rx_queues().at(q);
    while (out.size() < want && !patience.over()) {
      batch->clear();
      if (!queue->peek(*batch, drops)) continue;
      for (uint32_t i = 0; i < batch->count; ++i) {
        const Frame& frame = batch->frames[i];
        CHECK(frame.head_len == std::min(frame.len, kHeadBytes));
        Bytes bytes(frame.len);
        copy_from_frame(frame, 0, bytes.data(), frame.len);
        out.emplace_back(bytes, frame.vnet);
        CHECK(frame.offload == ((frame.vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0 || frame.vnet.gso_type != 0));
        CHECK((!frame.offload || batch->may_have_offloads));
      }
      queue->release();
    }
    return out;
  }

  // Send frames in one burst, each cut into segments of `cut` bytes behind the head. Returns what send() returned.
  uint32_t send(const std::vector<std::pair<Bytes, VnetHeader>>& frames, size_t cut = 1000, size_t q = 0) {
    batch->clear();
    std::vector<uint8_t> index;
    for (const auto& [bytes, vnet] : frames) {
      Frame& frame = batch->frames[batch->count];
      frame = Frame{};
      frame.len = static_cast<uint32_t>(bytes.size());
      frame.head_len = static_cast<uint16_t>(std::min<size_t>(bytes.size(), kHeadBytes));
      std::copy_n(bytes.begin(), frame.head_len, frame.head);
      frame.segments = &batch->segments[batch->segments_used];
      for (size_t at = frame.head_len; at < bytes.size(); at += cut) {
        batch->segments[batch->segments_used++] = {bytes.data() + at,
                                                   static_cast<uint32_t>(std::min(cut, bytes.size() - at))};
        ++frame.segment_count;
      }
      frame.vnet = vnet;
      frame.offload = (vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0;
      batch->may_have_offloads |= frame.offload;
      index.push_back(static_cast<uint8_t>(batch->count++));
    }
    return port->tx_queues().at(q)->send(*batch, index, drops);
  }
  [[nodiscard]] uint64_t dropped_tx(DropReason reason) const {
    return drops.tx_drops[static_cast<size_t>(reason)].get();
  }
  [[nodiscard]] uint64_t dropped_rx(DropReason reason) const {
    return drops.rx_drops[static_cast<size_t>(reason)].get();
  }
};

inline Bytes test_frame(size_t bytes, uint8_t fill) {
  Bytes frame(bytes, fill);
  const uint8_t start[] = {0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5};  // local experimental type
  std::copy(std::begin(start), std::end(start), frame.begin());
  return frame;
}

}  // namespace sw::test
