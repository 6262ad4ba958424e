// SPDX-License-Identifier: Apache-2.0
// The vhost-user wire format: header, payloads, request numbers, protocol feature bits. Shared by back-end and
// front-end.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/fd.h"

namespace sw {

// vhost-user "Front-end message types". Gaps are messages that do not concern a network device.
enum class VhostRequest : uint32_t {
  kNone = 0,
  kGetFeatures = 1,
  kSetFeatures = 2,
  kSetOwner = 3,
  kResetOwner = 4,
  kSetMemTable = 5,
  kSetLogBase = 6,
  kSetLogFd = 7,
  kSetVringNum = 8,
  kSetVringAddr = 9,
  kSetVringBase = 10,
  kGetVringBase = 11,
  kSetVringKick = 12,
  kSetVringCall = 13,
  kSetVringErr = 14,
  kGetProtocolFeatures = 15,
  kSetProtocolFeatures = 16,
  kGetQueueNum = 17,
  kSetVringEnable = 18,
  kSendRarp = 19,
  kNetSetMtu = 20,
  kGetMaxMemSlots = 36,
  kAddMemReg = 37,
  kRemMemReg = 38,
  kSetStatus = 39,
  kGetStatus = 40,
};

// "SET_VRING_ADDR", or "unknown" for a number that is not in the enumeration.
std::string_view name(VhostRequest request);

// vhost-user "Protocol features", as masks.
inline constexpr uint64_t kProtocolMq = 1ULL << 0;
inline constexpr uint64_t kProtocolLogShmfd = 1ULL << 1;
inline constexpr uint64_t kProtocolRarp = 1ULL << 2;
inline constexpr uint64_t kProtocolReplyAck = 1ULL << 3;
inline constexpr uint64_t kProtocolNetMtu = 1ULL << 4;
inline constexpr uint64_t kProtocolConfigureMemSlots = 1ULL << 15;
inline constexpr uint64_t kProtocolStatus = 1ULL << 16;

// "mq,reply_ack,status" for a set of protocol features; unknown bits as "bit17".
std::string protocol_feature_names(uint64_t bits);

inline constexpr uint32_t kVhostVersion = 1;
inline constexpr uint32_t kVhostFlagVersionMask = 3;
inline constexpr uint32_t kVhostFlagReply = 1U << 2;
inline constexpr uint32_t kVhostFlagNeedReply = 1U << 3;

inline constexpr uint64_t kVringIndexMask = 0xff;   // of the u64 payload of SET_VRING_KICK, CALL and ERR
inline constexpr uint64_t kVringNoFd = 1ULL << 8;   // the same: no file descriptor comes with it
inline constexpr uint32_t kVringFlagLog = 1U << 0;  // VhostVringAddr::flags, VHOST_VRING_F_LOG
inline constexpr uint32_t kMaxVrings = 256;         // what the 8-bit index can name
inline constexpr uint32_t kMaxTableRegions = 8;     // of one SET_MEM_TABLE
inline constexpr uint32_t kMaxMemSlots = 509;       // GET_MAX_MEM_SLOTS: what KVM and the other back-ends settled on
inline constexpr uint32_t kMaxMessageFds = 8;
inline constexpr uint32_t kMaxPayloadBytes = 512;  // a mem table has 264; larger is nonsense for a network device

struct VhostHeader {
  uint32_t request;
  uint32_t flags;
  uint32_t size;  // bytes of payload that follow
};
static_assert(sizeof(VhostHeader) == 12);

struct VhostVringState {  // SET_VRING_NUM/BASE/ENABLE, GET_VRING_BASE
  uint32_t index;
  uint32_t num;
};
static_assert(sizeof(VhostVringState) == 8);

struct VhostVringAddr {  // addresses are the front-end's own virtual ones
  uint32_t index;
  uint32_t flags;
  uint64_t descriptors;
  uint64_t used;
  uint64_t avail;
  uint64_t log;  // guest-physical address of the used ring, for the dirty log
};
static_assert(sizeof(VhostVringAddr) == 40);

struct VhostMemRegion {
  uint64_t guest;
  uint64_t bytes;
  uint64_t frontend;
  uint64_t mmap_offset;
};
static_assert(sizeof(VhostMemRegion) == 32);

struct VhostMemTable {  // SET_MEM_TABLE: `count` regions follow the first 8 bytes
  uint32_t count;
  uint32_t padding;
  std::array<VhostMemRegion, kMaxTableRegions> regions;
};
static_assert(sizeof(VhostMemTable) == 264);

struct VhostSingleRegion {  // ADD_MEM_REG, REM_MEM_REG
  uint64_t padding;
  VhostMemRegion region;
};
static_assert(sizeof(VhostSingleRegion) == 40);

struct VhostLog {  // SET_LOG_BASE
  uint64_t bytes;
  uint64_t offset;
};
static_assert(sizeof(VhostLog) == 16);

// One message, received or to be sent. File descriptors are owned: whatever a handler does not take is closed with it.
struct VhostMessage {
  VhostRequest request = VhostRequest::kNone;
  uint32_t flags = kVhostVersion;
  uint32_t size = 0;
  std::array<std::byte, kMaxPayloadBytes> payload{};
  std::vector<UniqueFd> fds;
  std::string foreign;  // what one of the descriptors is that no message can have, such as "socket:[123]"; it is closed

  [[nodiscard]] bool is_reply() const { return (flags & kVhostFlagReply) != 0; }
  [[nodiscard]] bool needs_reply() const { return (flags & kVhostFlagNeedReply) != 0; }

  // The payload as T. Shorter payloads read as zero-filled; check `size` first.
  template <class T>
  [[nodiscard]] T as() const {
    static_assert(sizeof(T) <= kMaxPayloadBytes);
    return load_unaligned<T>(payload.data());
  }
  template <class T>
  void set(const T& value) {
    static_assert(sizeof(T) <= kMaxPayloadBytes);
    store_unaligned(payload.data(), value);
    size = sizeof(T);
  }
};

template <class T>
VhostMessage make_message(VhostRequest request, const T& payload, uint32_t flags = kVhostVersion) {
  VhostMessage message;
  message.request = request;
  message.flags = flags;
  message.set(payload);
  return message;
}
inline VhostMessage make_message(VhostRequest request) {
  VhostMessage message;
  message.request = request;
  return message;
}

}  // namespace sw
