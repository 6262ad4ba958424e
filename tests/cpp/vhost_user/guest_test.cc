// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/guest.h"

#include "support/echo_device.h"
#include "support/eventually.h"
#include "support/temp_dir.h"
#include "virtio/spec.h"

namespace sw::testing {
namespace {

std::vector<uint8_t> make_frame(size_t bytes, uint8_t mark) {
  std::vector<uint8_t> frame(bytes, mark);
  frame[0] = 2;
  return frame;
}

}  // namespace

TEST_CASE("Guest: exchanges frames with a switch, whatever it was told to be") {
  for (int choice = 0; choice < 16; ++choice) {
    CAPTURE(choice);
    TempDir directory;
    GuestOptions options;
    options.socket = directory.file("s");
    options.packed = (choice & 1) != 0;
    options.in_order = (choice & 2) != 0;
    options.event_idx = (choice & 4) != 0;
    options.mergeable = (choice & 8) != 0;
    options.queues = 2;
    EchoThread device(options.socket);
    Guest guest(options);
    REQUIRE(static_cast<bool>(guest.start()));
    REQUIRE(guest.wait_ready(5000));
    CHECK(guest.status().queue_pairs == 2);
    for (uint8_t mark = 0; mark < 50; ++mark) {
      const size_t bytes = options.mergeable && mark % 10 == 9 ? 9000U : 60U + mark;
      const auto sent = guest.send(make_frame(bytes, mark), mark % 2, {}, 1000);
      REQUIRE_MESSAGE(static_cast<bool>(sent), sent.error().message());
      const auto back = guest.receive(5000);
      REQUIRE(back.has_value());
      CHECK(back->bytes == make_frame(bytes, mark));
      CHECK(back->queue == mark % 2);
    }
    const GuestStatus status = guest.status();
    CHECK(status.tx_frames == 50);
    CHECK(status.rx_frames == 50);
    CHECK(status.dropped == 0);
    CHECK(status.broken == "");
  }
}

TEST_CASE("Guest: is ready again when the switch comes back") {
  TempDir directory;
  GuestOptions options;
  options.socket = directory.file("s");
  Guest guest(options);
  REQUIRE(static_cast<bool>(guest.start()));
  CHECK_FALSE(guest.wait_ready(0));
  CHECK_FALSE(static_cast<bool>(guest.send(make_frame(60, 0), 0, {}, 0)));
  for (uint64_t round = 1; round <= 3; ++round) {
    EchoThread device(options.socket);
    REQUIRE(eventually([&] { return guest.status().times_ready == round && guest.wait_ready(100); }));
    REQUIRE(static_cast<bool>(guest.send(make_frame(60, 1), 0, {}, 1000)));
    CHECK(guest.receive(5000).has_value());
  }
}

TEST_CASE("Guest: owns the socket and the switch connects") {
  TempDir directory;
  GuestOptions options;
  options.socket = directory.file("s");
  options.listen = true;
  Guest guest(options);
  REQUIRE(static_cast<bool>(guest.start()));
  EchoThread device(options.socket, /*connect=*/true);
  REQUIRE(guest.wait_ready(5000));
  REQUIRE(static_cast<bool>(guest.send(make_frame(60, 1), 0, {}, 1000)));
  CHECK(guest.receive(5000).has_value());
  guest.stop();
  CHECK_FALSE(guest.wait_ready(0));
  REQUIRE(static_cast<bool>(guest.start()));
  CHECK(guest.wait_ready(5000));
}

TEST_CASE("Guest: refuses what it cannot send, with a reason") {
  TempDir directory;
  GuestOptions options;
  options.socket = directory.file("s");
  EchoThread device(options.socket);
  Guest guest(options);
  REQUIRE(static_cast<bool>(guest.start()));
  REQUIRE(guest.wait_ready(5000));
  CHECK(guest.send(make_frame(13, 0), 0, {}, 0).error().code == EMSGSIZE);
  CHECK(guest.send(make_frame(70'000, 0), 0, {}, 0).error().code == EMSGSIZE);
  CHECK(guest.send(make_frame(60, 0), 1, {}, 0).error().code == EINVAL);
  CHECK_FALSE(guest.receive(0).has_value());
}

}  // namespace sw::testing
