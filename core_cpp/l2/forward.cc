// SPDX-License-Identifier: Apache-2.0
// Theory of operation. Two small caches of this worker stand in front of the table: is the source known at this port, and
// where did this destination lead from this port? In steady state they know everything, and one loop over the batch
// (forward_known) is all: what entered a cache was admitted before, so a hit needs no rule again. From the first frame on
// that they do not know, forward_rest goes in two loops: admit every frame and prefetch what must be asked from the table;
// then, in frame order, learn, look up and fill the groups.
//
// The caches are two-way and keyed by source port, so that one port's addresses cannot answer for another's. An entry
// holds the Fdb's generation of the time *before* the table was asked; anything that moves or vanishes changes the
// generation. A source entry also holds the epoch: once an epoch the table hears that the address lives. If learning a
// frame of this very batch changed the generation, answers taken before are asked for again, so that a batch gives what
// its frames would give one by one.
#include "l2/forward.h"

#include "base/bytes.h"
#include "l2/rules.h"

namespace sw {

namespace {

constexpr uint32_t kSetBits = 12;
constexpr uint32_t kWays = 2;
constexpr PortId kAsk = 0xfffe;      // unicast: ask the table
constexpr PortId kToAll = 0xfffd;    // broadcast or multicast
constexpr PortId kDropped = 0xfffc;  // counted already

// The first 14 bytes of a frame in two words, bytes in wire order: what a train of frames has in common.
struct Addresses {
  uint64_t front, back;
  explicit Addresses(const uint8_t* head)
      : front(load_unaligned<uint64_t>(head)), back(load_unaligned<uint64_t>(head + kMacBytes)) {}
  // A MAC as it lies in memory, shifted up to leave room for a VLAN: the key of both caches.
  [[nodiscard]] uint64_t destination() const { return front << 16; }
  [[nodiscard]] uint64_t source() const { return back << 16; }
  [[nodiscard]] bool tagged() const { return back >> 48 == 0x0081; }  // TPID 0x8100 in wire order
  [[nodiscard]] bool to_group() const { return (front & 1) != 0; }
};

constexpr uint64_t cache_tag(uint32_t generation, PortId source, uint16_t low) {
  return uint64_t{generation} << 32 | (uint64_t{source} + 1) << 16 |
         low;  // + 1: no tag is 0, the value of an empty entry
}

// A worker's memory of what the table said: 8192 addresses in 128 KB, which a second-level cache holds beside the rings.
class Cache {
 public:
  struct Entry {
    uint64_t key = 0;  // MAC in wire order and VLAN
    uint64_t tag = 0;  // generation << 32 | source port + 1 << 16 | epoch or destination
  };
  // The tag under which `key` is kept; 0: not known.
  [[nodiscard]] uint64_t find(uint64_t key, PortId source) const {
    const Set& set = sets_[index(key, source)];
    if (set[0].key == key) [[likely]]
      return set[0].tag;
    return set[1].key == key ? set[1].tag : 0;
  }
  // The newest entry is the first way; what was there before has one more chance.
  void put(uint64_t key, PortId source, uint64_t tag) {
    Set& set = sets_[index(key, source)];
    if (set[0].key != key) set[1] = set[0];
    set[0] = {key, tag};
  }
  void clear() { sets_.fill({}); }

 private:
  using Set = std::array<Entry, kWays>;
  // The top bits of the product: the source port is mixed in, or a gateway's many clients would share one set.
  static size_t index(uint64_t key, PortId source) {
    return ((key + (uint64_t{source} << 12)) * 0x9e37'79b9'7f4a'7c15) >> (64 - kSetBits);
  }
  alignas(64) std::array<Set, 1 << kSetBits> sets_{};
};

struct Pending {
  PortId to;   // a port, or one of the values above
  bool learn;  // the source cache did not know it
};

}  // namespace

struct alignas(64) Forwarder::Caches {  // lines of its own: a worker writes them all the time
  Cache sources, destinations;
  std::array<Pending, kMaxBatch> pending;
  struct Flood {
    bool valid = false;
    PortId source = kNoPort;
    uint16_t vlan = 0;
    FloodSet set;
  };
  std::array<Flood, 2> floods;  // for broadcast and multicast, for unknown unicast; both belong to the present plan

  uint32_t forward_known(Batch& batch, const PortPolicy& source, const Fdb& fdb, Groups& out) const;
  void forward_rest(Batch& batch, uint32_t begin, const PortPolicy& source, const BridgeView& bridge,
                    PortWorkerCounters& counters, Groups& out);
  void admit_all(Batch& batch, uint32_t begin, const PortPolicy& source, const Fdb& fdb, uint32_t generation,
                 PortWorkerCounters& counters);
  void learn(const Frame& frame, const PortPolicy& source, Fdb& fdb);
  PortId look_up(const Frame& frame, const PortPolicy& source, const BridgeView& bridge, PortWorkerCounters& counters);
  const FloodSet& flood_set(uint16_t vlan, bool unknown, const PortPolicy& source, const BridgeView& bridge);
};

Forwarder::Forwarder() : caches_(std::make_unique<Caches>()) {}
Forwarder::~Forwarder() = default;

void Forwarder::reset() {
  caches_->sources.clear();
  caches_->destinations.clear();
  for (Caches::Flood& flood : caches_->floods) flood.valid = false;
}

void Forwarder::forward(Batch& batch, const PortPolicy& source, const BridgeView& bridge, PortWorkerCounters& counters,
                        Groups& out) {
  const uint32_t known = source.learning ? caches_->forward_known(batch, source, *bridge.fdb, out) : 0;
  if (known != 0) counters.forwarded.add(known);
  if (known != batch.count) caches_->forward_rest(batch, known, source, bridge, counters, out);
}

// Frames from the first one on whose source and destination are both in the caches. How many.
uint32_t Forwarder::Caches::forward_known(Batch& batch, const PortPolicy& source, const Fdb& fdb, Groups& out) const {
  const uint32_t generation = fdb.generation();
  const uint64_t alive = cache_tag(generation, source.id, fdb.epoch());
  const uint64_t answer = cache_tag(generation, source.id, 0);
  const uint16_t untagged = source.vlan.untagged;
  const bool trunk = !source.vlan.access;
  Groups::List list;
  uint64_t front = 0, back = 0;
  bool repeats = false;  // an untagged frame with the same two words leads where the last one led
  uint32_t i = 0;
  for (; i < batch.count; ++i) {
    Frame& frame = batch.frames[i];
    const Addresses addresses(frame.data());
    uint16_t vlan = untagged;
    if (!repeats || addresses.front != front || addresses.back != back) {
      uint16_t tci = untagged;
      const bool tagged = addresses.tagged();
      if (tagged) {
        if (!trunk || frame.head_len < kEthHeaderBytes + kVlanTagBytes) break;
        tci = load_be16(frame.data() + kEthHeaderBytes);
        vlan = tci & kVlanIdMask;
        if (vlan == 0) break;  // a priority tag
      }
      if (sources.find(addresses.source() | vlan, source.id) != alive) break;
      const uint64_t to = destinations.find(addresses.destination() | vlan, source.id) ^ answer;
      if (to >= kMaxPorts) break;
      if (list.port != to) {
        out.close(list);
        list = out.open(static_cast<PortId>(to));
      }
      front = addresses.front;
      back = addresses.back;
      repeats = !tagged;
      frame.tagged = tagged;
      frame.tci = tci;
    } else {
      frame.tci = untagged;
      frame.tagged = false;
    }
    frame.vlan = vlan;
    list.frames[list.count++] = static_cast<uint8_t>(i);
  }
  out.close(list);
  return i;
}

void Forwarder::Caches::forward_rest(Batch& batch, uint32_t begin, const PortPolicy& source, const BridgeView& bridge,
                                     PortWorkerCounters& counters, Groups& out) {
  Fdb& fdb = *bridge.fdb;
  const uint32_t generation = fdb.generation();
  admit_all(batch, begin, source, fdb, generation, counters);

  uint64_t forwarded = 0, passed = 0;
  bool changed = false;  // the cached answers of the first loop are out of date
  for (uint32_t i = begin; i < batch.count; ++i) {
    const Pending& item = pending[i];
    if (item.to == kDropped) continue;
    const Frame& frame = batch.frames[i];
    if (item.learn) {
      learn(frame, source, fdb);
      changed = changed || fdb.generation() != generation;
    }
    PortId to = item.to;
    if (to == kAsk || (changed && to != kToAll)) {
      to = look_up(frame, source, bridge, counters);
      if (to == kDropped) continue;
    }
    if (to < kMaxPorts) {
      out.add(to, static_cast<uint8_t>(i));
      ++passed;
      ++forwarded;
      continue;
    }
    const FloodSet& all = flood_set(frame.vlan, to != kToAll, source, bridge);
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
void Forwarder::Caches::admit_all(Batch& batch, uint32_t begin, const PortPolicy& source, const Fdb& fdb,
                                  uint32_t generation, PortWorkerCounters& counters) {
  const uint64_t alive = cache_tag(generation, source.id, fdb.epoch());
  const uint64_t answer = cache_tag(generation, source.id, 0);
  for (uint32_t i = begin; i < batch.count; ++i) {
    Frame& frame = batch.frames[i];
    const Admission admission = admit(frame.data(), frame.head_len, source);
    frame.vlan = admission.vlan;
    frame.tci = admission.tci;
    frame.tagged = admission.tagged;
    Pending& item = pending[i];
    if (admission.drop != kNoDrop) {
      counters.drop_rx(admission.drop);
      item.to = kDropped;
      continue;
    }
    item = {kToAll, false};
    const Addresses addresses(frame.data());
    if (source.learning) {
      item.learn = sources.find(addresses.source() | admission.vlan, source.id) != alive;
      if (item.learn) fdb.prefetch(admission.vlan, admission.source);
    }
    if (!addresses.to_group()) {
      const uint64_t to = destinations.find(addresses.destination() | admission.vlan, source.id) ^ answer;
      item.to = to < kMaxPorts ? static_cast<PortId>(to) : kAsk;
      if (item.to == kAsk) fdb.prefetch(admission.vlan, admission.destination);
    }
  }
}

void Forwarder::Caches::learn(const Frame& frame, const PortPolicy& source, Fdb& fdb) {
  const uint32_t generation = fdb.generation();
  const uint8_t epoch = fdb.epoch();
  const LearnResult result = fdb.learn(frame.vlan, load_mac(frame.data() + kMacBytes), source);
  // Refused and busy ones are tried again with the next frame: limits are raised and entries go.
  if (result == LearnResult::kRefused || result == LearnResult::kBusy) return;
  sources.put(Addresses(frame.data()).source() | frame.vlan, source.id, cache_tag(generation, source.id, epoch));
}

PortId Forwarder::Caches::look_up(const Frame& frame, const PortPolicy& source, const BridgeView& bridge,
                                  PortWorkerCounters& counters) {
  const uint32_t generation = bridge.fdb->generation();
  const Route found = route(bridge.fdb->lookup(frame.vlan, load_mac(frame.data())), frame.vlan, source, bridge);
  if (found.drop != kNoDrop) {
    counters.drop_rx(found.drop);
    return kDropped;
  }
  if (found.port != kNoPort) {
    destinations.put(Addresses(frame.data()).destination() | frame.vlan, source.id,
                     cache_tag(generation, source.id, found.port));
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
