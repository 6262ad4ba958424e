// SPDX-License-Identifier: Apache-2.0
// TrafficRunner: software guests that send bursts to each other through a switch and count what arrives, polling, on
// one thread: the load of `make run` and of the benchmarks.
//
// Theory of operation. Each guest (traffic_station.h) sends frames of one size to its peer's addresses, at a given rate
// or as fast as its ring takes them, and takes everything that arrives. A frame that the ring does not take is sent
// later, not lost. Guests reconnect by themselves. Rate and window may change while they run; an inactive runner leaves
// its CPU to others and its guests connected.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "net/ethernet.h"
#include "vhost_user/guest.h"

namespace sw {

// What a guest does with the bytes of a frame.
enum class TrafficTouch : uint8_t {
  kWhole,  // writes all of it when sending, reads the beginning when receiving: a guest that makes its frames
  kHead,   // writes and reads the first 64 bytes: a guest that forwards
  kNever,  // sends the same frames lap after lap and reads none: the least that a guest can do
};

inline constexpr uint64_t kTrafficOwnRate = UINT64_MAX;

struct TrafficOptions {
  GuestOptions guest;
  Mac mac = 0x0200'0000'0001;  // own address, and that of the peer it talks to
  Mac peer = kMacBroadcast;
  uint64_t pairs = 1;         // each of the two stands for that many, which differ in the three bytes before the last
  uint32_t frame_bytes = 64;  // without FCS; 60 to 65 535
  uint16_t gso_bytes = 0;     // not 0: TCP frames for the other side to cut into segments of so many bytes
  uint64_t rate = 0;          // frames a second, 0: as fast as possible
  uint32_t burst = 32;        // at most 64
  bool send = true;           // false: only receive
  bool idle = false;          // connected, with posted buffers, but never looked after
  bool latency = false;       // measure it (not with kNever)
  TrafficTouch touch = TrafficTouch::kWhole;
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

// Of the thread. In ticks of the time stamp counter.
struct TrafficLoad {
  uint64_t busy = 0;  // in rounds that moved frames
  uint64_t idle = 0;  // in others
  uint64_t rounds = 0;
  uint64_t pauses = 0;  // rounds of more than 20 us: somebody took the CPU, or the hypervisor did
  uint64_t paused = 0;  // ... and how long they took together
};

struct TrafficShared;
class TrafficStation;

class TrafficRunner {
 public:
  // `cpu`: where to pin the thread, -1: nowhere. `poll`: never nap, even when all guests are limited.
  TrafficRunner(std::vector<TrafficOptions> guests, int cpu, bool poll = false);
  ~TrafficRunner();
  TrafficRunner(const TrafficRunner&) = delete;
  TrafficRunner& operator=(const TrafficRunner&) = delete;

  Result<void> start();
  void stop();
  // All of these: any thread.
  bool wait_ready(uint64_t timeout_ms);  // every guest
  [[nodiscard]] std::vector<TrafficStats> stats();
  [[nodiscard]] TrafficLoad load() const;
  [[nodiscard]] std::vector<uint64_t> latency() const;  // LatencyHistogram::snapshot
  // Inactive: connections are kept, rings are not looked at. Active at the start.
  void set_active(bool active);
  void set_sending(bool sending);
  void set_rate(uint64_t rate);  // of every guest; kTrafficOwnRate: as its options say
  // Every guest has at most so many frames under way; 0: no limit. With a rate both hold: a guest that was kept from
  // sending catches up no faster than frames arrive.
  void set_window(uint64_t frames);

 private:
  struct Times;

  void run();
  void rounds();

  const int cpu_;
  const bool poll_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> active_{true};
  std::mutex mutex_;  // the stations' connections; the thread holds it while it serves them, not while it polls
  std::unique_ptr<TrafficShared> shared_;
  std::unique_ptr<Times> times_;
  std::vector<std::unique_ptr<TrafficStation>> stations_;
  std::thread thread_;
};

}  // namespace sw
