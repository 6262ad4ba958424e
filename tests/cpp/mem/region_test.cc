// SPDX-License-Identifier: Apache-2.0
#include "mem/region.h"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

using namespace sw;

namespace {

RegionRequest request(size_t bytes, HugePages huge) {
  RegionRequest wanted;
  wanted.name = "test-region";
  wanted.bytes = bytes;
  wanted.huge = huge;
  return wanted;
}

}  // namespace

TEST_CASE("HugeRegion: normal pages are allocated, writable and shared through the descriptor") {
  auto region = HugeRegion::make(request(100'000, HugePages::kOff));
  REQUIRE(region);
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  CHECK(region->page_bytes() == page);
  CHECK(region->size() % page == 0);
  CHECK(region->size() >= 100'000);
  CHECK(region->warning().empty());
  struct stat file{};
  REQUIRE(::fstat(region->fd(), &file) == 0);
  CHECK(static_cast<size_t>(file.st_blocks) * 512 >= region->size());  // nothing is left to allocate on first touch
  std::memset(region->data(), 0x5a, region->size());
  void* const other = ::mmap(nullptr, region->size(), PROT_READ, MAP_SHARED, region->fd(), 0);
  REQUIRE(other != MAP_FAILED);
  CHECK(static_cast<const unsigned char*>(other)[region->size() - 1] == 0x5a);
  ::munmap(other, region->size());
}

TEST_CASE("HugeRegion: a peer that holds the descriptor cannot shrink the memory") {
  auto region = HugeRegion::make(request(1 << 20, HugePages::kOff));
  REQUIRE(region);
  CHECK(::ftruncate(region->fd(), 0) != 0);
  CHECK(errno == EPERM);
}

TEST_CASE("HugeRegion: auto takes huge pages or says how many are missing") {
  const size_t bytes = 4 * kHugePage2M;
  const HugePagePool pool = read_huge_page_pool(kHugePage2M, -1);
  auto region = HugeRegion::make(request(bytes, HugePages::kAuto));
  REQUIRE(region);
  CHECK(region->size() == bytes);
  std::memset(region->data(), 1, region->size());
  if (region->page_bytes() == kHugePage2M) {
    CHECK(region->warning().empty());
  } else {
    CHECK(region->warning().find("normal pages") != std::string::npos);
    CHECK(region->warning().find(huge_page_advice(pool, kHugePage2M, 4, -1)) != std::string::npos);
  }
}

TEST_CASE("HugeRegion: required is an error with numbers when there are not enough") {
  const HugePagePool pool = read_huge_page_pool(kHugePage2M, -1);
  const size_t pages = pool.available + (1U << 20);  // two terabytes more than there is
  auto region = HugeRegion::make(request(pages * kHugePage2M, HugePages::kRequired));
  REQUIRE_FALSE(region);
  if (pool.supported) {
    CHECK(region.error().message().find("(" + std::to_string(pages) + " needed") != std::string::npos);
    CHECK(region.error().message().find("nr_hugepages") != std::string::npos);
  } else {
    CHECK(region.error().message().find("no huge pages") != std::string::npos);
  }
}

TEST_CASE("HugeRegion: impossible requests are errors") {
  CHECK_FALSE(HugeRegion::make(request(0, HugePages::kOff)));
  auto odd_page = request(4096, HugePages::kAuto);
  odd_page.huge_page_bytes = 12345;
  CHECK_FALSE(HugeRegion::make(odd_page));
  auto no_node = request(4096, HugePages::kOff);
  no_node.numa_node = 1023;
  auto placed = HugeRegion::make(no_node);
  REQUIRE_FALSE(placed);
  CHECK(placed.error().what.find("NUMA node 1023") != std::string::npos);
  no_node.numa_node = 4096;
  CHECK_FALSE(HugeRegion::make(no_node));
}

TEST_CASE("HugeRegion: node 0 always exists") {
  auto wanted = request(1 << 20, HugePages::kOff);
  wanted.numa_node = 0;
  auto region = HugeRegion::make(wanted);
  REQUIRE(region);
  region->data()[0] = std::byte{1};
}

TEST_CASE("huge_page_advice: names the number and the command") {
  HugePagePool pool{true, true, 100, 36, "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"};
  CHECK(huge_page_advice(pool, kHugePage2M, 128, -1) ==
        "92 huge pages of 2 MB are missing (128 needed, 36 available); reserve them with: "
        "sysctl -w vm.nr_hugepages=192");
  pool.control = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
  CHECK(huge_page_advice(pool, kHugePage2M, 37, 1) ==
        "1 huge page of 2 MB is missing on NUMA node 1 (37 needed, 36 available); reserve them with: echo 101 > "
        "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages");
  pool.default_size = false;
  CHECK(huge_page_advice(pool, kHugePage1G, 40, -1).find("echo 104 > ") != std::string::npos);
  CHECK(huge_page_advice(pool, kHugePage2M, 10, -1).find("hugetlb limit") != std::string::npos);
  CHECK(huge_page_advice(HugePagePool{}, kHugePage1G, 1, -1) == "this kernel offers no huge pages of 1 GB");
}
