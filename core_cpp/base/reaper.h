// SPDX-License-Identifier: Apache-2.0
// Reaper: lets go of what a peer gave us, elsewhere, because to let go of it can take as long as the peer likes.
//
// Theory of operation. Whoever closes the last descriptor of an open file runs the file's end: a TCP socket that was told
// to linger waits for its peer's acknowledgements, a file on FUSE for its server, a large piece of memory until all
// its pages are free. A peer passes such a file, closes its own descriptor, and ours is the last; or it leaves it in a
// message that we never read, and it ends with the socket. So none of them is closed on a thread that others wait for. A
// thread of its own does it, which is there while something waits to be done. A Reaper belongs to one port: what never
// ends then holds up that port alone, which is to refuse its peer while pending() stays high.
#pragma once

#include <cstddef>
#include <memory>

#include "base/fd.h"

namespace sw {

class Reaper {
 public:
  static constexpr size_t kMostPending = 64;  // then a peer gives us what does not end, and is to be sent away

  Reaper();
  // What still waits goes on waiting and is closed when it can be.
  ~Reaper() = default;
  Reaper(const Reaper&) = delete;
  Reaper& operator=(const Reaper&) = delete;

  // Returns at once. Any thread, as all of this.
  void close(UniqueFd fd);
  // A connection, with what lies unread in it. Closed here and now if nothing does.
  void hang_up(UniqueFd socket);
  void drop(std::shared_ptr<const void> object);
  // How many things were given to us and are not gone yet.
  [[nodiscard]] size_t pending() const;
  // The same of all Reapers of the process.
  [[nodiscard]] static size_t pending_everywhere();
  [[nodiscard]] bool stuck() const { return pending() >= kMostPending; }

 private:
  struct Shared;  // with the thread
  std::shared_ptr<Shared> shared_;
};

}  // namespace sw
