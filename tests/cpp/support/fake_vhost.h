// SPDX-License-Identifier: Apache-2.0
// FakeVhost: a kernel with one vhost character device, in this process. It notes every request in order, answers as the
// test told it to, and checks what the real one would: descriptors that are open, rings after an owner.
#pragma once

#include <fcntl.h>
#include <sys/eventfd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "vhost_kernel/system.h"
#include "vhost_kernel/uapi.h"

namespace sw {

class FakeVhost final : public KernelCalls {
 public:
  struct Call {
    unsigned long request = 0;
    std::vector<uint8_t> argument;  // its first bytes, as many as the request's number says
    int fd = -1;
  };
  // Answers a request: 0 or an errno. It may change the argument.
  using Answer = std::function<int(void* argument)>;

  std::string path;                        // the one device; any other path does not exist
  int open_error = 0;                      // of that device
  std::map<unsigned long, Answer> answer;  // what is not here succeeds and changes nothing
  std::vector<Call> calls;
  std::vector<vhost_msg_v2> messages;  // what was written
  int write_error = 0;

  explicit FakeVhost(std::string device) : path(std::move(device)) {}

  // Let the first `succeed` calls of `request` pass, and the next one end with `error`.
  void fail(unsigned long request, int error, int succeed = 0) {
    answer[request] = [error, succeed](void*) mutable { return succeed-- > 0 ? 0 : error; };
  }
  template <class T>
  void reply(unsigned long request, T value) {
    answer[request] = [value](void* argument) {
      std::memcpy(argument, &value, sizeof value);
      return 0;
    };
  }
  [[nodiscard]] std::vector<Call> calls_of(unsigned long request) const {
    std::vector<Call> found;
    for (const Call& call : calls) {
      if (call.request == request) found.push_back(call);
    }
    return found;
  }
  template <class T>
  static T argument_of(const Call& call) {
    T value{};
    std::memcpy(&value, call.argument.data(), std::min(sizeof value, call.argument.size()));
    return value;
  }

  int open(const char* name, int flags) override {
    if (name != path) return failed(ENOENT);
    if (open_error != 0) return failed(open_error);
    return ::open("/dev/null", flags);  // a descriptor that can be owned and leaked like any other
  }
  int ioctl(int fd, unsigned long request, void* argument) override {
    if (::fcntl(fd, F_GETFD) < 0) return failed(EBADF);
    Call call{request, {}, fd};
    if (argument != nullptr) {
      const auto* bytes = static_cast<const uint8_t*>(argument);
      size_t size = _IOC_SIZE(request);
      if (size == sizeof(vhost_memory) && _IOC_NR(request) == 3) size += sizeof(vhost_memory_region);
      call.argument.assign(bytes, bytes + size);
    }
    calls.push_back(std::move(call));
    const auto found = answer.find(request);
    const int error = found == answer.end() ? 0 : found->second(argument);
    return error == 0 ? 0 : failed(error);
  }
  ssize_t read(int, void*, size_t) override { return failed(EAGAIN); }
  ssize_t write(int fd, const void* data, size_t bytes) override {
    if (::fcntl(fd, F_GETFD) < 0) return failed(EBADF);
    if (write_error != 0) return failed(write_error);
    vhost_msg_v2 message{};
    std::memcpy(&message, data, std::min(bytes, sizeof message));
    messages.push_back(message);
    return static_cast<ssize_t>(bytes);
  }

 private:
  static int failed(int error) {
    errno = error;
    return -1;
  }
};

}  // namespace sw
