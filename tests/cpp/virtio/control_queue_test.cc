// SPDX-License-Identifier: Apache-2.0
#include "virtio/control_queue.h"

#include <doctest/doctest.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <string>
#include <thread>

#include "support/control_device.h"
#include "virtio/driver_memory.h"
#include "virtio/spec.h"

namespace sw::testing {
namespace {

constexpr uint64_t kSplit = feature_mask(VIRTIO_F_VERSION_1);
constexpr uint64_t kSplitEvents = kSplit | feature_mask(VIRTIO_F_EVENT_IDX);
constexpr uint64_t kPacked = kSplit | feature_mask(VIRTIO_F_RING_PACKED);
constexpr uint64_t kPackedAll = kPacked | feature_mask(VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER);
constexpr std::array<uint64_t, 4> kKinds = {kSplit, kSplitEvents, kPacked, kPackedAll};

std::unique_ptr<DriverMemory> memory_of(uint64_t features, uint16_t entries) {
  DriverMemoryOptions options;
  options.features = features;
  options.ring_size = 16;
  options.control_entries = entries;
  auto memory = DriverMemory::make(options);
  REQUIRE(static_cast<bool>(memory));
  return std::move(*memory);
}

struct Bed {
  explicit Bed(uint64_t features, uint16_t entries = 4)
      : memory(memory_of(features, entries)),
        device(memory->control()->config.ring, features),
        queue(memory->control()->config) {}
  [[nodiscard]] const DriverRingConfig& config() const { return memory->control()->config; }
  [[nodiscard]] uint64_t kicks() const {
    uint64_t count = 0;
    return ::read(config().kick_fd, &count, sizeof count) == sizeof count ? count : 0;
  }
  // Answer the next command by hand, from another thread as a device would.
  template <class Act>
  std::thread device_thread(Act act) {
    return std::thread([this, act] {
      pollfd kick{config().kick_fd, POLLIN, 0};
      if (::poll(&kick, 1, 5000) <= 0 || kicks() == 0) return;
      act(device);
      const uint64_t one = 1;
      (void)!::write(config().call_fd, &one, sizeof one);
    });
  }

  std::unique_ptr<DriverMemory> memory;
  ControlDevice device;
  ControlQueue queue;
};

const std::array<uint8_t, 2> kTwoPairs = {2, 0};

}  // namespace

TEST_CASE("ControlQueue: a command is its class, its number and its data, and the answer is one byte (5.1.6.5)") {
  for (const uint64_t features : kKinds) {
    for (const uint16_t entries : std::array<uint16_t, 3>{2, 4, 64}) {
      CAPTURE(features);
      Bed bed(features, entries);
      for (int lap = 0; lap < 200; ++lap) {  // more than a lap of the ring
        bed.queue.submit(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, kTwoPairs);
        CHECK(bed.kicks() == 1);
        auto none = bed.queue.answer();
        REQUIRE(static_cast<bool>(none));
        CHECK_FALSE(none->has_value());
        const auto taken = bed.device.take();
        REQUIRE(taken.has_value());
        CHECK(taken->command_class == 4);
        CHECK(taken->command == 0);
        CHECK(taken->data == std::vector<uint8_t>{2, 0});
        const bool refuse = lap % 3 == 0;
        bed.device.answer(refuse ? VIRTIO_NET_ERR : VIRTIO_NET_OK);
        auto answer = bed.queue.answer();
        REQUIRE_MESSAGE(static_cast<bool>(answer), answer.error().message());
        CHECK(*answer == (refuse ? ControlAnswer::kRefused : ControlAnswer::kDone));
        CHECK_FALSE(bed.device.take().has_value());
      }
    }
  }
}

TEST_CASE("ControlQueue: the longest command fits, and a command may have no data") {
  Bed bed(kSplit);
  std::vector<uint8_t> longest(kControlCommandBytes - 2, 0xab);
  for (const auto& data : {longest, std::vector<uint8_t>{}}) {
    bed.queue.submit(1, 7, data);
    const auto taken = bed.device.take();
    REQUIRE(taken.has_value());
    CHECK(taken->data == data);
    bed.device.answer(VIRTIO_NET_OK);
    CHECK(static_cast<bool>(bed.queue.answer()));
  }
}

TEST_CASE("ControlQueue: waits for an answer that takes its time") {
  for (const uint64_t features : kKinds) {
    Bed bed(features);
    std::thread device = bed.device_thread([](ControlDevice& self) {
      if (self.take()) self.answer(VIRTIO_NET_OK);
    });
    auto answer = bed.queue.send(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, std::array<uint8_t, 1>{1}, 5000);
    device.join();
    REQUIRE_MESSAGE(static_cast<bool>(answer), answer.error().message());
    CHECK(*answer == ControlAnswer::kDone);
  }
}

TEST_CASE("ControlQueue: hears an answer without a call") {
  Bed bed(kSplit);
  std::thread device([&] {
    pollfd kick{bed.config().kick_fd, POLLIN, 0};
    ::poll(&kick, 1, 5000);
    if (bed.device.take()) bed.device.answer(VIRTIO_NET_OK);
  });
  CHECK(static_cast<bool>(bed.queue.send(0, 0, {}, 5000)));
  device.join();
}

TEST_CASE("ControlQueue: what a device may not do puts the queue out of use, with a reason") {
  struct Row {
    const char* situation;
    void (*act)(ControlDevice&);
    const char* says;
    bool split_only = false;
  };
  const Row rows[] = {
      {"neither yes nor no", [](ControlDevice& device) { device.answer(2); }, "answered 2"},
      {"an answer of all ones", [](ControlDevice& device) { device.answer(0xff); }, "wrote no answer"},
      {"given back unanswered", [](ControlDevice& device) { device.use(0); }, "wrote no answer"},
      {"another id", [](ControlDevice& device) { device.use(1); }, "not given"},
      {"an id beyond the ring", [](ControlDevice& device) { device.use(0xffff); }, "not given"},
      {"an id of 32 bits", [](ControlDevice& device) { device.use(0x1'0000); }, "used id 65536", true},
      {"two given back for one", [](ControlDevice& device) { device.use(0, 2); }, "used index 2 after 0", true},
      {"an index that went back", [](ControlDevice& device) { device.use(0, 0xffff); }, "used index 65535", true},
  };
  for (const Row& row : rows) {
    for (const uint64_t features : kKinds) {
      if (row.split_only && has_feature(features, VIRTIO_F_RING_PACKED)) continue;
      CAPTURE(std::string(row.situation));
      Bed bed(features);
      std::thread device = bed.device_thread([&](ControlDevice& self) {
        if (self.take()) row.act(self);
      });
      auto answer = bed.queue.send(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, kTwoPairs, 5000);
      device.join();
      REQUIRE_FALSE(static_cast<bool>(answer));
      CHECK_MESSAGE(answer.error().message().find(row.says) != std::string::npos, answer.error().message());
      CHECK(bed.queue.broken().find(row.says) != std::string::npos);
      // A right answer comes too late.
      CHECK_FALSE(static_cast<bool>(bed.queue.answer()));
      CHECK_FALSE(static_cast<bool>(bed.queue.send(0, 0, {}, 0)));
    }
  }
}

TEST_CASE("ControlQueue: a device that never answers is not waited for any longer than said") {
  for (const uint64_t features : {kSplit, kPacked}) {
    Bed bed(features);
    auto answer = bed.queue.send(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, std::array<uint8_t, 1>{1}, 30);
    REQUIRE_FALSE(static_cast<bool>(answer));
    CHECK(answer.error().what == "the device did not answer within 30 ms");
    REQUIRE(bed.device.take().has_value());
    bed.device.answer(VIRTIO_NET_OK);
    CHECK_FALSE(static_cast<bool>(bed.queue.answer()));  // nor believed afterwards
  }
}

TEST_CASE("ControlQueue: a device that returns what it was never given is found out") {
  Bed bed(kSplit);
  bed.device.use(0);
  CHECK_FALSE(static_cast<bool>(bed.queue.answer()));
}

TEST_CASE("DriverMemory: the control queue's ring lies behind the others, and moves with them") {
  struct Row {
    uint16_t entries;
    bool fits;
  };
  for (const Row& row : {Row{1, false}, Row{3, false}, Row{2, true}, Row{64, true}, Row{0, true}}) {
    DriverMemoryOptions options;
    options.control_entries = row.entries;
    auto memory = DriverMemory::make(options);
    CHECK(static_cast<bool>(memory) == row.fits);
    if (!row.fits) CHECK(memory.error().message().find("control queue of") != std::string::npos);
    if (row.fits && row.entries == 0) CHECK((*memory)->control() == nullptr);
  }
  auto memory = memory_of(kSplit, 64);
  memory->place_at(0x20'0000);
  const DriverMemory::Ring& control = *memory->control();
  for (const uint8_t* area : {control.config.ring.descriptors, control.config.ring.driver_area,
                              control.config.ring.device_area, control.config.buffers}) {
    CHECK(control.device_address(area) >= 0x20'0000);
    CHECK(control.device_address(area) + kControlBufferBytes <= 0x20'0000 + memory->bytes());
  }
  CHECK(control.config.device_address == control.device_address(control.config.buffers));
}

}  // namespace sw::testing
