// SPDX-License-Identifier: Apache-2.0
#include "port/vhostuser.h"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <array>
#include <filesystem>
#include <optional>

#include "support/eventually.h"
#include "support/port_bed.h"
#include "support/temp_dir.h"
#include "support/vhost_peer.h"
#include "vhost_user/features.h"
#include "vhost_user/guest.h"
#include "virtio/spec.h"

namespace sw {
namespace {

using testing::make_eventfd;
using testing::open_descriptors;
using testing::PortBed;
using testing::SharedFile;
using testing::TempDir;
using testing::VhostPeer;

constexpr uint64_t kPlainFeatures = feature_mask(VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES);

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(static_cast<char*>(address.sun_path), path.size());
  return address;
}

// One port on one socket.
struct Bed {
  explicit Bed(bool switch_owns = true, uint32_t queues = 2) : rx_counters(queues), tx_counters(queues) {
    config.name = "vm1";
    config.type = "vhostuser";
    config.socket = dir.file("vm1.sock");
    config.socket_owner_switch = switch_owns;
    config.queues = queues;
  }
  ~Bed() {
    if (port) port->close();
  }
  Bed(const Bed&) = delete;
  Bed& operator=(const Bed&) = delete;

  Result<void> open() {
    auto made = make_vhostuser(config, {rx_counters, tx_counters});
    if (!made) return made.error();
    port = std::move(*made);
    auto opened = port->open(host);
    if (!opened) port.reset();
    return opened;
  }
  [[nodiscard]] std::string stage() const { return port->status().stage; }
  [[nodiscard]] std::string detail() const { return port->status().detail; }
  [[nodiscard]] uint64_t counter(const char* name) const { return port->status().counters.at(name); }
  // A front-end by hand on our socket, accepted.
  VhostPeer dial() {
    const uint64_t before = counter("connects");
    auto socket = connect_unix(config.socket);
    REQUIRE(socket);
    VhostPeer peer(std::move(*socket));
    REQUIRE(host.until([&] { return counter("connects") == before + 1; }));
    return peer;
  }
  bool reaches(const std::string& wanted) {
    return host.until([&] { return stage() == wanted; });
  }

  TempDir dir;
  PortBed host;
  PortConfig config;
  std::vector<QueueCounters> rx_counters, tx_counters;
  std::unique_ptr<Port> port;
};

TEST_CASE("VhostUserPort: the status names each stage of the handshake, and what to do while it is stuck") {
  Bed bed;
  REQUIRE(bed.open());
  const auto stuck = [&](const char* stage, const char* hint) {
    CAPTURE(stage);
    CHECK(bed.reaches(stage));
    CHECK(bed.stage() == stage);
    CHECK(bed.detail().find(hint) != std::string::npos);
    CHECK_FALSE(bed.port->status().up);
  };
  stuck("waiting_for_peer", "start the guest with this socket");
  const SharedFile memory(1 << 20);
  const UniqueFd event = make_eventfd();
  const VhostPeer peer = bed.dial();
  stuck("connected", "says nothing");
  peer.send(VhostRequest::kSetProtocolFeatures, offered_protocol_features());
  stuck("negotiating", "driver is not loaded");
  peer.send(VhostRequest::kSetFeatures, kPlainFeatures);
  stuck("memory", "share=on");
  VhostMemTable table{1, 0, {}};
  table.regions[0] = {0, memory.size(), memory.address(), 0};
  peer.send(VhostRequest::kSetMemTable, table, {memory.fd()});
  stuck("rings", "driver is not loaded");
  peer.send(VhostRequest::kSetVringNum, VhostVringState{1, 256});
  peer.send(VhostRequest::kSetVringBase, VhostVringState{1, 0});
  peer.send(VhostRequest::kSetVringAddr,
            VhostVringAddr{1, 0, memory.address(), memory.address() + 0x8000, memory.address() + 0x4000, 0});
  CHECK(bed.host.until([&] { return bed.detail().find("transmitq 0) waits for its kick") != std::string::npos; }));
  peer.send(VhostRequest::kSetVringKick, uint64_t{1}, {event.get()});
  stuck("enable", "ip link set");
  peer.send(VhostRequest::kSetVringEnable, VhostVringState{1, 1});
  CHECK(bed.reaches("running"));

  const PortStatus status = bed.port->status();
  CHECK(status.up);
  CHECK(status.detail.empty());
  CHECK(status.facts.at("socket") == bed.config.socket);
  CHECK(status.facts.at("socket_owner") == "switch");
  CHECK(status.facts.at("negotiated_features") == "protocol_features,version_1");
  CHECK(status.facts.at("protocol_features").find("reply_ack") != std::string::npos);
  CHECK(status.facts.at("memory_regions") == "1");
  CHECK(status.facts.at("memory_bytes") == "1048576");
  REQUIRE(status.rings.size() == 2);
  CHECK(status.rings[1].name == "rx0");
  CHECK(status.rings[1].facts.at("guest_queue") == "transmitq0");
  CHECK(status.rings[1].facts.at("size") == "256");
  CHECK(status.rings[1].facts.at("layout") == "split");
  CHECK(status.rings[1].facts.at("started") == "yes");
  CHECK(status.rings[0].facts.at("started") == "no");
}

TEST_CASE("VhostUserPort: an honest guest's frames pass both ways, split and packed, whoever owns the socket") {
  for (const bool switch_owns : {true, false}) {
    for (const bool packed : {false, true}) {
      CAPTURE(switch_owns);
      CAPTURE(packed);
      Bed bed(switch_owns, 1);
      REQUIRE(bed.open());
      GuestOptions options;
      options.socket = bed.config.socket;
      options.listen = !switch_owns;
      options.packed = packed;
      Guest guest(options);
      REQUIRE(guest.start());
      REQUIRE(bed.host.until([&] { return bed.host.rx.size() == 1 && bed.host.tx.size() == 1; }));
      REQUIRE(bed.host.until([&] { return guest.wait_ready(0); }));
      const std::array<uint8_t, 64> frame = {0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x88, 0xb5, 42};
      REQUIRE(guest.send(frame, 0, {}, 1000));
      const auto batch = std::make_unique<Batch>();
      PortWorkerCounters drops;
      REQUIRE(bed.host.until([&] { return bed.host.rx[0]->peek(*batch, drops); }));
      REQUIRE(batch->count == 1);
      CHECK(std::equal(frame.begin(), frame.end(), batch->frames[0].head));
      const std::array<uint8_t, 1> index = {0};
      CHECK(bed.host.tx[0]->send(*batch, index, drops) == 1);
      full_fence();
      bed.host.tx[0]->notify();
      bed.host.rx[0]->release();
      const auto back = guest.receive(5000);
      REQUIRE(back);
      CHECK(std::equal(frame.begin(), frame.end(), back->bytes.begin(), back->bytes.end()));
      CHECK(bed.rx_counters[0].frames.get() == 1);
      CHECK(bed.tx_counters[0].frames.get() == 1);
      guest.stop();
      CHECK(bed.host.until([&] { return bed.counter("disconnects") == 1; }));
      CHECK(bed.host.rx.empty());
      CHECK(bed.host.tx.empty());
      // And again: nobody has to touch anything.
      REQUIRE(guest.start());
      REQUIRE(bed.host.until([&] { return bed.host.rx.size() == 1 && bed.host.tx.size() == 1; }));
      REQUIRE(bed.host.until([&] { return guest.wait_ready(0); }));
      guest.stop();
    }
  }
}

TEST_CASE("VhostUserPort: a second peer is sent away and the first does not notice") {
  Bed bed;
  REQUIRE(bed.open());
  const VhostPeer first = bed.dial();
  auto socket = connect_unix(bed.config.socket);
  REQUIRE(socket);
  const VhostPeer second(std::move(*socket));
  CHECK(bed.host.until([&] { return second.hung_up(); }));
  CHECK(bed.counter("refused") == 1);
  CHECK(bed.host.count("refused") == 1);
  CHECK_FALSE(first.hung_up());
  first.send(VhostRequest::kGetFeatures);
  CHECK(bed.host.until([&] { return first.receive().has_value(); }));
}

TEST_CASE("VhostUserPort: a peer that comes back before its end was noticed is served") {
  Bed bed;
  REQUIRE(bed.open());
  VhostPeer first = bed.dial();
  first.send(VhostRequest::kSetOwner);
  first.close();
  const VhostPeer second = bed.dial();  // both are seen in the same round of the loop
  second.send(VhostRequest::kGetFeatures);
  CHECK(bed.host.until([&] { return second.receive().has_value(); }));
  CHECK(bed.counter("refused") == 0);
  CHECK(bed.counter("disconnects") == 1);
}

TEST_CASE("VhostUserPort: a thousand connections leave nothing behind, and their events are held back") {
  Bed bed;
  REQUIRE(bed.open());
  const UniqueFd event = make_eventfd();
  bed.host.turn();
  const size_t before = open_descriptors();
  for (int i = 0; i < 1000; ++i) {
    const VhostPeer peer = bed.dial();
    if (i % 3 == 0) peer.send(VhostRequest::kSetVringCall, uint64_t{0}, {event.get()});
    if (i % 3 == 1) peer.send_raw(2, kVhostVersion, {}, std::array{event.get()});
  }
  CHECK(bed.host.until([&] { return bed.counter("disconnects") == 1000; }));
  CHECK(testing::eventually([&] { return open_descriptors() == before; }));
  CHECK(bed.host.events.size() < 200);
  CHECK(bed.stage() == "waiting_for_peer");
}

TEST_CASE("VhostUserPort: a peer that breaks the protocol is disconnected with a reason, and may come again") {
  Bed bed;
  REQUIRE(bed.open());
  {
    const VhostPeer peer = bed.dial();
    peer.send(VhostRequest::kSetVringNum, VhostVringState{9, 256});
    CHECK(bed.host.until([&] { return peer.hung_up(); }));
  }
  CHECK(bed.reaches("waiting_for_peer"));
  CHECK(bed.detail().find("raise `queues`") != std::string::npos);
  CHECK(bed.port->status().facts.at("last_disconnect").find("SET_VRING_NUM") == 0);
  CHECK(bed.counter("errors") == 1);
  const VhostPeer again = bed.dial();
  again.send(VhostRequest::kGetFeatures);
  CHECK(bed.host.until([&] { return again.receive().has_value(); }));
}

TEST_CASE("VhostUserPort: a peer that keeps the control loop busy is read a part of the time") {
  Bed bed;
  REQUIRE(bed.open());
  const SharedFile memory(1 << 20);
  VhostPeer peer = bed.dial();
  const UniqueFd kick = make_eventfd();
  const UniqueFd call = make_eventfd();
  const uint64_t at = memory.address();
  peer.send(VhostRequest::kSetFeatures, kPlainFeatures);
  peer.send(VhostRequest::kSetMemTable, VhostMemTable{1, 0, {{{0, memory.size(), at, 0}}}}, {memory.fd()});
  peer.send(VhostRequest::kSetVringNum, VhostVringState{1, 256});
  peer.send(VhostRequest::kSetVringBase, VhostVringState{1, 0});
  peer.send(VhostRequest::kSetVringAddr, VhostVringAddr{1, 0, at, at + 0x4000, at + 0x8000, 0});
  peer.send(VhostRequest::kSetVringKick, uint64_t{1}, {kick.get()});
  REQUIRE(bed.reaches("enable"));
  CHECK(bed.counter("throttled") == 0);
  // Every one of these is a change of a running ring, which pauses the port.
  const auto flap = [&] {
    while (peer.send(VhostRequest::kSetVringCall, uint64_t{1}, {call.get()})) {
    }
    return bed.counter("throttled") > 0;
  };
  REQUIRE(bed.host.until(flap));
  CHECK(bed.stage() == "enable");  // it is slowed, not sent away
  const uint64_t then = bed.counter("messages");
  CHECK(bed.host.until([&] { return bed.counter("messages") > then; }));
  peer.close();
  CHECK(bed.reaches("waiting_for_peer"));
}

TEST_CASE("VhostUserPort: what is offered does not depend on the connection") {
  Bed bed;
  bed.config.packed = false;
  REQUIRE(bed.open());
  std::optional<uint64_t> offered;
  for (int i = 0; i < 3; ++i) {
    const VhostPeer peer = bed.dial();
    peer.send(VhostRequest::kGetFeatures);
    std::optional<VhostMessage> reply;
    REQUIRE(bed.host.until([&] { return (reply = peer.receive()).has_value(); }));
    if (!offered) offered = reply->as<uint64_t>();
    CHECK(reply->as<uint64_t>() == *offered);
  }
  CHECK_FALSE(has_feature(*offered, VIRTIO_F_RING_PACKED));
}

TEST_CASE("VhostUserPort: connects for ever, says why it cannot, and connects again after an end") {
  Bed bed(false);
  REQUIRE(bed.open());
  CHECK(bed.stage() == "waiting_for_peer");
  CHECK(bed.detail().find("does not exist") != std::string::npos);
  CHECK(bed.host.count("waiting") == 1);
  for (int round = 0; round < 3; ++round) {
    auto listener = UnixListener::open(bed.config.socket, -1, -1);
    REQUIRE(listener);
    std::optional<VhostPeer> peer;
    REQUIRE(bed.host.until([&] {
      auto accepted = listener->accept();
      if (accepted) peer.emplace(std::move(*accepted));
      return peer.has_value();
    }));
    CHECK(bed.reaches("connected"));
    peer->send(VhostRequest::kGetFeatures);
    CHECK(bed.host.until([&] { return peer->receive().has_value(); }));
    listener->close();
    peer->close();
    CHECK(bed.host.until([&] { return bed.detail().find("does not exist") != std::string::npos; }));
  }
  CHECK(bed.counter("connects") == 3);
  CHECK(bed.counter("disconnects") == 3);
}

TEST_CASE("VhostUserPort: names what a connection attempt met") {
  Bed bed(false);
  {
    // A socket file whose listener is gone.
    const UniqueFd dead(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_un address = address_of(bed.config.socket);
    REQUIRE(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  }
  REQUIRE(bed.open());
  CHECK(bed.stage() == "waiting_for_peer");
  CHECK(bed.detail().find("nobody listens") != std::string::npos);
}

TEST_CASE("VhostUserPort: opening fails with a remedy, and leaves nothing behind") {
  const size_t before = open_descriptors();
  {
    Bed bed;
    bed.config.socket = bed.dir.file("missing/vm1.sock");
    auto opened = bed.open();
    REQUIRE_FALSE(opened);
    CHECK(opened.error().what.find("create it") != std::string::npos);
  }
  {
    Bed bed;
    bed.config.socket = "/tmp/" + std::string(120, 'x');
    REQUIRE_FALSE(bed.open());
  }
  {
    Bed bed;
    Bed other;
    other.config.socket = bed.config.socket;
    REQUIRE(bed.open());
    auto opened = other.open();
    REQUIRE_FALSE(opened);
    CHECK(opened.error().code == EADDRINUSE);
  }
  CHECK(testing::eventually([&] { return open_descriptors() == before; }));
}

TEST_CASE("VhostUserPort: the socket has the configured mode, and close() removes it") {
  Bed bed;
  bed.config.socket_mode = 0600;
  REQUIRE(bed.open());
  struct stat info{};
  REQUIRE(::stat(bed.config.socket.c_str(), &info) == 0);
  CHECK((info.st_mode & 07777U) == 0600U);
  const VhostPeer peer = bed.dial();
  bed.port->close();
  CHECK_FALSE(std::filesystem::exists(bed.config.socket));
  CHECK(peer.hung_up());
}

TEST_CASE("VhostUserPort: a connection that this process has no descriptor for waits until there is one") {
  Bed bed;
  REQUIRE(bed.open());
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_un address = address_of(bed.config.socket);
  REQUIRE(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  rlimit limit{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &limit) == 0);
  const rlimit none{3, limit.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  for (int i = 0; i < 5; ++i) bed.host.turn();
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
  CHECK(bed.counter("connects") == 0);
  CHECK(bed.host.count("error") == 1);  // not one for every turn of the loop
  CHECK(bed.host.until([&] { return bed.counter("connects") == 1; }));
}

}  // namespace
}  // namespace sw
