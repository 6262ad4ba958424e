// SPDX-License-Identifier: Apache-2.0
// DirtyLog: the bitmap in which we tell a migrating front-end which pages of guest memory we wrote (vhost-user
// "Migration"). One bit per 4 KiB page of guest-physical space, shared with the front-end, which clears bits as it
// sends pages: so every update is an atomic OR.
#pragma once

#include <cstdint>
#include <memory>

#include "base/mmap.h"
#include "base/result.h"

namespace sw {

class DirtyLog {
 public:
  static constexpr uint64_t kPageBytes = 4096;

  // Map `bytes` of bitmap at `offset` of `fd` (may be closed afterwards).
  static Result<std::shared_ptr<DirtyLog>> map(int fd, uint64_t offset, uint64_t bytes);
  ~DirtyLog();
  DirtyLog(const DirtyLog&) = delete;
  DirtyLog& operator=(const DirtyLog&) = delete;

  // The guest's bytes [guest, guest + bytes) were written. Call it after the write: the locked OR keeps that order for
  // the front-end, of stores past the cache, too. Pages beyond the end of the bitmap are ignored. Any thread.
  void mark(uint64_t guest, uint64_t bytes);

 private:
  DirtyLog() = default;
  Mapping mapping_;
  uint8_t* bits_ = nullptr;
  uint64_t bytes_ = 0;
  int guard_slot_ = -1;
};

}  // namespace sw
