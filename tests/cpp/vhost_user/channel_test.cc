// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/channel.h"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <memory>
#include <string>

#include "support/eventually.h"
#include "support/fuse_file.h"
#include "support/lingering.h"
#include "support/vhost_peer.h"

namespace sw {
namespace {

using testing::Lingering;
using testing::make_eventfd;
using testing::open_descriptors;
using testing::stream_pair;
using testing::VhostPeer;
using Receive = Channel::Receive;

struct Pair {
  Pair() : Pair(stream_pair()) {}
  explicit Pair(std::array<UniqueFd, 2> sockets) : channel(std::move(sockets[0])), peer(std::move(sockets[1])) {}
  Channel channel;
  VhostPeer peer;
};

std::vector<std::byte> set_features_bytes() {
  const uint64_t value = 0x1122334455667788;
  return VhostPeer::encode(2, kVhostVersion, 8, std::as_bytes(std::span(&value, 1)));
}

TEST_CASE("Channel: a message dribbled byte by byte arrives whole, and not before its last byte") {
  Pair pair;
  const auto bytes = set_features_bytes();
  VhostMessage message;
  for (size_t i = 0; i < bytes.size(); ++i) {
    CHECK(pair.channel.receive(message) == Receive::kAgain);
    REQUIRE(pair.peer.send_bytes(std::span(bytes).subspan(i, 1)));
  }
  REQUIRE(pair.channel.receive(message) == Receive::kMessage);
  CHECK(message.request == VhostRequest::kSetFeatures);
  CHECK(message.size == 8);
  CHECK(message.as<uint64_t>() == 0x1122334455667788);
  CHECK(pair.channel.receive(message) == Receive::kAgain);
}

TEST_CASE("Channel: a connection that ends at any byte of a message is closed, with a reason unless between messages") {
  const auto bytes = set_features_bytes();
  for (size_t cut = 0; cut < bytes.size(); ++cut) {
    CAPTURE(cut);
    Pair pair;
    if (cut != 0) REQUIRE(pair.peer.send_bytes(std::span(bytes).first(cut)));
    pair.peer.close();
    VhostMessage message;
    CHECK(pair.channel.receive(message) == Receive::kClosed);
    CHECK(pair.channel.error().what.empty() == (cut == 0));
  }
}

TEST_CASE(
    "Channel: descriptors belong to the message they came with, close on exec, and the next message has none of them") {
  Pair pair;
  const UniqueFd event = make_eventfd(7);
  const auto bytes = set_features_bytes();
  const std::array<int, 1> fds{event.get()};
  REQUIRE(pair.peer.send_bytes(bytes));
  REQUIRE(pair.peer.send_bytes(bytes, fds));
  REQUIRE(pair.peer.send_bytes(bytes));
  VhostMessage message;
  REQUIRE(pair.channel.receive(message) == Receive::kMessage);
  CHECK(message.fds.empty());
  REQUIRE(pair.channel.receive(message) == Receive::kMessage);
  REQUIRE(message.fds.size() == 1);
  CHECK((::fcntl(message.fds[0].get(), F_GETFD) & FD_CLOEXEC) != 0);
  CHECK(testing::drain_eventfd(message.fds[0].get()) == 7);
  REQUIRE(pair.channel.receive(message) == Receive::kMessage);
  CHECK(message.fds.empty());
}

TEST_CASE("Channel: what cannot be framed ends the connection and leaks no descriptor") {
  struct Row {
    const char* name;
    uint32_t flags;
    uint32_t announced;
    size_t fds;
  };
  const std::array<Row, 9> rows = {{{"version 0", 0, 8, 0},
                                    {"version 2", 2, 8, 0},
                                    {"version 3", 3, 8, 1},
                                    {"one byte too much", 1, kMaxPayloadBytes + 1, 1},
                                    {"4 GiB", 1, 0xffffffff, 0},
                                    {"2 GiB", 1, 0x80000000, 8},
                                    {"nine descriptors", 1, 8, 9},
                                    {"seventeen descriptors", 1, 8, 17},
                                    {"253 descriptors", 1, 8, 253}}};
  const UniqueFd event = make_eventfd();
  for (const Row& row : rows) {
    CAPTURE(row.name);
    const size_t before = open_descriptors();
    {
      Pair pair;
      const uint64_t value = 0;
      const auto bytes = VhostPeer::encode(2, row.flags, row.announced, std::as_bytes(std::span(&value, 1)));
      const std::vector<int> fds(row.fds, event.get());
      REQUIRE(pair.peer.send_bytes(bytes, fds));
      VhostMessage message;
      CHECK(pair.channel.receive(message) == Receive::kFailed);
      CHECK_FALSE(pair.channel.error().what.empty());
      CHECK(message.fds.empty());
    }
    CHECK(testing::eventually([&] { return open_descriptors() == before; }));  // what was not read goes elsewhere
  }
}

TEST_CASE("Channel: descriptors spread over header and payload are counted together") {
  Pair pair;
  const UniqueFd event = make_eventfd();
  const auto bytes = set_features_bytes();
  const std::vector<int> five(5, event.get());
  REQUIRE(pair.peer.send_bytes(std::span(bytes).first(12), five));
  REQUIRE(pair.peer.send_bytes(std::span(bytes).subspan(12), five));
  VhostMessage message;
  CHECK(pair.channel.receive(message) == Receive::kFailed);
}

TEST_CASE("Channel: descriptors whose close waits for the peer hold up nobody, read or not") {
  const auto reaper = std::make_shared<Reaper>();
  Lingering read;
  Lingering unread;
  {
    auto sockets = stream_pair();
    Channel channel(std::move(sockets[0]), reaper);
    const VhostPeer peer(std::move(sockets[1]));
    const std::array<int, 1> first{read.near.get()};
    const std::array<int, 1> second{unread.near.get()};
    REQUIRE(peer.send_bytes(set_features_bytes(), first));
    REQUIRE(peer.send_bytes(set_features_bytes(), second));
    read.near.reset();
    unread.near.reset();
    VhostMessage message;
    REQUIRE(channel.receive(message) == Receive::kMessage);
    CHECK(message.foreign.starts_with("socket:["));
    REQUIRE(message.fds.size() == 1);
    CHECK_FALSE(message.fds[0]);
    CHECK(reaper->pending() == 1);
  }
  CHECK(reaper->pending() == 2);
  read.end();
  unread.end();
  CHECK(testing::eventually([&] { return reaper->pending() == 0; }));
}

TEST_CASE("Channel: a file on FUSE is told by its place, closed elsewhere, and nobody waits for its server") {
  testing::FuseFile file;
  if (!file.ok()) return;
  file.hold_close();
  const auto reaper = std::make_shared<Reaper>();
  auto sockets = stream_pair();
  Channel channel(std::move(sockets[0]), reaper);
  const VhostPeer peer(std::move(sockets[1]));
  const std::array<int, 1> fds{file.fd.get()};
  REQUIRE(peer.send_bytes(set_features_bytes(), fds));
  VhostMessage message;
  REQUIRE(channel.receive(message) == Receive::kMessage);
  CHECK(message.foreign.ends_with("/memory"));
  CHECK(testing::eventually([&] { return file.asked == 1; }));  // the close, and no question before it
  CHECK(reaper->pending() == 1);
  file.let_close();
  CHECK(testing::eventually([&] { return reaper->pending() == 0; }));
}

TEST_CASE("Channel: a peer whose descriptors do not close is read no more, though others are") {
  const auto reaper = std::make_shared<Reaper>();
  std::vector<std::unique_ptr<Lingering>> kept;
  auto sockets = stream_pair();
  Channel channel(std::move(sockets[0]), reaper);
  const VhostPeer peer(std::move(sockets[1]));
  VhostMessage message;
  Receive got = Receive::kMessage;
  for (size_t i = 0; i < 2 * Reaper::kMostPending && got == Receive::kMessage; ++i) {
    kept.push_back(std::make_unique<Lingering>());
    const std::array<int, 1> fds{kept.back()->near.get()};
    REQUIRE(peer.send_bytes(set_features_bytes(), fds));
    kept.back()->near.reset();
    got = channel.receive(message);
  }
  CHECK(got == Receive::kFailed);
  CHECK(channel.error().what.find("wait to be closed") != std::string::npos);
  CHECK(kept.size() == Reaper::kMostPending);
  Pair other;
  REQUIRE(other.peer.send_bytes(set_features_bytes()));
  CHECK(other.channel.receive(message) == Receive::kMessage);
  for (const auto& lingering : kept) lingering->end();
  CHECK(testing::eventually([&] { return reaper->pending() == 0; }));
}

TEST_CASE("Channel: descriptors that this process has no room for end the connection") {
  const size_t before = open_descriptors();
  {
    Pair pair;
    const UniqueFd event = make_eventfd();
    const std::vector<int> fds(8, event.get());
    REQUIRE(pair.peer.send_bytes(set_features_bytes(), fds));
    rlimit limit{};
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &limit) == 0);
    // Room for three more: the lowest free numbers are where they would go.
    std::vector<UniqueFd> fillers;
    for (int i = 0; i < 3; ++i) fillers.emplace_back(::dup(event.get()));
    const rlimit tight{static_cast<rlim_t>(fillers.back().get() + 1), limit.rlim_max};
    fillers.clear();
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &tight) == 0);
    VhostMessage message;
    const Receive got = pair.channel.receive(message);
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK(got == Receive::kFailed);
    CHECK(pair.channel.error().what.find("no free ones") != std::string::npos);
  }
  CHECK(testing::eventually([&] { return open_descriptors() == before; }));
}

TEST_CASE("Channel: messages wait, in order and with their descriptors, while the peer does not read") {
  const size_t before = open_descriptors();
  {
    Pair pair;
    const int small = 1;
    REQUIRE(::setsockopt(pair.channel.fd(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
    const UniqueFd event = make_eventfd(5);
    uint64_t sent = 0;
    while (!pair.channel.want_write()) {
      REQUIRE(pair.channel.send(make_message(VhostRequest::kSetFeatures, sent)));
      REQUIRE(++sent < 100000);
    }
    const std::array<int, 1> fds{event.get()};
    REQUIRE(pair.channel.send(make_message(VhostRequest::kSetVringKick, sent), fds));
    ++sent;

    Channel reader(UniqueFd(::dup(pair.peer.fd())));
    VhostMessage message;
    uint64_t received = 0;
    bool with_fd = false;
    while (received < sent) {
      REQUIRE(pair.channel.flush());
      const Receive got = reader.receive(message);
      if (got == Receive::kAgain) continue;
      REQUIRE(got == Receive::kMessage);
      CHECK(message.as<uint64_t>() == received);
      if (!message.fds.empty()) with_fd = received == sent - 1 && testing::drain_eventfd(message.fds[0].get()) == 5;
      ++received;
    }
    CHECK(with_fd);
    CHECK_FALSE(pair.channel.want_write());
  }
  CHECK(open_descriptors() == before);
}

TEST_CASE("Channel: the queue for a peer that never reads is bounded") {
  Pair pair;
  bool refused = false;
  for (int i = 0; i < 1'000'000 && !refused; ++i) {
    refused = !pair.channel.send(make_message(VhostRequest::kSetFeatures, VhostMemTable{}));
  }
  CHECK(refused);
}

TEST_CASE("Channel: sending to a peer that is gone is an error and no signal") {
  Pair pair;
  pair.peer.close();
  CHECK_FALSE(pair.channel.send(make_message(VhostRequest::kGetFeatures)));
}

TEST_CASE("VhostRequest: every request has the spec's name") {
  CHECK(name(VhostRequest::kGetFeatures) == "GET_FEATURES");
  CHECK(name(VhostRequest::kSetVringEnable) == "SET_VRING_ENABLE");
  CHECK(name(VhostRequest::kGetStatus) == "GET_STATUS");
  CHECK(name(static_cast<VhostRequest>(45)) == "unknown");
  CHECK(protocol_feature_names(kProtocolMq | kProtocolStatus | 1ULL << 40) == "mq,status,bit40");
}

}  // namespace
}  // namespace sw
