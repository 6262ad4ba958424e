// SPDX-License-Identifier: Apache-2.0
// The paths whose instructions are counted: kind of rings, kind of traffic, shape of the switch.
#pragma once

#include <string>
#include <vector>

#include "world.h"

namespace sw::gates {

struct Path {
  std::string name;
  uint32_t frames = 32;  // of the counted pass, all from guest 0; 0: an idle pass is counted
  uint32_t bytes = 64;
  uint32_t macs = 1;          // behind guest 0, and as many behind the others together, taken in turn
  uint32_t destinations = 1;  // guests that receive
  bool broadcast = false;
  bool checksum = false;
  WorldOptions world = {};
};

std::vector<Path> all_paths();

// Prepare the path's world, then count one idle and one busy loop of worker 0, with measured(). False: a frame of the
// counted pass is missing. Runs in the child.
bool walk_path(const Path& path);

}  // namespace sw::gates
