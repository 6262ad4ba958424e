// SPDX-License-Identifier: Apache-2.0
// The driver's side of a virtqueue, as a queue of a port, over memory that we own: the receiveq is our RxQueue, the
// transmitq our TxQueue. Used to plug into another switch or device, and by our own test guests.
//
// Theory of operation. Every ring entry (split) or buffer id (packed) owns one buffer for ever: 64 bytes of room whose
// last bytes hold the virtio-net header, then `buffer_bytes` of payload, 64-byte aligned. Addresses in descriptors
// therefore never change, ids circulate in first-in-first-out order, and with a device that completes in order nothing
// of a lap has to be rewritten but lengths: lines that would not change are compared, not written. A frame longer than
// one buffer takes a chain. The device is not trusted: ids, lengths and num_buffers are read once and checked; a device
// that breaks a rule stops the ring with a reason. Split or packed, event index and in-order are fixed when the ring
// starts (templates in the .cc files).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "net/queue.h"
#include "virtio/device_ring.h"

namespace sw {

inline constexpr uint32_t kDriverHeadroom = 64;       // in front of each payload; the header lies at its end
inline constexpr uint32_t kDriverBufferBytes = 2048;  // default payload bytes of a buffer
// Payload bytes that hold every GSO frame: needed to receive them when mergeable buffers were not negotiated.
inline constexpr uint32_t kDriverBigBufferBytes = (kMaxFrameBytes + 63) / 64 * 64;

// The memory of `size` buffers. `buffer_bytes` is a multiple of 64, at least 128.
constexpr uint64_t driver_buffer_stride(uint32_t buffer_bytes) { return uint64_t{kDriverHeadroom} + buffer_bytes; }

struct DriverRingConfig {
  uint64_t features = 0;       // as negotiated
  RingMemory ring;             // zeroed; extents as ring_extents() says
  uint8_t* buffers = nullptr;  // ring.size * driver_buffer_stride(buffer_bytes), 64-byte aligned
  uint32_t buffer_bytes = kDriverBufferBytes;
  uint64_t device_address = 0;  // of buffers[0] as the device knows it; identity mapping: the pointer itself
  int kick_fd = -1;             // not owned; notifies the device; -1: it polls
  std::shared_ptr<EventPeer> peer = std::make_shared<EventPeer>();  // who holds kick_fd
  int call_fd = -1;                           // not owned, non-blocking; wake_fd() of the receive queue
  uint32_t max_frame_bytes = kMaxFrameBytes;  // rx: longer frames are dropped (frame_too_long)
};

// What the control side may ask of a driver ring.
class DriverRing {
 public:
  virtual ~DriverRing() = default;
  // Why the ring was stopped for good (the device broke a rule), empty while healthy. Any thread.
  [[nodiscard]] virtual std::string broken() const = 0;
  // Write the kick eventfd whatever the suppression says: once when the ring starts. Any thread.
  virtual void kick_now() = 0;
  // Descriptors that the device holds at this moment. Only the thread that uses the queue.
  [[nodiscard]] virtual uint32_t in_flight() const = 0;
};

// A buffer that came back from the device. In a chain of merged buffers every one appears by itself.
struct UsedBuffer {
  const uint8_t* payload;  // the virtio-net header lies in front of it
  uint32_t bytes;          // written behind the header
};

class DriverRx : public RxQueue, public DriverRing {
 public:
  using RxQueue::RxQueue;
  // Instead of peek(), for traffic generators: up to used.size() (at most kMaxBatch) buffers as the device used them,
  // neither checked nor counted as frames. release() follows as after peek(). `look`: the caller will read them; else
  // not one of their lines is touched.
  virtual uint32_t take(std::span<UsedBuffer> used, bool look) = 0;
};

class DriverTx : public TxQueue, public DriverRing {
 public:
  using TxQueue::TxQueue;
  // Take back what the device has used. send() does so when it runs out of descriptors; this is for whoever waits for
  // in_flight() to fall.
  virtual void reclaim() = 0;
  // Instead of send(), for traffic generators: frames are written where they are sent from. lend() names the payloads
  // of the next free buffers, as many as there are, and returns how many; commit() sends the first `count` of them as
  // frames of `bytes` (at most buffer_bytes) without offloads. A buffer keeps its bytes from lap to lap. Not counted.
  virtual uint32_t lend(std::span<uint8_t*> payloads) = 0;
  virtual void commit(uint32_t count, uint32_t bytes) = 0;
};

// Both start with notifications from the device suppressed. The receive queue posts all its buffers at once.
std::unique_ptr<DriverRx> make_driver_rx(const DriverRingConfig& config, QueueCounters& counters);
std::unique_ptr<DriverTx> make_driver_tx(const DriverRingConfig& config, QueueCounters& counters);

}  // namespace sw
