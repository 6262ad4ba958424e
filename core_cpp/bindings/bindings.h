// SPDX-License-Identifier: Apache-2.0
// The parts of the module, one file each.
#pragma once

#include <pybind11/pybind11.h>

namespace sw {

class Datapath;

void bind_guest(pybind11::module_& module);           // switch.testing's software guest
void bind_nic(pybind11::class_<Datapath>& datapath);  // devices that the control plane opens

}  // namespace sw
