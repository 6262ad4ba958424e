// SPDX-License-Identifier: Apache-2.0
#include "port/verbs.h"

#include "support/port_bed.h"

#ifdef SW_HAVE_VERBS
#include "port/verbs_fake.h"

using namespace sw;
using namespace sw::test;
using sw::testing::PortBed;

namespace {

struct Bed {
  explicit Bed(uint32_t queues = 1) : rx_counters(queues), tx_counters(queues) {
    auto made =
        make_port({.name = "up", .type = "verbs", .queues = queues, .device = "mlx5_0"}, {rx_counters, tx_counters});
    REQUIRE(made);
    port = std::move(*made);
    REQUIRE(port->open(host));
    host.publish(*port);
    seat = port->nic_seat();
    REQUIRE(seat != nullptr);
  }
  ~Bed() {
    if (port) port->close();
  }
  // Memory for the device, and handles for it.
  NicHandles prepare(FakeDevice& device) const {
    const auto memory = seat->reserve(1500);
    REQUIRE(memory);
    device.registered = reinterpret_cast<const uint8_t*>(memory->address);
    device.registered_bytes = memory->bytes;
    return {.lkey = FakeDevice::kKey, .rx = {device.qp_handle()}, .tx = {device.qp_handle()}};
  }
  [[nodiscard]] std::string stage() const { return port->status().stage; }

  std::vector<QueueCounters> rx_counters, tx_counters;
  PortBed host;
  std::unique_ptr<Port> port;
  NicSeat* seat = nullptr;
};

}  // namespace

TEST_CASE("VerbsPort: waits for its device, runs with it, waits again without it") {
  Bed bed;
  CHECK(bed.stage() == "waiting_for_device");
  FakeDevice device;
  const NicHandles handles = bed.prepare(device);
  const auto attached = bed.seat->attach(handles);
  REQUIRE_MESSAGE(attached, attached.error().message());
  CHECK(*attached == 77);
  CHECK(device.posted.size() == 1024);
  CHECK(bed.host.rx.size() == 1);
  CHECK(bed.host.tx.empty());
  CHECK(bed.stage() == "link_down");

  bed.seat->set_link(true, "");
  CHECK(bed.host.tx.size() == 1);
  CHECK(bed.port->status().up);
  bed.seat->set_link(false, "the port is down");
  CHECK(bed.host.tx.empty());
  CHECK(bed.port->status().detail == "the port is down");

  bed.seat->detach("the device mlx5_0 is gone");
  CHECK(bed.host.rx.empty());
  CHECK(bed.stage() == "waiting_for_device");
  CHECK(bed.port->status().detail == "the device mlx5_0 is gone");
  CHECK(bed.host.count("device_detached") == 1);
  bed.seat->detach("still not there");
  CHECK(bed.host.count("device_detached") == 1);
  CHECK(bed.port->status().detail == "still not there");

  FakeDevice again;
  REQUIRE(bed.seat->attach(bed.prepare(again)));
  CHECK(bed.port->status().counters.at("attached") == 2);
}

TEST_CASE("VerbsPort: a worker's fault is told") {
  Bed bed;
  FakeDevice device;
  REQUIRE(bed.seat->attach(bed.prepare(device)));
  bed.seat->set_link(true, "");
  CHECK(bed.seat->fault().empty());
  device.poll_answer = -1;
  auto batch = std::make_unique<Batch>();
  PortWorkerCounters drops;
  CHECK(!bed.host.rx[0]->peek(*batch, drops));
  CHECK(bed.seat->fault().find("overran") != std::string::npos);
  CHECK(bed.stage() == "device_broken");
  CHECK(!bed.port->status().up);
}

TEST_CASE("VerbsPort: receive queues may be work queues, and fewer than transmit queues") {
  Bed bed(3);
  FakeDevice device;
  NicHandles handles = bed.prepare(device);
  handles.rx_work_queues = true;
  handles.rx = {device.wq_handle()};
  handles.tx = {device.qp_handle(), device.qp_handle(), device.qp_handle()};
  const auto attached = bed.seat->attach(handles);
  REQUIRE_MESSAGE(attached, attached.error().message());
  CHECK(bed.host.rx.size() == 1);
  CHECK(bed.port->status().rings.size() == 4);
}

TEST_CASE("VerbsPort: objects that are not what they should be are refused, and nothing is attached") {
  FakeDevice device;
  FakeDevice other;
  Bed bed;
  const NicHandles good = bed.prepare(device);
  const auto with_rx = [&](NicHandle handle) {
    NicHandles handles = good;
    handles.rx = {handle};
    return handles;
  };
  NicHandle number = device.qp_handle();
  number.number = 1;
  NicHandle state = device.qp_handle();
  state.state = IBV_QPS_RTR;
  NicHandle type = device.qp_handle();
  type.type = IBV_QPT_UD;
  NicHandle odd = device.qp_handle();
  odd.pointer += 1;
  NicHandle nowhere = device.qp_handle();
  nowhere.pointer = 0x1000;
  NicHandles work = with_rx(device.qp_handle());
  work.rx_work_queues = true;
  NicHandles none = good;
  none.tx.clear();
  FakeDevice datagram;
  datagram.qp.qp_type = IBV_QPT_UD;
  NicHandle unreliable = datagram.qp_handle();
  unreliable.type = IBV_QPT_UD;
  FakeDevice crossed;
  crossed.qp.recv_cq = &other.receive_cq;
  FakeDevice deaf;
  deaf.context.ops.poll_cq = nullptr;
  NicHandles silent = with_rx(deaf.qp_handle());
  silent.tx = silent.rx;
  struct Row {
    const char* situation;
    NicHandles handles;
    const char* expected;
  };
  const Row rows[] = {
      {"another number", with_rx(number), "its number is 4711 instead of 1"},
      {"another state", with_rx(state), "its state is 3 instead of 2"},
      {"another type", with_rx(type), "its type is 8 instead of 4"},
      {"a datagram queue pair", with_rx(unreliable), "no raw packet queue pair"},
      {"no address", with_rx({}), "its address is not readable"},
      {"an odd address", with_rx(odd), "its address is not readable"},
      {"an address of nothing", with_rx(nowhere), "its address is not readable"},
      {"a queue pair as a work queue", work, "receive queue 0"},
      {"another device", with_rx(other.qp_handle()), "belongs to another device"},
      {"a completion queue of another device", with_rx(crossed.qp_handle()), "belong"},
      {"no transmit queue", none, "1 receive and 0 transmit queues for a port of 1"},
      {"a device without calls", silent, "offers no calls"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.situation);
    const auto attached = bed.seat->attach(row.handles);
    REQUIRE(!attached);
    CHECK_MESSAGE(attached.error().message().find(row.expected) != std::string::npos, attached.error().message());
    CHECK(bed.stage() == "waiting_for_device");
  }
  REQUIRE(bed.seat->attach(good));
  CHECK(!bed.seat->attach(good));
  CHECK(!bed.seat->reserve(1500));
}

TEST_CASE("VerbsPort: wrong settings are refused with a reason") {
  std::vector<QueueCounters> counters(1);
  PortBed host;
  for (const PortConfig& config : {PortConfig{.name = "up", .type = "verbs"},
                                   PortConfig{.name = "up", .type = "verbs", .queues = 0, .device = "mlx5_0"},
                                   PortConfig{.name = "up", .type = "verbs", .queues = 129, .device = "mlx5_0"}}) {
    auto port = make_port(config, {counters, counters});
    REQUIRE(port);
    CHECK(!(*port)->open(host));
  }
  Bed bed;
  CHECK(!bed.seat->attach({}));
  CHECK(!bed.seat->reserve(67));
  CHECK(!bed.seat->reserve(65515));
}
#else
TEST_CASE("VerbsPort: without the header the kind says what it needs") {
  const auto made = sw::make_verbs({}, {});
  REQUIRE(!made);
  CHECK(made.error().message().find("libibverbs-dev") != std::string::npos);
}
#endif
