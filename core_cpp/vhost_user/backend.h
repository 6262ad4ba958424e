// SPDX-License-Identifier: Apache-2.0
// Backend: the device's side of one vhost-user connection. Turns messages into running rings.
//
// Theory of operation. Every ring has a wish (what the front-end said: size, addresses, base, kick, call, err, enabled)
// and perhaps a live ring (what workers poll). Messages change wishes in any order; after each of them the ring runs if
// its wish is complete and lies in guest memory, and is rebuilt from its own current base if something it was built
// from changed. So memory may come before or after addresses, be withdrawn and returned, and CALL may flap under
// traffic: there is one rule and no sequence to get wrong.
//
// Live rings change only between BackendHost::pause() and resume(), when no worker touches them. Checks and mmap come
// before the pause, munmap and close after it. A message either takes effect as a whole or not at all; its REPLY_ACK is
// sent when it has taken effect. A message that fails without the front-end waiting for an answer ends the connection:
// the two sides would no longer agree on the state.
//
// Nothing here blocks, whatever the peer does: while replies wait for a peer that does not read them, no further
// message is taken from it, and one call handles a bounded number of messages.
//
// Files: backend.cc (messages, replies), backend_features.cc, backend_memory.cc, backend_vrings.cc (one ring's
// messages), backend_apply.cc (wish -> live ring).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/reaper.h"
#include "base/result.h"
#include "stats/counters.h"
#include "vhost_user/channel.h"
#include "vhost_user/message.h"
#include "virtio/device_ring.h"
#include "virtio/guest_memory.h"

namespace sw {

// What the back-end needs from the port it belongs to.
class BackendHost {
 public:
  virtual ~BackendHost() = default;
  virtual void pause() = 0;   // returns when no worker uses this port's queues any more; nestable
  virtual void resume() = 0;  // workers use what live_rx() and live_tx() say now
  // "ring_broken", "error": something a person wants to know. Rate-limited by the host.
  virtual void event(const std::string& kind, const std::string& detail) = 0;
};

// Totals of a port; they outlive its connections.
struct BackendCounters {
  uint64_t messages = 0;
  uint64_t errors = 0;        // messages that were refused, connections that ended with an error
  uint64_t rings_broken = 0;  // rings stopped because the guest broke a rule
};

struct BackendConfig {
  uint64_t features = 0;  // offered
  uint64_t protocol_features = 0;
  std::span<QueueCounters> rx_counters;  // one per queue pair served; their number is the limit
  std::span<QueueCounters> tx_counters;
  uint32_t mtu = 0;
  std::shared_ptr<EventPeer> peer = std::make_shared<EventPeer>();  // outlives the connection
};

class Backend {
 public:
  // What the front-end said about one ring. Copied to try a change, so descriptors are shared.
  struct Wish {
    std::optional<uint32_t> size;
    std::optional<VhostVringAddr> address;
    std::optional<uint32_t> base;
    bool kicked = false;             // SET_VRING_KICK came
    std::shared_ptr<UniqueFd> kick;  // null: poll
    std::shared_ptr<UniqueFd> call;  // null: the guest polls
    std::shared_ptr<UniqueFd> err;
    bool enabled = false;
  };
  // Ring 2q is receiveq q of the guest (our tx), ring 2q + 1 its transmitq (our rx).
  struct Ring {
    Wish wish;
    std::unique_ptr<DeviceRx> rx;
    std::unique_ptr<DeviceTx> tx;
    std::optional<uint32_t> reset_base;  // where a device reset found it
    bool seen_running = false;           // on this connection: the front-end knows its place from us
    std::string waiting;                 // why it does not run, for a person; empty when it runs
    std::string broken;                  // why it was stopped for good; until the front-end stops it too

    [[nodiscard]] DeviceRing* live() const;
  };

  // `reaper`: of the port, for all its connections.
  Backend(UniqueFd socket, BackendConfig config, BackendHost& host, BackendCounters& counters,
          std::shared_ptr<Reaper> reaper = std::make_shared<Reaper>());
  ~Backend();  // the host must have called shutdown(), or have paused the port for good

  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  // Socket events. An error means: the connection is over, for this reason (code 0 and "the peer closed the connection"
  // when it ended in an orderly way).
  Result<void> on_socket(uint32_t epoll_events);
  [[nodiscard]] int fd() const { return channel_.fd(); }
  [[nodiscard]] uint32_t wanted_events() const;

  // Look for rings that broke and for memory that was truncated. To be called every 100 ms or so.
  void check_health();
  // Stop every ring, under a pause.
  void shutdown();

  // Queues for workers, index = queue number, null: not ready. A started but disabled transmitq is polled (and
  // discards, virtio 1.3 5.1.6.5.5 and vhost-user "Ring states"); a disabled receiveq takes nothing and is not listed.
  [[nodiscard]] std::vector<RxQueue*> live_rx() const;
  [[nodiscard]] std::vector<TxQueue*> live_tx() const;

  // For status.
  [[nodiscard]] const std::vector<Ring>& rings() const { return rings_; }  // up to the highest that was named
  [[nodiscard]] bool ring_enabled(const Ring& ring) const;
  [[nodiscard]] bool heard() const { return heard_; }
  [[nodiscard]] std::optional<uint64_t> features() const { return features_; }
  [[nodiscard]] uint64_t protocol_features() const { return protocol_features_; }
  [[nodiscard]] const GuestMemory* memory() const { return memory_.get(); }
  [[nodiscard]] bool memory_table_seen() const { return memory_table_seen_; }
  [[nodiscard]] bool logging() const;
  [[nodiscard]] uint32_t mtu() const { return mtu_; }
  [[nodiscard]] uint64_t device_status() const { return device_status_; }

 private:
  enum class Fds : uint8_t { kNone, kOne, kVring, kTable, kAny };
  enum class Reply : uint8_t { kAck, kOwn };
  struct Rule;
  struct Plan;
  class Pause;
  using Handler = Result<void> (Backend::*)(VhostMessage& request, VhostMessage& reply);
  static const std::array<Rule, 25> kRules;
  static const Rule* find_rule(VhostRequest request);

  // backend.cc
  Result<void> handle(VhostMessage& request);
  Result<void> perform(const Rule& rule, VhostMessage& request, VhostMessage& reply);
  static Result<void> check_shape(const Rule& rule, const VhostMessage& request);

  // backend_features.cc
  Result<void> get_features(VhostMessage& request, VhostMessage& reply);
  Result<void> set_features(VhostMessage& request, VhostMessage& reply);
  Result<void> get_protocol_features(VhostMessage& request, VhostMessage& reply);
  Result<void> set_protocol_features(VhostMessage& request, VhostMessage& reply);
  Result<void> get_queue_num(VhostMessage& request, VhostMessage& reply);
  Result<void> set_owner(VhostMessage& request, VhostMessage& reply);
  Result<void> reset_owner(VhostMessage& request, VhostMessage& reply);
  Result<void> set_status(VhostMessage& request, VhostMessage& reply);
  Result<void> get_status(VhostMessage& request, VhostMessage& reply);
  Result<void> net_set_mtu(VhostMessage& request, VhostMessage& reply);
  Result<void> send_rarp(VhostMessage& request, VhostMessage& reply);

  // backend_memory.cc
  Result<void> set_mem_table(VhostMessage& request, VhostMessage& reply);
  Result<void> get_max_mem_slots(VhostMessage& request, VhostMessage& reply);
  Result<void> add_mem_reg(VhostMessage& request, VhostMessage& reply);
  Result<void> rem_mem_reg(VhostMessage& request, VhostMessage& reply);
  Result<void> set_log_base(VhostMessage& request, VhostMessage& reply);
  Result<void> set_log_fd(VhostMessage& request, VhostMessage& reply);
  Result<std::shared_ptr<MappedRegion>> map_region(const VhostMemRegion& region, int fd) const;
  Result<void> use_regions(std::vector<std::shared_ptr<MappedRegion>> regions);

  // backend_vrings.cc
  Result<void> set_vring_num(VhostMessage& request, VhostMessage& reply);
  Result<void> set_vring_addr(VhostMessage& request, VhostMessage& reply);
  Result<void> set_vring_base(VhostMessage& request, VhostMessage& reply);
  Result<void> get_vring_base(VhostMessage& request, VhostMessage& reply);
  Result<void> set_vring_kick(VhostMessage& request, VhostMessage& reply);
  Result<void> set_vring_call(VhostMessage& request, VhostMessage& reply);
  Result<void> set_vring_err(VhostMessage& request, VhostMessage& reply);
  Result<void> set_vring_enable(VhostMessage& request, VhostMessage& reply);
  Result<Ring*> ring_at(uint32_t index);
  Result<Ring*> ring_of_fd_message(VhostMessage& request, std::shared_ptr<UniqueFd>& fd);

  // backend_apply.cc
  [[nodiscard]] Plan plan_ring(const Wish& wish, const std::string& broken) const;
  Result<void> change_ring(Ring& ring, Wish next);
  void reconfigure(std::optional<uint64_t> features, std::shared_ptr<const GuestMemory> memory,
                   std::shared_ptr<DirtyLog> log);
  void start(Ring& ring);
  [[nodiscard]] uint16_t packed_base(const Ring& ring, const DeviceRingConfig& config) const;
  void retire(Ring& ring);
  void stop_all();
  void break_ring(Ring& ring, const std::string& why);
  void deliver_rarp();
  void let_go(std::shared_ptr<const GuestMemory> memory) const;
  [[nodiscard]] bool any_live() const;
  [[nodiscard]] size_t index_of(const Ring& ring) const { return static_cast<size_t>(&ring - rings_.data()); }
  [[nodiscard]] std::shared_ptr<DirtyLog> active_log() const;

  const std::shared_ptr<Reaper> reaper_;
  Channel channel_;
  const BackendConfig config_;
  BackendHost& host_;
  BackendCounters& counters_;

  bool heard_ = false;  // any message
  std::optional<uint64_t> features_;
  uint64_t protocol_features_ = 0;
  uint64_t device_status_ = 0;
  uint32_t mtu_ = 0;
  bool memory_table_seen_ = false;
  std::shared_ptr<const GuestMemory> memory_;
  std::vector<std::shared_ptr<MappedRegion>> added_again_;  // slots of memory_, once for each repeated ADD_MEM_REG
  std::shared_ptr<DirtyLog> log_;                           // as SET_LOG_BASE gave it; in force while LOG_ALL is on
  std::vector<Ring> rings_;
  std::optional<std::array<uint8_t, 60>> rarp_;  // waits for a ring to deliver it
};

}  // namespace sw
