// SPDX-License-Identifier: Apache-2.0
// A vhostuser port on a socket of its own, and front-ends by hand.
#pragma once

#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "port/vhostuser.h"
#include "support/port_bed.h"
#include "support/temp_dir.h"
#include "support/vhost_peer.h"
#include "vhost_user/features.h"
#include "virtio/spec.h"

namespace sw::testing {

// One port on one socket.
struct VhostUserBed {
  static constexpr uint64_t kFeatures = feature_mask(VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES);

  explicit VhostUserBed(bool switch_owns = true, uint32_t queues = 2) : rx_counters(queues), tx_counters(queues) {
    config.name = "vm1";
    config.type = "vhostuser";
    config.socket = dir.file("vm1.sock");
    config.socket_owner_switch = switch_owns;
    config.queues = queues;
  }
  ~VhostUserBed() {
    if (port) port->close();
  }
  VhostUserBed(const VhostUserBed&) = delete;
  VhostUserBed& operator=(const VhostUserBed&) = delete;

  Result<void> open() {
    auto made = make_vhostuser(config, {rx_counters, tx_counters});
    if (!made) return made.error();
    port = std::move(*made);
    auto opened = port->open(host);
    if (!opened) port.reset();
    return opened;
  }
  [[nodiscard]] std::string stage() const { return port->status().stage; }
  [[nodiscard]] std::string detail() const { return port->status().detail; }
  [[nodiscard]] uint64_t counter(const char* name) const { return port->status().counters.at(name); }
  // A front-end by hand on our socket, accepted.
  VhostPeer dial() {
    const uint64_t before = counter("connects");
    CAPTURE(detail());
    CAPTURE(counter("refused"));
    CAPTURE(counter("throttled"));
    auto socket = connect_unix(config.socket);
    REQUIRE(socket);
    VhostPeer peer(std::move(*socket));
    REQUIRE(host.until([&] { return counter("connects") == before + 1; }));
    return peer;
  }
  bool reaches(const std::string& wanted) {
    return host.until([&] { return stage() == wanted; });
  }

  TempDir dir;
  PortBed host;
  PortConfig config;
  std::vector<QueueCounters> rx_counters, tx_counters;
  std::unique_ptr<Port> port;
};

}  // namespace sw::testing
