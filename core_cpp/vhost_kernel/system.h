// SPDX-License-Identifier: Apache-2.0
// KernelCalls: the system calls by which a device of the kernel is driven. Tests put a kernel of their own in their
// place, so that every refusal can be seen on a machine without such a device. Arguments and results as the system
// calls': -1 and errno on failure.
#pragma once

#include <sys/types.h>

#include <cstddef>

namespace sw {

class KernelCalls {
 public:
  virtual ~KernelCalls() = default;
  virtual int open(const char* path, int flags) = 0;
  virtual int ioctl(int fd, unsigned long request, void* argument) = 0;
  virtual ssize_t read(int fd, void* data, size_t bytes) = 0;
  virtual ssize_t write(int fd, const void* data, size_t bytes) = 0;

  static KernelCalls& real();
};

}  // namespace sw
