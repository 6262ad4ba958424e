// SPDX-License-Identifier: Apache-2.0
// The forwarding decision: a batch of frames from one port becomes, per destination port, a list of frame numbers.
// Order per (source, destination) is kept, floods included.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "l2/fdb.h"
#include "l2/policy.h"
#include "net/frame.h"
#include "stats/counters.h"

namespace sw {

// Frame numbers grouped by destination. One per worker, reused.
class Groups {
 public:
  void clear() {
    for (const PortId port : touched()) counts_[port] = 0;
    touched_count_ = 0;
  }
  void add(PortId port, uint8_t frame) {
    if (counts_[port] == 0) touched_[touched_count_++] = port;
    lists_[port][counts_[port]++] = frame;
  }
  // The list of one port, taken out while many frames in a row go there.
  struct List {
    PortId port = kNoPort;
    uint8_t count = 0;
    uint8_t* frames = nullptr;

    // Frames begin..end-1. Eight numbers are written at a time, beyond `end` too.
    void append(uint32_t begin, uint32_t end) {
      uint64_t numbers = 0x0706'0504'0302'0100 + begin * 0x0101'0101'0101'0101;
      uint8_t* to = frames + count;
      count = static_cast<uint8_t>(count + end - begin);
      store_unaligned(to, numbers);
      while (end - begin > 8) [[unlikely]] {
        begin += 8;
        to += 8;
        numbers += 0x0808'0808'0808'0808;
        store_unaligned(to, numbers);
      }
    }
  };
  List open(PortId port) {
    if (counts_[port] == 0) touched_[touched_count_++] = port;
    return {port, counts_[port], lists_[port].data()};
  }
  void close(const List& list) {
    if (list.frames != nullptr) counts_[list.port] = list.count;
  }
  [[nodiscard]] std::span<const PortId> touched() const { return {touched_.data(), touched_count_}; }
  [[nodiscard]] std::span<const uint8_t> of(PortId port) const { return {lists_[port].data(), counts_[port]}; }

 private:
  uint32_t touched_count_ = 0;
  std::array<PortId, kMaxPorts> touched_{};
  std::array<uint8_t, kMaxPorts> counts_{};
  std::array<std::array<uint8_t, kMaxBatch + 8>, kMaxPorts> lists_{};  // and room for what append() writes too much
};

// One worker's side of switching. Not shared between threads.
class Forwarder {
 public:
  Forwarder();
  ~Forwarder();
  // Admit, learn, look up, group. Dropped frames are counted in `counters.rx_drops`; for the others `replicated` and
  // `forwarded` grow so that received + replicated = forwarded + drops. Sets frame.vlan, tci, tagged.
  void forward(Batch& batch, const PortPolicy& source, const BridgeView& bridge, PortWorkerCounters& counters,
               Groups& out);
  // The plan changed: forget who gets floods.
  void reset();

 private:
  struct Scratch;
  std::unique_ptr<Scratch> scratch_;
};

// Give the frames of a group the tagging that `destination` wants. Nothing to do when bridge.vlan_transparent.
void shape_group(Batch& batch, std::span<const uint8_t> frames, const PortPolicy& destination);

// The same decisions for one frame, in words, for `swctl explain`: a step per rule, the last one the verdict.
std::vector<std::string> explain(std::span<const uint8_t> frame, const PortPolicy& source, const BridgeView& bridge);

}  // namespace sw
