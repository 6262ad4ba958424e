// SPDX-License-Identifier: Apache-2.0
#include "port/egress.h"

#include <doctest/doctest.h>

#include <memory>

#include "net/tunnel_frames.h"

using namespace sw;
using namespace sw::test;

namespace {

// Keeps what it is given, as linear frames; refuses everything after `room` frames.
class RecordingQueue : public TxQueue {
 public:
  explicit RecordingQueue(const OffloadCaps& caps, size_t room = SIZE_MAX) : TxQueue(counters), room_(room) {
    caps_ = caps;
  }
  uint32_t send(const Batch& batch, std::span<const uint8_t> index, PortWorkerCounters&) override {
    ++calls;
    uint32_t taken = 0;
    for (const uint8_t i : index) {
      if (room_ == 0) break;
      --room_;
      const Frame& frame = batch.frames[i];
      CHECK((frame.head_len >= kHeadBytes - kVlanTagBytes || frame.segment_count == 0));
      uint32_t total = frame.head_len;
      for (uint32_t s = 0; s < frame.segment_count; ++s) total += frame.segments[s].len;
      CHECK(total == frame.len);
      CHECK((!frame.offload || batch.may_have_offloads));
      Bytes bytes(frame.len);
      copy_from_frame(frame, 0, bytes.data(), frame.len);
      frames.push_back(bytes);
      headers.push_back(frame.vnet);
      counters.frames.add(1);
      counters.bytes.add(frame.len);
      ++taken;
    }
    return taken;
  }

  QueueCounters counters;
  std::vector<Bytes> frames;
  std::vector<VnetHeader> headers;
  int calls = 0;

 private:
  size_t room_;
};

// A batch over frames kept here, each cut into several segments, in memory of exactly its size.
struct Source {
  std::unique_ptr<Batch> batch = std::make_unique<Batch>();
  std::vector<std::unique_ptr<uint8_t[]>> memory;
  std::vector<uint8_t> index;

  void add(const Bytes& bytes, const VnetHeader& vnet = {}, uint32_t cut = 777) {
    Frame& frame = batch->frames[batch->count];
    frame.len = static_cast<uint32_t>(bytes.size());
    frame.head_len = static_cast<uint16_t>(std::min<size_t>(bytes.size(), kHeadBytes));
    frame.head_offset = 0;
    std::copy_n(bytes.begin(), frame.head_len, frame.head);
    frame.segments = &batch->segments[batch->segments_used];
    const uint32_t first = batch->segments_used;
    for (size_t at = frame.head_len; at < bytes.size(); at += cut) {
      const auto part = static_cast<uint32_t>(std::min<size_t>(cut, bytes.size() - at));
      memory.push_back(std::make_unique<uint8_t[]>(part));
      std::copy_n(bytes.begin() + static_cast<long>(at), part, memory.back().get());
      batch->segments[batch->segments_used++] = {memory.back().get(), part};
    }
    frame.segment_count = static_cast<uint16_t>(batch->segments_used - first);
    frame.vnet = vnet;
    frame.offload = (vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0 || vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE;
    frame.tagged = false;
    batch->may_have_offloads |= frame.offload;
    index.push_back(static_cast<uint8_t>(batch->count++));
  }
  void add(const OffloadFrame& frame, uint32_t cut = 777) { add(frame.bytes, frame.vnet, cut); }
};

struct Totals {
  uint64_t offered, segmented, transmitted, dropped;
};

Totals run(Source& source, RecordingQueue& queue, PortWorkerCounters& drops, uint32_t mtu = 0) {
  Egress egress;
  egress.send(*source.batch, source.index, queue, mtu, drops);
  Totals totals{drops.offered.get(), drops.segmented.get(), queue.counters.frames.get(), 0};
  for (const Counter& counter : drops.tx_drops) totals.dropped += counter.get();
  CHECK(totals.offered == source.index.size());
  CHECK(totals.offered + totals.segmented == totals.transmitted + totals.dropped);
  return totals;
}

uint64_t count_of(const PortWorkerCounters& drops, DropReason reason) {
  return drops.tx_drops[static_cast<size_t>(reason)].get();
}

Bytes plain(size_t bytes, uint8_t fill) {
  Bytes frame(bytes, fill);
  frame[12] = 0x12;
  return frame;
}

constexpr OffloadCaps kNothing{};
constexpr OffloadCaps kEverything{true, true, true, true, true};

}  // namespace

TEST_CASE("Egress: frames without offload go straight to the queue") {
  Source source;
  for (uint8_t i = 0; i < 10; ++i) source.add(plain(60U + i * 100U, i));
  RecordingQueue queue(kNothing);
  PortWorkerCounters drops;
  run(source, queue, drops);
  CHECK(queue.calls == 1);
  REQUIRE(queue.frames.size() == 10);
  for (uint8_t i = 0; i < 10; ++i) CHECK(queue.frames[i] == plain(60U + i * 100U, i));
}

TEST_CASE("Egress: what the queue does not take is ring_full") {
  Source source;
  for (uint8_t i = 0; i < 10; ++i) source.add(plain(100, i));
  RecordingQueue queue(kNothing, 3);
  PortWorkerCounters drops;
  CHECK(run(source, queue, drops).transmitted == 3);
  CHECK(count_of(drops, DropReason::kRingFull) == 7);
}

TEST_CASE("Egress: frames above the MTU are dropped, order is kept, a tag is not counted") {
  Source source;
  source.add(plain(1514, 1));
  source.add(plain(1515, 2));
  source.add(plain(1514, 3));
  Bytes tagged = plain(1518, 4);
  tagged[12] = 0x81;
  tagged[13] = 0;
  source.add(tagged);
  tagged.push_back(0);
  source.add(tagged);
  RecordingQueue queue(kNothing);
  PortWorkerCounters drops;
  run(source, queue, drops, 1500);
  REQUIRE(queue.frames.size() == 3);
  CHECK(queue.frames[0][20] == 1);
  CHECK(queue.frames[1][20] == 3);
  CHECK(queue.frames[2][20] == 4);
  CHECK(count_of(drops, DropReason::kMtuExceeded) == 2);
}

TEST_CASE("Egress: offloads that the peer takes pass untouched in one call") {
  Source source;
  OffloadShape shape;
  shape.payload = 20'000;
  shape.gso_size = 1400;
  const OffloadFrame tso = make_offload_frame(shape);
  OffloadFrame ecn = tso;
  ecn.vnet.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
  source.add(plain(100, 1));
  source.add(tso);
  source.add(ecn);
  RecordingQueue queue(kEverything);
  PortWorkerCounters drops;
  run(source, queue, drops, 1500);
  CHECK(queue.calls == 1);
  REQUIRE(queue.frames.size() == 3);
  CHECK(queue.frames[1] == tso.bytes);
  CHECK(queue.headers[1].gso_size == 1400);
  CHECK(queue.headers[2].gso_type == (VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN));
}

TEST_CASE("Egress: DATA_VALID alone needs no work") {
  Source source;
  VnetHeader vnet;
  vnet.flags = VIRTIO_NET_HDR_F_DATA_VALID;
  source.add(plain(200, 1), vnet);
  source.add(make_offload_frame({}));
  RecordingQueue queue(kNothing);
  PortWorkerCounters drops;
  run(source, queue, drops);
  REQUIRE(queue.frames.size() == 2);
  CHECK(queue.headers[0].flags == VIRTIO_NET_HDR_F_DATA_VALID);
}

TEST_CASE("Egress: checksums are finished without touching the source's frame") {
  for (const int version : {4, 6}) {
    for (const size_t options : {size_t{0}, size_t{40}, size_t{64}, size_t{120}}) {
      if (version == 4 && options > 40) continue;
      for (const size_t payload : {0, 1, 500, 1401, 9000}) {
        for (const uint32_t cut : {1U, 7U, 333U, 70'000U}) {
          if (payload > 1000 && cut < 100) continue;
          OffloadShape shape;
          shape.ip_version = version;
          shape.ip_options = options;
          shape.payload = payload;
          const OffloadFrame frame = make_offload_frame(shape);
          Source source;
          source.add(frame, cut);
          RecordingQueue queue(kNothing);
          PortWorkerCounters drops;
          run(source, queue, drops);
          REQUIRE(queue.frames.size() == 1);
          REQUIRE(check_transport(queue.frames[0], frame) == "");
          CHECK(queue.headers[0].flags == 0);
          // Everything but the checksum is as it was, and the source still holds the unfinished frame for other ports.
          Bytes expected = frame.bytes;
          const size_t field = frame.l4 + frame.vnet.csum_offset;
          std::copy_n(queue.frames[0].begin() + static_cast<long>(field), 2,
                      expected.begin() + static_cast<long>(field));
          CHECK(queue.frames[0] == expected);
          Bytes before(frame.bytes.size());
          copy_from_frame(source.batch->frames[0], 0, before.data(), static_cast<uint32_t>(before.size()));
          CHECK(before == frame.bytes);
          CHECK(source.batch->frames[0].offload);
        }
      }
    }
  }
}

TEST_CASE("Egress: a checksum field across the end of the head is replaced in both halves") {
  for (const uint16_t field : {uint16_t{126}, uint16_t{127}, uint16_t{128}}) {
    Bytes bytes(200, 0);
    for (size_t i = 100; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7);
    VnetHeader vnet;
    vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    vnet.csum_start = 100;
    vnet.csum_offset = static_cast<uint16_t>(field - 100);
    Source source;
    source.add(bytes, vnet, 5);
    RecordingQueue queue(kNothing);
    PortWorkerCounters drops;
    run(source, queue, drops);
    Bytes expected = bytes;
    set16(expected, field, 0xffffU - naive_sum(bytes, 100, 200));
    REQUIRE(queue.frames.size() == 1);
    CHECK(queue.frames[0] == expected);
  }
}

TEST_CASE("Egress: large frames are cut for a peer without segmentation, in order with the others") {
  for (const int version : {4, 6}) {
    for (const bool udp : {false, true}) {
      for (const size_t options : {size_t{0}, size_t{40}, size_t{120}}) {
        if (version == 4 && options > 40) continue;
        for (const uint32_t cut : {61U, 1000U, 70'000U}) {
          OffloadShape shape;
          shape.ip_version = version;
          shape.udp = udp;
          shape.ip_options = options;
          shape.payload = 40'001;
          shape.gso_size = 1001;
          const OffloadFrame large = make_offload_frame(shape);
          shape.payload = 300;
          shape.gso_size = 0;
          const OffloadFrame unsummed = make_offload_frame(shape);
          Source source;
          source.add(plain(100, 1));
          source.add(large, cut);
          source.add(plain(2000, 2));
          source.add(unsummed);
          RecordingQueue queue(kNothing);
          PortWorkerCounters drops;
          const Totals totals = run(source, queue, drops);
          const auto segments = naive_segments(large);
          CHECK(totals.segmented == segments.size() - 1);
          REQUIRE(queue.frames.size() == segments.size() + 3);
          CHECK(queue.frames[0] == plain(100, 1));
          for (size_t i = 0; i < segments.size(); ++i) REQUIRE(queue.frames[1 + i] == segments[i]);
          CHECK(queue.frames[1 + segments.size()] == plain(2000, 2));
          CHECK(check_transport(queue.frames[2 + segments.size()], unsummed) == "");
        }
      }
    }
  }
}

TEST_CASE("Egress: a full batch of the largest frames is cut, and partly lost when the ring is full") {
  OffloadShape shape;
  shape.payload = 60'000;
  shape.gso_size = 1448;
  const OffloadFrame large = make_offload_frame(shape);
  const auto segments = naive_segments(large);
  for (const size_t room : {SIZE_MAX, size_t{1000}, size_t{0}}) {
    Source source;
    for (int i = 0; i < 64; ++i) source.add(large, 4096);
    RecordingQueue queue(kNothing, room);
    PortWorkerCounters drops;
    const Totals totals = run(source, queue, drops, 1500);
    CHECK(totals.offered + totals.segmented == 64 * segments.size());
    CHECK(totals.transmitted == std::min(room, 64 * segments.size()));
    CHECK(count_of(drops, DropReason::kRingFull) == totals.dropped);
    if (room == SIZE_MAX) {
      for (size_t i = 0; i < queue.frames.size(); ++i) REQUIRE(queue.frames[i] == segments[i % segments.size()]);
    }
  }
}

TEST_CASE("Egress: a GSO frame is compared with the MTU by its segments") {
  OffloadShape shape;
  shape.payload = 10'000;
  shape.gso_size = 1460;
  const OffloadFrame fits = make_offload_frame(shape);
  shape.gso_size = 1461;
  const OffloadFrame too_long = make_offload_frame(shape);
  for (const OffloadCaps& caps : {kNothing, kEverything}) {
    Source source;
    source.add(fits);
    source.add(too_long);
    RecordingQueue queue(caps);
    PortWorkerCounters drops;
    run(source, queue, drops, 1500);
    CHECK(count_of(drops, DropReason::kMtuExceeded) == 1);
    CHECK(queue.frames.size() == (caps.tso4 ? 1 : 7));
  }
}

TEST_CASE("Egress: offloads that cannot be finished are dropped and the others pass") {
  OffloadShape shape;
  shape.payload = 4000;
  shape.gso_size = 1000;
  const OffloadFrame good = make_offload_frame(shape);
  std::vector<OffloadFrame> bad(6, good);
  bad[0].vnet.csum_start = 0xffff;
  bad[1].vnet.gso_size = 0;
  bad[2].vnet.gso_type = VIRTIO_NET_HDR_GSO_UDP;
  bad[3].vnet.gso_type = VIRTIO_NET_HDR_GSO_ECN;
  bad[4].vnet.gso_type = VIRTIO_NET_HDR_GSO_NONE;
  bad[4].vnet.csum_offset = 0xfff0;
  bad[5].vnet.gso_type = VIRTIO_NET_HDR_GSO_UDP_L4;
  Source source;
  for (const OffloadFrame& frame : bad) {
    source.add(frame);
    source.add(plain(100, 9));
  }
  RecordingQueue queue(kNothing);
  PortWorkerCounters drops;
  run(source, queue, drops);
  CHECK(count_of(drops, DropReason::kOffloadUnsupported) == bad.size());
  CHECK(queue.frames == std::vector<Bytes>(bad.size(), plain(100, 9)));
}

TEST_CASE("Egress: each missing ability alone makes the frame be finished") {
  struct Row {
    const char* what;
    OffloadCaps caps;
    int version;
    bool udp;
    uint8_t extra_type;
  };
  const Row rows[] = {
      {"tso4", {true, false, true, true, true}, 4, false, 0},
      {"tso6", {true, true, false, true, true}, 6, false, 0},
      {"uso", {true, true, true, true, false}, 4, true, 0},
      {"ecn", {true, true, true, false, true}, 4, false, VIRTIO_NET_HDR_GSO_ECN},
      {"checksum", {false, true, true, true, true}, 6, false, 0},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    OffloadShape shape;
    shape.ip_version = row.version;
    shape.udp = row.udp;
    shape.payload = 3500;
    shape.gso_size = 1000;
    OffloadFrame frame = make_offload_frame(shape);
    frame.vnet.gso_type |= row.extra_type;
    Source source;
    source.add(frame);
    RecordingQueue queue(row.caps);
    PortWorkerCounters drops;
    run(source, queue, drops);
    CHECK(queue.frames == naive_segments(frame));
    Source again;
    again.add(frame);
    RecordingQueue able(kEverything);
    PortWorkerCounters none;
    run(again, able, none);
    CHECK(able.frames.size() == 1);
  }
}

TEST_CASE("Egress: bodies in the most segments a batch can have are finished") {
  OffloadShape shape;
  shape.payload = kMaxSegments * 8U + kHeadBytes - 54U;
  shape.gso_size = 101;
  const OffloadFrame frame = make_offload_frame(shape);
  Source source;
  source.add(frame, 8);
  REQUIRE(source.batch->segments_used == kMaxSegments);
  RecordingQueue queue(kNothing);
  PortWorkerCounters drops;
  run(source, queue, drops);
  CHECK(queue.frames == naive_segments(frame));
}

TEST_CASE("Egress: a large packet in a tunnel is cut also for a peer that takes large packets") {
  OffloadShape shape;
  shape.payload = 40'001;
  shape.gso_size = 1400;
  for (const bool udp : {false, true}) {
    for (const int version : {4, 6}) {
      for (const TunnelShape& tunnel :
           {TunnelShape{.kind = TunnelKind::kVxlan},
            TunnelShape{.kind = TunnelKind::kVxlan, .ip_version = 6, .checksum = true},
            TunnelShape{.kind = TunnelKind::kGre, .checksum = true}, TunnelShape{.kind = TunnelKind::kIpInIp}}) {
        for (const OffloadCaps& caps : {kNothing, kEverything}) {
          shape.udp = udp;
          shape.ip_version = version;
          const OffloadFrame inner = make_offload_frame(shape);
          Source source;
          source.add(plain(100, 1));
          source.add(make_tunnel_frame(inner, tunnel), 1000);
          source.add(inner);
          RecordingQueue queue(caps);
          PortWorkerCounters drops;
          const Totals totals = run(source, queue, drops);
          const auto carried = naive_tunnel_segments(inner, tunnel);
          const auto bare = caps.tso4 ? std::vector<Bytes>{inner.bytes} : naive_segments(inner);
          CHECK(totals.segmented == carried.size() - 1 + bare.size() - 1);
          std::vector<Bytes> expected{plain(100, 1)};
          expected.insert(expected.end(), carried.begin(), carried.end());
          expected.insert(expected.end(), bare.begin(), bare.end());
          REQUIRE(queue.frames.size() == expected.size());
          for (size_t i = 0; i < expected.size(); ++i) REQUIRE(queue.frames[i] == expected[i]);
        }
      }
    }
  }
}

TEST_CASE("Egress: a large packet in a tunnel is compared with the MTU by what carries it") {
  OffloadShape shape;
  shape.payload = 10'000;
  shape.gso_size = 1410;  // with 40 of IP and TCP 1450, to which VXLAN over IPv4 adds 50
  const TunnelShape tunnel{.kind = TunnelKind::kVxlan};
  const OffloadFrame fits = make_tunnel_frame(make_offload_frame(shape), tunnel);
  shape.gso_size = 1411;
  const OffloadFrame too_long = make_tunnel_frame(make_offload_frame(shape), tunnel);
  Source source;
  source.add(fits);
  source.add(too_long);
  RecordingQueue queue(kEverything);
  PortWorkerCounters drops;
  run(source, queue, drops, 1500);
  CHECK(count_of(drops, DropReason::kMtuExceeded) == 1);
  CHECK(queue.frames.size() == 8);
}

TEST_CASE("Egress: a checksum in a tunnel is passed or finished, and the outer one is right then") {
  OffloadShape shape;
  shape.payload = 301;
  const OffloadFrame inner = make_offload_frame(shape);
  for (const TunnelShape& tunnel : {TunnelShape{.kind = TunnelKind::kGeneve, .options = 8},
                                    TunnelShape{.kind = TunnelKind::kVxlan, .ip_version = 6, .checksum = true},
                                    TunnelShape{.kind = TunnelKind::kGretap, .checksum = true}}) {
    const OffloadFrame frame = make_tunnel_frame(inner, tunnel);
    Source source;
    source.add(frame);
    RecordingQueue able(kEverything);
    PortWorkerCounters drops;
    run(source, able, drops);
    CHECK(able.frames == std::vector<Bytes>{frame.bytes});
    CHECK(able.headers[0].csum_start == frame.l4);
    RecordingQueue plain_queue(kNothing);
    PortWorkerCounters others;
    run(source, plain_queue, others);
    OffloadFrame whole = inner;
    whole.vnet.gso_size = 0xffff;
    CHECK(plain_queue.frames == naive_tunnel_segments(whole, tunnel));
    CHECK(plain_queue.headers[0].flags == 0);
  }
}
