// SPDX-License-Identifier: Apache-2.0
// Frames of local senders on virtual interfaces: their kernel leaves checksums, and in the generic path segmentation, to
// a device that does not exist.
//
// Theory of operation. A kernel that sends on a veth (or through a bridge, a macvlan, ...) stores only the sum of the
// pseudo-header in the checksum field, because the "device" has promised to finish it, and notes that beside the frame.
// AF_XDP hands over the frame without the note. But it shows in the frame: the field equals the pseudo-header's sum. Such
// a frame gets the note back, as NEEDS_CSUM in its virtio-net header: a guest that takes that gets it as it is, for others
// the egress finishes the sum.
//
// If the kernel made a tunnel around a local sender's packet, it is the inner checksum that is unfinished; the outer one
// is 0, or made for the inner packet as it will be. So the search goes on inside VXLAN, GENEVE, GRE and IP in IP, where a
// packet is believed only if it fills the outer one to its end, and the outer UDP checksum fits it when finished (or is
// unfinished as well, in a frame that was left to the device to cut).
//
// A frame whose right checksum happens to equal the pseudo-header's sum (one in 65536) loses nothing: finishing it yields
// the very same checksum. What this cannot tell from an unfinished frame is one of those whose bytes were damaged on the
// way; so it is meant for interfaces without a wire behind them.
#pragma once

#include <cstdint>

#include "net/frame.h"

namespace sw {

// Set `frame.vnet` and `frame.offload` if the frame's TCP or UDP checksum is unfinished, or finish it in the head if the
// frame has bytes behind its IP packet. `max_l3_bytes`: the interface's MTU; a TCP frame beyond it was left to the
// device to cut, and gets its segment size from it. False: such a frame that cannot be cut again.
bool restore_offload(Frame& frame, uint32_t max_l3_bytes);

}  // namespace sw
