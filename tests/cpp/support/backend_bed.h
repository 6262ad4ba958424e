// SPDX-License-Identifier: Apache-2.0
// A Backend on one end of a socket pair, a front-end by hand on the other, and a host that watches that live queues
// change only while the port is paused.
#pragma once

#include <doctest/doctest.h>
#include <sys/epoll.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/vhost_peer.h"
#include "vhost_user/backend.h"
#include "vhost_user/features.h"
#include "virtio/spec.h"

namespace sw::testing {

// Plays the port: publishes queues at resume and compares when they may not have changed.
class WatchingHost : public BackendHost {
 public:
  void watch(const Backend& backend) {
    backend_ = &backend;
    publish();
  }
  void forget() { backend_ = nullptr; }
  void pause() override {
    if (depth_++ == 0) {
      check_unchanged();
      ++pauses;
    }
  }
  void resume() override {
    REQUIRE(depth_ > 0);
    if (--depth_ == 0 && backend_ != nullptr) publish();
  }
  void event(const std::string& kind, const std::string& detail) override { events.emplace_back(kind, detail); }

  void check_unchanged() const {
    if (backend_ == nullptr) return;
    CHECK(backend_->live_rx() == rx_);
    CHECK(backend_->live_tx() == tx_);
  }
  [[nodiscard]] bool paused() const { return depth_ != 0; }
  [[nodiscard]] size_t count(const std::string& kind) const {
    return static_cast<size_t>(
        std::count_if(events.begin(), events.end(), [&](const auto& e) { return e.first == kind; }));
  }

  int pauses = 0;
  std::vector<std::pair<std::string, std::string>> events;

 private:
  void publish() {
    rx_ = backend_->live_rx();
    tx_ = backend_->live_tx();
  }
  const Backend* backend_ = nullptr;
  int depth_ = 0;
  std::vector<RxQueue*> rx_;
  std::vector<TxQueue*> tx_;
};

inline constexpr uint64_t kPlainFeatures =
    feature_mask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VHOST_USER_F_PROTOCOL_FEATURES);
inline constexpr size_t kRingBytes = 64 * 1024;  // of the guest's memory, for each ring

struct BackendBed {
  explicit BackendBed(size_t pairs = 2, size_t memory_bytes = 4 << 20)
      : BackendBed(pairs, memory_bytes, stream_pair()) {}
  BackendBed(size_t pairs, size_t memory_bytes, std::array<UniqueFd, 2> sockets)
      : rx_counters(pairs),
        tx_counters(pairs),
        memory(memory_bytes),
        backend(std::make_unique<Backend>(
            std::move(sockets[0]),
            BackendConfig{offered_features({}), offered_protocol_features(), rx_counters, tx_counters, 0}, host,
            counters)),
        peer(std::move(sockets[1])) {
    host.watch(*backend);
  }
  ~BackendBed() {
    if (backend) backend->shutdown();
  }
  BackendBed(const BackendBed&) = delete;
  BackendBed& operator=(const BackendBed&) = delete;

  // Let the back-end read until it has nothing to do. False once the connection is over; `end` says why.
  bool pump() {
    if (!backend) return false;
    const uint64_t before = counters.messages;
    auto result = backend->on_socket(EPOLLIN);
    host.check_unchanged();
    CHECK_FALSE(host.paused());
    if (!result) {
      end = result.error().message();
      hang_up();
      return false;
    }
    return counters.messages == before || counters.messages - before < 64 || pump();
  }
  void hang_up() {
    backend->shutdown();
    CHECK(backend->live_rx().empty());
    CHECK(backend->live_tx().empty());
    host.forget();
    backend.reset();
  }

  template <class T>
  bool tell(VhostRequest request, const T& payload, std::vector<int> fds = {}) {
    peer.send(request, payload, std::move(fds));
    return pump();
  }
  // Send with NEED_REPLY; the acknowledgement, or nothing.
  template <class T>
  std::optional<uint64_t> ask(VhostRequest request, const T& payload, std::vector<int> fds = {}) {
    peer.send(request, payload, std::move(fds), kVhostVersion | kVhostFlagNeedReply);
    pump();
    return reply_u64(request);
  }
  std::optional<uint64_t> get(VhostRequest request) {
    peer.send(request);
    pump();
    return reply_u64(request);
  }
  std::optional<uint64_t> reply_u64(VhostRequest request) const {
    auto reply = peer.receive();
    if (!reply) return std::nullopt;
    CHECK(reply->request == request);
    CHECK(reply->flags == (kVhostVersion | kVhostFlagReply));
    CHECK(reply->size == 8);
    return reply->as<uint64_t>();
  }

  void negotiate(uint64_t features = kPlainFeatures, uint64_t protocol = offered_protocol_features()) {
    REQUIRE(tell(VhostRequest::kSetProtocolFeatures, protocol));
    REQUIRE(tell(VhostRequest::kSetFeatures, features));
  }

  // The whole file as one region: guest address 0, front-end address = address here.
  [[nodiscard]] VhostMemRegion whole() const { return {0, memory.size(), memory.address(), 0}; }
  static VhostMemTable table(std::initializer_list<VhostMemRegion> regions) {
    VhostMemTable made{static_cast<uint32_t>(regions.size()), 0, {}};
    std::copy(regions.begin(), regions.end(), made.regions.begin());
    return made;
  }
  std::optional<uint64_t> share_memory() { return ask(VhostRequest::kSetMemTable, table({whole()}), {memory.fd()}); }

  [[nodiscard]] VhostVringAddr address(uint32_t index) const {
    const uint64_t at = memory.address() + index * kRingBytes;
    return {index, 0, at, at + 0x8000, at + 0x4000, index * kRingBytes + 0x8000};
  }
  // All pieces of one ring, in QEMU's order.
  void set_up(uint32_t index, uint32_t size = 256, uint32_t base = 0) {
    if (kicks.size() <= index) {
      kicks.resize(index + 1);
      calls.resize(index + 1);
    }
    kicks[index] = make_eventfd();
    calls[index] = make_eventfd();
    tell(VhostRequest::kSetVringNum, VhostVringState{index, size});
    tell(VhostRequest::kSetVringBase, VhostVringState{index, base});
    tell(VhostRequest::kSetVringAddr, address(index));
    tell(VhostRequest::kSetVringKick, uint64_t{index}, {kicks[index].get()});
    tell(VhostRequest::kSetVringCall, uint64_t{index}, {calls[index].get()});
  }
  void enable(uint32_t index, bool on = true) {
    tell(VhostRequest::kSetVringEnable, VhostVringState{index, on ? 1U : 0U});
  }

  // Negotiated, memory shared, `pairs` pairs running and enabled.
  void run(uint32_t pairs = 1, uint64_t features = kPlainFeatures) {
    negotiate(features);
    REQUIRE(share_memory() == 0);
    for (uint32_t i = 0; i < 2 * pairs; ++i) {
      set_up(i);
      enable(i);
    }
    REQUIRE(backend);
    REQUIRE(backend->live_rx().size() == pairs);
    REQUIRE(backend->live_tx().size() == pairs);
  }
  [[nodiscard]] bool live(uint32_t index) const {
    return backend && index < backend->rings().size() && backend->rings()[index].live() != nullptr;
  }
  [[nodiscard]] bool alive() const { return backend != nullptr; }

  std::vector<QueueCounters> rx_counters;
  std::vector<QueueCounters> tx_counters;
  SharedFile memory;
  WatchingHost host;
  BackendCounters counters;
  std::unique_ptr<Backend> backend;
  VhostPeer peer;
  std::string end;  // why the connection ended
  std::vector<UniqueFd> kicks, calls;
};

}  // namespace sw::testing
