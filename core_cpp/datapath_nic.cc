// SPDX-License-Identifier: Apache-2.0
// Ports whose device the control plane opens: the facade in front of port/nic.h.
#include <cerrno>

#include "datapath.h"
#include "datapath_records.h"

namespace sw {

// Under the control lock.
Result<NicSeat*> Datapath::nic_seat(const std::string& name) {
  PortRecord* const record = find(name);
  if (record == nullptr) return Error{ENOENT, "no such port"};
  NicSeat* const seat = record->port->nic_seat();
  if (seat == nullptr) return Error{0, "a port of type '" + record->spec.config.type + "' opens its device itself"};
  return seat;
}

Result<NicMemory> Datapath::nic_reserve(const std::string& name, uint32_t mtu) {
  const Guard guard(control_.mutex());
  auto seat = nic_seat(name);
  if (!seat) return seat.error();
  return (*seat)->reserve(mtu);
}

Result<int> Datapath::nic_attach(const std::string& name, const NicHandles& handles) {
  const Guard guard(control_.mutex());
  auto seat = nic_seat(name);
  if (!seat) return seat.error();
  return (*seat)->attach(handles);
}

Result<void> Datapath::nic_detach(const std::string& name, const std::string& why) {
  const Guard guard(control_.mutex());
  auto seat = nic_seat(name);
  if (!seat) return seat.error();
  (*seat)->detach(why);
  return {};
}

Result<void> Datapath::nic_link(const std::string& name, bool up, const std::string& why) {
  const Guard guard(control_.mutex());
  auto seat = nic_seat(name);
  if (!seat) return seat.error();
  (*seat)->set_link(up, why);
  return {};
}

Result<std::string> Datapath::nic_fault(const std::string& name) {
  const Guard guard(control_.mutex());
  auto seat = nic_seat(name);
  if (!seat) return seat.error();
  return (*seat)->fault();
}

}  // namespace sw
