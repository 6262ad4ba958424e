// SPDX-License-Identifier: Apache-2.0
// Theory of operation. A batch is seen as runs: neighbouring frames with the same addresses and VLAN, often all of it. The
// first loop finds the runs and asks the table about source and destination of each, which only sends for the buckets'
// cache lines. The second loop, in frame order, reads the answers. Where the table knows the source at this port, and
// the destination at a port that may have the frame, the run goes there and no other rule is asked: what the table holds
// was admitted once. Any other frame takes the long way, with every rule in its order: admit, learn, look up, flood.
//
// Nothing is remembered between batches but who gets floods, so whatever moves or vanishes in the table counts from the
// next frame on, within a batch too: it gives what its frames would give one by one.
#include "l2/forward.h"

#include "base/bytes.h"
#include "l2/fdb_table.h"
#include "l2/rules.h"

namespace sw {

namespace {

// The first 14 bytes of a frame in two words, bytes in wire order: what the frames of a run have in common.
struct Addresses {
  uint64_t front = 0, back = 0;
  Addresses() = default;
  explicit Addresses(const uint8_t* head)
      : front(load_unaligned<uint64_t>(head)), back(load_unaligned<uint64_t>(head + kMacBytes)) {}
  bool operator==(const Addresses&) const = default;
  // MAC << 16, as the table has it.
  [[nodiscard]] uint64_t destination() const { return __builtin_bswap64(front) & kMacMask << 16; }
  [[nodiscard]] uint64_t source() const { return __builtin_bswap64(back) & kMacMask << 16; }
  [[nodiscard]] bool tagged() const { return back >> 48 == 0x0081; }  // TPID 0x8100 in wire order
  [[nodiscard]] bool with_group() const { return ((front | back) & 1) != 0; }
  // The only reserved addresses that are no group's (rules.h) are 00:e0:2b:...
  [[nodiscard]] bool maybe_reserved() const { return (front & 0xffffff) == 0x2be000; }
};

struct Run {
  FdbTable::Query source, destination;
  uint16_t vlan;
  uint8_t begin, end;  // frames of the batch
  bool plain;          // the queries were made: unicast, in a VLAN of the port
};

// Does the table say that these frames may come in, and need it not be told that their source lives?
bool may_come_in(const Run& run, const Batch& batch, const PortPolicy& source, const FdbTable& table, uint8_t epoch) {
  if (source.learning) [[likely]]
    return table.is_fresh_at(run.source, run.vlan, source.id, epoch);
  const Frame& frame = batch.frames[run.begin];
  return admit(frame.data(), frame.head_len, source).drop == kNoDrop;
}

}  // namespace

struct alignas(64) Forwarder::Scratch {  // lines of its own: a worker writes them all the time
  std::array<Run, kMaxBatch> runs;
  struct Flood {
    bool valid = false;
    PortId source = kNoPort;
    uint16_t vlan = 0;
    FloodSet set;
  };
  std::array<Flood, 2> floods;  // for broadcast and multicast, for unknown unicast; both belong to the present plan

  uint32_t ask(Batch& batch, const PortPolicy& source, FdbTable::Index index);
  void forward_one(Frame& frame, uint8_t number, const PortPolicy& source, const BridgeView& bridge,
                   PortWorkerCounters& counters, Groups& out);
  const FloodSet& flood_set(uint16_t vlan, bool unknown, const PortPolicy& source, const BridgeView& bridge);
};

Forwarder::Forwarder() : scratch_(std::make_unique<Scratch>()) {}
Forwarder::~Forwarder() = default;

void Forwarder::reset() {
  for (Scratch::Flood& flood : scratch_->floods) flood.valid = false;
}

void Forwarder::forward(Batch& batch, const PortPolicy& source, const BridgeView& bridge, PortWorkerCounters& counters,
                        Groups& out) {
  const FdbTable& table = bridge.fdb->table();
  const uint8_t epoch = bridge.fdb->epoch();
  const uint32_t count = scratch_->ask(batch, source, table.index());
  Groups::List list;
  uint32_t list_vlan = ~0U;  // in which frames may go where the list goes
  uint32_t passed = 0;
  for (const Run& run : std::span(scratch_->runs).first(count)) {
    if (run.plain && may_come_in(run, batch, source, table, epoch)) [[likely]] {
      const PortId found = table.answer(run.destination, run.vlan).port();
      if (found != list.port || run.vlan != list_vlan) {
        const PortId to = route(found, run.vlan, source, bridge).port;
        out.close(list);
        list = to == kNoPort ? Groups::List{} : out.open(to);
        list_vlan = run.vlan;
      }
      if (list.port != kNoPort) [[likely]] {
        list.append(run.begin, run.end);
        passed += run.end - run.begin;
        continue;
      }
    }
    out.close(list);
    list = {};
    for (uint8_t i = run.begin; i < run.end; ++i) {
      scratch_->forward_one(batch.frames[i], i, source, bridge, counters, out);
    }
  }
  out.close(list);
  if (passed != 0) counters.forwarded.add(passed);
}

// The first loop: set vlan, tci and tagged of every frame and find the runs. How many.
uint32_t Forwarder::Scratch::ask(Batch& batch, const PortPolicy& source, FdbTable::Index index) {
  const uint16_t untagged = source.vlan.untagged;
  const bool enabled = source.enabled;
  const uint32_t count = batch.count;
  Frame* frame = batch.frames.data();
  Run* next = runs.data();
  for (uint32_t i = 0; i < count; ++next) {
    const Addresses addresses(frame->head);  // nothing is tagged or untagged yet: head_offset is 0
    Run& run = *next;
    run.begin = static_cast<uint8_t>(i);
    uint16_t vlan = untagged;
    bool plain = enabled && !addresses.with_group() && !addresses.maybe_reserved();
    if (!addresses.tagged()) [[likely]] {
      do {
        if (untagged != 0) frame->vlan = frame->tci = untagged;  // as 0 they come
        ++i;
        ++frame;
      } while (i < count && Addresses(frame->head) == addresses);
    } else if (frame->head_len < kEthHeaderBytes + kVlanTagBytes) {
      plain = false;
      ++i;
      ++frame;
    } else {
      const uint16_t tci = load_be16(frame->head + kEthHeaderBytes);
      vlan = tci & kVlanIdMask;
      plain = plain && vlan != 0 && !source.vlan.access && source.vlan.carries(vlan);
      do {
        frame->vlan = vlan;
        frame->tci = tci;
        frame->tagged = true;
        ++i;
        ++frame;
      } while (i < count && frame->head_len >= kEthHeaderBytes + kVlanTagBytes && Addresses(frame->head) == addresses &&
               load_be16(frame->head + kEthHeaderBytes) == tci);
    }
    run.end = static_cast<uint8_t>(i);
    run.vlan = vlan;
    run.plain = plain;
    if (!plain) continue;
    run.source = index.ask(vlan, addresses.source());
    run.destination = index.ask(vlan, addresses.destination());
  }
  return static_cast<uint32_t>(next - runs.data());
}

// The long way of one frame: every rule.
void Forwarder::Scratch::forward_one(Frame& frame, uint8_t number, const PortPolicy& source, const BridgeView& bridge,
                                     PortWorkerCounters& counters, Groups& out) {
  const Admission admission = admit(frame.data(), frame.head_len, source);
  frame.vlan = admission.vlan;
  frame.tci = admission.tci;
  frame.tagged = admission.tagged;
  if (admission.drop != kNoDrop) return counters.drop_rx(admission.drop);
  // Refused and busy ones are tried again with the next frame: limits are raised and entries go.
  if (source.learning) (void)bridge.fdb->learn(admission.vlan, admission.source, source);
  const bool to_all = is_multicast(admission.destination);
  if (!to_all) {
    const PortId found = bridge.fdb->lookup(admission.vlan, admission.destination);
    const Route way = route(found, admission.vlan, source, bridge);
    if (way.drop != kNoDrop) return counters.drop_rx(way.drop);
    if (way.port != kNoPort) {
      out.add(way.port, number);
      return counters.forwarded.add(1);
    }
  }
  const FloodSet& all = flood_set(admission.vlan, !to_all, source, bridge);
  if (all.ports().empty()) return counters.drop_rx(all.drop());
  for (const PortId port : all.ports()) out.add(port, number);
  counters.forwarded.add(all.ports().size());
  if (all.ports().size() != 1) counters.replicated.add(all.ports().size() - 1);
}

const FloodSet& Forwarder::Scratch::flood_set(uint16_t vlan, bool unknown, const PortPolicy& source,
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
