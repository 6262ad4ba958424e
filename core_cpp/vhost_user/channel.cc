// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/channel.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/check.h"

namespace sw {

namespace {

constexpr size_t kMaxQueuedMessages = 64;  // a peer that does not read its replies costs at most this much

// Room for all that the kernel lets one message have (SCM_MAX_FD): what did not fit it would close itself, on this thread.
constexpr size_t kControlFds = 253;

union ControlBuffer {
  cmsghdr align;
  std::array<char, CMSG_SPACE(sizeof(int) * kControlFds)> bytes;
};

// What /proc says of a descriptor. Never "anon_inode:..." for a file: names of files begin with a slash.
std::string describe(int fd) {
  std::array<char, 64> target{};
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t bytes = ::readlink(link.c_str(), target.data(), target.size());
  return bytes <= 0 ? std::string() : std::string(target.data(), static_cast<size_t>(bytes));
}

// Neither question asks a file system, which might answer when it likes.
bool is_shared_memory(int fd) { return ::fcntl(fd, F_GET_SEALS) >= 0; }
bool is_eventfd(const std::string& description) {
  return description.empty() || description == "anon_inode:[eventfd]";  // empty: no /proc; whoever uses it looks again
}

// Bytes written, or -1 with errno.
ssize_t send_part(int socket, std::span<const std::byte> bytes, std::span<const int> fds) {
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  ControlBuffer control{};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (!fds.empty()) {
    header.msg_control = control.bytes.data();
    header.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::copy_n(reinterpret_cast<const char*>(fds.data()), fds.size_bytes(),
                reinterpret_cast<char*>(CMSG_DATA(rights)));
  }
  ssize_t sent = 0;
  do {
    sent = ::sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent;
}

}  // namespace

Channel::Channel(UniqueFd socket, std::shared_ptr<Reaper> reaper)
    : socket_(std::move(socket)), reaper_(std::move(reaper)) {
  const int flags = ::fcntl(socket_.get(), F_GETFL);
  if (flags >= 0) (void)::fcntl(socket_.get(), F_SETFL, flags | O_NONBLOCK);
}

Channel::~Channel() { reaper_->hang_up(std::move(socket_)); }

// A descriptor of the message that is being read.
void Channel::take(int fd) {
  UniqueFd taken(fd);
  if (!is_shared_memory(fd)) {
    std::string description = describe(fd);
    if (!is_eventfd(description)) {
      if (partial_.foreign.empty()) partial_.foreign = std::move(description);
      reaper_->close(std::move(taken));
    }
  }
  partial_.fds.push_back(std::move(taken));  // its place, if it is gone
}

Channel::Receive Channel::fail(int code, std::string what) {
  partial_.fds.clear();
  error_ = Error{code, std::move(what)};
  return Receive::kFailed;
}

Channel::Receive Channel::stop(Read how) {
  if (how == Read::kAgain) return Receive::kAgain;
  if (how == Read::kFailed) {
    partial_.fds.clear();
    return Receive::kFailed;
  }
  if (in_payload_ || received_ != 0) error_ = Error{0, "the peer closed the connection in the middle of a message"};
  partial_.fds.clear();
  return Receive::kClosed;
}

Channel::Read Channel::read_exactly(std::byte* to, size_t bytes) {
  while (received_ < bytes) {
    iovec part{to + received_, bytes - received_};
    ControlBuffer control;
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control.bytes.data();
    header.msg_controllen = sizeof control.bytes;
    const ssize_t got = ::recvmsg(socket_.get(), &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return Read::kAgain;
      if (errno == ECONNRESET || errno == EPIPE) return Read::kClosed;
      error_ = Error{errno, "read from the vhost-user socket"};
      return Read::kFailed;
    }
    for (cmsghdr* part_of = CMSG_FIRSTHDR(&header); part_of != nullptr; part_of = CMSG_NXTHDR(&header, part_of)) {
      if (part_of->cmsg_level != SOL_SOCKET || part_of->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (part_of->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) take(load_unaligned<int>(CMSG_DATA(part_of) + i * sizeof(int)));
    }
    if ((header.msg_flags & MSG_CTRUNC) != 0) {
      error_ = Error{0, "file descriptors of a message were lost: this process has no free ones"};
      return Read::kFailed;
    }
    if (reaper_->stuck()) {
      error_ = Error{0, "too many file descriptors that came on this socket still wait to be closed"};
      return Read::kFailed;
    }
    if (partial_.fds.size() > kMaxMessageFds) {
      error_ = Error{0, "a message carries more than 8 file descriptors"};
      return Read::kFailed;
    }
    if (got == 0) return Read::kClosed;
    received_ += static_cast<size_t>(got);
  }
  received_ = 0;
  return Read::kDone;
}

Channel::Receive Channel::receive(VhostMessage& message) {
  if (!in_payload_) {
    const Read read = read_exactly(header_.data(), header_.size());
    if (read != Read::kDone) return stop(read);
    const auto header = load_unaligned<VhostHeader>(header_.data());
    if ((header.flags & kVhostFlagVersionMask) != kVhostVersion) {
      return fail(0, "vhost-user version " + std::to_string(header.flags & kVhostFlagVersionMask) + " instead of 1");
    }
    if (header.size > kMaxPayloadBytes) {
      return fail(0, "request " + std::to_string(header.request) + " announces " + std::to_string(header.size) +
                         " bytes of payload, more than any message of a network device has");
    }
    partial_.request = static_cast<VhostRequest>(header.request);
    partial_.flags = header.flags;
    partial_.size = header.size;
    partial_.payload.fill(std::byte{0});
    in_payload_ = true;
  }
  const Read read = read_exactly(partial_.payload.data(), partial_.size);
  if (read != Read::kDone) return stop(read);
  in_payload_ = false;
  message = std::move(partial_);
  partial_ = VhostMessage{};
  return Receive::kMessage;
}

Result<void> Channel::send(const VhostMessage& message, std::span<const int> fds) {
  SW_CHECK(fds.size() <= kMaxMessageFds && message.size <= kMaxPayloadBytes);
  if (queue_.size() >= kMaxQueuedMessages) return Error{0, "the peer does not read its vhost-user socket"};
  Pending pending;
  pending.bytes.resize(sizeof(VhostHeader) + message.size);
  store_unaligned(pending.bytes.data(),
                  VhostHeader{static_cast<uint32_t>(message.request), message.flags, message.size});
  std::copy_n(message.payload.begin(), message.size, pending.bytes.begin() + sizeof(VhostHeader));
  if (queue_.empty()) {
    const ssize_t sent = send_part(socket_.get(), pending.bytes, fds);
    if (sent == static_cast<ssize_t>(pending.bytes.size())) return {};
    if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK) return Error{errno, "write to the vhost-user socket"};
    if (sent > 0) {
      pending.sent = static_cast<size_t>(sent);
      fds = {};  // they went with the first byte
    }
  }
  for (const int fd : fds) {
    UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!copy) return Error{errno, "keep a file descriptor for a queued vhost-user message"};
    pending.fds.push_back(std::move(copy));
  }
  queue_.push_back(std::move(pending));
  return {};
}

Result<void> Channel::flush() {
  while (!queue_.empty()) {
    Pending& first = queue_.front();
    std::vector<int> fds;
    for (const UniqueFd& fd : first.fds) fds.push_back(fd.get());
    const ssize_t sent = send_part(socket_.get(), std::span(first.bytes).subspan(first.sent), fds);
    if (sent < 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK) return {};
      return Error{errno, "write to the vhost-user socket"};
    }
    first.fds.clear();
    first.sent += static_cast<size_t>(sent);
    if (first.sent == first.bytes.size()) queue_.pop_front();
  }
  return {};
}

}  // namespace sw
