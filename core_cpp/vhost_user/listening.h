// SPDX-License-Identifier: Apache-2.0
// ListeningSocket: a socket that peers connect to, for as long as somebody waits for them. A cleaner of temporary files,
// or a person, may remove its file: then it is made again, or nobody could come any more. Who is connected stays so.
#pragma once

#include <functional>
#include <string>

#include "base/event_loop.h"
#include "base/result.h"
#include "vhost_user/socket.h"

namespace sw {

class ListeningSocket {
 public:
  struct Place {
    std::string path;
    int mode = -1;  // as UnixListener::open has them
    int gid = -1;
  };
  // `on_peer`: somebody waits to be accepted. `on_event`: something a person wants to know, with its kind.
  ListeningSocket(EventLoop& loop, Place place, std::function<void()> on_peer,
                  std::function<void(const std::string& kind, const std::string& detail)> on_event);
  ~ListeningSocket() { close(); }
  ListeningSocket(const ListeningSocket&) = delete;
  ListeningSocket& operator=(const ListeningSocket&) = delete;

  Result<void> open();
  void close();
  [[nodiscard]] Result<UniqueFd> accept() const { return listener_.accept(); }
  // Nobody is let in for so long; who comes waits in the kernel's queue.
  void rest(uint64_t delay_ms);
  // Why the socket, which somebody removed, could not be made again; empty while it is there.
  [[nodiscard]] std::string trouble() const;

 private:
  Result<void> listen();
  Result<void> watch();
  void look_later();

  EventLoop& loop_;
  const Place place_;
  const std::function<void()> on_peer_;
  const std::function<void(const std::string&, const std::string&)> on_event_;
  UnixListener listener_;
  std::string failed_;
  EventLoop::TimerId look_timer_ = 0;
  EventLoop::TimerId rest_timer_ = 0;
};

}  // namespace sw
