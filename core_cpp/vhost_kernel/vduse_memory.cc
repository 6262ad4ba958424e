// SPDX-License-Identifier: Apache-2.0
#include "vhost_kernel/vduse_memory.h"

#include <linux/vduse.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace sw {

namespace {

// vhost_vdpa's own limit is 2048; more would cost this process its mappings (vm.max_map_count is 65530).
constexpr size_t kMostRanges = 4096;

}  // namespace

bool VduseMemory::refresh(const VduseDevice& device) {
  std::vector<std::shared_ptr<MappedRegion>> regions;
  problem_.clear();
  uint64_t next = 0;
  for (size_t ranges = 0;; ++ranges) {
    vduse_iotlb_entry entry{};
    entry.start = next;
    entry.last = UINT64_MAX;
    const UniqueFd file(device.iotlb_file(entry));
    if (!file) break;
    if (ranges == kMostRanges) {
      problem_ = "the driver mapped more than " + std::to_string(kMostRanges) + " ranges; the rest is left out";
      break;
    }
    if (entry.last < entry.start || entry.start < next) break;  // no answer to what was asked
    const uint64_t bytes = entry.last - entry.start + 1;
    const auto same = [&](const std::shared_ptr<MappedRegion>& known) {
      return known->guest == entry.start && known->bytes == bytes && known->file_offset == entry.offset;
    };
    const auto& mapped = table_->regions();
    const auto known = std::find_if(mapped.begin(), mapped.end(), same);
    if (known != mapped.end()) {
      regions.push_back(*known);
    } else if (entry.perm != VDUSE_ACCESS_RW) {
      // Mapped read-only, a receive buffer there would end this process; a writable copy would not be the driver's.
      problem_ = "a range that may only be read or only be written is left out (a virtual IOMMU makes such)";
    } else if (auto region = MappedRegion::map_from_kernel(file.get(), GuestPhys{entry.start}, bytes, entry.offset)) {
      regions.push_back(std::move(*region));
    } else {
      problem_ = region.error().message();
    }
    if (entry.last == UINT64_MAX) break;
    next = entry.last + 1;
  }
  return use(std::move(regions));
}

bool VduseMemory::invalidate(uint64_t first, uint64_t last) {
  std::vector<std::shared_ptr<MappedRegion>> kept;
  for (const auto& region : table_->regions()) {
    if (region->guest > last || region->guest + (region->bytes - 1) < first) kept.push_back(region);
  }
  return use(std::move(kept));
}

void VduseMemory::clear() { use({}); }

bool VduseMemory::use(std::vector<std::shared_ptr<MappedRegion>> regions) {
  if (regions == table_->regions()) return false;  // both sorted by address
  auto table = GuestMemory::make(std::move(regions));
  if (!table) {
    problem_ = table.error().message();
    table_ = std::make_shared<GuestMemory>();
  } else {
    table_ = std::move(*table);
  }
  return true;
}

}  // namespace sw
