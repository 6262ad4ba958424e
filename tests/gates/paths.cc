// SPDX-License-Identifier: Apache-2.0
#include "paths.h"

#include "base/check.h"
#include "stepper.h"
#include "virtio/spec.h"

namespace sw::gates {

namespace {

constexpr uint64_t kSplit = feature_mask(VIRTIO_F_VERSION_1);
constexpr uint64_t kPacked = kSplit | feature_mask(VIRTIO_F_RING_PACKED);
constexpr uint64_t kInOrder = feature_mask(VIRTIO_F_IN_ORDER);
constexpr uint64_t kMergeable = feature_mask(VIRTIO_NET_F_MRG_RXBUF);
constexpr uint64_t kEventIdx = feature_mask(VIRTIO_F_EVENT_IDX);
constexpr uint64_t kOffloads = feature_mask(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_HOST_TSO4,
                                            VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_GUEST_TSO6) |
                               kMergeable;
constexpr uint32_t kSomeMacs = 1024;
constexpr uint32_t kManyMacs = 16384;

struct Ring {
  const char* name;
  uint64_t features;
};

Path of(std::string name, uint64_t features) {
  Path path;
  path.name = std::move(name);
  path.world.features = features;
  return path;
}

// Small rings and buffers: many guests fit into the memory of any machine.
Path many_ports(std::string name, uint32_t guests) {
  Path path = of(std::move(name), kSplit);
  path.world.guests = guests;
  path.world.ring_size = 64;
  path.world.buffer_bytes = 128;
  return path;
}

void add_rings(std::vector<Path>& paths) {
  for (const Ring& ring : {Ring{"split", kSplit}, Ring{"split-inorder", kSplit | kInOrder}, Ring{"packed", kPacked},
                           Ring{"packed-inorder", kPacked | kInOrder}}) {
    paths.push_back(of(std::string(ring.name) + "-64", ring.features));
    paths.push_back(of(std::string(ring.name) + "-64-mergeable", ring.features | kMergeable));
  }
  for (const Ring& ring : {Ring{"split", kSplit}, Ring{"packed", kPacked}}) {
    for (const uint32_t bytes : {512U, 1518U}) {
      Path path = of(std::string(ring.name) + "-" + std::to_string(bytes), ring.features);
      path.bytes = bytes;
      paths.push_back(path);
    }
    for (const uint32_t frames : {4U, 64U}) {
      Path path = of(std::string(ring.name) + "-64-batch" + std::to_string(frames), ring.features);
      path.frames = frames;
      paths.push_back(path);
    }
    paths.push_back(of(std::string(ring.name) + "-64-eventidx", ring.features | kEventIdx));
    paths.push_back(of(std::string(ring.name) + "-64-offloads", ring.features | kOffloads));
    Path checksum = of(std::string(ring.name) + "-64-checksum-passed", ring.features | kOffloads);
    checksum.checksum = true;
    paths.push_back(checksum);
  }
}

void add_switching(std::vector<Path>& paths) {
  Path each = of("split-64-macs-32", kSplit);
  each.macs = each.frames;
  paths.push_back(each);
  Path thousand = of("split-64-macs-1k", kSplit);
  thousand.macs = kSomeMacs;
  paths.push_back(thousand);
  Path many = of("split-64-macs-16k", kSplit);
  many.macs = kManyMacs;
  paths.push_back(many);
  Path vlan = of("split-64-vlan-access", kSplit);
  vlan.world.access_vlan = 10;
  paths.push_back(vlan);
  Path fan = many_ports("split-64-to-8-ports", 9);
  fan.destinations = 8;
  fan.macs = 8;
  paths.push_back(fan);
  Path flood = many_ports("split-64-flood-to-8-ports", 9);
  flood.destinations = 8;
  flood.broadcast = true;
  flood.frames = 8;
  paths.push_back(flood);
}

void add_scale(std::vector<Path>& paths) {
  for (const uint32_t queues : {1U, 16U, 64U}) {
    Path path = many_ports("idle-" + std::to_string(queues), queues);
    path.frames = 0;
    paths.push_back(path);
  }
  for (const uint32_t guests : {2U, 64U, 256U}) {
    paths.push_back(many_ports("scale-ports-" + std::to_string(guests), guests));
  }
  for (const uint32_t workers : {2U, 8U}) {
    Path path = many_ports("scale-workers-" + std::to_string(workers), 2);
    path.world.workers = workers;
    path.world.queue_pairs = workers;
    paths.push_back(path);
  }
  Path shared = many_ports("scale-workers-2-shared-queue", 2);
  shared.world.workers = 2;
  shared.world.shared = true;
  paths.push_back(shared);
}

Traffic traffic_of(const Path& path) {
  Traffic traffic;
  traffic.bytes = path.bytes;
  traffic.checksum = path.checksum;
  for (uint32_t i = 0; i < path.macs; ++i) {
    traffic.sources.push_back(mac_of(0, i));
    traffic.destinations.push_back(path.broadcast ? kMacBroadcast : mac_of(1 + i % path.destinations, i));
  }
  return traffic;
}

// Every destination says where it is.
void introduce(World& world, const Path& path) {
  for (uint32_t i = 0; i < path.macs; ++i) {
    const uint32_t guest = 1 + i % path.destinations;
    SW_CHECK(world.send(guest, {{mac_of(guest, i)}, {mac_of(0, 0)}}, 1));
    while (world.poll()) {
    }
    for (uint32_t to = 0; to < world.guests(); ++to) world.receive(to);
  }
}

}  // namespace

std::vector<Path> all_paths() {
  std::vector<Path> paths;
  add_rings(paths);
  add_switching(paths);
  add_scale(paths);
  return paths;
}

bool walk_path(const Path& path) {
  World world(path.world);
  const bool busy = path.frames != 0;
  if (busy) {
    introduce(world, path);
    // Two laps of the rings and twice all addresses: from then on every pass is like the one before.
    const Traffic traffic = traffic_of(path);
    const uint32_t warm = 2 * std::max<uint32_t>(path.world.ring_size, path.macs) / path.frames * path.frames;
    for (uint32_t sent = 0; sent < warm; sent += path.frames) {
      if (!world.send(0, traffic, path.frames)) return false;
      world.poll();
      for (uint32_t to = 1; to <= path.destinations; ++to) world.receive(to);
    }
    measured([&] { world.poll(); });
    if (!world.send(0, traffic, path.frames)) return false;
  } else {
    for (int i = 0; i < 3; ++i) world.poll();
  }
  measured([&] { world.poll(); });
  if (!busy) return true;
  uint32_t received = 0;
  for (uint32_t to = 1; to <= path.destinations; ++to) received += world.receive(to);
  return received == path.frames * (path.broadcast ? path.destinations : 1);
}

}  // namespace sw::gates
