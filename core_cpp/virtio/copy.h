// SPDX-License-Identifier: Apache-2.0
// Copies of exact length that compile to a few vector moves: frame heads are short and their sizes predictable.
#pragma once

#include <cstdint>
#include <cstring>

namespace sw {

// Exactly `bytes` bytes, never more: an over-long write would show one guest's memory to another. Tails overlap what is
// already written instead of looping over single bytes.
inline void copy_short(uint8_t* __restrict to, const uint8_t* __restrict from, uint32_t bytes) {
  if (bytes >= 64) {
    std::memcpy(to, from, 64);
    if (bytes == 64) return;
    for (uint32_t at = 64; at + 64 < bytes; at += 64) std::memcpy(to + at, from + at, 64);
    std::memcpy(to + bytes - 64, from + bytes - 64, 64);
  } else if (bytes >= 32) {
    std::memcpy(to, from, 32);
    std::memcpy(to + bytes - 32, from + bytes - 32, 32);
  } else if (bytes >= 16) {
    std::memcpy(to, from, 16);
    std::memcpy(to + bytes - 16, from + bytes - 16, 16);
  } else {
    std::memcpy(to, from, bytes);
  }
}

inline void prefetch_read(const void* address) { __builtin_prefetch(address, 0, 3); }

}  // namespace sw
