// SPDX-License-Identifier: Apache-2.0
// Devices that the control plane opens, as plain values: dicts with the fields of NicMemory and NicHandles.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/convert.h"

namespace py = pybind11;

namespace sw {

namespace {

std::vector<NicHandle> handle_list(const py::handle& list) {
  std::vector<NicHandle> handles;
  for (const py::handle item : list) {
    const auto [pointer, number, type, state] = item.cast<std::tuple<uint64_t, uint32_t, uint32_t, uint32_t>>();
    handles.push_back({.pointer = pointer, .number = number, .type = type, .state = state});
  }
  return handles;
}

NicHandles nic_handles(const py::dict& dict) {
  NicHandles handles;
  handles.lkey = dict["lkey"].cast<uint32_t>();
  handles.max_inline = dict["max_inline"].cast<uint32_t>();
  handles.rx_checksum = dict["rx_checksum"].cast<bool>();
  handles.tx_checksum = dict["tx_checksum"].cast<bool>();
  handles.tx_checksum_v6 = dict["tx_checksum_v6"].cast<bool>();
  handles.max_tso = dict["max_tso"].cast<uint32_t>();
  handles.max_tso_header = dict["max_tso_header"].cast<uint32_t>();
  handles.rx_work_queues = dict["rx_work_queues"].cast<bool>();
  handles.rx = handle_list(dict["rx"]);
  handles.tx = handle_list(dict["tx"]);
  handles.facts = dict["facts"].cast<std::map<std::string, std::string>>();
  return handles;
}

py::dict to_python(const NicMemory& memory) {
  py::dict dict;
  dict["address"] = memory.address;
  dict["bytes"] = memory.bytes;
  dict["page_bytes"] = memory.page_bytes;
  dict["rx_slots"] = memory.rx_slots;
  dict["tx_slots"] = memory.tx_slots;
  return dict;
}

}  // namespace

void bind_nic(py::class_<Datapath>& datapath) {
  datapath
      .def("nic_reserve",
           [](Datapath& self, const std::string& port, uint32_t mtu) {
             return to_python(without_gil([&] { return self.nic_reserve(port, mtu); }));
           })
      .def("nic_attach",
           [](Datapath& self, const std::string& port, const py::dict& dict) {
             const NicHandles handles = nic_handles(dict);
             return without_gil([&] { return self.nic_attach(port, handles); });
           })
      .def("nic_detach", [](Datapath& self, const std::string& port,
                            const std::string& why) { without_gil([&] { return self.nic_detach(port, why); }); })
      .def("nic_link", [](Datapath& self, const std::string& port, bool up,
                          const std::string& why) { without_gil([&] { return self.nic_link(port, up, why); }); })
      .def("nic_fault",
           [](Datapath& self, const std::string& port) { return without_gil([&] { return self.nic_fault(port); }); });
}

}  // namespace sw
