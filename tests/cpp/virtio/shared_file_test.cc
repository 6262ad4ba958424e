// SPDX-License-Identifier: Apache-2.0
#include "virtio/shared_file.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "base/fd.h"
#include "support/fuse_file.h"

namespace sw {
namespace {

constexpr uint64_t kBytes = 0x4000;

UniqueFd sized(UniqueFd fd) {
  REQUIRE(fd);
  REQUIRE(::ftruncate(fd.get(), kBytes) == 0);
  return fd;
}
UniqueFd unnamed(const char* folder) { return sized(UniqueFd(::open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600))); }
UniqueFd opened(const char* path) { return UniqueFd(::open(path, O_RDWR | O_CLOEXEC)); }
// A folder that is in memory on this machine says nothing about disks.
bool in_memory(const UniqueFd& fd) { return ::fcntl(fd.get(), F_GET_SEALS) >= 0; }

TEST_CASE("map_shared_file: takes memory, and nothing that a disk, a server or a device is behind") {
  struct Row {
    const char* what;
    UniqueFd fd;
    bool taken;
  };
  std::vector<Row> rows;
  rows.push_back({"memfd", sized(UniqueFd(::memfd_create("rows", MFD_CLOEXEC))), true});
  rows.push_back(
      {"memfd that may be sealed", sized(UniqueFd(::memfd_create("rows", MFD_CLOEXEC | MFD_ALLOW_SEALING))), true});
  rows.push_back({"file on tmpfs", unnamed("/dev/shm"), true});
  rows.push_back({"file on a disk", unnamed("/var/tmp"), false});
  if (in_memory(rows.back().fd)) rows.pop_back();
  rows.push_back({"device that is always zero", opened("/dev/zero"), false});
  rows.push_back({"device without content", opened("/dev/null"), false});
  rows.push_back({"eventfd", UniqueFd(::eventfd(0, EFD_CLOEXEC)), false});
  rows.push_back({"socket", UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)), false});
  rows.push_back({"closed descriptor", UniqueFd(), false});
  for (const Row& row : rows) {
    CAPTURE(row.what);
    const auto range = map_shared_file("memory", row.fd.get(), 0, kBytes);
    CHECK(static_cast<bool>(range) == row.taken);
    if (!range) CHECK(range.error().what.find("memory-backend-memfd") != std::string::npos);
  }
}

TEST_CASE("map_shared_file: a file on FUSE is refused without a question to its server") {
  testing::FuseFile file;
  if (!file.ok()) return;
  const auto range = map_shared_file("memory", file.fd.get(), 0, kBytes);
  REQUIRE_FALSE(range);
  CHECK(range.error().what.find("memory-backend-memfd") != std::string::npos);
  CHECK(file.asked == 0);
}

TEST_CASE("map_shared_file: a file of the kernel is taken whatever kind it is of") {
  const UniqueFd zero = opened("/dev/zero");
  CHECK(map_shared_file("memory", zero.get(), 0, kBytes, true));
}

}  // namespace
}  // namespace sw
