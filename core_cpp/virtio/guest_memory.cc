// SPDX-License-Identifier: Apache-2.0
#include "virtio/guest_memory.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <string>
#include <utility>

#include "virtio/shared_file.h"
#include "virtio/sigbus_guard.h"

namespace sw {

namespace {

std::string hex(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

bool wraps(uint64_t first, uint64_t bytes) { return first + bytes < first; }

// [address, address + bytes) lies in a region of `region_bytes` bytes that begins at `first`. Never wraps.
bool inside(uint64_t first, uint64_t region_bytes, uint64_t address, uint64_t bytes) {
  const uint64_t offset = address - first;
  return offset < region_bytes && bytes <= region_bytes - offset;
}

}  // namespace

MappedRegion::MappedRegion(uint64_t first_guest, uint64_t size, uint64_t first_frontend, uint8_t* first)
    : guest(first_guest), bytes(size), frontend(first_frontend), host(first) {}

MappedRegion::~MappedRegion() { sigbus_guard_remove(guard_slot_); }

Result<std::shared_ptr<MappedRegion>> MappedRegion::map(int fd, GuestPhys guest, uint64_t bytes, FrontendVirt frontend,
                                                        uint64_t mmap_offset) {
  return map_file(fd, guest, bytes, frontend, mmap_offset, /*from_kernel=*/false);
}

Result<std::shared_ptr<MappedRegion>> MappedRegion::map_from_kernel(int fd, GuestPhys guest, uint64_t bytes,
                                                                    uint64_t mmap_offset) {
  return map_file(fd, guest, bytes, FrontendVirt{0}, mmap_offset, /*from_kernel=*/true);
}

Result<std::shared_ptr<MappedRegion>> MappedRegion::map_file(int fd, GuestPhys guest, uint64_t bytes,
                                                             FrontendVirt frontend, uint64_t mmap_offset,
                                                             bool from_kernel) {
  const std::string what = "memory region at guest address " + hex(guest.value);
  if (wraps(guest.value, bytes)) return Error{EINVAL, "map " + what + ": guest address plus size overflow"};
  if (wraps(frontend.value, bytes)) {
    return Error{EINVAL, "map " + what + ": the front-end's address plus size overflow"};
  }
  auto range = map_shared_file(what, fd, mmap_offset, bytes, from_kernel);
  if (!range) return range.error();

  std::shared_ptr<MappedRegion> region(new MappedRegion(guest.value, bytes, frontend.value, range->first));
  region->mapping_ = std::move(range->mapping);
  region->device = range->device;
  region->inode = range->inode;
  region->file_offset = mmap_offset;
  region->guard_slot_ = sigbus_guard_add(region->mapping_.data(), region->mapping_.size(), range->page_bytes);
  if (region->guard_slot_ < 0) return Error{ENOSPC, "map " + what + ": all ports together have too many regions"};
  return region;
}

std::shared_ptr<MappedRegion> MappedRegion::borrow(void* host, GuestPhys guest, uint64_t bytes, FrontendVirt frontend) {
  return std::shared_ptr<MappedRegion>(
      new MappedRegion(guest.value, bytes, frontend.value, static_cast<uint8_t*>(host)));
}

bool MappedRegion::faulted() const { return sigbus_guard_faulted(guard_slot_); }

Result<std::shared_ptr<const GuestMemory>> GuestMemory::make(std::vector<std::shared_ptr<MappedRegion>> regions) {
  std::sort(regions.begin(), regions.end(), [](const auto& a, const auto& b) { return a->guest < b->guest; });
  auto memory = std::make_shared<GuestMemory>();
  for (const auto& region : regions) {
    if (region->bytes == 0 || wraps(region->guest, region->bytes)) {
      return Error{EINVAL, "use the memory table: the region at " + hex(region->guest) + " is empty or wraps"};
    }
    if (!memory->ranges_.empty()) {
      const Range& before = memory->ranges_.back();
      if (region->guest - before.guest < before.bytes) {
        return Error{EINVAL, "use the memory table: the regions at guest addresses " + hex(before.guest) + " and " +
                                 hex(region->guest) + " overlap"};
      }
    }
    memory->ranges_.push_back({region->guest, region->bytes, region->host});
  }
  memory->regions_ = std::move(regions);
  return std::shared_ptr<const GuestMemory>(std::move(memory));
}

const GuestMemory::Range* GuestMemory::find(GuestPhys guest) const {
  // The last region that begins at or before the address; a binary search costs the same for 2 regions as for 509.
  auto after = std::upper_bound(ranges_.begin(), ranges_.end(), guest.value,
                                [](uint64_t address, const Range& range) { return address < range.guest; });
  if (after == ranges_.begin()) return nullptr;
  const Range& range = *--after;
  return guest.value - range.guest < range.bytes ? &range : nullptr;
}

uint8_t* GuestMemory::translate(GuestPhys guest, uint64_t bytes, uint64_t& contiguous) const {
  const Range* const range = find(guest);
  if (range == nullptr) {
    contiguous = 0;
    return nullptr;
  }
  const uint64_t offset = guest.value - range->guest;
  contiguous = std::min(bytes, range->bytes - offset);
  return range->host + offset;
}

uint8_t* GuestMemory::translate_whole(GuestPhys guest, uint64_t bytes) const {
  const Range* const range = find(guest);
  if (range == nullptr || !inside(range->guest, range->bytes, guest.value, bytes)) return nullptr;
  return range->host + (guest.value - range->guest);
}

uint8_t* GuestMemory::translate_whole(FrontendVirt address, uint64_t bytes) const {
  for (const auto& region : regions_) {
    if (inside(region->frontend, region->bytes, address.value, bytes)) {
      return region->host + (address.value - region->frontend);
    }
  }
  return nullptr;
}

bool GuestMemory::guest_address(const uint8_t* host, GuestPhys& guest) const {
  for (const Range& range : ranges_) {
    if (host >= range.host && host < range.host + range.bytes) {
      guest.value = range.guest + static_cast<uint64_t>(host - range.host);
      return true;
    }
  }
  return false;
}

bool GuestMemory::faulted() const {
  return std::any_of(regions_.begin(), regions_.end(), [](const auto& region) { return region->faulted(); });
}

}  // namespace sw
