// SPDX-License-Identifier: Apache-2.0
#include "scaling.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <thread>
#include <vector>

#include "base/clock.h"

namespace sw::gates {

namespace {

constexpr uint32_t kBurst = 32;
constexpr uint32_t kTurnsBetweenLooks = 64;  // at the clock

bool pin_to(uint32_t cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return ::pthread_setaffinity_np(::pthread_self(), sizeof set, &set) == 0;
}

struct alignas(64) Lane {
  uint64_t frames = 0;
  bool failed = false;
};

void drive(World& world, const Sharing& sharing, uint32_t worker, uint32_t bytes, Spinlock& receiver, uint64_t until_ns,
           Lane& lane) {
  World::Hand hand;
  const Way way = way_of(sharing, worker);
  const Traffic traffic{{mac_of(way.from, 0)}, {mac_of(way.to, 0)}, bytes};
  const uint32_t to_queue = sharing.shared_queue ? 0 : way.queue;
  for (uint32_t turn = 0;; ++turn) {
    if (turn % kTurnsBetweenLooks == 0 && monotonic_ns() >= until_ns) return;
    if (!world.send(hand, way.from, traffic, kBurst, way.queue)) {
      lane.failed = true;
      return;
    }
    world.poll(worker);
    if (!sharing.shared_queue) {
      lane.frames += world.receive(hand, way.to, to_queue);
    } else if (receiver.try_lock()) {
      lane.frames += world.receive(hand, way.to, to_queue);
      receiver.unlock();
    }
  }
}

}  // namespace

double frames_per_second(const Sharing& sharing, const ScalingRound& round, std::string& error) {
  const auto& [workers, bytes, milliseconds] = round;
  if (workers == 0 || workers > 2 || bytes < 64 || bytes > 1518 || milliseconds == 0) {
    error = "1 or 2 workers, 64 to 1518 bytes, and at least a millisecond";
    return 0;
  }
  World world(options_of(sharing));
  // Every destination says where it is, before anybody is pinned.
  for (uint32_t worker = 0; worker < workers; ++worker) {
    const Way way = way_of(sharing, worker);
    world.send(way.to, {{mac_of(way.to, 0)}, {mac_of(way.from, 0)}}, 1);
    for (uint32_t w = 0; w < 2; ++w) std::thread([&] { world.poll(w); }).join();
    for (uint32_t guest = 0; guest < world.guests(); ++guest) world.receive(guest);
  }
  std::vector<Lane> lanes(workers);
  Spinlock receiver;
  std::atomic<uint32_t> ready{0};
  std::atomic<uint64_t> begin_ns{0};
  std::vector<std::thread> threads;
  for (uint32_t worker = 0; worker < workers; ++worker) {
    threads.emplace_back([&, worker, bytes = bytes, workers = workers, milliseconds = milliseconds] {
      if (!pin_to(worker)) lanes[worker].failed = true;
      if (ready.fetch_add(1) + 1 == workers) begin_ns = monotonic_ns();
      while (begin_ns == 0) std::this_thread::yield();
      drive(world, sharing, worker, bytes, receiver, begin_ns + milliseconds * 1'000'000, lanes[worker]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  uint64_t frames = 0;
  for (const Lane& lane : lanes) {
    if (lane.failed) error = "a worker could not be pinned to CPUs 0 and 1, or its ring is full";
    frames += lane.frames;
  }
  return static_cast<double>(frames) * 1000 / static_cast<double>(milliseconds);
}

}  // namespace sw::gates
