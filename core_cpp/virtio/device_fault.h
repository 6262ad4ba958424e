// SPDX-License-Identifier: Apache-2.0
// RingFault: why a device ring was stopped for good. Set once by the worker, read by any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace sw {

class RingFault {
 public:
  enum Kind : uint32_t {
    kNone,
    kBadStart,     // first: base index, second: ring size
    kIndexJumped,  // first: how far, second: ring size
    kBadHead,      // first: the head, second: ring size
    kBadId,        // first: the buffer id, second: ring size
    kEndlessList,  // second: ring size
  };

  void set(Kind kind, uint32_t first, uint32_t second) {
    first_.store(first, std::memory_order_relaxed);
    second_.store(second, std::memory_order_relaxed);
    kind_.store(kind, std::memory_order_release);  // pairs with text(): the numbers belong to the kind
  }
  [[nodiscard]] bool is_set() const { return kind_.load(std::memory_order_relaxed) != kNone; }

  // One sentence for the operator; empty while healthy.
  [[nodiscard]] std::string text() const {
    const uint32_t kind = kind_.load(std::memory_order_acquire);
    const std::string first = std::to_string(first_.load(std::memory_order_relaxed));
    const std::string second = std::to_string(second_.load(std::memory_order_relaxed));
    switch (kind) {
      case kBadStart:
        return "the ring was started at index " + first + " but has only " + second + " entries";
      case kIndexJumped:
        return "the driver moved its available index " + first + " entries ahead of a ring of " + second;
      case kBadHead:
        return "the driver made descriptor " + first + " available in a ring of " + second;
      case kBadId:
        return "the driver used buffer id " + first + " in a ring of " + second;
      case kEndlessList:
        return "the driver linked all " + second + " descriptors of the ring without an end";
      default:
        return {};
    }
  }

 private:
  std::atomic<uint32_t> kind_{kNone};
  std::atomic<uint32_t> first_{0};
  std::atomic<uint32_t> second_{0};
};

}  // namespace sw
