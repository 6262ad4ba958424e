// SPDX-License-Identifier: Apache-2.0
#include "port/afxdp_socket.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <ctime>
#include <span>
#include <utility>

namespace sw {

namespace {

constexpr uint32_t kProbeEntries = 8;
constexpr int kSendBufferBytes = 16 << 20;
// A queue is free again only some milliseconds after its last socket was closed, when the kernel's clean-up ran. Only a
// queue that somebody else really has costs the whole time: once, when a person adds a port.
constexpr int kBusyTries = 40;
constexpr timespec kBusyPause{0, 5'000'000};

template <class Value>
bool set_option(int fd, int option, const Value& value) {
  return ::setsockopt(fd, SOL_XDP, option, &value, sizeof value) == 0;
}

Result<UniqueFd> new_socket(const std::string& device) {
  UniqueFd fd(::socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0));
  if (fd) return fd;
  if (errno == EPERM) {
    return Error{0, "open an AF_XDP socket for " + device +
                        ": this needs CAP_NET_RAW (run as root, or give the service "
                        "AmbientCapabilities=CAP_NET_RAW CAP_NET_ADMIN CAP_BPF)"};
  }
  if (errno == EAFNOSUPPORT) {
    return Error{0, "open an AF_XDP socket for " + device +
                        ": this kernel is built without AF_XDP (CONFIG_XDP_SOCKETS); use type afpacket"};
  }
  return Error{errno, "open an AF_XDP socket for " + device};
}

std::string locked_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return "no limit";
  return std::to_string(limit.rlim_cur >> 10) + " KB";
}

Result<void> register_memory(int fd, const std::string& device, void* memory, size_t bytes) {
  xdp_umem_reg request{};
  request.addr = reinterpret_cast<uintptr_t>(memory);
  request.len = bytes;
  request.chunk_size = kXdpChunkBytes;
  if (set_option(fd, XDP_UMEM_REG, request)) return {};
  const std::string size = bytes >> 20 != 0 ? std::to_string(bytes >> 20) + " MB" : std::to_string(bytes >> 10) + " KB";
  const std::string what = "register " + size + " for AF_XDP on " + device;
  if (errno == ENOBUFS) {
    return Error{0, what + ": more than this process may lock (" + locked_limit() +
                        "); raise the limit (systemd: LimitMEMLOCK=infinity; shell: ulimit -l unlimited) or give it "
                        "CAP_IPC_LOCK"};
  }
  return Error{errno, what};
}

int bind_once(int fd, int index, uint32_t queue, uint16_t flags, int shared) {
  sockaddr_xdp address{};
  address.sxdp_family = AF_XDP;
  address.sxdp_flags = flags;
  address.sxdp_ifindex = static_cast<uint32_t>(index);
  address.sxdp_queue_id = queue;
  address.sxdp_shared_umem_fd = static_cast<uint32_t>(shared);
  return ::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
}

// 0 or an errno.
int bind_socket(int fd, const XdpSocketRequest& request, uint16_t flags, int shared = 0) {
  int error = bind_once(fd, request.index, request.queue, flags, shared);
  for (int tries = 1; request.patient && error == EBUSY && tries < kBusyTries; ++tries) {
    ::nanosleep(&kBusyPause, nullptr);
    error = bind_once(fd, request.index, request.queue, flags, shared);
  }
  return error;
}

Error bind_error(int error, const std::string& device, uint32_t queue) {
  const std::string what = "bind an AF_XDP socket to queue " + std::to_string(queue) + " of " + device;
  if (error == EBUSY) {
    return {0, what + ": another AF_XDP socket has this queue; stop the program that owns it (see: ss --xdp -p)"};
  }
  if (error == EINVAL) return {0, what + ": the interface has no such queue (see: ethtool -l " + device + ")"};
  return {error, what};
}

bool is_refusal_of_flags(int error) { return error == EINVAL || error == EOPNOTSUPP; }

XdpMode mode_of(uint16_t flags) {
  return {.zero_copy = (flags & XDP_ZEROCOPY) != 0,
          .need_wakeup = (flags & XDP_USE_NEED_WAKEUP) != 0,
          .fragments = (flags & kXdpUseSg) != 0};
}

// What to try, best first; older kernels know less.
constexpr std::array<uint16_t, 3> kCopyFlags = {XDP_COPY | XDP_USE_NEED_WAKEUP | kXdpUseSg,
                                                XDP_COPY | XDP_USE_NEED_WAKEUP, XDP_COPY};
constexpr std::array<uint16_t, 2> kZeroCopyFlags = {XDP_ZEROCOPY | XDP_USE_NEED_WAKEUP | kXdpUseSg,
                                                    XDP_ZEROCOPY | XDP_USE_NEED_WAKEUP};

template <class Entry>
Result<XdpRing<Entry>> map_ring(int fd, uint64_t page_offset, const xdp_ring_offset& offsets) {
  const size_t bytes = offsets.desc + kXdpRingEntries * sizeof(Entry);
  void* const memory =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, static_cast<off_t>(page_offset));
  if (memory == MAP_FAILED) return Error{errno, "map a ring of an AF_XDP socket"};
  return XdpRing<Entry>(Mapping(memory, bytes), offsets, kXdpRingEntries);
}

}  // namespace

Result<void> XdpSocket::create(const std::string& device) {
  auto fd = new_socket(device);
  if (!fd) return fd.error();
  fd_ = std::move(*fd);
  // In copy mode each frame on its way out is charged to the socket's send buffer.
  if (::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDBUFFORCE, &kSendBufferBytes, sizeof kSendBufferBytes) != 0) {
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDBUF, &kSendBufferBytes, sizeof kSendBufferBytes);
  }
  return {};
}

Result<void> XdpSocket::make_rings() {
  const int fd = fd_.get();
  for (const int option : {XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING}) {
    if (!set_option(fd, option, kXdpRingEntries)) return Error{errno, "make a ring of an AF_XDP socket"};
  }
  xdp_mmap_offsets offsets{};
  socklen_t length = sizeof offsets;
  if (::getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length) != 0) {
    return Error{errno, "read the layout of AF_XDP rings"};
  }
  if (length != sizeof offsets) return Error{0, "use AF_XDP: it needs Linux 5.4 or later; use type afpacket"};
  auto rx_ring = map_ring<xdp_desc>(fd, XDP_PGOFF_RX_RING, offsets.rx);
  if (!rx_ring) return rx_ring.error();
  auto tx_ring = map_ring<xdp_desc>(fd, XDP_PGOFF_TX_RING, offsets.tx);
  if (!tx_ring) return tx_ring.error();
  auto fill_ring = map_ring<uint64_t>(fd, XDP_UMEM_PGOFF_FILL_RING, offsets.fr);
  if (!fill_ring) return fill_ring.error();
  auto completion_ring = map_ring<uint64_t>(fd, XDP_UMEM_PGOFF_COMPLETION_RING, offsets.cr);
  if (!completion_ring) return completion_ring.error();
  rx = std::move(*rx_ring);
  tx = std::move(*tx_ring);
  fill = std::move(*fill_ring);
  completion = std::move(*completion_ring);
  // One system call may send a whole ring; without this option it sends 32 descriptors.
  (void)set_option(fd, kXdpMaxTxSkbBudget, kXdpRingEntries);
  // Before bind, so that the first frame finds a place.
  for (uint32_t i = 0; i < kXdpRingEntries; ++i) {
    fill.entry(i) = slice_.receive_chunks() + uint64_t{i} * kXdpChunkBytes;
  }
  fill.produce(kXdpRingEntries);
  return {};
}

// A socket beside others of the UMEM. An Error with a code means: try again with memory of its own.
Result<void> XdpSocket::join_umem(const XdpSocketRequest& request) {
  if (auto created = create(request.device); !created) return created;
  if (auto rings = make_rings(); !rings) return rings;
  const int error = bind_socket(fd(), request, XDP_SHARED_UMEM, slice_.bound_socket());
  if (error == EBUSY) return bind_error(error, request.device, request.queue);
  if (error != 0) return Error{error, "share AF_XDP memory with " + request.device};
  slice_.bound(fd(), slice_.umem().mode);
  return {};
}

Result<void> XdpSocket::bind_first(const XdpSocketRequest& request) {
  if (auto created = create(request.device); !created) return created;
  const HugeRegion& region = slice_.umem().region;
  if (auto registered = register_memory(fd(), request.device, region.data(), region.size()); !registered)
    return registered;
  if (auto rings = make_rings(); !rings) return rings;
  const std::span<const uint16_t> ladder =
      request.zero_copy ? std::span<const uint16_t>(kZeroCopyFlags) : std::span<const uint16_t>(kCopyFlags);
  int error = 0;
  for (const uint16_t flags : ladder) {
    error = bind_socket(fd(), request, flags);
    if (error == 0) {
      slice_.bound(fd(), mode_of(flags));
      return {};
    }
    if (!is_refusal_of_flags(error)) break;
  }
  return bind_error(error, request.device, request.queue);
}

Result<std::unique_ptr<XdpSocket>> XdpSocket::open(const XdpSocketRequest& request) {
  std::unique_ptr<XdpSocket> made(new XdpSocket);
  made->slice_ = XdpSlice::join(request.zero_copy, request.fragments);
  if (made->slice_) {
    auto joined = made->join_umem(request);
    if (joined) return made;
    if (joined.error().code == 0) return joined.error();
    made.reset(new XdpSocket);
  }
  auto slice = XdpSlice::make(request.memory);
  if (!slice) {
    return Error{slice.error().code, slice.error().what + " for queue " + std::to_string(request.queue) + " of " +
                                         request.device + " (it serves four queues: free memory, or use fewer queues)"};
  }
  made->slice_ = std::move(*slice);
  if (auto bound = made->bind_first(request); !bound) return bound.error();
  return made;
}

Result<XdpKernelCounts> XdpSocket::kernel_counts() const {
  xdp_statistics raw{};
  socklen_t length = sizeof raw;
  if (::getsockopt(fd(), SOL_XDP, XDP_STATISTICS, &raw, &length) != 0) {
    return Error{errno, "read the statistics of an AF_XDP socket"};
  }
  // Before Linux 5.9 `length` is shorter and rx_dropped holds both.
  return XdpKernelCounts{.rx_lost = raw.rx_dropped + raw.rx_ring_full,
                         .rx_ring_full = raw.rx_ring_full,
                         .rx_fill_ring_empty = raw.rx_fill_ring_empty_descs,
                         .invalid_descriptors = raw.rx_invalid_descs + raw.tx_invalid_descs};
}

Result<bool> probe_zero_copy(const XdpSocketRequest& request) {
  auto fd = new_socket(request.device);
  if (!fd) return fd.error();
  constexpr size_t kBytes = size_t{2} * kProbeEntries * kXdpChunkBytes;
  void* const memory = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return Error{errno, "allocate memory to try zero-copy on " + request.device};
  const Mapping keep(memory, kBytes);
  if (auto registered = register_memory(fd->get(), request.device, memory, kBytes); !registered)
    return registered.error();
  for (const int option : {XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING}) {
    if (!set_option(fd->get(), option, kProbeEntries)) return Error{errno, "make a ring of an AF_XDP socket"};
  }
  for (const uint16_t flags : kZeroCopyFlags) {
    if (request.fragments && (flags & kXdpUseSg) == 0) continue;
    const int error = bind_socket(fd->get(), request, flags);
    if (error == 0) return true;
    if (error == EBUSY || error == ENODEV || error == ENETDOWN) return bind_error(error, request.device, request.queue);
  }
  return false;
}

}  // namespace sw
