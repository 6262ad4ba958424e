// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/backend.h"

#include <sys/epoll.h>

#include <algorithm>

#include "vhost_user/backend_detail.h"

namespace sw {

namespace {

constexpr int kMessagesPerCall = 64;  // then the other sockets of the control loop get their turn

}  // namespace

// vhost-user "Front-end message types": payload, descriptors and reply of each request that is served.
const std::array<Backend::Rule, 25> Backend::kRules = {{
    {VhostRequest::kGetFeatures, 0, Fds::kNone, Reply::kOwn, &Backend::get_features},
    {VhostRequest::kSetFeatures, 8, Fds::kNone, Reply::kAck, &Backend::set_features},
    {VhostRequest::kSetOwner, 0, Fds::kNone, Reply::kAck, &Backend::set_owner},
    {VhostRequest::kResetOwner, 0, Fds::kNone, Reply::kAck, &Backend::reset_owner},
    {VhostRequest::kSetMemTable, sizeof(VhostMemTable), Fds::kTable, Reply::kAck, &Backend::set_mem_table},
    {VhostRequest::kSetLogBase, sizeof(VhostLog), Fds::kOne, Reply::kOwn, &Backend::set_log_base},
    {VhostRequest::kSetLogFd, 0, Fds::kOne, Reply::kAck, &Backend::set_log_fd},
    {VhostRequest::kSetVringNum, sizeof(VhostVringState), Fds::kNone, Reply::kAck, &Backend::set_vring_num},
    {VhostRequest::kSetVringAddr, sizeof(VhostVringAddr), Fds::kNone, Reply::kAck, &Backend::set_vring_addr},
    {VhostRequest::kSetVringBase, sizeof(VhostVringState), Fds::kNone, Reply::kAck, &Backend::set_vring_base},
    {VhostRequest::kGetVringBase, sizeof(VhostVringState), Fds::kNone, Reply::kOwn, &Backend::get_vring_base},
    {VhostRequest::kSetVringKick, 8, Fds::kVring, Reply::kAck, &Backend::set_vring_kick},
    {VhostRequest::kSetVringCall, 8, Fds::kVring, Reply::kAck, &Backend::set_vring_call},
    {VhostRequest::kSetVringErr, 8, Fds::kVring, Reply::kAck, &Backend::set_vring_err},
    {VhostRequest::kGetProtocolFeatures, 0, Fds::kNone, Reply::kOwn, &Backend::get_protocol_features},
    {VhostRequest::kSetProtocolFeatures, 8, Fds::kNone, Reply::kAck, &Backend::set_protocol_features},
    {VhostRequest::kGetQueueNum, 0, Fds::kNone, Reply::kOwn, &Backend::get_queue_num},
    {VhostRequest::kSetVringEnable, sizeof(VhostVringState), Fds::kNone, Reply::kAck, &Backend::set_vring_enable},
    {VhostRequest::kSendRarp, 8, Fds::kNone, Reply::kAck, &Backend::send_rarp},
    {VhostRequest::kNetSetMtu, 8, Fds::kNone, Reply::kAck, &Backend::net_set_mtu},
    {VhostRequest::kGetMaxMemSlots, 0, Fds::kNone, Reply::kOwn, &Backend::get_max_mem_slots},
    {VhostRequest::kAddMemReg, sizeof(VhostSingleRegion), Fds::kOne, Reply::kAck, &Backend::add_mem_reg},
    {VhostRequest::kRemMemReg, sizeof(VhostSingleRegion), Fds::kAny, Reply::kAck, &Backend::rem_mem_reg},
    {VhostRequest::kSetStatus, 8, Fds::kNone, Reply::kAck, &Backend::set_status},
    {VhostRequest::kGetStatus, 0, Fds::kNone, Reply::kOwn, &Backend::get_status},
}};

Backend::Backend(UniqueFd socket, BackendConfig config, BackendHost& host, BackendCounters& counters,
                 std::shared_ptr<Reaper> reaper)
    : reaper_(std::move(reaper)),
      channel_(std::move(socket), reaper_),
      config_(config),
      host_(host),
      counters_(counters),
      mtu_(config.mtu) {}

Backend::~Backend() {
  rings_.clear();
  let_go(std::move(memory_));
}

DeviceRing* Backend::Ring::live() const {
  if (rx) return rx.get();
  return tx.get();
}

const Backend::Rule* Backend::find_rule(VhostRequest request) {
  const auto* found =
      std::find_if(kRules.begin(), kRules.end(), [&](const Rule& rule) { return rule.request == request; });
  return found == kRules.end() ? nullptr : found;
}

uint32_t Backend::wanted_events() const { return channel_.want_write() ? EPOLLOUT : EPOLLIN; }

Result<void> Backend::on_socket(uint32_t epoll_events) {
  (void)epoll_events;  // the socket itself says more, and up to date
  if (channel_.want_write()) {
    if (auto flushed = channel_.flush(); !flushed) return flushed.error();
  }
  for (int i = 0; i < kMessagesPerCall && !channel_.want_write(); ++i) {
    VhostMessage request;
    switch (channel_.receive(request)) {
      case Channel::Receive::kAgain:
        return {};
      case Channel::Receive::kClosed:
        if (channel_.error().what.empty()) return Error{0, "the peer closed the connection"};
        [[fallthrough]];
      case Channel::Receive::kFailed:
        ++counters_.errors;
        return channel_.error();
      case Channel::Receive::kMessage:
        break;
    }
    if (auto handled = handle(request); !handled) return handled.error();
  }
  return {};
}

Result<void> Backend::handle(VhostMessage& request) {
  heard_ = true;
  ++counters_.messages;
  const Rule* rule = find_rule(request.request);
  VhostMessage reply;
  Result<void> done;
  if (request.is_reply()) {
    done = Error{0, "a reply came where a request belongs"};
    rule = nullptr;
  } else if (rule == nullptr) {
    done = Error{0, "unknown request " + std::to_string(static_cast<uint32_t>(request.request))};
  } else {
    done = perform(*rule, request, reply);
  }
  const std::string title(name(request.request));
  // vhost-user "REPLY_ACK": evaluated after the handler, since SET_PROTOCOL_FEATURES may just have agreed on it.
  const bool ack = request.needs_reply() && (protocol_features_ & kProtocolReplyAck) != 0;
  const bool own_reply = rule != nullptr && rule->reply == Reply::kOwn;
  if (!done) {
    ++counters_.errors;
    const Error error{done.error().code, title + ": " + done.error().what};
    // Requests that we do not know changed nothing, so both sides still agree; any other failure that the front-end
    // will not hear of ends the connection.
    const bool harmless = rule == nullptr && !request.is_reply();
    if (own_reply || request.is_reply() || (!ack && !harmless)) return error;
    host_.event("error", error.message());
  }
  if (!own_reply && !ack) return {};
  if (!own_reply) reply.set<uint64_t>(done ? 0 : 1);
  reply.request = request.request;
  reply.flags = kVhostVersion | kVhostFlagReply;
  auto sent = channel_.send(reply);
  if (!sent) ++counters_.errors;
  return sent;
}

Result<void> Backend::perform(const Rule& rule, VhostMessage& request, VhostMessage& reply) {
  if (auto shape = check_shape(rule, request); !shape) return shape;
  return (this->*rule.handler)(request, reply);
}

Result<void> Backend::check_shape(const Rule& rule, const VhostMessage& request) {
  if (!request.foreign.empty()) {
    return Error{0, "a file descriptor is " + request.foreign +
                        ", neither an eventfd nor shared memory (memfd, or a file on tmpfs or hugetlbfs)"};
  }
  bool size_ok = request.size == rule.bytes;
  size_t fds = 0;
  switch (rule.fds) {
    case Fds::kAny:  // old front-ends attach one where none belongs
      fds = request.fds.size();
      break;
    case Fds::kNone:
      break;
    case Fds::kOne:
      fds = 1;
      size_ok = size_ok || (rule.request == VhostRequest::kSetLogFd && request.size == sizeof(uint64_t));
      break;
    case Fds::kVring:
      fds = (request.as<uint64_t>() & kVringNoFd) != 0 ? 0 : 1;
      break;
    case Fds::kTable: {
      // Front-ends send the regions in use, or all eight.
      const auto count = request.as<uint32_t>();
      if (request.size < 8 || count > kMaxTableRegions) {
        return Error{0, "a memory table of " + std::to_string(count) + " regions (at most 8 are possible)"};
      }
      size_ok = size_ok || request.size == 8 + count * sizeof(VhostMemRegion);
      fds = count;
      break;
    }
  }
  if (!size_ok)
    return Error{0, "payload of " + std::to_string(request.size) + " bytes instead of " + std::to_string(rule.bytes)};
  if (request.fds.size() != fds) {
    return Error{0, std::to_string(request.fds.size()) + " file descriptors instead of " + std::to_string(fds)};
  }
  return {};
}

std::vector<RxQueue*> Backend::live_rx() const {
  std::vector<RxQueue*> queues;
  for (size_t i = 1; i < rings_.size(); i += 2) queues.push_back(rings_[i].rx.get());
  while (!queues.empty() && queues.back() == nullptr) queues.pop_back();
  return queues;
}

std::vector<TxQueue*> Backend::live_tx() const {
  std::vector<TxQueue*> queues;
  for (size_t i = 0; i < rings_.size(); i += 2)
    queues.push_back(ring_enabled(rings_[i]) ? rings_[i].tx.get() : nullptr);
  while (!queues.empty() && queues.back() == nullptr) queues.pop_back();
  return queues;
}

}  // namespace sw
