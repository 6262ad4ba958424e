// SPDX-License-Identifier: Apache-2.0
// Maps a range of a file that a peer handed us (guest memory, dirty log), with every check that such a file needs.
#pragma once

#include <cstdint>
#include <string>

#include "base/mmap.h"
#include "base/result.h"

namespace sw {

struct SharedFileRange {
  Mapping mapping;           // whole pages around the range
  uint8_t* first = nullptr;  // the range's first byte
  uint64_t device = 0;
  uint64_t inode = 0;
  uint64_t page_bytes = 0;  // the file's page size: huge for hugetlb
};

// `what` names the range in messages ("memory region at 0x0"). The file must reach past the end of the range now; a
// later truncation is the SIGBUS guard's business. The file descriptor may be closed afterwards. `from_kernel`: a file
// that the kernel made may be of another kind than a memory file, and then has no size of its own.
Result<SharedFileRange> map_shared_file(const std::string& what, int fd, uint64_t offset, uint64_t bytes,
                                        bool from_kernel = false);

}  // namespace sw
