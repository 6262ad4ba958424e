// SPDX-License-Identifier: Apache-2.0
#include "port/egress.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/bytes.h"
#include "net/checksum.h"
#include "net/segment.h"

namespace sw {

namespace {

using IndexList = std::array<uint8_t, kMaxBatch>;

void deliver(const Batch& batch, std::span<const uint8_t> index, TxQueue& queue, PortWorkerCounters& drops) {
  if (index.empty()) return;
  const uint32_t gone = queue.send(batch, index, drops);
  if (gone < index.size()) drops.drop_tx(DropReason::kRingFull, index.size() - gone);
}

std::optional<Segmenter> make_segmenter(const Frame& frame) {
  std::array<uint8_t, Segmenter::kMaxHeaderBytes> start;
  const uint32_t bytes = std::min<uint32_t>(frame.len, Segmenter::kMaxHeaderBytes);
  copy_from_frame(frame, 0, start.data(), bytes);
  return Segmenter::make({start.data(), bytes}, frame.len, frame.vnet);
}

// Is it the packet inside a tunnel that is to be cut? virtio-net's header has no word for the tunnel around it (Linux's
// for UDP tunnels is a feature beyond the 64 that vhost-user carries), so that a peer would cut it as if there were none.
[[gnu::noinline]] bool is_large_in_tunnel(const Frame& frame) {
  const auto packet = parse_packet({frame.data(), frame.head_len});
  if (!packet || packet->l4 == frame.vnet.csum_start) return false;
  const auto segmenter = make_segmenter(frame);
  return segmenter && segmenter->in_tunnel();
}

// Does the peer behind the queue take the frame as it is?
bool is_covered(const Frame& frame, const OffloadCaps& caps) {
  if (!frame.offload) return true;
  const VnetHeader& vnet = frame.vnet;
  if ((vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0 && !caps.checksum) return false;
  const bool ecn = (vnet.gso_type & VIRTIO_NET_HDR_GSO_ECN) != 0;
  switch (vnet.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
    case VIRTIO_NET_HDR_GSO_NONE:
      return !ecn;
    case VIRTIO_NET_HDR_GSO_TCPV4:
      return caps.tso4 && (!ecn || caps.ecn) && !is_large_in_tunnel(frame);
    case VIRTIO_NET_HDR_GSO_TCPV6:
      return caps.tso6 && (!ecn || caps.ecn) && !is_large_in_tunnel(frame);
    case VIRTIO_NET_HDR_GSO_UDP_L4:
      return caps.uso && !ecn && !is_large_in_tunnel(frame);
    default:
      return false;
  }
}

bool is_gso(const Frame& frame) { return frame.offload && frame.vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE; }

uint32_t l2_bytes(const Frame& frame) {
  if (frame.head_len < kEthHeaderBytes + kVlanTagBytes) return kEthHeaderBytes;
  const uint16_t type = load_be16(frame.data() + 2 * kMacBytes);
  return kEthHeaderBytes + (type == kEtherTypeVlan || type == kEtherTypeServiceTag ? kVlanTagBytes : 0);
}

// Frames longer than the destination's MTU are dropped (false), unless they will be cut into pieces that fit.
bool check_mtu(const Frame& frame, uint32_t mtu, PortWorkerCounters& drops) {
  if (frame.len <= mtu + kEthHeaderBytes || frame.len <= mtu + l2_bytes(frame)) return true;
  DropReason reason = DropReason::kMtuExceeded;
  if (is_gso(frame)) {
    const auto segmenter = make_segmenter(frame);
    if (segmenter && segmenter->longest_l3_bytes() <= mtu) return true;
    if (!segmenter) reason = DropReason::kOffloadUnsupported;
  }
  drops.drop_tx(reason);
  return false;
}

// Reads a frame's bytes from front to back as runs of memory.
class FrameCursor {
 public:
  explicit FrameCursor(const Frame& frame) : frame_(frame), run_{frame.data(), frame.head_len} {}

  // Call `use` with runs that make up the next `bytes`. Needs that many left.
  template <class Use>
  void take(uint32_t bytes, Use use) {
    while (bytes > 0) {
      if (run_.len == 0) {
        run_ = frame_.segments[next_++];
        continue;
      }
      const uint32_t part = std::min(bytes, run_.len);
      use(Segment{run_.data, part});
      run_ = {run_.data + part, run_.len - part};
      bytes -= part;
    }
  }
  void skip(uint32_t bytes) {
    take(bytes, [](Segment) {});
  }

 private:
  const Frame& frame_;
  Segment run_;
  uint32_t next_ = 0;
};

constexpr IndexList make_identity() {
  IndexList list{};
  for (uint32_t i = 0; i < kMaxBatch; ++i) list.at(i) = static_cast<uint8_t>(i);
  return list;
}
constexpr IndexList kIdentity = make_identity();

}  // namespace

// Frames as they will leave, until the batch is full.
struct Egress::Scratch {
  // One frame may bring all segments of its batch, and its pieces split some of them.
  static constexpr uint32_t kMaxRuns = 2 * kMaxSegments;
  static constexpr uint32_t kTailBytes = Segmenter::kMaxHeaderBytes - kHeadBytes;  // header bytes behind the head

  Batch out;
  uint32_t runs_used = 0;
  std::array<Segment, kMaxRuns> runs;
  std::array<std::array<uint8_t, kTailBytes>, kMaxBatch> tails;

  void clear() {
    out.count = 0;
    out.may_have_offloads = false;
    runs_used = 0;
  }
  // Room for one frame made of any part of `source`, its tail included?
  [[nodiscard]] bool has_room(const Frame& source) const {
    return out.count < kMaxBatch && runs_used + source.segment_count + 4U <= kMaxRuns;
  }
  void add_run(Segment run) { runs[runs_used++] = run; }

  void flush(TxQueue& queue, PortWorkerCounters& drops) {
    deliver(out, std::span(kIdentity).first(out.count), queue, drops);
    clear();
  }

  void add_unchanged(const Frame& frame) {
    out.may_have_offloads |= frame.offload;
    out.frames[out.count++] = frame;
  }
  bool add_checksummed(const Frame& frame);
  void add_segment(const Frame& source, const Segmenter& segmenter, uint32_t i, FrameCursor& payload);
};

// NEEDS_CSUM: the frame with the checksum in place. False: the offsets are outside the frame.
bool Egress::Scratch::add_checksummed(const Frame& frame) {
  const VnetHeader vnet = frame.vnet;
  if ((vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0 || !checksum_fits(vnet, frame.len)) return false;
  const uint16_t checksum = transport_checksum(sum_frame(frame, vnet.csum_start));
  std::array<uint8_t, sizeof checksum> bytes;
  store_unaligned(bytes.data(), checksum);

  Frame& copy = out.frames[out.count];
  copy = frame;
  copy.offload = false;
  copy.vnet = VnetHeader{};
  const uint32_t field = uint32_t{vnet.csum_start} + vnet.csum_offset;
  const uint32_t in_head = field >= frame.head_len ? 0 : std::min<uint32_t>(2, frame.head_len - field);
  if (in_head > 0) std::memcpy(copy.data() + field, bytes.data(), in_head);
  if (in_head < 2) {  // behind the head: the body is sent around the bytes that replace it
    auto& tail = tails[out.count];
    std::memcpy(tail.data(), bytes.data() + in_head, 2 - in_head);
    const uint32_t first = runs_used;
    const auto add = [this](Segment run) { add_run(run); };
    FrameCursor body(frame);
    body.skip(frame.head_len);
    body.take(field + in_head - frame.head_len, add);
    add_run({tail.data(), 2 - in_head});
    body.skip(2 - in_head);
    body.take(frame.len - field - 2, add);
    copy.segments = &runs[first];
    copy.segment_count = static_cast<uint16_t>(runs_used - first);
  }
  ++out.count;
  return true;
}

// Segment `i` of a GSO frame. `payload` stands at its first byte, and behind its last byte afterwards.
void Egress::Scratch::add_segment(const Frame& source, const Segmenter& segmenter, uint32_t i, FrameCursor& payload) {
  const uint32_t header_bytes = segmenter.header_bytes();
  const uint32_t payload_bytes = segmenter.payload_bytes(i);
  Frame& frame = out.frames[out.count];
  auto& tail = tails[out.count];

  // The payload's runs, with a place in front of them for header bytes that do not fit the head.
  uint32_t first = runs_used;
  if (header_bytes > kHeadBytes) add_run({tail.data(), header_bytes - kHeadBytes});
  uint64_t sum = 0;
  uint32_t summed = 0;
  payload.take(payload_bytes, [&](Segment run) {
    sum = add_piece(sum, sum_bytes(run.data, run.len), (summed & 1) != 0);
    summed += run.len;
    add_run(run);
  });

  std::array<uint8_t, Segmenter::kMaxHeaderBytes> header;
  segmenter.write_header(i, sum, header.data());
  uint32_t head_len = std::min(header_bytes, kHeadBytes);
  std::memcpy(frame.head, header.data(), head_len);
  if (header_bytes > kHeadBytes) std::memcpy(tail.data(), header.data() + kHeadBytes, header_bytes - kHeadBytes);
  while (head_len < kHeadBytes && first < runs_used) {  // fill the head up with payload, as every frame has it
    Segment& run = runs[first];
    const uint32_t part = std::min(run.len, kHeadBytes - head_len);
    std::memcpy(frame.head + head_len, run.data, part);
    head_len += part;
    run = {run.data + part, run.len - part};
    if (run.len == 0) ++first;
  }
  frame.len = header_bytes + payload_bytes;
  frame.head_len = head_len;
  frame.head_offset = 0;
  frame.segments = runs.data() + first;
  frame.segment_count = static_cast<uint16_t>(runs_used - first);
  frame.vlan = source.vlan;
  frame.tci = source.tci;
  frame.tagged = source.tagged;
  frame.offload = false;
  frame.vnet = VnetHeader{};
  ++out.count;
}

Egress::Egress() : scratch_(std::make_unique<Scratch>()) {}
Egress::~Egress() = default;

void Egress::send(Batch& batch, std::span<const uint8_t> index, TxQueue& queue, uint32_t mtu,
                  PortWorkerCounters& drops) {
  drops.offered.add(index.size());
  if (!batch.may_have_offloads && mtu == 0) return deliver(batch, index, queue, drops);

  IndexList fitting;
  uint32_t count = 0;
  bool all_covered = true;
  for (const uint8_t i : index) {
    const Frame& frame = batch.frames[i];
    if (mtu != 0 && !check_mtu(frame, mtu, drops)) continue;
    fitting[count++] = i;
    all_covered &= is_covered(frame, queue.caps());
  }
  const std::span<const uint8_t> kept(fitting.data(), count);
  if (all_covered) return deliver(batch, kept, queue, drops);
  send_finished(batch, kept, queue, drops);
}

// Everything goes through the scratch batch, in order.
void Egress::send_finished(const Batch& batch, std::span<const uint8_t> index, TxQueue& queue,
                           PortWorkerCounters& drops) {
  Scratch& scratch = *scratch_;
  scratch.clear();
  for (const uint8_t i : index) {
    const Frame& frame = batch.frames[i];
    if (!scratch.has_room(frame)) scratch.flush(queue, drops);
    if (is_covered(frame, queue.caps())) {
      scratch.add_unchanged(frame);
    } else if (!is_gso(frame)) {
      if (!scratch.add_checksummed(frame)) drops.drop_tx(DropReason::kOffloadUnsupported);
    } else if (const auto segmenter = make_segmenter(frame)) {
      FrameCursor payload(frame);
      payload.skip(segmenter->header_bytes());
      for (uint32_t part = 0; part < segmenter->count(); ++part) {
        if (!scratch.has_room(frame)) scratch.flush(queue, drops);
        scratch.add_segment(frame, *segmenter, part, payload);
      }
      drops.segmented.add(segmenter->count() - 1);
    } else {
      drops.drop_tx(DropReason::kOffloadUnsupported);
    }
  }
  scratch.flush(queue, drops);
}

}  // namespace sw
