// SPDX-License-Identifier: Apache-2.0
// Fuzz: any virtio-net header in front of any frame. The parser, the checksum and the segmenter stay inside the frame,
// the segments carry its payload, whole and in order, and every length and checksum in them is right, also those of the
// tunnels around the packet.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>

#include "net/checksum.h"
#include "net/packet.h"
#include "net/segment.h"
#include "net/tunnel.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

// Sum of `bytes` bytes, big-endian words, one by one: 0xffff where a right checksum is among them.
uint32_t plain_sum(const uint8_t* data, size_t bytes, uint32_t sum = 0) {
  for (size_t i = 0; i < bytes; ++i) {
    sum += i % 2 == 0 ? uint32_t{data[i]} << 8 : data[i];
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum;
}

void check_transport(std::span<const uint8_t> segment, const sw::Packet& packet) {
  const uint8_t* const l4 = segment.data() + packet.l4;
  const size_t bytes = segment.size() - packet.l4;
  if (packet.protocol == sw::kProtocolUdp) {
    require(sw::load_be16(l4 + 4) == bytes);
    if (sw::load_be16(l4 + 6) == 0) return;
  } else if (packet.protocol == sw::kProtocolGre) {
    if ((l4[0] & 0x80) != 0) require(plain_sum(l4, bytes) == 0xffff);
    return;
  } else if (packet.protocol != sw::kProtocolTcp) {
    return;
  }
  const uint8_t* const ip = segment.data() + packet.l3;
  const uint32_t addresses = packet.ip_version == 4 ? plain_sum(ip + 12, 8) : plain_sum(ip + 8, 32);
  const std::array<uint8_t, 6> rest = {
      0, packet.protocol, 0, 0, static_cast<uint8_t>(bytes >> 8), static_cast<uint8_t>(bytes)};
  require(plain_sum(l4, bytes, plain_sum(rest.data(), rest.size(), addresses)) == 0xffff);
}

// From the outermost packet to the one whose transport header is at `l4`.
void check_segment(std::span<const uint8_t> segment, uint32_t l4) {
  auto packet = sw::parse_packet(segment);
  for (;;) {
    require(packet && packet->ip_version != 0 && packet->l3 + packet->l3_bytes == segment.size());
    const uint8_t* const ip = segment.data() + packet->l3;
    if (packet->ip_version == 4) require(plain_sum(ip, packet->l4 - packet->l3) == 0xffff);
    check_transport(segment, *packet);
    if (packet->l4 == l4) return;
    packet = sw::parse_inner(segment, *packet);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sw;
  VnetHeader vnet;
  if (size < sizeof vnet) return 0;
  std::memcpy(&vnet, data, sizeof vnet);
  const auto bytes = static_cast<uint32_t>(std::min<size_t>(size - sizeof vnet, kMaxFrameBytes));
  auto frame = std::make_unique<uint8_t[]>(bytes);  // exactly as long as the frame
  std::memcpy(frame.get(), data + sizeof vnet, bytes);

  (void)parse_packet({frame.get(), bytes});
  const auto segmenter = Segmenter::make({frame.get(), bytes}, bytes, vnet);
  if (segmenter) {
    require(segmenter->count() >= 1 && segmenter->count() <= Segmenter::kMaxCount);
    uint32_t next = segmenter->header_bytes();
    for (uint32_t i = 0; i < segmenter->count(); ++i) {
      require(segmenter->payload_offset(i) == next);
      const uint32_t payload = segmenter->payload_bytes(i);
      require(payload <= vnet.gso_size && next + payload <= bytes);
      const uint32_t headers = segmenter->header_bytes();
      auto segment = std::make_unique<uint8_t[]>(headers + payload);
      auto header = std::make_unique<uint8_t[]>(headers);
      segmenter->write_header(i, sum_bytes(frame.get() + next, payload), header.get());
      std::memcpy(segment.get(), header.get(), headers);
      std::memcpy(segment.get() + headers, frame.get() + next, payload);
      check_segment({segment.get(), headers + payload}, vnet.csum_start);
      next += payload;
    }
  }
  const bool finished = finish_checksum({frame.get(), bytes}, vnet);
  require(finished == checksum_fits(vnet, bytes));
  return 0;
}
