// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/traffic.h"

#include <algorithm>
#include <chrono>

#include "base/affinity.h"
#include "base/clock.h"
#include "vhost_user/traffic_station.h"

namespace sw {

namespace {

constexpr uint32_t kLeastBytes = 60;
constexpr uint32_t kLeastTcpBytes = 128;
constexpr uint32_t kMostBytes = 65'535;
constexpr uint64_t kMostPairs = uint64_t{1} << 24;
constexpr uint64_t kPauseUs = 20;
constexpr int kInactiveMs = 100;  // an inactive runner serves its connections at least that often

}  // namespace

// Written by the thread.
struct alignas(64) TrafficRunner::Times {
  Counter busy;
  Counter idle;
  Counter rounds;
  Counter pauses;
  Counter paused;
};

TrafficRunner::TrafficRunner(std::vector<TrafficOptions> guests, int cpu, bool poll)
    : cpu_(cpu), poll_(poll), shared_(std::make_unique<TrafficShared>()), times_(std::make_unique<Times>()) {
  shared_->arrived.resize(guests.size());
  for (TrafficOptions& options : guests) {
    options.frame_bytes =
        std::clamp(options.frame_bytes, options.gso_bytes == 0 ? kLeastBytes : kLeastTcpBytes, kMostBytes);
    options.burst = std::clamp(options.burst, 1U, kMaxBatch);
    options.pairs = std::clamp<uint64_t>(options.pairs, 1, kMostPairs);
    if (options.gso_bytes != 0) options.guest.offloads = true;
    stations_.push_back(
        std::make_unique<TrafficStation>(std::move(options), static_cast<uint16_t>(stations_.size()), *shared_));
  }
}

TrafficRunner::~TrafficRunner() { stop(); }

Result<void> TrafficRunner::start() {
  if (thread_.joinable()) return {};
  for (const auto& station : stations_) {
    if (auto opened = station->frontend().open(); !opened) {
      for (const auto& other : stations_) other->frontend().close();
      return opened;
    }
  }
  stopping_ = false;
  thread_ = std::thread([this] { run(); });
  return {};
}

void TrafficRunner::stop() {
  stopping_ = true;
  shared_->loop.wake();
  if (thread_.joinable()) thread_.join();
  const std::lock_guard lock(mutex_);
  for (const auto& station : stations_) station->frontend().close();
  shared_->changed.notify_all();
}

void TrafficRunner::run() {
  if (cpu_ >= 0) (void)pin_this_thread(cpu_);  // unpinned is slower, not wrong
  while (!stopping_.load(std::memory_order_relaxed)) {
    rounds();
    const bool active = active_.load(std::memory_order_relaxed);
    const bool any_ready =
        std::any_of(stations_.begin(), stations_.end(), [](const auto& station) { return station->ready(); });
    shared_->loop.run_once(active && any_ready ? 0 : kInactiveMs, [this](const std::function<void()>& callbacks) {
      const std::lock_guard lock(mutex_);
      callbacks();
    });
  }
}

// Poll all guests for about a millisecond, or until there is nothing to poll.
void TrafficRunner::rounds() {
  static const uint64_t tsc_per_us = tsc_hz() / 1'000'000U;
  std::vector<TrafficStation*> polled;
  bool limited = !poll_;
  for (const auto& station : stations_) {
    if (!station->ready() || station->idle()) continue;
    polled.push_back(station.get());
    limited &= station->limited();
  }
  if (polled.empty()) return;
  uint64_t last = tsc_now();
  const uint64_t until = last + 1000 * tsc_per_us;
  while (last < until && active_.load(std::memory_order_relaxed)) {
    bool moved = false;
    for (TrafficStation* station : polled) moved |= station->step();
    if (!moved) {
      if (limited) std::this_thread::sleep_for(std::chrono::microseconds(20));
      __builtin_ia32_pause();
    }
    const uint64_t now = tsc_now();
    (moved ? times_->busy : times_->idle).add(now - last);
    times_->rounds.add(1);
    if (now - last > kPauseUs * tsc_per_us) {
      times_->pauses.add(1);
      times_->paused.add(now - last);
    }
    last = now;
  }
}

bool TrafficRunner::wait_ready(uint64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  const auto all_ready = [this] {
    return std::all_of(stations_.begin(), stations_.end(), [](const auto& station) { return station->ready(); });
  };
  shared_->changed.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return stopping_ || all_ready(); });
  return all_ready();
}

std::vector<TrafficStats> TrafficRunner::stats() {
  const std::lock_guard lock(mutex_);
  std::vector<TrafficStats> stats;
  for (const auto& station : stations_) stats.push_back(station->stats());
  return stats;
}

TrafficLoad TrafficRunner::load() const {
  return {times_->busy.get(), times_->idle.get(), times_->rounds.get(), times_->pauses.get(), times_->paused.get()};
}

std::vector<uint64_t> TrafficRunner::latency() const { return shared_->latency.snapshot(); }

void TrafficRunner::set_active(bool active) {
  active_ = active;
  shared_->serial.fetch_add(1);
  shared_->loop.wake();
}

void TrafficRunner::set_sending(bool sending) { shared_->sending = sending; }

void TrafficRunner::set_rate(uint64_t rate) {
  shared_->rate = rate;
  shared_->serial.fetch_add(1);
}

void TrafficRunner::set_window(uint64_t frames) {
  shared_->window = frames;
  shared_->serial.fetch_add(1);
}

}  // namespace sw
