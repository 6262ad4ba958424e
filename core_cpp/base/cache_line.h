// SPDX-License-Identifier: Apache-2.0
// Cache lines as things that have a place and a price: how long one takes to come, and giving it back to memory.
#pragma once

#include <xmmintrin.h>

#include <cstddef>
#include <cstdint>

#include "base/result.h"

namespace sw {

inline constexpr size_t kLineBytes = 64;

// The line at `at`, or the one that it points into.
inline const uint8_t* line_of(const uint8_t* at) {
  return reinterpret_cast<const uint8_t*>(reinterpret_cast<uintptr_t>(at) & ~uintptr_t{kLineBytes - 1});
}

// How long one load of `line` takes now, in ticks of the time stamp counter, the measuring included. Loads nothing else:
// what was asked for before is waited for.
uint32_t ticks_of_load(const void* line);

// The same for taking it away from other CPUs' caches, as a store must. The byte is written as it is.
uint32_t ticks_of_store(uint8_t* line);

// As ticks_of_load, for a line that is in no cache: the median of many, found on the first call (a few microseconds). 0 if
// this CPU cannot give lines back, so that no line is ever told to be as far as memory.
uint32_t ticks_of_memory();

// Write the lines that lie within [data, data + bytes) back to memory if they were changed, and leave them in no CPU's
// cache. What they hold stays. Nothing is waited for. Only if ticks_of_memory() is not 0.
void give_back(const uint8_t* data, size_t bytes);

// memcpy past the cache: whole lines of the destination go to memory without being fetched first, and are in no cache
// after. Other threads may see it late: stream_fence() before anything that says it is there.
void stream_copy(uint8_t* to, const uint8_t* from, size_t bytes);
inline void stream_fence() { _mm_sfence(); }

// Ticks from a store of one CPU until another one has seen it: half of the shortest round trip of a line in 2 ms or so.
// Two threads spin meanwhile.
Result<uint32_t> ticks_between(int cpu, int other_cpu);

}  // namespace sw
