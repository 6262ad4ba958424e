// SPDX-License-Identifier: Apache-2.0
#include "mem/region.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <fstream>
#include <limits>
#include <optional>
#include <utility>

namespace sw {

namespace {

Error no_such_node(int code, const RegionRequest& request) {
  std::string nodes = "unknown";
  std::getline(std::ifstream("/sys/devices/system/node/online"), nodes);
  return {code, "place " + request.name + " on NUMA node " + std::to_string(request.numa_node) +
                    " (nodes of this machine: " + nodes + ")"};
}

constexpr int kMaxNumaNodes = 1024;

std::optional<uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

uint64_t default_huge_page_kb() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  uint64_t value = 0;
  while (file >> key) {
    if (key == "Hugepagesize:" && file >> value) return value;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return 0;
}

std::string page_name(size_t page_bytes) {
  return page_bytes >= kHugePage1G ? std::to_string(page_bytes / kHugePage1G) + " GB"
                                   : std::to_string(page_bytes >> 20) + " MB";
}

// Raw system call: libnuma would be a dependency for one line. An error is fatal only if the caller named a node.
int bind_to_node(void* address, size_t bytes, int node, int mode) {
  constexpr size_t kWordBits = 8 * sizeof(unsigned long);
  std::array<unsigned long, kMaxNumaNodes / kWordBits> mask{};
  mask.at(static_cast<size_t>(node) / kWordBits) = 1UL << (static_cast<size_t>(node) % kWordBits);
  // The kernel reads maxnode - 1 bits.
  return static_cast<int>(::syscall(SYS_mbind, address, bytes, mode, mask.data(), kMaxNumaNodes + 1UL, 0U));
}

}  // namespace

// One attempt with one page size.
struct RegionMaker {
  static Result<HugeRegion> attempt(const RegionRequest& request, size_t page_bytes, bool huge) {
    const size_t bytes = (request.bytes + page_bytes - 1) / page_bytes * page_bytes;
    const std::string what = std::to_string(bytes >> 20) + " MB for " + request.name;
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    if (huge) flags |= MFD_HUGETLB | (page_bytes == kHugePage1G ? MFD_HUGE_1GB : MFD_HUGE_2MB);
    HugeRegion region;
    region.fd_.reset(::memfd_create(request.name.c_str(), flags));
    if (!region.fd_) return Error{errno, "create a memory file of " + what};
    if (::ftruncate(region.fd_.get(), static_cast<off_t>(bytes)) != 0) {
      return Error{errno, "size a memory file of " + what};
    }
    // Without MAP_NORESERVE: for huge pages the kernel sets them aside now or says ENOMEM.
    void* const address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region.fd_.get(), 0);
    if (address == MAP_FAILED) return Error{errno, "map " + what};
    region.mapping_ = Mapping(address, bytes);
    if (auto placed = place(request, region, huge); !placed) return placed.error();
    // The reservation of mmap is for the machine, not for a node or a control group: only taking the pages is proof.
    if (::fallocate(region.fd_.get(), 0, 0, static_cast<off_t>(bytes)) != 0) return Error{errno, "allocate " + what};
    if (::fcntl(region.fd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) return Error{errno, "seal " + what};
    region.page_bytes_ = page_bytes;
    return region;
  }

  static Result<void> place(const RegionRequest& request, const HugeRegion& region, bool huge) {
    if (request.numa_node < 0) return {};
    // Normal pages only prefer the node: a strict binding would call the OOM killer when the node is full.
    const int mode = huge ? MPOL_BIND : MPOL_PREFERRED;
    if (bind_to_node(region.data(), region.size(), request.numa_node, mode) == 0) return {};
    if (errno == ENOSYS && request.numa_node == 0) return {};  // a kernel without NUMA has just this node
    return no_such_node(errno, request);
  }

  static void warn(HugeRegion& region, std::string warning) { region.warning_ = std::move(warning); }
};

HugePagePool read_huge_page_pool(size_t page_bytes, int numa_node) {
  const uint64_t page_kb = page_bytes >> 10;
  const std::string size = "/hugepages-" + std::to_string(page_kb) + "kB/";
  const std::string machine = "/sys/kernel/mm/hugepages" + size;
  const std::string node = "/sys/devices/system/node/node" + std::to_string(numa_node) + "/hugepages" + size;
  const std::string& base = numa_node < 0 ? machine : node;
  HugePagePool pool;
  const auto total = read_number(base + "nr_hugepages");
  const auto unused = read_number(base + "free_hugepages");
  if (!total || !unused) return pool;
  pool.supported = true;
  pool.default_size = default_huge_page_kb() == page_kb;
  pool.total = *total;
  // Reservations are counted for the machine only; on a node the free pages are the best that can be known.
  const uint64_t reserved = numa_node < 0 ? read_number(base + "resv_hugepages").value_or(0) : 0;
  pool.available = *unused > reserved ? *unused - reserved : 0;
  pool.control = base + "nr_hugepages";
  return pool;
}

std::string huge_page_advice(const HugePagePool& pool, size_t page_bytes, uint64_t needed, int numa_node) {
  const std::string where = numa_node < 0 ? "" : " on NUMA node " + std::to_string(numa_node);
  if (!pool.supported) return "this kernel offers no huge pages of " + page_name(page_bytes) + where;
  if (pool.available >= needed) {
    return "the kernel refused " + std::to_string(needed) + " huge pages of " + page_name(page_bytes) + where +
           " although " + std::to_string(pool.available) +
           " are available: check the hugetlb limit of this control group";
  }
  const uint64_t missing = needed - pool.available;
  const std::string total = std::to_string(pool.total + missing);
  const std::string command = numa_node < 0 && pool.default_size ? "sysctl -w vm.nr_hugepages=" + total
                                                                 : "echo " + total + " > " + pool.control;
  return std::to_string(missing) + (missing == 1 ? " huge page of " : " huge pages of ") + page_name(page_bytes) +
         (missing == 1 ? " is missing" : " are missing") + where + " (" + std::to_string(needed) + " needed, " +
         std::to_string(pool.available) + " available); reserve them with: " + command;
}

Result<HugeRegion> HugeRegion::make(const RegionRequest& request) {
  if (request.bytes == 0) return Error{EINVAL, "make the memory region " + request.name + " of 0 bytes"};
  if (request.numa_node >= kMaxNumaNodes) {
    return no_such_node(EINVAL, request);
  }
  const auto normal_page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  if (request.huge == HugePages::kOff) return RegionMaker::attempt(request, normal_page, false);

  const size_t page = request.huge_page_bytes;
  if (page != kHugePage2M && page != kHugePage1G) {
    return Error{EINVAL, "use huge pages of " + std::to_string(page) + " bytes for " + request.name};
  }
  // Read before the attempt, which takes and gives back pages.
  const HugePagePool pool = read_huge_page_pool(page, request.numa_node);
  auto region = RegionMaker::attempt(request, page, true);
  if (region) return region;
  const uint64_t needed = (request.bytes + page - 1) / page;
  const std::string advice = huge_page_advice(pool, page, needed, request.numa_node);
  if (request.huge == HugePages::kRequired) {
    return Error{0, "get huge pages for " + request.name + ": " + advice};
  }
  auto fallback = page == kHugePage1G ? RegionMaker::attempt(request, kHugePage2M, true)
                                      : RegionMaker::attempt(request, normal_page, false);
  if (!fallback && page == kHugePage1G) fallback = RegionMaker::attempt(request, normal_page, false);
  if (fallback) {
    const bool smaller_huge = fallback->page_bytes() == kHugePage2M;
    RegionMaker::warn(*fallback, request.name + " is on " +
                                     (smaller_huge ? "huge pages of 2 MB" : "normal pages, which is slower") + ": " +
                                     advice);
  }
  return fallback;
}

}  // namespace sw
