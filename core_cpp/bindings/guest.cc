// SPDX-License-Identifier: Apache-2.0
// switch._core.Guest and TrafficRunner: what switch.testing is made of. Whatever may wait runs without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "base/cache_line.h"
#include "base/clock.h"
#include "bindings/bindings.h"
#include "bindings/convert.h"
#include "stats/latency.h"
#include "vhost_user/features.h"
#include "vhost_user/guest.h"
#include "vhost_user/traffic.h"

namespace py = pybind11;

namespace sw {

namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;
// flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
using VnetTuple = std::array<uint16_t, 6>;

VnetHeader to_header(const VnetTuple& tuple) {
  return {static_cast<uint8_t>(tuple[0]), static_cast<uint8_t>(tuple[1]), tuple[2], tuple[3], tuple[4], tuple[5]};
}

py::tuple from_header(const VnetHeader& header) {
  return py::make_tuple(header.flags, header.gso_type, header.hdr_len, header.gso_size, header.csum_start,
                        header.csum_offset);
}

uint64_t to_ms(double seconds) { return seconds <= 0 ? 0 : static_cast<uint64_t>(seconds * 1000.0); }

// Keyword arguments of both classes.
GuestOptions guest_options(const py::kwargs& given) {
  GuestOptions options;
  const auto take = [&given](const char* name, auto& value) {
    if (given.contains(name)) value = given[name].cast<std::remove_reference_t<decltype(value)>>();
  };
  take("socket", options.socket);
  take("listen", options.listen);
  take("queues", options.queues);
  take("packed", options.packed);
  take("mergeable", options.mergeable);
  take("in_order", options.in_order);
  take("event_idx", options.event_idx);
  take("offloads", options.offloads);
  take("legacy", options.legacy);
  take("ring_size", options.ring_size);
  take("features", options.features);
  return options;
}

py::dict to_dict(const GuestStatus& status) {
  py::dict dict;
  dict["stage"] = status.stage;
  dict["detail"] = status.detail;
  dict["features"] = status.features;
  dict["queue_pairs"] = status.queue_pairs;
  dict["times_ready"] = status.times_ready;
  dict["broken"] = status.broken;
  dict["tx_frames"] = status.tx_frames;
  dict["tx_bytes"] = status.tx_bytes;
  dict["rx_frames"] = status.rx_frames;
  dict["rx_bytes"] = status.rx_bytes;
  dict["kicks"] = status.kicks;
  dict["dropped"] = status.dropped;
  return dict;
}

py::dict to_dict(const TrafficStats& stats) {
  py::dict dict;
  dict["ready"] = stats.ready;
  dict["stage"] = stats.stage;
  dict["detail"] = stats.detail;
  dict["features"] = stats.features;
  dict["times_ready"] = stats.times_ready;
  dict["tx_frames"] = stats.tx_frames;
  dict["tx_bytes"] = stats.tx_bytes;
  dict["rx_frames"] = stats.rx_frames;
  dict["rx_bytes"] = stats.rx_bytes;
  dict["foreign"] = stats.foreign;
  dict["reordered"] = stats.reordered;
  return dict;
}

void guest_send(Guest& guest, const py::bytes& frame, uint32_t queue, const VnetTuple& vnet, double timeout) {
  const std::string_view bytes = frame;  // valid while the caller holds `frame`
  Result<void> sent;
  {
    const py::gil_scoped_release released;
    sent = guest.send({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, queue, to_header(vnet),
                      to_ms(timeout));
  }
  check(sent);
}

py::object guest_receive(Guest& guest, double timeout) {
  std::optional<GuestFrame> frame;
  {
    const py::gil_scoped_release released;
    frame = guest.receive(to_ms(timeout));
  }
  if (!frame) return py::none();
  return py::make_tuple(py::bytes(reinterpret_cast<const char*>(frame->bytes.data()), frame->bytes.size()),
                        from_header(frame->vnet), frame->queue);
}

TrafficOptions traffic_options(const py::dict& given) {
  TrafficOptions options;
  options.guest = guest_options(py::kwargs(given));
  options.guest.huge = HugePages::kAuto;
  const auto take = [&given](const char* name, auto& value) {
    if (given.contains(name)) value = given[name].cast<std::remove_reference_t<decltype(value)>>();
  };
  take("mac", options.mac);
  take("peer", options.peer);
  take("pairs", options.pairs);
  take("frame_bytes", options.frame_bytes);
  take("gso_bytes", options.gso_bytes);
  take("rate", options.rate);
  take("burst", options.burst);
  take("send", options.send);
  take("idle", options.idle);
  take("latency", options.latency);
  std::string touch = "whole";
  take("touch", touch);
  if (touch != "whole" && touch != "head" && touch != "never") {
    throw py::value_error("touch is '" + touch + "', not whole, head or never");
  }
  options.touch = touch == "whole"  ? TrafficTouch::kWhole
                  : touch == "head" ? TrafficTouch::kHead
                                    : TrafficTouch::kNever;
  return options;
}

py::dict to_dict(const TrafficLoad& load) {
  py::dict dict;
  dict["busy"] = load.busy;
  dict["idle"] = load.idle;
  dict["rounds"] = load.rounds;
  dict["pauses"] = load.pauses;
  dict["paused"] = load.paused;
  return dict;
}

std::unique_ptr<TrafficRunner> make_runner(const std::vector<py::dict>& guests, int cpu, bool poll) {
  std::vector<TrafficOptions> options;
  options.reserve(guests.size());
  for (const py::dict& guest : guests) options.push_back(traffic_options(guest));
  return std::make_unique<TrafficRunner>(std::move(options), cpu, poll);
}

}  // namespace

void bind_guest(py::module_& module) {
  // Destroying either joins its thread, which never takes the GIL.
  py::class_<Guest>(module, "Guest")
      .def(py::init([](const py::kwargs& given) { return std::make_unique<Guest>(guest_options(given)); }))
      .def("start",
           [](Guest& self) {
             Result<void> started;
             {
               const py::gil_scoped_release released;
               started = self.start();
             }
             check(started);
           })
      .def("stop", &Guest::stop, NoGil())
      .def(
          "wait_ready", [](Guest& self, double timeout) { return self.wait_ready(to_ms(timeout)); }, py::arg("timeout"),
          NoGil())
      .def("send", &guest_send, py::arg("frame"), py::arg("queue"), py::arg("vnet"), py::arg("timeout"))
      .def("receive", &guest_receive, py::arg("timeout"))
      .def("status", [](Guest& self) {
        GuestStatus status;
        {
          const py::gil_scoped_release released;
          status = self.status();
        }
        return to_dict(status);
      });

  py::class_<TrafficRunner>(module, "TrafficRunner")
      .def(py::init(&make_runner), py::arg("guests"), py::arg("cpu") = -1, py::arg("poll") = false)
      .def("start",
           [](TrafficRunner& self) {
             Result<void> started;
             {
               const py::gil_scoped_release released;
               started = self.start();
             }
             check(started);
           })
      .def("stop", &TrafficRunner::stop, NoGil())
      .def(
          "wait_ready", [](TrafficRunner& self, double timeout) { return self.wait_ready(to_ms(timeout)); },
          py::arg("timeout"), NoGil())
      .def("stats",
           [](TrafficRunner& self) {
             std::vector<TrafficStats> stats;
             {
               const py::gil_scoped_release released;
               stats = self.stats();
             }
             py::list list;
             for (const TrafficStats& one : stats) list.append(to_dict(one));
             return list;
           })
      .def("load", [](const TrafficRunner& self) { return to_dict(self.load()); })
      .def("latency", &TrafficRunner::latency)
      .def("set_active", &TrafficRunner::set_active, py::arg("active"))
      .def("set_sending", &TrafficRunner::set_sending, py::arg("sending"))
      .def(
          "set_rate",
          [](TrafficRunner& self, std::optional<uint64_t> rate) { self.set_rate(rate.value_or(kTrafficOwnRate)); },
          py::arg("rate"))
      .def("set_window", &TrafficRunner::set_window, py::arg("frames"));

  module.def("tsc_hz", &tsc_hz, "Ticks of the time stamp counter per second.");
  module.def(
      "memory_line_ns", [] { return 1e9 * ticks_of_memory() / static_cast<double>(tsc_hz()); },
      "Nanoseconds that a cache line takes from memory, the measuring included; 0: unknown.");
  module.def(
      "line_ns",
      [](int cpu, int other_cpu) {
        return 1e9 * without_gil([&] { return ticks_between(cpu, other_cpu); }) / static_cast<double>(tsc_hz());
      },
      py::arg("cpu"), py::arg("other_cpu"),
      "Nanoseconds that a cache line takes from one CPU to the other; both spin for 2 ms. Raises CoreError.");
  module.def(
      "latency_bounds",
      [] {
        std::vector<uint64_t> bounds(LatencyHistogram::kBuckets);
        for (size_t i = 0; i < bounds.size(); ++i) bounds[i] = LatencyHistogram::lower_bound(i);
        return bounds;
      },
      "The smallest number of ticks of each bucket of TrafficRunner.latency().");

  module.def(
      "feature_names", [](uint64_t bits) { return feature_names(bits); }, py::arg("bits"),
      "\"csum,mrg_rxbuf\" for a set of virtio feature bits.");
}

}  // namespace sw
