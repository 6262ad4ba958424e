// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/frontend.h"

#include <algorithm>
#include <string>
#include <vector>

#include "support/echo_device.h"
#include "support/temp_dir.h"
#include "support/vhost_peer.h"
#include "virtio/driver_device.h"
#include "virtio/spec.h"

namespace sw::testing {
namespace {

constexpr uint64_t kBasic = feature_mask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF);
constexpr uint64_t kPacked = kBasic | feature_mask(VIRTIO_F_RING_PACKED);

// Makes queues when asked, and keeps account of the calls.
class Owner : public FrontendOwner {
 public:
  Result<const DriverMemory*> negotiated(uint64_t features, uint32_t pairs) override {
    CHECK_FALSE(device);
    ++negotiations;
    if (refuse) return Error{ENOMEM, "make rings"};
    DriverMemoryOptions options;
    options.features = features;
    options.queue_pairs = pairs;
    options.ring_size = 64;
    options.huge = HugePages::kOff;
    auto made = DriverDevice::make(options, rx_counters, tx_counters);
    REQUIRE_MESSAGE(static_cast<bool>(made), made.error().message());
    device = std::move(*made);
    return &device->memory();
  }
  void running() override { ++times_running; }
  void lost(const std::string& why) override {
    CHECK(negotiations == losses.size() + 1);
    losses.push_back(why);
    device.reset();
  }

  // Send a frame on queue `q` and wait until it comes back.
  bool echo(EventLoop& loop, EchoDevice& switch_side, size_t q) {
    auto batch = std::make_unique<Batch>();
    Frame& frame = batch->frames[0];
    frame = {};
    frame.len = frame.head_len = 60;
    frame.head[0] = 2;
    frame.head[59] = static_cast<uint8_t>(q + 7);
    batch->count = 1;
    const uint8_t first = 0;
    if (device->tx()[q]->send(*batch, {&first, 1}, drops) != 1) return false;
    return run_until(loop, [&] {
      switch_side.pass();
      batch->clear();
      if (!device->rx()[q]->peek(*batch, drops)) return false;
      device->rx()[q]->release();
      return batch->count == 1 && batch->frames[0].len == 60 && batch->frames[0].head[59] == q + 7;
    });
  }

  bool refuse = false;
  size_t negotiations = 0;
  int times_running = 0;
  std::vector<std::string> losses;
  std::unique_ptr<DriverDevice> device;
  PortWorkerCounters drops;
  std::array<QueueCounters, 4> rx_counters;
  std::array<QueueCounters, 4> tx_counters;
};

FrontendConfig config_for(const std::string& path, uint64_t features, uint32_t pairs = 1, bool listen = false) {
  FrontendConfig config;
  config.socket = path;
  config.listen = listen;
  config.features = features;
  config.required = features;
  config.queue_pairs = pairs;
  return config;
}

bool run_until_running(EventLoop& loop, const Frontend& frontend) {
  return run_until(loop, [&] { return frontend.stage() == Frontend::Stage::kRunning; });
}

// A back-end by hand: answers what it is told to.
struct ManualBackend {
  ManualBackend() {
    auto opened = UnixListener::open(path, -1, -1);
    REQUIRE(static_cast<bool>(opened));
    listener = std::move(*opened);
  }
  void accept(EventLoop& loop) {
    REQUIRE(run_until(loop, [&] {
      auto connection = listener.accept();
      if (!connection) return false;
      peer.emplace(std::move(*connection));
      return true;
    }));
  }
  std::optional<VhostMessage> next(EventLoop& loop) {
    std::optional<VhostMessage> message;
    run_until(loop, [&] { return (message = peer->receive()).has_value(); });
    return message;
  }
  void answer(VhostRequest request, uint64_t value) { peer->send(request, value, {}, kVhostVersion | kVhostFlagReply); }
  TempDir directory;
  std::string path = directory.file("s");
  UnixListener listener;
  std::optional<VhostPeer> peer;
};

}  // namespace

TEST_CASE("Frontend: takes a back-end into service, split and packed, one queue pair and several") {
  for (const uint64_t features : {kBasic, kPacked, kPacked | feature_mask(VIRTIO_F_IN_ORDER, VIRTIO_F_EVENT_IDX),
                                  feature_mask(VIRTIO_F_VERSION_1), uint64_t{0}}) {
    for (const uint32_t pairs : {1U, 2U, 4U}) {
      CAPTURE(features);
      CAPTURE(pairs);
      TempDir directory;
      EventLoop loop;
      EchoDevice device(loop, offered_features({}), 4);
      device.listen(directory.file("s"));
      Owner owner;
      Frontend frontend(loop, config_for(directory.file("s"), features, pairs), owner);
      REQUIRE(static_cast<bool>(frontend.open()));
      REQUIRE(run_until_running(loop, frontend));
      CHECK(owner.times_running == 1);
      CHECK((frontend.features() & ~feature_mask(VIRTIO_NET_F_MQ)) == features);
      CHECK(frontend.queue_pairs() == pairs);
      CHECK(frontend.detail() == "");
      for (size_t q = 0; q < pairs; ++q) CHECK(owner.echo(loop, device, q));
    }
  }
}

TEST_CASE("Frontend: waits for a back-end that is not there yet and says so") {
  TempDir directory;
  EventLoop loop;
  Owner owner;
  Frontend frontend(loop, config_for(directory.file("s"), kBasic), owner);
  REQUIRE(static_cast<bool>(frontend.open()));
  CHECK(std::string(frontend.stage_name()) == "waiting_for_peer");
  CHECK(frontend.detail().find(directory.file("s")) != std::string::npos);
  EchoDevice device(loop, offered_features({}));
  device.listen(directory.file("s"));
  CHECK(run_until_running(loop, frontend));
  CHECK(owner.echo(loop, device, 0));
}

TEST_CASE("Frontend: listens for a back-end that connects, and for the next one") {
  TempDir directory;
  EventLoop loop;
  Owner owner;
  Frontend frontend(loop, config_for(directory.file("s"), kPacked, 1, true), owner);
  REQUIRE(static_cast<bool>(frontend.open()));
  for (int round = 1; round <= 3; ++round) {
    EchoDevice device(loop, offered_features({}));
    REQUIRE(device.connect(directory.file("s")));
    REQUIRE(run_until(loop, [&] { return owner.times_running == round; }));
    CHECK(owner.echo(loop, device, 0));
  }
}

TEST_CASE("Frontend: after a disconnect everything is set up afresh, for ever") {
  TempDir directory;
  EventLoop loop;
  Owner owner;
  EchoDevice device(loop, offered_features({}));
  device.listen(directory.file("s"));
  Frontend frontend(loop, config_for(directory.file("s"), kBasic), owner);
  REQUIRE(static_cast<bool>(frontend.open()));
  for (int round = 1; round <= 4; ++round) {
    REQUIRE(run_until(loop, [&] { return owner.times_running == round; }));
    CHECK(owner.echo(loop, device, 0));
    device.disconnect();
    REQUIRE(run_until(loop, [&] { return owner.losses.size() == static_cast<size_t>(round); }));
    CHECK_FALSE(owner.device);
  }
  CHECK(owner.losses.front() == "the back-end closed the connection");
}

TEST_CASE("Frontend: close and restart end the connection once") {
  TempDir directory;
  EventLoop loop;
  Owner owner;
  EchoDevice device(loop, offered_features({}));
  device.listen(directory.file("s"));
  Frontend frontend(loop, config_for(directory.file("s"), kBasic), owner);
  REQUIRE(static_cast<bool>(frontend.open()));
  REQUIRE(run_until_running(loop, frontend));
  frontend.restart("because");
  CHECK(owner.losses == std::vector<std::string>{"because"});
  REQUIRE(run_until_running(loop, frontend));
  frontend.close();
  frontend.close();
  CHECK(owner.losses.size() == 2);
  CHECK(std::string(frontend.stage_name()) == "closed");
}

TEST_CASE("Frontend: names the features that the back-end lacks") {
  TempDir directory;
  EventLoop loop;
  Owner owner;
  EchoDevice device(loop, offered_features({.packed = false}));
  device.listen(directory.file("s"));
  Frontend frontend(loop, config_for(directory.file("s"), kPacked), owner);
  REQUIRE(static_cast<bool>(frontend.open()));
  CHECK(run_until(loop, [&] { return frontend.detail().find("ring_packed") != std::string::npos; }));
  CHECK(owner.negotiations == 0);
}

TEST_CASE("Frontend: uses the queue pairs that the back-end has and says when they are fewer") {
  ManualBackend backend;
  EventLoop loop;
  Owner owner;
  FrontendConfig config = config_for(backend.path, kBasic, 4);
  Frontend frontend(loop, config, owner);
  REQUIRE(static_cast<bool>(frontend.open()));
  backend.accept(loop);
  const uint64_t offered = kBasic | feature_mask(VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_NET_F_MQ);
  std::vector<VhostRequest> seen;
  while (frontend.stage() != Frontend::Stage::kRunning) {
    auto message = backend.next(loop);
    REQUIRE(message.has_value());
    seen.push_back(message->request);
    switch (message->request) {
      case VhostRequest::kGetFeatures:
        backend.answer(message->request, offered);
        break;
      case VhostRequest::kGetProtocolFeatures:
        backend.answer(message->request, kProtocolMq);
        break;
      case VhostRequest::kGetQueueNum:
        backend.answer(message->request, 2);
        break;
      case VhostRequest::kSetFeatures:
        CHECK(message->as<uint64_t>() == offered);
        break;
      default:
        CHECK_FALSE(message->needs_reply());  // REPLY_ACK was not offered
    }
    if (seen.size() > 1 && message->request == VhostRequest::kGetFeatures) {
      run_until(loop, [&] { return frontend.stage() == Frontend::Stage::kRunning; }, 50);
    }
  }
  CHECK(frontend.queue_pairs() == 2);
  CHECK(frontend.detail().find("2 of 4") != std::string::npos);
  CHECK(std::count(seen.begin(), seen.end(), VhostRequest::kSetVringEnable) == 4);
  CHECK(std::count(seen.begin(), seen.end(), VhostRequest::kGetFeatures) == 2);
  const auto kick = std::find(seen.begin(), seen.end(), VhostRequest::kSetVringKick);
  CHECK(std::find(seen.begin(), kick, VhostRequest::kSetVringAddr) != kick);
  CHECK(std::find(seen.begin(), kick, VhostRequest::kSetMemTable) != kick);
}

TEST_CASE("Frontend: a back-end without protocol features gets one pair and no ENABLE") {
  ManualBackend backend;
  EventLoop loop;
  Owner owner;
  Frontend frontend(loop, config_for(backend.path, kBasic, 2), owner);
  REQUIRE(static_cast<bool>(frontend.open()));
  backend.accept(loop);
  int questions = 0;
  while (questions < 2) {
    auto message = backend.next(loop);
    REQUIRE(message.has_value());
    CHECK(message->request != VhostRequest::kSetVringEnable);
    CHECK(message->request != VhostRequest::kGetProtocolFeatures);
    if (message->request != VhostRequest::kGetFeatures) continue;
    ++questions;
    backend.answer(message->request, kBasic | feature_mask(VIRTIO_NET_F_MQ));
  }
  CHECK(run_until_running(loop, frontend));
  CHECK(frontend.queue_pairs() == 1);
}

TEST_CASE("Frontend: a refused message is named") {
  ManualBackend backend;
  EventLoop loop;
  Owner owner;
  Frontend frontend(loop, config_for(backend.path, kBasic), owner);
  REQUIRE(static_cast<bool>(frontend.open()));
  backend.accept(loop);
  while (owner.losses.empty()) {
    auto message = backend.next(loop);
    REQUIRE(message.has_value());
    if (message->request == VhostRequest::kGetFeatures) {
      backend.answer(message->request, kBasic | feature_mask(VHOST_USER_F_PROTOCOL_FEATURES));
    } else if (message->request == VhostRequest::kGetProtocolFeatures) {
      backend.answer(message->request, kProtocolReplyAck);
    } else if (message->needs_reply()) {
      const bool refuse = message->request == VhostRequest::kSetMemTable;
      backend.answer(message->request, refuse ? 1 : 0);
      if (refuse) run_until(loop, [&] { return !owner.losses.empty(); });
    }
  }
  CHECK(owner.losses[0].find("SET_MEM_TABLE") != std::string::npos);
}

TEST_CASE("Frontend: a back-end that does not answer is left after the deadline") {
  ManualBackend backend;
  EventLoop loop;
  Owner owner;
  FrontendConfig config = config_for(backend.path, kBasic);
  config.deadline_ms = 20;
  Frontend frontend(loop, config, owner);
  REQUIRE(static_cast<bool>(frontend.open()));
  backend.accept(loop);
  CHECK(run_until(loop, [&] { return frontend.stage() == Frontend::Stage::kWaitingForPeer; }));
  CHECK(frontend.detail().find("GET_FEATURES") != std::string::npos);
  backend.accept(loop);  // it tries again
}

TEST_CASE("Frontend: what nobody asked for, of the wrong size or no message at all ends the connection") {
  for (int fault = 0; fault < 4; ++fault) {
    CAPTURE(fault);
    ManualBackend backend;
    EventLoop loop;
    Owner owner;
    Frontend frontend(loop, config_for(backend.path, kBasic), owner);
    REQUIRE(static_cast<bool>(frontend.open()));
    backend.accept(loop);
    REQUIRE(backend.next(loop)->request == VhostRequest::kSetOwner);
    const VhostPeer& peer = *backend.peer;
    const uint32_t reply = kVhostVersion | kVhostFlagReply;
    if (fault == 0) peer.send(VhostRequest::kGetQueueNum, uint64_t{1}, {}, reply);
    if (fault == 1) peer.send(VhostRequest::kGetFeatures, uint32_t{1}, {}, reply);
    if (fault == 2) peer.send(VhostRequest::kGetFeatures, uint64_t{1});  // not marked as a reply
    if (fault == 3) peer.send_raw(1, 0xffff'ffff, {});
    CHECK(run_until(loop, [&] { return frontend.stage() == Frontend::Stage::kWaitingForPeer; }));
    CHECK(owner.negotiations == 0);
  }
}

TEST_CASE("Frontend: an owner that cannot make rings is asked again") {
  TempDir directory;
  EventLoop loop;
  Owner owner;
  owner.refuse = true;
  EchoDevice device(loop, offered_features({}));
  device.listen(directory.file("s"));
  Frontend frontend(loop, config_for(directory.file("s"), kBasic), owner);
  REQUIRE(static_cast<bool>(frontend.open()));
  CHECK(run_until(loop, [&] { return !owner.losses.empty(); }));
  owner.refuse = false;
  CHECK(run_until_running(loop, frontend));
}

TEST_CASE("Frontend: no descriptor is left over after connections and failures") {
  TempDir directory;
  const size_t before = open_descriptors();
  {
    EventLoop loop;
    Owner owner;
    EchoDevice device(loop, offered_features({}));
    device.listen(directory.file("s"));
    Frontend frontend(loop, config_for(directory.file("s"), kBasic, 2), owner);
    REQUIRE(static_cast<bool>(frontend.open()));
    for (int round = 1; round <= 5; ++round) {
      REQUIRE(run_until(loop, [&] { return owner.times_running == round; }));
      device.disconnect();
    }
  }
  CHECK(open_descriptors() == before);
}

TEST_CASE("Frontend: an unusable path is refused at once") {
  EventLoop loop;
  Owner owner;
  Frontend empty(loop, config_for("", kBasic), owner);
  CHECK_FALSE(static_cast<bool>(empty.open()));
  Frontend too_long(loop, config_for("/" + std::string(200, 'x'), kBasic), owner);
  CHECK_FALSE(static_cast<bool>(too_long.open()));
  Frontend nowhere(loop, config_for("/nowhere/at/all", kBasic, 1, true), owner);
  CHECK_FALSE(static_cast<bool>(nowhere.open()));
}

}  // namespace sw::testing
