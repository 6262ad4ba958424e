// SPDX-License-Identifier: Apache-2.0
// The messages by which a front-end takes a back-end into service.
#include <algorithm>
#include <cerrno>

#include "base/clock.h"
#include "vhost_user/features.h"
#include "vhost_user/frontend.h"
#include "virtio/driver_features.h"
#include "virtio/spec.h"

namespace sw {

namespace {

// virtio 1.3 2.1, as SET_STATUS carries it.
constexpr uint64_t kStatusAcknowledge = 1;
constexpr uint64_t kStatusDriver = 2;
constexpr uint64_t kStatusDriverOk = 4;
constexpr uint64_t kStatusFeaturesOk = 8;
constexpr uint64_t kStatusReady = kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk;

constexpr uint64_t kUsedProtocolFeatures = kProtocolMq | kProtocolReplyAck | kProtocolStatus;

}  // namespace

template <class T>
void Frontend::tell(VhostRequest request, const T& payload, std::vector<int> fds) {
  steps_.push_back({make_message(request, payload), std::move(fds), {}});
}

void Frontend::ask(VhostRequest request, const std::function<Result<void>(uint64_t)>& on_value) {
  steps_.push_back({make_message(request), {}, [request, on_value](const VhostMessage& reply) -> Result<void> {
                      if (reply.size != sizeof(uint64_t)) {
                        return Error{EPROTO,
                                     "the back-end's answer to " + std::string(name(request)) + " has the wrong size"};
                      }
                      return on_value(reply.as<uint64_t>());
                    }});
}

void Frontend::tell_status(uint64_t status) {
  if ((protocol_features_ & kProtocolStatus) != 0) tell(VhostRequest::kSetStatus, status);
}

// Send steps until one has to be answered.
Result<void> Frontend::advance() {
  while (!steps_.empty() && !awaiting_) {
    Step& step = steps_.front();
    const bool acked = !step.on_reply && (protocol_features_ & kProtocolReplyAck) != 0;
    if (acked) step.message.flags |= kVhostFlagNeedReply;
    if (auto sent = channel_->send(step.message, step.fds); !sent) return sent;
    if (acked || step.on_reply) {
      awaiting_ = true;
    } else {
      steps_.pop_front();
    }
  }
  return {};
}

Result<void> Frontend::on_message(const VhostMessage& reply) {
  if (!awaiting_ || !reply.is_reply() || reply.request != steps_.front().message.request) {
    return Error{EPROTO, "the back-end sent " + std::string(name(reply.request)) + ", which nobody asked for"};
  }
  const Step step = std::move(steps_.front());
  steps_.pop_front();
  awaiting_ = false;
  if (step.on_reply) {
    if (auto handled = step.on_reply(reply); !handled) return handled;
  } else if (reply.size != sizeof(uint64_t) || reply.as<uint64_t>() != 0) {
    return Error{0, "the back-end refused " + std::string(name(reply.request)) + "; its log says why"};
  }
  return advance();
}

Result<void> Frontend::start_handshake() {
  steps_.push_back({make_message(VhostRequest::kSetOwner), {}, {}});
  ask(VhostRequest::kGetFeatures, [this](uint64_t offered) { return got_features(offered); });
  return advance();
}

Result<void> Frontend::got_features(uint64_t offered) {
  offered_ = offered;
  if (!has_feature(offered, VHOST_USER_F_PROTOCOL_FEATURES)) {
    queue_pairs_ = 1;
    return choose_features();
  }
  ask(VhostRequest::kGetProtocolFeatures, [this](uint64_t protocol) { return got_protocol_features(protocol); });
  return {};
}

Result<void> Frontend::got_protocol_features(uint64_t offered) {
  const uint64_t taken = offered & kUsedProtocolFeatures;
  steps_.push_back({make_message(VhostRequest::kSetProtocolFeatures, taken), {}, {}});
  if (auto sent = advance(); !sent) return sent;  // before REPLY_ACK is in force: this message is not answered
  protocol_features_ = taken;
  if ((taken & kProtocolMq) == 0) {
    queue_pairs_ = 1;
    return choose_features();
  }
  // vhost-user "Multiple queue support". Back-ends disagree whether they count pairs or rings; both are at least pairs.
  ask(VhostRequest::kGetQueueNum, [this](uint64_t most) {
    queue_pairs_ = static_cast<uint32_t>(std::clamp<uint64_t>(most, 1, config_.queue_pairs));
    return choose_features();
  });
  return {};
}

Result<void> Frontend::choose_features() {
  uint64_t wanted = config_.features & ~feature_mask(VIRTIO_NET_F_MQ);
  if (!has_feature(offered_, VIRTIO_NET_F_MQ)) queue_pairs_ = 1;
  if (queue_pairs_ > 1) wanted |= feature_mask(VIRTIO_NET_F_MQ);
  features_ = drop_dependent_features(offered_ & wanted);
  if (const uint64_t missing = config_.required & ~features_; missing != 0) {
    return Error{ENOTSUP,
                 "the back-end does not offer " + feature_names(missing) + "; allow it there or do without it here"};
  }
  tell_status(kStatusAcknowledge | kStatusDriver);
  tell(VhostRequest::kSetFeatures, features_ | (offered_ & feature_mask(VHOST_USER_F_PROTOCOL_FEATURES)));
  if ((protocol_features_ & kProtocolStatus) == 0) return set_up_rings();
  tell_status(kStatusReady);
  ask(VhostRequest::kGetStatus, [this](uint64_t status) -> Result<void> {
    if ((status & kStatusFeaturesOk) == 0) {
      return Error{ENOTSUP, "the back-end does not accept the features " + feature_names(features_)};
    }
    return set_up_rings();
  });
  return {};
}

Result<void> Frontend::set_up_rings() {
  stage_ = Stage::kSettingUpRings;
  detail_ = "handing rings and memory to the back-end";
  owner_has_rings_ = true;
  const auto memory = owner_.negotiated(features_, queue_pairs_);
  if (!memory) return memory.error();
  const DriverMemory& shared = **memory;

  VhostMemTable table{};
  table.count = 1;
  table.regions[0] = {shared.address(), shared.bytes(), shared.address(), 0};
  VhostMessage message = make_message(VhostRequest::kSetMemTable, table);
  message.size = offsetof(VhostMemTable, regions) + sizeof(VhostMemRegion);
  steps_.push_back({std::move(message), {shared.fd()}, {}});

  const auto rings = static_cast<uint32_t>(shared.rings().size());
  for (uint32_t i = 0; i < rings; ++i) add_ring(i, shared.rings()[i]);
  if (has_feature(offered_, VHOST_USER_F_PROTOCOL_FEATURES)) {
    // vhost-user "Ring states": with protocol features rings start disabled, without them enabled.
    for (uint32_t i = 0; i < rings; ++i) tell(VhostRequest::kSetVringEnable, VhostVringState{i, 1});
  }
  tell_status(kStatusReady | kStatusDriverOk);
  ask(VhostRequest::kGetFeatures, [this](uint64_t) -> Result<void> {
    finish();
    return {};
  });
  return {};
}

// Back-ends start a ring on its KICK, so it comes last.
void Frontend::add_ring(uint32_t index, const DriverMemory::Ring& ring) {
  const RingMemory& at = ring.config.ring;
  const auto address = [](const uint8_t* area) { return reinterpret_cast<uintptr_t>(area); };
  // Packed: avail index 0 with wrap counter 1 (virtio 1.3 2.8.1), the upper half likewise.
  const uint32_t base = has_feature(features_, VIRTIO_F_RING_PACKED) ? 0x8000'8000U : 0;
  tell(VhostRequest::kSetVringNum, VhostVringState{index, at.size});
  tell(VhostRequest::kSetVringBase, VhostVringState{index, base});
  tell(VhostRequest::kSetVringAddr,
       VhostVringAddr{index, 0, address(at.descriptors), address(at.device_area), address(at.driver_area), 0});
  tell(VhostRequest::kSetVringCall, uint64_t{index}, {ring.call.get()});
  tell(VhostRequest::kSetVringKick, uint64_t{index}, {ring.kick.get()});
}

void Frontend::finish() {
  loop_.cancel(deadline_timer_);
  running_since_ns_ = monotonic_ns();
  stage_ = Stage::kRunning;
  ++times_running_;
  detail_.clear();
  if (queue_pairs_ < config_.queue_pairs) {
    detail_ = "the back-end serves " + std::to_string(queue_pairs_) + " of " + std::to_string(config_.queue_pairs) +
              " queue pairs";
  }
  owner_.running();
}

}  // namespace sw
