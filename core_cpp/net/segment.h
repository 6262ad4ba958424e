// SPDX-License-Identifier: Apache-2.0
// Segmenter: cuts a GSO frame (TCP over IPv4 or IPv6, UDP; in a tunnel or not) into frames that fit the wire, with
// correct headers.
//
// Theory of operation. Only the headers are copied; the payload stays where it is, and the caller brings each part of
// it together with a header made here. The headers are parsed from scratch: hdr_len is a hint of a guest and is not
// used (virtio 1.3 5.1.6.2), csum_start and csum_offset must name the transport header that was found, and the
// pseudo-header is summed anew. What does not add up is refused. The number of segments is bounded, so that a guest
// cannot turn one frame into a long stall of the worker.
//
// If csum_start lies behind the frame's own transport header, the packet to be cut is inside a tunnel's (net/tunnel.h).
// Kernels leave such frames to a device as if there were no tunnel: on AF_PACKET they look like that. Each segment then
// gets the tunnel's headers, too: lengths, identification and checksums made for it, an outer UDP checksum of 0 left 0.
// A tunnel is believed only if its packet and the inner one end at the same byte.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "net/packet.h"
#include "net/vnet_header.h"

namespace sw {

class Segmenter {
 public:
  static constexpr uint32_t kMaxHeaderBytes = 256;  // Ethernet to transport; larger ones are refused
  static constexpr uint32_t kMaxCount = 256;        // 64 KB at 256 bytes each

  // `start`: the first min(frame_bytes, kMaxHeaderBytes) bytes of the frame, or more. nullopt: cannot be segmented.
  static std::optional<Segmenter> make(std::span<const uint8_t> start, uint32_t frame_bytes, const VnetHeader& vnet);

  [[nodiscard]] uint32_t count() const { return count_; }
  [[nodiscard]] uint32_t header_bytes() const { return header_bytes_; }
  [[nodiscard]] uint32_t all_payload_bytes() const { return payload_bytes_; }
  [[nodiscard]] const Packet& packet() const { return packet_; }  // the one that is cut, inside all tunnels
  [[nodiscard]] bool in_tunnel() const { return outer_count_ != 0; }
  // Which bytes of the frame are the payload of segment `i` < count().
  [[nodiscard]] uint32_t payload_offset(uint32_t i) const { return header_bytes_ + i * gso_size_; }
  [[nodiscard]] uint32_t payload_bytes(uint32_t i) const {
    return i + 1 == count_ ? payload_bytes_ - i * gso_size_ : gso_size_;
  }
  // Length of the longest segment from its network header on, to compare with an MTU.
  [[nodiscard]] uint32_t longest_l3_bytes() const { return header_bytes_ - first_l3() + payload_bytes(0); }

  // Write the header_bytes() bytes of headers of segment `i`. `payload_sum`: sum (net/checksum.h) of its payload.
  void write_header(uint32_t i, uint64_t payload_sum, uint8_t* to) const;

 private:
  static constexpr uint32_t kMaxTunnels = 2;  // one in the other

  Segmenter() = default;
  [[nodiscard]] uint32_t first_l3() const { return outer_count_ == 0 ? packet_.l3 : outer_[0].l3; }
  bool find_packet(std::span<const uint8_t> start, uint32_t frame_bytes, uint32_t l4);
  static void write_ip(const Packet& packet, uint32_t i, uint32_t l3_bytes, uint8_t* ip);
  void write_transport(uint32_t i, uint32_t l4_bytes, uint8_t* l4) const;
  void write_tunnel(const Packet& outer, uint32_t i, uint64_t payload_sum, uint8_t* to) const;

  Packet packet_;
  std::array<Packet, kMaxTunnels> outer_;  // the tunnels' own packets, the outermost first
  uint32_t outer_count_ = 0;
  uint32_t header_bytes_ = 0;
  uint32_t payload_bytes_ = 0;
  uint32_t gso_size_ = 0;
  uint32_t count_ = 0;
  std::array<uint8_t, kMaxHeaderBytes> header_;  // the first header_bytes_ are set
};

}  // namespace sw
