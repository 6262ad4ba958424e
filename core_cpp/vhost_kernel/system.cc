// SPDX-License-Identifier: Apache-2.0
#include "vhost_kernel/system.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace sw {

namespace {

class RealKernel final : public KernelCalls {
 public:
  int open(const char* path, int flags) override { return ::open(path, flags); }
  int ioctl(int fd, unsigned long request, void* argument) override { return ::ioctl(fd, request, argument); }
  ssize_t read(int fd, void* data, size_t bytes) override { return ::read(fd, data, bytes); }
  ssize_t write(int fd, const void* data, size_t bytes) override { return ::write(fd, data, bytes); }
};

}  // namespace

KernelCalls& KernelCalls::real() {
  static RealKernel kernel;
  return kernel;
}

}  // namespace sw
