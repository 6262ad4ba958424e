// SPDX-License-Identifier: Apache-2.0
#include "port/packet_queue.h"

#include <bit>
#include <cstring>
#include <utility>

#include "base/bytes.h"
#include "net/crc32c.h"

namespace sw {

namespace {

constexpr uint32_t kBlockBytes = 128U << 10;
constexpr uint32_t kRingBytes = 4U << 20;
constexpr uint32_t kMinSlotBytes = 2048;
constexpr uint32_t kMaxSlotBytes = 16384;  // larger frames are fetched one by one
constexpr uint32_t kSlotOverhead = 128;    // tpacket2_hdr, sockaddr_ll, virtio-net header and alignment, rounded up

// SCTP alone has its checksum 8 bytes behind its start. It is a CRC, which the virtio-net header cannot say: whoever took
// it as open would add up words. False: it cannot be finished.
bool finish_crc(Frame& frame) {
  const VnetHeader vnet = frame.vnet;
  if ((vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0 || vnet.csum_offset != kSctpChecksumOffset) return true;
  frame.vnet = VnetHeader{};
  frame.offload = false;
  return vnet.gso_type == VIRTIO_NET_HDR_GSO_NONE && finish_sctp(frame, vnet.csum_start);
}

}  // namespace

Result<PacketRing> make_packet_ring(int fd, uint32_t mtu) {
  PacketRing ring;
  const uint32_t wanted = mtu + kEthHeaderBytes + kVlanTagBytes + kSlotOverhead;
  ring.slot_bytes = std::clamp(std::bit_ceil(wanted), kMinSlotBytes, kMaxSlotBytes);
  ring.slots = kRingBytes / ring.slot_bytes;
  tpacket_req request{};
  request.tp_block_size = kBlockBytes;
  request.tp_block_nr = kRingBytes / kBlockBytes;
  request.tp_frame_size = ring.slot_bytes;
  request.tp_frame_nr = ring.slots;
  if (::setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof request) != 0) {
    return Error{errno, "allocate a receive ring of 4 MB"};
  }
  void* const memory = ::mmap(nullptr, kRingBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return Error{errno, "map a receive ring of 4 MB"};
  ring.memory = Mapping(memory, kRingBytes);
  return ring;
}

PacketRx::PacketRx(int fd, PacketRing ring, Mapping bodies, bool skip_outgoing, QueueCounters& counters)
    : RxQueue(counters), fd_(fd), skip_outgoing_(skip_outgoing), ring_(std::move(ring)), bodies_(std::move(bodies)) {}

// Where the frame of a slot is. False: the kernel did not keep all of it.
bool PacketRx::fetch(const tpacket2_hdr& header, uint32_t status, uint8_t* body, Received& out) const {
  const auto* const start = reinterpret_cast<const uint8_t*>(&header);
  if ((status & TP_STATUS_COPY) == 0) {
    if (header.tp_snaplen < header.tp_len) return false;
    out.data = start + header.tp_mac;
    out.bytes = header.tp_snaplen;
    std::memcpy(&out.vnet, out.data - sizeof out.vnet, sizeof out.vnet);
    return true;
  }
  // Slots and the socket's queue are filled under one lock: the first queued frame is this one.
  iovec pieces[] = {{&out.vnet, sizeof out.vnet}, {body, kBodyBytes}};
  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = 2;
  ssize_t got = ::recvmsg(fd_, &message, MSG_DONTWAIT);
  if (got < 0 && errno == ENETDOWN) got = ::recvmsg(fd_, &message, MSG_DONTWAIT);  // told once, queue still there
  if (got < 0 || static_cast<size_t>(got) != sizeof out.vnet + header.tp_len) return false;
  out.data = body;
  out.bytes = header.tp_len;
  return true;
}

// The frame with its VLAN tag where it was on the wire.
void PacketRx::fill(Batch& batch, const Received& received, const tpacket2_hdr& header, uint32_t status) {
  Frame& frame = batch.frames[batch.count++];
  VnetHeader vnet = received.vnet;
  uint32_t in_head = 0;  // bytes of received.data that went into the head
  if ((status & TP_STATUS_VLAN_VALID) != 0) {
    in_head = std::min(received.bytes, kHeadBytes - kVlanTagBytes);
    std::memcpy(frame.head, received.data, 2 * kMacBytes);
    store_be16(frame.head + 12, (status & TP_STATUS_VLAN_TPID_VALID) != 0 ? header.tp_vlan_tpid : kEtherTypeVlan);
    store_be16(frame.head + 14, header.tp_vlan_tci);
    std::memcpy(frame.head + 16, received.data + 12, in_head - 12);
    frame.len = received.bytes + kVlanTagBytes;
    frame.head_len = in_head + kVlanTagBytes;
    if ((vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0) {
      vnet.csum_start = static_cast<uint16_t>(vnet.csum_start + kVlanTagBytes);
    }
  } else {
    in_head = std::min(received.bytes, kHeadBytes);
    std::memcpy(frame.head, received.data, in_head);
    frame.len = received.bytes;
    frame.head_len = in_head;
  }
  frame.segments = &batch.segments[batch.segments_used];
  frame.segment_count = 0;
  if (received.bytes > in_head) {
    batch.segments[batch.segments_used++] = {received.data + in_head, received.bytes - in_head};
    frame.segment_count = 1;
  }
  finish_received(frame, vnet);
  batch.may_have_offloads |= frame.offload;
}

bool PacketRx::peek(Batch& batch, PortWorkerCounters& drops) {
  kernel_drops.take_over(*counters_, drops);
  uint64_t frames = 0;
  uint64_t bytes = 0;
  for (taken_ = 0; taken_ < kMaxBatch; ++taken_) {
    const uint32_t number = next_ + taken_;
    const tpacket2_hdr& header = slot(number < ring_.slots ? number : number - ring_.slots);
    // Pairs with the kernel's flush and store of the status when the slot is complete.
    const uint32_t status = load_acquire(header.tp_status);
    if ((status & TP_STATUS_USER) == 0) break;
    const auto* const address = reinterpret_cast<const sockaddr_ll*>(reinterpret_cast<const uint8_t*>(&header) +
                                                                     TPACKET_ALIGN(sizeof(tpacket2_hdr)));
    auto* const body = reinterpret_cast<uint8_t*>(bodies_.data()) + size_t{batch.count} * kBodyBytes;
    Received received;
    const bool whole = fetch(header, status, body, received);
    if (skip_outgoing_ && address->sll_pkttype == PACKET_OUTGOING) continue;  // the host's own, never meant for us
    ++frames;
    bytes += header.tp_len;
    if (!whole) {
      drops.drop_rx(DropReason::kKernelDropped);
    } else if (received.bytes < kEthHeaderBytes) {
      drops.drop_rx(DropReason::kFrameTooShort);
    } else if (received.bytes + kVlanTagBytes > kMaxFrameBytes) {
      drops.drop_rx(DropReason::kFrameTooLong);
    } else {
      fill(batch, received, header, status);
      if (!finish_crc(batch.frames[batch.count - 1])) {
        drops.drop_rx(DropReason::kOffloadUnsupported);
        --batch.count;
      }
    }
  }
  counters_->frames.add(frames);
  counters_->bytes.add(bytes);
  return taken_ != 0;
}

void PacketRx::release() {
  for (; taken_ > 0; --taken_) {
    // Pairs with the kernel's read of the status before it fills the slot again: our reads of it are done.
    store_release(slot(next_).tp_status, TP_STATUS_KERNEL);
    if (++next_ == ring_.slots) next_ = 0;
  }
}

bool PacketRx::arm() {
  // The socket is readable while its last filled slot is ours; an error left by the interface going down would make it
  // readable for ever, so it is taken here.
  int error = 0;
  socklen_t length = sizeof error;
  ::getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &length);
  return (load_acquire(slot(next_).tp_status) & TP_STATUS_USER) != 0;
}

PacketTx::PacketTx(int fd, const OffloadCaps& caps, uint32_t mtu, QueueCounters& counters)
    : TxQueue(counters), fd_(fd), mtu_(mtu), linear_(kMaxFrameBytes) {
  caps_ = caps;
}

// The kernel compares a frame with the interface's MTU, but not the pieces that a GSO frame will be cut into: a NIC would
// send them all the same. hdr_len is a hint, so the headers are measured from csum_start.
bool PacketTx::pieces_fit(const Frame& frame) const {
  const VnetHeader& vnet = frame.vnet;
  if (!frame.offload || vnet.gso_type == VIRTIO_NET_HDR_GSO_NONE) return true;
  const uint32_t transport = vnet.csum_start;
  const bool udp = vnet.gso_type == VIRTIO_NET_HDR_GSO_UDP_L4;
  if (!udp && transport + 13U > frame.head_len) return true;  // not where TCP headers are: the kernel judges it
  const uint32_t headers = transport + (udp ? 8U : uint32_t{frame.data()[transport + 12U]} / 16 * 4);
  const uint16_t type = ethertype(frame);
  const bool tag = type == kEtherTypeVlan || type == kEtherTypeServiceTag;
  return headers + vnet.gso_size <= load_relaxed(mtu_) + kEthHeaderBytes + (tag ? kVlanTagBytes : 0);
}

void PacketTx::add_message(uint32_t number, const Frame& frame) {
  headers_[number] = header_for_kernel(frame);
  iovec* const pieces = &pieces_[pieces_used_];
  pieces[0] = {&headers_[number], sizeof(VnetHeader)};
  uint32_t count = 1;
  if (frame.segment_count + 2U <= kMaxIovecs) {
    count += gather(frame, pieces + 1);
  } else {
    copy_from_frame(frame, 0, linear_.data(), frame.len);
    pieces[count++] = {linear_.data(), frame.len};
  }
  messages_[number].msg_hdr.msg_iov = pieces;
  messages_[number].msg_hdr.msg_iovlen = count;
  pieces_used_ += count;
}

// At most one frame of the run uses linear_.
void PacketTx::send_run(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) {
  if (index.empty()) return;
  pieces_used_ = 0;
  for (uint32_t i = 0; i < index.size(); ++i) add_message(i, batch.frames[index[i]]);
  uint64_t frames = 0;
  uint64_t bytes = 0;
  for (uint32_t done = 0; done < index.size();) {
    const int sent = ::sendmmsg(fd_, &messages_[done], static_cast<unsigned>(index.size() - done), MSG_DONTWAIT);
    if (sent <= 0) {  // the first of the rest was refused; the others have their own chance
      drops.drop_tx(reason_for_errno(errno));
      ++done;
      continue;
    }
    for (int i = 0; i < sent; ++i) bytes += batch.frames[index[done++]].len;
    frames += static_cast<uint64_t>(sent);
  }
  counters_->frames.add(frames);
  counters_->bytes.add(bytes);
}

uint32_t PacketTx::send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters& drops) {
  size_t first = 0;
  for (size_t i = 0; i < index.size(); ++i) {
    const Frame& frame = batch.frames[index[i]];
    const bool fits = pieces_fit(frame);
    if (fits && frame.segment_count + 2U <= kMaxIovecs) continue;
    if (!fits) drops.drop_tx(DropReason::kMtuExceeded);
    send_run(batch, index.subspan(first, i + (fits ? 1 : 0) - first), drops);
    first = i + 1;
  }
  send_run(batch, index.subspan(first), drops);
  return static_cast<uint32_t>(index.size());
}

}  // namespace sw
