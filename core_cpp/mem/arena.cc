// SPDX-License-Identifier: Apache-2.0
#include "mem/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace sw {

namespace {

constexpr size_t kGranule = 64;  // a cache line: pieces never share one

size_t rounded(size_t bytes) { return (bytes + kGranule - 1) / kGranule * kGranule; }

// A piece from the heap that fills half a huge page or more gets whole ones, if the kernel has some: tables are looked
// up at random, and every small page would be a TLB miss.
struct HeapPiece {
  size_t bytes, alignment;
  bool huge;

  HeapPiece(size_t wanted, size_t wanted_alignment)
      : bytes(wanted), alignment(wanted_alignment), huge(wanted >= kHugePage2M / 2) {
    if (!huge) return;
    bytes = (wanted + kHugePage2M - 1) / kHugePage2M * kHugePage2M;
    alignment = std::max(wanted_alignment, kHugePage2M);
  }
};

}  // namespace

Arena::Arena(HugeRegion region) : region_(std::move(region)) { free_.emplace(0, region_.size()); }

void* Arena::do_allocate(size_t bytes, size_t alignment) {
  const size_t wanted = rounded(std::max<size_t>(bytes, 1));
  const size_t step = std::max(alignment, kGranule);
  for (auto range = free_.begin(); range != free_.end(); ++range) {
    const auto [offset, size] = *range;
    const size_t start = (offset + step - 1) / step * step;  // the region itself is page-aligned
    if (start + wanted > offset + size) continue;
    free_.erase(range);
    if (start > offset) free_.emplace(offset, start - offset);
    if (start + wanted < offset + size) free_.emplace(start + wanted, offset + size - start - wanted);
    used_ += wanted;
    return region_.data() + start;
  }
  const HeapPiece piece(bytes, alignment);
  void* const at = std::pmr::new_delete_resource()->allocate(piece.bytes, piece.alignment);
  if (piece.huge) (void)::madvise(at, piece.bytes, MADV_HUGEPAGE);  // only a wish
  return at;
}

void Arena::do_deallocate(void* pointer, size_t bytes, size_t alignment) {
  auto* const byte = static_cast<std::byte*>(pointer);
  if (byte < region_.data() || byte >= region_.data() + region_.size()) {
    const HeapPiece piece(bytes, alignment);
    std::pmr::new_delete_resource()->deallocate(pointer, piece.bytes, piece.alignment);
    return;
  }
  size_t offset = static_cast<size_t>(byte - region_.data());
  size_t size = rounded(std::max<size_t>(bytes, 1));
  used_ -= size;
  const auto next = free_.lower_bound(offset);
  if (next != free_.end() && next->first == offset + size) {
    size += next->second;
    free_.erase(next);
  }
  const auto after = free_.lower_bound(offset);
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == offset) {
      before->second += size;
      return;
    }
  }
  free_.emplace(offset, size);
}

}  // namespace sw
