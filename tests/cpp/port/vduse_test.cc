// SPDX-License-Identifier: Apache-2.0
#include "port/vduse.h"

#include <dirent.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "support/echo_device.h"
#include "support/fake_vduse.h"
#include "virtio/driver_device.h"
#include "virtio/driver_features.h"
#include "virtio/spec.h"

namespace sw::testing {
namespace {

constexpr uint8_t kDriverOk = 15;  // all the steps up to it

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
  std::vector<RxQueue*> rx;
  std::vector<TxQueue*> tx;
  std::vector<std::string> events;

 private:
  EventLoop loop_;
};

size_t open_files() {
  size_t count = 0;
  DIR* directory = ::opendir("/proc/self/fd");
  while (::readdir(directory) != nullptr) ++count;
  ::closedir(directory);
  return count;
}

// A driver with real rings in a memory file, as vhost_vdpa hands one over; the switch's port; the kernel between them.
struct Bed {
  explicit Bed(bool packed = false, uint64_t more_features = 0) {
    PortConfig config;
    config.name = config.device = "vd0";
    config.type = "vduse";
    config.packed = packed;
    config.mac = 0x02'00'00'00'00'07;
    config.mtu = 1400;
    port_config = config;
    features = (usable_driver_features({.packed = packed, .in_order = false}) & ~feature_mask(VIRTIO_F_ANY_LAYOUT)) |
               feature_mask(VIRTIO_F_ACCESS_PLATFORM) | more_features;
    make_port();
  }
  void make_port() {
    auto made = make_vduse_on(kernel, port_config, {rx_counters, tx_counters});
    REQUIRE_MESSAGE(static_cast<bool>(made), made.error().message());
    port = std::move(*made);
  }
  void open() {
    const auto opened = port->open(host);
    REQUIRE_MESSAGE(static_cast<bool>(opened), opened.error().message());
  }
  // The driver's side: memory in the IOTLB, rings set up and ready. Nothing is in them before post().
  void set_up_driver() {
    DriverMemoryOptions options;
    options.features = features;
    options.ring_size = 64;
    auto made = DriverMemory::make(options);
    REQUIRE(static_cast<bool>(made));
    memory = std::move(*made);
    kernel.driver_features = features;
    kernel.iotlb = {{memory->address(), memory->address() + memory->bytes() - 1, memory->fd()}};
    for (uint32_t i = 0; i < 2; ++i) {
      const RingMemory& ring = memory->rings()[i].config.ring;
      vduse_vq_info& info = kernel.queues[i];
      info = {};
      info.num = ring.size;
      info.desc_addr = reinterpret_cast<uintptr_t>(ring.descriptors);
      info.driver_addr = reinterpret_cast<uintptr_t>(ring.driver_area);
      info.device_addr = reinterpret_cast<uintptr_t>(ring.device_area);
      if (has_feature(features, VIRTIO_F_RING_PACKED)) {
        info.packed.last_avail_counter = info.packed.last_used_counter = 1;
      }
      info.ready = 1;
    }
  }
  void post_buffers() {
    driver = DriverDevice::make(std::move(memory), driver_rx, driver_tx);
    kernel.kick(0);
  }
  void start() {
    set_up_driver();
    kernel.post_status(kDriverOk);
    post_buffers();
    REQUIRE(run_until(host.loop(), [&] { return !host.tx.empty() && host.tx[0] != nullptr; }));
  }
  // A frame from the driver arrives here.
  bool from_driver(uint8_t fill = 3) {
    if (!send(*driver->tx()[0], fill)) return false;
    driver->tx()[0]->notify();
    kernel.kick(1);
    return run_until(host.loop(),
                     [&] { return !host.rx.empty() && host.rx[0] != nullptr && received(*host.rx[0], fill); });
  }
  // And one from here arrives there.
  bool to_driver(uint8_t fill = 5) {
    if (host.tx.empty() || host.tx[0] == nullptr || !send(*host.tx[0], fill)) return false;
    host.tx[0]->notify();
    return received(*driver->rx()[0], fill);
  }
  bool send(TxQueue& queue, uint8_t fill) {
    batch->clear();
    Frame& frame = batch->frames[0];
    frame.len = frame.head_len = 64;
    frame.head_offset = 0;
    frame.segment_count = 0;
    frame.offload = false;
    std::memset(frame.head, fill, 64);
    const uint8_t first = 0;
    return queue.send(*batch, {&first, 1}, drops) == 1;
  }
  bool received(RxQueue& queue, uint8_t fill) {
    batch->clear();
    if (!queue.peek(*batch, drops)) return false;
    const bool right = batch->count == 1 && batch->frames[0].head[20] == fill;
    queue.release();
    queue.notify();
    return right;
  }
  vduse_dev_response last_answer() {
    const size_t before = kernel.answers.size();
    REQUIRE(run_until(host.loop(), [&] { return kernel.answers.size() > before; }));
    return kernel.answers.back();
  }
  void close() {
    host.pause(*port);
    port->close();
  }

  FakeVduse kernel;
  Host host;
  PortConfig port_config;
  std::array<QueueCounters, 1> rx_counters, tx_counters, driver_rx, driver_tx;
  PortWorkerCounters drops;
  std::unique_ptr<Batch> batch = std::make_unique<Batch>();
  uint64_t features = 0;
  std::unique_ptr<DriverMemory> memory;
  std::unique_ptr<DriverDevice> driver;
  std::unique_ptr<Port> port;  // before what it may point into
};

}  // namespace

TEST_CASE("VdusePort: makes a network device with one queue pair, and removes it") {
  Bed bed;
  const size_t files = open_files();
  bed.open();
  const auto* config = reinterpret_cast<const vduse_dev_config*>(bed.kernel.created.data());
  CHECK(std::string(config->name) == "vd0");
  CHECK(config->device_id == 1);
  CHECK(config->vq_num == 2);
  for (const uint32_t needed : {VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU,
                                VIRTIO_NET_F_STATUS, VIRTIO_NET_F_MRG_RXBUF}) {
    CHECK(has_feature(config->features, needed));
  }
  // Kernels refuse a control queue; in-order packed rings could not be taken over.
  for (const uint32_t refused :
       {VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ, VIRTIO_F_IN_ORDER, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES}) {
    CHECK_FALSE(has_feature(config->features, refused));
  }
  const NetConfigSpace* space = reinterpret_cast<const NetConfigSpace*>(config->config);
  CHECK(space->mac[0] == 2);
  CHECK(space->mac[5] == 7);
  CHECK(space->mtu == 1400);
  CHECK(space->status == kNetStatusLinkUp);
  const PortStatus status = bed.port->status();
  CHECK(status.stage == "waiting_for_attach");
  CHECK(status.detail.find("vdpa dev add name vd0 mgmtdev vduse") != std::string::npos);
  CHECK(static_cast<bool>(bed.port->set_mtu(1300)));
  CHECK(bed.kernel.config_written.size() == 2);
  bed.close();
  CHECK_FALSE(bed.kernel.exists);
  CHECK(open_files() == files);
}

TEST_CASE("VdusePort: says what is missing when there can be no device") {
  struct Row {
    int control, create, device;
    const char* says;
  };
  for (const Row& row : {Row{ENOENT, 0, 0, "modprobe vduse"}, Row{EACCES, 0, 0, "as root"}, Row{0, EINVAL, 0, "6.10"},
                         Row{0, EPERM, 0, "CAP_NET_ADMIN"}, Row{0, 0, ENOENT, "devtmpfs"}}) {
    Bed bed;
    bed.kernel.control_error = row.control;
    bed.kernel.create_error = row.create;
    bed.kernel.device_error = row.device;
    const auto opened = bed.port->open(bed.host);
    REQUIRE_FALSE(static_cast<bool>(opened));
    CHECK_MESSAGE(opened.error().message().find(row.says) != std::string::npos, opened.error().message());
    CHECK_FALSE(bed.kernel.exists);
  }
}

TEST_CASE("VdusePort: a device that another process serves is waited for") {
  Bed bed;
  bed.kernel.exists = bed.kernel.attached = true;
  bed.kernel.device_error = EBUSY;
  bed.open();
  CHECK(bed.port->status().stage == "waiting_for_device");
  CHECK(bed.port->status().detail.find("another process") != std::string::npos);
  bed.kernel.device_error = 0;
  CHECK(run_until(bed.host.loop(), [&] { return bed.port->status().stage != "waiting_for_device"; }));
}

TEST_CASE("VdusePort: frames pass both ways, with interrupts when the driver wants them") {
  for (const bool packed : {false, true}) {
    Bed bed(packed);
    bed.open();
    bed.start();
    CHECK(bed.host.depth == 0);
    for (uint8_t i = 1; i <= 200; ++i) {  // more than a lap
      REQUIRE(bed.from_driver(i));
      REQUIRE(bed.to_driver(i));
    }
    CHECK(bed.kernel.interrupts[0] > 0);
    const PortStatus status = bed.port->status();
    CHECK(status.up);
    CHECK(status.stage == "running");
    CHECK(status.rings.size() == 2);
    CHECK(status.rings[0].facts.at("layout") == (packed ? "packed" : "split"));
    bed.close();
    CHECK(bed.host.events.back().find("connected") == 0);  // nothing else happened
  }
}

TEST_CASE("VdusePort: a ring starts when kernel, driver and the first buffer are there, in any order") {
  Bed bed;
  bed.open();
  bed.set_up_driver();
  bed.kernel.queues[0].ready = bed.kernel.queues[1].ready = 0;
  bed.kernel.post_status(kDriverOk);
  CHECK(run_until(bed.host.loop(), [&] { return bed.kernel.driver_ok; }));
  const auto waits_for = [&](const std::string& what) {
    return run_until(bed.host.loop(), [&] {
      const PortStatus status = bed.port->status();
      return status.stage == "rings" && status.detail.find(what) != std::string::npos;
    });
  };
  CHECK(waits_for("has not made it ready"));
  bed.kernel.queues[0].ready = bed.kernel.queues[1].ready = 1;
  // What a driver of the kernel maps shows up with its first buffer only.
  const auto hidden = std::exchange(bed.kernel.iotlb, {});
  CHECK(waits_for("not in the memory"));
  bed.kernel.iotlb = hidden;
  CHECK(waits_for("not given it a buffer"));
  bed.post_buffers();
  CHECK(run_until(bed.host.loop(), [&] { return bed.port->status().up; }));
  CHECK(bed.to_driver());
  CHECK(bed.from_driver());
}

TEST_CASE("VdusePort: an interrupt that the kernel refuses yet does not start a ring") {
  Bed bed;
  bed.open();
  bed.set_up_driver();
  bed.kernel.post_status(kDriverOk);
  CHECK(run_until(bed.host.loop(), [&] { return !bed.kernel.answers.empty(); }));
  bed.kernel.driver_ok = false;  // answered, not noted
  bed.post_buffers();
  for (int i = 0; i < 20; ++i) bed.host.loop().run_once(2, [](const std::function<void()>& run) { run(); });
  CHECK_FALSE(bed.port->status().up);
  bed.kernel.driver_ok = true;
  CHECK(run_until(bed.host.loop(), [&] { return bed.port->status().up; }));
}

TEST_CASE("VdusePort: a reset takes the rings down, and the next driver starts afresh") {
  Bed bed;
  const size_t files = open_files();
  bed.open();
  for (int round = 0; round < 5; ++round) {
    bed.start();
    CHECK(bed.from_driver());
    CHECK(bed.to_driver());
    bed.kernel.post_status(0);
    CHECK(bed.last_answer().result == VDUSE_REQ_RESULT_OK);
    CHECK(bed.host.tx[0] == nullptr);
    CHECK(bed.host.rx[0] == nullptr);
    CHECK_FALSE(bed.port->status().up);
    bed.driver.reset();
  }
  bed.close();
  bed.kernel.kicks = {};
  CHECK(open_files() == files);
}

TEST_CASE("VdusePort: mappings change under traffic and the rings go on where they were") {
  for (const bool packed : {false, true}) {
    Bed bed(packed);
    bed.open();
    bed.start();
    for (uint8_t i = 1; i <= 100; ++i) {
      REQUIRE(bed.from_driver(i));
      REQUIRE(bed.to_driver(i));
      if (i % 10 != 0) continue;
      vduse_dev_request request{};
      request.type = VDUSE_UPDATE_IOTLB;
      request.iova.last = UINT64_MAX;
      bed.kernel.post(request);
      CHECK(bed.last_answer().result == VDUSE_REQ_RESULT_OK);
    }
  }
}

TEST_CASE("VdusePort: tells where its rings stand, and nothing about rings that do not exist") {
  for (const bool packed : {false, true}) {
    Bed bed(packed);
    bed.open();
    bed.start();
    for (uint8_t i = 1; i <= 7; ++i) REQUIRE(bed.from_driver(i));
    vduse_dev_request request{};
    request.type = VDUSE_GET_VQ_STATE;
    request.vq_state.index = 1;
    bed.kernel.post(request);
    const vduse_dev_response answer = bed.last_answer();
    CHECK(answer.result == VDUSE_REQ_RESULT_OK);
    if (packed) {
      CHECK(answer.vq_state.packed.last_avail_idx == 7);
      CHECK(answer.vq_state.packed.last_avail_counter == 1);
      CHECK(answer.vq_state.packed.last_used_idx == 7);
    } else {
      CHECK(answer.vq_state.split.avail_index == 7);
    }
    for (const uint32_t index : {2U, 0x10000U, UINT32_MAX}) {
      request.vq_state.index = index;
      bed.kernel.post(request);
      CHECK(bed.last_answer().result == VDUSE_REQ_RESULT_FAILED);
    }
    request.type = 77;
    bed.kernel.post(request);
    CHECK(bed.last_answer().result == VDUSE_REQ_RESULT_FAILED);
    CHECK(bed.port->status().counters.at("refused") == 4);
    CHECK(bed.from_driver(8));
  }
}

TEST_CASE("VdusePort: the next switch goes on under a running driver") {
  for (const bool packed : {false, true}) {
    Bed bed(packed, packed ? feature_mask(VIRTIO_F_INDIRECT_DESC) : 0);
    bed.open();
    bed.start();
    for (uint8_t i = 1; i <= 70; ++i) {
      REQUIRE(bed.from_driver(i));
      REQUIRE(bed.to_driver(i));
    }
    bed.kernel.attached = true;
    bed.close();
    CHECK(bed.kernel.exists);
    CHECK(bed.host.saw("device_stays"));
    bed.make_port();
    bed.host.depth = 0;
    REQUIRE(bed.send(*bed.driver->tx()[0], 99));  // while nobody serves
    bed.open();
    REQUIRE(run_until(bed.host.loop(), [&] { return !bed.host.rx.empty() && bed.host.rx[0] != nullptr; }));
    CHECK(bed.host.saw("there already"));
    CHECK(bed.received(*bed.host.rx[0], 99));
    for (uint8_t i = 1; i <= 70; ++i) {
      REQUIRE(bed.from_driver(i));
      REQUIRE(bed.to_driver(i));
    }
  }
}

TEST_CASE("VdusePort: a driver that breaks rules hurts its own rings, until it resets") {
  struct Row {
    const char* what;
    void (*harm)(Bed&);
    const char* says;
  };
  const Row rows[] = {
      {"ring size", [](Bed& bed) { bed.kernel.queues[0].num = 3; }, "3 entries is impossible"},
      {"no ring", [](Bed& bed) { bed.kernel.queues[0].num = 0; }, "0 entries is impossible"},
      {"misaligned", [](Bed& bed) { bed.kernel.queues[0].desc_addr += 4; }, "misaligned"},
      {"outside", [](Bed& bed) { bed.kernel.queues[0].device_addr = 0x1000; }, "not in the memory"},
      {"wraps", [](Bed& bed) { bed.kernel.queues[0].desc_addr = UINT64_MAX - 8; }, "not in the memory"},
      {"read-only", [](Bed& bed) { bed.kernel.iotlb[0].perm = VDUSE_ACCESS_RO; }, "only be read"},
      {"empty answer", [](Bed& bed) { bed.kernel.iotlb[0].last = UINT64_MAX; }, "not in the memory"},
      {"jump",
       [](Bed& bed) { reinterpret_cast<VringUsed*>(bed.memory->rings()[0].config.ring.device_area)->idx = 30'000; },
       "available index"},
  };
  for (const Row& row : rows) {
    CAPTURE(std::string(row.what));
    Bed bed;
    bed.open();
    bed.set_up_driver();
    row.harm(bed);
    bed.kernel.post_status(kDriverOk);
    bed.post_buffers();
    CHECK(run_until(bed.host.loop(), [&] {
      if (!bed.host.tx.empty() && bed.host.tx[0] != nullptr) bed.send(*bed.host.tx[0], 1);  // a worker would
      const auto rings = bed.port->status().rings;
      if (rings.empty()) return false;
      const auto& facts = rings[0].facts;
      const std::string said = (facts.count("broken") != 0 ? facts.at("broken") : "") +
                               (facts.count("waiting") != 0 ? facts.at("waiting") : "");
      return said.find(row.says) != std::string::npos;
    }));
    CHECK(bed.host.depth == 0);
    bed.kernel.post_status(0);
    CHECK(bed.last_answer().result == VDUSE_REQ_RESULT_OK);
    bed.driver.reset();
    bed.start();
    CHECK(bed.to_driver());
    CHECK(bed.from_driver());
  }
}

TEST_CASE("VdusePort: features that were not offered are refused") {
  Bed bed;
  bed.open();
  bed.set_up_driver();
  for (const uint64_t features : {bed.features | feature_mask(VIRTIO_NET_F_CTRL_VQ),
                                  bed.features & ~feature_mask(VIRTIO_F_VERSION_1), UINT64_MAX, uint64_t{0}}) {
    bed.kernel.driver_features = features;
    bed.kernel.post_status(kDriverOk);
    CHECK(bed.last_answer().result == VDUSE_REQ_RESULT_FAILED);
    CHECK_FALSE(bed.kernel.driver_ok);
  }
  bed.kernel.driver_features = bed.features;
  bed.start();
  CHECK(bed.to_driver());
}

TEST_CASE("VdusePort: a device that the kernel gives up is asked for again") {
  Bed bed;
  bed.open();
  bed.start();
  bed.kernel.broken = EIO;
  bed.kernel.wake();
  REQUIRE(run_until(bed.host.loop(), [&] { return bed.port->status().stage == "waiting_for_device"; }));
  CHECK(bed.host.saw("disconnected"));
  bed.kernel.broken = 0;
  bed.kernel.driver_ok = false;
  REQUIRE(run_until(bed.host.loop(), [&] { return bed.port->status().counters.at("connects") == 2; }));
  bed.driver.reset();
  bed.start();
  CHECK(bed.to_driver());
}

TEST_CASE("VdusePort: names that no device can have") {
  for (const char* name : {"", "control", "a/b", ".."}) {
    Bed bed;
    bed.port_config.device = name;
    bed.make_port();
    CHECK_FALSE(static_cast<bool>(bed.port->open(bed.host)));
  }
}

}  // namespace sw::testing
