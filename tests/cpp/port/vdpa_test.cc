// SPDX-License-Identifier: Apache-2.0
#include "port/vdpa.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>

#include "support/echo_device.h"
#include "support/temp_dir.h"
#include "vhost_kernel/uapi.h"
#include "virtio/driver_features.h"
#include "virtio/spec.h"

namespace sw::testing {
namespace {

constexpr uint64_t kNeeded = feature_mask(VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM);

// The kernel's half of one vhost-vdpa device, without a data path. Called from the port's threads.
class FakeVdpa final : public KernelCalls {
 public:
  explicit FakeVdpa(std::string device) : path(std::move(device)) { make_file(); }

  // What the test decides, before the port opens or under `mutex`.
  std::string path;
  int open_error = 0;
  unsigned long failing = 0;  // this request ends with `error`
  int error = 0;
  uint32_t device_id = 1;
  uint64_t offered = kNeeded | feature_mask(VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_MTU);
  uint64_t backend_features = 1ULL << VHOST_BACKEND_F_IOTLB_MSG_V2 | 1ULL << VHOST_BACKEND_F_IOTLB_BATCH;
  uint8_t refuses = 0;  // status bits that do not stick
  uint16_t ring_size = 256;
  vhost_vdpa_iova_range range{0, UINT64_MAX};
  NetConfigSpace config{{2, 0, 0, 0, 0, 9}, kNetStatusLinkUp, 4, 1500};

  // What it looks at.
  std::mutex mutex;
  std::vector<std::string> steps;  // requests that changed something, in order
  std::vector<vhost_msg_v2> messages;
  std::vector<vhost_vring_addr> addresses;
  std::vector<uint32_t> bases;
  uint64_t features = 0;
  uint8_t status = 0;
  int config_call = -1;
  std::atomic<int> opened{0};

  void make_file() { UniqueFd(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600)); }
  void change_link(bool up) {
    const std::lock_guard lock(mutex);
    config.status = up ? kNetStatusLinkUp : 0;
    const uint64_t one = 1;
    (void)!::write(config_call, &one, sizeof one);
  }

  int open(const char* name, int flags) override {
    if (open_error != 0) return failed(open_error);
    const int fd = ::open(name, flags);
    if (fd >= 0) ++opened;
    return fd;
  }
  ssize_t read(int, void*, size_t) override { return failed(EINVAL); }
  ssize_t write(int, const void* data, size_t bytes) override {
    const std::lock_guard lock(mutex);
    if (failing == VHOST_IOTLB_UPDATE) return failed(error);
    vhost_msg_v2 message{};
    std::memcpy(&message, data, std::min(bytes, sizeof message));
    messages.push_back(message);
    steps.emplace_back("map");
    return static_cast<ssize_t>(bytes);
  }
  int ioctl(int, unsigned long request, void* argument) override {
    const std::lock_guard lock(mutex);
    if (request == failing) return failed(error);
    switch (request) {
      case VHOST_SET_OWNER:
        return note("owner");
      case VHOST_VDPA_GET_DEVICE_ID:
        return give(argument, device_id);
      case VHOST_GET_BACKEND_FEATURES:
        return give(argument, backend_features);
      case VHOST_SET_BACKEND_FEATURES:
        return note("backend_features");
      case VHOST_GET_FEATURES:
        return give(argument, offered);
      case VHOST_SET_FEATURES:
        std::memcpy(&features, argument, sizeof features);
        return note("features");
      case VHOST_VDPA_GET_STATUS:
        return give(argument, status);
      case VHOST_VDPA_SET_STATUS:
        std::memcpy(&status, argument, 1);
        status = static_cast<uint8_t>(status & ~refuses);
        return note("status " + std::to_string(status));
      case VHOST_VDPA_GET_CONFIG:
        std::memcpy(static_cast<uint8_t*>(argument) + 8, &config, sizeof config);
        return 0;
      case VHOST_VDPA_GET_VRING_NUM:
        return give(argument, ring_size);
      case VHOST_VDPA_GET_IOVA_RANGE:
        return give(argument, range);
      case VHOST_SET_VRING_BASE:
        bases.push_back(static_cast<const vhost_vring_state*>(argument)->num);
        return note("ring");
      case VHOST_SET_VRING_ADDR: {
        vhost_vring_addr address{};
        std::memcpy(&address, argument, sizeof address);
        addresses.push_back(address);
        return 0;
      }
      case VHOST_VDPA_SET_CONFIG_CALL:
        std::memcpy(&config_call, argument, sizeof config_call);
        return note("config_call");
      case VHOST_VDPA_SET_VRING_ENABLE:
        return note("enable");
      default:
        return 0;
    }
  }

 private:
  static int failed(int code) {
    errno = code;
    return -1;
  }
  template <class T>
  static int give(void* to, const T& value) {
    std::memcpy(to, &value, sizeof value);
    return 0;
  }
  int note(const std::string& step) {
    steps.push_back(step);
    return 0;
  }
};

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

VdpaWishes wishes(const FakeVdpa& kernel) {
  VdpaWishes wanted;
  wanted.device = kernel.path;
  wanted.features = usable_driver_features({});
  wanted.queue_pairs = 2;
  return wanted;
}

struct Bed {
  Bed() {
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
  static size_t fds_of(const std::string& path) {
    size_t found = 0;
    for (int fd = 0; fd < 1024; ++fd) {
      char target[512] = {};
      const std::string link = "/proc/self/fd/" + std::to_string(fd);
      if (::readlink(link.c_str(), target, sizeof target - 1) > 0 && std::string(target).find(path) == 0) ++found;
    }
    return found;
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

TEST_CASE("VdpaSession: takes a device into service in the order of the specification") {
  TempDir directory;
  FakeVdpa kernel(directory.file("d"));
  auto session = VdpaSession::start(kernel, wishes(kernel));
  REQUIRE_MESSAGE(static_cast<bool>(session), session.error().message());
  const std::vector<std::string> expected = {"owner",       "backend_features",
                                             "status 0",    "status 1",
                                             "status 3",    "features",
                                             "status 11",   "map",
                                             "map",         "map",
                                             "ring",        "ring",
                                             "config_call", "enable",
                                             "enable",      "status 15"};
  CHECK(kernel.steps == expected);
  CHECK(kernel.features == kernel.offered);
  REQUIRE(kernel.messages.size() == 3);
  CHECK(kernel.messages[0].iotlb.type == VHOST_IOTLB_BATCH_BEGIN);
  CHECK(kernel.messages[1].iotlb.type == VHOST_IOTLB_UPDATE);
  CHECK(kernel.messages[1].iotlb.perm == VHOST_ACCESS_RW);
  CHECK(kernel.messages[1].iotlb.iova == kernel.messages[1].iotlb.uaddr);
  CHECK(kernel.messages[1].iotlb.size == (*session)->memory_bytes());
  CHECK(kernel.messages[2].iotlb.type == VHOST_IOTLB_BATCH_END);
  CHECK(kernel.bases == std::vector<uint32_t>{0, 0});
  CHECK((*session)->config().mac[5] == 9);
  CHECK((*session)->link_up());
  CHECK(static_cast<bool>((*session)->check()));
}

TEST_CASE("VdpaSession: takes what the device has") {
  struct Row {
    uint64_t more;
    uint32_t pairs;
    uint32_t base;
    const char* limits;
  };
  const uint64_t mq = feature_mask(VIRTIO_NET_F_MQ);
  const uint64_t control = feature_mask(VIRTIO_NET_F_CTRL_VQ);
  for (const Row& row : {Row{0, 1, 0, "1 of 2"}, Row{mq, 2, 0, ""}, Row{mq | control, 1, 0, "control queue"},
                         Row{feature_mask(VIRTIO_F_RING_PACKED), 1, 0x8000'8000, "1 of 2"}}) {
    TempDir directory;
    FakeVdpa kernel(directory.file("d"));
    kernel.offered |= row.more;
    auto session = VdpaSession::start(kernel, wishes(kernel));
    REQUIRE(static_cast<bool>(session));
    CHECK((*session)->queue_pairs() == row.pairs);
    CHECK(kernel.addresses.size() == 2 * row.pairs);
    CHECK(kernel.bases[0] == row.base);
    CHECK((*session)->limits().find(row.limits) != std::string::npos);
  }
  TempDir directory;
  FakeVdpa kernel(directory.file("d"));
  kernel.ring_size = 100;
  auto session = VdpaSession::start(kernel, wishes(kernel));
  REQUIRE(static_cast<bool>(session));
  CHECK((*session)->ring_size() == 64);
}

TEST_CASE("VdpaSession: memory lies where the device can see it") {
  TempDir directory;
  FakeVdpa kernel(directory.file("d"));
  kernel.range = {0, (1ULL << 32) - 1};  // below every address of ours
  kernel.backend_features = 1ULL << VHOST_BACKEND_F_IOTLB_MSG_V2;
  auto session = VdpaSession::start(kernel, wishes(kernel));
  REQUIRE_MESSAGE(static_cast<bool>(session), session.error().message());
  REQUIRE(kernel.messages.size() == 1);  // no batch without the feature
  const vhost_iotlb_msg& mapped = kernel.messages[0].iotlb;
  CHECK(mapped.iova != mapped.uaddr);
  CHECK(mapped.iova != 0);
  CHECK(mapped.iova + mapped.size - 1 <= kernel.range.last);
  for (const vhost_vring_addr& ring : kernel.addresses) {
    for (const uint64_t address : {ring.desc_user_addr, ring.avail_user_addr, ring.used_user_addr}) {
      CHECK(address >= mapped.iova);
      CHECK(address < mapped.iova + mapped.size);
    }
  }
  // And so do the buffers: the first descriptor of the receiveq.
  std::array<QueueCounters, 1> rx, tx;
  DriverDevice& queues = (*session)->make_queues(rx, tx);
  const auto* first = reinterpret_cast<const VringDesc*>(queues.memory().rings()[0].config.ring.descriptors);
  CHECK(first->addr >= mapped.iova);
  CHECK(first->addr + first->len <= mapped.iova + mapped.size);

  FakeVdpa narrow(directory.file("e"));
  narrow.range = {0, 0xffff};
  auto refused = VdpaSession::start(narrow, wishes(narrow));
  REQUIRE_FALSE(static_cast<bool>(refused));
  CHECK(refused.error().message().find("too small") != std::string::npos);
}

TEST_CASE("VdpaSession: every refusal says what was tried, why it failed and what to do") {
  struct Row {
    const char* what;
    void (*change)(FakeVdpa&);
    const char* says;
  };
  const Row rows[] = {
      {"missing", [](FakeVdpa& kernel) { kernel.open_error = ENOENT; }, "vdpa dev add"},
      {"removed", [](FakeVdpa& kernel) { kernel.open_error = ENODEV; }, "vhost_vdpa"},
      {"busy", [](FakeVdpa& kernel) { kernel.open_error = EBUSY; }, "another process"},
      {"rights", [](FakeVdpa& kernel) { kernel.open_error = EACCES; }, "permission on the file"},
      {"block device", [](FakeVdpa& kernel) { kernel.device_id = 2; }, "kind 2"},
      {"old kernel", [](FakeVdpa& kernel) { kernel.backend_features = 0; }, "IOTLB messages"},
      {"legacy", [](FakeVdpa& kernel) { kernel.offered &= ~feature_mask(VIRTIO_F_VERSION_1); }, "VIRTIO_F_VERSION_1"},
      {"no IOMMU", [](FakeVdpa& kernel) { kernel.offered &= ~feature_mask(VIRTIO_F_ACCESS_PLATFORM); },
       "VIRTIO_F_ACCESS_PLATFORM"},
      {"features", [](FakeVdpa& kernel) { kernel.refuses = kStatusFeaturesOk; }, "refused them"},
      {"start", [](FakeVdpa& kernel) { kernel.refuses = kStatusDriverOk; }, "did not accept its rings"},
      {"no rings", [](FakeVdpa& kernel) { kernel.ring_size = 0; }, "no entries"},
      {"memory",
       [](FakeVdpa& kernel) {
         kernel.failing = VHOST_IOTLB_UPDATE;
         kernel.error = ENOMEM;
       },
       "bytes of ring memory"},
      {"gone",
       [](FakeVdpa& kernel) {
         kernel.failing = VHOST_SET_VRING_ADDR;
         kernel.error = ENODEV;
       },
       "No such device"},
  };
  for (const Row& row : rows) {
    CAPTURE(std::string(row.what));
    TempDir directory;
    FakeVdpa kernel(directory.file("d"));
    row.change(kernel);
    const auto session = VdpaSession::start(kernel, wishes(kernel));
    REQUIRE_FALSE(static_cast<bool>(session));
    CHECK_MESSAGE(session.error().message().find(row.says) != std::string::npos, session.error().message());
    CHECK(Bed::fds_of(kernel.path) == 0);
  }
}

TEST_CASE("VdpaPort: runs, follows its link, and is down while the device is gone") {
  Bed bed;
  REQUIRE(static_cast<bool>(bed.port->open(bed.host)));
  REQUIRE(bed.wait("running"));
  CHECK(bed.host.rx.size() == 1);
  CHECK(bed.host.tx.size() == 1);
  CHECK(bed.port->status().facts.at("mac") == "02:00:00:00:00:09");
  CHECK(bed.port->status().rings.size() == 2);

  bed.kernel.change_link(false);
  REQUIRE(bed.wait("link_down"));
  CHECK(bed.host.rx.empty());
  CHECK(bed.host.tx.empty());
  bed.kernel.change_link(true);
  REQUIRE(bed.wait("running"));
  CHECK(bed.host.rx.size() == 1);

  // The kernel takes the file away and waits for us to close ours.
  REQUIRE(::unlink(bed.kernel.path.c_str()) == 0);
  REQUIRE(bed.wait("waiting_for_device"));
  CHECK(bed.host.rx.empty());
  CHECK(run_until(bed.host.loop(), [&] { return Bed::fds_of(bed.kernel.path) == 0; }));
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
