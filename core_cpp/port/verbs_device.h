// SPDX-License-Identifier: Apache-2.0
// What the receive and the transmit queue of a verbs port share: registered memory, and the way a worker reports that
// the device broke its word.
#pragma once

#include <infiniband/verbs.h>

#include <cstdint>
#include <string>

#include "base/atomic.h"

namespace sw {

// Equal slots of registered memory, one queue's own. A slot holds one frame.
struct VerbsSlots {
  uint8_t* memory = nullptr;
  uint32_t slot_bytes = 0;
  uint32_t count = 0;  // a power of two
  uint32_t lkey = 0;

  [[nodiscard]] uint8_t* at(uint32_t slot) const { return memory + size_t{slot} * slot_bytes; }
};

// The two calls that are no inline functions. They are looked up at run time in the libibverbs that pyverbs has loaded,
// so that the core is not linked against it; without them a queue cannot wake a sleeping worker, which then naps.
struct VerbsCalls {
  int (*get_cq_event)(ibv_comp_channel*, ibv_cq**, void**) = nullptr;
  void (*ack_cq_events)(ibv_cq*, unsigned) = nullptr;

  static VerbsCalls find();
};

// The first thing that went wrong. Set by a worker, which stops using the queue; the control side reads it and opens
// the device anew.
class VerbsFault {
 public:
  enum class Kind : uint32_t {
    kNone,
    kCompletion,    // a completion names no request that is under way, or more bytes than its buffer has
    kStatus,        // a request ended with an error: the queue has stopped. detail: ibv_wc_status
    kCompletions,   // the completion queue cannot be read: it overran. detail: what ibv_poll_cq returned
    kReceivePost,   // detail: errno
    kTransmitPost,  // detail: errno
  };

  void set(Kind kind, int detail) {  // worker
    if (load_relaxed(value_) == 0) store_relaxed(value_, uint64_t{static_cast<uint32_t>(detail)} << 32 | raw(kind));
  }
  [[nodiscard]] bool is_set() const { return load_relaxed(value_) != 0; }
  [[nodiscard]] std::string text() const;  // anybody; empty while nothing is wrong

 private:
  static uint64_t raw(Kind kind) { return static_cast<uint64_t>(kind); }

  uint64_t value_ = 0;  // detail << 32 | kind. worker: wo, others: ro
};

}  // namespace sw
