// SPDX-License-Identifier: Apache-2.0
// What tests of the afxdp port share: cables with as many queues as asked for, and what a process holds.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "port/afxdp.h"
#include "port/netns.h"

namespace sw::test {

inline PortConfig afxdp_config(const std::string& device, uint32_t queues = 1) {
  PortConfig config;
  config.name = "uplink";
  config.type = "afxdp";
  config.device = device;
  config.queues = queues;
  return config;
}

inline bool make_queued_veth(uint32_t queues = 1, const std::string& near = "veth-a",
                             const std::string& far = "veth-b") {
  const std::string counts = " numrxqueues " + std::to_string(queues) + " numtxqueues " + std::to_string(queues);
  return shell("ip link add name " + near + counts + " type veth peer name " + far + counts + " && ip link set " +
               near + " up && ip link set " + far + " up");
}

// How many mappings of this process are named so.
inline size_t mappings(const std::string& name) {
  std::ifstream maps("/proc/self/maps");
  size_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find(name) != std::string::npos ? 1 : 0;
  return count;
}

inline size_t descriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

inline bool has_program(const std::string& device) {
  return shell("ip -d link show dev " + device + " | grep -q prog/xdp");
}

}  // namespace sw::test
