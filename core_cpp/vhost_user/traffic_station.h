// SPDX-License-Identifier: Apache-2.0
// TrafficStation: one software guest of a TrafficRunner: its connection, what it sends and what it makes of what
// arrives.
//
// Theory of operation. Frames carry, behind the Ethernet header (or behind TCP's in segmentation-offload frames), the
// number of the stream they belong to, a sequence number and the time stamp counter at sending; sender and receiver are
// on one thread, so both read the same counter. Frames that fit one buffer are written where the ring sends them from
// and read where they arrived (lend/commit, take): nothing stands between the generator and the ring. Longer frames
// take the way that ports use (send, peek).
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <vector>

#include "stats/latency.h"
#include "vhost_user/traffic.h"

namespace sw {

// What the stations of a runner have in common.
struct TrafficShared {
  EventLoop loop;
  std::condition_variable changed;
  std::atomic<uint64_t> rate{kTrafficOwnRate};
  std::atomic<uint64_t> window{0};
  std::atomic<bool> sending{true};
  std::atomic<uint32_t> serial{0};  // counts changes of the three above
  LatencyHistogram latency;         // written by the runner's thread
  std::vector<uint64_t> arrived;    // frames of station n that reached anybody; the runner's thread only
};

class TrafficStation final : public FrontendOwner {
 public:
  TrafficStation(TrafficOptions options, uint16_t number, TrafficShared& shared);

  Frontend& frontend() { return *frontend_; }
  [[nodiscard]] bool ready() const { return ready_; }
  [[nodiscard]] bool idle() const { return options_.idle; }
  // Nothing to do most of the time: the thread may nap.
  [[nodiscard]] bool limited() const;
  // One round of receiving and sending. True if frames moved.
  bool step();
  [[nodiscard]] TrafficStats stats() const;

 private:
  Result<const DriverMemory*> negotiated(uint64_t features, uint32_t queue_pairs) override;
  void running() override;
  void lost(const std::string& why) override;

  void build_template();
  void address(uint8_t* frame, uint64_t pair) const;
  void stamp(uint8_t* frame, uint32_t stream, uint64_t sequence, uint64_t now) const;
  void prepare_buffers();

  bool receive(DriverRx& queue);
  bool receive_frames(DriverRx& queue);
  void note(const uint8_t* frame, uint64_t now);
  bool send();
  uint32_t send_in_place(DriverTx& queue, uint32_t queue_number, uint32_t wanted);
  uint32_t send_frames(DriverTx& queue, uint32_t queue_number, uint32_t wanted);
  uint32_t due();
  uint32_t due_by_window(uint64_t window);
  void begin_pace(uint64_t now);
  void begin_window(uint64_t now);

  const TrafficOptions options_;
  const uint16_t number_;
  TrafficShared& shared_;
  std::vector<QueueCounters> rx_counters_;
  std::vector<QueueCounters> tx_counters_;
  PortWorkerCounters drops_;
  Counter foreign_;
  Counter reordered_;
  std::vector<uint8_t> template_;    // one frame, complete but for addresses and stamp
  uint32_t data_at_ = 0;             // where the stamp begins
  bool in_place_ = false;            // frames fit one buffer, header included
  bool mergeable_ = false;           // as negotiated
  uint32_t merged_left_ = 0;         // buffers to come that continue a frame
  std::vector<uint64_t> sequence_;   // per transmitq
  std::vector<uint64_t> last_seen_;  // per stream of any station
  std::unique_ptr<Batch> batch_;     // of receive_frames and send_frames
  uint32_t next_queue_ = 0;
  uint64_t next_pair_ = 0;
  uint64_t sent_ = 0;            // all frames of this connection
  uint32_t serial_ = 0;          // of the settings that the pacing below belongs to
  uint64_t rate_;                // in force
  uint64_t pace_begin_ = 0;      // TSC
  uint64_t pace_sent_ = 0;       // frames since
  uint64_t room_seen_ = 0;       // TSC: when fewer frames were under way than may be
  uint64_t in_flight_base_ = 0;  // sent_ - arrived when the last window began: frames that will not come any more
  bool ready_ = false;
  std::unique_ptr<DriverDevice> device_;
  std::unique_ptr<Frontend> frontend_;  // last: its end calls lost()
};

}  // namespace sw
