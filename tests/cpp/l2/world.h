// SPDX-License-Identifier: Apache-2.0
// A bridge with ports for tests of forwarding: frames in as bytes, frames out as bytes per port.
#pragma once

#include <doctest/doctest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "l2/forward.h"

namespace sw::testing {

using Bytes = std::vector<uint8_t>;

// "ffffffffffff 020000000001 0800 61 62": hexadecimal, blanks anywhere.
inline Bytes bytes(const std::string& text) {
  Bytes result;
  std::string digits;
  for (const char c : text) {
    if (c == ' ') continue;
    digits += c;
    if (digits.size() == 2) {
      result.push_back(static_cast<uint8_t>(std::stoi(digits, nullptr, 16)));
      digits.clear();
    }
  }
  REQUIRE(digits.empty());
  return result;
}

inline PortPolicy plain(PortId id) {
  PortPolicy policy;
  policy.id = id;
  return policy;
}
inline PortPolicy access(PortId id, uint16_t vid) {
  PortPolicy policy = plain(id);
  policy.vlan = {.access = true, .untagged = vid, .trunk = {}};
  return policy;
}
inline PortPolicy trunk(PortId id, const std::vector<uint16_t>& vids, uint16_t native = 0) {
  PortPolicy policy = plain(id);
  policy.vlan = {.access = false, .untagged = native, .trunk = {}};
  for (const uint16_t vid : vids) policy.vlan.trunk.set(vid);
  return policy;
}

class World {
 public:
  explicit World(std::vector<PortPolicy> ports, uint32_t mac_limit = 1000)
      : fdb(std::make_unique<Fdb>(mac_limit, 300)), policies_(std::move(ports)) {
    plan();
  }

  // Publish changed policies, as a new plan would.
  void plan() {
    bridge.fdb = fdb.get();
    bridge.ports.assign(kMaxPorts, nullptr);
    bridge.members.clear();
    bridge.vlan_transparent = true;
    for (const PortPolicy& policy : policies_) {
      bridge.ports[policy.id] = &policy;
      bridge.members.push_back(&policy);
      const VlanPolicy usual;
      if (policy.vlan.access || policy.vlan.untagged != 0 || policy.vlan.trunk != usual.trunk) {
        bridge.vlan_transparent = false;
      }
    }
    forwarder->reset();
  }
  PortPolicy& policy(PortId id) {
    for (PortPolicy& policy : policies_) {
      if (policy.id == id) return policy;
    }
    FAIL("no such port");
    return policies_[0];
  }

  // Send frames in one batch from `from`; what comes out where, in order.
  std::map<PortId, std::vector<Bytes>> send(PortId from, const std::vector<Bytes>& frames) {
    REQUIRE(frames.size() <= kMaxBatch);
    batch->clear();
    for (const Bytes& frame : frames) load(frame);
    groups->clear();
    received += frames.size();
    forwarder->forward(*batch, policy(from), bridge, counters, *groups);
    std::map<PortId, std::vector<Bytes>> out;
    for (const PortId to : groups->touched()) {
      if (!bridge.vlan_transparent) shape_group(*batch, groups->of(to), *bridge.ports[to]);
      for (const uint8_t index : groups->of(to)) {
        const Frame& frame = batch->frames[index];
        Bytes left(frame.len);
        copy_from_frame(frame, 0, left.data(), frame.len);
        out[to].push_back(left);
        ++copies;
      }
    }
    // The law of stats/counters.h, after every batch.
    CHECK(received + counters.replicated.get() == counters.forwarded.get() + drops());
    CHECK(counters.forwarded.get() == copies);
    return out;
  }
  std::map<PortId, std::vector<Bytes>> send(PortId from, const Bytes& frame) {
    return send(from, std::vector<Bytes>{frame});
  }

  [[nodiscard]] uint64_t drops() const {
    uint64_t sum = 0;
    for (const Counter& counter : counters.rx_drops) sum += counter.get();
    return sum;
  }
  [[nodiscard]] uint64_t drops(DropReason reason) const { return counters.rx_drops[static_cast<size_t>(reason)].get(); }

  std::unique_ptr<Fdb> fdb;
  BridgeView bridge;
  std::unique_ptr<Forwarder> forwarder = std::make_unique<Forwarder>();
  PortWorkerCounters counters;  // of all ports together
  std::unique_ptr<Batch> batch = std::make_unique<Batch>();
  std::unique_ptr<Groups> groups = std::make_unique<Groups>();
  uint64_t received = 0, copies = 0;

 private:
  void load(const Bytes& bytes) {
    REQUIRE(bytes.size() >= kEthHeaderBytes);
    Frame& frame = batch->frames[batch->count++];
    frame = Frame{};
    frame.len = static_cast<uint32_t>(bytes.size());
    frame.head_len = static_cast<uint16_t>(std::min<size_t>(bytes.size(), kHeadBytes));
    std::memcpy(frame.head, bytes.data(), frame.head_len);
    body_.push_back(std::make_unique<Bytes>(bytes.begin() + frame.head_len, bytes.end()));
    if (body_.size() > kMaxBatch) body_.erase(body_.begin());
    Segment& segment = batch->segments[batch->segments_used++];
    segment = {body_.back()->data(), static_cast<uint32_t>(body_.back()->size())};
    frame.segments = &segment;
    frame.segment_count = segment.len > 0 ? 1 : 0;
  }

  std::vector<PortPolicy> policies_;
  std::vector<std::unique_ptr<Bytes>> body_;
};

}  // namespace sw::testing
