// SPDX-License-Identifier: Apache-2.0
// XdpUmem: memory that AF_XDP sockets receive into and send from, shared by the sockets of all afxdp ports.
//
// Theory of operation. A UMEM is one region, on huge pages if there are any, registered with the kernel once and cut into
// slices; a queue has one slice to itself: half of its chunks for receiving, half for sending. So queues share the pages
// and the registration, and never a lock. The first socket of a UMEM registers it, the others join it (XDP_SHARED_UMEM)
// through any socket of it that is bound. Zero-copy or copying belongs to the UMEM as the kernel sees it, so there are
// UMEMs of both kinds. A UMEM lives as long as one of its slices is in use; when all are taken another one is made.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "mem/region.h"

namespace sw {

inline constexpr uint32_t kXdpChunkBytes = 2048;
inline constexpr uint32_t kXdpHeadroom = 256;                                // the kernel's, in received chunks
inline constexpr uint32_t kXdpReceiveBytes = kXdpChunkBytes - kXdpHeadroom;  // of a frame in one chunk
inline constexpr uint32_t kXdpRingEntries = 2048;                            // of each ring, and chunks a direction
inline constexpr size_t kXdpSliceBytes = size_t{2} * kXdpRingEntries * kXdpChunkBytes;
inline constexpr uint32_t kXdpSlices = 4;  // of a UMEM: 32 MB

struct XdpMemoryOptions {
  HugePages huge = HugePages::kAuto;
  size_t huge_page_bytes = kHugePage2M;
  int numa_node = -1;
};

// How the sockets of a UMEM are bound.
struct XdpMode {
  bool zero_copy = false;
  bool need_wakeup = false;
  bool fragments = false;  // frames in several chunks
};

class XdpUmem {
 public:
  HugeRegion region;
  XdpMode mode;
  std::array<int, kXdpSlices> sockets;  // bound ones, by slice; -1: slice is free or its socket not bound yet
  std::array<bool, kXdpSlices> taken{};
  // A device with zero-copy may write into the chunks of a closed socket until the kernel has reset its queue, which it
  // does in the background: such slices rest a while. monotonic_ns() until when.
  std::array<uint64_t, kXdpSlices> resting{};

  XdpUmem() { sockets.fill(-1); }
};

// One queue's part of a UMEM; gives it back when it goes.
class XdpSlice {
 public:
  XdpSlice() = default;
  // A slice of a new UMEM, to be registered by the caller's socket.
  static Result<XdpSlice> make(const XdpMemoryOptions& options);
  // A free slice of a UMEM that has a bound socket and this mode; empty if there is none.
  static XdpSlice join(bool zero_copy, bool fragments);

  XdpSlice(XdpSlice&& other) noexcept = default;
  XdpSlice& operator=(XdpSlice&& other) noexcept;
  XdpSlice(const XdpSlice&) = delete;
  XdpSlice& operator=(const XdpSlice&) = delete;
  ~XdpSlice() { give_back(); }

  explicit operator bool() const { return umem_ != nullptr; }
  [[nodiscard]] const XdpUmem& umem() const { return *umem_; }
  [[nodiscard]] uint8_t* base() const { return reinterpret_cast<uint8_t*>(umem_->region.data()); }
  [[nodiscard]] uint64_t receive_chunks() const { return number_ * kXdpSliceBytes; }  // address of the first one
  [[nodiscard]] uint64_t send_chunks() const { return receive_chunks() + kXdpSliceBytes / 2; }
  [[nodiscard]] int bound_socket() const;  // of the same UMEM, to join it by
  // The socket of this slice is bound; `mode` if it was the first.
  void bound(int socket, const XdpMode& mode);

 private:
  void give_back();

  std::shared_ptr<XdpUmem> umem_;
  uint32_t number_ = 0;
};

}  // namespace sw
