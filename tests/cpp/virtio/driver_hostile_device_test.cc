// SPDX-License-Identifier: Apache-2.0
// A device that breaks the rules stops the ring it broke, with a reason; what it may do is accepted, however unusual.
#include "base/bytes.h"
#include "virtio/driver_loop.h"

namespace sw::test {
namespace {

// Plays the device by hand on a split ring.
struct SplitDevice {
  explicit SplitDevice(const RingMemory& memory)
      : size(memory.size),
        desc(reinterpret_cast<VringDesc*>(memory.descriptors)),
        avail(reinterpret_cast<VringAvail*>(memory.driver_area)),
        used(reinterpret_cast<VringUsed*>(memory.device_area)) {}
  void use(uint32_t id, uint32_t len) {
    used->ring[used->idx % size] = {id, len};
    ++used->idx;
  }
  uint8_t* buffer(uint16_t id) const { return reinterpret_cast<uint8_t*>(desc[id].addr); }
  uint16_t size;
  VringDesc* desc;
  VringAvail* avail;
  VringUsed* used;
};

// The same on a packed ring, first lap only.
struct PackedDevice {
  explicit PackedDevice(const RingMemory& memory) : desc(reinterpret_cast<VringPackedDesc*>(memory.descriptors)) {}
  void use(uint16_t id, uint32_t len, uint16_t skip = 1) {
    desc[next].id = id;
    desc[next].len = len;
    desc[next].flags = packed_used_flags(true);
    next = static_cast<uint16_t>(next + skip);
  }
  VringPackedDesc* desc;
  uint16_t next = 0;
};

constexpr uint64_t kModern = feature_mask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF);
constexpr uint64_t kModernPacked = kModern | feature_mask(VIRTIO_F_RING_PACKED);
constexpr uint64_t kInOrder = feature_mask(VIRTIO_F_IN_ORDER);

// What the device would write in front of a frame.
void write_header(uint8_t* at, uint16_t num_buffers, const VnetHeader& vnet = {}) {
  store_unaligned(at, VnetHeaderMrg{vnet, num_buffers});
}

void expect_broken_rx(Loop& loop, const std::string& word) {
  CHECK(loop.driver_receive().empty());
  CHECK(loop.rx().broken().find(word) != std::string::npos);
  CHECK_FALSE(loop.rx().arm());
  CHECK(loop.driver_receive().empty());
}

}  // namespace

TEST_CASE("DriverRx: split: a used index beyond what was available stops the ring") {
  Loop loop({kModern, 16});
  SplitDevice device(loop.receiveq());
  device.used->idx = 17;
  expect_broken_rx(loop, "used index");
}

TEST_CASE("DriverRx: split: an id outside the ring, or one that is not held, stops the ring") {
  for (const uint32_t id : {16U, 65'536U, 0xffff'ffffU}) {
    CAPTURE(id);
    Loop loop({kModern, 16});
    SplitDevice device(loop.receiveq());
    device.use(id, 72);
    expect_broken_rx(loop, "does not hold");
  }
  Loop loop({kModern, 16});
  SplitDevice device(loop.receiveq());
  write_header(device.buffer(3), 1);
  device.use(3, 72);
  device.use(3, 72);
  CHECK(loop.driver_receive().size() == 1);
  CHECK(loop.rx().broken().find("does not hold") != std::string::npos);
}

TEST_CASE("DriverRx: packed: an id outside the ring, or one that is not held, stops the ring") {
  for (const uint16_t id : {uint16_t{16}, uint16_t{0xffff}}) {
    CAPTURE(id);
    Loop loop({kModernPacked, 16});
    PackedDevice(loop.receiveq()).use(id, 72);
    expect_broken_rx(loop, "does not hold");
  }
}

TEST_CASE("DriverRx: a used length beyond the buffer stops the ring") {
  for (const uint64_t features : {kModern, kModern | kInOrder}) {
    Loop loop({features, 16});
    SplitDevice(loop.receiveq()).use(0, 12 + kDriverBufferBytes + 1);
    expect_broken_rx(loop, "length");
  }
  Loop loop({kModernPacked, 16});
  PackedDevice(loop.receiveq()).use(0, 0xffff'ffff);
  expect_broken_rx(loop, "length");
}

TEST_CASE("DriverRx: an impossible num_buffers stops the ring") {
  for (const uint16_t count : {uint16_t{0}, uint16_t{17}, uint16_t{0xffff}}) {
    CAPTURE(count);
    Loop loop({kModern, 16});
    SplitDevice device(loop.receiveq());
    write_header(device.buffer(0), count);
    device.use(0, 72);
    expect_broken_rx(loop, "num_buffers");
  }
}

TEST_CASE("DriverRx: a frame whose buffers are not all used yet waits for them") {
  Loop loop({kModern, 16});
  SplitDevice device(loop.receiveq());
  write_header(device.buffer(0), 3);
  device.use(0, 100);
  device.use(1, 200);
  CHECK(loop.driver_receive().empty());
  CHECK_FALSE(loop.rx().arm());
  device.use(2, 300);
  CHECK(loop.rx().arm());
  const auto frames = loop.driver_receive();
  REQUIRE(frames.size() == 1);
  CHECK(frames[0].size() == 100 + 200 + 300 - 12);
}

TEST_CASE("DriverRx: frames that cannot be used are dropped with their reason and their buffers posted again") {
  Loop loop({kModern, 16});
  SplitDevice device(loop.receiveq());
  for (uint16_t id = 0; id < 4; ++id) write_header(device.buffer(id), 1);
  write_header(device.buffer(3), 1, {VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, 14, 0});  // not negotiated
  device.use(0, 0);
  device.use(1, 11);
  device.use(2, 12 + 13);
  device.use(3, 12 + 60);
  CHECK(loop.driver_receive().empty());
  CHECK(drops_of(loop.drops, DropReason::kMalformedDescriptor) == 2);
  CHECK(drops_of(loop.drops, DropReason::kFrameTooShort) == 1);
  CHECK(drops_of(loop.drops, DropReason::kBadOffload) == 1);
  CHECK(loop.rx_counters[0].frames.get() == 4);
  CHECK(loop.rx().broken() == "");
  CHECK(device.avail->idx == 16 + 4);
  CHECK(loop.rx().in_flight() == 16);
}

TEST_CASE("DriverRx: buffers may come back in any order without in-order") {
  Loop loop({kModern, 8});
  SplitDevice device(loop.receiveq());
  for (const uint16_t id : {uint16_t{5}, uint16_t{0}, uint16_t{7}}) {
    write_header(device.buffer(id), 1);
    std::fill_n(device.buffer(id) + 12, 60, static_cast<uint8_t>(id));
    device.use(id, 72);
  }
  const auto frames = loop.driver_receive();
  REQUIRE(frames.size() == 3);
  CHECK(frames[0][20] == 5);
  CHECK(frames[1][20] == 0);
  CHECK(frames[2][20] == 7);
}

TEST_CASE("DriverRx: in order, one used entry may stand for a group of buffers") {
  Loop split({kModern | kInOrder, 8});
  SplitDevice device(split.receiveq());
  for (uint16_t id = 0; id < 3; ++id) write_header(device.buffer(id), 1);
  device.used->ring[0] = {2, 72};  // 0 and 1 were filled to the end
  device.used->idx = 3;
  auto frames = split.driver_receive();
  REQUIRE(frames.size() == 3);
  CHECK(frames[0].size() == kDriverBufferBytes);
  CHECK(frames[1].size() == kDriverBufferBytes);
  CHECK(frames[2].size() == 60);

  Loop packed({kModernPacked | kInOrder, 8});
  for (uint16_t id = 0; id < 3; ++id) {
    write_header(reinterpret_cast<uint8_t*>(reinterpret_cast<VringPackedDesc*>(packed.receiveq().descriptors)[id].addr),
                 1);
  }
  PackedDevice(packed.receiveq()).use(2, 72, 3);
  frames = packed.driver_receive();
  REQUIRE(frames.size() == 3);
  CHECK(frames[2].size() == 60);
}

TEST_CASE("DriverRx: in order, an entry out of order stops the ring") {
  Loop loop({kModern | kInOrder, 8});
  SplitDevice device(loop.receiveq());
  for (uint16_t id = 0; id < 8; ++id) write_header(device.buffer(id), 1);
  device.used->ring[0] = {4, 72};
  device.used->idx = 2;  // two buffers, but the entry names the fifth
  loop.driver_receive();
  CHECK(loop.rx().broken().find("order") != std::string::npos);
}

TEST_CASE("DriverTx: a device that lies about used buffers stops the ring and frames are counted as lost") {
  for (const uint64_t features : {kModern, kModern | kInOrder, kModernPacked, kModernPacked | kInOrder}) {
    CAPTURE(features);
    Loop loop({features, 4});
    const std::vector<Bytes> burst(4, make_frame(60, 0));
    REQUIRE(loop.driver_send(burst) == 4);
    if (has_feature(features, VIRTIO_F_RING_PACKED)) {
      PackedDevice(loop.transmitq()).use(9, 0);
    } else if (has_feature(features, VIRTIO_F_IN_ORDER)) {
      SplitDevice(loop.transmitq()).used->idx = 9;
    } else {
      SplitDevice(loop.transmitq()).use(9, 0);
    }
    CHECK(loop.driver_send(burst) == 4);
    CHECK(loop.tx().broken() != "");
    CHECK(loop.driver_send(burst) == 4);
    CHECK(drops_of(loop.drops, DropReason::kDeviceError) == 8);
    CHECK(loop.tx_counters[0].frames.get() == 4);
  }
}

TEST_CASE("DriverRx: random bytes in the device's parts of the ring never harm the driver") {
  uint64_t state = 12345;
  const auto next = [&state] { return state = state * 6364136223846793005U + 1442695040888963407U; };
  for (const uint64_t features : all_feature_sets()) {
    CAPTURE(features);
    for (int round = 0; round < 200; ++round) {
      Loop loop({features, 8});
      const std::vector<Bytes> burst(3, make_frame(60, 0));
      for (int step = 0; step < 8; ++step) {
        loop.driver_send(burst);
        for (const RingMemory& ring : {loop.receiveq(), loop.transmitq()}) {
          const bool packed = has_feature(features, VIRTIO_F_RING_PACKED);
          uint8_t* area = packed ? ring.descriptors : ring.device_area;
          const size_t bytes = packed ? 16 * 8 : 4 + 8 * 8 + 2;
          const uint64_t dice = next();
          area[(dice >> 33) % bytes] = static_cast<uint8_t>(dice >> 20 & 0x8f);
        }
        loop.driver_receive();
      }
    }
  }
}

}  // namespace sw::test
