// SPDX-License-Identifier: Apache-2.0
#include "virtio/control_queue.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "base/atomic.h"
#include "base/check.h"
#include "base/event_signal.h"
#include "virtio/spec.h"

namespace sw {

namespace {

constexpr uint16_t kChain = 2;  // descriptors of a command
constexpr uint16_t kHead = 0;   // split: its first descriptor; packed: its buffer id
constexpr uint32_t kAnswerOffset = kControlCommandBytes;
constexpr uint8_t kNoAnswer = 0xff;
// A device whose call is lost is still heard, that late.
constexpr int kLookMs = 20;

}  // namespace

ControlQueue::ControlQueue(const DriverRingConfig& config)
    : config_(config), packed_(has_feature(config.features, VIRTIO_F_RING_PACKED)) {
  SW_CHECK(config.ring.size >= kChain && std::has_single_bit(config.ring.size));
}

Result<ControlAnswer> ControlQueue::send(uint8_t command_class, uint8_t command, std::span<const uint8_t> data,
                                         uint64_t limit_ms) {
  if (!broken_.empty()) return Error{EIO, broken_};
  submit(command_class, command, data);
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::milliseconds(limit_ms);
  for (;;) {
    auto found = answer();
    if (!found) return found.error();
    if (*found) return **found;
    if (Clock::now() >= deadline) break;
    pollfd call{config_.call_fd, POLLIN, 0};
    if (::poll(&call, 1, kLookMs) > 0) {
      uint64_t count = 0;
      (void)!::read(config_.call_fd, &count, sizeof count);
    }
  }
  broken_ = "the device did not answer within " +
            (limit_ms < 1000 ? std::to_string(limit_ms) + " ms" : std::to_string(limit_ms / 1000) + " s");
  return Error{ETIMEDOUT, broken_};
}

void ControlQueue::submit(uint8_t command_class, uint8_t command, std::span<const uint8_t> data) {
  SW_CHECK(!under_way_ && broken_.empty() && data.size() + 2 <= kControlCommandBytes);
  config_.buffers[0] = command_class;
  config_.buffers[1] = command;
  if (!data.empty()) std::memcpy(config_.buffers + 2, data.data(), data.size());
  store_relaxed(config_.buffers[kAnswerOffset], kNoAnswer);
  under_way_ = true;
  const auto bytes = static_cast<uint32_t>(data.size() + 2);
  packed_ ? submit_packed(bytes) : submit_split(bytes);
  // Whatever the device's suppression says: a kick too many is allowed (virtio 1.3 2.7.7.2, 2.8.10) and rare here.
  (void)signal_eventfd(config_.kick_fd);
}

// The same two descriptors for every command; the available entry and the index move.
void ControlQueue::submit_split(uint32_t command_bytes) {
  auto* const desc = reinterpret_cast<VringDesc*>(config_.ring.descriptors);
  auto* const avail = reinterpret_cast<VringAvail*>(config_.ring.driver_area);
  desc[kHead] = {config_.device_address, command_bytes, VRING_DESC_F_NEXT, kHead + 1};
  desc[kHead + 1] = {config_.device_address + kAnswerOffset, 1, VRING_DESC_F_WRITE, 0};
  store_relaxed(avail->ring[next_ % config_.ring.size], kHead);
  if (has_feature(config_.features, VIRTIO_F_EVENT_IDX)) {
    store_relaxed(vring_used_event(avail, config_.ring.size), next_);  // call me for this one
  }
  ++next_;
  store_release(avail->idx, next_);  // pairs with the device's acquire load: descriptors and command are visible first
}

void ControlQueue::submit_packed(uint32_t command_bytes) {
  auto* const desc = reinterpret_cast<VringPackedDesc*>(config_.ring.descriptors);
  pending_ = next_;
  pending_wrap_ = wrap_;
  VringPackedDesc& first = desc[next_];
  const auto first_flags = static_cast<uint16_t>(VRING_DESC_F_NEXT | packed_avail_flags(wrap_));
  first.addr = config_.device_address;
  first.len = command_bytes;
  first.id = kHead;
  advance_packed();
  VringPackedDesc& second = desc[next_];
  second.addr = config_.device_address + kAnswerOffset;
  second.len = 1;
  second.id = kHead;
  store_relaxed(second.flags, static_cast<uint16_t>(VRING_DESC_F_WRITE | packed_avail_flags(wrap_)));
  advance_packed();
  // The driver's event suppression stays zero: calls are wanted.
  store_release(first.flags, first_flags);  // pairs with the device's acquire load: the chain is visible first
}

void ControlQueue::advance_packed() {
  if (++next_ != config_.ring.size) return;
  next_ = 0;
  wrap_ = !wrap_;
}

Result<std::optional<ControlAnswer>> ControlQueue::answer() {
  if (!broken_.empty()) return Error{EIO, broken_};
  const bool taken = packed_ ? take_packed() : take_split();
  if (broken_.empty() && taken) {
    under_way_ = false;
    const uint8_t said = load_relaxed(config_.buffers[kAnswerOffset]);
    if (said == VIRTIO_NET_OK) return std::optional(ControlAnswer::kDone);
    if (said == VIRTIO_NET_ERR) return std::optional(ControlAnswer::kRefused);
    broken_ = said == kNoAnswer
                  ? std::string("the device took the command and wrote no answer")
                  : "the device answered " + std::to_string(said) + ", which is neither yes (0) nor no (1)";
  }
  if (!broken_.empty()) return Error{EPROTO, broken_};
  return std::optional<ControlAnswer>();
}

bool ControlQueue::take_split() {
  auto* const used = reinterpret_cast<VringUsed*>(config_.ring.device_area);
  // Pairs with the device's release store: the used entry and the answer are readable.
  const uint16_t idx = load_acquire(used->idx);
  const auto before = static_cast<uint16_t>(next_ - (under_way_ ? 1 : 0));
  if (idx == before) return false;
  if (idx != next_) {
    broken_ = "the device returned a command that it was not given (used index " + std::to_string(idx) + " after " +
              std::to_string(before) + ")";
    return false;
  }
  const uint32_t id = load_relaxed(used->ring[before % config_.ring.size].id);
  if (id != kHead) {
    broken_ = "the device returned a command that it was not given (used id " + std::to_string(id) + ")";
    return false;
  }
  return true;
}

bool ControlQueue::take_packed() {
  if (!under_way_) return false;
  auto* const desc = reinterpret_cast<VringPackedDesc*>(config_.ring.descriptors);
  // Pairs with the device's release store of the flags: the id and the answer are readable.
  if (!packed_is_used(load_acquire(desc[pending_].flags), pending_wrap_)) return false;
  const uint16_t id = load_relaxed(desc[pending_].id);
  if (id != kHead) {
    broken_ = "the device returned a command that it was not given (buffer id " + std::to_string(id) + ")";
    return false;
  }
  return true;
}

}  // namespace sw
