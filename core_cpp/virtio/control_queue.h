// SPDX-License-Identifier: Apache-2.0
// ControlQueue: the driver's side of a virtio-net device's control queue (virtio 1.3 5.1.6.5), over memory that we own.
//
// Theory of operation. One command is under way at a time, as one chain of two descriptors that both sides know: class,
// command and data, which the device reads, and one byte, which it writes. The byte holds something else than any
// answer before, so a device that returns the chain without writing it is found out. Nothing the device writes is used
// as an index or a length: what it says is compared with the one thing that it may say. A device that breaks a rule, or
// lets the time pass, may still write later, so the queue is not used again: its device is to be reset.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "base/result.h"
#include "virtio/driver_ring.h"

namespace sw {

inline constexpr uint32_t kControlCommandBytes = 64;  // class, command and data at most
// The command and, on a cache line of its own, the answer.
inline constexpr uint32_t kControlBufferBytes = 2 * kControlCommandBytes;

enum class ControlAnswer : uint8_t { kDone, kRefused };  // VIRTIO_NET_OK, VIRTIO_NET_ERR

class ControlQueue {
 public:
  // `config` as of DriverMemory::control(): two entries at least, a power of two. The call eventfd is waited for.
  explicit ControlQueue(const DriverRingConfig& config);

  // Send a command and wait. An error says how the device failed ("did not answer within 10 s"), not what was asked.
  Result<ControlAnswer> send(uint8_t command_class, uint8_t command, std::span<const uint8_t> data, uint64_t limit_ms);

  // The two halves of send(): make the command visible and kick the device; look for its answer, which may not be there.
  // Data fit, and no other command is under way.
  void submit(uint8_t command_class, uint8_t command, std::span<const uint8_t> data);
  Result<std::optional<ControlAnswer>> answer();

  // Why the queue is out of use, empty while it works.
  [[nodiscard]] const std::string& broken() const { return broken_; }

 private:
  void submit_split(uint32_t command_bytes);
  void submit_packed(uint32_t command_bytes);
  bool take_split();
  bool take_packed();
  void advance_packed();

  const DriverRingConfig config_;
  const bool packed_;
  uint16_t next_ = 0;     // split: chains submitted, modulo 2^16; packed: slot of the next chain
  uint16_t pending_ = 0;  // packed: slot of the chain under way
  bool wrap_ = true;      // packed: lap of next_
  bool pending_wrap_ = true;
  bool under_way_ = false;
  std::string broken_;
};

}  // namespace sw
