// SPDX-License-Identifier: Apache-2.0
// What vector instructions this CPU and kernel let us use, found once at run time. The binary itself is built for
// x86-64-v2 and runs everywhere; faster twins of a routine are chosen by this.
#pragma once

#include <cstdint>

namespace sw {

enum class VectorLevel : uint8_t {
  kBase,  // SSE4.2
  kAvx2,
};

// gcc's runtime asks CPUID and XGETBV: the operating system must save the registers, too.
inline VectorLevel vector_level() {
  static const VectorLevel level = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") ? VectorLevel::kAvx2 : VectorLevel::kBase;
  }();
  return level;
}

}  // namespace sw
