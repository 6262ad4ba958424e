// SPDX-License-Identifier: Apache-2.0
// A host for one port: an event loop in the test's own thread, events on record, and a watch that live queues change
// only while the port is paused.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "port/port.h"
#include "support/eventually.h"

namespace sw::testing {

class PortBed : public PortHost {
 public:
  EventLoop& loop() override { return loop_; }
  void pause(Port& port) override {
    if (depth_++ == 0) check_unchanged(port);
  }
  void resume(Port& port) override {
    REQUIRE(depth_ > 0);
    if (--depth_ == 0) publish(port);
  }
  void event(Port&, const std::string& kind, const std::string& detail) override { events.emplace_back(kind, detail); }

  void publish(const Port& port) {
    rx = port.rx_queues();
    tx = port.tx_queues();
  }
  void check_unchanged(const Port& port) const {
    CHECK(port.rx_queues() == rx);
    CHECK(port.tx_queues() == tx);
  }
  [[nodiscard]] size_t count(const std::string& kind) const {
    return static_cast<size_t>(
        std::count_if(events.begin(), events.end(), [&](const auto& e) { return e.first == kind; }));
  }

  void turn(int timeout_ms = 0) {
    loop_.run_once(timeout_ms, [](const std::function<void()>& callbacks) { callbacks(); });
  }
  // Run the loop until `done`; false after ten seconds without.
  bool until(const std::function<bool()>& done) {
    for (Patience patience; !done();) {
      if (patience.over()) return false;
      turn(5);
    }
    return true;
  }

  std::vector<RxQueue*> rx;  // as published
  std::vector<TxQueue*> tx;
  std::vector<std::pair<std::string, std::string>> events;

 private:
  EventLoop loop_;
  int depth_ = 0;
};

}  // namespace sw::testing
