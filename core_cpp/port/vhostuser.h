// SPDX-License-Identifier: Apache-2.0
// Port kind `vhostuser`: the socket of one guest, ours or the guest's, and the back-end behind it.
//
// Theory of operation. With socket_owner_switch we listen and serve one connection at a time; a second one is closed at
// once, unless the first has ended without our having noticed yet. Otherwise the peer listens and we connect: at once,
// and then for ever, 10 ms to 500 ms apart. A connection ends for any error; then its rings and its memory are gone at
// once and the port waits for the next. Features do not depend on the connection, so a guest that reconnects finds what
// it had.
//
// The control loop, and the workers that take a new plan with every change of a ring, are there for all ports. So each
// has a budget of the loop's time, by which a change costs more than it takes, and a peer that has used it up is not
// read for a while. Guests stay far below it, also while they boot.
//
// Stages (PortStatus::stage), in order:
//   waiting_for_peer  nobody is connected
//   connected         somebody is, and has said nothing yet
//   negotiating       features are not agreed on: the guest's driver is not up yet
//   memory            the guest's memory is missing: not shared, or the driver is about to start
//   rings             no ring runs: the detail names what one of them waits for, or why it was stopped
//   enable            rings run and none is enabled: the interface is down in the guest
//   running           frames can flow
#pragma once

#include <memory>
#include <string>

#include "port/port.h"
#include "vhost_user/backend.h"
#include "vhost_user/listening.h"

namespace sw {

class VhostUserPort final : public Port, private BackendHost {
 public:
  VhostUserPort(const PortConfig& config, PortCounters counters);
  ~VhostUserPort() override;

  Result<void> open(PortHost& host) override;
  void close() override;
  [[nodiscard]] std::vector<RxQueue*> rx_queues() const override;
  [[nodiscard]] std::vector<TxQueue*> tx_queues() const override;
  [[nodiscard]] PortStatus status() const override;
  // The guest learns its MTU from its own front-end; this is what the next connection shows.
  Result<void> set_mtu(uint32_t mtu) override;

 private:
  void pause() override;
  void resume() override;
  void event(const std::string& kind, const std::string& detail) override;

  void on_listener();
  void admit(UniqueFd peer);
  void connect();
  void connect_later(uint64_t delay_ms);
  void attach(UniqueFd peer);
  void detach(const std::string& reason);
  void on_socket(uint32_t epoll_events);
  void watch_health();
  void charge(uint64_t ns);
  [[nodiscard]] uint64_t rest_ms();
  void rest(uint64_t delay_ms);
  [[nodiscard]] bool peer_gone() const;

  // vhostuser_status.cc
  [[nodiscard]] std::string waiting_detail() const;
  void describe_connection(PortStatus& status) const;
  void describe_rings(PortStatus& status) const;

  PortConfig config_;
  const BackendConfig backend_config_;
  PortHost* host_ = nullptr;
  std::unique_ptr<ListeningSocket> listening_;  // with socket_owner_switch
  std::unique_ptr<Backend> backend_;
  uint32_t watched_ = 0;  // epoll events of the connection
  uint32_t mtu_ = 0;

  EventLoop::TimerId health_timer_ = 0;
  EventLoop::TimerId retry_timer_ = 0;  // connect again
  uint64_t retry_ms_ = 0;
  uint64_t attached_ns_ = 0;  // when the connection, or the last one, began
  Error connect_error_;       // why the last attempt to connect failed
  std::string last_end_;      // why the last connection ended

  BackendCounters totals_;
  uint64_t connects_ = 0;
  uint64_t disconnects_ = 0;
  uint64_t refused_ = 0;  // second connections, and any while what earlier ones gave us cannot be closed
  const std::shared_ptr<Reaper> reaper_ = std::make_shared<Reaper>();

  double event_budget_;
  uint64_t event_refill_ns_ = 0;
  uint64_t events_held_back_ = 0;  // since the last one that was let through

  double time_budget_ns_;  // of the control loop; below 0: the peer is not read for a while
  uint64_t time_refill_ns_ = 0;
  uint64_t throttled_ = 0;  // how often
  uint64_t throttle_told_ns_ = 0;
  EventLoop::TimerId rest_timer_ = 0;
};

Result<std::unique_ptr<Port>> make_vhostuser(const PortConfig& config, PortCounters counters);

}  // namespace sw
