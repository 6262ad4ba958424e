// SPDX-License-Identifier: Apache-2.0
// A datapath with one bridge, and guests at its ports.
#pragma once

#include <doctest/doctest.h>

#include <chrono>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "datapath.h"
#include "support/eventually.h"
#include "support/memory_queues.h"
#include "support/temp_dir.h"
#include "vhost_user/guest.h"

namespace sw::testing {

inline constexpr uint64_t kPatienceMs = 20'000;
inline constexpr std::chrono::milliseconds kPatience(kPatienceMs);
inline constexpr Mac kA = 0x02'00'00'00'00'01, kB = 0x02'00'00'00'00'02;

struct Rig {
  // Queues are spread anew often and for little, so that a test need not wait for a heavy load.
  explicit Rig(size_t workers = 1, uint64_t balance_ms = 100)
      : datapath({.worker_cpus = std::vector<int>(workers, -1),
                  .hugepages = HugePages::kOff,
                  .balance_ms = balance_ms,
                  .balance_gain = 0.02}) {
    REQUIRE(datapath.start());
    REQUIRE(datapath.add_bridge("br0", 300, 1024));
  }
  [[nodiscard]] std::string socket(const std::string& name) const { return dir.file(name); }
  PortSpec spec(const std::string& name) const {
    PortSpec wanted;
    wanted.config.name = name;
    wanted.config.type = "vhostuser";
    wanted.config.socket = socket(name);
    wanted.bridge = "br0";
    return wanted;
  }
  std::unique_ptr<Guest> guest(const std::string& name, bool packed = false) {
    auto made = std::make_unique<Guest>(GuestOptions{.socket = socket(name), .packed = packed});
    REQUIRE(made->start());
    REQUIRE(made->wait_ready(kPatienceMs));
    return made;
  }

  TempDir dir;
  Datapath datapath;
};

inline void require_frame(Guest& guest, const Bytes& expected) {
  const auto frame = guest.receive(kPatienceMs);
  REQUIRE(frame);
  CHECK(frame->bytes == expected);
}

inline uint64_t sum_frames(const std::vector<QueueView>& queues) {
  return std::accumulate(queues.begin(), queues.end(), uint64_t{0},
                         [](uint64_t sum, const QueueView& queue) { return sum + queue.frames; });
}

inline void check_conservation(const Stats& stats) {
  uint64_t forwarded = 0;
  uint64_t offered = 0;
  for (const PortStats& port : stats.ports) {
    CAPTURE(port.name);
    const auto lost = [](const auto& drops) { return std::accumulate(drops.begin(), drops.end(), uint64_t{0}); };
    CHECK(sum_frames(port.rx) + port.replicated == port.forwarded + lost(port.rx_drops));
    CHECK(port.offered + port.segmented == sum_frames(port.tx) + lost(port.tx_drops));
    forwarded += port.forwarded;
    offered += port.offered;
  }
  CHECK(forwarded == offered);
}

}  // namespace sw::testing
