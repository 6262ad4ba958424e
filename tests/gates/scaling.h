// SPDX-License-Identifier: Apache-2.0
// How many frames one or two workers move, each driving both ends of its rings itself: no generator takes a CPU from
// them, so that what two of them do more than one is the scaling of the workers alone.
#pragma once

#include <cstdint>
#include <string>

#include "sharing.h"

namespace sw::gates {

struct ScalingRound {
  uint32_t workers;  // 1 or 2, on CPUs 0 and 1
  uint32_t bytes;    // of a frame
  uint64_t milliseconds;
};

// Frames a second that arrive. Where two workers send into one queue, whoever finds frames in it takes them out.
double frames_per_second(const Sharing& sharing, const ScalingRound& round, std::string& error);

}  // namespace sw::gates
