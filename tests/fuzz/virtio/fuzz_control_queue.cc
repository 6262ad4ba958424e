// SPDX-License-Identifier: Apache-2.0
// An arbitrary device behind a control queue of ours. Input: one byte of choices, then records of 4 bytes: give back an
// id with an answer, or write two bytes anywhere into ring and buffers. Memory lies between inaccessible pages.
#include <unistd.h>

#include <array>
#include <optional>

#include "device_fuzz.h"
#include "virtio/control_queue.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sw;
  using fuzz::check;
  static uint8_t* const memory = fuzz::guarded(fuzz::kPage);
  if (size < 1) return 0;
  const bool packed = (*data & 1) != 0;
  const auto entries = static_cast<uint16_t>(2U << (*data >> 2) % 6);
  std::memset(memory, 0, fuzz::kPage);
  DriverRingConfig config;
  config.features = feature_mask(VIRTIO_F_VERSION_1) | (packed ? feature_mask(VIRTIO_F_RING_PACKED) : 0) |
                    ((*data & 2) != 0 ? feature_mask(VIRTIO_F_EVENT_IDX) : 0);
  config.ring = {entries, memory, memory + 0x500, memory + 0xa00};
  config.buffers = memory + fuzz::kPage - kControlBufferBytes;
  config.device_address = reinterpret_cast<uintptr_t>(config.buffers);
  ControlQueue queue(config);
  const std::array<uint8_t, 2> pairs = {2, 0};
  bool under_way = false;
  uint16_t slot = 0;
  bool wrap = true;
  bool scribbled = false;
  for (++data, --size; size >= 4; data += 4, size -= 4) {
    if (!under_way && queue.broken().empty()) {
      queue.submit(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, pairs);
      under_way = true;
    }
    const bool usable = under_way && queue.broken().empty();
    const auto number = static_cast<uint16_t>(data[2] | data[3] << 8);
    if (data[0] < 0x80) {
      config.buffers[kControlCommandBytes] = data[1] & 3;
      if (packed) {
        auto& desc = reinterpret_cast<VringPackedDesc*>(config.ring.descriptors)[slot];
        desc.id = number & 1;
        desc.flags = packed_used_flags(wrap);
        slot = static_cast<uint16_t>(slot + 2);
        if (slot >= entries) slot = 0, wrap = !wrap;
      } else {
        auto* const used = reinterpret_cast<VringUsed*>(config.ring.device_area);
        used->ring[used->idx % entries] = {number & 1U, 1};
        ++used->idx;
      }
    } else {
      scribbled = true;
      std::memcpy(memory + (data[0] << 8 | data[1]) % (fuzz::kPage - 1), data + 2, 2);
    }
    const auto answer = queue.answer();
    check(static_cast<bool>(answer) == queue.broken().empty());
    // A device that did nothing but give back is believed exactly when the id is ours and the answer one of two.
    if (!scribbled && usable) check(static_cast<bool>(answer) == ((number & 1) == 0 && (data[1] & 3) < 2));
    if (answer && *answer) under_way = false;
  }
  return 0;
}
