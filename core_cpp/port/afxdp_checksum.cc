// SPDX-License-Identifier: Apache-2.0
#include "port/afxdp_checksum.h"

#include <algorithm>
#include <array>
#include <optional>
#include <span>

#include "base/bytes.h"
#include "net/checksum.h"
#include "net/packet.h"

namespace sw {

namespace {

constexpr uint32_t kLongHeaders = 512;

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

// `start`: the first bytes of the frame, parsed as `packet`.
bool restore(Frame& frame, std::span<const uint8_t> start, const std::optional<Packet>& packet, uint32_t max_l3_bytes) {
  const bool large = frame.len > max_l3_bytes + (packet ? packet->l3 : kEthHeaderBytes);
  if (!packet || packet->l4_header_bytes == 0 || packet->l3_bytes == 0) return !large;
  const bool tcp = packet->protocol == kProtocolTcp;
  const uint32_t csum_offset = tcp ? kTcpChecksumOffset : kUdpChecksumOffset;
  const uint32_t field = packet->l4 + csum_offset;
  const uint32_t packet_end = packet->l3 + packet->l3_bytes;
  if (packet_end > frame.len || packet_end < field + 2) return !large;
  const uint16_t stored = load_unaligned<uint16_t>(&start[field]);
  const uint64_t pseudo = sum_pseudo_header(&start[packet->l3], *packet, packet_end - packet->l4);
  if (stored == 0 || stored != fold_sum(pseudo)) return !large;

  if (packet_end < frame.len && field + 2 <= frame.head_len) {  // NEEDS_CSUM would sum the bytes behind the packet, too
    const uint16_t sum = transport_checksum(sum_part(frame, packet->l4, packet_end - packet->l4));
    store_unaligned(frame.data() + field, sum);
    return !large;
  }
  frame.vnet = VnetHeader{};
  frame.vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  frame.vnet.csum_start = packet->l4;
  frame.vnet.csum_offset = static_cast<uint16_t>(csum_offset);
  frame.offload = true;
  if (!large) return true;
  const uint32_t headers = packet->l4 - packet->l3 + packet->l4_header_bytes;
  if (!tcp || headers >= max_l3_bytes) return false;
  frame.vnet.gso_type = packet->ip_version == 4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
  frame.vnet.gso_size = static_cast<uint16_t>(max_l3_bytes - headers);
  frame.vnet.hdr_len = static_cast<uint16_t>(packet->l4 + packet->l4_header_bytes);
  return true;
}

// Headers that go on behind the head: options in IP and TCP, or several extension headers.
bool restore_long(Frame& frame, uint32_t max_l3_bytes) {
  std::array<uint8_t, kLongHeaders> copy;
  const uint32_t bytes = std::min(frame.len, kLongHeaders);
  copy_from_frame(frame, 0, copy.data(), bytes);
  const std::span<const uint8_t> start(copy.data(), bytes);
  return restore(frame, start, parse_packet(start), max_l3_bytes);
}

}  // namespace

bool restore_offload(Frame& frame, uint32_t max_l3_bytes) {
  std::span<const uint8_t> start(frame.data(), frame.head_len);
  auto packet = parse_packet(start);
  if (packet && packet->ip_version != 0 && packet->l4_header_bytes == 0 && frame.len > frame.head_len) {
    return restore_long(frame, max_l3_bytes);
  }
  return restore(frame, start, packet, max_l3_bytes);
}

}  // namespace sw
