// SPDX-License-Identifier: Apache-2.0
// Taps through vhost-net. The first part has a kernel of its own making behind the ioctls and the real kernel's tap; the
// second, "vhost-net: ...", needs a kernel with /dev/vhost-net and skips without: tests/interop/test_vhost_net.py runs
// it on a machine that has one.
#include <dirent.h>
#include <doctest/doctest.h>

#include "base/atomic.h"
#include "port/net_device.h"
#include "port/netns.h"
#include "port/tap.h"
#include "support/fake_vhost.h"
#include "vhost_kernel/vhost_net.h"

using namespace sw;
using namespace sw::test;

namespace {

PortConfig config_for(const std::string& device, uint32_t queues = 1) {
  PortConfig config;
  config.name = "host";
  config.type = "tap";
  config.device = device;
  config.queues = queues;
  config.vhost = true;
  return config;
}

FakeVhost* the_kernel = nullptr;

Result<std::unique_ptr<Port>> make_on_the_kernel(const PortConfig& config, PortCounters counters) {
  return make_tap(config, counters, *the_kernel);
}

Result<std::unique_ptr<Port>> make_on_this_kernel(const PortConfig& config, PortCounters counters) {
  return make_tap(config, counters);
}

struct Bed {
  FakeVhost kernel{kVhostNetPath};
  ScopedNetns netns;
  std::unique_ptr<PortUnderTest> tap;

  Bed() {
    kernel.reply<uint64_t>(VHOST_GET_FEATURES,
                           feature_mask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_F_EVENT_IDX));
  }
  // False where namespaces are not allowed.
  bool open(uint32_t queues = 1) {
    if (!netns.ok()) return false;
    the_kernel = &kernel;
    tap = std::make_unique<PortUnderTest>(make_on_the_kernel, config_for("tap-v", queues));
    return true;
  }
  [[nodiscard]] int backend_of(size_t call) const {
    return FakeVhost::argument_of<vhost_vring_file>(kernel.calls_of(VHOST_NET_SET_BACKEND).at(call)).fd;
  }
  void report_ring_error() const {
    const auto file = FakeVhost::argument_of<vhost_vring_file>(kernel.calls_of(VHOST_SET_VRING_ERR).back());
    CHECK(::eventfd_write(file.fd, 1) == 0);
  }
  [[nodiscard]] bool saw(const std::string& event) const {
    for (const std::string& each : tap->house.events) {
      if (each.starts_with(event)) return true;
    }
    return false;
  }
};

size_t open_fds() {
  size_t count = 0;
  DIR* const folder = ::opendir("/proc/self/fd");
  while (::readdir(folder) != nullptr) ++count;
  ::closedir(folder);
  return count;
}

bool exists(const std::string& device) {
  NetDevices devices;
  REQUIRE(devices.open());
  return static_cast<bool>(devices.find(device));
}

}  // namespace

TEST_CASE("tap: vhost without vhost-net names the module and a way out, and leaves no device") {
  Bed bed;
  bed.kernel.open_error = ENOENT;
  if (!bed.open()) return;
  CHECK_FALSE(bed.tap->opened);
  CHECK(bed.tap->error.find("open /dev/vhost-net") != std::string::npos);
  CHECK(bed.tap->error.find("modprobe vhost_net") != std::string::npos);
  CHECK(bed.tap->error.find("leave out `vhost: true`") != std::string::npos);
  CHECK_FALSE(exists("tap-v"));
}

TEST_CASE("tap: with vhost every queue pair is connected to its descriptor, and the status says so") {
  Bed bed;
  if (!bed.open(2)) return;
  REQUIRE_MESSAGE(bed.tap->opened, bed.tap->error);
  const PortStatus status = bed.tap->port->status();
  CHECK(status.up);
  CHECK(status.stage == "running");
  CHECK(status.facts.at("mode") == "vhost-net");
  CHECK(status.facts.at("queues") == "2");
  CHECK(status.counters.contains("kicks"));
  CHECK(status.rings.size() == 4);
  CHECK(bed.tap->port->rx_queues().size() == 2);
  CHECK(bed.tap->port->tx_queues().size() == 2);
  CHECK(bed.tap->port->tx_queues()[0]->caps().tso4);
  REQUIRE(bed.kernel.calls_of(VHOST_NET_SET_BACKEND).size() == 4);
  CHECK(bed.backend_of(0) == bed.backend_of(1));
  CHECK(bed.backend_of(1) != bed.backend_of(2));
}

TEST_CASE("tap: a start that the kernel refuses half-way is an error of the port, and leaves no device") {
  Bed bed;
  bed.kernel.fail(VHOST_NET_SET_BACKEND, ENOMEM, 2);
  if (!bed.open(2)) return;
  CHECK_FALSE(bed.tap->opened);
  CHECK(bed.tap->error == "connect the tap to /dev/vhost-net: Cannot allocate memory");
  CHECK_FALSE(exists("tap-v"));
}

TEST_CASE("tap: with vhost an interface that is down takes no frames, and takes them again") {
  Bed bed;
  if (!bed.open()) return;
  REQUIRE_MESSAGE(bed.tap->opened, bed.tap->error);
  REQUIRE(shell("ip link set tap-v down"));
  CHECK(bed.tap->house.run_until([&] { return !bed.tap->port->status().up; }));
  CHECK(bed.tap->port->status().stage == "device_down");
  CHECK(bed.tap->port->tx_queues().empty());
  CHECK(bed.tap->port->rx_queues().size() == 1);
  CHECK(bed.tap->house.resumes == 1);
  REQUIRE(shell("ip link set tap-v up"));
  CHECK(bed.tap->house.run_until([&] { return bed.tap->port->status().up; }));
  CHECK(bed.tap->port->tx_queues().size() == 1);
}

TEST_CASE("tap: a ring that vhost-net reports broken is made anew over the same device") {
  Bed bed;
  if (!bed.open()) return;
  REQUIRE_MESSAGE(bed.tap->opened, bed.tap->error);
  bed.report_ring_error();
  CHECK(bed.tap->house.run_until([&] { return bed.saw("ring_broken: "); }));
  CHECK(bed.tap->port->status().up);
  CHECK(bed.tap->port->status().counters.at("rings_broken") == 1);
  CHECK(bed.tap->port->status().counters.at("recreated") == 0);
  CHECK(bed.backend_of(bed.kernel.calls_of(VHOST_NET_SET_BACKEND).size() - 1) == bed.backend_of(0));
  CHECK(bed.tap->house.pauses == bed.tap->house.resumes);
}

TEST_CASE("tap: rings that cannot be made anew are reported, and tried again until they can") {
  Bed bed;
  if (!bed.open()) return;
  REQUIRE_MESSAGE(bed.tap->opened, bed.tap->error);
  bed.kernel.open_error = ENOENT;
  bed.report_ring_error();
  CHECK(bed.tap->house.run_until([&] { return bed.tap->port->status().stage == "vhost_failed"; }));
  CHECK_FALSE(bed.tap->port->status().up);
  CHECK(bed.tap->port->status().detail.find("modprobe vhost_net") != std::string::npos);
  CHECK(bed.tap->port->rx_queues().empty());
  CHECK(bed.tap->port->tx_queues().empty());
  bed.kernel.open_error = 0;
  CHECK(bed.tap->house.run_until([&] { return bed.tap->port->status().up; }));
  CHECK(bed.tap->port->rx_queues().size() == 1);
}

TEST_CASE("tap: with vhost a deleted device is made again and connected again") {
  Bed bed;
  if (!bed.open()) return;
  REQUIRE_MESSAGE(bed.tap->opened, bed.tap->error);
  REQUIRE(shell("ip link del tap-v"));
  CHECK(bed.tap->house.run_until([&] { return bed.saw("device_back: tap-v"); }));
  CHECK(bed.saw("device_gone: tap-v"));
  CHECK(bed.tap->port->status().up);
  CHECK(exists("tap-v"));
  CHECK(bed.backend_of(2) == VHOST_FILE_UNBIND);
  CHECK(bed.backend_of(bed.kernel.calls_of(VHOST_NET_SET_BACKEND).size() - 1) >= 0);
}

TEST_CASE("tap: with vhost frames that the tap lost on their way to us are counted") {
  Bed bed;
  if (!bed.open()) return;
  REQUIRE_MESSAGE(bed.tap->opened, bed.tap->error);
  const RawSocket host("tap-v");
  // Nobody empties the tap: its queue holds 1000 frames.
  for (int i = 0; i < 1100; ++i) REQUIRE(host.send(test_frame(60, 1)));
  CHECK(bed.tap->house.run_until([&] { return bed.tap->port->status().counters.at("kernel_dropped") == 100; }));
  bed.tap->batch->clear();
  CHECK_FALSE(bed.tap->port->rx_queues()[0]->peek(*bed.tap->batch, bed.tap->drops));
  CHECK(bed.tap->dropped_rx(DropReason::kKernelDropped) == 100);
  CHECK(bed.tap->rx[0].frames.get() == 100);
}

TEST_CASE("tap: with vhost nothing stays open behind a port") {
  size_t before = 0;
  for (int round = 0; round < 3; ++round) {
    Bed bed;
    if (round == 1) before = open_fds();
    if (!bed.open(2)) return;
    REQUIRE_MESSAGE(bed.tap->opened, bed.tap->error);
  }
  Bed bed;
  CHECK(open_fds() == before);
}

namespace {

// A tap through the real vhost-net, as a worker without other ports would use it.
struct RealBed {
  ScopedNetns netns;
  std::unique_ptr<PortUnderTest> tap;
  std::unique_ptr<RawSocket> host;

  bool open(PortConfig config = config_for("tap-v")) {
    if (!netns.ok()) return false;
    if (::access(kVhostNetPath, R_OK | W_OK) != 0) {
      MESSAGE("skipped: this kernel has no vhost-net; load it with: modprobe vhost_net");
      return false;
    }
    tap = std::make_unique<PortUnderTest>(make_on_this_kernel, config);
    REQUIRE_MESSAGE(tap->opened, tap->error);
    host = std::make_unique<RawSocket>(config.device);
    REQUIRE(host->ok());
    return true;
  }
  uint32_t send(const std::vector<std::pair<Bytes, VnetHeader>>& frames) const {
    const uint32_t sent = tap->send(frames);
    full_fence();  // as between a worker's passes and its notifications
    tap->port->tx_queues().at(0)->notify();
    return sent;
  }
};

}  // namespace

TEST_CASE("vhost-net: frames of all sizes go both ways, more than a ring holds") {
  RealBed bed;
  if (!bed.open()) return;
  for (uint32_t lap = 0; lap < 40; ++lap) {
    for (const size_t bytes : {60, 128, 129, 1514}) {
      REQUIRE(bed.host->send(test_frame(bytes, static_cast<uint8_t>(lap))));
    }
    const auto got = bed.tap->receive(4);
    REQUIRE(got.size() == 4);
    CHECK(got[0].first == test_frame(60, static_cast<uint8_t>(lap)));
    CHECK(got[1].first == test_frame(128, static_cast<uint8_t>(lap)));
    CHECK(got[2].first == test_frame(129, static_cast<uint8_t>(lap)));
    CHECK(got[3].first == test_frame(1514, static_cast<uint8_t>(lap)));
    CHECK(bed.send({{test_frame(60, 1), {}}, {test_frame(1514, 2), {}}}) == 2);
    CHECK(bed.host->receive() == test_frame(60, 1));
    CHECK(bed.host->receive() == test_frame(1514, 2));
  }
  CHECK(bed.tap->rx[0].frames.get() == 160);
  CHECK(bed.tap->tx[0].frames.get() == 80);
}

TEST_CASE("vhost-net: unfinished checksums and large frames pass in both directions") {
  RealBed bed;
  if (!bed.open()) return;
  for (const int version : {4, 6}) {
    OffloadShape shape;
    shape.ip_version = version;
    shape.payload = 60'000;
    shape.gso_size = 1400;
    const OffloadFrame large = make_offload_frame(shape);
    shape.payload = 100;
    shape.gso_size = 0;
    const OffloadFrame small = make_offload_frame(shape);
    REQUIRE(bed.host->send(large.bytes, large.vnet));
    REQUIRE(bed.host->send(small.bytes, small.vnet));
    const auto got = bed.tap->receive(2);
    REQUIRE(got.size() == 2);
    CHECK(got[0].first == large.bytes);
    CHECK(got[0].second.gso_type == large.vnet.gso_type);
    CHECK(got[0].second.gso_size == 1400);
    CHECK(got[0].second.csum_start == large.vnet.csum_start);
    CHECK(got[1].first == small.bytes);
    CHECK(got[1].second.csum_offset == 16);

    CHECK(bed.send({{large.bytes, large.vnet}, {small.bytes, small.vnet}}) == 2);
    VnetHeader vnet;
    CHECK(bed.host->receive(&vnet) == large.bytes);
    CHECK(vnet.gso_type == large.vnet.gso_type);
    CHECK(vnet.gso_size == 1400);
    CHECK(bed.host->receive(&vnet) == small.bytes);
    CHECK(vnet.flags == VIRTIO_NET_HDR_F_NEEDS_CSUM);
  }
}

TEST_CASE("vhost-net: with offloads off the kernel hands over finished frames") {
  PortConfig config = config_for("tap-v");
  config.offloads = false;
  RealBed bed;
  if (!bed.open(config)) return;
  CHECK_FALSE(bed.tap->port->tx_queues()[0]->caps().checksum);
  OffloadShape shape;
  shape.payload = 3000;
  shape.gso_size = 1400;
  const OffloadFrame large = make_offload_frame(shape);
  REQUIRE(bed.host->send(large.bytes, large.vnet));
  const auto got = bed.tap->receive(3);
  REQUIRE(got.size() == 3);
  for (const auto& [bytes, vnet] : got) {
    CHECK(vnet.gso_type == 0);
    CHECK(check_transport(bytes, large) == "");
  }
}

TEST_CASE("vhost-net: an armed queue is woken by a frame") {
  RealBed bed;
  if (!bed.open()) return;
  RxQueue* const queue = bed.tap->port->rx_queues()[0];
  for (uint8_t round = 0; round < 5; ++round) {
    CHECK_FALSE(queue->arm());
    REQUIRE(bed.host->send(test_frame(60, round)));
    pollfd wait{queue->wake_fd(), POLLIN, 0};
    CHECK(::poll(&wait, 1, 5000) == 1);
    queue->disarm();
    CHECK(bed.tap->receive(1).at(0).first == test_frame(60, round));
  }
}

TEST_CASE("vhost-net: a deleted device is made again and moves frames again") {
  RealBed bed;
  if (!bed.open()) return;
  REQUIRE(shell("ip link del tap-v"));
  CHECK(bed.tap->house.run_until([&] { return bed.tap->port->status().counters.at("recreated") == 1; }));
  bed.host = std::make_unique<RawSocket>("tap-v");
  REQUIRE(bed.host->send(test_frame(60, 9)));
  CHECK(bed.tap->receive(1).at(0).first == test_frame(60, 9));
}

TEST_CASE("vhost-net: ports come and go with frames under way, and nothing stays open") {
  size_t before = 0;
  for (int round = 0; round < 10; ++round) {
    RealBed bed;
    if (round == 1) before = open_fds();
    if (!bed.open(config_for("tap-v", 2))) return;
    for (int i = 0; i < 100; ++i) REQUIRE(bed.host->send(test_frame(1514, 1)));
    CHECK(bed.send({{test_frame(60, 1), {}}}) == 1);
  }
  const RealBed bed;
  CHECK(open_fds() == before);
}
