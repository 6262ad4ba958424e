// SPDX-License-Identifier: Apache-2.0
// A file on FUSE whose server is the test: it counts what the kernel asks about the open file, and keeps a close waiting.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "base/fd.h"
#include "support/temp_dir.h"

namespace sw::testing {

class FuseFile {
 public:
  static constexpr uint64_t kBytes = 1 << 20;

  // ok() false: this machine has no FUSE, or we may not mount it (not root).
  FuseFile() : device_(::open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK)) {
    if (device_) {
      server_ = std::thread([this] { serve(); });
      // The mount is in a namespace of that thread, which is gone with it; the open file stays.
      std::thread([this] { mount_and_open(); }).join();
    }
    if (!fd) MESSAGE("skipped: a file on FUSE needs root and /dev/fuse");
    asked = 0;
  }
  ~FuseFile() {
    let_close();
    fd.reset();
    stopping_ = true;
    if (server_.joinable()) server_.join();
  }
  FuseFile(const FuseFile&) = delete;
  FuseFile& operator=(const FuseFile&) = delete;

  [[nodiscard]] bool ok() const { return static_cast<bool>(fd); }
  // From now on a close waits no more.
  void let_close() { held_ = false; }
  void hold_close() { held_ = true; }

  UniqueFd fd;
  std::atomic<uint32_t> asked{0};  // requests about the file since it was opened

 private:
  static constexpr uint64_t kNode = 2;

  static fuse_attr attributes(uint64_t node) {
    fuse_attr made{};
    made.ino = node;
    made.mode = node == kNode ? S_IFREG | 0600U : S_IFDIR | 0700U;
    made.size = node == kNode ? kBytes : 0;
    made.nlink = 1;
    made.blksize = 4096;
    return made;
  }

  void mount_and_open() {
    if (::unshare(CLONE_NEWNS) != 0) return;
    if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return;
    const std::string options = "fd=" + std::to_string(device_.get()) + ",rootmode=40000,user_id=0,group_id=0";
    if (::mount("test", folder_.file("").c_str(), "fuse", MS_NOSUID | MS_NODEV, options.c_str()) != 0) return;
    fd.reset(::open(folder_.file("memory").c_str(), O_RDWR | O_CLOEXEC));
  }

  template <class Body>
  void answer(uint64_t unique, const Body& body) const {
    std::array<char, sizeof(fuse_out_header) + sizeof(Body)> out{};
    const fuse_out_header header{out.size(), 0, unique};
    std::memcpy(out.data(), &header, sizeof header);
    std::memcpy(out.data() + sizeof header, &body, sizeof body);
    (void)!::write(device_.get(), out.data(), out.size());
  }
  void answer(uint64_t unique, int error) const {
    const fuse_out_header header{sizeof header, error, unique};
    (void)!::write(device_.get(), &header, sizeof header);
  }

  void serve() {
    std::array<char, 1 << 17> in{};
    while (!stopping_) {
      if (flush_ != 0 && !held_) answer(std::exchange(flush_, 0), 0);
      pollfd look{device_.get(), POLLIN, 0};
      if (::poll(&look, 1, 5) != 1) continue;
      if (::read(device_.get(), in.data(), in.size()) < static_cast<ssize_t>(sizeof(fuse_in_header))) {
        std::this_thread::yield();  // not mounted yet
        continue;
      }
      fuse_in_header request{};
      std::memcpy(&request, in.data(), sizeof request);
      if (request.nodeid == kNode) ++asked;
      reply(request);
    }
  }

  void reply(const fuse_in_header& request) {
    switch (request.opcode) {
      case FUSE_INIT: {
        fuse_init_out out{};
        out.major = FUSE_KERNEL_VERSION;
        out.minor = FUSE_KERNEL_MINOR_VERSION;
        out.max_write = 4096;
        return answer(request.unique, out);
      }
      case FUSE_LOOKUP: {
        fuse_entry_out out{};
        out.nodeid = kNode;
        out.attr = attributes(kNode);  // valid for no time: whoever wants to know asks again
        return answer(request.unique, out);
      }
      case FUSE_GETATTR: {
        fuse_attr_out out{};
        out.attr = attributes(request.nodeid);
        return answer(request.unique, out);
      }
      case FUSE_OPEN:
        return answer(request.unique, fuse_open_out{});
      case FUSE_FLUSH:  // what a close waits for
        flush_ = request.unique;
        return;
      case FUSE_FORGET:
      case FUSE_BATCH_FORGET:
        return;
      default:
        return answer(request.unique, -ENOSYS);
    }
  }

  TempDir folder_;
  UniqueFd device_;
  std::thread server_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> held_{false};
  uint64_t flush_ = 0;  // the request that is not answered yet
};

}  // namespace sw::testing
