// SPDX-License-Identifier: Apache-2.0
#include "world.h"

#include <malloc.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "base/check.h"
#include "virtio/guest_cursor.h"
#include "virtio/net_header.h"
#include "virtio/spec.h"
#include "worker/crew.h"

// The seed of a MAC table decides in which slot an address is found, and so how long a lookup takes. This program's
// std::random_device is a fixed sequence, so that every run takes the same way.
std::random_device::result_type std::random_device::_M_getval() {
  static uint64_t state = 1;
  state = state * 6364136223846793005U + 1442695040888963407U;
  return static_cast<result_type>(state >> 32);
}

namespace sw::gates {

namespace {

constexpr uint32_t kMacLimit = 65536;
constexpr uint16_t kExperimental = 0x88b5;
constexpr uint16_t kIpv4 = 0x0800;

void store_mac(uint8_t* to, Mac mac) {
  for (int i = 0; i < 6; ++i) to[i] = static_cast<uint8_t>(mac >> (40 - 8 * i));
}

}  // namespace

Mac mac_of(uint32_t guest, uint32_t number) { return Mac{0x02} << 40 | Mac{guest} << 24 | number; }

World::World(const WorldOptions& options) : options_(options), payload_(65536) {
  fdb_ = std::make_unique<Fdb>(kMacLimit, 300);
  for (uint32_t guest = 0; guest < options.guests; ++guest) add_guest(guest);
  make_plan();
  for (uint32_t worker = 0; worker < options.workers; ++worker) {
    workers_.push_back(std::make_unique<Worker>(worker, -1, Polling::kBusy));
  }
}

void World::add_guest(uint32_t number) {
  auto guest = std::make_unique<Guest>();
  const uint32_t pairs = options_.queue_pairs;
  guest->driver_rx_counters = std::vector<QueueCounters>(pairs);
  guest->driver_tx_counters = std::vector<QueueCounters>(pairs);
  guest->rx_counters = std::vector<QueueCounters>(pairs);
  guest->tx_counters = std::vector<QueueCounters>(pairs);
  guest->loads = std::vector<QueueLoad>(pairs);
  guest->by_worker = std::vector<PortWorkerCounters>(options_.workers);
  DriverMemoryOptions driver;
  driver.features = options_.features;
  driver.queue_pairs = pairs;
  driver.ring_size = options_.ring_size;
  driver.buffer_bytes = options_.buffer_bytes;
  driver.huge = HugePages::kOff;
  auto made = DriverDevice::make(driver, guest->driver_rx_counters, guest->driver_tx_counters);
  SW_CHECK(made);
  guest->driver = std::move(*made);
  const DriverMemory& shared = guest->driver->memory();
  // It goes on behind the buffers, as that of a guest larger than them does. Nobody goes there.
  const uint64_t bytes = shared.bytes() + GuestCursor::kShortBytes;
  auto memory = GuestMemory::make({MappedRegion::borrow(
      reinterpret_cast<void*>(shared.address()), GuestPhys{shared.address()}, bytes, FrontendVirt{shared.address()})});
  SW_CHECK(memory);
  for (uint32_t ring = 0; ring < 2 * pairs; ++ring) {
    DeviceRingConfig config;
    config.features = options_.features;
    config.ring = shared.rings()[ring].config.ring;
    config.memory = *memory;
    config.base = has_feature(options_.features, VIRTIO_F_RING_PACKED) ? 0x8000 : 0;
    config.call_fd = shared.rings()[ring].call.get();
    config.kick_fd = shared.rings()[ring].kick.get();
    if (ring % 2 == 0) {
      QueueCounters& counters = guest->tx_counters[ring / 2];
      guest->tx.push_back(make_device_tx(config, counters));
    } else {
      guest->rx.push_back(make_device_rx(config, guest->rx_counters[ring / 2]));
    }
  }
  SW_CHECK(number == guests_.size());
  guests_.push_back(std::move(guest));
}

// As the datapath does it: worker w polls the receive queues w, w + workers, ... of every port and has a slice of the
// transmit queues.
void World::make_plan() {
  const uint32_t workers = options_.workers;
  const uint32_t pairs = options_.queue_pairs;
  plan_ = empty_plan(workers);
  auto view = std::make_unique<BridgeView>();
  view->fdb = fdb_.get();
  view->ports.resize(kMaxPorts, nullptr);
  view->vlan_transparent = options_.access_vlan == 0;
  for (uint32_t id = 0; id < guests(); ++id) {
    Guest& guest = *guests_[id];
    auto policy = std::make_unique<PortPolicy>();
    policy->id = static_cast<PortId>(id);
    if (options_.access_vlan != 0) {
      policy->vlan.access = true;
      policy->vlan.untagged = options_.access_vlan;
    }
    view->ports[id] = policy.get();
    view->members.push_back(policy.get());
    for (uint32_t w = 0; w < workers; ++w) {
      PlanTx& tx = plan_->workers[w].tx[id];
      tx.policy = policy.get();
      tx.counters = &guest.by_worker[w];
      tx.shared = options_.shared;
      for (uint32_t q = 0; q < pairs; ++q) {
        if (options_.shared ? q == 0 : q * workers / pairs == w) tx.queues.push_back(guest.tx[q].get());
        if (q % workers != w) continue;
        plan_->workers[w].rx.push_back({.queue = guest.rx[q].get(),
                                        .queue_index = static_cast<uint16_t>(q),
                                        .policy = policy.get(),
                                        .bridge = view.get(),
                                        .counters = &guest.by_worker[w],
                                        .load = &guest.loads[q]});
      }
    }
    plan_->policies.push_back(std::move(policy));
  }
  plan_->bridges.push_back(std::move(view));
}

bool World::send(Hand& hand, uint32_t guest, const Traffic& traffic, uint32_t count, uint32_t queue) {
  Batch& batch = *hand.batch;
  std::array<uint8_t, kMaxBatch> index;
  while (count != 0) {
    batch.clear();
    const uint32_t now = std::min(count, kMaxBatch);
    for (uint32_t i = 0; i < now; ++i, ++hand.next) {
      Frame& frame = batch.frames[i];
      index[i] = static_cast<uint8_t>(i);
      frame.len = traffic.bytes;
      frame.head_len = static_cast<uint16_t>(std::min(traffic.bytes, kHeadBytes));
      frame.head_offset = 0;
      std::memset(frame.head, 0, sizeof frame.head);
      store_mac(frame.head, traffic.destinations[hand.next % traffic.destinations.size()]);
      store_mac(frame.head + kMacBytes, traffic.sources[hand.next % traffic.sources.size()]);
      uint8_t* type = frame.head + size_t{2} * kMacBytes;
      if (traffic.tagged) {
        store_be16(type, kEtherTypeVlan);
        store_be16(type + 2, traffic.vlan);
        type += 4;
      }
      store_be16(type, traffic.checksum ? kIpv4 : kExperimental);
      frame.segments = &batch.segments[i];
      frame.segment_count = 0;
      if (frame.len > frame.head_len) {
        batch.segments[i] = {payload_.data(), frame.len - frame.head_len};
        frame.segment_count = 1;
      }
      frame.offload = traffic.checksum;
      frame.vnet = {};
      if (traffic.checksum) {
        frame.vnet = {VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, 0, 0, 34, 16};
      }
    }
    batch.count = now;
    if (guests_[guest]->driver->tx()[queue]->send(batch, {index.data(), now}, hand.drops) != now) return false;
    count -= now;
  }
  return true;
}

uint32_t World::receive(uint32_t guest) {
  uint32_t frames = 0;
  for (uint32_t queue = 0; queue < options_.queue_pairs; ++queue) frames += receive(hand_, guest, queue);
  return frames;
}

uint32_t World::receive(Hand& hand, uint32_t guest, uint32_t queue) {
  uint32_t frames = 0;
  Batch& batch = *hand.batch;
  DriverRx& ring = *guests_[guest]->driver->rx()[queue];
  for (batch.clear(); ring.peek(batch, hand.drops); batch.clear()) {
    frames += batch.count;
    ring.release();
  }
  return frames;
}

std::vector<World::Place> World::places() const {
  std::vector<Place> all;
  const auto add = [&all](const std::string& name, const void* begin, size_t bytes) {
    all.push_back({name, reinterpret_cast<uint64_t>(begin), bytes});
  };
  // A ring's class is hidden; its allocation is not.
  const auto add_object = [&add](const std::string& name, const auto& object) {
    void* const begin = const_cast<void*>(dynamic_cast<const void*>(&object));
    add(name, begin, ::malloc_usable_size(begin));
  };
  for (size_t w = 0; w < workers_.size(); ++w) {
    add("worker " + std::to_string(w), workers_[w].get(), sizeof(Worker));
    add("plan of worker " + std::to_string(w), plan_->workers[w].tx.data(), kMaxPorts * sizeof(PlanTx));
  }
  for (size_t id = 0; id < guests_.size(); ++id) {
    const Guest& guest = *guests_[id];
    const std::string port = "port " + std::to_string(id) + ": ";
    add(port + "counters by worker", guest.by_worker.data(), guest.by_worker.size() * sizeof(PortWorkerCounters));
    add(port + "loads", guest.loads.data(), guest.loads.size() * sizeof(QueueLoad));
    add(port + "rx counters", guest.rx_counters.data(), guest.rx_counters.size() * sizeof(QueueCounters));
    add(port + "tx counters", guest.tx_counters.data(), guest.tx_counters.size() * sizeof(QueueCounters));
    for (size_t q = 0; q < guest.rx.size(); ++q) {
      add_object(port + "rx queue " + std::to_string(q), *guest.rx[q]);
      add_object(port + "tx queue " + std::to_string(q), *guest.tx[q]);
    }
    const DriverMemory& memory = guest.driver->memory();
    add(port + "guest memory", reinterpret_cast<const void*>(memory.address()), memory.bytes());
  }
  add("MAC table", fdb_.get(), sizeof(Fdb));
  return all;
}

}  // namespace sw::gates
