// SPDX-License-Identifier: Apache-2.0
// Fuzz: any virtio-net header in front of any frame. The parser, the checksum and the segmenter stay inside the frame,
// and the segments carry its payload, whole and in order.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "net/checksum.h"
#include "net/packet.h"
#include "net/segment.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
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
      auto header = std::make_unique<uint8_t[]>(segmenter->header_bytes());
      segmenter->write_header(i, sum_bytes(frame.get() + next, payload), header.get());
      next += payload;
    }
  }
  const bool finished = finish_checksum({frame.get(), bytes}, vnet);
  require(finished == checksum_fits(vnet, bytes));
  return 0;
}
