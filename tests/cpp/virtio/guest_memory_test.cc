// SPDX-License-Identifier: Apache-2.0
#include "virtio/guest_memory.h"
#include "virtio/guest_cursor.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "base/fd.h"
#include "virtio/dirty_log.h"

namespace sw {
namespace {

UniqueFd memory_file(uint64_t bytes) {
  UniqueFd fd(::memfd_create("guest", MFD_CLOEXEC));
  REQUIRE(fd);
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0);
  return fd;
}

TEST_CASE("MappedRegion: maps a range of a memory file that both sides see") {
  const UniqueFd fd = memory_file(64 * 1024);
  auto region = MappedRegion::map(fd.get(), GuestPhys{0x100000}, 0x4000, FrontendVirt{0x7f0000000000}, 0x8000);
  REQUIRE(region);
  (*region)->host[5] = 42;
  uint8_t byte = 0;
  REQUIRE(::pread(fd.get(), &byte, 1, 0x8005) == 1);
  CHECK(byte == 42);
  CHECK((*region)->bytes == 0x4000);
  CHECK((*region)->file_offset == 0x8000);
  CHECK((*region)->inode != 0);
  CHECK_FALSE((*region)->faulted());
}

TEST_CASE("MappedRegion: refuses every impossible range with a sentence") {
  struct Row {
    const char* what;
    uint64_t guest, bytes, frontend, offset;
    const char* sentence;
  };
  const std::vector<Row> rows = {
      {"no bytes", 0, 0, 0, 0, "size is 0"},
      {"guest end wraps", UINT64_MAX - 0xfff, 0x2000, 0, 0, "guest address plus size overflow"},
      {"front-end end wraps", 0, 0x2000, UINT64_MAX - 0xfff, 0, "front-end's address plus size overflow"},
      {"file end wraps", 0, 0x2000, 0, UINT64_MAX - 0xfff, "overflow"},
      {"file end beyond off_t", 0, 0x2000, 0, INT64_MAX - 0xfff, "overflow"},
      {"offset within a page", 0, 0x1000, 0, 0x800, "multiple of the page size"},
      {"one byte past the end", 0, 0x10001, 0, 0, "has only 65536"},
      {"wholly past the end", 0, 0x1000, 0, 0x10000, "has only 65536"},
  };
  const UniqueFd fd = memory_file(64 * 1024);
  for (const Row& row : rows) {
    CAPTURE(row.what);
    const auto region = MappedRegion::map(fd.get(), {row.guest}, row.bytes, {row.frontend}, row.offset);
    REQUIRE_FALSE(region);
    CHECK(region.error().what.find(row.sentence) != std::string::npos);
  }
}

TEST_CASE("MappedRegion: refuses what is no writable memory file") {
  std::array<int, 2> pipe{};
  REQUIRE(::pipe(pipe.data()) == 0);
  const UniqueFd read_end(pipe[0]);
  const UniqueFd write_end(pipe[1]);
  CHECK_FALSE(MappedRegion::map(read_end.get(), {0}, 0x1000, {0}, 0));
  CHECK_FALSE(MappedRegion::map(-1, {0}, 0x1000, {0}, 0));

  const UniqueFd fd = memory_file(0x1000);
  const UniqueFd read_only(::open(("/proc/self/fd/" + std::to_string(fd.get())).c_str(), O_RDONLY | O_CLOEXEC));
  REQUIRE(read_only);
  const auto region = MappedRegion::map(read_only.get(), {0}, 0x1000, {0}, 0);
  REQUIRE_FALSE(region);
  CHECK(region.error().code == EACCES);
}

TEST_CASE("MappedRegion: unmaps with its last owner") {
  const UniqueFd fd = memory_file(0x1000);
  void* host = nullptr;
  {
    auto region = MappedRegion::map(fd.get(), {0}, 0x1000, {0}, 0);
    REQUIRE(region);
    host = (*region)->host;
  }
  unsigned char in_core = 0;
  CHECK(::mincore(host, 0x1000, &in_core) == -1);
  CHECK(errno == ENOMEM);
}

TEST_CASE("MappedRegion: a truncated file reads as zeros and is reported") {
  const UniqueFd fd = memory_file(8 * 0x1000);
  auto region = MappedRegion::map(fd.get(), {0}, 8 * 0x1000, {0}, 0);
  REQUIRE(region);
  auto memory = GuestMemory::make({*region});
  REQUIRE(memory);
  std::memset((*region)->host, 7, 8 * 0x1000);
  REQUIRE(::ftruncate(fd.get(), 2 * 0x1000) == 0);
  volatile uint8_t* const host = (*region)->host;
  CHECK(host[0x1fff] == 7);
  CHECK_FALSE((*memory)->faulted());
  CHECK(host[5 * 0x1000] == 0);
  CHECK((*memory)->faulted());
  CHECK(host[0] == 7);
  CHECK(host[2 * 0x1000] == 0);
  host[3 * 0x1000] = 9;  // writable, too: a copy under way goes on
  CHECK(host[3 * 0x1000] == 9);
  CHECK(host[0] == 0);  // who faults again loses all of it, so that a guest cannot make us fault page by page
}

TEST_CASE("MappedRegion: more ranges than can be guarded are refused") {
  const UniqueFd fd = memory_file(0x1000);
  std::vector<std::shared_ptr<MappedRegion>> regions;
  Error error;
  for (int i = 0; i < 20'000 && error.what.empty(); ++i) {
    auto region = MappedRegion::map(fd.get(), {0}, 0x1000, {0}, 0);
    if (region) {
      regions.push_back(std::move(*region));
    } else {
      error = region.error();
    }
  }
  CHECK(regions.size() > 16'000);
  CHECK(error.what.find("too many regions") != std::string::npos);
  CHECK_FALSE(DirtyLog::map(fd.get(), 0, 0x1000));
  regions.pop_back();
  CHECK(MappedRegion::map(fd.get(), {0}, 0x1000, {0}, 0));
}

TEST_CASE("MappedRegion: a file of a file system that may let a worker wait is refused, and told what to use") {
  const std::string name = "/var/tmp/region-under-test-" + std::to_string(::getpid());
  const UniqueFd fd(::open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  REQUIRE(fd);
  ::unlink(name.c_str());
  REQUIRE(::ftruncate(fd.get(), 0x1000) == 0);
  if (::fcntl(fd.get(), F_GET_SEALS) >= 0) return;  // this machine has that folder in memory
  const auto region = MappedRegion::map(fd.get(), {0}, 0x1000, {0}, 0);
  REQUIRE_FALSE(region);
  CHECK(region.error().what.find("memory-backend-memfd") != std::string::npos);
}

TEST_CASE("SIGBUS guard: leaves faults outside registered ranges deadly") {
  const UniqueFd guarded = memory_file(0x1000);
  auto region = MappedRegion::map(guarded.get(), {0}, 0x1000, {0}, 0);  // the handler is in place
  REQUIRE(region);
  const UniqueFd fd = memory_file(0x1000);
  void* const page = ::mmap(nullptr, 0x1000, PROT_READ, MAP_SHARED, fd.get(), 0);
  REQUIRE(page != MAP_FAILED);
  REQUIRE(::ftruncate(fd.get(), 0) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const int quiet = ::open("/dev/null", O_WRONLY);
    ::dup2(quiet, 2);
    [[maybe_unused]] const uint8_t value = *static_cast<volatile uint8_t*>(page);
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK_FALSE((WIFEXITED(status) && WEXITSTATUS(status) == 0));
  ::munmap(page, 0x1000);
}

// Three regions: [0x1000, 0x3000), [0x3000, 0x4000) adjacent for the guest only, [0x8000, 0x9000) after a hole.
struct ThreeRegions {
  std::vector<uint8_t> a = std::vector<uint8_t>(0x2000), b = std::vector<uint8_t>(0x1000),
                       c = std::vector<uint8_t>(0x1000);
  std::shared_ptr<const GuestMemory> memory;

  ThreeRegions() {
    auto made = GuestMemory::make({MappedRegion::borrow(c.data(), {0x8000}, 0x1000, {0x70008000}),
                                   MappedRegion::borrow(a.data(), {0x1000}, 0x2000, {0x70001000}),
                                   MappedRegion::borrow(b.data(), {0x3000}, 0x1000, {0x70003000})});
    REQUIRE(made);
    memory = *made;
  }
};

TEST_CASE("GuestMemory: translates up to the end of a region and no further") {
  ThreeRegions regions;
  struct Row {
    uint64_t guest, bytes;
    const uint8_t* host;
    uint64_t contiguous;
  };
  const std::vector<Row> rows = {
      {0x0fff, 1, nullptr, 0},
      {0x1000, 1, regions.a.data(), 1},
      {0x1000, 0x2000, regions.a.data(), 0x2000},
      {0x1000, 0x2001, regions.a.data(), 0x2000},
      {0x2fff, 0xffffffff, regions.a.data() + 0x1fff, 1},
      {0x3000, 0x1000, regions.b.data(), 0x1000},
      {0x3fff, UINT64_MAX, regions.b.data() + 0xfff, 1},
      {0x4000, 1, nullptr, 0},
      {0x8000, 1, regions.c.data(), 1},
      {0x9000, 1, nullptr, 0},
      {UINT64_MAX, 1, nullptr, 0},
      {0, 1, nullptr, 0},
  };
  for (const Row& row : rows) {
    CAPTURE(row.guest);
    CAPTURE(row.bytes);
    uint64_t contiguous = 99;
    CHECK(regions.memory->translate({row.guest}, row.bytes, contiguous) == row.host);
    CHECK(contiguous == row.contiguous);
  }
}

TEST_CASE("GuestMemory: whole ranges lie in one region") {
  ThreeRegions regions;
  CHECK(regions.memory->translate_whole(GuestPhys{0x1000}, 0x2000) == regions.a.data());
  CHECK(regions.memory->translate_whole(GuestPhys{0x2fff}, 2) == nullptr);
  CHECK(regions.memory->translate_whole(GuestPhys{0x1000}, UINT64_MAX) == nullptr);
  CHECK(regions.memory->translate_whole(GuestPhys{0}, 1) == nullptr);
  CHECK(regions.memory->translate_whole(FrontendVirt{0x70008010}, 0xff0) == regions.c.data() + 0x10);
  CHECK(regions.memory->translate_whole(FrontendVirt{0x70008010}, 0xff1) == nullptr);
  CHECK(regions.memory->translate_whole(FrontendVirt{0x8000}, 1) == nullptr);
  GuestPhys guest{};
  CHECK(regions.memory->guest_address(regions.b.data() + 3, guest));
  CHECK(guest.value == 0x3003);
  CHECK_FALSE(regions.memory->guest_address(nullptr, guest));
}

TEST_CASE("GuestCursor: its window holds ranges up to the end of the region and no further, by either question") {
  constexpr uint64_t kStart = 0x100000;
  constexpr uint32_t kShort = GuestCursor::kShortBytes;
  std::vector<uint8_t> bytes(3 * kShort);
  for (const uint64_t region : {uint64_t{16}, uint64_t{kShort}, uint64_t{kShort} + 1, uint64_t{3} * kShort}) {
    auto made = GuestMemory::make({MappedRegion::borrow(bytes.data(), {kStart}, region, {kStart})});
    REQUIRE(made);
    GuestCursor cursor(made->get());
    CHECK_FALSE(cursor.window().holds_short(kStart, 1));  // it was nowhere yet
    CHECK(cursor.moves_to(kStart, 1));
    CHECK_FALSE(cursor.moves_to(kStart, 1));  // it is there
    const uint64_t ends[] = {0,          1,          15,     16,         kShort - 1,         kShort,
                             kShort + 1, region - 1, region, region + 1, UINT64_MAX - kStart};
    for (const uint64_t first : ends) {
      for (const uint64_t behind : ends) {
        if (behind <= first || behind - first > kShort) continue;
        CAPTURE(region);
        CAPTURE(first);
        CAPTURE(behind);
        const bool inside = behind <= region;
        CHECK(cursor.window().holds_short(kStart + first, behind - first) == inside);
        CHECK(cursor.window().holds(kStart + first, behind - first) == inside);
        if (inside) CHECK(cursor.window().at(kStart + first) == bytes.data() + first);
      }
    }
    CHECK_FALSE(cursor.window().holds_short(kStart - 1, 2));
    CHECK_FALSE(cursor.moves_to(kStart - 1, 2));
    CHECK_FALSE(cursor.moves_to(kStart, static_cast<uint32_t>(region + 1)));
  }
}

TEST_CASE("GuestMemory: refuses overlapping and impossible regions") {
  std::vector<uint8_t> bytes(0x3000);
  const auto region = [&](uint64_t guest, uint64_t size) {
    return MappedRegion::borrow(bytes.data(), {guest}, size, {guest});
  };
  CHECK(GuestMemory::make({}));
  CHECK(GuestMemory::make({region(0x1000, 0x1000), region(0x2000, 0x1000)}));
  CHECK_FALSE(GuestMemory::make({region(0x1000, 0x1001), region(0x2000, 0x1000)}));
  CHECK_FALSE(GuestMemory::make({region(0x1000, 0x1000), region(0x1000, 0x1000)}));
  CHECK_FALSE(GuestMemory::make({region(0x1000, 0x3000), region(0x2000, 0x1000)}));
  CHECK_FALSE(GuestMemory::make({region(UINT64_MAX - 0xfff, 0x2000)}));
  CHECK_FALSE(GuestMemory::make({region(0x1000, 0)}));
}

TEST_CASE("GuestMemory: finds the region among hundreds") {
  std::vector<uint8_t> bytes(509);
  std::vector<std::shared_ptr<MappedRegion>> regions;
  for (uint64_t i = 0; i < 509; ++i) {
    regions.push_back(MappedRegion::borrow(&bytes[i], {i * 0x1000 + 7}, 1, {i * 0x1000}));
  }
  auto memory = GuestMemory::make(std::move(regions));
  REQUIRE(memory);
  for (uint64_t i = 0; i < 509; ++i) {
    CHECK((*memory)->translate_whole(GuestPhys{i * 0x1000 + 7}, 1) == &bytes[i]);
    CHECK((*memory)->translate_whole(GuestPhys{i * 0x1000 + 8}, 1) == nullptr);
  }
}

TEST_CASE("DirtyLog: sets one bit per page touched and stays inside the bitmap") {
  struct Row {
    uint64_t guest, bytes;
    std::vector<uint64_t> pages;
  };
  const std::vector<Row> rows = {
      {0, 1, {0}},
      {0xfff, 2, {0, 1}},
      {0x7000, 0x3000, {7, 8, 9}},
      {0x5000, 0, {}},
      {63 * 0x1000, 0x1000, {63}},
      {63 * 0x1000, 0x2000, {63}},  // the rest is beyond the bitmap
      {64 * 0x1000, 0x1000, {}},
      {UINT64_MAX - 10, 5, {}},
      {UINT64_MAX - 10, 100, {}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.guest);
    const UniqueFd fd = memory_file(0x2000);
    {
      auto log = DirtyLog::map(fd.get(), 0x1000, 8);
      REQUIRE(log);
      (*log)->mark(row.guest, row.bytes);
    }
    std::vector<uint8_t> bits(0x2000);
    REQUIRE(::pread(fd.get(), bits.data(), bits.size(), 0) == 0x2000);
    std::vector<uint64_t> pages;
    for (uint64_t bit = 0; bit < 0x2000 * 8; ++bit) {
      if ((bits[bit / 8] >> bit % 8 & 1) != 0) pages.push_back(bit - 0x8000);
    }
    CHECK(pages == row.pages);
  }
}

TEST_CASE("DirtyLog: refuses a bitmap that its file does not hold") {
  const UniqueFd fd = memory_file(0x1000);
  CHECK_FALSE(DirtyLog::map(fd.get(), 0, 0));
  CHECK_FALSE(DirtyLog::map(fd.get(), 0, 0x1001));
  CHECK_FALSE(DirtyLog::map(fd.get(), UINT64_MAX - 0xfff, 0x1000));
  CHECK(DirtyLog::map(fd.get(), 0, 0x1000));
}

}  // namespace
}  // namespace sw
