// SPDX-License-Identifier: Apache-2.0
#include "virtio/packed_position.h"

#include <doctest/doctest.h>

#include <array>
#include <random>
#include <vector>

#include "virtio/spec.h"

namespace sw {
namespace {

// Driver and device reduced to what they write into flags (virtio 1.3 2.8.1): one slot per buffer, returned in order.
class Ring {
 public:
  explicit Ring(uint16_t size) : slots_(size) {}
  [[nodiscard]] size_t pending() const { return pending_; }
  [[nodiscard]] size_t room() const { return slots_.size() - pending_; }
  void add() {
    slots_[driver_].flags = packed_avail_flags(driver_wrap_);
    step(driver_, driver_wrap_);
    ++pending_;
  }
  void use() {
    slots_[device_].flags = packed_used_flags(device_wrap_);
    step(device_, device_wrap_);
    --pending_;
  }
  [[nodiscard]] uint16_t truth() const { return static_cast<uint16_t>(device_ | (device_wrap_ ? 0x8000U : 0U)); }
  [[nodiscard]] std::optional<uint16_t> found() const {
    return find_packed_position(reinterpret_cast<const uint8_t*>(slots_.data()), static_cast<uint16_t>(slots_.size()));
  }
  std::vector<VringPackedDesc>& slots() { return slots_; }

 private:
  void step(size_t& at, bool& wrap) const {
    if (++at < slots_.size()) return;
    at = 0;
    wrap = !wrap;
  }
  std::vector<VringPackedDesc> slots_;
  size_t driver_ = 0, device_ = 0, pending_ = 0;
  bool driver_wrap_ = true, device_wrap_ = true;
};

TEST_CASE("find_packed_position: right after every step of a ring, laps and full rings included") {
  for (const uint16_t size : std::array<uint16_t, 5>{1, 2, 3, 7, 256}) {
    CAPTURE(size);
    Ring ring(size);
    CHECK(ring.found() == 0x8000);
    std::mt19937 random(size);
    for (int round = 0; round < 200; ++round) {
      const size_t added = random() % 4 == 0 ? ring.room() : random() % (ring.room() + 1);
      for (size_t i = 0; i < added; ++i) {
        ring.add();
        REQUIRE(ring.found() == ring.truth());
      }
      const size_t used = random() % 4 == 0 ? ring.pending() : random() % (ring.pending() + 1);
      for (size_t i = 0; i < used; ++i) {
        ring.use();
        REQUIRE(ring.found() == ring.truth());
      }
    }
  }
}

TEST_CASE("find_packed_position: a ring that cannot have come about has no position") {
  Ring ring(8);
  for (int i = 0; i < 6; ++i) ring.add();
  for (int i = 0; i < 3; ++i) ring.use();
  SUBCASE("a hole in the available run") { ring.slots()[4].flags = packed_used_flags(true); }
  SUBCASE("an available slot among the used") { ring.slots()[1].flags = packed_avail_flags(true); }
  SUBCASE("a used slot of another lap") { ring.slots()[1].flags = packed_used_flags(false); }
  SUBCASE("an available slot of another lap") { ring.slots()[4].flags = packed_avail_flags(false); }
  SUBCASE("a slot beyond the driver") { ring.slots()[7].flags = packed_used_flags(true); }
  CHECK_FALSE(ring.found());
}

TEST_CASE("find_packed_position: laps that change twice have no position") {
  Ring ring(8);
  for (int i = 0; i < 8; ++i) ring.add();
  ring.slots()[3].flags = packed_avail_flags(false);
  CHECK_FALSE(ring.found());
  for (auto& slot : ring.slots()) slot.flags = packed_used_flags(true);
  ring.slots()[3].flags = packed_used_flags(false);
  CHECK_FALSE(ring.found());
}

}  // namespace
}  // namespace sw
