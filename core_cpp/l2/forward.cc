// SPDX-License-Identifier: Apache-2.0
// Theory of operation. Two loops over the batch. The first one admits every frame and asks two small caches of this
// worker: is the source known at this port, and where did this destination lead from this port? What they do not know
// is prefetched from the table. The second loop, in frame order, learns and looks up what is missing and fills the
// groups.
//
// The caches are direct-mapped and keyed by source port, so that one port's addresses cannot answer for another's. An
// entry holds the Fdb's generation of the time *before* the table was asked; anything that moves or vanishes changes
// the generation. A source entry also holds the epoch: once an epoch the table hears that the address lives. If
// learning a frame of this very batch changed the generation, answers taken before are asked for again, so that a batch
// gives what its frames would give one by one.
#include "l2/forward.h"

#include "base/bytes.h"
#include "l2/rules.h"

namespace sw {

namespace {

constexpr uint32_t kCacheBits = 9;
constexpr PortId kAsk = 0xfffe;      // unicast: ask the table
constexpr PortId kToAll = 0xfffd;    // broadcast or multicast
constexpr PortId kDropped = 0xfffc;  // counted already

struct CacheEntry {
  uint64_t key = 0;  // MAC and VLAN
  uint64_t tag = 0;  // generation << 32 | source port + 1 << 16 | epoch or destination
};
using Cache = std::array<CacheEntry, 1 << kCacheBits>;

constexpr uint64_t cache_key(Mac mac, uint16_t vlan) { return mac << 16 | vlan; }
constexpr uint64_t cache_tag(uint32_t generation, PortId source, uint16_t low) {
  return uint64_t{generation} << 32 | (uint64_t{source} + 1) << 16 |
         low;  // + 1: no tag is 0, the value of an empty entry
}
// The low bits of the product's top: the source port is mixed in, or a gateway's many clients would share one entry.
constexpr size_t cache_index(uint64_t key, PortId source) {
  return ((key + (uint64_t{source} << 12)) * 0x9e37'79b9'7f4a'7c15) >> (64 - kCacheBits);
}

struct Pending {
  Mac source, destination;
  PortId to;   // a port, or one of the values above
  bool learn;  // the source cache did not know it
};

}  // namespace

struct Forwarder::Caches {
  Cache sources{}, destinations{};
  std::array<Pending, kMaxBatch> pending;
  struct Flood {
    bool valid = false;
    PortId source = kNoPort;
    uint16_t vlan = 0;
    FloodSet set;
  };
  std::array<Flood, 2> floods;  // for broadcast and multicast, for unknown unicast; both belong to the present plan

  void admit_all(Batch& batch, const PortPolicy& source, const Fdb& fdb, uint32_t generation,
                 PortWorkerCounters& counters);
  void learn(const Frame& frame, const Pending& item, const PortPolicy& source, Fdb& fdb);
  PortId look_up(const Frame& frame, Mac destination, const PortPolicy& source, const BridgeView& bridge,
                 PortWorkerCounters& counters);
  const FloodSet& flood_set(uint16_t vlan, bool unknown, const PortPolicy& source, const BridgeView& bridge);
};

Forwarder::Forwarder() : caches_(std::make_unique<Caches>()) {}
Forwarder::~Forwarder() = default;

void Forwarder::reset() {
  caches_->sources.fill({});
  caches_->destinations.fill({});
  for (Caches::Flood& flood : caches_->floods) flood.valid = false;
}

void Forwarder::forward(Batch& batch, const PortPolicy& source, const BridgeView& bridge, PortWorkerCounters& counters,
                        Groups& out) {
  Caches& caches = *caches_;
  Fdb& fdb = *bridge.fdb;
  const uint32_t generation = fdb.generation();
  caches.admit_all(batch, source, fdb, generation, counters);

  uint64_t forwarded = 0, passed = 0;
  bool changed = false;  // the cached answers of the first loop are out of date
  for (uint32_t i = 0; i < batch.count; ++i) {
    const Pending& item = caches.pending[i];
    if (item.to == kDropped) continue;
    const Frame& frame = batch.frames[i];
    if (item.learn) {
      caches.learn(frame, item, source, fdb);
      changed = changed || fdb.generation() != generation;
    }
    PortId to = item.to;
    if (to == kAsk || (changed && to != kToAll)) {
      to = caches.look_up(frame, item.destination, source, bridge, counters);
      if (to == kDropped) continue;
    }
    if (to < kMaxPorts) {
      out.add(to, static_cast<uint8_t>(i));
      ++passed;
      ++forwarded;
      continue;
    }
    const FloodSet& all = caches.flood_set(frame.vlan, to != kToAll, source, bridge);
    for (const PortId port : all.ports()) out.add(port, static_cast<uint8_t>(i));
    if (all.ports().empty()) {
      counters.drop_rx(all.drop());
    } else {
      ++passed;
      forwarded += all.ports().size();
    }
  }
  if (passed > 0) {
    counters.forwarded.add(forwarded);
    if (forwarded != passed) counters.replicated.add(forwarded - passed);
  }
}

// The first loop: set vlan, tci and tagged of every frame, and what the caches know.
void Forwarder::Caches::admit_all(Batch& batch, const PortPolicy& source, const Fdb& fdb, uint32_t generation,
                                  PortWorkerCounters& counters) {
  const uint64_t known = cache_tag(generation, source.id, fdb.epoch());
  const uint64_t answer = cache_tag(generation, source.id, 0);
  uint64_t last_front = 0, last_back = 0;
  int last = -1;  // an untagged frame that was admitted
  for (uint32_t i = 0; i < batch.count; ++i) {
    Frame& frame = batch.frames[i];
    const uint8_t* const head = frame.data();
    // Guests send in trains: the same addresses and type as the frame before mean the same result.
    const auto front = load_unaligned<uint64_t>(head), back = load_unaligned<uint64_t>(head + kMacBytes);
    if (last >= 0 && front == last_front && back == last_back) {
      const Frame& before = batch.frames[static_cast<uint32_t>(last)];
      frame.vlan = before.vlan;
      frame.tci = before.tci;
      frame.tagged = false;
      pending[i] = pending[static_cast<uint32_t>(last)];
      continue;
    }
    const Admission admission = admit(head, frame.head_len, source);
    frame.vlan = admission.vlan;
    frame.tci = admission.tci;
    frame.tagged = admission.tagged;
    Pending& item = pending[i];
    if (admission.drop != kNoDrop) {
      counters.drop_rx(admission.drop);
      item.to = kDropped;
      continue;
    }
    item = {admission.source, admission.destination, kToAll, false};
    if (source.learning) {
      const uint64_t key = cache_key(admission.source, admission.vlan);
      const CacheEntry& entry = sources[cache_index(key, source.id)];
      item.learn = entry.key != key || entry.tag != known;
      if (item.learn) fdb.prefetch(admission.vlan, admission.source);
    }
    if (!is_multicast(admission.destination)) {
      const uint64_t key = cache_key(admission.destination, admission.vlan);
      const CacheEntry& entry = destinations[cache_index(key, source.id)];
      const bool hit = entry.key == key && (entry.tag ^ answer) < kMaxPorts;
      item.to = hit ? static_cast<PortId>(entry.tag ^ answer) : kAsk;
      if (!hit) fdb.prefetch(admission.vlan, admission.destination);
    }
    if (!admission.tagged) {
      last = static_cast<int>(i);
      last_front = front;
      last_back = back;
    }
  }
}

void Forwarder::Caches::learn(const Frame& frame, const Pending& item, const PortPolicy& source, Fdb& fdb) {
  const uint32_t generation = fdb.generation();
  const uint8_t epoch = fdb.epoch();
  const LearnResult result = fdb.learn(frame.vlan, item.source, source);
  // Refused and busy ones are tried again with the next frame: limits are raised and entries go.
  if (result == LearnResult::kRefused || result == LearnResult::kBusy) return;
  const uint64_t key = cache_key(item.source, frame.vlan);
  sources[cache_index(key, source.id)] = {key, cache_tag(generation, source.id, epoch)};
}

PortId Forwarder::Caches::look_up(const Frame& frame, Mac destination, const PortPolicy& source,
                                  const BridgeView& bridge, PortWorkerCounters& counters) {
  const uint32_t generation = bridge.fdb->generation();
  const Route found = route(bridge.fdb->lookup(frame.vlan, destination), frame.vlan, source, bridge);
  if (found.drop != kNoDrop) {
    counters.drop_rx(found.drop);
    return kDropped;
  }
  if (found.port != kNoPort) {
    const uint64_t key = cache_key(destination, frame.vlan);
    destinations[cache_index(key, source.id)] = {key, cache_tag(generation, source.id, found.port)};
  }
  return found.port;
}

const FloodSet& Forwarder::Caches::flood_set(uint16_t vlan, bool unknown, const PortPolicy& source,
                                             const BridgeView& bridge) {
  Flood& flood = floods[unknown ? 1 : 0];
  if (!flood.valid || flood.source != source.id || flood.vlan != vlan) {
    flood.set.compute(vlan, unknown, source, bridge);
    flood.source = source.id;
    flood.vlan = vlan;
    flood.valid = true;
  }
  return flood.set;
}

void shape_group(Batch& batch, std::span<const uint8_t> frames, const PortPolicy& destination) {
  for (const uint8_t number : frames) {
    Frame& frame = batch.frames[number];
    if (leaves_tagged(frame.vlan, destination.vlan)) {
      shape_tagged(frame);
    } else {
      shape_untagged(frame);
    }
  }
}

}  // namespace sw
