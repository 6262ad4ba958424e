// SPDX-License-Identifier: Apache-2.0
// Segmenter: cuts a GSO frame (TCP over IPv4 or IPv6, UDP) into frames that fit the wire, with correct headers.
//
// Theory of operation. Only the headers are copied; the payload stays where it is, and the caller brings each part of
// it together with a header made here. The headers are parsed from scratch: hdr_len is a hint of a guest and is not
// used (virtio 1.3 5.1.6.2), csum_start and csum_offset must name the transport header that was found, and the
// pseudo-header is summed anew. What does not add up is refused. The number of segments is bounded, so that a guest
// cannot turn one frame into a long stall of the worker.
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
  [[nodiscard]] const Packet& packet() const { return packet_; }
  // Which bytes of the frame are the payload of segment `i` < count().
  [[nodiscard]] uint32_t payload_offset(uint32_t i) const { return header_bytes_ + i * gso_size_; }
  [[nodiscard]] uint32_t payload_bytes(uint32_t i) const {
    return i + 1 == count_ ? payload_bytes_ - i * gso_size_ : gso_size_;
  }
  // Length of the longest segment from its network header on, to compare with an MTU.
  [[nodiscard]] uint32_t longest_l3_bytes() const { return header_bytes_ - packet_.l3 + payload_bytes(0); }

  // Write the header_bytes() bytes of headers of segment `i`. `payload_sum`: sum (net/checksum.h) of its payload.
  void write_header(uint32_t i, uint64_t payload_sum, uint8_t* to) const;

 private:
  Segmenter() = default;
  void write_ip(uint32_t i, uint32_t l3_bytes, uint8_t* ip) const;
  void write_transport(uint32_t i, uint32_t l4_bytes, uint8_t* l4) const;

  Packet packet_;
  uint32_t header_bytes_ = 0;
  uint32_t payload_bytes_ = 0;
  uint32_t gso_size_ = 0;
  uint32_t count_ = 0;
  std::array<uint8_t, kMaxHeaderBytes> header_;  // the first header_bytes_ are set
};

}  // namespace sw
