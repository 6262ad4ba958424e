// SPDX-License-Identifier: Apache-2.0
#ifdef SW_HAVE_VERBS
#include "port/verbs_tx.h"

#include <memory>
#include <numeric>
#include <random>

#include "net/tunnel_frames.h"
#include "port/verbs_fake.h"

using namespace sw;
using namespace sw::test;

namespace {

constexpr uint32_t kSlots = 128;
constexpr uint32_t kSlotBytes = 1536;
constexpr uint32_t kMtu = kSlotBytes - kEthHeaderBytes;

struct Bed {
  explicit Bed(VerbsTx::Options options = {}) {
    if (options.mtu == 0) options.mtu = kMtu;
    tx = std::make_unique<VerbsTx>(&device.qp, VerbsSlots{device.memory.data(), kSlotBytes, kSlots, FakeDevice::kKey},
                                   options, counters);
  }
  void add(const Bytes& bytes, const VnetHeader& vnet = {}) {
    Frame& frame = batch->frames[batch->count];
    frame = {};
    kept.push_back(bytes);
    const Bytes& all = kept.back();
    frame.len = static_cast<uint32_t>(all.size());
    frame.head_len = static_cast<uint16_t>(std::min<size_t>(all.size(), kHeadBytes));
    std::memset(frame.head, 0xee, sizeof frame.head);
    std::memcpy(frame.head, all.data(), frame.head_len);
    if (all.size() > kHeadBytes) {
      Segment& segment = batch->segments[batch->segments_used++];
      segment = {all.data() + kHeadBytes, static_cast<uint32_t>(all.size() - kHeadBytes)};
      frame.segments = &segment;
      frame.segment_count = 1;
    }
    frame.vnet = vnet;
    frame.offload = vnet.flags != 0;
    index.push_back(static_cast<uint8_t>(batch->count++));
  }
  void send() {
    CHECK(tx->send(*batch, index, drops) == index.size());
    batch->clear();
    index.clear();
  }
  void send_many(size_t count, size_t bytes = 60) {
    for (size_t i = 0; i < count; ++i) add(Bytes(bytes, static_cast<uint8_t>(i)));
    send();
  }
  [[nodiscard]] uint64_t dropped(DropReason reason) const { return drops.tx_drops[static_cast<size_t>(reason)].get(); }

  FakeDevice device{size_t{kSlots} * kSlotBytes};
  QueueCounters counters;
  PortWorkerCounters drops;
  std::deque<Bytes> kept;
  std::unique_ptr<Batch> batch = std::make_unique<Batch>();
  std::vector<uint8_t> index;
  std::unique_ptr<VerbsTx> tx;
};

Bytes numbered(size_t bytes) {
  Bytes frame(bytes);
  std::iota(frame.begin(), frame.end(), uint8_t{1});
  return frame;
}

Bytes padded(Bytes frame) {
  if (frame.size() < 60) frame.resize(60, 0);
  return frame;
}

}  // namespace

TEST_CASE("VerbsTx: frames of a burst leave as one chain, in order, whole, padded with zeros") {
  for (const uint32_t max_inline : {0U, 64U, 256U}) {
    CAPTURE(max_inline);
    Bed bed({.max_inline = max_inline});
    const std::vector<size_t> sizes = {14, 59, 60, 64, 65, 128, 129, 256, 257, 1514, 1536};
    for (const size_t size : sizes) bed.add(numbered(size));
    bed.send();
    CHECK(bed.device.send_calls == 1);
    REQUIRE(bed.device.sent.size() == sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
      CAPTURE(sizes[i]);
      CHECK(bed.device.sent[i].bytes == padded(numbered(sizes[i])));
      CHECK(((bed.device.sent[i].flags & IBV_SEND_INLINE) != 0) == (std::max<size_t>(60, sizes[i]) <= max_inline));
    }
    CHECK(bed.counters.frames.get() == sizes.size());
    CHECK(bed.counters.bytes.get() == std::accumulate(sizes.begin(), sizes.end(), size_t{0}));
  }
}

TEST_CASE("VerbsTx: every 32nd request asks for a completion, which frees all before it") {
  Bed bed;
  for (int burst = 0; burst < 2; ++burst) bed.send_many(64);
  for (size_t i = 0; i < bed.device.sent.size(); ++i) {
    CHECK(((bed.device.sent[i].flags & IBV_SEND_SIGNALED) != 0) == (i % 32 == 31));
  }
  bed.send_many(1);
  CHECK(bed.dropped(DropReason::kRingFull) == 1);
  bed.device.finish_sends();
  for (int burst = 0; burst < 200; ++burst) {
    bed.send_many(64);
    bed.device.finish_sends();
  }
  CHECK(bed.dropped(DropReason::kRingFull) == 1);
  CHECK(bed.counters.frames.get() == 64 * 202);
  CHECK(!bed.tx->fault().is_set());
}

TEST_CASE("VerbsTx: open checksums are finished by the device or in the slot") {
  struct Row {
    const char* situation;
    OffloadShape shape;
    bool device_has_it, by_device;
    bool v6 = false;
  };
  const Row rows[] = {{"TCP over IPv4", {.payload = 200}, true, true},
                      {"UDP over IPv4", {.udp = true, .payload = 30}, true, true},
                      {"behind a tag", {.tags = 1, .payload = 200}, true, true},
                      {"behind two tags", {.tags = 2, .payload = 200}, true, false},
                      {"IPv4 with options", {.ip_options = 8, .payload = 200}, true, true},
                      {"TCP over IPv6", {.ip_version = 6, .payload = 200}, true, true, true},
                      {"UDP over IPv6, tagged", {.ip_version = 6, .udp = true, .tags = 1}, true, true, true},
                      {"IPv6, not known to be done", {.ip_version = 6, .payload = 200}, true, false},
                      {"extension headers", {.ip_version = 6, .ip_options = 8, .payload = 200}, true, false, true},
                      {"IPv6, the device has none", {.ip_version = 6, .payload = 200}, false, false, true},
                      {"the device cannot", {.payload = 200}, false, false}};
  for (const Row& row : rows) {
    CAPTURE(row.situation);
    Bed bed({.checksum = row.device_has_it, .checksum_v6 = row.v6});
    CHECK(bed.tx->caps().checksum);
    const OffloadFrame frame = make_offload_frame(row.shape);
    bed.add(frame.bytes, frame.vnet);
    bed.send();
    REQUIRE(bed.device.sent.size() == 1);
    CHECK(((bed.device.sent[0].flags & IBV_SEND_IP_CSUM) != 0) == row.by_device);
    if (row.by_device) {
      CHECK(bed.device.sent[0].bytes == padded(frame.bytes));
    } else {
      CHECK(check_transport(bed.device.sent[0].bytes, frame) == "");
    }
  }
  CHECK(!Bed({.checksum = true, .offloads = false}).tx->caps().checksum);
}

TEST_CASE("VerbsTx: offsets that the device would not understand are not left to it") {
  const OffloadFrame good = make_offload_frame({.payload = 200});
  OffloadFrame fragment = good;
  set16(fragment.bytes, fragment.l3 + 6, 0x2000);
  OffloadFrame service = make_offload_frame({.tags = 1, .payload = 200});
  set16(service.bytes, 12, 0x88a8);
  VnetHeader elsewhere = good.vnet;
  elsewhere.csum_start = static_cast<uint16_t>(elsewhere.csum_start + 2);
  VnetHeader offset = good.vnet;
  offset.csum_offset = 6;
  const OffloadFrame vxlan = make_tunnel_frame(good, {.checksum = true});
  const OffloadFrame in_v6 = make_tunnel_frame(good, {.ip_version = 6, .checksum = true});
  VnetHeader outside = good.vnet;
  outside.csum_start = 0xffff;
  struct Row {
    const char* situation;
    Bytes bytes;
    VnetHeader vnet;
    uint64_t dropped;
  };
  const Row rows[] = {
      {"a fragment", fragment.bytes, good.vnet, 0}, {"behind a service tag", service.bytes, service.vnet, 0},
      {"in a tunnel", vxlan.bytes, vxlan.vnet, 0},  {"in a tunnel over IPv6", in_v6.bytes, in_v6.vnet, 0},
      {"another start", good.bytes, elsewhere, 0},  {"another field", good.bytes, offset, 0},
      {"outside the frame", good.bytes, outside, 1}};
  for (const Row& row : rows) {
    CAPTURE(row.situation);
    Bed bed({.checksum = true, .checksum_v6 = true});
    bed.add(row.bytes, row.vnet);
    bed.send();
    CHECK(bed.dropped(DropReason::kOffloadUnsupported) == row.dropped);
    for (const FakeSent& sent : bed.device.sent) CHECK((sent.flags & IBV_SEND_IP_CSUM) == 0);
  }
}

TEST_CASE("VerbsTx: a full send queue (ENOMEM) drops the rest of the burst and nothing else") {
  Bed bed;
  bed.device.send_room = 40;
  bed.send_many(64);
  CHECK(bed.counters.frames.get() == 40);
  CHECK(bed.dropped(DropReason::kRingFull) == 24);
  bed.device.finish_sends();
  bed.send_many(30);
  CHECK(bed.counters.frames.get() == 70);
  CHECK(bed.dropped(DropReason::kRingFull) == 24);
  CHECK(!bed.tx->fault().is_set());
}

TEST_CASE("VerbsTx: a refused request costs one frame; a device that refuses all is broken") {
  Bed bed;
  bed.device.refused_sends = {0, 5, 8};
  bed.send_many(10);
  CHECK(bed.counters.frames.get() == 7);
  CHECK(bed.dropped(DropReason::kDeviceError) == 3);
  CHECK(!bed.tx->fault().is_set());

  bed.device.refuse_all_sends = true;
  for (int i = 0; i < 7; ++i) bed.send_many(9);
  CHECK(!bed.tx->fault().is_set());
  bed.send_many(9);
  CHECK(bed.tx->fault().text() == "the device takes no frames: Invalid argument");
  bed.device.refuse_all_sends = false;
  bed.send_many(5);
  CHECK(bed.dropped(DropReason::kDeviceError) == 3 + 72 + 5);
}

TEST_CASE("VerbsTx: the device's MTU is kept, one VLAN tag does not count") {
  struct Row {
    const char* situation;
    uint16_t type;
    size_t bytes;
    bool leaves;
  };
  const Row rows[] = {{"as long as may be", 0x0800, 1514, true},
                      {"too long", 0x0800, 1515, false},
                      {"a tag more", 0x8100, 1518, true},
                      {"a tag and too long", 0x8100, 1519, false},
                      {"a service tag more", 0x88a8, 1518, true},
                      {"a service tag and too long", 0x88a8, 1519, false},
                      {"no tag, though as long", 0x0800, 1518, false}};
  for (const Row& row : rows) {
    CAPTURE(row.situation);
    Bed bed({.mtu = 1500});
    Bytes frame = numbered(row.bytes);
    set16(frame, 12, row.type);
    bed.add(frame);
    bed.send();
    CHECK(bed.device.sent.size() == (row.leaves ? 1 : 0));
    CHECK(bed.dropped(DropReason::kMtuExceeded) == (row.leaves ? 0 : 1));
  }
}

TEST_CASE("VerbsTx: a frame longer than a slot is dropped, the others leave") {
  Bed bed;
  bed.add(numbered(100));
  bed.add(numbered(kSlotBytes + 1));
  bed.add(numbered(200));
  bed.send();
  REQUIRE(bed.device.sent.size() == 2);
  CHECK(bed.device.sent[1].bytes == numbered(200));
  CHECK(bed.dropped(DropReason::kMtuExceeded) == 1);
}

TEST_CASE("VerbsTx: a completion that cannot be true stops the queue") {
  ibv_wc ahead{};
  ahead.wr_id = 64;
  ibv_wc wide{};
  wide.wr_id = uint64_t{1} << 32 | 31;
  ibv_wc failed{};
  failed.wr_id = 3;
  failed.status = IBV_WC_WR_FLUSH_ERR;
  struct Row {
    const char* situation;
    std::vector<ibv_wc> completions;
    const char* expected;
  };
  ibv_wc first{};
  first.wr_id = 31;
  const Row rows[] = {{"a request that was not posted", {ahead}, "fits no request (64)"},
                      {"a number of more than 32 bits", {wide}, "fits no request"},
                      {"the same one twice", {first, first}, "fits no request (31)"},
                      {"an error", {failed}, "the queue was stopped"}};
  for (const Row& row : rows) {
    CAPTURE(row.situation);
    Bed bed;
    bed.send_many(64);
    for (const ibv_wc& wc : row.completions) bed.device.done.push_back(wc);
    bed.send_many(3);
    CHECK(bed.tx->fault().text().find(row.expected) != std::string::npos);
    CHECK(bed.dropped(DropReason::kDeviceError) == 3);
    CHECK(bed.device.sent.size() == 64);
  }
  Bed bed;
  bed.send_many(64);
  bed.device.poll_answer = -1;
  bed.send_many(1);
  CHECK(bed.tx->fault().text().find("overran") != std::string::npos);
}

TEST_CASE("VerbsTx: large segments are left to a device that cuts them") {
  struct Row {
    const char* situation;
    OffloadShape shape;
  };
  const Row rows[] = {{"IPv4", {.payload = 20'000, .gso_size = 1448}},
                      {"IPv6", {.ip_version = 6, .payload = 20'000, .gso_size = 1428}},
                      {"behind a tag", {.tags = 1, .payload = 9'000, .gso_size = 1000}},
                      {"headers as long as they get",
                       {.tags = 1, .ip_options = 40, .tcp_options = 40, .payload = 3'000, .gso_size = 900}},
                      {"the last piece is short", {.payload = 1449, .gso_size = 1448}},
                      {"as long as the device takes", {.payload = 30'000, .gso_size = 1448}}};
  for (const Row& row : rows) {
    CAPTURE(row.situation);
    Bed bed({.checksum = true, .checksum_v6 = true, .max_tso = 30'000, .max_tso_header = 144});
    CHECK(bed.tx->caps().tso4);
    CHECK(bed.tx->caps().tso6);
    CHECK_FALSE(bed.tx->caps().ecn);
    const OffloadFrame frame = make_offload_frame(row.shape);
    bed.add(numbered(200));
    bed.add(frame.bytes, frame.vnet);
    bed.add(numbered(300));
    bed.send();
    CHECK(bed.device.send_calls == 1);
    REQUIRE(bed.device.sent.size() == 3);
    const FakeSent& large = bed.device.sent[1];
    CHECK(large.bytes == frame.bytes);
    CHECK(large.header == frame.headers);
    CHECK(large.mss == frame.vnet.gso_size);
    CHECK((large.flags & IBV_SEND_IP_CSUM) != 0);
    CHECK((large.flags & IBV_SEND_INLINE) == 0);
    CHECK(bed.device.sent[2].bytes == numbered(300));
    CHECK(bed.counters.frames.get() == 3);
    CHECK(bed.counters.bytes.get() == 500 + frame.bytes.size());
    CHECK(bed.drops.segmented.get() == 0);
    CHECK(bed.tx->tso_frames() == 1);
  }
}

TEST_CASE("VerbsTx: large segments that the device would not understand are cut in the slots") {
  OffloadFrame service = make_offload_frame({.tags = 1, .payload = 5'000, .gso_size = 1400});
  set16(service.bytes, 12, 0x88a8);
  OffloadFrame reduced = make_offload_frame({.payload = 5'000, .gso_size = 1400, .tcp_flags = 0x98});
  reduced.vnet.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
  struct Row {
    const char* situation;
    OffloadFrame frame;
    bool cuts = true;
  };
  const Row rows[] = {
      {"behind two tags", make_offload_frame({.tags = 2, .payload = 5'000, .gso_size = 1400})},
      {"behind a service tag", service},
      {"extension headers", make_offload_frame({.ip_version = 6, .ip_options = 8, .payload = 5'000, .gso_size = 1400})},
      {"headers that are too long",
       make_offload_frame({.ip_options = 40, .tcp_options = 40, .payload = 5'000, .gso_size = 1000})},
      {"more than the device takes", make_offload_frame({.payload = 30'001, .gso_size = 1400})},
      {"one piece", make_offload_frame({.payload = 1'400, .gso_size = 1400})},
      {"UDP", make_offload_frame({.udp = true, .payload = 5'000, .gso_size = 1400})},
      {"congestion seen", reduced},
      {"pieces below the minimum", make_offload_frame({.payload = 25, .gso_size = 4}), false},
      {"the device cuts none", make_offload_frame({.payload = 5'000, .gso_size = 1400}), false}};
  for (const Row& row : rows) {
    CAPTURE(row.situation);
    Bed bed({.checksum = true, .checksum_v6 = true, .max_tso = row.cuts ? 30'000U : 0U, .max_tso_header = 120});
    bed.add(row.frame.bytes, row.frame.vnet);
    bed.send();
    const std::vector<Bytes> expected = naive_segments(row.frame);
    REQUIRE(bed.device.sent.size() == expected.size());
    uint64_t bytes = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      CHECK(bed.device.sent[i].bytes == padded(expected[i]));
      bytes += expected[i].size();
    }
    CHECK(bed.counters.frames.get() == expected.size());
    CHECK(bed.counters.bytes.get() == bytes);
    CHECK(bed.drops.segmented.get() == expected.size() - 1);
    CHECK(bed.tx->tso_frames() == 0);
  }
  const VerbsTx::Options no_v6{.checksum = true, .max_tso = 30'000, .max_tso_header = 144};
  CHECK(Bed(no_v6).tx->caps().tso4);
  CHECK_FALSE(Bed(no_v6).tx->caps().tso6);
  CHECK_FALSE(Bed({.checksum = false, .max_tso = 30'000, .max_tso_header = 144}).tx->caps().tso4);
  CHECK_FALSE(Bed({.checksum = true, .offloads = false, .max_tso = 30'000, .max_tso_header = 144}).tx->caps().tso4);
}

TEST_CASE("VerbsTx: large segments that cannot leave are dropped and named") {
  struct Row {
    const char* situation;
    OffloadFrame frame;
    DropReason reason;
  };
  OffloadFrame elsewhere = make_offload_frame({.payload = 5'000, .gso_size = 1400});
  elsewhere.vnet.csum_start = 20;
  const Row rows[] = {
      {"pieces beyond the MTU", make_offload_frame({.payload = 5'000, .gso_size = 1470}), DropReason::kMtuExceeded},
      {"a checksum elsewhere", elsewhere, DropReason::kOffloadUnsupported}};
  for (const Row& row : rows) {
    CAPTURE(row.situation);
    Bed bed({.mtu = 1500, .checksum = true, .checksum_v6 = true, .max_tso = 65'535, .max_tso_header = 144});
    bed.add(row.frame.bytes, row.frame.vnet);
    bed.send();
    CHECK(bed.device.sent.empty());
    CHECK(bed.dropped(row.reason) == 1);
  }
}

TEST_CASE("VerbsTx: a library that refuses large segments is asked once, then they are cut here") {
  Bed bed({.checksum = true, .checksum_v6 = true, .max_tso = 65'535, .max_tso_header = 144});
  bed.device.has_tso = false;
  const OffloadFrame frame = make_offload_frame({.payload = 10'000, .gso_size = 1448});
  CHECK(bed.tx->device_cuts());
  bed.add(numbered(100));
  bed.add(frame.bytes, frame.vnet);
  bed.add(numbered(200));
  bed.send();
  CHECK(bed.device.sent.size() == 2);
  CHECK(bed.dropped(DropReason::kDeviceError) == 1);
  CHECK_FALSE(bed.tx->device_cuts());
  bed.device.finish_sends();
  bed.add(frame.bytes, frame.vnet);
  bed.send();
  CHECK(bed.device.sent.size() == 2 + naive_segments(frame).size());
  CHECK(!bed.tx->fault().is_set());
}

TEST_CASE("VerbsTx: large and small frames share the slots for ever, none is written while the device reads it") {
  for (const bool by_device : {true, false}) {
    CAPTURE(by_device);
    Bed bed({.checksum = true, .checksum_v6 = true, .max_tso = by_device ? 65'535U : 0U, .max_tso_header = 144});
    std::mt19937 random(7);
    std::vector<OffloadFrame> large;  // made once: making them is most of the work
    for (int i = 0; i < 64; ++i) {
      large.push_back(make_offload_frame({.payload = 1'449 + random() % 60'000, .gso_size = 1448}));
    }
    uint64_t offered = 0;
    for (int burst = 0; burst < 2'000; ++burst) {
      for (auto i = random() % 6; i > 0; --i) {
        if (random() % 2 == 0) {
          bed.add(numbered(60 + random() % 1'400));
        } else {
          const OffloadFrame& frame = large[random() % large.size()];
          bed.add(frame.bytes, frame.vnet);
        }
        ++offered;
      }
      bed.send();
      if (random() % 4 != 0) {
        bed.device.finish_sends();
        bed.device.sent.clear();
        bed.device.finished = 0;
      }
      bed.kept.clear();
    }
    CHECK(!bed.tx->fault().is_set());
    CHECK(bed.counters.frames.get() + bed.dropped(DropReason::kRingFull) == offered + bed.drops.segmented.get());
    CHECK(bed.counters.frames.get() > offered / 2);
    bed.device.finish_sends();
    bed.send_many(1);
    CHECK(bed.device.sent.back().bytes == Bytes(60, 0));
  }
}

TEST_CASE("VerbsTx: a refused request hands its completion on") {
  Bed bed;
  for (size_t number = 31; number < 64; number += 32) bed.device.refused_sends.push_back(number);
  for (int burst = 0; burst < 2; ++burst) bed.send_many(64);
  bed.device.finish_sends();
  for (int burst = 0; burst < 100; ++burst) {
    bed.send_many(40);
    bed.device.finish_sends();
  }
  CHECK(bed.dropped(DropReason::kDeviceError) == 2);
  CHECK(bed.dropped(DropReason::kRingFull) == 0);
  CHECK(!bed.tx->fault().is_set());
}
#endif
