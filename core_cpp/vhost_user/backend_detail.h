// SPDX-License-Identifier: Apache-2.0
// What the files of the back-end share and nobody else needs.
#pragma once

#include <string>

#include "vhost_user/backend.h"

namespace sw {

// One row per request: what it must look like and who handles it.
struct Backend::Rule {
  VhostRequest request;
  uint32_t bytes;  // exact payload size, but see check_shape
  Fds fds;
  Reply reply;
  Handler handler;
};

// What a wish amounts to, given memory and features.
struct Backend::Plan {
  bool ready = false;
  bool invalid = false;  // complete, and yet it cannot run: the front-end made a mistake
  std::string why;       // when not ready, for a person
  DeviceRingConfig config;
};

// pause for a scope. Declare what is to be closed or unmapped afterwards before it.
class Backend::Pause {
 public:
  explicit Pause(BackendHost& host) : host_(host) { host_.pause(); }
  ~Pause() { host_.resume(); }
  Pause(const Pause&) = delete;
  Pause& operator=(const Pause&) = delete;

 private:
  BackendHost& host_;
};

inline bool is_rx(size_t index) { return index % 2 == 1; }

// "ring 3 (transmitq 1)", in the guest's words.
inline std::string ring_name(size_t index) {
  return "ring " + std::to_string(index) + (is_rx(index) ? " (transmitq " : " (receiveq ") + std::to_string(index / 2) +
         ")";
}

}  // namespace sw
