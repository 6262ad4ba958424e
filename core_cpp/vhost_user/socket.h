// SPDX-License-Identifier: Apache-2.0
// Unix stream sockets by path, for both sides of vhost-user: listen with a mode and a group, connect without waiting.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace sw {

// A listening socket and the file it made. The file is removed with it, unless somebody has put another one there.
class UnixListener {
 public:
  // `mode`: permission bits of the socket file, -1: as umask says. `gid`: its group, -1: as it comes. Both are in force
  // before the first peer can connect. A path left over by a dead process is taken over; one in use, or a file that is
  // no socket, is not. The error says what to do about it.
  static Result<UnixListener> open(const std::string& path, int mode, int gid);
  UnixListener() = default;
  UnixListener(UnixListener&& other) noexcept = default;
  UnixListener& operator=(UnixListener&& other) noexcept;
  ~UnixListener() { close(); }

  void close();
  // A connection, non-blocking; errno EAGAIN when nobody is waiting.
  [[nodiscard]] Result<UniqueFd> accept() const;
  [[nodiscard]] bool removed() const;  // nothing has the path any more, so nobody can come
  [[nodiscard]] int fd() const { return socket_.get(); }
  explicit operator bool() const { return static_cast<bool>(socket_); }

 private:
  UniqueFd socket_;
  std::string path_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

// Connect at once or fail (Unix sockets do not connect in the background; a full backlog is EAGAIN).
Result<UniqueFd> connect_unix(const std::string& path);

// Fails when a socket cannot have this path: empty, or longer than the kernel takes.
Result<void> check_unix_path(const std::string& path);

}  // namespace sw
