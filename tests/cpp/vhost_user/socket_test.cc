// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/socket.h"

#include <doctest/doctest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>

#include "support/temp_dir.h"

namespace sw {
namespace {

using testing::TempDir;

mode_t mode_of(const std::string& path) {
  struct stat info{};
  return ::stat(path.c_str(), &info) == 0 ? info.st_mode & 07777U : 0;
}

TEST_CASE("UnixListener: peers connect, and the file has the wanted mode and goes away with the listener") {
  const TempDir dir;
  const std::string path = dir.file("vm1.sock");
  {
    auto listener = UnixListener::open(path, 0640, static_cast<int>(::getgid()));
    REQUIRE(listener);
    CHECK(mode_of(path) == 0640);
    CHECK(listener->accept().error().code == EAGAIN);
    CHECK(connect_unix(path));
    CHECK(listener->accept());
  }
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("UnixListener: takes over what a dead process left") {
  const TempDir dir;
  const std::string path = dir.file("vm1.sock");
  {
    const UniqueFd dead(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(static_cast<char*>(address.sun_path), path.size());
    REQUIRE(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(dead.get(), 1) == 0);
  }
  REQUIRE(std::filesystem::exists(path));
  auto listener = UnixListener::open(path, -1, -1);
  REQUIRE(listener);
  CHECK(connect_unix(path));
}

TEST_CASE("UnixListener: refuses a path that is in use, and leaves its owner alone") {
  const TempDir dir;
  const std::string path = dir.file("vm1.sock");
  auto owner = UnixListener::open(path, -1, -1);
  REQUIRE(owner);
  auto second = UnixListener::open(path, -1, -1);
  REQUIRE_FALSE(second);
  CHECK(second.error().code == EADDRINUSE);
  CHECK(second.error().what.find("another process listens") != std::string::npos);
  CHECK(connect_unix(path));
}

TEST_CASE("UnixListener: every other refusal names its remedy and touches nothing") {
  const TempDir dir;
  std::ofstream(dir.file("plain")) << "precious";
  std::filesystem::create_directory(dir.file("directory"));
  std::filesystem::create_symlink(dir.file("plain"), dir.file("link"));
  struct Row {
    std::string path;
    int code;
    const char* says;
  };
  const std::array<Row, 8> rows = {{
      {dir.file("plain"), EEXIST, "not a socket"},
      {dir.file("directory"), EEXIST, "not a socket"},
      {dir.file("link"), EEXIST, "not a socket"},
      {dir.file("missing/vm1.sock"), ENOENT, "does not exist: create it"},
      {dir.file("plain/vm1.sock"), ENOTDIR, "is not a directory"},
      {dir.file(std::string(120, 'x')), ENAMETOOLONG, "shorter"},
      {"", EINVAL, "empty"},
      {std::string("a\0b", 3), EINVAL, "zero byte"},
  }};
  for (const Row& row : rows) {
    CAPTURE(row.path);
    auto listener = UnixListener::open(row.path, -1, -1);
    REQUIRE_FALSE(listener);
    CHECK(listener.error().code == row.code);
    CHECK(listener.error().what.find(row.says) != std::string::npos);
  }
  std::string kept;
  std::ifstream(dir.file("plain")) >> kept;
  CHECK(kept == "precious");
}

TEST_CASE("UnixListener: 107 bytes of path are possible, 108 are not") {
  const TempDir dir;
  const std::string longest = dir.file(std::string(107 - dir.file("").size(), 'x'));
  REQUIRE(longest.size() == 107);
  CHECK(UnixListener::open(longest, -1, -1));
  CHECK_FALSE(UnixListener::open(longest + "x", -1, -1));
}

TEST_CASE("UnixListener: does not remove a file that somebody else has put in its place") {
  const TempDir dir;
  const std::string path = dir.file("vm1.sock");
  auto first = UnixListener::open(path, -1, -1);
  REQUIRE(first);
  REQUIRE(::unlink(path.c_str()) == 0);
  auto second = UnixListener::open(path, -1, -1);
  REQUIRE(second);
  first->close();
  CHECK(std::filesystem::exists(path));
  CHECK(connect_unix(path));
}

TEST_CASE("connect_unix: says why it failed") {
  const TempDir dir;
  CHECK(connect_unix(dir.file("nobody")).error().code == ENOENT);
  std::ofstream(dir.file("plain")) << "x";
  CHECK(connect_unix(dir.file("plain")).error().code == ECONNREFUSED);
}

}  // namespace
}  // namespace sw
