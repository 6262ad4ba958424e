// SPDX-License-Identifier: Apache-2.0
// TrafficRunner: software guests that send bursts to each other through a switch and count what arrives, polling, on
// one thread: the load of `make run` and of the benchmarks.
//
// Theory of operation. Each guest sends frames of one size to its peers' addresses, at a given rate or as fast as its
// ring takes them, and takes everything that arrives. Frames are written anew every time, as a real sender's are; only
// the head differs (addresses, sequence number), the rest comes from one constant buffer. A frame that the ring does
// not take is sent later, not lost. Guests reconnect by themselves.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "net/ethernet.h"
#include "vhost_user/guest.h"

namespace sw {

struct TrafficOptions {
  GuestOptions guest;
  std::vector<Mac> macs;  // own addresses, and of each the peer it talks to: same number of both
  std::vector<Mac> peers;
  uint32_t frame_bytes = 64;  // without FCS; 60 to 65 535
  uint64_t rate = 0;          // frames a second, 0: as fast as possible
  uint32_t burst = 32;        // at most 64
  bool send = true;           // false: only receive
};

struct TrafficStats {
  bool ready = false;
  std::string stage;
  std::string detail;
  uint64_t features = 0;
  uint64_t times_ready = 0;
  uint64_t tx_frames = 0, tx_bytes = 0, rx_frames = 0, rx_bytes = 0;
  uint64_t foreign = 0;    // received frames that are not test traffic (floods of others, ARP, ...)
  uint64_t reordered = 0;  // test frames that were overtaken
};

class TrafficRunner {
 public:
  // `cpu`: where to pin the thread, -1: nowhere.
  TrafficRunner(std::vector<TrafficOptions> guests, int cpu);
  ~TrafficRunner();
  TrafficRunner(const TrafficRunner&) = delete;
  TrafficRunner& operator=(const TrafficRunner&) = delete;

  Result<void> start();
  void stop();
  // All of these: any thread.
  bool wait_ready(uint64_t timeout_ms);  // every guest
  [[nodiscard]] std::vector<TrafficStats> stats();

 private:
  class Station;  // one guest

  void run();

  const int cpu_;
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;  // the stations' connections; the thread holds it while it serves them, not while it polls
  std::condition_variable changed_;
  EventLoop loop_;
  std::vector<std::unique_ptr<Station>> stations_;
  std::thread thread_;
};

}  // namespace sw
