// SPDX-License-Identifier: Apache-2.0
// An arbitrary device behind a packed ring of ours: see driver_fuzz.h.
#include "driver_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return sw::fuzz::run_driver(true, data, size);
}
