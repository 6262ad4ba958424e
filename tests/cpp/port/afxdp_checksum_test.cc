// SPDX-License-Identifier: Apache-2.0
#include "port/afxdp_checksum.h"

#include <doctest/doctest.h>

#include <array>
#include <memory>
#include <span>

#include "net/offload_frames.h"
#include "net/tunnel_frames.h"
#include "port/egress.h"
#include "support/memory_queues.h"

using namespace sw;
using namespace sw::test;

namespace {

constexpr uint32_t kMtu = 1500;

// A received frame: its first 128 bytes in the head, the rest in segments of `cut` bytes.
struct Received {
  std::unique_ptr<Batch> batch = std::make_unique<Batch>();
  Bytes bytes;
  bool taken = false;

  Received(Bytes frame_bytes, size_t cut, uint32_t mtu = kMtu) : bytes(std::move(frame_bytes)) {
    Frame& frame = batch->frames[0];
    batch->count = 1;
    frame = Frame{};
    frame.len = static_cast<uint32_t>(bytes.size());
    frame.head_len = static_cast<uint16_t>(std::min<size_t>(bytes.size(), kHeadBytes));
    std::copy_n(bytes.begin(), frame.head_len, frame.head);
    frame.segments = batch->segments.data();
    for (size_t at = frame.head_len; at < bytes.size(); at += cut) {
      batch->segments[frame.segment_count++] = {bytes.data() + at,
                                                static_cast<uint32_t>(std::min(cut, bytes.size() - at))};
    }
    taken = restore_offload(frame, mtu);
    batch->may_have_offloads = frame.offload;
  }
  [[nodiscard]] const Frame& frame() const { return batch->frames[0]; }
  [[nodiscard]] bool marked() const { return frame().offload; }
  // As a port without offloads gets it.
  [[nodiscard]] std::vector<Bytes> sent() const {
    QueueCounters counters;
    PortWorkerCounters drops;
    testing::RecordingTx queue(counters);
    Egress egress;
    const std::array<uint8_t, 1> index = {0};
    egress.send(*batch, index, queue, 0, drops);
    return queue.frames;
  }
};

Bytes finished(const OffloadFrame& frame) {
  OffloadFrame whole = frame;
  whole.vnet.gso_size = 0xffff;
  return naive_segments(whole).at(0);
}

struct PlainRow {
  const char* what;
  Bytes frame;
};

// Nothing is noted beside these frames, and nothing changed in them.
void check_untouched(std::span<const PlainRow> rows) {
  for (const PlainRow& row : rows) {
    CAPTURE(row.what);
    const Received received(row.frame, 64);
    CHECK(received.taken);
    CHECK_FALSE(received.marked());
    CHECK(received.sent().at(0) == row.frame);
  }
}

}  // namespace

TEST_CASE("restore_offload: an unfinished checksum is marked, and right when it leaves") {
  for (const int version : {4, 6}) {
    for (const bool udp : {false, true}) {
      for (const int tags : {0, 1, 2}) {
        for (const size_t ip_options : {0, 8, 40}) {
          for (const size_t tcp_options : {0, 12, 40}) {
            for (const size_t payload : {0, 1, 7, 100, 1300}) {
              OffloadShape shape;
              shape.ip_version = version;
              shape.udp = udp;
              shape.tags = tags;
              shape.ip_options = ip_options;
              shape.tcp_options = udp ? 0 : tcp_options;
              shape.payload = payload;
              const OffloadFrame frame = make_offload_frame(shape, static_cast<uint32_t>(payload + ip_options));
              CAPTURE(version);
              CAPTURE(udp);
              CAPTURE(tags);
              CAPTURE(ip_options);
              CAPTURE(tcp_options);
              CAPTURE(payload);
              const Received received(frame.bytes, 200);
              REQUIRE(received.taken);
              REQUIRE(received.marked());
              CHECK(received.frame().vnet.csum_start == frame.vnet.csum_start);
              CHECK(received.frame().vnet.csum_offset == frame.vnet.csum_offset);
              CHECK(received.frame().vnet.gso_type == VIRTIO_NET_HDR_GSO_NONE);
              const auto sent = received.sent();
              REQUIRE(sent.size() == 1);
              CHECK(check_transport(sent[0], frame).empty());
              CHECK(sent[0] == finished(frame));
            }
          }
        }
      }
    }
  }
}

TEST_CASE("restore_offload: a finished frame stays as it is") {
  for (const int version : {4, 6}) {
    for (const bool udp : {false, true}) {
      OffloadShape shape;
      shape.ip_version = version;
      shape.udp = udp;
      shape.payload = 300;
      const Bytes frame = finished(make_offload_frame(shape));
      const Received received(frame, 100);
      CHECK(received.taken);
      CHECK_FALSE(received.marked());
      CHECK(received.sent().at(0) == frame);
    }
  }
}

TEST_CASE("restore_offload: a right checksum that equals the pseudo-header's sum is right afterwards") {
  OffloadShape shape;
  shape.udp = true;
  shape.payload = 100;
  OffloadFrame frame = make_offload_frame(shape);
  // Choose two payload bytes so that everything behind the pseudo-header and the field sums to its complement.
  const uint16_t pseudo = get16(frame.bytes, frame.l4 + 6);
  set16(frame.bytes, frame.headers, 0);
  const uint16_t rest = naive_sum(frame.bytes, frame.l4, frame.bytes.size());  // the field is in it once
  const uint32_t wanted = (0xffffU - pseudo + 0xffffU - rest) % 0xffffU;
  set16(frame.bytes, frame.headers, wanted);
  REQUIRE(check_transport(frame.bytes, frame).empty());
  const Received received(frame.bytes, 1000);
  CHECK(received.marked());
  CHECK(received.sent().at(0) == frame.bytes);
}

TEST_CASE("restore_offload: bytes behind the IP packet are not summed") {
  for (const int version : {4, 6}) {
    OffloadShape shape;
    shape.ip_version = version;
    shape.payload = 201;
    const OffloadFrame frame = make_offload_frame(shape);
    Bytes longer = frame.bytes;
    longer.insert(longer.end(), {1, 2, 3, 4, 5});
    const Received received(longer, 50);
    CHECK(received.taken);
    CHECK_FALSE(received.marked());
    Bytes sent = received.sent().at(0);
    REQUIRE(sent.size() == longer.size());
    sent.resize(frame.bytes.size());
    CHECK(sent == finished(frame));
  }
}

TEST_CASE("restore_offload: what is no TCP or UDP packet is left alone") {
  OffloadShape shape;
  shape.payload = 100;
  const OffloadFrame tcp = make_offload_frame(shape);
  shape.udp = true;
  const OffloadFrame udp = make_offload_frame(shape);
  const auto with = [](Bytes bytes, size_t at, uint8_t value) {
    bytes.at(at) = value;
    return bytes;
  };
  const PlainRow rows[] = {
      {"ARP", with(tcp.bytes, 13, 0x06)},
      {"SCTP", with(tcp.bytes, tcp.l3 + 9, 132)},
      {"a fragment", with(tcp.bytes, tcp.l3 + 6, 0x20)},
      {"a later fragment", with(tcp.bytes, tcp.l3 + 7, 0x10)},
      {"an IP length beyond the frame", with(tcp.bytes, tcp.l3 + 2, 0x40)},
      {"an IP length of 0", with(with(tcp.bytes, tcp.l3 + 2, 0), tcp.l3 + 3, 0)},
      {"UDP without a checksum", with(with(udp.bytes, udp.l4 + 6, 0), udp.l4 + 7, 0)},
      {"cut in the TCP header", Bytes(tcp.bytes.begin(), tcp.bytes.begin() + static_cast<long>(tcp.l4) + 17)},
      {"only an Ethernet header", Bytes(tcp.bytes.begin(), tcp.bytes.begin() + 14)},
  };
  check_untouched(rows);
}

TEST_CASE("restore_offload: frames beyond the MTU are cut to it if they are TCP") {
  for (const int version : {4, 6}) {
    for (const int tags : {0, 1}) {
      OffloadShape shape;
      shape.ip_version = version;
      shape.tags = tags;
      shape.tcp_options = 12;
      shape.payload = 20'000;
      OffloadFrame frame = make_offload_frame(shape);
      const Received received(frame.bytes, 1792);
      REQUIRE(received.taken);
      REQUIRE(received.marked());
      frame.vnet.gso_size = static_cast<uint16_t>(kMtu - (frame.headers - frame.l3));
      CHECK(received.frame().vnet.gso_size == frame.vnet.gso_size);
      CHECK(received.sent() == naive_segments(frame));
    }
  }
  OffloadShape shape;
  shape.udp = true;
  shape.payload = 20'000;
  CHECK_FALSE(Received(make_offload_frame(shape).bytes, 1792).taken);
  CHECK_FALSE(Received(Bytes(20'000, 7), 1792).taken);
  CHECK(Received(Bytes(kMtu + kEthHeaderBytes, 7), 1792).taken);
}

TEST_CASE("restore_offload: an unfinished checksum inside a tunnel is marked, and right when it leaves") {
  struct Row {
    const char* what;
    TunnelShape shape;
  };
  const Row rows[] = {
      {"VXLAN", {.kind = TunnelKind::kVxlan}},
      {"VXLAN with an outer checksum", {.kind = TunnelKind::kVxlan, .checksum = true}},
      {"VXLAN over IPv6, tagged", {.kind = TunnelKind::kVxlan, .ip_version = 6, .tags = 1, .checksum = true}},
      {"VXLAN with group policy", {.kind = TunnelKind::kVxlanPolicy}},
      {"VXLAN with an IP packet", {.kind = TunnelKind::kVxlanGenericIp, .checksum = true}},
      {"GENEVE", {.kind = TunnelKind::kGeneve, .options = 16}},
      {"GENEVE with an outer checksum", {.kind = TunnelKind::kGeneve, .checksum = true, .options = 252}},
      {"GENEVE with an IP packet", {.kind = TunnelKind::kGeneveIp, .ip_version = 6, .checksum = true}},
      {"GRE with a frame", {.kind = TunnelKind::kGretap, .options = 4}},
      {"GRE with an IP packet", {.kind = TunnelKind::kGre, .ip_version = 6}},
      {"IP in IP", {.kind = TunnelKind::kIpInIp}},
  };
  for (const Row& row : rows) {
    for (const int version : {4, 6}) {
      for (const bool udp : {false, true}) {
        for (const size_t payload : {1, 100, 1001}) {
          for (const size_t cut : {13, 1000}) {
            CAPTURE(row.what);
            CAPTURE(version);
            CAPTURE(udp);
            CAPTURE(payload);
            OffloadShape shape;
            shape.ip_version = version;
            shape.udp = udp;
            shape.tags = 1;
            shape.payload = payload;
            const OffloadFrame frame = make_tunnel_frame(make_offload_frame(shape), row.shape);
            const Received received(frame.bytes, cut);
            REQUIRE(received.taken);
            REQUIRE(received.marked());
            CHECK(received.frame().vnet.csum_start == frame.l4);
            CHECK(received.frame().vnet.csum_offset == frame.vnet.csum_offset);
            CHECK(received.sent().at(0) == finished(frame));

            const Received again(finished(frame), cut);
            CHECK(again.taken);
            CHECK_FALSE(again.marked());
            CHECK(again.sent().at(0) == finished(frame));
          }
        }
      }
    }
  }
}

TEST_CASE("restore_offload: a tunnel in a tunnel, and one too many") {
  OffloadShape shape;
  shape.payload = 300;
  OffloadFrame frame = make_offload_frame(shape);
  frame = make_tunnel_frame(frame, {.kind = TunnelKind::kGeneve, .ip_version = 6, .checksum = true});
  frame = make_tunnel_frame(frame, {.kind = TunnelKind::kVxlan, .checksum = true});
  const Received two(frame.bytes, 200);
  REQUIRE(two.marked());
  CHECK(two.sent().at(0) == finished(frame));
  frame = make_tunnel_frame(frame, {.kind = TunnelKind::kGretap});
  const Received three(frame.bytes, 200);
  CHECK(three.taken);
  CHECK_FALSE(three.marked());
  CHECK(three.sent().at(0) == frame.bytes);
}

TEST_CASE("restore_offload: an outer checksum that looks unfinished by chance does not hide the inner one") {
  OffloadShape shape;
  shape.payload = 200;
  OffloadFrame inner = make_offload_frame(shape);
  const OffloadFrame first = make_tunnel_frame(inner, {.checksum = true});
  constexpr size_t kL3 = 14;
  constexpr size_t kL4 = 34;
  // Change the outer source port so that the right checksum becomes the pseudo-header's sum.
  OffloadFrame frame = first;
  const uint32_t wanted = naive_pseudo_sum(frame.bytes, kL3, 17, frame.bytes.size() - kL4);
  const uint32_t port = get16(frame.bytes, kL4) + get16(frame.bytes, kL4 + 6) + 0xffffU - wanted;
  set16(frame.bytes, kL4, port % 0xffffU);
  set16(frame.bytes, kL4 + 6, wanted);
  const Received received(frame.bytes, 200);
  REQUIRE(received.marked());
  CHECK(received.frame().vnet.csum_start == frame.l4);
  CHECK(received.sent().at(0) == finished(frame));
}

TEST_CASE("restore_offload: an outer checksum that is unfinished is the one that is finished") {
  OffloadShape shape;
  shape.payload = 400;
  const OffloadFrame frame = make_tunnel_frame(make_offload_frame(shape), {});
  constexpr size_t kL3 = 14;
  constexpr size_t kL4 = 34;
  Bytes bytes = finished(frame);  // the inner one is done
  set16(bytes, kL4 + 6, naive_pseudo_sum(bytes, kL3, 17, bytes.size() - kL4));
  const Received received(bytes, 200);
  REQUIRE(received.marked());
  CHECK(received.frame().vnet.csum_start == kL4);
  CHECK(received.frame().vnet.csum_offset == 6);
}

TEST_CASE("restore_offload: what only looks like an unfinished checksum inside a tunnel is left alone") {
  OffloadShape shape;
  shape.payload = 100;
  const OffloadFrame inner = make_offload_frame(shape);
  const OffloadFrame plain = make_tunnel_frame(inner, {});
  const OffloadFrame checked = make_tunnel_frame(inner, {.checksum = true});
  OffloadFrame shorter = inner;
  shorter.bytes.insert(shorter.bytes.end(), {0, 0, 0, 0});  // padded inside the tunnel
  const auto with = [](Bytes bytes, size_t at, uint8_t value) {
    bytes.at(at) = value;
    return bytes;
  };
  const PlainRow rows[] = {
      {"an outer checksum that does not fit the finished packet", with(checked.bytes, 34 + 6, 0x5a)},
      {"an inner packet that does not fill the outer one", make_tunnel_frame(shorter, {}).bytes},
      {"an inner fragment", with(plain.bytes, plain.l3 + 6, 0x20)},
      {"an inner packet that is not IP", with(plain.bytes, plain.l3 - 1, 0x06)},
      {"cut in the inner header", Bytes(plain.bytes.begin(), plain.bytes.begin() + static_cast<long>(plain.l4) + 10)},
  };
  check_untouched(rows);
}

TEST_CASE("restore_offload: a packet in a tunnel that was left to the device to cut is cut, TCP alone") {
  struct TunnelRow {
    const char* what;
    TunnelShape shape;
    size_t l4;  // of the outer packet
  };
  const TunnelRow rows[] = {
      {"VXLAN", {.kind = TunnelKind::kVxlan}, 34},
      {"VXLAN, tagged, outer checksum", {.kind = TunnelKind::kVxlan, .tags = 1, .checksum = true}, 38},
      {"GENEVE over IPv6, outer checksum", {.kind = TunnelKind::kGeneve, .ip_version = 6, .checksum = true}, 54},
      {"GRE, key", {.kind = TunnelKind::kGretap, .options = 4}, 34},
      {"IP in IP", {.kind = TunnelKind::kIpInIp}, 34},
  };
  for (const TunnelRow& row : rows) {
    for (const int version : {4, 6}) {
      CAPTURE(row.what);
      CAPTURE(version);
      OffloadShape shape;
      shape.ip_version = version;
      shape.payload = 20'000;
      OffloadFrame inner = make_offload_frame(shape);
      OffloadFrame frame = make_tunnel_frame(inner, row.shape);
      if (row.shape.checksum) {  // of such a frame the outer one is left open as well
        const size_t l3 = row.l4 - (row.shape.ip_version == 4 ? 20 : 40);
        set16(frame.bytes, row.l4 + 6, naive_pseudo_sum(frame.bytes, l3, 17, frame.bytes.size() - row.l4));
      }
      const Received received(frame.bytes, 1792);
      REQUIRE(received.taken);
      REQUIRE(received.marked());
      CHECK(received.frame().vnet.csum_start == frame.l4);
      const size_t l2 = 14 + 4 * static_cast<size_t>(row.shape.tags);
      inner.vnet.gso_size = static_cast<uint16_t>(kMtu + l2 - frame.headers);
      const auto expected = naive_tunnel_segments(inner, row.shape);
      CHECK(expected.at(0).size() == kMtu + l2);
      const auto sent = received.sent();
      REQUIRE(sent.size() == expected.size());
      for (size_t i = 0; i < sent.size(); ++i) REQUIRE(sent[i] == expected[i]);
      shape.udp = true;
      CHECK_FALSE(Received(make_tunnel_frame(make_offload_frame(shape), row.shape).bytes, 1792).taken);
    }
  }
}

TEST_CASE("restore_offload: bytes behind the outer packet are not summed") {
  OffloadShape shape;
  shape.payload = 0;
  const OffloadFrame frame = make_tunnel_frame(make_offload_frame(shape), {.checksum = true});
  Bytes longer = frame.bytes;
  longer.insert(longer.end(), {1, 2, 3, 4, 5});
  const Received received(longer, 50);
  CHECK_FALSE(received.marked());
  Bytes sent = received.sent().at(0);
  sent.resize(frame.bytes.size());
  CHECK(sent == finished(frame));
}
