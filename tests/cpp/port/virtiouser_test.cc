// SPDX-License-Identifier: Apache-2.0
#include "port/virtiouser.h"

#include <algorithm>
#include <cstring>

#include "support/echo_device.h"
#include "support/temp_dir.h"
#include "virtio/spec.h"

namespace sw::testing {
namespace {

// A house with one loop and no workers that watches when queues change.
class Host : public PortHost {
 public:
  EventLoop& loop() override { return loop_; }
  void pause(Port&) override { ++depth; }
  void resume(Port& port) override {
    --depth;
    rx = port.rx_queues();
    tx = port.tx_queues();
  }
  void event(Port&, const std::string& kind, const std::string& detail) override {
    events.push_back(kind + ": " + detail);
  }
  [[nodiscard]] bool saw(const std::string& word) const {
    return std::any_of(events.begin(), events.end(),
                       [&](const std::string& event) { return event.find(word) != std::string::npos; });
  }

  int depth = 0;
  std::vector<RxQueue*> rx;  // what workers would use
  std::vector<TxQueue*> tx;
  std::vector<std::string> events;

 private:
  EventLoop loop_;
};

struct Bed {
  explicit Bed(PortConfig config = {}) {
    config.name = "uplink";
    config.type = "virtiouser";
    config.socket = directory.file("s");
    auto made = make_virtiouser(config, {rx_counters, tx_counters});
    REQUIRE_MESSAGE(static_cast<bool>(made), made.error().message());
    port = std::move(*made);
  }
  void open() {
    const auto opened = port->open(host);
    REQUIRE_MESSAGE(static_cast<bool>(opened), opened.error().message());
  }
  bool wait_up(bool up = true) {
    return run_until(host.loop(), [&] { return port->status().up == up; });
  }
  // A frame out of queue `q` and back.
  bool echo(EchoDevice& device, size_t q) {
    auto batch = std::make_unique<Batch>();
    Frame& frame = batch->frames[0];
    frame.len = frame.head_len = 64;
    frame.head_offset = 0;
    frame.segment_count = 0;
    frame.offload = false;
    std::memset(frame.head, 2, 64);
    const uint8_t first = 0;
    if (host.tx[q]->send(*batch, {&first, 1}, drops) != 1) return false;
    return run_until(host.loop(), [&] {
      device.pass();
      batch->clear();
      if (!host.rx[q]->peek(*batch, drops)) return false;
      host.rx[q]->release();
      return batch->count == 1;
    });
  }

  TempDir directory;
  Host host;
  std::array<QueueCounters, 2> rx_counters;
  std::array<QueueCounters, 2> tx_counters;
  PortWorkerCounters drops;
  std::unique_ptr<Port> port;
};

}  // namespace

TEST_CASE("VirtioUserPort: carries frames over every queue pair of another switch") {
  for (const bool packed : {false, true}) {
    PortConfig config;
    config.socket_owner_switch = false;
    config.packed = packed;
    Bed bed(config);
    EchoDevice device(bed.host.loop(), offered_features({}));
    device.listen(bed.directory.file("s"));
    bed.open();
    REQUIRE(bed.wait_up());
    REQUIRE(bed.host.rx.size() == 2);
    REQUIRE(bed.host.tx.size() == 2);
    for (size_t q = 0; q < 2; ++q) CHECK(bed.echo(device, q));
    CHECK(bed.tx_counters[1].frames.get() == 1);
    const PortStatus status = bed.port->status();
    CHECK(status.stage == "running");
    CHECK(status.detail == "");
    CHECK((status.facts.at("negotiated_features").find("ring_packed") != std::string::npos) == packed);
    CHECK(status.rings.size() == 4);
    CHECK(bed.host.saw("connected"));
    bed.host.pause(*bed.port);
    bed.port->close();
  }
}

TEST_CASE("VirtioUserPort: loses its queues under a pause when the device goes, and gets new ones") {
  PortConfig config;
  config.socket_owner_switch = true;  // we listen
  Bed bed(config);
  bed.open();
  CHECK(bed.port->status().stage == "waiting_for_peer");
  CHECK(bed.port->status().detail != "");
  for (uint64_t round = 1; round <= 3; ++round) {
    EchoDevice device(bed.host.loop(), offered_features({}));
    REQUIRE(device.connect(bed.directory.file("s")));
    REQUIRE(bed.wait_up());
    CHECK(bed.echo(device, 0));
    device.disconnect();
    REQUIRE(bed.wait_up(false));
    CHECK(bed.host.rx.empty());
    CHECK(bed.host.tx.empty());
    CHECK(bed.host.depth == 0);
    CHECK(bed.port->status().counters.at("disconnects") == round);
  }
  CHECK(bed.port->status().facts.at("last_disconnect").find("closed") != std::string::npos);
}

TEST_CASE("VirtioUserPort: a device that breaks a ring is reported and left for a fresh start") {
  PortConfig config;
  config.socket_owner_switch = false;
  config.packed = false;
  Bed bed(config);
  EchoDevice device(bed.host.loop(), offered_features({.in_order = false}));
  device.listen(bed.directory.file("s"));
  bed.open();
  REQUIRE(bed.wait_up());
  // The device's own ring memory: the used index of receiveq 0 jumps.
  const auto& wish = device.backend()->rings()[0].wish;
  auto* used = reinterpret_cast<VringUsed*>(wish.address->used);
  used->idx = 12'345;
  const auto batch = std::make_unique<Batch>();
  CHECK_FALSE(bed.host.rx[0]->peek(*batch, bed.drops));
  REQUIRE(run_until(bed.host.loop(), [&] { return bed.host.saw("ring_broken"); }));
  REQUIRE(run_until(bed.host.loop(), [&] { return bed.port->status().counters.at("connects") == 2; }));
  CHECK(bed.echo(device, 0));
  CHECK(bed.port->status().counters.at("rings_broken") == 1);
}

TEST_CASE("VirtioUserPort: a configuration that cannot work is refused with a reason") {
  std::array<QueueCounters, 1> counters;
  PortConfig config;
  config.socket = "/tmp/s";
  config.ring_size = 100;
  CHECK(make_virtiouser(config, {counters, counters}).error().message().find("power of two") != std::string::npos);
  config.ring_size = 256;
  config.socket = "";
  CHECK_FALSE(static_cast<bool>(make_virtiouser(config, {counters, counters})));
}

}  // namespace sw::testing
