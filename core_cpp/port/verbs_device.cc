// SPDX-License-Identifier: Apache-2.0
#ifdef SW_HAVE_VERBS
#include "port/verbs_device.h"

#include <dlfcn.h>

#include <array>
#include <cstring>

namespace sw {

namespace {

// Words of the manual page of ibv_poll_cq; the library's own table is in the library, which is not linked.
std::string status_text(uint32_t status) {
  constexpr std::array<const char*, 6> kNames = {"success",
                                                 "the frame is longer than its receive buffer",
                                                 "the queue pair is inconsistent",
                                                 "local EE operation error",
                                                 "the buffer is outside the registered memory",
                                                 "the queue was stopped"};
  if (status < kNames.size()) return kNames.at(status);
  return "status " + std::to_string(status);
}

}  // namespace

// First what everybody sees, then the library by its name, if it is in the process already.
VerbsCalls VerbsCalls::find() {
  VerbsCalls calls;
  void* const library = ::dlopen("libibverbs.so.1", RTLD_NOLOAD | RTLD_NOW | RTLD_LOCAL);
  const auto look_up = [library](const char* name) {
    void* const found = ::dlsym(RTLD_DEFAULT, name);
    return found != nullptr || library == nullptr ? found : ::dlsym(library, name);
  };
  calls.get_cq_event = reinterpret_cast<decltype(calls.get_cq_event)>(look_up("ibv_get_cq_event"));
  calls.ack_cq_events = reinterpret_cast<decltype(calls.ack_cq_events)>(look_up("ibv_ack_cq_events"));
  // The device's objects keep the library where it is; our reference to it is not needed.
  if (library != nullptr) ::dlclose(library);
  return calls;
}

std::string VerbsFault::text() const {
  const uint64_t value = load_relaxed(value_);
  const auto detail = static_cast<uint32_t>(value >> 32);
  switch (static_cast<Kind>(value & 0xffffffffU)) {
    case Kind::kNone:
      return "";
    case Kind::kCompletion:
      return "the device reported a completion that fits no request (" + std::to_string(detail) + ")";
    case Kind::kStatus:
      return "the device stopped a queue: " + status_text(detail);
    case Kind::kCompletions:
      return "a completion queue overran (ibv_poll_cq: " + std::to_string(static_cast<int>(detail)) + ")";
    case Kind::kReceivePost:
      return std::string("the device takes no receive buffers: ") + std::strerror(static_cast<int>(detail));
    case Kind::kTransmitPost:
      return std::string("the device takes no frames: ") + std::strerror(static_cast<int>(detail));
  }
  return "unknown";
}

}  // namespace sw
#endif
