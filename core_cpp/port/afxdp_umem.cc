// SPDX-License-Identifier: Apache-2.0
#include "port/afxdp_umem.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace sw {

namespace {

// All UMEMs of the process. Control side only; the lock is for processes with several datapaths.
struct Umems {
  std::mutex mutex;
  std::vector<std::weak_ptr<XdpUmem>> list;
};

Umems& umems() {
  static Umems all;
  return all;
}

constexpr uint64_t kRestNs = 2'000'000'000;

int first_free(const XdpUmem& umem) {
  const uint64_t now = monotonic_ns();
  for (size_t i = 0; i < kXdpSlices; ++i) {
    if (!umem.taken.at(i) && umem.resting.at(i) <= now) return static_cast<int>(i);
  }
  return -1;
}

bool has_bound_socket(const XdpUmem& umem) {
  return std::any_of(umem.sockets.begin(), umem.sockets.end(), [](int socket) { return socket >= 0; });
}

}  // namespace

Result<XdpSlice> XdpSlice::make(const XdpMemoryOptions& options) {
  auto region = HugeRegion::make({.name = "afxdp-frames",
                                  .bytes = kXdpSlices * kXdpSliceBytes,
                                  .huge = options.huge,
                                  .huge_page_bytes = options.huge_page_bytes,
                                  .numa_node = options.numa_node});
  if (!region) return region.error();
  const std::lock_guard guard(umems().mutex);
  XdpSlice slice;
  slice.umem_ = std::make_shared<XdpUmem>();
  slice.umem_->region = std::move(*region);
  slice.umem_->taken[0] = true;
  std::erase_if(umems().list, [](const auto& umem) { return umem.expired(); });
  umems().list.push_back(slice.umem_);
  return slice;
}

XdpSlice XdpSlice::join(bool zero_copy, bool fragments) {
  const std::lock_guard guard(umems().mutex);
  XdpSlice slice;
  for (const auto& weak : umems().list) {
    auto umem = weak.lock();
    if (!umem || umem->mode.zero_copy != zero_copy || (fragments && !umem->mode.fragments)) continue;
    const int free = first_free(*umem);
    if (free < 0 || !has_bound_socket(*umem)) continue;
    umem->taken.at(static_cast<size_t>(free)) = true;
    slice.umem_ = std::move(umem);
    slice.number_ = static_cast<uint32_t>(free);
    break;
  }
  return slice;
}

XdpSlice& XdpSlice::operator=(XdpSlice&& other) noexcept {
  if (this != &other) {
    give_back();
    umem_ = std::move(other.umem_);
    number_ = other.number_;
  }
  return *this;
}

int XdpSlice::bound_socket() const {
  const std::lock_guard guard(umems().mutex);
  const auto found = std::find_if(umem_->sockets.begin(), umem_->sockets.end(), [](int s) { return s >= 0; });
  return found == umem_->sockets.end() ? -1 : *found;
}

void XdpSlice::bound(int socket, const XdpMode& mode) {
  const std::lock_guard guard(umems().mutex);
  if (!has_bound_socket(*umem_)) umem_->mode = mode;
  umem_->sockets.at(number_) = socket;
}

void XdpSlice::give_back() {
  if (!umem_) return;
  const std::lock_guard guard(umems().mutex);
  umem_->taken.at(number_) = false;
  umem_->sockets.at(number_) = -1;
  if (umem_->mode.zero_copy) umem_->resting.at(number_) = monotonic_ns() + kRestNs;
  umem_.reset();
}

}  // namespace sw
