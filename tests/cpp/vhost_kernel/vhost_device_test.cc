// SPDX-License-Identifier: Apache-2.0
#include "vhost_kernel/vhost_device.h"

#include <doctest/doctest.h>

#include "support/fake_vhost.h"

using namespace sw;

namespace {

constexpr const char* kPath = "/dev/vhost-test";

std::unique_ptr<DriverMemory> memory_of(uint64_t features, uint32_t pairs = 1) {
  DriverMemoryOptions options;
  options.features = features;
  options.queue_pairs = pairs;
  options.huge = HugePages::kOff;
  auto memory = DriverMemory::make(options);
  REQUIRE(memory);
  return std::move(*memory);
}

}  // namespace

TEST_CASE("VhostDevice: is owned from the moment it is open") {
  FakeVhost kernel(kPath);
  const auto device = VhostDevice::open(kernel, kPath);
  REQUIRE(device);
  REQUIRE(kernel.calls.size() == 1);
  CHECK(kernel.calls[0].request == VHOST_SET_OWNER);
}

TEST_CASE("VhostDevice: a failure names what was tried, the file and the reason") {
  FakeVhost kernel(kPath);
  SUBCASE("no such device") {
    const auto device = VhostDevice::open(kernel, "/dev/vhost-none");
    REQUIRE(!device);
    CHECK(device.error().message() == "open /dev/vhost-none: No such file or directory");
  }
  SUBCASE("owned by somebody else") {
    kernel.fail(VHOST_SET_OWNER, EBUSY);
    const auto device = VhostDevice::open(kernel, kPath);
    REQUIRE(!device);
    CHECK(device.error().message() == "become the owner of /dev/vhost-test: Device or resource busy");
  }
  auto device = VhostDevice::open(kernel, kPath);
  if (!device) return;
  const auto memory = memory_of(feature_mask(VIRTIO_F_VERSION_1));
  struct Row {
    unsigned long request;
    const char* what;
  };
  for (const Row& row : {Row{VHOST_SET_VRING_NUM, "set the size of ring 1 of"},
                         {VHOST_SET_VRING_BASE, "set the position of ring 1 of"},
                         {VHOST_SET_VRING_ADDR, "set the addresses of ring 1 of"},
                         {VHOST_SET_VRING_KICK, "set the kick eventfd of ring 1 of"},
                         {VHOST_SET_VRING_CALL, "set the call eventfd of ring 1 of"}}) {
    kernel.answer.clear();
    kernel.fail(row.request, EINVAL);
    const auto set = device->set_ring(1, memory->rings()[1]);
    REQUIRE(!set);
    CHECK(set.error().message() == std::string(row.what) + " /dev/vhost-test: Invalid argument");
  }
}

TEST_CASE("VhostDevice: features are asked for and set as 64 bits") {
  FakeVhost kernel(kPath);
  auto device = VhostDevice::open(kernel, kPath);
  REQUIRE(device);
  kernel.reply<uint64_t>(VHOST_GET_FEATURES, 0x1'2345'6789ULL);
  const auto features = device->features();
  REQUIRE(features);
  CHECK(*features == 0x1'2345'6789ULL);
  REQUIRE(device->set_features(0x1'0000'8000ULL));
  CHECK(FakeVhost::argument_of<uint64_t>(kernel.calls.back()) == 0x1'0000'8000ULL);
}

TEST_CASE("VhostDevice: a kernel without back-end features has none") {
  FakeVhost kernel(kPath);
  auto device = VhostDevice::open(kernel, kPath);
  REQUIRE(device);
  kernel.fail(VHOST_GET_BACKEND_FEATURES, ENOTTY);
  const auto features = device->backend_features();
  REQUIRE(features);
  CHECK(*features == 0);
  kernel.fail(VHOST_GET_BACKEND_FEATURES, EIO);
  CHECK(!device->backend_features());
}

TEST_CASE("VhostDevice: memory is one region at its own address, in whole pages") {
  FakeVhost kernel(kPath);
  auto device = VhostDevice::open(kernel, kPath);
  REQUIRE(device);
  const auto memory = memory_of(feature_mask(VIRTIO_F_VERSION_1));
  SUBCASE("as a table") {
    REQUIRE(device->set_memory_table(*memory));
    const auto& argument = kernel.calls.back().argument;
    vhost_memory_region region{};
    REQUIRE(argument.size() == sizeof(vhost_memory) + sizeof region);
    std::memcpy(&region, argument.data() + sizeof(vhost_memory), sizeof region);
    CHECK(FakeVhost::argument_of<uint32_t>(kernel.calls.back()) == 1);
    CHECK(region.guest_phys_addr == memory->address());
    CHECK(region.userspace_addr == memory->address());
    CHECK(region.memory_size == memory->bytes());
    CHECK(region.memory_size % VHOST_PAGE_SIZE == 0);
    CHECK(region.userspace_addr % VHOST_PAGE_SIZE == 0);
  }
  SUBCASE("as an IOTLB entry, and back") {
    REQUIRE(device->map(*memory));
    REQUIRE(device->unmap(*memory));
    REQUIRE(kernel.messages.size() == 2);
    const vhost_msg_v2& map = kernel.messages[0];
    CHECK(map.type == VHOST_IOTLB_MSG_V2);
    CHECK(map.iotlb.type == VHOST_IOTLB_UPDATE);
    CHECK(map.iotlb.iova == memory->address());
    CHECK(map.iotlb.uaddr == memory->address());
    CHECK(map.iotlb.size == memory->bytes());
    CHECK(map.iotlb.perm == VHOST_ACCESS_RW);
    CHECK(kernel.messages[1].iotlb.type == VHOST_IOTLB_INVALIDATE);
    kernel.write_error = ENOMEM;
    const auto mapped = device->map(*memory);
    REQUIRE(!mapped);
    CHECK(mapped.error().message().ends_with("bytes of ring memory for /dev/vhost-test: Cannot allocate memory"));
  }
}

TEST_CASE("VhostDevice: a ring is described as it lies in memory") {
  FakeVhost kernel(kPath);
  auto device = VhostDevice::open(kernel, kPath);
  REQUIRE(device);
  bool packed = false;
  SUBCASE("split") {}
  SUBCASE("packed") { packed = true; }
  const auto memory = memory_of(feature_mask(VIRTIO_F_VERSION_1) | (packed ? feature_mask(VIRTIO_F_RING_PACKED) : 0));
  const DriverMemory::Ring& ring = memory->rings()[1];
  REQUIRE(device->set_ring(5, ring));

  const auto num = FakeVhost::argument_of<vhost_vring_state>(kernel.calls_of(VHOST_SET_VRING_NUM).at(0));
  CHECK(num.index == 5);
  CHECK(num.num == 256);
  const auto base = FakeVhost::argument_of<vhost_vring_state>(kernel.calls_of(VHOST_SET_VRING_BASE).at(0));
  CHECK(base.index == 5);
  CHECK(base.num == (packed ? 0x80008000U : 0U));
  const auto areas = FakeVhost::argument_of<vhost_vring_addr>(kernel.calls_of(VHOST_SET_VRING_ADDR).at(0));
  CHECK(areas.index == 5);
  CHECK(areas.desc_user_addr == reinterpret_cast<uintptr_t>(ring.config.ring.descriptors));
  CHECK(areas.avail_user_addr == reinterpret_cast<uintptr_t>(ring.config.ring.driver_area));
  CHECK(areas.used_user_addr == reinterpret_cast<uintptr_t>(ring.config.ring.device_area));
  const auto kick = FakeVhost::argument_of<vhost_vring_file>(kernel.calls_of(VHOST_SET_VRING_KICK).at(0));
  CHECK(kick.fd == ring.kick.get());
  const auto call = FakeVhost::argument_of<vhost_vring_file>(kernel.calls_of(VHOST_SET_VRING_CALL).at(0));
  CHECK(call.fd == ring.call.get());
}
