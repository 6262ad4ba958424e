// SPDX-License-Identifier: Apache-2.0
// The parts of the module, one file each.
#pragma once

#include <pybind11/pybind11.h>

namespace sw {

void bind_guest(pybind11::module_& module);  // switch.testing's software guest

}  // namespace sw
