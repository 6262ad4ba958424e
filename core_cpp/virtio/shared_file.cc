// SPDX-License-Identifier: Apache-2.0
#include "virtio/shared_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>

namespace sw {

Result<SharedFileRange> map_shared_file(const std::string& what, int fd, uint64_t offset, uint64_t bytes,
                                        bool from_kernel) {
  const auto small_page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  if (bytes == 0) return Error{EINVAL, "map " + what + ": its size is 0"};
  if (offset + bytes < offset || offset + bytes > INT64_MAX) {
    return Error{EINVAL, "map " + what + ": file offset plus size overflow"};
  }
  if (offset % small_page != 0)
    return Error{EINVAL, "map " + what + ": file offset is not a multiple of the page size"};

  // Asked first, as it asks no file system: one in user space (FUSE) answers when it likes, and a page fault of a worker
  // waits for it, or for a disk.
  if (!from_kernel && ::fcntl(fd, F_GET_SEALS) < 0) {
    return Error{EINVAL, "map " + what +
                             ": the descriptor is not shared memory (in QEMU use memory-backend-memfd, or "
                             "memory-backend-file on tmpfs or hugetlbfs)"};
  }
  struct stat status{};
  if (::fstat(fd, &status) != 0) return Error{errno, "map " + what + ": stat the file"};
  const bool memory_file = S_ISREG(status.st_mode);
  if (memory_file && offset + bytes > static_cast<uint64_t>(status.st_size)) {
    return Error{EINVAL, "map " + what + ": it ends at byte " + std::to_string(offset + bytes) +
                             " of a file that has only " + std::to_string(status.st_size)};
  }

  // hugetlb files take offset and length in whole huge pages only, and munmap wants the same length again.
  const auto block = static_cast<uint64_t>(std::max<int64_t>(status.st_blksize, 1));
  const uint64_t page = std::has_single_bit(block) ? std::max(block, small_page) : small_page;
  const uint64_t begin = offset & ~(page - 1);
  const uint64_t end = (offset + bytes + page - 1) & ~(page - 1);
  void* const address = ::mmap(nullptr, end - begin, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(begin));
  if (address == MAP_FAILED) return Error{errno, "map " + what};
  ::madvise(address, end - begin, MADV_DONTDUMP);  // a core file of ours must not hold guests' memory

  SharedFileRange range;
  range.mapping = Mapping(address, end - begin);
  range.first = static_cast<uint8_t*>(address) + (offset - begin);
  range.device = status.st_dev;
  range.inode = status.st_ino;
  range.page_bytes = page;
  return range;
}

}  // namespace sw
