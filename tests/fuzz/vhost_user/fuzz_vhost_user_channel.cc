// SPDX-License-Identifier: Apache-2.0
// Fuzz target: a sequence of vhost-user messages, with descriptors from a pool, against a whole back-end. The input is
// a list of records: request, flags, ring, variant, payload length, payload. Known requests get payloads that point
// into the guest's memory with the record's bytes on top, so that rings start and run.
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "base/check.h"
#include "support/vhost_peer.h"
#include "vhost_user/backend.h"
#include "vhost_user/features.h"
#include "virtio/spec.h"

namespace sw {
namespace {

constexpr size_t kMemoryBytes = 1 << 20;

class FuzzHost : public BackendHost {
 public:
  void pause() override {
    if (depth_++ == 0) check_unchanged();
  }
  void resume() override {
    if (--depth_ == 0) publish();
  }
  void event(const std::string&, const std::string&) override {}
  void check_unchanged() const { SW_CHECK(rx == backend->live_rx() && tx == backend->live_tx()); }
  void publish() {
    rx = backend->live_rx();
    tx = backend->live_tx();
  }
  const Backend* backend = nullptr;
  std::vector<RxQueue*> rx;
  std::vector<TxQueue*> tx;

 private:
  int depth_ = 0;
};

class Input {
 public:
  explicit Input(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  uint8_t byte() {
    if (bytes_.empty()) return 0;
    const uint8_t value = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return value;
  }
  std::span<const uint8_t> take(size_t count) {
    const auto taken = bytes_.first(std::min(count, bytes_.size()));
    bytes_ = bytes_.subspan(taken.size());
    return taken;
  }

 private:
  std::span<const uint8_t> bytes_;
};

template <class T>
std::vector<std::byte> bytes_of(const T& value) {
  const auto view = std::as_bytes(std::span(&value, 1));
  return {view.begin(), view.end()};
}

// A payload that could be right.
std::vector<std::byte> plausible(VhostRequest request, uint8_t ring, uint8_t variant, uint64_t front) {
  const uint64_t at = front + (ring % 4) * 0x10000ULL;
  const VhostMemRegion whole{0, kMemoryBytes, front, 0};
  switch (request) {
    case VhostRequest::kSetFeatures:
      return bytes_of(feature_mask(VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES) |
                      ((variant & 1) != 0 ? feature_mask(VIRTIO_F_RING_PACKED) : 0) |
                      ((variant & 2) != 0 ? feature_mask(VIRTIO_NET_F_MRG_RXBUF) : 0) |
                      ((variant & 4) != 0 ? feature_mask(VHOST_F_LOG_ALL) : 0) |
                      ((variant & 8) != 0 ? feature_mask(VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC) : 0) |
                      ((variant & 16) != 0 ? feature_mask(VIRTIO_F_IN_ORDER) : 0));
    case VhostRequest::kSetProtocolFeatures:
      return bytes_of(offered_protocol_features());
    case VhostRequest::kSetMemTable:
      return bytes_of(VhostMemTable{1, 0, {whole}});
    case VhostRequest::kAddMemReg:
    case VhostRequest::kRemMemReg:
      return bytes_of(VhostSingleRegion{
          0, variant == 0 ? whole : VhostMemRegion{variant * 4096ULL << 20, 4096, variant * 4096ULL << 30, 0}});
    case VhostRequest::kSetLogBase:
      return bytes_of(VhostLog{4096, 0});
    case VhostRequest::kSetVringNum:
      return bytes_of(VhostVringState{ring, 1U << variant % 9});
    case VhostRequest::kSetVringAddr:
      return bytes_of(VhostVringAddr{ring, variant & 1U, at, at + 0x8000, at + 0x4000, 0});
    case VhostRequest::kSetVringBase:
    case VhostRequest::kGetVringBase:
    case VhostRequest::kSetVringEnable:
      return bytes_of(VhostVringState{ring, variant});
    case VhostRequest::kSetVringKick:
    case VhostRequest::kSetVringCall:
    case VhostRequest::kSetVringErr:
      return bytes_of(uint64_t{ring} | ((variant & 1) != 0 ? kVringNoFd : 0));
    case VhostRequest::kSendRarp:
    case VhostRequest::kNetSetMtu:
    case VhostRequest::kSetStatus:
      return bytes_of(uint64_t{variant} << 1);
    default:
      return {};
  }
}

void poll_queues(FuzzHost& host) {
  static auto batch = std::make_unique<Batch>();
  PortWorkerCounters drops;
  for (RxQueue* queue : host.rx) {
    if (queue == nullptr) continue;
    batch->clear();
    if (!queue->peek(*batch, drops)) continue;
    std::vector<uint8_t> index(batch->count);
    for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<uint8_t>(i);
    for (TxQueue* tx : host.tx) {
      if (tx == nullptr || index.empty()) continue;
      (void)tx->send(*batch, index, drops);
      tx->notify();
    }
    queue->release();
    queue->notify();
  }
}

// Two rings, set up and enabled as an honest front-end would; features as `variant` says.
void start_rings(const testing::VhostPeer& peer, Backend& backend, uint8_t variant, const testing::SharedFile& memory,
                 int event) {
  const auto say = [&](VhostRequest request, uint8_t ring, uint8_t value, std::vector<int> fds = {}) {
    peer.send_raw(static_cast<uint32_t>(request), kVhostVersion, plausible(request, ring, value, memory.address()),
                  fds);
    SW_CHECK(static_cast<bool>(backend.on_socket(EPOLLIN)));
  };
  const bool packed = (variant & 1) != 0;
  say(VhostRequest::kSetProtocolFeatures, 0, 0);
  say(VhostRequest::kSetFeatures, 0, variant);
  say(VhostRequest::kSetMemTable, 0, 0, {memory.fd()});
  for (const uint8_t ring : {uint8_t{0}, uint8_t{1}}) {
    say(VhostRequest::kSetVringNum, ring, 8);
    if (packed) {
      const VhostVringState first_lap{ring, 0x8000};
      peer.send(VhostRequest::kSetVringBase, first_lap);
    } else {
      say(VhostRequest::kSetVringBase, ring, 0);
    }
    say(VhostRequest::kSetVringAddr, ring, 0);
    say(VhostRequest::kSetVringEnable, ring, 1);
    say(VhostRequest::kSetVringCall, ring, 0, {event});
    say(VhostRequest::kSetVringKick, ring, 0, {event});
  }
  SW_CHECK(!backend.live_rx().empty() && !backend.live_tx().empty());
}

void run(std::span<const uint8_t> bytes) {
  static const testing::SharedFile memory(kMemoryBytes);
  static const UniqueFd event(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  static const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const std::array<int, 3> pool = {event.get(), memory.fd(), null.get()};
  Input input(bytes);
  std::memset(memory.data(), 0, memory.size());
  auto sockets = testing::stream_pair();
  FuzzHost host;
  BackendCounters counters;
  std::vector<QueueCounters> rx_counters(2);
  std::vector<QueueCounters> tx_counters(2);
  Backend backend(std::move(sockets[0]),
                  {offered_features({.mtu = true}), offered_protocol_features(), rx_counters, tx_counters, 1500}, host,
                  counters);
  host.backend = &backend;
  const testing::VhostPeer peer(std::move(sockets[1]));
  const uint8_t prologue = input.byte();
  if ((prologue & 1) == 0) start_rings(peer, backend, prologue >> 1, memory, event.get());
  while (!input.empty()) {
    const uint8_t action = input.byte();
    const uint8_t wide = input.byte();
    const uint8_t ring = wide < 0xf0 ? wide & 3 : wide;
    const uint8_t variant = input.byte();
    if (action >= 0xe0) {  // the guest writes into a ring, the worker polls
      const auto data = input.take(variant);
      std::copy(data.begin(), data.end(), memory.data() + (ring % 4) * 0x10000U + (action & 0x1fU) * 0x800U);
      poll_queues(host);
      continue;
    }
    const uint8_t shape = input.byte();
    const uint32_t flags =
        kVhostVersion | ((shape & 1) == 0 ? kVhostFlagNeedReply : 0) | ((shape & 0x40) != 0 ? 0x2U : 0);
    const auto request = static_cast<VhostRequest>(action % 46);
    auto payload = plausible(request, ring, variant, memory.address());
    if ((shape & 2) != 0) payload.resize(input.byte() * 2U);
    if ((shape & 4) != 0) {
      const size_t where = input.byte();
      const auto patch = input.take(8);
      for (size_t i = 0; i < patch.size() && where + i < payload.size(); ++i) payload[where + i] = std::byte{patch[i]};
    }
    std::vector<int> fds;
    switch (request) {
      case VhostRequest::kSetMemTable:
      case VhostRequest::kAddMemReg:
      case VhostRequest::kSetLogBase:
        fds = {memory.fd()};
        break;
      case VhostRequest::kSetVringKick:
      case VhostRequest::kSetVringCall:
      case VhostRequest::kSetVringErr:
        if ((variant & 1) == 0) fds = {event.get()};
        break;
      default:
        break;
    }
    if ((shape & 8) != 0) fds.assign(input.byte() % 12, pool.at(variant % 3));
    const auto encoded = testing::VhostPeer::encode(
        static_cast<uint32_t>(request), flags,
        static_cast<uint32_t>(payload.size()) + ((shape & 0x80) != 0 ? uint32_t{variant} : 0), payload);
    if (!peer.send_bytes(encoded, fds)) break;
    const bool on = static_cast<bool>(backend.on_socket(EPOLLIN));
    host.check_unchanged();
    if (!on) break;
    if ((shape & 0x10) == 0) {
      while (peer.receive()) continue;
    }
    if ((shape & 0x20) != 0) backend.check_health();
  }
  poll_queues(host);
  backend.shutdown();
}

}  // namespace
}  // namespace sw

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sw::run({data, size});
  return 0;
}
