// SPDX-License-Identifier: Apache-2.0
#ifdef SW_HAVE_VERBS
#include "port/verbs_rx.h"

#include <sys/eventfd.h>

#include <memory>
#include <numeric>

#include "base/fd.h"
#include "port/verbs_fake.h"

using namespace sw;
using namespace sw::test;

namespace {

constexpr uint32_t kSlots = 128;
constexpr uint32_t kSlotBytes = 1536;

Bytes numbered(size_t bytes) {
  Bytes frame(bytes);
  std::iota(frame.begin(), frame.end(), static_cast<uint8_t>(bytes));
  return frame;
}

Bytes bytes_of(const Frame& frame) {
  Bytes bytes(frame.len);
  copy_from_frame(frame, 0, bytes.data(), frame.len);
  return bytes;
}

struct Bed {
  explicit Bed(bool work_queue = false, bool checksum = true, const VerbsCalls& calls = {}) {
    VerbsRx::Source source;
    if (work_queue) {
      source.wq = &device.wq;
    } else {
      source.qp = &device.qp;
    }
    rx = std::make_unique<VerbsRx>(source, VerbsSlots{device.memory.data(), kSlotBytes, kSlots, FakeDevice::kKey},
                                   checksum, calls, counters);
  }
  bool peek() {
    batch->clear();
    return rx->peek(*batch, drops);
  }
  [[nodiscard]] uint64_t dropped(DropReason reason) const { return drops.rx_drops[static_cast<size_t>(reason)].get(); }

  FakeDevice device{size_t{kSlots} * kSlotBytes};
  QueueCounters counters;
  PortWorkerCounters drops;
  std::unique_ptr<Batch> batch = std::make_unique<Batch>();
  std::unique_ptr<VerbsRx> rx;
};

}  // namespace

TEST_CASE("VerbsRx: posts every slot once, in chains") {
  for (const bool work_queue : {false, true}) {
    CAPTURE(work_queue);
    Bed bed(work_queue);
    REQUIRE(bed.rx->post_all());
    CHECK(bed.device.posted.size() == kSlots);
    CHECK(bed.device.post_calls == std::vector<size_t>{64, 64});
    std::vector<bool> seen(kSlots, false);
    for (const auto& posted : bed.device.posted) {
      REQUIRE(posted.wr.wr_id < kSlots);
      CHECK(!seen[posted.wr.wr_id]);
      seen[posted.wr.wr_id] = true;
      CHECK(posted.sge.length == kSlotBytes);
    }
  }
}

TEST_CASE("VerbsRx: a frame is a head and a reference to the rest") {
  for (const size_t bytes : {14U, 60U, 128U, 129U, 1514U, 1536U}) {
    CAPTURE(bytes);
    Bed bed;
    REQUIRE(bed.rx->post_all());
    bed.device.receive(numbered(bytes));
    REQUIRE(bed.peek());
    REQUIRE(bed.batch->count == 1);
    const Frame& frame = bed.batch->frames[0];
    CHECK(bytes_of(frame) == numbered(bytes));
    CHECK(frame.head_len == std::min<size_t>(bytes, kHeadBytes));
    CHECK(frame.segment_count == (bytes > kHeadBytes ? 1 : 0));
    CHECK(!frame.offload);
    CHECK(bed.counters.frames.get() == 1);
    CHECK(bed.counters.bytes.get() == bytes);
    CHECK(!bed.rx->fault().is_set());
  }
}

TEST_CASE("VerbsRx: the device's word that a checksum is right is passed on if it can verify") {
  struct Row {
    bool can_verify;
    unsigned wc_flags;
    uint8_t expected;
  };
  for (const Row& row :
       {Row{true, IBV_WC_IP_CSUM_OK, VIRTIO_NET_HDR_F_DATA_VALID}, Row{true, 0, 0}, Row{false, IBV_WC_IP_CSUM_OK, 0}}) {
    Bed bed(false, row.can_verify);
    REQUIRE(bed.rx->post_all());
    bed.device.receive(numbered(100), row.wc_flags);
    REQUIRE(bed.peek());
    CHECK(bed.batch->frames[0].vnet.flags == row.expected);
    CHECK(bed.batch->frames[0].offload == (row.expected != 0));
    CHECK(bed.batch->may_have_offloads == (row.expected != 0));
  }
}

TEST_CASE("VerbsRx: released slots are posted again, 32 at a time, for ever") {
  Bed bed;
  REQUIRE(bed.rx->post_all());
  bed.device.post_calls.clear();
  for (int i = 0; i < 31; ++i) {
    bed.device.receive(numbered(60));
    REQUIRE(bed.peek());
    bed.rx->release();
  }
  CHECK(bed.device.post_calls.empty());
  bed.device.receive(numbered(60));
  REQUIRE(bed.peek());
  bed.rx->release();
  CHECK(bed.device.post_calls == std::vector<size_t>{32});
  for (int round = 0; round < 100; ++round) {
    for (int i = 0; i < 64; ++i) bed.device.receive(numbered(200));
    REQUIRE(bed.peek());
    CHECK(bed.batch->count == 64);
    bed.rx->release();
  }
  CHECK(bed.device.posted.size() == kSlots);
  CHECK(bed.counters.frames.get() == 32 + 6400);
  CHECK(!bed.peek());
}

TEST_CASE("VerbsRx: a full receive queue (ENOMEM) is tried again, any other refusal is a fault") {
  Bed bed;
  bed.device.receive_room = 50;
  REQUIRE(bed.rx->post_all());
  CHECK(bed.device.posted.size() == 50);
  CHECK(!bed.peek());
  CHECK(!bed.rx->fault().is_set());
  bed.device.receive_room = 200;
  CHECK(!bed.peek());
  CHECK(bed.device.posted.size() == kSlots);

  Bed broken;
  broken.device.receive_error = EINVAL;
  const auto posted = broken.rx->post_all();
  REQUIRE(!posted);
  CHECK(posted.error().message().find("Invalid argument") != std::string::npos);
  Bed full;
  full.device.receive_room = 0;
  CHECK(!full.rx->post_all());
}

TEST_CASE("VerbsRx: a completion that cannot be true stops the queue, and touches no memory") {
  ibv_wc beyond{};
  beyond.wr_id = kSlots;
  beyond.byte_len = 60;
  ibv_wc far{};
  far.wr_id = ~uint64_t{0};
  far.byte_len = 60;
  ibv_wc longer{};
  longer.wr_id = 3;
  longer.byte_len = kSlotBytes + 1;
  ibv_wc flushed{};
  flushed.wr_id = 4;
  flushed.status = IBV_WC_WR_FLUSH_ERR;
  ibv_wc outside{};
  outside.wr_id = 5;
  outside.status = IBV_WC_LOC_PROT_ERR;
  struct Row {
    const char* situation;
    ibv_wc wc;
    const char* expected;
  };
  const Row rows[] = {{"a slot that does not exist", beyond, "fits no request (128)"},
                      {"a number of 64 bits", far, "fits no request"},
                      {"more bytes than the buffer has", longer, "fits no request (1537)"},
                      {"the queue was flushed", flushed, "the queue was stopped"},
                      {"a protection error", outside, "outside the registered memory"}};
  for (const Row& row : rows) {
    CAPTURE(row.situation);
    Bed bed;
    REQUIRE(bed.rx->post_all());
    bed.device.complete(row.wc);
    CHECK(bed.peek());
    CHECK(bed.batch->count == 0);
    bed.rx->release();
    CHECK(bed.rx->fault().text().find(row.expected) != std::string::npos);
    bed.device.receive(numbered(60));
    CHECK(!bed.peek());
  }
}

TEST_CASE("VerbsRx: the same buffer twice is a fault, and the frames before it are delivered") {
  Bed bed;
  REQUIRE(bed.rx->post_all());
  bed.device.receive(numbered(70));
  bed.device.complete(bed.device.received.front());
  REQUIRE(bed.peek());
  CHECK(bed.batch->count == 1);
  CHECK(bed.rx->fault().text().find("fits no request") != std::string::npos);
  bed.rx->release();
}

TEST_CASE("VerbsRx: an unreadable completion queue is a fault") {
  for (const int answer : {-1, -EIO, 65}) {
    Bed bed;
    REQUIRE(bed.rx->post_all());
    bed.device.poll_answer = answer;
    CHECK(!bed.peek());
    CHECK(bed.rx->fault().text().find("overran (ibv_poll_cq: " + std::to_string(answer)) != std::string::npos);
  }
}

TEST_CASE("VerbsRx: frames that are too short or were too long are counted as received and dropped") {
  Bed bed;
  REQUIRE(bed.rx->post_all());
  bed.device.receive(numbered(13));
  bed.device.receive(numbered(0));
  bed.device.receive(numbered(60));
  REQUIRE(bed.peek());
  CHECK(bed.batch->count == 1);
  CHECK(bed.counters.frames.get() == 3);
  CHECK(bed.dropped(DropReason::kFrameTooShort) == 2);
  bed.rx->release();
  ibv_wc wc{};
  wc.wr_id = bed.device.posted.front().wr.wr_id;
  wc.status = IBV_WC_LOC_LEN_ERR;
  bed.device.complete(wc);
  REQUIRE(bed.peek());
  CHECK(bed.counters.frames.get() == 4);
  CHECK(bed.dropped(DropReason::kFrameTooLong) == 1);
  CHECK(bed.rx->fault().text().find("longer than its receive buffer") != std::string::npos);
}

TEST_CASE("VerbsRx: arm asks for an event and keeps what arrived meanwhile") {
  static int waiting;
  static unsigned acknowledged;
  waiting = 3;
  acknowledged = 0;
  const VerbsCalls calls{[](ibv_comp_channel*, ibv_cq**, void**) { return waiting > 0 ? (--waiting, 0) : -1; },
                         [](ibv_cq*, unsigned events) { acknowledged += events; }};
  Bed silent;
  CHECK(silent.rx->wake_fd() == -1);
  CHECK(!silent.rx->arm());

  const UniqueFd fd(::eventfd(0, EFD_CLOEXEC));
  FakeDevice device(size_t{kSlots} * kSlotBytes);
  ibv_comp_channel channel{};
  channel.fd = fd.get();
  device.receive_cq.channel = &channel;
  QueueCounters counters;
  PortWorkerCounters drops;
  auto batch = std::make_unique<Batch>();
  VerbsRx::Source source;
  source.qp = &device.qp;
  VerbsRx rx(source, VerbsSlots{device.memory.data(), kSlotBytes, kSlots, FakeDevice::kKey}, true, calls, counters);
  REQUIRE(rx.post_all());
  CHECK(rx.wake_fd() == fd.get());
  CHECK(!rx.arm());
  CHECK(acknowledged == 3);
  CHECK(device.notify_requests == 1);
  device.receive(numbered(99));
  CHECK(rx.arm());
  CHECK(rx.arm());  // still there
  REQUIRE(rx.peek(*batch, drops));
  CHECK(bytes_of(batch->frames[0]) == numbered(99));
  rx.release();
  batch->clear();
  CHECK(!rx.peek(*batch, drops));
}
#endif
