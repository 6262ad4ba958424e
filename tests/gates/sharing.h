// SPDX-License-Identifier: Apache-2.0
// What two workers touch: every instruction of one loop of each, with all registers, so that the addresses of its
// operands can be computed. tests/gates/sharing.py does that and says which cache lines one worker writes and the other
// reads.
#pragma once

#include <string>
#include <vector>

#include "world.h"

namespace sw::gates {

struct Sharing {
  std::string name;
  bool same_ports = false;    // both workers serve the same two ports, each its own queue of them
  bool shared_queue = false;  // and send into the same transmit queue
};

std::vector<Sharing> all_sharings();
WorldOptions options_of(const Sharing& sharing);

// Frames of worker `w`: from which guest to which, in which queue.
struct Way {
  uint32_t from, to, queue;
};
Way way_of(const Sharing& sharing, uint32_t worker);

// Writes `file` (the registers of both loops) and returns a description of it as JSON; empty with `error` set when
// the workers' frames did not arrive.
std::string trace_sharing(const Sharing& sharing, const std::string& file, std::string& error);

}  // namespace sw::gates
