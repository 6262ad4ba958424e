// SPDX-License-Identifier: Apache-2.0
// Arbitrary guest memory behind a packed ring: see device_fuzz.h.
#include "device_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return sw::fuzz::run(true, data, size); }
