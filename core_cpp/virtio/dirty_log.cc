// SPDX-License-Identifier: Apache-2.0
#include "virtio/dirty_log.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "virtio/shared_file.h"
#include "virtio/sigbus_guard.h"

namespace sw {

Result<std::shared_ptr<DirtyLog>> DirtyLog::map(int fd, uint64_t offset, uint64_t bytes) {
  auto range = map_shared_file("dirty log", fd, offset, bytes);
  if (!range) return range.error();
  std::shared_ptr<DirtyLog> log(new DirtyLog);
  log->mapping_ = std::move(range->mapping);
  log->bits_ = range->first;
  log->bytes_ = bytes;
  log->guard_slot_ = sigbus_guard_add(log->mapping_.data(), log->mapping_.size(), range->page_bytes);
  if (log->guard_slot_ < 0) return Error{ENOSPC, "map the dirty log: all ports together have too many regions"};
  return log;
}

DirtyLog::~DirtyLog() { sigbus_guard_remove(guard_slot_); }

void DirtyLog::mark(uint64_t guest, uint64_t bytes) {
  if (bytes == 0 || guest + (bytes - 1) < guest) return;
  const uint64_t last = std::min((guest + (bytes - 1)) / kPageBytes, bytes_ * 8 - 1);
  for (uint64_t page = guest / kPageBytes; page <= last; ++page) {
    std::atomic_ref<uint8_t>(bits_[page / 8]).fetch_or(static_cast<uint8_t>(1U << page % 8), std::memory_order_seq_cst);
  }
}

}  // namespace sw
