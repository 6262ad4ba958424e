// SPDX-License-Identifier: Apache-2.0
#ifdef SW_HAVE_VERBS
#include "port/verbs_tx.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "net/checksum.h"
#include "net/packet.h"
#include "port/kernel_frame.h"

namespace sw {

namespace {

// IBV_SEND_IP_CSUM computes the checksums of the IPv4 header and of the TCP or UDP behind it, wherever the sender said
// they are: only a frame that means the same may use it.
bool device_can_finish(const Frame& frame) {
  const auto packet = parse_packet({frame.data(), frame.head_len});
  if (!packet || packet->ip_version != 4 || packet->fragment || packet->l4_header_bytes == 0) return false;
  const bool tagged = packet->l3 == kEthHeaderBytes + kVlanTagBytes && ethertype(frame) == kEtherTypeVlan;
  if ((packet->l3 != kEthHeaderBytes && !tagged) || frame.vnet.csum_start != packet->l4) return false;
  if (packet->protocol == kProtocolTcp) return frame.vnet.csum_offset == kTcpChecksumOffset;
  return packet->protocol == kProtocolUdp && frame.vnet.csum_offset == kUdpChecksumOffset;
}

bool needs_checksum(const Frame& frame) {
  return frame.offload && (frame.vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0;
}

}  // namespace

VerbsTx::VerbsTx(ibv_qp* qp, const VerbsSlots& slots, Options options, QueueCounters& counters)
    : TxQueue(counters), qp_(qp), slots_(slots), options_(options) {
  caps_.checksum = options_.offloads;
  for (uint32_t i = 0; i < kMaxBatch; ++i) {
    requests_[i] = {};
    requests_[i].sg_list = &pieces_[i];
    requests_[i].num_sge = 1;
    requests_[i].opcode = IBV_WR_SEND;
    pieces_[i].lkey = slots_.lkey;
  }
}

// One successful completion frees its slot and all before it.
void VerbsTx::reap() {
  const int count = ibv_poll_cq(qp_->send_cq, static_cast<int>(wc_.size()), wc_.data());
  if (count < 0 || count > static_cast<int>(wc_.size())) return fault_.set(VerbsFault::Kind::kCompletions, count);
  for (int i = 0; i < count; ++i) {
    const ibv_wc& wc = wc_[static_cast<size_t>(i)];
    if (wc.status != IBV_WC_SUCCESS) return fault_.set(VerbsFault::Kind::kStatus, wc.status);
    const auto number = static_cast<uint32_t>(wc.wr_id);
    if (wc.wr_id != number || number - oldest_ >= in_flight()) {
      return fault_.set(VerbsFault::Kind::kCompletion, static_cast<int>(number));
    }
    oldest_ = number + 1;
  }
}

// Write the frame into request `request` of the burst. False: it was dropped and counted.
bool VerbsTx::add(const Frame& frame, uint32_t request, PortWorkerCounters& drops) {
  const uint32_t number = next_ + request;
  const uint32_t bytes = std::max(frame.len, kMinFrameBytes);
  if (exceeds_mtu(frame, options_.mtu) || bytes > slots_.slot_bytes) {
    drops.drop_tx(DropReason::kMtuExceeded);
    return false;
  }
  const bool by_device = needs_checksum(frame) && options_.checksum && device_can_finish(frame);
  const bool in_place = needs_checksum(frame) && !by_device;
  const bool small = bytes <= options_.max_inline;
  const uint8_t* source = frame.data();
  if (!small || in_place || frame.len != bytes || frame.segment_count != 0) {
    uint8_t* const slot = slots_.at(number & (slots_.count - 1));
    copy_from_frame(frame, 0, slot, frame.len);
    std::memset(slot + frame.len, 0, bytes - frame.len);
    if (in_place && !finish_checksum({slot, frame.len}, frame.vnet)) {
      drops.drop_tx(DropReason::kOffloadUnsupported);
      return false;
    }
    source = slot;
  }
  pieces_[request].addr = reinterpret_cast<uintptr_t>(source);
  pieces_[request].length = bytes;
  ibv_send_wr& wr = requests_[request];
  wr.wr_id = number;
  wr.send_flags = 0;
  if (small) wr.send_flags |= IBV_SEND_INLINE;
  if (by_device) wr.send_flags |= IBV_SEND_IP_CSUM;
  if (number % kSignalEvery == kSignalEvery - 1) wr.send_flags |= IBV_SEND_SIGNALED;
  frame_bytes_[request] = frame.len;
  return true;
}

// Post the first `count` requests. A request that the device does not like is dropped, the others go on without it; a
// full queue (ENOMEM) ends the burst. A device that likes none any more is broken.
void VerbsTx::post(uint32_t count, PortWorkerCounters& drops) {
  uint64_t frames = 0;
  uint64_t bytes = 0;
  uint32_t first = 0;
  while (first < count) {
    ibv_send_wr* const start = &requests_[first];
    ibv_send_wr* bad = nullptr;
    const int error = ibv_post_send(qp_, start, &bad);
    uint32_t done = count - first;
    if (error != 0) done = bad >= start && bad < &requests_[0] + count ? static_cast<uint32_t>(bad - start) : 0;
    for (uint32_t i = 0; i < done; ++i) bytes += frame_bytes_[first++];
    frames += done;
    if (done > 0) refused_ = 0;
    if (error == 0) break;
    if (error == ENOMEM) {
      drops.drop_tx(DropReason::kRingFull, count - first);
      break;
    }
    drops.drop_tx(DropReason::kDeviceError);
    ++first;
    if (++refused_ == kMostRefused) fault_.set(VerbsFault::Kind::kTransmitPost, error);
  }
  next_ += first;
  counters_->frames.add(frames);
  counters_->bytes.add(bytes);
}

uint32_t VerbsTx::send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) {
  const auto all = static_cast<uint32_t>(index.size());
  if (in_flight() >= 2 * kSignalEvery && !fault_.is_set()) reap();
  if (fault_.is_set()) {
    drops.drop_tx(DropReason::kDeviceError, all);
    return all;
  }
  const uint32_t room = slots_.count - in_flight();
  uint32_t count = 0;
  for (const uint8_t i : index) {
    if (count == room) {
      drops.drop_tx(DropReason::kRingFull);
    } else if (add(batch.frames[i], count, drops)) {
      requests_[count].next = &requests_[count] + 1;
      ++count;
    }
  }
  if (count == 0) return all;
  requests_[count - 1].next = nullptr;
  post(count, drops);
  return all;
}

}  // namespace sw
#endif
