// SPDX-License-Identifier: Apache-2.0
// A vhost-user device that gives every frame back on the queue pair it came from: the simplest honest peer of a
// front-end.
#pragma once

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/event_loop.h"
#include "vhost_user/backend.h"
#include "vhost_user/features.h"
#include "vhost_user/socket.h"

namespace sw::testing {

// Turn the loop until `done`, for five seconds at most.
inline bool run_until(EventLoop& loop, const std::function<bool()>& done, uint64_t limit_ms = 5000) {
  bool expired = false;
  const auto timer = loop.after(limit_ms, [&] { expired = true; });
  bool finished = done();
  while (!finished && !expired) {
    loop.run_once(1, [](const std::function<void()>& callbacks) { callbacks(); });
    finished = done();
  }
  loop.cancel(timer);
  return finished;
}

class EchoDevice : private BackendHost {
 public:
  EchoDevice(EventLoop& loop, uint64_t features, uint32_t pairs = 2)
      : loop_(loop), features_(features), rx_counters_(pairs), tx_counters_(pairs) {}
  ~EchoDevice() override { hang_up(); }

  void listen(const std::string& path) {
    auto listener = UnixListener::open(path, -1, -1);
    REQUIRE_MESSAGE(static_cast<bool>(listener), listener.error().message());
    listener_ = std::move(*listener);
    REQUIRE(static_cast<bool>(loop_.add(listener_.fd(), EPOLLIN, [this](uint32_t) {
      auto peer = listener_.accept();
      if (peer && !backend_) attach(std::move(*peer));
    })));
  }
  bool connect(const std::string& path) {
    auto peer = connect_unix(path);
    if (peer) attach(std::move(*peer));
    return static_cast<bool>(peer);
  }
  void stop_listening() {
    if (listener_) loop_.remove(listener_.fd());
    listener_.close();
  }
  // End the connection, not the listening.
  void disconnect() {
    if (!backend_) return;
    loop_.remove(backend_->fd());
    backend_->shutdown();
    backend_.reset();
  }
  void hang_up() {
    disconnect();
    stop_listening();
  }

  // Called with every frame before it is given back.
  std::function<void(const Frame&)> look;

  // Give back what is there. Returns how many frames.
  uint32_t pass() {
    uint32_t moved = 0;
    if (!backend_) return 0;
    const auto rx = backend_->live_rx();
    const auto tx = backend_->live_tx();
    for (size_t q = 0; q < rx.size(); ++q) {
      Batch& batch = *batch_;
      batch.clear();
      if (rx[q] == nullptr || !rx[q]->peek(batch, drops_)) continue;
      for (uint32_t i = 0; look && i < batch.count; ++i) look(batch.frames[i]);
      if (q < tx.size() && tx[q] != nullptr) {
        for (uint32_t i = 0; i < batch.count; ++i) index_[i] = static_cast<uint8_t>(i);
        moved += tx[q]->send(batch, {index_.data(), batch.count}, drops_);
      }
      rx[q]->release();
      full_fence();
      rx[q]->notify();
      if (q < tx.size() && tx[q] != nullptr) tx[q]->notify();
    }
    return moved;
  }
  [[nodiscard]] const Backend* backend() const { return backend_.get(); }

 private:
  void pause() override {}
  void resume() override {}
  void event(const std::string&, const std::string&) override {}

  void attach(UniqueFd peer) {
    backend_ = std::make_unique<Backend>(
        std::move(peer), BackendConfig{features_, offered_protocol_features(), rx_counters_, tx_counters_, 0},
        static_cast<BackendHost&>(*this), counters_);
    (void)!loop_.add(backend_->fd(), EPOLLIN, [this](uint32_t events) {
      if (!backend_->on_socket(events)) return disconnect();
      (void)!loop_.modify(backend_->fd(), backend_->wanted_events());
    });
  }

  EventLoop& loop_;
  const uint64_t features_;
  std::vector<QueueCounters> rx_counters_;
  std::vector<QueueCounters> tx_counters_;
  PortWorkerCounters drops_;
  BackendCounters counters_;
  UnixListener listener_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Batch> batch_ = std::make_unique<Batch>();
  std::array<uint8_t, kMaxBatch> index_{};
};

// The same on a thread of its own.
class EchoThread {
 public:
  // `look`: called on the thread with every frame.
  EchoThread(const std::string& path, bool connect = false, std::function<void(const Frame&)> look = {}) {
    device_.emplace(loop_, offered_features({}));
    device_->look = std::move(look);
    if (!connect) device_->listen(path);
    thread_ = std::thread([this, path, connect] {
      while (!stopping_) {
        if (connect && device_->backend() == nullptr) device_->connect(path);
        if (silent_ || device_->pass() == 0) std::this_thread::yield();
        loop_.run_once(0, [](const std::function<void()>& callbacks) { callbacks(); });
      }
      device_.reset();
    });
  }
  // Silent: connected, but no frame is taken.
  void set_silent(bool silent) { silent_ = silent; }
  ~EchoThread() {
    stopping_ = true;
    thread_.join();
  }

 private:
  EventLoop loop_;
  std::optional<EchoDevice> device_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> silent_{false};
  std::thread thread_;
};

}  // namespace sw::testing
