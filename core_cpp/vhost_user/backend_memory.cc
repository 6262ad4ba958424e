// SPDX-License-Identifier: Apache-2.0
// Back-end: the guest's memory (table or slots) and the dirty log.
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "vhost_user/backend.h"
#include "vhost_user/backend_detail.h"
#include "virtio/dirty_log.h"
#include "virtio/spec.h"

namespace sw {

namespace {

// Of one guest. Its memory file may be sparse and as long as it likes, our address space (128 TiB) is for all guests.
constexpr uint64_t kMaxMemoryBytes = 4ULL << 40;
// Of its dirty log: a bit for each page below 128 TiB.
constexpr uint64_t kMaxLogBytes = 4ULL << 30;
// Of all slots together. More than any QEMU needs: slots times queue pairs that are really used.
constexpr size_t kMaxRepeats = 64 * kMaxMemSlots;

bool same_place(const MappedRegion& mapped, const VhostMemRegion& region, const struct stat& file) {
  return mapped.device == file.st_dev && mapped.inode == file.st_ino && mapped.file_offset == region.mmap_offset &&
         mapped.guest == region.guest && mapped.bytes == region.bytes && mapped.frontend == region.frontend &&
         !mapped.faulted();
}

// Before it is mapped, as even for a moment there is no more than that for one guest.
Result<void> count_bytes(uint64_t& total, uint64_t more) {
  if (more > kMaxMemoryBytes - total) return Error{0, "more than 4 TiB of guest memory"};
  total += more;
  return {};
}

}  // namespace

// A region that has not changed keeps its mapping: mapping a large guest again can take seconds.
Result<std::shared_ptr<MappedRegion>> Backend::map_region(const VhostMemRegion& region, int fd) const {
  struct stat file{};
  if (::fstat(fd, &file) != 0) return Error{errno, "look at a memory file"};
  if (memory_) {
    for (const auto& mapped : memory_->regions()) {
      if (same_place(*mapped, region, file)) return mapped;
    }
  }
  return MappedRegion::map(fd, GuestPhys{region.guest}, region.bytes, FrontendVirt{region.frontend},
                           region.mmap_offset);
}

Result<void> Backend::use_regions(std::vector<std::shared_ptr<MappedRegion>> regions) {
  auto memory = GuestMemory::make(std::move(regions));
  if (!memory) return memory.error();
  memory_table_seen_ = true;
  std::erase_if(added_again_, [&](const std::shared_ptr<MappedRegion>& region) {
    return std::ranges::find((*memory)->regions(), region) == (*memory)->regions().end();
  });
  reconfigure(features_, std::move(*memory), log_);
  return {};
}

Result<void> Backend::set_mem_table(VhostMessage& request, VhostMessage&) {
  const auto table = request.as<VhostMemTable>();
  std::vector<std::shared_ptr<MappedRegion>> regions;
  uint64_t total = 0;
  for (size_t i = 0; i < table.count; ++i) {
    if (auto fits = count_bytes(total, table.regions.at(i).bytes); !fits) return fits;
    auto region = map_region(table.regions.at(i), request.fds.at(i).get());
    if (!region) return Error{region.error().code, "region " + std::to_string(i) + ": " + region.error().what};
    regions.push_back(std::move(*region));
  }
  return use_regions(std::move(regions));
}

Result<void> Backend::get_max_mem_slots(VhostMessage&, VhostMessage& reply) {
  reply.set<uint64_t>(kMaxMemSlots);
  return {};
}

// QEMU before 8.0 adds and removes every slot once for each queue pair, over the one connection: a slot that is there
// is added again by counting it, and goes with its last removal.
Result<void> Backend::add_mem_reg(VhostMessage& request, VhostMessage&) {
  const VhostMemRegion added = request.as<VhostSingleRegion>().region;
  std::vector<std::shared_ptr<MappedRegion>> regions;
  if (memory_) regions = memory_->regions();
  struct stat file{};
  if (::fstat(request.fds.front().get(), &file) != 0) return Error{errno, "look at a memory file"};
  for (const auto& mapped : regions) {
    if (!same_place(*mapped, added, file)) continue;
    if (added_again_.size() >= kMaxRepeats) return Error{0, "the same memory slots are added over and over"};
    added_again_.push_back(mapped);
    return {};
  }
  uint64_t total = 0;
  for (const auto& mapped : regions) total += mapped->bytes;
  if (auto fits = count_bytes(total, added.bytes); !fits) return fits;
  if (regions.size() >= kMaxMemSlots)
    return Error{0, "all " + std::to_string(kMaxMemSlots) + " memory slots are in use"};
  auto region = MappedRegion::map(request.fds.front().get(), GuestPhys{added.guest}, added.bytes,
                                  FrontendVirt{added.frontend}, added.mmap_offset);
  if (!region) return region.error();
  regions.push_back(std::move(*region));
  return use_regions(std::move(regions));
}

// vhost-user "REM_MEM_REG": addresses and size name the region; the offset does not matter. Rings that lie in it wait
// until their addresses are guest memory again.
Result<void> Backend::rem_mem_reg(VhostMessage& request, VhostMessage&) {
  const VhostMemRegion gone = request.as<VhostSingleRegion>().region;
  std::vector<std::shared_ptr<MappedRegion>> regions;
  if (memory_) regions = memory_->regions();
  const auto named = [&](const std::shared_ptr<MappedRegion>& region) {
    return region->guest == gone.guest && region->bytes == gone.bytes && region->frontend == gone.frontend;
  };
  if (const auto again = std::ranges::find_if(added_again_, named); again != added_again_.end()) {
    added_again_.erase(again);
    return {};
  }
  if (std::erase_if(regions, named) == 0) return Error{0, "no such memory region"};
  return use_regions(std::move(regions));
}

Result<void> Backend::set_log_base(VhostMessage& request, VhostMessage& reply) {
  if ((protocol_features_ & kProtocolLogShmfd) == 0) return Error{0, "log_shmfd was not negotiated"};
  const auto where = request.as<VhostLog>();
  if (where.bytes > kMaxLogBytes) return Error{0, "a dirty log of more than 4 GiB"};
  auto log = DirtyLog::map(request.fds.front().get(), where.offset, where.bytes);
  if (!log) return log.error();
  if (logging()) {
    reconfigure(features_, memory_, std::move(*log));
  } else {
    log_ = std::move(*log);
  }
  reply.set(where);
  return {};
}

// The descriptor would tell the front-end about new bits in the log. Nobody waits on it; it is closed with the message.
Result<void> Backend::set_log_fd(VhostMessage&, VhostMessage&) { return {}; }

bool Backend::logging() const { return features_ && has_feature(*features_, VHOST_F_LOG_ALL); }

std::shared_ptr<DirtyLog> Backend::active_log() const { return logging() ? log_ : nullptr; }

}  // namespace sw
