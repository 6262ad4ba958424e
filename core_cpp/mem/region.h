// SPDX-License-Identifier: Apache-2.0
// HugeRegion: a piece of our own memory, on huge pages when there are any, that a peer can map too (it is a memfd).
//
// Theory of operation. Every page is allocated while the region is made: mmap reserves the huge pages, mbind chooses
// the node, fallocate takes the pages and reports a shortage as an error. What would otherwise be a SIGBUS on first
// touch, in the middle of forwarding, is so a sentence at start. The file is sealed against shrinking, so a peer cannot
// take the pages away either.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/fd.h"
#include "base/mmap.h"
#include "base/result.h"

namespace sw {

enum class HugePages : uint8_t {
  kAuto,      // huge pages if there are enough, otherwise normal pages and a warning
  kRequired,  // huge pages or an error
  kOff,       // normal pages
};

inline constexpr size_t kHugePage2M = size_t{2} << 20;
inline constexpr size_t kHugePage1G = size_t{1} << 30;

struct RegionRequest {
  std::string name;  // for messages and /proc/PID/maps
  size_t bytes = 0;  // rounded up to whole pages
  HugePages huge = HugePages::kAuto;
  size_t huge_page_bytes = kHugePage2M;  // or kHugePage1G; kAuto tries 2 MB pages when 1 GB pages are missing
  int numa_node = -1;                    // -1: wherever the kernel likes
};

class HugeRegion {
 public:
  static Result<HugeRegion> make(const RegionRequest& request);

  [[nodiscard]] std::byte* data() const { return mapping_.data(); }
  [[nodiscard]] size_t size() const { return mapping_.size(); }
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] size_t page_bytes() const { return page_bytes_; }
  // What a person should know and do (huge pages missing), empty if all is as asked.
  [[nodiscard]] const std::string& warning() const { return warning_; }

 private:
  UniqueFd fd_;
  Mapping mapping_;
  size_t page_bytes_ = 0;
  std::string warning_;

  friend struct RegionMaker;
};

// What the kernel says about one size of huge pages, on the whole machine or on one node.
struct HugePagePool {
  bool supported = false;     // the kernel has pages of this size
  bool default_size = false;  // the size that sysctl vm.nr_hugepages means
  uint64_t total = 0;         // nr_hugepages
  uint64_t available = 0;     // free and not reserved by somebody
  std::string control;        // path of nr_hugepages for this size and node
};
HugePagePool read_huge_page_pool(size_t page_bytes, int numa_node);

// "64 huge pages of 2 MB are missing (128 needed, 64 available); reserve them with: sysctl -w vm.nr_hugepages=192"
std::string huge_page_advice(const HugePagePool& pool, size_t page_bytes, uint64_t needed, int numa_node);

}  // namespace sw
