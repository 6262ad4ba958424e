// SPDX-License-Identifier: Apache-2.0
// A vhost-user front-end by hand: every byte and descriptor it sends is the test's choice.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/mmap.h"
#include "base/reaper.h"
#include "support/eventually.h"
#include "vhost_user/message.h"

namespace sw::testing {

inline constexpr const char* kGuestFile = "guest-under-test";

// The guest's memory: a memfd, mapped here too.
class SharedFile {
 public:
  explicit SharedFile(size_t bytes)
      : fd_(::memfd_create(kGuestFile, MFD_CLOEXEC)),
        mapping_(::ftruncate(fd_.get(), static_cast<off_t>(bytes)) == 0
                     ? ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0)
                     : nullptr,
                 bytes) {}
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] uint8_t* data() const { return reinterpret_cast<uint8_t*>(mapping_.data()); }
  [[nodiscard]] uint64_t address() const { return reinterpret_cast<uint64_t>(mapping_.data()); }
  [[nodiscard]] size_t size() const { return mapping_.size(); }
  void truncate(size_t bytes) const { (void)!::ftruncate(fd_.get(), static_cast<off_t>(bytes)); }

 private:
  UniqueFd fd_;
  Mapping mapping_;
};

inline UniqueFd make_eventfd(unsigned initial = 0, int flags = EFD_CLOEXEC | EFD_NONBLOCK) {
  return UniqueFd(::eventfd(initial, flags));
}
inline uint64_t drain_eventfd(int fd) {
  uint64_t count = 0;
  (void)!::read(fd, &count, sizeof count);
  return count;
}

// What this process holds: equal before and after means nothing leaked.
// Once nothing is closed in the background any more, be it for an earlier test.
inline size_t open_descriptors() {
  (void)eventually([] { return Reaper::pending_everywhere() == 0; });
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}
inline size_t guest_mappings() {
  std::ifstream maps("/proc/self/maps");
  size_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find(kGuestFile) != std::string::npos ? 1 : 0;
  return count;
}

inline std::array<UniqueFd, 2> stream_pair() {
  std::array<int, 2> fds{-1, -1};
  (void)!::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds.data());
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

class VhostPeer {
 public:
  explicit VhostPeer(UniqueFd socket) : socket_(std::move(socket)) {}

  // Raw bytes with descriptors. False when the socket does not take them.
  bool send_bytes(std::span<const std::byte> bytes, std::span<const int> fds = {}) const {
    iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
    std::vector<char> control(CMSG_SPACE(std::max<size_t>(fds.size_bytes(), 1)));
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    if (!fds.empty()) {
      header.msg_control = control.data();
      header.msg_controllen = control.size();
      cmsghdr* rights = CMSG_FIRSTHDR(&header);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(fds.size_bytes());
      std::memcpy(CMSG_DATA(rights), fds.data(), fds.size_bytes());
    }
    return ::sendmsg(socket_.get(), &header, MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(bytes.size());
  }

  static std::vector<std::byte> encode(uint32_t request, uint32_t flags, uint32_t announced,
                                       std::span<const std::byte> payload) {
    const VhostHeader header{request, flags, announced};
    std::vector<std::byte> bytes(sizeof header + payload.size());
    std::memcpy(bytes.data(), &header, sizeof header);
    std::copy(payload.begin(), payload.end(), bytes.begin() + sizeof header);
    return bytes;
  }

  bool send_raw(uint32_t request, uint32_t flags, std::span<const std::byte> payload,
                std::span<const int> fds = {}) const {
    return send_bytes(encode(request, flags, static_cast<uint32_t>(payload.size()), payload), fds);
  }
  bool send(VhostRequest request, std::vector<int> fds = {}, uint32_t flags = kVhostVersion) const {
    return send_raw(static_cast<uint32_t>(request), flags, {}, fds);
  }
  template <class T>
  bool send(VhostRequest request, const T& payload, std::vector<int> fds = {}, uint32_t flags = kVhostVersion) const {
    return send_raw(static_cast<uint32_t>(request), flags, std::as_bytes(std::span(&payload, 1)), fds);
  }

  // The next reply if one is there.
  [[nodiscard]] std::optional<VhostMessage> receive() const {
    VhostHeader header{};
    if (::recv(socket_.get(), &header, sizeof header, MSG_DONTWAIT) != sizeof header) return std::nullopt;
    VhostMessage message;
    message.request = static_cast<VhostRequest>(header.request);
    message.flags = header.flags;
    message.size = header.size;
    if (header.size > message.payload.size()) return std::nullopt;
    if (header.size != 0 &&
        ::recv(socket_.get(), message.payload.data(), header.size, MSG_DONTWAIT) != static_cast<ssize_t>(header.size)) {
      return std::nullopt;
    }
    return message;
  }

  // Did the other side hang up?
  [[nodiscard]] bool hung_up() const {
    pollfd look{socket_.get(), POLLRDHUP, 0};
    return ::poll(&look, 1, 0) == 1 && (look.revents & (POLLRDHUP | POLLHUP)) != 0;
  }
  void close() { socket_.reset(); }
  void half_close() const { ::shutdown(socket_.get(), SHUT_WR); }
  [[nodiscard]] int fd() const { return socket_.get(); }

 private:
  UniqueFd socket_;
};

}  // namespace sw::testing
