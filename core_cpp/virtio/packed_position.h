// SPDX-License-Identifier: Apache-2.0
// Where a packed ring stands, read from the ring itself: for a device that takes over a running ring and is told a
// position from before its predecessor died.
//
// Theory of operation. A split ring keeps the device's index in shared memory; a packed ring does not, and the
// front-end does not know it either when a back-end dies (QEMU then repeats the position of the last start). But the
// descriptors tell. The driver fills slots one after the other and the device returns them in the same order, so, going
// round, the slots are one run that is available and one that is used, and the device stands where the available run
// begins. The lap of each slot (its wrap counter) must fit that, all the way round; one slot that does not, and there
// is no answer.
//
// Holds for buffers of one slot each, which is what a driver makes that uses indirect descriptors. Not with IN_ORDER,
// where slots of a returned batch may stay as the driver wrote them.
#pragma once

#include <cstdint>
#include <optional>

namespace sw {

// Of `size` descriptors in guest memory: the slot, and the device's wrap counter in bit 15, as SET_VRING_BASE has it.
// The driver may add buffers meanwhile.
std::optional<uint16_t> find_packed_position(const uint8_t* descriptors, uint16_t size);

}  // namespace sw
