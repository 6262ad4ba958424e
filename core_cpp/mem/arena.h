// SPDX-License-Identifier: Apache-2.0
// Arena: hands out pieces of a HugeRegion for long-lived tables, first fit, and takes them back. What does not fit
// comes from the heap. One thread at a time (the control lock).
#pragma once

#include <cstddef>
#include <map>
#include <memory_resource>

#include "mem/region.h"

namespace sw {

class Arena final : public std::pmr::memory_resource {
 public:
  Arena() = default;  // without a region: everything comes from the heap
  explicit Arena(HugeRegion region);

  [[nodiscard]] size_t size() const { return region_.size(); }
  [[nodiscard]] size_t used() const { return used_; }
  [[nodiscard]] size_t page_bytes() const { return region_.page_bytes(); }

 private:
  void* do_allocate(size_t bytes, size_t alignment) override;
  void do_deallocate(void* pointer, size_t bytes, size_t alignment) override;
  [[nodiscard]] bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

  HugeRegion region_;
  std::map<size_t, size_t> free_;  // offset -> bytes, never adjacent
  size_t used_ = 0;
};

}  // namespace sw
