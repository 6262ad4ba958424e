// SPDX-License-Identifier: Apache-2.0
#include "port/vdpa.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <mutex>

#include "support/echo_device.h"
#include "support/fake_vdpa.h"
#include "support/temp_dir.h"

namespace sw::testing {
namespace {

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

  int depth = 0;
  std::vector<RxQueue*> rx;
  std::vector<TxQueue*> tx;
  std::vector<std::string> events;

 private:
  EventLoop loop_;
};

struct Bed {
  Bed() {
    kernel.offered |= kPairs | kPromiscuous;
    PortConfig config;
    config.name = "nic";
    config.type = "vdpa";
    config.device = kernel.path;
    auto made = make_vdpa_on(kernel, config, {rx_counters, tx_counters});
    REQUIRE_MESSAGE(static_cast<bool>(made), made.error().message());
    port = std::move(*made);
  }
  ~Bed() {
    if (port) port->close();
    // Threads that close a device use the kernel after the port is gone.
    for (int i = 0; i < 2000 && fds_of(kernel.path) != 0; ++i) ::usleep(1000);
  }
  bool wait(const std::string& stage) {
    return run_until(host.loop(), [&] { return port->status().stage == stage; });
  }

  TempDir directory;
  FakeVdpa kernel{directory.file("vhost-vdpa-0")};
  Host host;
  std::array<QueueCounters, 2> rx_counters, tx_counters;
  std::unique_ptr<Port> port;
};

}  // namespace

TEST_CASE("VdpaPort: runs, follows its link, and is down while the device is gone") {
  Bed bed;
  REQUIRE(static_cast<bool>(bed.port->open(bed.host)));
  REQUIRE(bed.wait("running"));
  CHECK(bed.host.rx.size() == 2);
  CHECK(bed.host.tx.size() == 2);
  const PortStatus status = bed.port->status();
  CHECK(status.facts.at("mac") == "02:00:00:00:00:09");
  CHECK(status.facts.at("queues") == "2");
  CHECK(status.facts.at("device_queues") == "4");
  CHECK(status.facts.at("promiscuous") == "on");
  CHECK(status.facts.find("limits") == status.facts.end());
  CHECK(status.rings.size() == 4);

  bed.kernel.change_link(false);
  REQUIRE(bed.wait("link_down"));
  CHECK(bed.host.rx.empty());
  CHECK(bed.host.tx.empty());
  bed.kernel.change_link(true);
  REQUIRE(bed.wait("running"));
  CHECK(bed.host.rx.size() == 2);

  // The kernel takes the file away and waits for us to close ours.
  REQUIRE(::unlink(bed.kernel.path.c_str()) == 0);
  REQUIRE(bed.wait("waiting_for_device"));
  CHECK(bed.host.rx.empty());
  CHECK(run_until(bed.host.loop(), [&] { return fds_of(bed.kernel.path) == 0; }));
  CHECK(bed.port->status().facts.at("last_disconnect").find("was removed") != std::string::npos);
  bed.kernel.make_file();
  REQUIRE(bed.wait("running"));
  CHECK(bed.port->status().counters.at("connects") == 2);
  CHECK(bed.host.depth == 0);
}

TEST_CASE("VdpaPort: a device that asks for a reset gets one") {
  Bed bed;
  REQUIRE(static_cast<bool>(bed.port->open(bed.host)));
  REQUIRE(bed.wait("running"));
  {
    const std::lock_guard lock(bed.kernel.mutex);
    bed.kernel.status |= kStatusNeedsReset;
  }
  REQUIRE(run_until(bed.host.loop(), [&] { return bed.port->status().counters.at("connects") == 2; }));
  CHECK(bed.port->status().facts.at("last_disconnect").find("asks for a reset") != std::string::npos);
}

TEST_CASE("VdpaPort: waits for a device that is not there, and says so once") {
  Bed bed;
  bed.kernel.open_error = EBUSY;
  REQUIRE(static_cast<bool>(bed.port->open(bed.host)));
  REQUIRE(run_until(bed.host.loop(),
                    [&] { return bed.port->status().detail.find("another process") != std::string::npos; }));
  CHECK(bed.port->status().stage == "waiting_for_device");
  bed.kernel.open_error = 0;
  REQUIRE(bed.wait("running"));
  CHECK(std::count_if(bed.host.events.begin(), bed.host.events.end(),
                      [](const std::string& event) { return event.find("waiting") == 0; }) == 1);
}

TEST_CASE("VdpaPort: a configuration that cannot work is refused with a reason") {
  std::array<QueueCounters, 1> counters;
  PortConfig config;
  CHECK(make_vdpa(config, {counters, counters}).error().message().find("/dev/vhost-vdpa-0") != std::string::npos);
  config.device = "/dev/vhost-vdpa-0";
  config.ring_size = 100;
  CHECK(make_vdpa(config, {counters, counters}).error().message().find("power of two") != std::string::npos);
}

}  // namespace sw::testing
