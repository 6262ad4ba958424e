// SPDX-License-Identifier: Apache-2.0
// Frontend: the driver's side of vhost-user. Finds a back-end, negotiates, hands it our rings, and does so again
// whenever the back-end comes back.
//
// Theory of operation. The handshake is a queue of steps; a step is a message and what to do with its answer. With
// REPLY_ACK every message is answered, so a refusal names the message that was refused; without it the final
// GET_FEATURES is the barrier behind which everything has taken effect (vhost-user "Communication"). All of it must be
// done before one deadline. Whatever goes wrong ends the connection with a sentence, and the next attempt starts from
// nothing: new memory, new rings. Attempts follow each other after 10 ms, then twice as long each time up to 1 s; only
// a handshake that succeeded sets the delay back. Nothing here blocks; all calls and callbacks are on the event loop's
// thread.
//
// Files: frontend.cc (connection), frontend_handshake.cc (messages).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "base/result.h"
#include "vhost_user/channel.h"
#include "vhost_user/listening.h"
#include "vhost_user/message.h"
#include "virtio/driver_memory.h"

namespace sw {

struct FrontendConfig {
  std::string socket;
  bool listen = false;   // true: the back-end connects to us
  int socket_mode = -1;  // for the socket we create: permission bits, -1: umask
  int socket_gid = -1;
  uint64_t features = 0;          // virtio features that we can use; taken if offered
  uint64_t required = 0;          // without these we do not run
  uint32_t queue_pairs = 1;       // at most
  uint64_t deadline_ms = 10'000;  // for the whole handshake
};

class FrontendOwner {
 public:
  virtual ~FrontendOwner() = default;
  // The features and queue pairs that both sides have. Make rings for them, with receive buffers posted; the memory
  // must stay until lost().
  virtual Result<const DriverMemory*> negotiated(uint64_t features, uint32_t queue_pairs) = 0;
  // The back-end has taken over every ring: queues may be used from now on.
  virtual void running() = 0;
  // The connection is over: stop using the queues before returning. Follows every negotiated(), once.
  virtual void lost(const std::string& why) = 0;
  // Something a person wants to know of the socket that we listen on.
  virtual void socket_event(const std::string& kind, const std::string& detail) {
    (void)kind;
    (void)detail;
  }
};

class Frontend {
 public:
  enum class Stage : uint8_t { kClosed, kWaitingForPeer, kNegotiating, kSettingUpRings, kRunning };

  Frontend(EventLoop& loop, FrontendConfig config, FrontendOwner& owner);
  ~Frontend();
  Frontend(const Frontend&) = delete;
  Frontend& operator=(const Frontend&) = delete;

  // Start looking for the back-end. Fails only for what waiting cannot cure (unusable path, path taken).
  Result<void> open();
  void close();
  // Give up this connection, for this reason, and start anew as after a disconnect. Not from within an owner's
  // callback.
  void restart(const std::string& why);

  [[nodiscard]] Stage stage() const { return stage_; }
  [[nodiscard]] const char* stage_name() const;  // "waiting_for_peer", "negotiating", ...
  // Why it is not running and what to do about it; while running, what the back-end lacks. May be empty.
  [[nodiscard]] std::string detail() const;
  [[nodiscard]] uint64_t features() const { return features_; }  // negotiated; 0 before
  [[nodiscard]] uint64_t offered() const { return offered_; }    // by the back-end of this or the last connection
  [[nodiscard]] uint64_t protocol_features() const { return protocol_features_; }
  [[nodiscard]] uint32_t queue_pairs() const { return queue_pairs_; }
  [[nodiscard]] uint64_t times_running() const { return times_running_; }
  [[nodiscard]] const FrontendConfig& config() const { return config_; }

 private:
  using OnReply = std::function<Result<void>(const VhostMessage&)>;
  struct Step {
    VhostMessage message;
    std::vector<int> fds;  // borrowed from the owner's memory
    OnReply on_reply;      // for messages with an answer of their own
  };

  // frontend.cc
  void connect();
  void accept();
  void connected(UniqueFd socket);
  void on_socket(uint32_t events);
  Result<void> serve(uint32_t events);
  void drop(const std::string& why);
  void retry_later();
  void watch();

  // frontend_handshake.cc
  Result<void> start_handshake();
  Result<void> advance();
  Result<void> on_message(const VhostMessage& reply);
  Result<void> got_features(uint64_t offered);
  Result<void> got_protocol_features(uint64_t offered);
  Result<void> choose_features();
  Result<void> set_up_rings();
  void add_ring(uint32_t index, const DriverMemory::Ring& ring);
  void finish();
  void ask(VhostRequest request, const std::function<Result<void>(uint64_t)>& on_value);
  template <class T>
  void tell(VhostRequest request, const T& payload, std::vector<int> fds = {});
  void tell_status(uint64_t status);

  static constexpr uint64_t kFirstRetryMs = 10;
  static constexpr uint64_t kLongestRetryMs = 1000;

  EventLoop& loop_;
  const FrontendConfig config_;
  FrontendOwner& owner_;

  Stage stage_ = Stage::kClosed;
  std::string detail_;
  std::unique_ptr<ListeningSocket> listening_;  // with config_.listen
  const std::shared_ptr<Reaper> reaper_ = std::make_shared<Reaper>();
  std::optional<Channel> channel_;
  bool watching_write_ = false;
  EventLoop::TimerId retry_timer_ = 0;
  EventLoop::TimerId deadline_timer_ = 0;
  uint64_t retry_delay_ms_ = kFirstRetryMs;
  uint64_t running_since_ns_ = 0;

  std::deque<Step> steps_;  // front: being answered if awaiting_
  bool awaiting_ = false;
  bool owner_has_rings_ = false;  // negotiated() was called, lost() was not
  uint64_t offered_ = 0;
  uint64_t features_ = 0;
  uint64_t protocol_features_ = 0;
  uint32_t queue_pairs_ = 0;
  uint64_t times_running_ = 0;
};

}  // namespace sw
