// SPDX-License-Identifier: Apache-2.0
#include "sharing.h"

#include <cstdio>
#include <memory>
#include <set>
#include <thread>

#include "stepper.h"
#include "virtio/spec.h"

namespace sw::gates {

namespace {

constexpr uint32_t kFrames = 16;
constexpr uint32_t kWorkers = 2;

bool one_loop(World& world, const Sharing& sharing, uint32_t worker, bool counted) {
  const Way way = way_of(sharing, worker);
  if (!world.send(way.from, {{mac_of(way.from, 0)}, {mac_of(way.to, 0)}}, kFrames, way.queue)) return false;
  if (counted) {
    measured([&] { world.poll(worker); });
  } else {
    world.poll(worker);
  }
  return world.receive(way.to) == kFrames;
}

bool both_loops(World& world, const Sharing& sharing) {
  // A worker takes its plan, and the memory that goes with it, on its own thread.
  for (uint32_t worker = 0; worker < kWorkers; ++worker) std::thread([&] { world.poll(worker); }).join();
  for (uint32_t worker = 0; worker < kWorkers; ++worker) {
    const Way way = way_of(sharing, worker);
    if (!world.send(way.to, {{mac_of(way.to, 0)}, {mac_of(way.from, 0)}}, 1)) return false;
    for (uint32_t w = 0; w < kWorkers; ++w) world.poll(w);
    for (uint32_t guest = 0; guest < world.guests(); ++guest) world.receive(guest);
  }
  for (uint32_t turn = 0; turn < 2 * 64 / kFrames; ++turn) {
    for (uint32_t worker = 0; worker < kWorkers; ++worker) {
      if (!one_loop(world, sharing, worker, false)) return false;
    }
  }
  for (uint32_t worker = 0; worker < kWorkers; ++worker) {
    if (!one_loop(world, sharing, worker, true)) return false;
  }
  return true;
}

}  // namespace

WorldOptions options_of(const Sharing& sharing) {
  WorldOptions options;
  options.features = feature_mask(VIRTIO_F_VERSION_1);
  options.guests = 4;
  options.workers = kWorkers;
  options.queue_pairs = kWorkers;
  options.shared = sharing.shared_queue;
  options.ring_size = 64;
  return options;
}

Way way_of(const Sharing& sharing, uint32_t worker) {
  if (sharing.shared_queue) return {worker, 2, worker};
  if (sharing.same_ports) return {0, 1, worker};
  return {2 * worker, 2 * worker + 1, worker};
}

std::vector<Sharing> all_sharings() {
  return {{"ports of their own"}, {"queues of their own", true}, {"one transmit queue", true, true}};
}

std::string trace_sharing(const Sharing& sharing, const std::string& file, std::string& error) {
  World world(options_of(sharing));  // before the fork: the parent knows what lies where
  const auto loops = Stepper::trace([&] { return both_loops(world, sharing); }, error);
  if (error.empty() && loops.size() != kWorkers) error = "the child did not come to its marks";
  if (!error.empty()) return {};
  const std::unique_ptr<FILE, int (*)(FILE*)> out(std::fopen(file.c_str(), "wb"), &std::fclose);
  if (!out) {
    error = "write " + file;
    return {};
  }
  std::set<uint64_t> executed;
  std::string lengths;
  for (const auto& loop : loops) {
    std::fwrite(loop.data(), sizeof(Registers), loop.size(), out.get());
    lengths += (lengths.empty() ? "" : ", ") + std::to_string(loop.size());
    for (const Registers& step : loop) executed.insert(step.rip);
  }
  std::string code;
  for (const uint64_t rip : executed) {
    code += (code.empty() ? "\"" : ", \"") + std::to_string(rip) + "\": \"" + code_at(rip) + "\"";
  }
  std::string places;
  for (const World::Place& place : world.places()) {
    places += (places.empty() ? "[\"" : ", [\"") + place.name + "\", " + std::to_string(place.begin) + ", " +
              std::to_string(place.bytes) + "]";
  }
  return R"({"name": ")" + sharing.name + R"(", "base": )" + std::to_string(load_address()) + R"(, "steps": [)" +
         lengths + R"(], "places": [)" + places + R"(], "code": {)" + code + "}}";
}

}  // namespace sw::gates
