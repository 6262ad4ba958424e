// SPDX-License-Identifier: Apache-2.0
#ifdef SW_HAVE_VERBS
#include "port/verbs_tx.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "net/checksum.h"
#include "net/packet.h"
#include "port/kernel_frame.h"

namespace sw {

namespace {

// IBV_SEND_IP_CSUM computes the checksums of the IPv4 header and of the TCP or UDP behind it, wherever the sender said
// they are: only a frame that means the same may use it. Of IPv6 its manual page does not speak: `v6` says that the
// device is one that does it.
bool device_can_finish(const Frame& frame, bool v6) {
  const auto packet = parse_packet({frame.data(), frame.head_len});
  if (!packet || packet->fragment || packet->l4_header_bytes == 0) return false;
  const bool plain_v6 = packet->ip_version == 6 && packet->l4 == packet->l3 + kIpv6HeaderBytes;
  if (packet->ip_version != 4 && !(v6 && plain_v6)) return false;
  const bool tagged = packet->l3 == kEthHeaderBytes + kVlanTagBytes && ethertype(frame) == kEtherTypeVlan;
  if ((packet->l3 != kEthHeaderBytes && !tagged) || frame.vnet.csum_start != packet->l4) return false;
  if (packet->protocol == kProtocolTcp) return frame.vnet.csum_offset == kTcpChecksumOffset;
  return packet->protocol == kProtocolUdp && frame.vnet.csum_offset == kUdpChecksumOffset;
}

bool needs_checksum(const Frame& frame) {
  return frame.offload && (frame.vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0;
}

bool is_large(const Frame& frame) { return frame.offload && frame.vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE; }

std::optional<Segmenter> make_segmenter(const Frame& frame) {
  std::array<uint8_t, Segmenter::kMaxHeaderBytes> start;
  const uint32_t bytes = std::min<uint32_t>(frame.len, Segmenter::kMaxHeaderBytes);
  copy_from_frame(frame, 0, start.data(), bytes);
  return Segmenter::make({start.data(), bytes}, frame.len, frame.vnet);
}

}  // namespace

VerbsTx::VerbsTx(ibv_qp* qp, const VerbsSlots& slots, Options options, QueueCounters& counters)
    : TxQueue(counters), qp_(qp), slots_(slots), options_(options) {
  // The device computes the checksums of what it cuts, so it must have both.
  device_cuts_ = options_.offloads && options_.checksum && options_.max_tso != 0;
  caps_.checksum = options_.offloads;
  caps_.tso4 = device_cuts_;
  caps_.tso6 = device_cuts_ && options_.checksum_v6;
  for (uint32_t i = 0; i < kMaxBatch; ++i) {
    requests_[i] = {};
    requests_[i].sg_list = &pieces_[i];
    requests_[i].num_sge = 1;
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

// Neighbouring slots for the next request, and a place for it in the burst. nullptr: there are none, and the frame was
// counted as dropped.
uint8_t* VerbsTx::reserve(uint32_t slots, PortWorkerCounters& drops) {
  if (count_ == kMaxBatch) post(drops);
  const uint32_t mask = slots_.count - 1;
  for (bool again = true;; again = false) {
    const uint32_t start = (end_ & mask) + slots > slots_.count ? (end_ | mask) + 1 : end_;
    if (!fault_.is_set() && start + slots - oldest_ <= slots_.count) {
      end_ = start;
      return slots_.at(start & mask);
    }
    if (!again || fault_.is_set() || count_ == 0) break;
    post(drops);
    reap();
  }
  drops.drop_tx(fault_.is_set() ? DropReason::kDeviceError : DropReason::kRingFull);
  return nullptr;
}

// A request for `length` bytes at `data`, with the slots that were reserved last.
ibv_send_wr& VerbsTx::add_request(uint32_t slots, const uint8_t* data, uint32_t length, uint32_t frame_bytes) {
  const uint32_t before = count_ == 0 ? next_ : burst_[count_ - 1].end;
  end_ += slots;
  burst_[count_] = {end_, frame_bytes};
  pieces_[count_].addr = reinterpret_cast<uintptr_t>(data);
  pieces_[count_].length = length;
  ibv_send_wr& wr = requests_[count_];
  ++count_;
  wr.next = &wr + 1;
  wr.wr_id = end_ - 1;
  wr.opcode = IBV_WR_SEND;
  wr.send_flags = before / kSignalEvery != end_ / kSignalEvery ? IBV_SEND_SIGNALED : 0;
  return wr;
}

void VerbsTx::add(const Frame& frame, PortWorkerCounters& drops) {
  const uint32_t bytes = std::max(frame.len, kMinFrameBytes);
  if (exceeds_mtu(frame, options_.mtu) || bytes > slots_.slot_bytes) return drops.drop_tx(DropReason::kMtuExceeded);
  uint8_t* const slot = reserve(1, drops);
  if (slot == nullptr) return;
  const bool by_device = needs_checksum(frame) && options_.checksum && device_can_finish(frame, options_.checksum_v6);
  const bool in_place = needs_checksum(frame) && !by_device;
  const bool small = bytes <= options_.max_inline;
  const uint8_t* source = frame.data();
  if (!small || in_place || frame.len != bytes || frame.segment_count != 0) {
    copy_from_frame(frame, 0, slot, frame.len);
    std::memset(slot + frame.len, 0, bytes - frame.len);
    if (in_place && !finish_checksum({slot, frame.len}, frame.vnet)) {
      return drops.drop_tx(DropReason::kOffloadUnsupported);
    }
    source = slot;
  }
  ibv_send_wr& wr = add_request(1, source, bytes, frame.len);
  if (small) wr.send_flags |= IBV_SEND_INLINE;
  if (by_device) wr.send_flags |= IBV_SEND_IP_CSUM;
}

void VerbsTx::add_large(const Frame& frame, PortWorkerCounters& drops) {
  const auto segmenter = make_segmenter(frame);
  if (!segmenter) return drops.drop_tx(DropReason::kOffloadUnsupported);
  const uint32_t longest = segmenter->header_bytes() + segmenter->payload_bytes(0);
  if (segmenter->longest_l3_bytes() > options_.mtu || longest > slots_.slot_bytes) {
    return drops.drop_tx(DropReason::kMtuExceeded);
  }
  if (!leave_to_device(frame, *segmenter, drops)) cut(frame, *segmenter, drops);
}

// Slots at the end of the memory may stay unused before a run, and up to kSignalEvery may be in flight without a completion
// to come: a run that is longer than the rest could wait for ever.
bool VerbsTx::device_can_cut(const Frame& frame, const Segmenter& segmenter, uint32_t slots) const {
  const Packet& packet = segmenter.packet();
  const bool tagged = ethertype(frame) == kEtherTypeVlan;
  if (packet.l3 != kEthHeaderBytes + (tagged ? kVlanTagBytes : 0)) return false;
  const uint8_t type = frame.vnet.gso_type;
  if (type != VIRTIO_NET_HDR_GSO_TCPV4 && type != VIRTIO_NET_HDR_GSO_TCPV6) return false;
  const bool extended = packet.l4 != packet.l3 + kIpv6HeaderBytes;
  if (packet.ip_version == 6 && (extended || !options_.checksum_v6)) return false;
  if (segmenter.header_bytes() > std::min(options_.max_tso_header, kMaxTsoHeaderBytes)) return false;
  return segmenter.count() > 1 && segmenter.all_payload_bytes() <= options_.max_tso &&
         2 * slots + kSignalEvery <= slots_.count;
}

// False: the device would not understand it.
bool VerbsTx::leave_to_device(const Frame& frame, const Segmenter& segmenter, PortWorkerCounters& drops) {
  const uint32_t header = segmenter.header_bytes();
  const uint32_t payload = segmenter.all_payload_bytes();
  const uint32_t slots = (payload + slots_.slot_bytes - 1) / slots_.slot_bytes;
  if (!device_cuts_ || !device_can_cut(frame, segmenter, slots)) return false;
  uint8_t* const first = reserve(slots, drops);
  if (first == nullptr) return true;
  copy_from_frame(frame, 0, headers_[count_].data(), header);
  copy_from_frame(frame, header, first, payload);
  const uint32_t number = count_;
  ibv_send_wr& wr = add_request(slots, first, payload, header + payload);
  wr.opcode = IBV_WR_TSO;
  wr.send_flags |= IBV_SEND_IP_CSUM;
  wr.tso.hdr = headers_[number].data();
  wr.tso.hdr_sz = static_cast<uint16_t>(header);
  wr.tso.mss = frame.vnet.gso_size;
  return true;
}

void VerbsTx::cut(const Frame& frame, const Segmenter& segmenter, PortWorkerCounters& drops) {
  const uint32_t header = segmenter.header_bytes();
  drops.segmented.add(segmenter.count() - 1);
  for (uint32_t i = 0; i < segmenter.count(); ++i) {
    uint8_t* const slot = reserve(1, drops);
    if (slot == nullptr) continue;
    const uint32_t payload = segmenter.payload_bytes(i);
    copy_from_frame(frame, segmenter.payload_offset(i), slot + header, payload);
    segmenter.write_header(i, sum_bytes(slot + header, payload), slot);
    const uint32_t bytes = std::max(header + payload, kMinFrameBytes);
    std::memset(slot + header + payload, 0, bytes - header - payload);
    add_request(1, slot, bytes, header + payload);
  }
}

// The device does not like a request, for `error`: it is dropped. False: it was not the request, nothing more fits.
bool VerbsTx::refuse(uint32_t request, int error, PortWorkerCounters& drops) {
  if (error == ENOMEM) {
    drops.drop_tx(DropReason::kRingFull, count_ - request);
    return false;
  }
  drops.drop_tx(DropReason::kDeviceError);
  if (requests_[request].opcode == IBV_WR_TSO) store_relaxed(device_cuts_, false);  // from now on they are cut here
  // Its completion would have stood for others as well.
  const unsigned duty = requests_[request].send_flags & IBV_SEND_SIGNALED;
  if (request + 1 < count_) requests_[request + 1].send_flags |= duty;
  if (++refused_ == kMostRefused) fault_.set(VerbsFault::Kind::kTransmitPost, error);
  return true;
}

// Post the burst. A request that the device does not like is dropped, the others go on without it; a full queue (ENOMEM)
// ends the burst. A device that likes none any more is broken.
void VerbsTx::post(PortWorkerCounters& drops) {
  uint64_t frames = 0;
  uint64_t bytes = 0;
  if (count_ != 0) requests_[count_ - 1].next = nullptr;
  for (uint32_t first = 0; first < count_; ++first) {
    ibv_send_wr* const start = &requests_[first];
    ibv_send_wr* bad = nullptr;
    const int error = ibv_post_send(qp_, start, &bad);
    uint32_t done = count_ - first;
    if (error != 0) done = bad >= start && bad < &requests_[0] + count_ ? static_cast<uint32_t>(bad - start) : 0;
    frames += done;
    for (; done > 0; --done, ++first) {
      next_ = burst_[first].end;
      bytes += burst_[first].bytes;
      if (requests_[first].opcode == IBV_WR_TSO) tso_frames_.add(1);
      refused_ = 0;
    }
    if (error == 0 || !refuse(first, error, drops)) break;
  }
  count_ = 0;
  end_ = next_;
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
  for (const uint8_t i : index) {
    const Frame& frame = batch.frames[i];
    if (is_large(frame)) [[unlikely]] {
      add_large(frame, drops);
    } else {
      add(frame, drops);
    }
  }
  post(drops);
  return all;
}

}  // namespace sw
#endif
