// SPDX-License-Identifier: Apache-2.0
// Fuzz target: messages of a VDUSE device and answers of its kernel, against a whole back-end. The input is a list of
// records of 32 bytes: what to do, which ring, and 24 bytes that become a message, a ring's description, a mapping or
// memory contents.
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>

#include "base/check.h"
#include "support/fake_vduse.h"
#include "vhost_kernel/vduse_backend.h"
#include "virtio/spec.h"

namespace sw {
namespace {

constexpr size_t kMemoryBytes = 1 << 18;
constexpr uint64_t kOffered =
    feature_mask(VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED, VIRTIO_F_EVENT_IDX,
                 VIRTIO_F_INDIRECT_DESC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_CSUM);

class FuzzHost final : public VduseHost {
 public:
  void pause() override { ++depth; }
  void resume() override { --depth; }
  void event(const std::string&, const std::string&) override {}
  void lost(const std::string&) override { gone = true; }
  int depth = 0;
  bool gone = false;
};

struct Record {
  uint8_t what;
  uint8_t ring;
  uint8_t spare[6];
  uint8_t bytes[24];
};

void turn(EventLoop& loop) {
  loop.run_once(0, [](const std::function<void()>& callbacks) { callbacks(); });
}

void work(VduseBackend& backend, Batch& batch, PortWorkerCounters& drops) {
  batch.clear();
  if (RxQueue* rx = backend.live_rx()[0]; rx != nullptr) {
    rx->peek(batch, drops);
    rx->release();
    rx->notify();
  }
  if (TxQueue* tx = backend.live_tx()[0]; tx != nullptr) {
    Frame& frame = batch.frames[0];
    frame = {};
    frame.len = frame.head_len = 64;
    const uint8_t first = 0;
    tx->send(batch, {&first, 1}, drops);
    tx->notify();
  }
}

void describe_ring(vduse_vq_info& info, const Record& record) {
  std::array<uint16_t, 12> words{};
  std::memcpy(words.data(), record.bytes, sizeof record.bytes);
  info.num = words[0];
  // Near the mapped memory, or anywhere.
  const auto address = [&](size_t at) { return words[at] % 8 == 7 ? UINT64_MAX - words[at] : uint64_t{words[at]} * 4; };
  info.desc_addr = address(1) & ~uint64_t{words[4] % 2 == 0 ? 15U : 0U};
  info.driver_addr = address(2);
  info.device_addr = address(3);
  info.ready = static_cast<uint8_t>(words[4] >> 1 & 1);
  info.packed.last_avail_idx = words[5];
  info.packed.last_avail_counter = words[6];
}

}  // namespace
}  // namespace sw

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sw;
  static const int memory_file = [] {
    const int fd = ::memfd_create("guest", MFD_CLOEXEC);
    SW_CHECK(fd >= 0 && ::ftruncate(fd, kMemoryBytes) == 0);
    return fd;
  }();
  static auto* const memory =
      static_cast<uint8_t*>(::mmap(nullptr, kMemoryBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory_file, 0));
  std::memset(memory, 0, kMemoryBytes);

  testing::FakeVduse kernel;
  kernel.iotlb = {{0, kMemoryBytes - 1, memory_file}};
  EventLoop loop;
  FuzzHost host;
  QueueCounters rx, tx;
  VduseCounters totals;
  VduseOptions options;
  options.name = "fuzz";
  options.features = kOffered;
  auto device = VduseDevice::open(kernel, options);
  SW_CHECK(static_cast<bool>(device));
  auto backend = std::make_unique<VduseBackend>(std::move(*device), kOffered, loop, host, rx, tx, totals);
  SW_CHECK(static_cast<bool>(backend->open()));
  const auto batch = std::make_unique<Batch>();
  PortWorkerCounters drops;

  uint64_t posted = 0;
  for (; size >= sizeof(Record) && !host.gone; data += sizeof(Record), size -= sizeof(Record)) {
    Record record;
    std::memcpy(&record, data, sizeof record);
    vduse_vq_info& info = kernel.queues[record.ring % 2];
    switch (record.what % 8) {
      case 0: {
        vduse_dev_request request{};
        request.type = record.ring % 5;
        std::memcpy(&request.vq_state, record.bytes, sizeof record.bytes);
        kernel.post(request);
        ++posted;
        break;
      }
      case 1:
        kernel.post_status(record.bytes[0] % 4 == 0 ? 0 : 15);
        ++posted;
        break;
      case 2:
        describe_ring(info, record);
        break;
      case 3:
        std::memcpy(&kernel.driver_features, record.bytes, sizeof kernel.driver_features);
        if (record.ring % 4 != 0)
          kernel.driver_features = (kernel.driver_features & kOffered) | (1ULL << VIRTIO_F_VERSION_1);
        break;
      case 4: {
        uint16_t at = 0;
        std::memcpy(&at, record.spare, sizeof at);
        std::memcpy(memory + at % (kMemoryBytes - sizeof record.bytes), record.bytes, sizeof record.bytes);
        break;
      }
      case 5: {
        auto& range = kernel.iotlb[0];
        range.start = record.bytes[0] * uint64_t{4096};
        range.last = record.bytes[1] % 4 == 0 ? range.start + kMemoryBytes * 2 : range.start + kMemoryBytes - 1;
        range.perm = record.bytes[2] % 4 == 0 ? 1 : 3;
        break;
      }
      case 6:
        kernel.kick(record.ring % 2);
        break;
      default:
        backend->check_health();
        work(*backend, *batch, drops);
        break;
    }
    turn(loop);
    SW_CHECK(host.depth == 0);
  }
  for (int i = 0; i < 4; ++i) turn(loop);
  SW_CHECK(host.gone || kernel.answers.size() <= posted);
  work(*backend, *batch, drops);
  backend->shutdown();
  return 0;
}
