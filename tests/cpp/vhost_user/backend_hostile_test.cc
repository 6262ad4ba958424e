// SPDX-License-Identifier: Apache-2.0
// Peers that break the protocol on purpose. After each of them this process is alive, holds nothing of theirs, and
// another guest's connection works.
#include <doctest/doctest.h>
#include <sys/epoll.h>

#include <array>
#include <atomic>
#include <random>
#include <thread>

#include "base/event_signal.h"
#include "support/backend_bed.h"
#include "support/eventually.h"
#include "support/split_driver.h"

namespace sw {
namespace {

using testing::BackendBed;
using testing::guest_mappings;
using testing::make_eventfd;
using testing::open_descriptors;
using testing::SharedFile;
using testing::SplitDriver;

constexpr std::array<uint8_t, 60> kFrame = {0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x88, 0xb5};

// One frame from the guest of `bed` through ring 1 to us.
bool frame_passes(BackendBed& bed, SplitDriver& driver) {
  driver.push(kFrame);
  Batch batch;
  PortWorkerCounters drops;
  const auto queues = bed.backend->live_rx();
  if (queues.empty() || queues[0] == nullptr || !queues[0]->peek(batch, drops)) return false;
  const bool same = batch.count == 1 && std::equal(kFrame.begin(), kFrame.end(), batch.frames[0].head);
  queues[0]->release();
  return same;
}

// A healthy guest beside the hostile one.
struct Bystander {
  Bystander() : driver(bed, 1) { bed.run(); }
  void check() {
    CHECK(frame_passes(bed, driver));
    CHECK(bed.ask(VhostRequest::kSetFeatures, testing::kPlainFeatures) == 0);
  }
  BackendBed bed;
  SplitDriver driver;
};

TEST_CASE("Backend: every request as the first of a connection, in every shape, costs at most that connection") {
  Bystander bystander;
  const UniqueFd event = make_eventfd();
  const std::array<size_t, 10> sizes = {0, 1, 4, 8, 16, 40, 264, 7, 512, 12};
  const size_t descriptors = open_descriptors();
  const size_t mappings = guest_mappings();
  for (uint32_t request = 0; request < 50; ++request) {
    for (const size_t size : sizes) {
      for (const size_t fds : {0U, 1U, 2U, 8U}) {
        for (const uint32_t flags : {1U, 9U, 5U, 13U, 0xfffffff1U, 0x11U}) {
          CAPTURE(request);
          CAPTURE(size);
          CAPTURE(fds);
          CAPTURE(flags);
          BackendBed bed(1, 4096);
          std::vector<std::byte> payload(size, std::byte{static_cast<uint8_t>(request * 7 + size)});
          REQUIRE(bed.peer.send_raw(request, flags, payload, std::vector<int>(fds, event.get())));
          const bool on = bed.pump();
          CHECK(on == bed.end.empty());
          CHECK((on || bed.peer.hung_up()));
          CHECK(bed.host.pauses == 0);  // there was nothing to disturb
        }
      }
    }
    bystander.check();
  }
  CHECK(testing::eventually([&] { return open_descriptors() == descriptors; }));
  CHECK(guest_mappings() == mappings);
}

// A message with random parts of which some are right, so that deep states are reached.
void send_random(std::mt19937& random, const BackendBed& bed, std::span<const int> pool) {
  const auto roll = [&](uint32_t below) { return static_cast<uint32_t>(random() % below); };
  static constexpr std::array<uint32_t, 8> kIndexes = {0, 1, 2, 3, 4, 255, 256, 0xffff0001};
  const uint32_t index = roll(8) != 0 ? roll(4) : kIndexes.at(roll(8));
  const uint32_t flags = kVhostVersion | (roll(40) != 0 ? kVhostFlagNeedReply : 0);
  const uint32_t request = roll(44);
  std::vector<int> fds;
  const auto any_fd = [&] { return pool[roll(static_cast<uint32_t>(pool.size()))]; };
  std::vector<std::byte> payload;
  const auto put = [&](const auto& value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    payload.assign(bytes.begin(), bytes.end());
  };
  switch (static_cast<VhostRequest>(request)) {
    case VhostRequest::kSetFeatures:
      put(roll(4) != 0 ? testing::kPlainFeatures | (roll(3) == 0 ? 1ULL << VHOST_F_LOG_ALL : 0) |
                             (roll(6) == 0 ? 1ULL << VIRTIO_F_RING_PACKED : 0)
                       : uint64_t{random()} << 16);
      break;
    case VhostRequest::kSetProtocolFeatures:
      put(offered_protocol_features());
      break;
    case VhostRequest::kSetMemTable: {
      VhostMemTable table = BackendBed::table({bed.whole()});
      if (roll(4) == 0) table.regions[0].mmap_offset = roll(8) * 4096;
      if (roll(8) == 0) table.count = roll(10);
      put(table);
      fds.assign(roll(8) != 0 ? table.count : roll(9), bed.memory.fd());
      if (fds.size() > 8) fds.resize(8);
      break;
    }
    case VhostRequest::kAddMemReg:
    case VhostRequest::kRemMemReg: {
      VhostMemRegion region = bed.whole();
      if (roll(2) == 0) region = {uint64_t{roll(4)} << 40, 4096, uint64_t{roll(4)} << 40, 0};
      put(VhostSingleRegion{0, region});
      if (request == static_cast<uint32_t>(VhostRequest::kAddMemReg)) fds = {bed.memory.fd()};
      break;
    }
    case VhostRequest::kSetLogBase:
      put(VhostLog{roll(8) != 0 ? 4096U : roll(8192), roll(8) == 0 ? roll(8192) : 0});
      fds = {bed.memory.fd()};
      break;
    case VhostRequest::kSetLogFd:
      fds = {any_fd()};
      break;
    case VhostRequest::kSetVringNum:
      put(VhostVringState{index, roll(4) != 0 ? 256 : roll(70000)});
      break;
    case VhostRequest::kSetVringAddr: {
      VhostVringAddr address = bed.address(index % 4);
      address.index = index;
      address.flags = roll(2);
      if (roll(4) == 0) address.used += roll(1 << 23);
      put(address);
      break;
    }
    case VhostRequest::kSetVringKick:
    case VhostRequest::kSetVringCall:
    case VhostRequest::kSetVringErr: {
      const bool none = roll(4) == 0;
      put(uint64_t{index} | (none ? kVringNoFd : 0));
      if (!none) fds = {roll(8) != 0 ? pool[0] : any_fd()};
      break;
    }
    case VhostRequest::kSetVringBase:
    case VhostRequest::kGetVringBase:
    case VhostRequest::kSetVringEnable:
      put(VhostVringState{index, roll(8) != 0 ? roll(2) : static_cast<uint32_t>(random())});
      break;
    case VhostRequest::kSendRarp:
    case VhostRequest::kNetSetMtu:
    case VhostRequest::kSetStatus:
      put(uint64_t{roll(3000)});
      break;
    default:
      payload.resize(roll(3) * 8);
      break;
  }
  if (roll(200) == 0) payload.resize(roll(512));
  if (roll(200) == 0) fds.assign(roll(10), any_fd());
  bed.peer.send_raw(request, flags, payload, fds);
}

TEST_CASE("Backend: messages in random order change queues only while the port is paused, and leak nothing") {
  Bystander bystander;
  const SharedFile file(4096);
  const UniqueFd event = make_eventfd();
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const UniqueFd full = make_eventfd(0xfffffffe, EFD_CLOEXEC);
  std::array<int, 2> ends{};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  const UniqueFd read_end(ends[0]);
  const UniqueFd write_end(ends[1]);
  const std::array<int, 5> pool = {event.get(), file.fd(), null.get(), full.get(), read_end.get()};
  const size_t descriptors = open_descriptors();
  const size_t mappings = guest_mappings();
  size_t ran = 0;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    BackendBed bed;
    if (seed % 2 == 0) {
      bed.run(2);
    } else {
      bed.tell(VhostRequest::kSetProtocolFeatures, offered_protocol_features());
    }
    for (int i = 0; i < 300 && bed.alive(); ++i) {
      send_random(random, bed, pool);
      bed.pump();
      while (bed.peer.receive()) continue;
      if (i % 50 == 0 && bed.alive()) bed.backend->check_health();
      ran += bed.live(1) ? 1U : 0U;
    }
  }
  CHECK(ran > 100);  // the walk does reach running rings
  bystander.check();
  CHECK(testing::eventually([&] { return open_descriptors() == descriptors; }));
  CHECK(guest_mappings() == mappings);
}

TEST_CASE("Backend: a peer that never reads its replies is not read either, and nobody waits for it") {
  Bystander bystander;
  BackendBed bed;
  int sent = 0;
  bool full = false;
  for (; !full && sent < 1'000'000; ++sent) {
    full = !bed.peer.send(VhostRequest::kGetFeatures);
    bed.pump();
  }
  REQUIRE(full);
  REQUIRE(bed.alive());
  CHECK(bed.backend->wanted_events() == EPOLLOUT);
  bystander.check();
  // When it reads at last, everything is answered.
  int answered = 0;
  for (int idle = 0; idle < 3;) {
    if (bed.peer.receive()) {
      ++answered;
      idle = 0;
    } else {
      bed.pump();
      ++idle;
    }
  }
  CHECK(answered == sent - 1);
  CHECK(bed.backend->wanted_events() == EPOLLIN);
}

TEST_CASE("Backend: a flood of messages is taken in bounded portions") {
  BackendBed bed;
  for (int i = 0; i < 500; ++i) bed.peer.send(VhostRequest::kSetOwner);
  REQUIRE(bed.backend->on_socket(EPOLLIN));
  CHECK(bed.counters.messages == 64);
}

TEST_CASE("Backend: only eventfds are taken where eventfds belong") {
  std::array<int, 2> ends{};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  const UniqueFd read_end(ends[0]);
  const UniqueFd write_end(ends[1]);
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  const SharedFile file(4096);
  BackendBed bed;
  bed.run();
  const size_t before = open_descriptors();
  for (const int fd : {read_end.get(), write_end.get(), null.get(), epoll.get(), file.fd(), bed.peer.fd()}) {
    for (const auto request : {VhostRequest::kSetVringKick, VhostRequest::kSetVringCall, VhostRequest::kSetVringErr}) {
      CHECK(bed.ask(request, uint64_t{1}, {fd}) == 1);
      CHECK(bed.live(1));
    }
  }
  CHECK(testing::eventually([&] { return open_descriptors() == before; }));
}

TEST_CASE("Backend: a descriptor that NOFD denies, or that is missing, is refused") {
  const UniqueFd event = make_eventfd();
  BackendBed bed;
  bed.run();
  const size_t before = open_descriptors();
  CHECK(bed.ask(VhostRequest::kSetVringCall, 1 | kVringNoFd, {event.get()}) == 1);
  CHECK(bed.ask(VhostRequest::kSetVringCall, uint64_t{1}) == 1);
  CHECK(bed.ask(VhostRequest::kSetVringCall, uint64_t{1}, {event.get(), event.get()}) == 1);
  CHECK(open_descriptors() == before);
}

TEST_CASE("Backend: an eventfd that would block is made non-blocking, and made blocking again it costs its ring") {
  BackendBed bed;
  bed.run();
  const UniqueFd full = make_eventfd(0, EFD_CLOEXEC);  // blocking
  const uint64_t most = ~uint64_t{1};
  REQUIRE(::write(full.get(), &most, sizeof most) == sizeof most);
  CHECK(bed.ask(VhostRequest::kSetVringCall, uint64_t{1}, {full.get()}) == 0);
  CHECK((::fcntl(full.get(), F_GETFL) & O_NONBLOCK) != 0);
  bed.backend->check_health();
  CHECK(bed.live(1));
  REQUIRE(::fcntl(full.get(), F_SETFL, ::fcntl(full.get(), F_GETFL) & ~O_NONBLOCK) == 0);
  bed.backend->check_health();
  CHECK_FALSE(bed.live(1));
  CHECK(bed.live(0));
  CHECK(bed.backend->rings()[1].broken == "its call eventfd was made blocking");
}

// The flags of an eventfd are the peer's at any moment, also between a look at them and the write that follows.
TEST_CASE("Backend: full eventfds that the peer makes blocking all the time hold up nobody") {
  REQUIRE(signals_never_wait());
  BackendBed bed;
  bed.run();
  const UniqueFd full = make_eventfd(0, EFD_CLOEXEC);
  const uint64_t most = ~uint64_t{1};
  REQUIRE(::write(full.get(), &most, sizeof most) == sizeof most);
  std::atomic<bool> done{false};
  std::atomic<uint32_t> rounds{0};
  std::atomic<bool> rescued{false};
  std::thread flipper([&] {
    const int flags = ::fcntl(full.get(), F_GETFL) & ~O_NONBLOCK;
    uint64_t ticks = 0;
    uint32_t seen = 0;
    for (; !done; ++ticks) {
      (void)::fcntl(full.get(), F_SETFL, flags);
      if (ticks % 10'000'000 != 0) continue;
      if (ticks != 0 && rounds == seen) {  // nothing moves: let a writer go, and say so
        rescued = true;
        uint64_t count = 0;
        (void)!::read(full.get(), &count, sizeof count);
      }
      seen = rounds;
    }
  });
  for (; rounds < 2000 && !rescued; ++rounds) {
    REQUIRE(bed.ask(VhostRequest::kSetVringCall, uint64_t{1}, {full.get()}) == 0);
    REQUIRE(bed.ask(VhostRequest::kSetVringErr, uint64_t{1}, {full.get()}) == 0);
    bed.backend->check_health();  // breaks the ring, whose guest is told through `err`
    REQUIRE(bed.tell(VhostRequest::kGetVringBase, VhostVringState{1, 0}));
    (void)bed.peer.receive();
    bed.set_up(1);  // tells the guest through `call`
  }
  done = true;
  flipper.join();
  CHECK_FALSE(rescued);
}

TEST_CASE("Backend: a ring whose guest breaks a rule stops alone, once, and says so") {
  BackendBed bed;
  bed.run(2);
  SplitDriver good(bed, 3);
  SplitDriver bad(bed, 1);
  const UniqueFd err = make_eventfd();
  REQUIRE(bed.ask(VhostRequest::kSetVringErr, uint64_t{1}, {err.get()}) == 0);
  store_release(bad.avail()->idx, 1000);  // more than the ring has
  Batch batch;
  PortWorkerCounters drops;
  if (bed.backend->live_rx()[0]->peek(batch, drops)) bed.backend->live_rx()[0]->release();
  for (int i = 0; i < 3; ++i) bed.backend->check_health();
  bed.host.check_unchanged();
  CHECK(testing::drain_eventfd(err.get()) == 1);
  CHECK(bed.counters.rings_broken == 1);
  CHECK(bed.host.count("ring_broken") == 1);
  CHECK_FALSE(bed.backend->rings()[1].broken.empty());
  CHECK_FALSE(bed.live(1));
  REQUIRE(bed.live(3));
  // Neither memory nor enabling brings it back; the front-end's stop and start do.
  bed.share_memory();
  bed.enable(1, false);
  bed.enable(1);
  CHECK_FALSE(bed.live(1));
  good.push(kFrame);
  batch.clear();
  REQUIRE(bed.backend->live_rx()[1]->peek(batch, drops));
  CHECK(batch.count == 1);
  bed.backend->live_rx()[1]->release();
  bed.peer.send(VhostRequest::kGetVringBase, VhostVringState{1, 0});
  bed.pump();
  CHECK(bed.peer.receive());
  std::memset(bed.memory.data() + testing::kRingBytes, 0, testing::kRingBytes);
  bed.set_up(1);
  CHECK(bed.live(1));
}

TEST_CASE("Backend: RARP enters the switch as if the guest had sent it, at once or when a ring comes up") {
  for (const bool before : {true, false}) {
    CAPTURE(before);
    BackendBed bed;
    const uint64_t mac = 0xffff'0200'0000'0252;  // 52:02:00:00:00:02, and two bytes that do not matter
    if (before) {
      bed.negotiate();
      REQUIRE(bed.ask(VhostRequest::kSendRarp, mac) == 0);
      REQUIRE(bed.share_memory() == 0);
      bed.set_up(1);
      bed.enable(1);
    } else {
      bed.run();
      REQUIRE(bed.ask(VhostRequest::kSendRarp, mac) == 0);
    }
    REQUIRE(bed.live(1));
    Batch batch;
    PortWorkerCounters drops;
    REQUIRE(bed.backend->live_rx()[0]->peek(batch, drops));
    REQUIRE(batch.count == 1);
    const Frame& frame = batch.frames[0];
    CHECK(frame.len == 60);
    const std::array<uint8_t, 42> expected = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x02, 0, 0, 0, 0x02, 0x80, 0x35, 0, 1, 8,    0, 6, 4, 0,
        3,    0x52, 0x02, 0,    0,    0,    0x02, 0,    0, 0, 0, 0x52, 0x02, 0,    0, 0, 0x02, 0, 0, 0, 0};
    CHECK(std::equal(expected.begin(), expected.end(), frame.head));
    bed.backend->live_rx()[0]->release();
    batch.clear();
    CHECK_FALSE(bed.backend->live_rx()[0]->peek(batch, drops));
  }
}

}  // namespace
}  // namespace sw
