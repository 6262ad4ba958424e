// SPDX-License-Identifier: Apache-2.0
#include "vhost_kernel/vhost_net.h"

#include <dirent.h>
#include <doctest/doctest.h>

#include "support/fake_vhost.h"

using namespace sw;

namespace {

constexpr uint64_t kOffered = feature_mask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_F_EVENT_IDX,
                                           VIRTIO_F_INDIRECT_DESC, VHOST_F_LOG_ALL, VIRTIO_F_ANY_LAYOUT);
constexpr OffloadCaps kAllOffloads{.checksum = true, .tso4 = true, .tso6 = true, .ecn = true, .uso = true};

struct Bed {
  FakeVhost kernel{kVhostNetPath};
  std::unique_ptr<VhostNet> net;
  std::unique_ptr<DriverMemory> memory;

  explicit Bed(uint32_t pairs = 1) {
    kernel.reply<uint64_t>(VHOST_GET_FEATURES, kOffered);
    auto opened = VhostNet::open(kernel, pairs);
    REQUIRE(opened);
    net = std::move(*opened);
    DriverMemoryOptions options;
    options.features = net->features(kAllOffloads);
    options.queue_pairs = pairs;
    options.huge = HugePages::kOff;
    auto made = DriverMemory::make(options);
    REQUIRE(made);
    memory = std::move(*made);
  }

  [[nodiscard]] std::vector<vhost_vring_file> backends() const {
    std::vector<vhost_vring_file> files;
    for (const auto& call : kernel.calls_of(VHOST_NET_SET_BACKEND)) {
      files.push_back(FakeVhost::argument_of<vhost_vring_file>(call));
    }
    return files;
  }
};

size_t open_fds() {
  size_t count = 0;
  DIR* const folder = ::opendir("/proc/self/fd");
  while (::readdir(folder) != nullptr) ++count;
  ::closedir(folder);
  return count;
}

}  // namespace

TEST_CASE("VhostNet: a device that cannot be opened is answered with a way out") {
  struct Row {
    int error;
    const char* hint;
  };
  for (const Row& row : {Row{ENOENT, "modprobe vhost_net"},
                         {ENODEV, "modprobe vhost_net"},
                         {EACCES, "a udev rule such as KERNEL==\"vhost-net\""}}) {
    CAPTURE(row.hint);
    FakeVhost kernel(kVhostNetPath);
    kernel.open_error = row.error;
    const auto net = VhostNet::open(kernel, 1);
    REQUIRE(!net);
    const std::string message = net.error().message();
    CHECK(message.starts_with("open /dev/vhost-net: "));
    CHECK(message.find(row.hint) != std::string::npos);
    CHECK(message.find("leave out `vhost: true`") != std::string::npos);
  }
}

TEST_CASE("VhostNet: a kernel without what we need is refused by name") {
  FakeVhost kernel(kVhostNetPath);
  kernel.reply<uint64_t>(VHOST_GET_FEATURES, feature_mask(VIRTIO_F_VERSION_1));
  const auto no_merging = VhostNet::open(kernel, 1);
  REQUIRE(!no_merging);
  CHECK(no_merging.error().message().find("lacks mergeable receive buffers") != std::string::npos);
  kernel.reply<uint64_t>(VHOST_GET_FEATURES, feature_mask(VIRTIO_NET_F_MRG_RXBUF));
  const auto legacy = VhostNet::open(kernel, 1);
  REQUIRE(!legacy);
  CHECK(legacy.error().message().find("lacks virtio 1") != std::string::npos);
}

TEST_CASE("VhostNet: the rings know the tap's offloads, the kernel's vhost only what is its own") {
  Bed bed;
  const int taps[] = {42};
  CHECK(bed.net->features({}) == feature_mask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_F_EVENT_IDX));
  CHECK(has_feature(bed.net->features(kAllOffloads), VIRTIO_NET_F_HOST_TSO4));
  CHECK(has_feature(bed.net->features(kAllOffloads), VIRTIO_NET_F_GUEST_USO6));
  REQUIRE(bed.net->start(*bed.memory, taps));
  const auto features = FakeVhost::argument_of<uint64_t>(bed.kernel.calls_of(VHOST_SET_FEATURES).at(0));
  CHECK(features == feature_mask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_F_EVENT_IDX));
}

TEST_CASE("VhostNet: each queue pair has a device of its own, connected to its tap queue after the rings are there") {
  Bed bed(2);
  const int taps[] = {42, 43};
  REQUIRE(bed.net->start(*bed.memory, taps));
  const auto backends = bed.kernel.calls_of(VHOST_NET_SET_BACKEND);
  REQUIRE(backends.size() == 4);
  for (size_t i = 0; i < 4; ++i) {
    CHECK(bed.backends()[i].index == i % 2);
    CHECK(bed.backends()[i].fd == taps[i / 2]);
  }
  CHECK(backends[0].fd == backends[1].fd);
  CHECK(backends[1].fd != backends[2].fd);
  const auto areas = bed.kernel.calls_of(VHOST_SET_VRING_ADDR);
  REQUIRE(areas.size() == 4);
  for (size_t i = 0; i < 4; ++i) {
    const auto area = FakeVhost::argument_of<vhost_vring_addr>(areas[i]);
    CHECK(area.index == i % 2);
    CHECK(area.desc_user_addr == reinterpret_cast<uintptr_t>(bed.memory->rings()[i].config.ring.descriptors));
    CHECK(areas[i].fd == backends[i].fd);
  }
}

TEST_CASE("VhostNet: whatever the kernel refuses ends the start, with the tap disconnected again") {
  for (const unsigned long request :
       {VHOST_SET_FEATURES, VHOST_SET_MEM_TABLE, VHOST_SET_VRING_NUM, VHOST_SET_VRING_ERR, VHOST_NET_SET_BACKEND}) {
    CAPTURE(request);
    Bed bed(2);
    // The second device is the one that fails; VRING requests come twice for each.
    const bool per_ring = request != VHOST_SET_FEATURES && request != VHOST_SET_MEM_TABLE;
    bed.kernel.fail(request, ENOMEM, per_ring ? 3 : 1);
    const int taps[] = {42, 43};
    const auto started = bed.net->start(*bed.memory, taps);
    REQUIRE(!started);
    CHECK(started.error().message().ends_with("/dev/vhost-net: Cannot allocate memory"));
    const auto backends = bed.backends();
    REQUIRE(backends.size() >= 6);
    for (size_t i = backends.size() - 4; i < backends.size(); ++i) CHECK(backends[i].fd == VHOST_FILE_UNBIND);
  }
}

TEST_CASE("VhostNet: a ring that the kernel stopped is reported once") {
  Bed bed;
  const int taps[] = {42};
  REQUIRE(bed.net->start(*bed.memory, taps));
  CHECK(!bed.net->take_ring_error());
  const auto errors = bed.kernel.calls_of(VHOST_SET_VRING_ERR);
  REQUIRE(errors.size() == 2);
  CHECK(::eventfd_write(FakeVhost::argument_of<vhost_vring_file>(errors[1]).fd, 1) == 0);
  CHECK(bed.net->take_ring_error());
  CHECK(!bed.net->take_ring_error());
}

TEST_CASE("VhostNet: nothing stays open, whether the start worked or not") {
  const size_t before = open_fds();
  for (const bool works : {true, false}) {
    Bed bed(2);
    if (!works) bed.kernel.fail(VHOST_SET_VRING_ADDR, EFAULT, 2);
    const int taps[] = {42, 43};
    CHECK(static_cast<bool>(bed.net->start(*bed.memory, taps)) == works);
  }
  CHECK(open_fds() == before);
}
