// SPDX-License-Identifier: Apache-2.0
// CRC-32C (RFC 3720, appendix B.4): the checksum of SCTP (RFC 9260, appendix A). Byte by byte from a table: only frames
// of local senders need it, whose kernel left it to a device that does not exist.
#pragma once

#include <cstddef>
#include <cstdint>

#include "net/frame.h"

namespace sw {

inline constexpr uint16_t kSctpChecksumOffset = 8;

// The register after `bytes` more; begin with ~0, the CRC is the complement of the end.
uint32_t crc32c(uint32_t state, const uint8_t* data, size_t bytes);

// Write the checksum of the SCTP packet whose header is at `start`, to the end of the frame. False, with nothing
// changed: its header is not in the head.
bool finish_sctp(Frame& frame, uint32_t start);

}  // namespace sw
