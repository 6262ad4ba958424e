// SPDX-License-Identifier: Apache-2.0
// World: guests with our own driver rings, the switch's device rings over the same memory, one bridge, and a plan for
// workers that are driven by hand. Everything in one process, everything at fixed values: what a pass does is the same
// every time.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "l2/fdb.h"
#include "virtio/device_ring.h"
#include "virtio/driver_device.h"
#include "worker/plan.h"
#include "worker/worker.h"

namespace sw::gates {

struct WorldOptions {
  uint64_t features = 0;
  uint32_t guests = 2;
  uint32_t queue_pairs = 1;
  uint32_t workers = 1;
  uint16_t ring_size = 256;
  uint32_t buffer_bytes = 2048;
  uint16_t access_vlan = 0;  // 0: ports are default trunks
  bool shared = false;       // transmit queues belong to several workers
};

// A guest with its port. Its memory is one region, mapped where it lies.
struct Guest {
  std::vector<QueueCounters> driver_rx_counters, driver_tx_counters, rx_counters, tx_counters;
  std::vector<QueueLoad> loads;
  std::vector<PortWorkerCounters> by_worker;
  std::unique_ptr<DriverDevice> driver;
  std::vector<std::unique_ptr<DeviceRx>> rx;
  std::vector<std::unique_ptr<TxQueue>> tx;
};

// What a guest sends: frame number n of a run goes from sources[n] to destinations[n], round and round.
struct Traffic {
  std::vector<Mac> sources, destinations;
  uint32_t bytes = 60;
  bool checksum = false;  // NEEDS_CSUM in the virtio-net header
  bool tagged = false;
  uint16_t vlan = 0;  // of the tag
};

Mac mac_of(uint32_t guest, uint32_t number);

class World {
 public:
  explicit World(const WorldOptions& options);

  // What drives guests, one per thread that does.
  struct Hand {
    std::unique_ptr<Batch> batch = std::make_unique<Batch>();
    PortWorkerCounters drops;
    uint64_t next = 0;  // number of the next frame
  };
  // `count` frames of `traffic` into the guest's transmitq, on from where the hand's last call ended. False: no room.
  bool send(uint32_t guest, const Traffic& traffic, uint32_t count, uint32_t queue = 0) {
    return send(hand_, guest, traffic, count, queue);
  }
  bool send(Hand& hand, uint32_t guest, const Traffic& traffic, uint32_t count, uint32_t queue);
  // Everything that waits in the guest's receiveqs; the number of frames.
  uint32_t receive(uint32_t guest);
  uint32_t receive(Hand& hand, uint32_t guest, uint32_t queue);
  bool poll(uint32_t worker = 0) { return workers_[worker]->poll_once(plan_.get()); }

  [[nodiscard]] uint32_t guests() const { return static_cast<uint32_t>(guests_.size()); }
  // What lies where, for whoever found an address in a trace.
  struct Place {
    std::string name;
    uint64_t begin, bytes;
  };
  [[nodiscard]] std::vector<Place> places() const;

 private:
  void add_guest(uint32_t number);
  void make_plan();

  const WorldOptions options_;
  std::vector<std::unique_ptr<Guest>> guests_;
  std::unique_ptr<Fdb> fdb_;
  std::unique_ptr<Plan> plan_;
  std::vector<std::unique_ptr<Worker>> workers_;
  Hand hand_;
  std::vector<uint8_t> payload_;
};

}  // namespace sw::gates
