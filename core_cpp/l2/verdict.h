// SPDX-License-Identifier: Apache-2.0
// What becomes of a frame that enters now: kNoDrop when somebody gets it. As forward() decides, without doing it.
#pragma once

#include <cstdint>

#include "l2/policy.h"
#include "stats/drop_reason.h"

namespace sw {

// `head`: the first bytes of the frame, at least 14. Neighbours of one batch that change the table are not foreseen.
DropReason verdict(const uint8_t* head, uint32_t head_len, const PortPolicy& source, const BridgeView& bridge);

}  // namespace sw
