// SPDX-License-Identifier: Apache-2.0
// Guest memory: tables, slots, changes under running rings, the dirty log.
#include <doctest/doctest.h>

#include <array>

#include "support/backend_bed.h"
#include "support/eventually.h"

namespace sw {
namespace {

using testing::BackendBed;
using testing::guest_mappings;
using testing::kPlainFeatures;
using testing::open_descriptors;
using testing::SharedFile;

const uint8_t* mapped_at(const BackendBed& bed) { return bed.backend->memory()->regions().front()->host; }

TEST_CASE("Backend: the same memory table again keeps the mapping and the rings") {
  BackendBed bed;
  bed.run();
  const uint8_t* const before = mapped_at(bed);
  const size_t mappings = guest_mappings();
  const size_t descriptors = open_descriptors();
  for (int i = 0; i < 10; ++i) CHECK(bed.share_memory() == 0);
  CHECK(mapped_at(bed) == before);
  CHECK(guest_mappings() == mappings);
  CHECK(open_descriptors() == descriptors);
  CHECK(bed.live(0));
  CHECK(bed.live(1));
}

TEST_CASE("Backend: new memory replaces the old, which is unmapped, and rings move to it") {
  BackendBed bed;
  bed.run();
  const size_t mappings = guest_mappings();
  const SharedFile other(bed.memory.size());
  VhostMemRegion region = bed.whole();  // the same addresses, another file
  CHECK(bed.ask(VhostRequest::kSetMemTable, BackendBed::table({region}), {other.fd()}) == 0);
  CHECK(guest_mappings() == mappings + 1);  // the test's own mapping of `other`
  CHECK(bed.live(1));
}

TEST_CASE("Backend: rings wait while their memory is away and run on when it is back") {
  BackendBed bed;
  bed.run();
  const VhostSingleRegion slot{0, bed.whole()};
  CHECK(bed.ask(VhostRequest::kRemMemReg, slot) == 0);
  CHECK_FALSE(bed.live(0));
  CHECK_FALSE(bed.live(1));
  CHECK(bed.backend->rings()[1].waiting == "waits for guest memory");
  CHECK(bed.ask(VhostRequest::kAddMemReg, slot, {bed.memory.fd()}) == 0);
  CHECK(bed.live(0));
  CHECK(bed.live(1));
  // Old front-ends attach a descriptor to the removal.
  const size_t descriptors = open_descriptors();
  CHECK(bed.ask(VhostRequest::kRemMemReg, slot, {bed.memory.fd()}) == 0);
  CHECK(open_descriptors() == descriptors);
}

TEST_CASE("Backend: a slot added once per queue pair stays until it was removed as often") {
  BackendBed bed;
  bed.run();
  const VhostSingleRegion slot{0, bed.whole()};
  const size_t mappings = guest_mappings();
  CHECK(bed.ask(VhostRequest::kAddMemReg, slot, {bed.memory.fd()}) == 0);
  CHECK(bed.ask(VhostRequest::kAddMemReg, slot, {bed.memory.fd()}) == 0);
  CHECK(guest_mappings() == mappings);
  CHECK(bed.ask(VhostRequest::kRemMemReg, slot) == 0);
  CHECK(bed.ask(VhostRequest::kRemMemReg, slot) == 0);
  CHECK(bed.live(1));
  CHECK(bed.ask(VhostRequest::kRemMemReg, slot) == 0);
  CHECK_FALSE(bed.live(1));
  CHECK(bed.ask(VhostRequest::kRemMemReg, slot) == 1);
}

TEST_CASE("Backend: slots come and go under running rings without touching the ring's own region") {
  BackendBed bed;
  bed.run();
  const uint8_t* const ring_memory = mapped_at(bed);
  const SharedFile dimm(64 * 1024);
  const size_t mappings = guest_mappings();
  const size_t descriptors = open_descriptors();
  for (uint64_t i = 0; i < 1000; ++i) {
    const VhostSingleRegion slot{0, {1ULL << 32 | i << 20, dimm.size(), dimm.address(), 0}};
    REQUIRE(bed.ask(VhostRequest::kAddMemReg, slot, {dimm.fd()}) == 0);
    REQUIRE(bed.ask(VhostRequest::kRemMemReg, slot) == 0);
  }
  CHECK(bed.live(0));
  CHECK(bed.live(1));
  CHECK(mapped_at(bed) == ring_memory);
  CHECK(guest_mappings() == mappings);
  CHECK(open_descriptors() == descriptors);
}

TEST_CASE("Backend: 509 slots and not one more") {
  BackendBed bed;
  bed.negotiate();
  const SharedFile page(4096);
  const auto slot = [&](uint64_t i) { return VhostSingleRegion{0, {i << 12, 4096, page.address() + (i << 32), 0}}; };
  for (uint64_t i = 0; i < 509; ++i) REQUIRE(bed.ask(VhostRequest::kAddMemReg, slot(i), {page.fd()}) == 0);
  CHECK(bed.ask(VhostRequest::kAddMemReg, slot(509), {page.fd()}) == 1);
  CHECK(bed.backend->memory()->regions().size() == 509);
}

TEST_CASE("Backend: impossible memory is refused as a whole and leaks nothing") {
  constexpr uint64_t kSize = 4 << 20;
  struct Row {
    const char* name;
    std::vector<VhostMemRegion> regions;
    size_t fds;  // one for each region unless the row is about that
  };
  // `front` stands for the address of the file in this process; nothing reads through it here.
  const uint64_t front = 0x7f00'0000'0000;
  const std::vector<Row> rows = {
      {"size 0", {{0, 0, front, 0}}, 1},
      {"overlap", {{0, 8192, front, 0}, {4096, 4096, front + 8192, 8192}}, 2},
      {"the same twice", {{0, 4096, front, 0}, {0, 4096, front, 0}}, 2},
      {"guest address wraps", {{~uint64_t{0} - 4095, 8192, front, 0}}, 1},
      {"front-end address wraps", {{0, 8192, ~uint64_t{0} - 4095, 0}}, 1},
      {"offset wraps", {{0, 8192, front, ~uint64_t{0} - 4095}}, 1},
      {"size and offset wrap", {{0, ~uint64_t{0}, front, 1}}, 1},
      {"offset misaligned past the end", {{0, kSize, front, 17}}, 1},
      {"longer than the file", {{0, kSize + 4096, front, 0}}, 1},
      {"begins after the file", {{0, 4096, front, kSize}}, 1},
      {"second of two is bad", {{0, 4096, front, 0}, {8192, kSize * 2, front + 8192, 0}}, 2},
      {"fewer descriptors than regions", {{0, 4096, front, 0}, {8192, 4096, front + 8192, 8192}}, 1},
      {"more descriptors than regions", {{0, 4096, front, 0}}, 2},
      {"no descriptor", {{0, 4096, front, 0}}, 0},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    BackendBed bed;
    bed.run();
    const size_t descriptors = open_descriptors();
    const size_t mappings = guest_mappings();
    VhostMemTable table{static_cast<uint32_t>(row.regions.size()), 0, {}};
    std::copy(row.regions.begin(), row.regions.end(), table.regions.begin());
    const std::vector<int> fds(row.fds, bed.memory.fd());
    CHECK(bed.ask(VhostRequest::kSetMemTable, table, fds) == 1);
    if (row.regions.size() == 1 && row.fds == 1) {
      CHECK(bed.ask(VhostRequest::kAddMemReg, VhostSingleRegion{0, row.regions[0]}, fds) == 1);
    }
    CHECK(bed.live(0));
    CHECK(bed.live(1));
    CHECK(open_descriptors() == descriptors);
    CHECK(guest_mappings() == mappings);
  }
}

// A sparse file costs its owner nothing, and address space is for all guests.
TEST_CASE("Backend: more memory than one guest may have is refused before any of it is mapped") {
  constexpr uint64_t kSize = 1ULL << 40;
  constexpr uint64_t front = 0x1'0000'0000'0000;
  const SharedFile sparse(4096);
  sparse.truncate(kSize);
  BackendBed bed;
  bed.run();
  std::vector<VhostMemRegion> regions;
  for (uint64_t i = 0; i < 5; ++i) regions.push_back({i * kSize + kSize, kSize, front + i * kSize, 0});
  const std::vector<int> five(5, sparse.fd());
  VhostMemTable table{5, 0, {}};
  std::copy(regions.begin(), regions.end(), table.regions.begin());
  CHECK(bed.ask(VhostRequest::kSetMemTable, table, five) == 1);
  CHECK(bed.host.events.back().second.find("more than 4 TiB") != std::string::npos);
  CHECK(bed.live(1));
  for (size_t i = 0; i < 3; ++i) {
    REQUIRE(bed.ask(VhostRequest::kAddMemReg, VhostSingleRegion{0, regions[i]}, {sparse.fd()}) == 0);
  }
  CHECK(bed.ask(VhostRequest::kAddMemReg, VhostSingleRegion{0, regions[3]}, {sparse.fd()}) == 1);
  CHECK(bed.live(1));
  sparse.truncate(8ULL << 30);
  CHECK_FALSE(bed.tell(VhostRequest::kSetLogBase, VhostLog{8ULL << 30, 0}, {sparse.fd()}));
  CHECK(bed.end.find("more than 4 GiB") != std::string::npos);
}

TEST_CASE("Backend: a table of nine regions, or with a count that lies, is refused") {
  struct Row {
    uint32_t count;
    size_t bytes;
  };
  for (const Row row :
       {Row{9, 8 + 9 * 32}, Row{9, 264}, Row{0xffffffff, 264}, Row{2, 8 + 32}, Row{1, 8}, Row{1, 4}, Row{1, 0}}) {
    CAPTURE(row.count);
    CAPTURE(row.bytes);
    BackendBed bed;
    bed.negotiate();
    std::vector<std::byte> payload(row.bytes);
    if (row.bytes >= 4) store_unaligned(payload.data(), row.count);
    const std::array<int, 1> fds{bed.memory.fd()};
    bed.peer.send_raw(5, kVhostVersion | kVhostFlagNeedReply, payload, fds);
    CHECK(bed.pump());
    CHECK(bed.reply_u64(VhostRequest::kSetMemTable) == 1U);
  }
}

TEST_CASE("Backend: front-ends may send all eight regions or those in use, and none at all") {
  BackendBed bed;
  bed.negotiate();
  const VhostMemTable table = BackendBed::table({bed.whole()});
  const auto bytes = std::as_bytes(std::span(&table, 1)).first(8 + 32);
  const std::array<int, 1> fds{bed.memory.fd()};
  bed.peer.send_raw(5, kVhostVersion | kVhostFlagNeedReply, bytes, fds);
  bed.pump();
  CHECK(bed.reply_u64(VhostRequest::kSetMemTable) == 0U);
  CHECK(bed.backend->memory()->regions().size() == 1);
  CHECK(bed.ask(VhostRequest::kSetMemTable, BackendBed::table({})) == 0);
  CHECK(bed.backend->memory()->regions().empty());
}

TEST_CASE("Backend: memory that is no file, or may not be written, is refused") {
  const auto sockets = testing::stream_pair();
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const UniqueFd event = testing::make_eventfd();
  const SharedFile file(1 << 20);
  const UniqueFd read_only(::open(("/proc/self/fd/" + std::to_string(file.fd())).c_str(), O_RDONLY | O_CLOEXEC));
  REQUIRE(read_only);
  for (const int fd : {sockets[0].get(), null.get(), event.get(), read_only.get()}) {
    BackendBed bed;
    bed.negotiate();
    const VhostMemRegion region{0, 4096, 0x10000, 0};
    const size_t before = open_descriptors();
    CHECK(bed.ask(VhostRequest::kSetMemTable, BackendBed::table({region}), {fd}) == 1);
    CHECK(bed.alive());
    CHECK(testing::eventually([&] { return open_descriptors() == before; }));
  }
}

TEST_CASE("Backend: removing a slot that is not there is refused") {
  BackendBed bed;
  bed.run();
  for (const VhostMemRegion region : {VhostMemRegion{1, bed.memory.size(), bed.memory.address(), 0},
                                      VhostMemRegion{0, bed.memory.size() - 1, bed.memory.address(), 0},
                                      VhostMemRegion{0, bed.memory.size(), bed.memory.address() + 1, 0}}) {
    CHECK(bed.ask(VhostRequest::kRemMemReg, VhostSingleRegion{0, region}) == 1);
    CHECK(bed.live(1));
  }
  // The offset does not name a region.
  VhostMemRegion region = bed.whole();
  region.mmap_offset = 12345;
  CHECK(bed.ask(VhostRequest::kRemMemReg, VhostSingleRegion{0, region}) == 0);
}

TEST_CASE("Backend: a ring that spans two regions is refused") {
  BackendBed bed;
  bed.negotiate();
  const uint64_t half = bed.memory.size() / 2;
  const auto table =
      BackendBed::table({{0, half, bed.memory.address(), 0}, {half, half, bed.memory.address() + half, half}});
  REQUIRE(bed.ask(VhostRequest::kSetMemTable, table, {bed.memory.fd(), bed.memory.fd()}) == 0);
  bed.set_up(1);
  REQUIRE(bed.live(1));
  VhostVringAddr address = bed.address(1);
  address.descriptors = bed.memory.address() + half - 16;
  CHECK(bed.ask(VhostRequest::kSetVringAddr, address) == 1);
  address = bed.address(1);
  address.used = bed.memory.address() + half - 4;
  CHECK(bed.ask(VhostRequest::kSetVringAddr, address) == 1);
  CHECK(bed.live(1));
}

TEST_CASE("Backend: a truncated memory file stops its rings, tells the guest, and the process lives") {
  BackendBed bed;
  bed.run();
  const UniqueFd err = testing::make_eventfd();
  CHECK(bed.ask(VhostRequest::kSetVringErr, uint64_t{1}, {err.get()}) == 0);
  bed.memory.truncate(0);
  Batch batch;
  PortWorkerCounters drops;
  batch.clear();
  if (bed.backend->live_rx()[0]->peek(batch, drops)) bed.backend->live_rx()[0]->release();
  bed.backend->check_health();
  bed.host.check_unchanged();
  CHECK_FALSE(bed.live(1));
  CHECK(testing::drain_eventfd(err.get()) == 1);
  CHECK(bed.host.count("ring_broken") == bed.counters.rings_broken);
  CHECK(bed.counters.rings_broken >= 1);
}

TEST_CASE("Backend: the dirty log comes with its own answer and goes on and off under running rings") {
  BackendBed bed;
  bed.run();
  const SharedFile log(4096);
  const size_t descriptors = open_descriptors();
  const VhostLog where{4096, 0};
  bed.peer.send(VhostRequest::kSetLogBase, where, {log.fd()});
  bed.pump();
  auto reply = bed.peer.receive();
  REQUIRE(reply);
  CHECK(reply->size == sizeof(VhostLog));
  CHECK(reply->as<VhostLog>().bytes == 4096);
  VhostVringAddr logged = bed.address(1);
  logged.flags = kVringFlagLog;
  for (int i = 0; i < 10; ++i) {
    CHECK(bed.ask(VhostRequest::kSetFeatures, kPlainFeatures | feature_mask(VHOST_F_LOG_ALL)) == 0);
    CHECK(bed.ask(VhostRequest::kSetVringAddr, logged) == 0);
    CHECK(bed.backend->logging());
    CHECK(bed.live(1));
    CHECK(bed.ask(VhostRequest::kSetFeatures, kPlainFeatures) == 0);
    CHECK(bed.ask(VhostRequest::kSetVringAddr, bed.address(1)) == 0);
    CHECK_FALSE(bed.backend->logging());
    CHECK(bed.host.count("dirty_logging") == 2 * static_cast<size_t>(i) + 2);
  }
  CHECK(open_descriptors() == descriptors);
}

TEST_CASE("Backend: an impossible dirty log ends the connection, since its answer cannot say no") {
  struct Row {
    uint64_t bytes;
    uint64_t offset;
  };
  for (const Row row : {Row{0, 0}, Row{8192, 0}, Row{4096, 4096}, Row{~uint64_t{0}, 1}, Row{4096, ~uint64_t{0}}}) {
    CAPTURE(row.bytes);
    CAPTURE(row.offset);
    BackendBed bed;
    bed.run();
    const SharedFile log(4096);
    CHECK_FALSE(bed.tell(VhostRequest::kSetLogBase, VhostLog{row.bytes, row.offset}, {log.fd()}));
    CHECK(bed.end.find("SET_LOG_BASE") == 0);
  }
}

TEST_CASE("Backend: everything is unmapped and closed when the connection ends") {
  const size_t descriptors = open_descriptors();
  const size_t mappings = guest_mappings();
  {
    BackendBed bed;
    bed.run(2);
    bed.peer.close();
    CHECK_FALSE(bed.pump());
    CHECK(bed.end == "the peer closed the connection");
    CHECK(guest_mappings() == mappings + 1);  // the test's own
  }
  CHECK(open_descriptors() == descriptors);
  CHECK(guest_mappings() == mappings);
}

}  // namespace
}  // namespace sw
