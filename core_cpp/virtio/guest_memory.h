// SPDX-License-Identifier: Apache-2.0
// GuestMemory: the only thing that turns a guest address into a pointer. An immutable table of mapped regions; a change
// of the guest's memory makes a new table, and queues get it while their port is paused.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/mmap.h"
#include "base/result.h"

namespace sw {

// Address kinds are types, so that they cannot be mixed up.
struct GuestPhys {
  uint64_t value;
};  // what descriptors hold
struct FrontendVirt {
  uint64_t value;
};  // what SET_VRING_ADDR holds: the front-end's own virtual addresses

// One mapped region. Shared by the tables that contain it, unmapped with the last of them. The range is registered with
// the SIGBUS guard while it is mapped: a guest that truncates its memory file reads zeros instead of killing the
// switch.
class MappedRegion {
 public:
  // Map `bytes` at `mmap_offset` of `fd` (duplicated nowhere, may be closed afterwards). Fails with a sentence for
  // every bad input: size 0, any sum wrapping, region past the end of the file, misaligned offset, not mappable.
  static Result<std::shared_ptr<MappedRegion>> map(int fd, GuestPhys guest, uint64_t bytes, FrontendVirt frontend,
                                                   uint64_t mmap_offset);
  // The same of a file that the kernel made for a device address range (VDUSE).
  static Result<std::shared_ptr<MappedRegion>> map_from_kernel(int fd, GuestPhys guest, uint64_t bytes,
                                                               uint64_t mmap_offset);
  // A region over memory somebody else owns (our own guests' rings, tests).
  static std::shared_ptr<MappedRegion> borrow(void* host, GuestPhys guest, uint64_t bytes, FrontendVirt frontend);
  ~MappedRegion();

  MappedRegion(const MappedRegion&) = delete;
  MappedRegion& operator=(const MappedRegion&) = delete;

  const uint64_t guest;  // first guest-physical address
  const uint64_t bytes;
  const uint64_t frontend;  // the same first byte in the front-end's address space
  uint8_t* const host;      // the same first byte here
  // File identity and offset: an unchanged region of a new memory table keeps its mapping.
  uint64_t device = 0;
  uint64_t inode = 0;
  uint64_t file_offset = 0;
  // True once the guard had to put zero pages over a hole: the port must be stopped and its guest told.
  [[nodiscard]] bool faulted() const;

 private:
  static Result<std::shared_ptr<MappedRegion>> map_file(int fd, GuestPhys guest, uint64_t bytes, FrontendVirt frontend,
                                                        uint64_t mmap_offset, bool from_kernel);
  MappedRegion(uint64_t first_guest, uint64_t size, uint64_t first_frontend, uint8_t* first);
  Mapping mapping_;
  int guard_slot_ = -1;
};

class GuestMemory {
 public:
  GuestMemory() = default;
  // Refuses overlapping regions (in guest-physical space). Sorted by guest address inside.
  static Result<std::shared_ptr<const GuestMemory>> make(std::vector<std::shared_ptr<MappedRegion>> regions);

  // A pointer to `guest` and how many bytes from there are contiguous here, at most `bytes`; nullptr if the first byte
  // is not guest memory. The caller loops when contiguous < bytes: buffers may span regions that are adjacent for the
  // guest.
  uint8_t* translate(GuestPhys guest, uint64_t bytes, uint64_t& contiguous) const;
  // The whole range in one piece, or nullptr. For rings.
  uint8_t* translate_whole(GuestPhys guest, uint64_t bytes) const;
  uint8_t* translate_whole(FrontendVirt address, uint64_t bytes) const;

  // One region as the data path sees it: 24 bytes, no pointer chasing.
  struct Range {
    uint64_t guest;
    uint64_t bytes;
    uint8_t* host;
  };
  // The region that holds `guest`, or nullptr. Valid as long as the table.
  [[nodiscard]] const Range* find(GuestPhys guest) const;
  // The guest address of a host pointer; false if it points into no region.
  bool guest_address(const uint8_t* host, GuestPhys& guest) const;

  [[nodiscard]] const std::vector<std::shared_ptr<MappedRegion>>& regions() const { return regions_; }
  [[nodiscard]] bool faulted() const;

 private:
  std::vector<Range> ranges_;  // sorted by guest address, disjoint
  std::vector<std::shared_ptr<MappedRegion>> regions_;
};

}  // namespace sw
