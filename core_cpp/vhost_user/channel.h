// SPDX-License-Identifier: Apache-2.0
// Channel: vhost-user messages over a non-blocking stream socket, for either side. Never blocks, never leaks a
// descriptor.
//
// Theory of operation. A message is a 12-byte header, then `size` bytes of payload; file descriptors travel as
// SCM_RIGHTS with the header. receive() reads exactly what is missing of the current message, so descriptors of the
// next one can never be mixed in (the kernel does not merge bytes across a control message), and keeps a partial
// message until more arrives. What cannot be framed (payload beyond kMaxPayloadBytes, wrong version, more descriptors
// than fit) ends the connection: after it nobody knows where the next message begins. send() writes at once; what the
// socket does not take is queued, with the descriptors duplicated, until flush(). The queue is bounded.
//
// No message of a network device carries descriptors but eventfds and shared memory, which close at once. What else
// comes, and what lies unread when the connection ends, goes to the Reaper.
#pragma once

#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "base/fd.h"
#include "base/reaper.h"
#include "base/result.h"
#include "vhost_user/message.h"

namespace sw {

class Channel {
 public:
  enum class Receive : uint8_t {
    kMessage,  // one whole message is in `message`
    kAgain,    // nothing more for now: wait for EPOLLIN
    kClosed,   // the peer closed the connection; error() is set if it was in the middle of a message
    kFailed,   // framing broken or the socket failed: close the connection, error() says why
  };

  // The socket is made non-blocking here. `reaper`: of the port, so that it knows of all its connections.
  explicit Channel(UniqueFd socket, std::shared_ptr<Reaper> reaper = std::make_shared<Reaper>());
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  // Read at most one message. Its descriptors belong to the caller.
  Receive receive(VhostMessage& message);

  // Send a message; `fds` are borrowed (message.fds is not sent). Errors are fatal for the connection.
  Result<void> send(const VhostMessage& message, std::span<const int> fds = {});
  // Write what is queued. Call on EPOLLOUT.
  Result<void> flush();
  [[nodiscard]] bool want_write() const { return !queue_.empty(); }  // then watch for EPOLLOUT

  [[nodiscard]] int fd() const { return socket_.get(); }
  [[nodiscard]] const Error& error() const { return error_; }

 private:
  struct Pending {
    std::vector<std::byte> bytes;
    size_t sent = 0;
    std::vector<UniqueFd> fds;  // go with the first byte
  };
  enum class Read : uint8_t { kDone, kAgain, kClosed, kFailed };

  void take(int fd);
  Read read_exactly(std::byte* to, size_t bytes);  // continues at received_
  Receive fail(int code, std::string what);
  Receive stop(Read how);

  UniqueFd socket_;
  const std::shared_ptr<Reaper> reaper_;
  Error error_;
  std::array<std::byte, sizeof(VhostHeader)> header_{};
  size_t received_ = 0;  // bytes of the part being read (header or payload)
  bool in_payload_ = false;
  VhostMessage partial_;
  std::deque<Pending> queue_;
};

}  // namespace sw
