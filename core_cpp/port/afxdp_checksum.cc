// SPDX-License-Identifier: Apache-2.0
#include "port/afxdp_checksum.h"

#include <algorithm>
#include <array>
#include <span>

#include "base/bytes.h"
#include "net/checksum.h"
#include "net/ethernet.h"
#include "net/packet.h"
#include "net/tunnel.h"

namespace sw {

namespace {

constexpr uint32_t kLongHeaders = 512;
constexpr uint32_t kMaxTunnels = 2;  // one in the other

// Sum of frame bytes [offset, offset + bytes).
uint64_t sum_part(const Frame& frame, uint32_t offset, uint32_t bytes) {
  uint64_t sum = 0;
  uint32_t summed = 0;
  const auto add = [&](const uint8_t* data, uint32_t len) {
    if (offset >= len) {
      offset -= len;
      return;
    }
    const uint32_t part = std::min(len - offset, bytes - summed);
    sum = add_piece(sum, sum_bytes(data + offset, part), (summed & 1) != 0);
    summed += part;
    offset = 0;
  };
  add(frame.data(), frame.head_len);
  for (uint32_t i = 0; i < frame.segment_count && summed < bytes; ++i) {
    add(frame.segments[i].data, frame.segments[i].len);
  }
  return sum;
}

uint32_t packet_end(const Packet& packet) { return packet.l3 + packet.l3_bytes; }

uint32_t checksum_offset(const Packet& packet) {
  return packet.protocol == kProtocolTcp ? kTcpChecksumOffset : kUdpChecksumOffset;
}

uint16_t stored_checksum(std::span<const uint8_t> start, const Packet& packet) {
  return load_unaligned<uint16_t>(&start[packet.l4 + checksum_offset(packet)]);
}

uint64_t sum_pseudo_header(std::span<const uint8_t> start, const Packet& packet) {
  return sum_pseudo_header(&start[packet.l3], packet, packet_end(packet) - packet.l4);
}

bool is_unfinished(std::span<const uint8_t> start, const Packet& packet) {
  if (packet.l4_header_bytes == 0 || packet_end(packet) < packet.l4 + checksum_offset(packet) + 2) return false;
  const uint16_t stored = stored_checksum(start, packet);
  return stored != 0 && stored == fold_sum(sum_pseudo_header(start, packet));
}

// Is the outer packet's checksum right once the inner one is finished? Then everything from the inner transport header
// on sums to the complement of the inner pseudo-header's sum, which is what the inner field holds. Of a frame that is to
// be cut (`large`) the kernel leaves the outer checksum unfinished, too.
bool covers_finished(std::span<const uint8_t> start, const Packet& outer, const Packet& inner, bool large) {
  if (outer.protocol != kProtocolUdp || stored_checksum(start, outer) == 0) return true;
  if (large) return is_unfinished(start, outer);
  const uint64_t sum = sum_bytes(&start[outer.l4], inner.l4 - outer.l4, sum_pseudo_header(start, outer));
  return fold_sum(sum + static_cast<uint16_t>(~stored_checksum(start, inner))) == 0xffff;
}

// A packet and those that it carries, the outermost first.
struct Packets {
  std::array<Packet, kMaxTunnels + 1> list;
  uint32_t last = 0;
};

// The packet of the frame itself. False: it is not IP.
bool parse_first(std::span<const uint8_t> start, Packets& packets) {
  const auto packet = parse_packet(start);
  packets.list[0] = packet.value_or(Packet{});
  packets.last = 0;
  return packet && (packet->ether_type == kEtherTypeIpv4 || packet->ether_type == kEtherTypeIpv6);
}

// Add what the last packet carries until there is nothing more. False: `start`, the first bytes of the frame, ends too
// early to tell.
bool unwrap(std::span<const uint8_t> start, uint32_t frame_bytes, Packets& packets) {
  for (;;) {
    const Packet& packet = packets.list[packets.last];
    const bool transport = packet.protocol == kProtocolTcp || packet.protocol == kProtocolUdp;
    if (packet.ip_version == 0 || (transport && packet.l4_header_bytes == 0 && !packet.fragment)) {
      return start.size() == frame_bytes;
    }
    const auto inner = parse_inner(start, packet);
    if (!inner) return true;
    if (inner->ip_version == 0 && start.size() < frame_bytes) return false;
    const bool fills_outer = inner->l3_bytes != 0 && packet_end(*inner) == packet_end(packet);
    if (!fills_outer || packets.last == kMaxTunnels) return true;
    packets.list[++packets.last] = *inner;
  }
}

// Is there a packet with an unfinished checksum? It is the last one of `packets` then. From the inside out: an outer
// checksum may look unfinished by chance.
bool find_unfinished(std::span<const uint8_t> start, uint32_t frame_bytes, bool large, Packets& packets) {
  if (packets.list[0].l3_bytes == 0 || packet_end(packets.list[0]) > frame_bytes) return false;
  for (;; --packets.last) {
    const Packet& packet = packets.list[packets.last];
    bool found = is_unfinished(start, packet);
    for (uint32_t i = 0; i < packets.last && found; ++i) found = covers_finished(start, packets.list[i], packet, large);
    if (found || packets.last == 0) return found;
  }
}

// Mark or finish the last one of `packets`. False: the frame is to be cut, and cannot be.
bool restore(Frame& frame, const Packets& packets, bool large, uint32_t max_l3_bytes) {
  const Packet& packet = packets.list[packets.last];
  const uint32_t offset = checksum_offset(packet);
  const uint32_t field = packet.l4 + offset;
  if (packet_end(packet) < frame.len) {  // NEEDS_CSUM would sum the bytes behind the packet, too
    if (field + 2 > frame.head_len) return !large;
    const uint16_t sum = transport_checksum(sum_part(frame, packet.l4, packet_end(packet) - packet.l4));
    store_unaligned(frame.data() + field, sum);
    return !large;
  }
  frame.vnet = VnetHeader{};
  frame.vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  frame.vnet.csum_start = packet.l4;
  frame.vnet.csum_offset = static_cast<uint16_t>(offset);
  frame.offload = true;
  if (!large) return true;
  const uint32_t headers = packet.l4 - packets.list[0].l3 + packet.l4_header_bytes;  // those of tunnels, too
  if (packet.protocol != kProtocolTcp || headers >= max_l3_bytes) return false;
  frame.vnet.gso_type = packet.ip_version == 4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
  frame.vnet.gso_size = static_cast<uint16_t>(max_l3_bytes - headers);
  frame.vnet.hdr_len = static_cast<uint16_t>(packet.l4 + packet.l4_header_bytes);
  return true;
}

}  // namespace

bool restore_offload(Frame& frame, uint32_t max_l3_bytes) {
  std::span<const uint8_t> start(frame.data(), frame.head_len);
  Packets packets;
  const bool ip = parse_first(start, packets);
  std::array<uint8_t, kLongHeaders> copy;
  if (ip && !unwrap(start, frame.len, packets)) {  // options, several extension headers, tunnels
    const uint32_t bytes = std::min(frame.len, kLongHeaders);
    copy_from_frame(frame, 0, copy.data(), bytes);
    start = {copy.data(), bytes};
    parse_first(start, packets);
    unwrap(start, frame.len, packets);
  }
  const uint32_t l3 = packets.list[0].l3 == 0 ? kEthHeaderBytes : packets.list[0].l3;
  const bool large = frame.len > max_l3_bytes + l3;
  if (!ip || !find_unfinished(start, frame.len, large, packets)) return !large;
  return restore(frame, packets, large, max_l3_bytes);
}

}  // namespace sw
