// SPDX-License-Identifier: Apache-2.0
// What a peer of one port may take of what is for all: the control loop's time, descriptors that do not close.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "base/reaper.h"
#include "port/vhostuser_bed.h"
#include "support/lingering.h"
#include "vhost_user/features.h"

namespace sw {
namespace {

using testing::Lingering;
using testing::make_eventfd;
using testing::SharedFile;
using testing::VhostPeer;
using testing::VhostUserBed;

// What the port takes of its budget, beside the time that it needs: port/vhostuser.cc.
constexpr double kBurstNs = 1e9;
constexpr double kShare = 0.1;
constexpr double kPauseNs = 200'000;
constexpr double kConnectNs = 200'000;

class Since {
 public:
  [[nodiscard]] double budget_ns() const {
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - began_;
    return kBurstNs + took.count() * kShare;
  }

 private:
  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
};

TEST_CASE("VhostUserPort: a peer that keeps the control loop busy is read a part of the time") {
  const Since start;
  VhostUserBed bed;
  REQUIRE(bed.open());
  const SharedFile memory(1 << 20);
  VhostPeer peer = bed.dial();
  const UniqueFd kick = make_eventfd();
  const UniqueFd call = make_eventfd();
  const uint64_t at = memory.address();
  peer.send(VhostRequest::kSetFeatures, VhostUserBed::kFeatures);
  peer.send(VhostRequest::kSetMemTable, VhostMemTable{1, 0, {{{0, memory.size(), at, 0}}}}, {memory.fd()});
  peer.send(VhostRequest::kSetVringNum, VhostVringState{1, 256});
  peer.send(VhostRequest::kSetVringBase, VhostVringState{1, 0});
  peer.send(VhostRequest::kSetVringAddr, VhostVringAddr{1, 0, at, at + 0x4000, at + 0x8000, 0});
  peer.send(VhostRequest::kSetVringKick, uint64_t{1}, {kick.get()});
  REQUIRE(bed.reaches("enable"));
  CHECK(bed.counter("throttled") == 0);
  // Every one of these is a change of a running ring, which pauses the port.
  const uint64_t before = bed.counter("messages");
  uint64_t most_at_once = 0;
  const auto flap = [&, seen = before]() mutable {
    while (peer.send(VhostRequest::kSetVringCall, uint64_t{1}, {call.get()})) {
    }
    most_at_once = std::max(most_at_once, bed.counter("messages") - seen);
    seen = bed.counter("messages");
    return bed.counter("throttled") > 0;
  };
  REQUIRE(bed.host.until(flap));
  const auto pauses = static_cast<double>(bed.counter("messages") - before - most_at_once);
  CHECK(pauses * kPauseNs <= start.budget_ns());
  CHECK(bed.stage() == "enable");  // it is slowed, not sent away
  CHECK(bed.host.count("throttled") == 1);
  const uint64_t then = bed.counter("messages");
  CHECK(bed.host.until([&] { return bed.counter("messages") > then; }));
  peer.close();
  CHECK(bed.reaches("waiting_for_peer"));
}

TEST_CASE("VhostUserPort: who connects all the time is let in a part of the time") {
  const Since start;
  VhostUserBed bed;
  REQUIRE(bed.open());
  const VhostPeer first = bed.dial();
  constexpr uint64_t kAtOnce = 4;  // as many as the kernel keeps for us
  uint64_t sent_away = 0;
  bool waits = false;
  while (!waits && sent_away < 100'000) {
    std::vector<UniqueFd> crowd;
    for (uint64_t i = 0; i < kAtOnce; ++i) {
      auto socket = connect_unix(bed.config.socket);
      REQUIRE(socket);
      crowd.push_back(std::move(*socket));
    }
    bed.host.turn();
    waits = bed.counter("refused") != sent_away + kAtOnce;
    sent_away = bed.counter("refused");
  }
  CHECK(waits);
  CHECK(static_cast<double>(sent_away - std::min(sent_away, kAtOnce)) * kConnectNs <= start.budget_ns());
  first.send(VhostRequest::kGetFeatures);
  CHECK(bed.host.until([&] { return first.receive().has_value(); }));
  CHECK(bed.host.until([&] { return bed.counter("refused") > sent_away; }));
}

size_t count_descriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

// The first descriptor does not close, and the others wait behind it.
std::vector<int> that_do_not_close(const Lingering& lingering, const UniqueFd& null) {
  std::vector<int> fds(8, null.get());
  fds[0] = lingering.near.get();
  return fds;
}

TEST_CASE("VhostUserPort: who gave us what does not close is not let in until it is closed, others are") {
  VhostUserBed bed;
  VhostUserBed other;
  REQUIRE(bed.open());
  REQUIRE(other.open());
  Lingering lingering;
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (size_t i = 0; i < Reaper::kMostPending / 8; ++i) {
    const VhostPeer peer = bed.dial();
    peer.send(VhostRequest::kSetOwner, that_do_not_close(lingering, null));
    lingering.near.reset(::dup(null.get()));  // ours was the last but one
    REQUIRE(bed.host.until([&] { return peer.hung_up(); }));
  }
  const uint64_t connects = bed.counter("connects");
  auto socket = connect_unix(bed.config.socket);
  REQUIRE(socket);
  const VhostPeer unwanted(std::move(*socket));
  unwanted.send(VhostRequest::kGetFeatures);
  CHECK(bed.host.until([&] { return bed.detail().find("still wait to be closed") != std::string::npos; }));
  const size_t descriptors = count_descriptors();
  for (int i = 0; i < 1000; ++i) {  // who leaves a byte unread costs a descriptor until it is closed
    const auto another = connect_unix(bed.config.socket);
    if (another) (void)::send(another->get(), "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    bed.host.turn();
  }
  CHECK(count_descriptors() <= descriptors + 2);
  CHECK(bed.counter("connects") == connects);
  const VhostPeer neighbour = other.dial();
  neighbour.send(VhostRequest::kGetFeatures);
  CHECK(other.host.until([&] { return neighbour.receive().has_value(); }));
  lingering.end();
  CHECK(testing::eventually([] { return Reaper::pending_everywhere() == 0; }));
  CHECK(bed.host.until([&] { return unwanted.receive().has_value(); }));
}

TEST_CASE("VhostUserPort: a peer that listens and gave us what does not close is left until it is closed") {
  VhostUserBed bed(false);
  auto listener = UnixListener::open(bed.config.socket, -1, -1);
  REQUIRE(listener);
  REQUIRE(bed.open());
  Lingering lingering;
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const auto accepted = [&] {
    std::optional<VhostPeer> peer;
    REQUIRE(bed.host.until([&] {
      auto socket = listener->accept();
      if (socket) peer.emplace(std::move(*socket));
      return peer.has_value();
    }));
    return std::move(*peer);
  };
  {
    const VhostPeer peer = accepted();
    peer.send(VhostRequest::kSetProtocolFeatures, offered_protocol_features());
    for (size_t i = 0; i < Reaper::kMostPending / 8; ++i) {
      // Refused with an answer, after which the connection goes on.
      peer.send(VhostRequest::kSetOwner, that_do_not_close(lingering, null), kVhostVersion | kVhostFlagNeedReply);
      lingering.near.reset(::dup(null.get()));
    }
    CHECK(bed.host.until([&] { return peer.hung_up(); }));
  }
  const uint64_t connects = bed.counter("connects");
  CHECK(bed.host.until([&] { return bed.host.count("waiting") == 1; }));
  CHECK_FALSE(listener->accept());
  CHECK(bed.counter("connects") == connects);
  CHECK(bed.detail().find("still wait to be closed") != std::string::npos);
  lingering.end();
  (void)accepted();
  CHECK(bed.host.until([&] { return bed.counter("connects") > connects; }));
}

TEST_CASE("VhostUserPort: what a second peer leaves unread is closed elsewhere") {
  VhostUserBed bed;
  REQUIRE(bed.open());
  const VhostPeer first = bed.dial();
  Lingering lingering;
  auto socket = connect_unix(bed.config.socket);
  REQUIRE(socket);
  const VhostPeer second(std::move(*socket));
  second.send(VhostRequest::kSetOwner, {lingering.near.get()});
  lingering.near.reset();
  CHECK(bed.host.until([&] { return bed.counter("refused") == 1; }));
  CHECK(second.hung_up());
  CHECK(Reaper::pending_everywhere() > 0);
  lingering.end();
  CHECK(testing::eventually([] { return Reaper::pending_everywhere() == 0; }));
}

}  // namespace
}  // namespace sw
