// SPDX-License-Identifier: Apache-2.0
// Every control message under traffic: a polling thread on one side, the front-end and the guest on the other. No frame
// is lost and no thread sees a ring that is being changed (run under TSan too).
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <thread>

#include "support/backend_bed.h"
#include "support/eventually.h"
#include "support/split_driver.h"

namespace sw {
namespace {

using testing::BackendBed;
using testing::SharedFile;
using testing::SplitDriver;

constexpr std::array<uint8_t, 60> kFrame = {0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x88, 0xb5};

// pause() takes what the polling thread holds for a pass.
class SharedHost : public BackendHost {
 public:
  void pause() override {
    if (depth_++ == 0) mutex.lock();
  }
  void resume() override {
    if (--depth_ != 0) return;
    rx = backend->live_rx();
    mutex.unlock();
  }
  void event(const std::string&, const std::string&) override {}

  Backend* backend = nullptr;
  std::mutex mutex;
  std::vector<RxQueue*> rx;  // under the mutex

 private:
  int depth_ = 0;
};

TEST_CASE("Backend: messages under full traffic lose no frame") {
  // A bed for the guest's side only; its own back-end stays idle.
  BackendBed guest;
  SharedHost host;
  BackendCounters counters;
  auto sockets = testing::stream_pair();
  std::vector<QueueCounters> rx_counters(1);
  std::vector<QueueCounters> tx_counters(1);
  Backend backend(std::move(sockets[0]),
                  {offered_features({}), offered_protocol_features(), rx_counters, tx_counters, 0}, host, counters);
  host.backend = &backend;
  const testing::VhostPeer peer(std::move(sockets[1]));
  const UniqueFd event = testing::make_eventfd();
  const SharedFile log(4096);
  const auto ask = [&](VhostRequest request, const auto& payload, std::vector<int> fds = {}) {
    REQUIRE(peer.send(request, payload, std::move(fds), kVhostVersion | kVhostFlagNeedReply));
    REQUIRE(backend.on_socket(EPOLLIN));
    const auto reply = peer.receive();
    REQUIRE(reply);
    return reply->as<uint64_t>();
  };
  const auto start = [&](uint32_t base) {
    REQUIRE(ask(VhostRequest::kSetVringNum, VhostVringState{1, 256}) == 0);
    REQUIRE(ask(VhostRequest::kSetVringBase, VhostVringState{1, base}) == 0);
    REQUIRE(ask(VhostRequest::kSetVringAddr, guest.address(1)) == 0);
    REQUIRE(ask(VhostRequest::kSetVringKick, uint64_t{1}, {event.get()}) == 0);
    REQUIRE(ask(VhostRequest::kSetVringEnable, VhostVringState{1, 1}) == 0);
  };
  REQUIRE(ask(VhostRequest::kSetProtocolFeatures, offered_protocol_features()) == 0);
  REQUIRE(ask(VhostRequest::kSetFeatures, testing::kPlainFeatures) == 0);
  REQUIRE(ask(VhostRequest::kSetMemTable, BackendBed::table({guest.whole()}), {guest.memory.fd()}) == 0);
  start(0);

  std::atomic<bool> stop{false};
  std::thread worker([&] {
    const auto batch = std::make_unique<Batch>();
    PortWorkerCounters drops;
    while (!stop.load(std::memory_order_relaxed)) {
      const std::lock_guard<std::mutex> guard(host.mutex);
      for (RxQueue* queue : host.rx) {
        if (queue == nullptr) continue;
        batch->clear();
        if (!queue->peek(*batch, drops)) continue;
        queue->release();
        full_fence();
        queue->notify();
      }
    }
  });

  SplitDriver driver(guest, 1);
  const VhostSingleRegion whole{0, guest.whole()};
  const VhostSingleRegion dimm{0, {1ULL << 32, 4096, 1ULL << 40, 0}};
  const std::array<std::function<void()>, 7> steps = {
      [&] { CHECK(ask(VhostRequest::kSetMemTable, BackendBed::table({guest.whole()}), {guest.memory.fd()}) == 0); },
      [&] {
        CHECK(ask(VhostRequest::kAddMemReg, dimm, {log.fd()}) == 0);
        CHECK(ask(VhostRequest::kRemMemReg, dimm) == 0);
      },
      [&] {
        CHECK(ask(VhostRequest::kRemMemReg, whole) == 0);
        CHECK(ask(VhostRequest::kAddMemReg, whole, {guest.memory.fd()}) == 0);
      },
      [&] {
        const UniqueFd fresh = testing::make_eventfd();
        CHECK(ask(VhostRequest::kSetVringCall, uint64_t{1}, {fresh.get()}) == 0);
        CHECK(ask(VhostRequest::kSetVringKick, uint64_t{1}, {fresh.get()}) == 0);
      },
      [&] {
        CHECK(ask(VhostRequest::kSetLogBase, VhostLog{4096, 0}, {log.fd()}) == 4096);
        CHECK(ask(VhostRequest::kSetFeatures, testing::kPlainFeatures | feature_mask(VHOST_F_LOG_ALL)) == 0);
      },
      [&] { CHECK(ask(VhostRequest::kSetFeatures, testing::kPlainFeatures) == 0); },
      [&] {
        REQUIRE(peer.send(VhostRequest::kGetVringBase, VhostVringState{1, 0}));
        REQUIRE(backend.on_socket(EPOLLIN));
        const auto reply = peer.receive();
        REQUIRE(reply);
        start(reply->as<VhostVringState>().num);
      },
  };
  constexpr uint64_t kFrames = 20'000;
  size_t step = 0;
  for (uint64_t pushed = 0; pushed < kFrames;) {
    if (driver.full()) {
      std::this_thread::yield();
      continue;
    }
    driver.push(kFrame);
    if (++pushed % 37 == 0) steps.at(step++ % steps.size())();
  }
  testing::Patience patience(std::chrono::seconds(20));
  while (rx_counters[0].frames.get() < kFrames && !patience.over()) std::this_thread::yield();
  CHECK(rx_counters[0].frames.get() == kFrames);
  stop.store(true);
  worker.join();
  backend.shutdown();
}

}  // namespace
}  // namespace sw
