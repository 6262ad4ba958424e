// SPDX-License-Identifier: Apache-2.0
#include "net/segment.h"

#include <algorithm>
#include <cstring>

#include "base/bytes.h"
#include "net/checksum.h"
#include "net/tunnel.h"

namespace sw {

namespace {

constexpr uint8_t kTcpFin = 0x01;
constexpr uint8_t kTcpPsh = 0x08;
constexpr uint8_t kTcpCwr = 0x80;

// Does the kind of segmentation asked for match the packet that was found?
bool kind_matches(const Packet& packet, uint8_t gso_type) {
  const bool tcp = packet.protocol == kProtocolTcp;
  switch (gso_type) {
    case VIRTIO_NET_HDR_GSO_TCPV4:
    case VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN:
      return tcp && packet.ip_version == 4;
    case VIRTIO_NET_HDR_GSO_TCPV6:
    case VIRTIO_NET_HDR_GSO_TCPV6 | VIRTIO_NET_HDR_GSO_ECN:
      return tcp && packet.ip_version == 6;
    case VIRTIO_NET_HDR_GSO_UDP_L4:
      return packet.protocol == kProtocolUdp && packet.ip_version != 0;
    default:
      return false;
  }
}

// The IP length decides where the payload ends (the frame may be padded); 0 is what some stacks leave to the device.
uint32_t packet_end(const Packet& packet, uint32_t frame_bytes) {
  return packet.l3_bytes == 0 ? frame_bytes : packet.l3 + packet.l3_bytes;
}

// Can the tunnel's header be the same in front of every segment, but for lengths and checksums? GRE's sequence numbers
// are the sender's to give out (RFC 2890).
bool can_repeat(std::span<const uint8_t> start, const Packet& outer) {
  return outer.protocol != kProtocolGre || (start[outer.l4] & kGreSequence) == 0;
}

}  // namespace

// The packet whose transport header is at `l4`, in the frame itself or in tunnels.
bool Segmenter::find_packet(std::span<const uint8_t> start, uint32_t frame_bytes, uint32_t l4) {
  const auto first = parse_packet(start);
  if (!first) return false;
  for (packet_ = *first; packet_.l4 != l4;) {
    if (packet_.l4 > l4 || outer_count_ == kMaxTunnels) return false;
    const auto inner = parse_inner(start, packet_);
    if (!inner || inner->ip_version == 0 || !can_repeat(start, packet_)) return false;
    if (packet_end(*inner, frame_bytes) != packet_end(packet_, frame_bytes)) return false;
    outer_[outer_count_++] = packet_;
    packet_ = *inner;
  }
  return true;
}

std::optional<Segmenter> Segmenter::make(std::span<const uint8_t> start, uint32_t frame_bytes, const VnetHeader& vnet) {
  start = start.first(std::min<size_t>({start.size(), frame_bytes, kMaxHeaderBytes}));
  Segmenter segmenter;
  if (!segmenter.find_packet(start, frame_bytes, vnet.csum_start)) return std::nullopt;
  const Packet& packet = segmenter.packet_;
  if (packet.l4_header_bytes == 0 || !kind_matches(packet, vnet.gso_type)) return std::nullopt;
  // virtio 1.3 5.1.6.2: segmentation includes the checksum, so the driver must have asked for it, and for this one.
  const uint32_t field = packet.protocol == kProtocolTcp ? kTcpChecksumOffset : kUdpChecksumOffset;
  if ((vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0) return std::nullopt;
  if (vnet.csum_offset != field || vnet.gso_size == 0) return std::nullopt;

  const uint32_t end = packet_end(packet, frame_bytes);
  const uint32_t headers = uint32_t{packet.l4} + packet.l4_header_bytes;
  if (end > frame_bytes || end < headers) return std::nullopt;

  segmenter.header_bytes_ = headers;
  segmenter.payload_bytes_ = end - headers;
  segmenter.gso_size_ = vnet.gso_size;
  segmenter.count_ = std::max(1U, (segmenter.payload_bytes_ + vnet.gso_size - 1) / vnet.gso_size);
  if (segmenter.count_ > kMaxCount) return std::nullopt;
  if (segmenter.longest_l3_bytes() > 0xffff) return std::nullopt;  // does not fit the length fields
  std::memcpy(segmenter.header_.data(), start.data(), headers);
  return segmenter;
}

void Segmenter::write_ip(const Packet& packet, uint32_t i, uint32_t l3_bytes, uint8_t* ip) {
  if (packet.ip_version == 6) {
    store_be16(ip + 4, static_cast<uint16_t>(l3_bytes - 40));
    return;
  }
  const uint32_t header = uint32_t{packet.l4} - packet.l3;
  store_be16(ip + 2, static_cast<uint16_t>(l3_bytes));
  store_be16(ip + 4, static_cast<uint16_t>(load_be16(ip + 4) + i));  // each segment is a packet of its own
  store_unaligned<uint16_t>(ip + 10, 0);
  store_unaligned(ip + 10, static_cast<uint16_t>(~fold_sum(sum_bytes(ip, header))));
}

void Segmenter::write_transport(uint32_t i, uint32_t l4_bytes, uint8_t* l4) const {
  if (packet_.protocol == kProtocolUdp) {
    store_be16(l4 + 4, static_cast<uint16_t>(l4_bytes));
    return;
  }
  store_be32(l4 + 4, load_be32(l4 + 4) + i * gso_size_);
  uint8_t clear = 0;
  if (i + 1 != count_) clear |= kTcpFin | kTcpPsh;  // the stream ends with the last segment
  if (i != 0) clear |= kTcpCwr;                     // RFC 3168 6.1.2: the reduction is announced once
  l4[13] &= static_cast<uint8_t>(~clear);
}

void Segmenter::write_header(uint32_t i, uint64_t payload_sum, uint8_t* to) const {
  std::memcpy(to, header_.data(), header_bytes_);
  const uint32_t payload = payload_bytes(i);
  const uint32_t l4_bytes = packet_.l4_header_bytes + payload;
  uint8_t* const ip = to + packet_.l3;
  uint8_t* const l4 = to + packet_.l4;
  write_ip(packet_, i, header_bytes_ - packet_.l3 + payload, ip);
  write_transport(i, l4_bytes, l4);
  uint8_t* const field = l4 + (packet_.protocol == kProtocolTcp ? kTcpChecksumOffset : kUdpChecksumOffset);
  store_unaligned<uint16_t>(field, 0);
  // The header has an even length, so the payload's sum needs no shift.
  uint64_t sum = sum_pseudo_header(ip, packet_, l4_bytes);
  sum = sum_bytes(l4, packet_.l4_header_bytes, sum) + fold_sum(payload_sum);
  store_unaligned(field, transport_checksum(sum));
  // From the inside out: an outer checksum covers the inner headers.
  for (uint32_t outer = outer_count_; outer > 0; --outer) write_tunnel(outer_[outer - 1], i, payload_sum, to);
}

// What lies inside `outer` is written already.
void Segmenter::write_tunnel(const Packet& outer, uint32_t i, uint64_t payload_sum, uint8_t* to) const {
  const uint32_t payload = payload_bytes(i);
  const uint32_t l4_header_bytes = header_bytes_ - outer.l4;  // all headers from here on; even, as each of them is
  uint8_t* const ip = to + outer.l3;
  uint8_t* const l4 = to + outer.l4;
  write_ip(outer, i, header_bytes_ - outer.l3 + payload, ip);
  if (outer.protocol == kProtocolUdp) {
    store_be16(l4 + 4, static_cast<uint16_t>(l4_header_bytes + payload));
    uint8_t* const field = l4 + kUdpChecksumOffset;
    if (load_unaligned<uint16_t>(field) == 0) return;  // the tunnel has none
    store_unaligned<uint16_t>(field, 0);
    const uint64_t sum = sum_pseudo_header(ip, outer, l4_header_bytes + payload);
    store_unaligned(field, transport_checksum(sum_bytes(l4, l4_header_bytes, sum) + fold_sum(payload_sum)));
  } else if (outer.protocol == kProtocolGre && (l4[0] & kGreChecksum) != 0) {
    uint8_t* const field = l4 + kGreChecksumOffset;
    store_unaligned<uint16_t>(field, 0);
    const uint64_t sum = sum_bytes(l4, l4_header_bytes) + fold_sum(payload_sum);
    store_unaligned(field, static_cast<uint16_t>(~fold_sum(sum)));
  }
}

}  // namespace sw
