// SPDX-License-Identifier: Apache-2.0
// The Python module switch._core. Everything that may wait runs without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/convert.h"

namespace py = pybind11;

namespace sw {

namespace {

PYBIND11_CONSTINIT py::gil_safe_call_once_and_store<py::object> core_error;

using NoGil = py::call_guard<py::gil_scoped_release>;

void bind_datapath(py::module_& module) {
  py::class_<Datapath> datapath(module, "Datapath");
  datapath
      .def(py::init([](std::vector<int> cpus, const std::string& polling, const std::string& hugepages, size_t bytes,
                       size_t page_bytes, int numa_node) {
             return std::make_unique<Datapath>(
                 DatapathOptions{.worker_cpus = std::move(cpus),
                                 .polling = polling == "busy" ? Polling::kBusy : Polling::kAdaptive,
                                 .hugepages = hugepages == "required" ? HugePages::kRequired
                                              : hugepages == "off"    ? HugePages::kOff
                                                                      : HugePages::kAuto,
                                 .memory_bytes = bytes,
                                 .huge_page_bytes = page_bytes,
                                 .numa_node = numa_node});
           }),
           py::arg("worker_cpus"), py::arg("polling"), py::arg("hugepages"), py::arg("memory_bytes"),
           py::arg("huge_page_bytes"), py::arg("numa_node"))
      .def("warnings", &Datapath::warnings)
      .def("start", [](Datapath& self) { without_gil([&] { return self.start(); }); })
      .def("stop", &Datapath::stop, NoGil())
      .def("add_bridge",
           [](Datapath& self, const std::string& name, uint32_t ageing, uint32_t mac_limit) {
             without_gil([&] { return self.add_bridge(name, ageing, mac_limit); });
           })
      .def("set_bridge",
           [](Datapath& self, const std::string& name, uint32_t ageing, uint32_t mac_limit) {
             without_gil([&] { return self.set_bridge(name, ageing, mac_limit); });
           })
      .def("del_bridge",
           [](Datapath& self, const std::string& name) { without_gil([&] { return self.del_bridge(name); }); })
      .def("add_port",
           [](Datapath& self, const py::dict& dict) {
             const PortSpec spec = port_spec(dict);
             without_gil([&] { return self.add_port(spec); });
           })
      .def("set_port",
           [](Datapath& self, const py::dict& dict) {
             const PortSpec spec = port_spec(dict);
             without_gil([&] { return self.set_port(spec); });
           })
      .def("del_port",
           [](Datapath& self, const std::string& name) { without_gil([&] { return self.del_port(name); }); })
      .def("ports",
           [](Datapath& self) {
             std::vector<PortView> views;
             {
               const py::gil_scoped_release released;
               views = self.ports();
             }
             py::list list;
             for (const PortView& view : views) list.append(to_python(view));
             return list;
           })
      .def("port", [](Datapath& self,
                      const std::string& name) { return to_python(without_gil([&] { return self.port(name); })); })
      .def("stats",
           [](Datapath& self) {
             Stats stats;
             {
               const py::gil_scoped_release released;
               stats = self.stats();
             }
             return to_python(stats);
           })
      .def("worker_rounds", &Datapath::worker_rounds)
      .def("fdb",
           [](Datapath& self, const std::string& bridge, const std::string& port, std::optional<int> vlan,
              std::optional<Mac> mac, const std::optional<std::string>& owner, std::optional<size_t> most) {
             const FdbQuery query{.port = port,
                                  .vlan = vlan.value_or(-1),
                                  .mac = mac,
                                  .owner = owner ? static_cast<int>(fdb_owner(*owner)) : -1,
                                  .most = most.value_or(SIZE_MAX)};
             return to_python(without_gil([&] { return self.fdb(bridge, query); }));
           })
      .def("fdb_learned",
           [](Datapath& self, const std::string& bridge) {
             const auto groups = without_gil([&] { return self.fdb_learned(bridge); });
             py::list list;
             for (const FdbGroup& group : groups) list.append(to_python(group));
             return list;
           })
      .def(
          "fdb_restore",
          [](Datapath& self, const std::string& bridge, uint16_t vlan, const std::string& port, const py::bytes& macs) {
            const FdbGroup group{.vlan = vlan, .port = port, .age_seconds = 0, .macs = macs_from_bytes(macs)};
            return without_gil([&] { return self.fdb_restore(bridge, group); });
          })
      .def("fdb_set",
           [](Datapath& self, const std::string& bridge, uint16_t vlan, Mac mac, const std::string& port,
              const std::string& owner) {
             const FdbOwner whose = fdb_owner(owner);
             without_gil([&] { return self.fdb_set(bridge, vlan, mac, port, whose); });
           })
      .def("fdb_del", [](Datapath& self, const std::string& bridge, uint16_t vlan,
                         Mac mac) { return without_gil([&] { return self.fdb_del(bridge, vlan, mac); }); })
      .def("fdb_flush",
           [](Datapath& self, const std::string& bridge, const std::optional<std::string>& port,
              std::optional<int> vlan, const std::optional<std::string>& owner) {
             const int whose = owner ? static_cast<int>(fdb_owner(*owner)) : -1;
             return without_gil(
                 [&] { return self.fdb_flush(bridge, port ? &*port : nullptr, vlan.value_or(-1), whose); });
           })
      .def("fdb_release", [](Datapath& self, const std::string& bridge, uint16_t vlan,
                             Mac mac) { return without_gil([&] { return self.fdb_release(bridge, vlan, mac); }); })
      .def("fdb_sweep", &Datapath::fdb_sweep, NoGil())
      .def("capture_start",
           [](Datapath& self, const std::string& port, bool rx, bool tx, bool drops_only, uint32_t most_bytes) {
             const CaptureOptions options{.rx = rx, .tx = tx, .drops_only = drops_only, .most_bytes = most_bytes};
             return without_gil([&] { return self.capture_start(port, options); });
           })
      .def("capture_read",
           [](Datapath& self, uint64_t id, size_t most) {
             return to_python(without_gil([&] { return self.capture_read(id, most); }));
           })
      .def("capture_stop", &Datapath::capture_stop, NoGil())
      .def("explain",
           [](Datapath& self, const std::string& port, const py::bytes& frame) {
             const std::string bytes = frame;
             return without_gil(
                 [&] { return self.explain(port, {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}); });
           })
      .def("event_fd", &Datapath::event_fd)
      .def("drain_events", [](Datapath& self, size_t most) {
        std::vector<Event> events;
        {
          const py::gil_scoped_release released;
          events = self.drain_events(most);
        }
        py::list list;
        for (const Event& event : events) list.append(to_python(event));
        return list;
      });
  bind_nic(datapath);
}

}  // namespace

void raise(const Error& error) {
  const py::object& type = core_error.get_stored();
  PyErr_SetObject(type.ptr(), py::make_tuple(error.code, error.message()).ptr());
  throw py::error_already_set();
}

}  // namespace sw

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C++ core of the switch: ports, workers, forwarding.";
  sw::core_error.call_once_and_store_result([&] { return py::object(py::exception<sw::Error>(module, "CoreError")); });
  module.attr("__version__") = SW_VERSION;
  module.def("drop_reasons",
             [] { return std::vector<std::string>(sw::kDropReasonNames.begin(), sw::kDropReasonNames.end()); });
  sw::bind_datapath(module);
  sw::bind_guest(module);
}
