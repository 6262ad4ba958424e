// SPDX-License-Identifier: Apache-2.0
#include "port/afxdp_queue.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "port/afxdp_checksum.h"

namespace sw {

namespace {

constexpr uint64_t kChunkMask = ~uint64_t{kXdpChunkBytes - 1};
// Each call either sends, loses one frame or says "later": this many are more than a burst can need.
constexpr uint32_t kMaxKicks = 4 * kMaxBatch;
constexpr uint32_t kOldSendBudget = 32;

// The kernel or the device has no room for the moment.
bool is_for_now(int error) { return error == EAGAIN || error == EBUSY || error == ENOBUFS || error == ENOMEM; }

}  // namespace

int xdp_wake_sender(const XdpSocket& socket) {
  return ::sendto(socket.fd(), nullptr, 0, MSG_DONTWAIT, nullptr, 0) >= 0 ? 0 : errno;
}

// Descriptors of the frame that begins `first` entries ahead, 0 if its end is not there yet. Sets `bytes`.
uint32_t XdpRx::measure(uint32_t first, uint32_t available, uint32_t& bytes) const {
  bytes = 0;
  for (uint32_t count = 0; first + count < available;) {
    const xdp_desc& desc = socket_.rx.entry(first + count);
    bytes += desc.len;
    ++count;
    if ((desc.options & kXdpPktContd) == 0) return count;
  }
  return 0;
}

void XdpRx::fill(Batch& batch, uint32_t first, uint32_t chunks, uint32_t bytes) const {
  Frame& frame = batch.frames[batch.count++];
  const xdp_desc& start = socket_.rx.entry(first);
  const uint8_t* const data = chunk(start);
  frame.len = bytes;
  frame.head_len = std::min(start.len, kHeadBytes);
  std::memcpy(frame.head, data, frame.head_len);
  Segment* const segments = &batch.segments[batch.segments_used];
  frame.segments = segments;
  uint16_t count = 0;
  if (start.len > frame.head_len) segments[count++] = {data + frame.head_len, start.len - frame.head_len};
  for (uint32_t i = 1; i < chunks; ++i) {
    const xdp_desc& desc = socket_.rx.entry(first + i);
    segments[count++] = {chunk(desc), desc.len};
  }
  frame.segment_count = count;
  batch.segments_used += count;
  finish_received(frame, VnetHeader{});
}

bool XdpRx::peek(Batch& batch, PortWorkerCounters& drops) {
  kernel_drops.take_over(*counters_, drops);
  if (load_relaxed(socket_.tx_pending)) [[unlikely]] {
    store_relaxed(socket_.tx_pending, false);  // first, or it could undo what the sender says meanwhile
    if (is_for_now(xdp_wake_sender(socket_))) store_relaxed(socket_.tx_pending, true);
  }
  const uint32_t available = socket_.rx.filled();
  const uint32_t mtu = load_relaxed(link_.mtu);
  uint64_t frames = 0;
  uint64_t bytes = 0;
  for (taken_ = 0; frames < kMaxBatch && taken_ < available;) {
    uint32_t length = 0;
    const uint32_t chunks = measure(taken_, available, length);
    if (chunks == 0 || batch.segments_used + chunks > kMaxSegments) break;
    ++frames;
    bytes += length;
    const uint32_t first = taken_;
    taken_ += chunks;
    if (length < kEthHeaderBytes) {
      drops.drop_rx(DropReason::kFrameTooShort);
    } else if (length + kVlanTagBytes > kMaxFrameBytes) {
      drops.drop_rx(DropReason::kFrameTooLong);
    } else {
      fill(batch, first, chunks, length);
      if (!fix_checksums_) continue;
      Frame& frame = batch.frames[batch.count - 1];
      if (!restore_offload(frame, mtu)) {
        --batch.count;  // its segments stay used: they are few
        drops.drop_rx(DropReason::kFrameTooLong);
        continue;
      }
      batch.may_have_offloads |= frame.offload;
    }
  }
  counters_->frames.add(frames);
  counters_->bytes.add(bytes);
  return taken_ != 0;
}

// The fill ring has a place for every chunk of the slice.
void XdpRx::release() {
  for (uint32_t i = 0; i < taken_; ++i) socket_.fill.entry(i) = socket_.rx.entry(i).addr & kChunkMask;
  socket_.fill.produce(taken_);
  socket_.rx.consume(taken_);
  taken_ = 0;
}

void XdpRx::notify() {
  if (socket_.fill.needs_wakeup()) ::recvfrom(socket_.fd(), nullptr, 0, MSG_DONTWAIT, nullptr, nullptr);
}

// The socket is readable while its receive ring has entries, and an edge comes with every frame.
bool XdpRx::arm() {
  if (socket_.fill.needs_wakeup()) notify();
  return socket_.rx.filled_now() != 0 || load_relaxed(socket_.tx_pending);
}

XdpTx::XdpTx(XdpSocket& socket, const XdpLink& link, QueueCounters& counters)
    : TxQueue(counters), socket_(socket), link_(link), free_(kXdpRingEntries) {
  for (uint32_t i = 0; i < kXdpRingEntries; ++i) {
    free_[free_count_++] = socket.slice().send_chunks() + uint64_t{i} * kXdpChunkBytes;
  }
}

bool XdpTx::is_too_long(const Frame& frame) const {
  if (frame.len > kXdpChunkBytes && !socket_.mode().fragments) return true;
  return exceeds_mtu(frame, load_relaxed(link_.mtu));
}

void XdpTx::reap() {
  const uint32_t done = socket_.completion.filled_now();
  if (done == 0) return;
  for (uint32_t i = 0; i < done; ++i) free_[free_count_++] = socket_.completion.entry(i) & kChunkMask;
  socket_.completion.consume(done);
}

// A free chunk has a free place in the transmit ring: there are as many of both.
void XdpTx::put(const Frame& frame, uint32_t chunks) {
  uint32_t offset = 0;
  for (uint32_t i = 0; i < chunks; ++i) {
    const uint32_t part = std::min(frame.len - offset, kXdpChunkBytes);
    const uint64_t address = free_[--free_count_];
    copy_from_frame(frame, offset, socket_.slice().base() + address, part);
    socket_.tx.entry(written_++) = {address, part, i + 1 < chunks ? kXdpPktContd : 0};
    offset += part;
  }
}

void XdpTx::publish() {
  if (written_ == 0) return;
  socket_.tx.produce(written_);
  written_ = 0;
}

// The kernel sends within sendto when it copies: its return says how that went. The descriptors stay in the ring if it
// could not go on for now (EAGAIN, ENOBUFS: the device's queue or the send buffer is full) and when the interface is down.
XdpTx::Kicked XdpTx::kick() {
  Kicked result;
  if (socket_.mode().need_wakeup) {
    // Between what was published and the driver's wish: it stores the wish, then looks for more.
    if (socket_.mode().zero_copy) full_fence();
    if (!socket_.tx.needs_wakeup()) return result;
  }
  uint32_t left = socket_.tx.outstanding();
  // Kernels before 6.17 send 32 descriptors a call, and older ones do not show in the ring at once that they did.
  const uint32_t calls_for_all = left / kOldSendBudget + 1;
  for (uint32_t tries = 0; tries < kMaxKicks; ++tries) {
    const int error = xdp_wake_sender(socket_);
    wakeups_.add(1);
    const uint32_t before = left;
    left = socket_.tx.outstanding();
    if (error == 0) {
      store_relaxed(socket_.tx_pending, false);
      return result;
    }
    if (error == EBUSY && !socket_.mode().zero_copy) {
      ++result.lost;  // this one is gone; the kernel goes on behind it
    } else if (is_for_now(error)) {
      if (left == before && tries >= calls_for_all) break;
    } else if (error != EINTR) {
      result.refused = true;
      return result;
    }
  }
  store_relaxed(socket_.tx_pending, left != 0);
  return result;
}

bool XdpTx::make_room(uint32_t chunks) {
  if (free_count_ >= chunks) return true;
  reap();
  if (free_count_ >= chunks) return true;
  publish();
  const Kicked kicked = kick();
  early_.lost += kicked.lost;
  early_.refused |= kicked.refused;
  reap();
  return free_count_ >= chunks;
}

uint32_t XdpTx::send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) {
  if (refused_) refused_ = kick().refused;
  if (refused_ || !load_relaxed(link_.carrier)) {
    drops.drop_tx(DropReason::kLinkDown, index.size());
    return static_cast<uint32_t>(index.size());
  }
  early_ = {};
  reap();
  std::array<uint32_t, kMaxBatch> lengths;
  uint32_t accepted = 0;
  uint32_t done = 0;
  for (; done < index.size(); ++done) {
    const Frame& frame = batch.frames[index[done]];
    if (is_too_long(frame)) {
      drops.drop_tx(DropReason::kMtuExceeded);
      continue;
    }
    const uint32_t chunks = (frame.len + kXdpChunkBytes - 1) / kXdpChunkBytes;
    if (!make_room(chunks)) break;
    put(frame, chunks);
    lengths[accepted++] = frame.len;
  }
  publish();
  const Kicked kicked = kick();
  refused_ = kicked.refused || early_.refused;
  const uint32_t lost = refused_ ? accepted : std::min(accepted, kicked.lost + early_.lost);
  if (lost != 0) drops.drop_tx(refused_ ? DropReason::kLinkDown : DropReason::kDeviceError, lost);
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < accepted - lost; ++i) bytes += lengths[i];
  counters_->frames.add(accepted - lost);
  counters_->bytes.add(bytes);
  return done;
}

}  // namespace sw
