// SPDX-License-Identifier: Apache-2.0
// Test frames with offload headers, and a slow, independent opinion on what a correct frame is: byte by byte,
// big-endian, sharing no code with net/.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "net/vnet_header.h"

namespace sw::test {

using Bytes = std::vector<uint8_t>;

struct OffloadShape {
  int ip_version = 4;
  bool udp = false;
  int tags = 0;            // 802.1Q tags
  size_t ip_options = 0;   // IPv4: bytes, multiple of 4. IPv6: bytes of destination options, multiple of 8
  size_t tcp_options = 0;  // multiple of 4
  size_t payload = 0;
  uint16_t gso_size = 0;     // 0: checksum only
  uint8_t tcp_flags = 0x18;  // ACK PSH
  uint16_t ip_id = 0xfffe;   // wraps after two segments
  uint32_t sequence = 0xffffff00U;
};

struct OffloadFrame {
  Bytes bytes;
  VnetHeader vnet;
  size_t l3 = 0;
  size_t l4 = 0;
  size_t headers = 0;
};

inline void put16(Bytes& to, size_t value) {
  to.push_back(static_cast<uint8_t>(value >> 8));
  to.push_back(static_cast<uint8_t>(value));
}
inline uint16_t get16(const Bytes& from, size_t at) {
  return static_cast<uint16_t>(from.at(at) << 8 | from.at(at + 1));
}
inline uint32_t get32(const Bytes& from, size_t at) {
  return static_cast<uint32_t>(get16(from, at)) << 16 | get16(from, at + 2);
}
inline void set16(Bytes& in, size_t at, size_t value) {
  in.at(at) = static_cast<uint8_t>(value >> 8);
  in.at(at + 1) = static_cast<uint8_t>(value);
}

// RFC 1071 in its plainest form: big-endian words, end-around carry at every step.
inline uint16_t naive_sum(const Bytes& data, size_t from, size_t to, uint32_t sum = 0) {
  for (size_t i = from; i < to; i += 2) {
    sum += static_cast<uint32_t>(data.at(i)) << 8;
    if (i + 1 < to) sum += data.at(i + 1);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return static_cast<uint16_t>(sum);
}

inline uint16_t naive_pseudo_sum(const Bytes& frame, size_t l3, uint8_t protocol, size_t l4_bytes) {
  const bool v6 = frame.at(l3) >> 4 == 6;
  uint32_t sum = v6 ? naive_sum(frame, l3 + 8, l3 + 40) : naive_sum(frame, l3 + 12, l3 + 20);
  sum += protocol;
  sum += static_cast<uint32_t>(l4_bytes >> 16);
  sum += static_cast<uint32_t>(l4_bytes & 0xffff);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(sum);
}

inline OffloadFrame make_offload_frame(const OffloadShape& shape, uint32_t seed = 1) {
  std::mt19937 random(seed);
  OffloadFrame out;
  Bytes& b = out.bytes;
  b = {0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1};
  for (int i = 0; i < shape.tags; ++i) {
    put16(b, 0x8100);
    put16(b, 100 + static_cast<size_t>(i));
  }
  const size_t l4_header = shape.udp ? 8 : 20 + shape.tcp_options;
  const uint8_t protocol = shape.udp ? 17 : 6;
  const size_t l4_bytes = l4_header + shape.payload;
  put16(b, shape.ip_version == 4 ? 0x0800 : 0x86dd);
  out.l3 = b.size();
  if (shape.ip_version == 4) {
    b.push_back(static_cast<uint8_t>(0x45 + shape.ip_options / 4));
    b.push_back(0);
    put16(b, (20 + shape.ip_options + l4_bytes) & 0xffff);
    put16(b, shape.ip_id);
    put16(b, 0x4000);
    b.insert(b.end(), {64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2});
    b.insert(b.end(), shape.ip_options, 1);  // no-operation options
    set16(b, out.l3 + 10, 0xffffU - naive_sum(b, out.l3, b.size()));
  } else {
    b.insert(b.end(), {0x60, 0, 0, 0});
    put16(b, (shape.ip_options + l4_bytes) & 0xffff);
    b.push_back(shape.ip_options != 0 ? 60 : protocol);
    b.push_back(64);
    for (int i = 0; i < 32; ++i) b.push_back(static_cast<uint8_t>(0x20 + i));
    if (shape.ip_options != 0) {
      b.push_back(protocol);
      b.push_back(static_cast<uint8_t>(shape.ip_options / 8 - 1));
      b.insert(b.end(), {1, static_cast<uint8_t>(shape.ip_options - 4)});  // PadN
      b.insert(b.end(), shape.ip_options - 4, 0);
    }
  }
  out.l4 = b.size();
  put16(b, 1234);
  put16(b, 80);
  if (shape.udp) {
    put16(b, l4_bytes & 0xffff);
    put16(b, 0);
  } else {
    put16(b, shape.sequence >> 16);
    put16(b, shape.sequence & 0xffff);
    put16(b, 0x1111);
    put16(b, 0x2222);
    b.push_back(static_cast<uint8_t>((l4_header / 4) << 4));
    b.push_back(shape.tcp_flags);
    put16(b, 512);
    put16(b, 0);
    put16(b, 0);
    b.insert(b.end(), shape.tcp_options, 1);
  }
  out.headers = b.size();
  for (size_t i = 0; i < shape.payload; ++i) b.push_back(static_cast<uint8_t>(random()));
  out.vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  out.vnet.csum_start = static_cast<uint16_t>(out.l4);
  out.vnet.csum_offset = shape.udp ? 6 : 16;
  set16(b, out.l4 + out.vnet.csum_offset, naive_pseudo_sum(b, out.l3, protocol, l4_bytes));
  if (shape.gso_size != 0) {
    out.vnet.gso_size = shape.gso_size;
    out.vnet.hdr_len = static_cast<uint16_t>(out.headers);
    out.vnet.gso_type = shape.udp               ? VIRTIO_NET_HDR_GSO_UDP_L4
                        : shape.ip_version == 4 ? VIRTIO_NET_HDR_GSO_TCPV4
                                                : VIRTIO_NET_HDR_GSO_TCPV6;
  }
  return out;
}

// "" if the transport checksum of the frame is right, otherwise what is wrong. `l3`, `l4` as in the original.
inline std::string check_transport(const Bytes& frame, const OffloadFrame& original) {
  const bool udp = original.vnet.csum_offset == 6;
  const size_t l4_bytes = frame.size() - original.l4;
  const uint8_t protocol = udp ? 17 : 6;
  const uint16_t sum =
      naive_sum(frame, original.l4, frame.size(), naive_pseudo_sum(frame, original.l3, protocol, l4_bytes));
  if (sum != 0xffff && sum != 0) return "transport checksum does not verify";
  if (get16(frame, original.l4 + original.vnet.csum_offset) == 0) return "transport checksum is zero";
  return "";
}

// The segments a GSO frame must become, built field by field.
inline std::vector<Bytes> naive_segments(const OffloadFrame& original) {
  std::vector<Bytes> out;
  const bool udp = original.vnet.csum_offset == 6;
  const bool v4 = original.bytes.at(original.l3) >> 4 == 4;
  size_t at = original.headers;
  const size_t end = original.bytes.size();
  do {
    const size_t part = std::min<size_t>(original.vnet.gso_size, end - at);
    Bytes segment(original.bytes.begin(), original.bytes.begin() + static_cast<long>(original.headers));
    segment.insert(segment.end(), original.bytes.begin() + static_cast<long>(at),
                   original.bytes.begin() + static_cast<long>(at + part));
    const bool first = at == original.headers;
    const bool last = at + part == end;
    const size_t l3_bytes = segment.size() - original.l3;
    if (v4) {
      set16(segment, original.l3 + 2, l3_bytes);
      set16(segment, original.l3 + 4, get16(segment, original.l3 + 4) + out.size());
      set16(segment, original.l3 + 10, 0);
      set16(segment, original.l3 + 10, 0xffffU - naive_sum(segment, original.l3, original.l4));
    } else {
      set16(segment, original.l3 + 4, l3_bytes - 40);
    }
    if (udp) {
      set16(segment, original.l4 + 4, segment.size() - original.l4);
    } else {
      const uint32_t sequence = get32(segment, original.l4 + 4) + static_cast<uint32_t>(at - original.headers);
      set16(segment, original.l4 + 4, sequence >> 16);
      set16(segment, original.l4 + 6, sequence & 0xffff);
      if (!last) segment[original.l4 + 13] &= 0xf6;   // neither FIN nor PSH
      if (!first) segment[original.l4 + 13] &= 0x7f;  // no CWR
    }
    const size_t field = original.l4 + original.vnet.csum_offset;
    set16(segment, field, 0);
    const uint32_t pseudo = naive_pseudo_sum(segment, original.l3, udp ? 17 : 6, segment.size() - original.l4);
    const uint16_t sum = naive_sum(segment, original.l4, segment.size(), pseudo);
    set16(segment, field, sum == 0xffff ? 0xffff : 0xffffU - sum);
    out.push_back(segment);
    at += part;
  } while (at < end);
  return out;
}

}  // namespace sw::test
