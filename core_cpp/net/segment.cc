// SPDX-License-Identifier: Apache-2.0
#include "net/segment.h"

#include <algorithm>
#include <cstring>

#include "base/bytes.h"
#include "net/checksum.h"

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

}  // namespace

std::optional<Segmenter> Segmenter::make(std::span<const uint8_t> start, uint32_t frame_bytes, const VnetHeader& vnet) {
  start = start.first(std::min<size_t>({start.size(), frame_bytes, kMaxHeaderBytes}));
  const auto packet = parse_packet(start);
  if (!packet || packet->l4_header_bytes == 0 || !kind_matches(*packet, vnet.gso_type)) return std::nullopt;
  // virtio 1.3 5.1.6.2: segmentation includes the checksum, so the driver must have asked for it, and for this one.
  const uint32_t field = packet->protocol == kProtocolTcp ? kTcpChecksumOffset : kUdpChecksumOffset;
  if ((vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0) return std::nullopt;
  if (vnet.csum_start != packet->l4 || vnet.csum_offset != field || vnet.gso_size == 0) return std::nullopt;

  // The IP length decides where the payload ends (the frame may be padded); 0 is what some stacks leave to the device.
  const uint32_t available = frame_bytes - packet->l3;
  const uint32_t l3_bytes = packet->l3_bytes == 0 ? available : packet->l3_bytes;
  const uint32_t headers = uint32_t{packet->l4} + packet->l4_header_bytes;
  if (l3_bytes > available || packet->l3 + l3_bytes < headers) return std::nullopt;

  Segmenter segmenter;
  segmenter.packet_ = *packet;
  segmenter.header_bytes_ = headers;
  segmenter.payload_bytes_ = packet->l3 + l3_bytes - headers;
  segmenter.gso_size_ = vnet.gso_size;
  segmenter.count_ = std::max(1U, (segmenter.payload_bytes_ + vnet.gso_size - 1) / vnet.gso_size);
  if (segmenter.count_ > kMaxCount) return std::nullopt;
  if (segmenter.longest_l3_bytes() > 0xffff) return std::nullopt;  // does not fit the length fields
  std::memcpy(segmenter.header_.data(), start.data(), headers);
  return segmenter;
}

void Segmenter::write_ip(uint32_t i, uint32_t l3_bytes, uint8_t* ip) const {
  if (packet_.ip_version == 6) {
    store_be16(ip + 4, static_cast<uint16_t>(l3_bytes - 40));
    return;
  }
  const uint32_t header = uint32_t{packet_.l4} - packet_.l3;
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
  write_ip(i, header_bytes_ - packet_.l3 + payload, ip);
  write_transport(i, l4_bytes, l4);
  uint8_t* const field = l4 + (packet_.protocol == kProtocolTcp ? kTcpChecksumOffset : kUdpChecksumOffset);
  store_unaligned<uint16_t>(field, 0);
  // The header has an even length, so the payload's sum needs no shift.
  uint64_t sum = sum_pseudo_header(ip, packet_, l4_bytes);
  sum = sum_bytes(l4, packet_.l4_header_bytes, sum) + fold_sum(payload_sum);
  store_unaligned(field, transport_checksum(sum));
}

}  // namespace sw
