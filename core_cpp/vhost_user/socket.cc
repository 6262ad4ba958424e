// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace sw {

namespace {

constexpr int kBacklog = 4;  // one peer at a time is served; the others are refused at once

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::copy(path.begin(), path.end(), static_cast<char*>(address.sun_path));
  return address;
}

Result<UniqueFd> stream_socket() {
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return Error{errno, "create a Unix socket"};
  return socket;
}

std::string parent_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Error bind_error(const std::string& path, int code) {
  const std::string what = "listen on " + path;
  switch (code) {
    case ENOENT:
      return {code, what + " (the directory " + parent_of(path) + " does not exist: create it or change `socket`)"};
    case ENOTDIR:
      return {code, what + " (" + parent_of(path) + " is not a directory: change `socket`)"};
    case EACCES:
    case EPERM:
      return {code, what + " (this process may not create files in " + parent_of(path) +
                        ": change its owner or mode, or change `socket`)"};
    case EROFS:
      return {code, what + " (choose a `socket` on a writable file system)"};
    default:
      return {code, what};
  }
}

// Remove what a dead process left at `path`; an error if it is anything else.
Result<void> remove_stale(const std::string& path) {
  struct stat info{};
  if (::lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return {};  // gone meanwhile
    return Error{errno, "look at " + path};
  }
  if (!S_ISSOCK(info.st_mode)) {
    return Error{EEXIST,
                 "listen on " + path + " (something that is not a socket has this name: remove it or change `socket`)"};
  }
  auto probe = connect_unix(path);
  if (probe || probe.error().code == EAGAIN) {
    return Error{
        EADDRINUSE,
        "listen on " + path + " (another process listens there: stop it, change `socket`, or set socket_owner: peer)"};
  }
  if (probe.error().code == ENOENT) return {};
  if (probe.error().code != ECONNREFUSED) {
    return Error{probe.error().code, "listen on " + path + " (a socket exists there and cannot be tested: remove it)"};
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return Error{errno, "remove the stale socket " + path};
  return {};
}

}  // namespace

Result<void> check_unix_path(const std::string& path) {
  if (path.empty()) return Error{EINVAL, "use an empty socket path (set `socket`)"};
  if (path.find('\0') != std::string::npos) return Error{EINVAL, "use a socket path with a zero byte in it"};
  constexpr size_t kMost = sizeof(sockaddr_un::sun_path) - 1;
  if (path.size() > kMost) {
    return Error{ENAMETOOLONG, "use the socket path " + path + " (" + std::to_string(path.size()) + " bytes, at most " +
                                   std::to_string(kMost) + " are possible: choose a shorter `socket`)"};
  }
  return {};
}

Result<UnixListener> UnixListener::open(const std::string& path, int mode, int gid) {
  if (auto checked = check_unix_path(path); !checked) return checked.error();
  auto socket = stream_socket();
  if (!socket) return socket.error();
  const sockaddr_un address = address_of(path);
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  if (::bind(socket->get(), generic, sizeof address) != 0) {
    if (errno != EADDRINUSE) return bind_error(path, errno);
    if (auto removed = remove_stale(path); !removed) return removed.error();
    if (::bind(socket->get(), generic, sizeof address) != 0) return bind_error(path, errno);
  }
  UnixListener listener;
  listener.socket_ = std::move(*socket);
  listener.path_ = path;
  struct stat info{};
  if (::lstat(path.c_str(), &info) == 0) {
    listener.device_ = info.st_dev;
    listener.inode_ = info.st_ino;
  }
  // Nobody can connect before listen(), so there is no moment with other permissions than these.
  if (gid >= 0 && ::lchown(path.c_str(), static_cast<uid_t>(-1), static_cast<gid_t>(gid)) != 0) {
    return Error{errno, "give " + path + " to group " + std::to_string(gid) +
                            " (run as root or as a member of that group, or drop the group from the configuration)"};
  }
  if (mode >= 0 && ::chmod(path.c_str(), static_cast<mode_t>(mode)) != 0)
    return Error{errno, "set the mode of " + path};
  if (::listen(listener.fd(), kBacklog) != 0) return Error{errno, "listen on " + path};
  return listener;
}

UnixListener& UnixListener::operator=(UnixListener&& other) noexcept {
  if (this != &other) {
    close();
    socket_ = std::move(other.socket_);
    path_ = std::move(other.path_);
    device_ = other.device_;
    inode_ = other.inode_;
  }
  return *this;
}

void UnixListener::close() {
  if (!socket_) return;
  struct stat info{};
  if (::lstat(path_.c_str(), &info) == 0 && info.st_dev == device_ && info.st_ino == inode_) ::unlink(path_.c_str());
  socket_.reset();
}

bool UnixListener::removed() const {
  struct stat info{};
  return ::lstat(path_.c_str(), &info) != 0 && errno == ENOENT;
}

Result<UniqueFd> UnixListener::accept() const {
  UniqueFd peer(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!peer) return Error{errno, "accept a connection on " + path_};
  return peer;
}

Result<UniqueFd> connect_unix(const std::string& path) {
  if (auto checked = check_unix_path(path); !checked) return checked.error();
  auto socket = stream_socket();
  if (!socket) return socket.error();
  const sockaddr_un address = address_of(path);
  if (::connect(socket->get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return Error{errno, "connect to " + path};
  }
  return socket;
}

}  // namespace sw
