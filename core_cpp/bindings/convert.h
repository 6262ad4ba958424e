// SPDX-License-Identifier: Apache-2.0
// Conversions between the facade's structs and plain Python values. No logic.
#pragma once

#include <pybind11/pybind11.h>

#include "datapath.h"

namespace sw {

// Raises switch._core.CoreError(errno, message).
[[noreturn]] void raise(const Error& error);

inline void check(const Result<void>& result) {
  if (!result) raise(result.error());
}
template <class T>
T unwrap(Result<T> result) {
  if (!result) raise(result.error());
  return std::move(*result);
}

// Run a facade call without the GIL and turn its Result into a value or an exception.
template <class Call>
auto without_gil(Call call) {
  auto result = [&] {
    const pybind11::gil_scoped_release released;
    return call();
  }();
  if (!result) raise(result.error());
  if constexpr (!std::is_same_v<decltype(result), Result<void>>) return std::move(*result);
}

// Keys are the fields of switch.datapath.PortSpec.
PortSpec port_spec(const pybind11::dict& spec);
pybind11::dict to_python(const PortView& view);
pybind11::dict to_python(const Stats& stats);
pybind11::tuple to_python(const FdbPage& page);    // ([(vlan, mac, port, owner, age)], matched)
pybind11::tuple to_python(const FdbGroup& group);  // (vlan, port, age, addresses of six bytes each)
pybind11::tuple to_python(const Event& event);     // (time, kind, bridge, port, old_port, vlan, mac, detail)
// ([(time in ns, enters the switch?, queue, drop reason or "", bytes of the frame, those kept)], missed, attached)
pybind11::tuple to_python(const CaptureView& view);
FdbOwner fdb_owner(const std::string& name);
// Of six bytes each, in network byte order; what is left over at the end is not an address.
std::vector<Mac> macs_from_bytes(const pybind11::bytes& bytes);

}  // namespace sw
