// SPDX-License-Identifier: Apache-2.0
#include "base/event_signal.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>

#include "base/fd.h"
#include "base/stall_guard.h"

namespace sw {

namespace {

constexpr uint32_t kRequests = 64;  // that may be done before their ends, which nobody reads, are taken off the ring

class SignalContext {
 public:
  SignalContext() {
    if (nothing_to_read() < 0) return;
    if (::syscall(SYS_io_setup, kRequests, &context_) != 0) context_ = 0;
    request_.aio_lio_opcode = IOCB_CMD_PREAD;
    request_.aio_fildes = static_cast<uint32_t>(nothing_to_read());
    request_.aio_flags = IOCB_FLAG_RESFD;
  }
  ~SignalContext() {
    if (context_ != 0) ::syscall(SYS_io_destroy, context_);
  }
  SignalContext(const SignalContext&) = delete;
  SignalContext& operator=(const SignalContext&) = delete;

  [[nodiscard]] bool works() const { return context_ != 0; }

  bool signal(int fd) {
    request_.aio_resfd = static_cast<uint32_t>(fd);
    if (++unread_ > kRequests / 2) forget_ends();
    if (submit()) return true;
    if (errno != EAGAIN) return false;
    forget_ends();
    return submit();
  }

 private:
  // Of the whole process, for ever.
  static int nothing_to_read() {
    static const int fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    return fd;
  }
  bool submit() {
    iocb* list = &request_;
    return ::syscall(SYS_io_submit, context_, 1, &list) == 1;
  }
  void forget_ends() {
    std::array<io_event, kRequests> ends;
    timespec at_once{};
    (void)::syscall(SYS_io_getevents, context_, 0, kRequests, ends.data(), &at_once);
    unread_ = 0;
  }

  aio_context_t context_ = 0;  // 0: there is none
  uint32_t unread_ = 0;
  iocb request_{};  // the kernel copies it
};

SignalContext& context() {
  static thread_local SignalContext mine;
  return mine;
}

}  // namespace

bool signal_eventfd(int fd) {
  if (fd < 0) return false;
  SignalContext& mine = context();
  if (mine.works()) [[likely]]
    return mine.signal(fd);
  const uint64_t one = 1;
  return ::write(fd, &one, sizeof one) == sizeof one;
}

bool signal_eventfd(int fd, EventPeer& peer) {
  if (!StallGuard::watches_this_thread() || peer.made_us_wait.load(std::memory_order_relaxed)) {
    return signal_eventfd(fd);
  }
  const uint64_t one = 1;
  if (::write(fd, &one, sizeof one) == sizeof one) [[likely]]
    return true;
  peer.made_us_wait.store(true, std::memory_order_relaxed);  // its counter is full
  return signal_eventfd(fd);
}

uint64_t drain_eventfd(int fd) {
  uint64_t count = 0;
  iovec part{&count, sizeof count};
  ssize_t got = ::preadv2(fd, &part, 1, -1, RWF_NOWAIT);
  if (got < 0 && errno == EOPNOTSUPP) got = ::read(fd, &count, sizeof count);  // Linux before 5.8
  return got == sizeof count ? count : 0;
}

bool signals_never_wait() { return context().works(); }

}  // namespace sw
