// SPDX-License-Identifier: Apache-2.0
// XdpProgram: the few instructions that hand the frames of served queues to our sockets, attached to an interface.
//
// Theory of operation. A map from queue number to AF_XDP socket (XSKMAP) and a program of six instructions: look up the
// queue the frame came in on, hand it to the socket there, and if there is none let the host have it (XDP_PASS is the
// fallback action of bpf_redirect_map, Linux 5.3). The program is attached by a BPF link. The kernel detaches it when the
// link's descriptor is closed, by us or by our death, so nothing stays on the interface whatever happens.
#pragma once

#include <cstdint>
#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace sw {

class XdpProgram {
 public:
  // Attach to the interface of `index` in the driver, or where that is not possible in the kernel's generic path.
  // `device`: its name, for messages. Queues have no socket yet: the host has all frames.
  static Result<XdpProgram> attach(int index, const std::string& device, uint32_t queues);

  Result<void> serve(uint32_t queue, int socket);

  [[nodiscard]] bool in_driver() const { return why_generic_.empty(); }
  [[nodiscard]] bool takes_fragments() const { return fragments_; }  // frames in several buffers reach it
  [[nodiscard]] const std::string& why_generic() const { return why_generic_; }

 private:
  UniqueFd map_;
  UniqueFd program_;
  UniqueFd link_;  // declared last, closed first
  bool fragments_ = false;
  std::string why_generic_;
};

}  // namespace sw
