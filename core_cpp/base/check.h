// SPDX-License-Identifier: Apache-2.0
// SW_CHECK: for our own bugs only. What a guest, a file or the kernel may do is a Result or a counter.
#pragma once

#include <cstdio>
#include <cstdlib>

#define SW_CHECK(condition)                                                                  \
  do {                                                                                       \
    if (!(condition)) [[unlikely]] {                                                         \
      std::fprintf(stderr, "%s:%d: broken invariant: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                          \
    }                                                                                        \
  } while (false)
