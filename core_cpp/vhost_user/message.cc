// SPDX-License-Identifier: Apache-2.0
#include "vhost_user/message.h"

#include <utility>

namespace sw {

namespace {

constexpr std::array<std::pair<VhostRequest, std::string_view>, 25> kRequestNames = {{
    {VhostRequest::kGetFeatures, "GET_FEATURES"},
    {VhostRequest::kSetFeatures, "SET_FEATURES"},
    {VhostRequest::kSetOwner, "SET_OWNER"},
    {VhostRequest::kResetOwner, "RESET_OWNER"},
    {VhostRequest::kSetMemTable, "SET_MEM_TABLE"},
    {VhostRequest::kSetLogBase, "SET_LOG_BASE"},
    {VhostRequest::kSetLogFd, "SET_LOG_FD"},
    {VhostRequest::kSetVringNum, "SET_VRING_NUM"},
    {VhostRequest::kSetVringAddr, "SET_VRING_ADDR"},
    {VhostRequest::kSetVringBase, "SET_VRING_BASE"},
    {VhostRequest::kGetVringBase, "GET_VRING_BASE"},
    {VhostRequest::kSetVringKick, "SET_VRING_KICK"},
    {VhostRequest::kSetVringCall, "SET_VRING_CALL"},
    {VhostRequest::kSetVringErr, "SET_VRING_ERR"},
    {VhostRequest::kGetProtocolFeatures, "GET_PROTOCOL_FEATURES"},
    {VhostRequest::kSetProtocolFeatures, "SET_PROTOCOL_FEATURES"},
    {VhostRequest::kGetQueueNum, "GET_QUEUE_NUM"},
    {VhostRequest::kSetVringEnable, "SET_VRING_ENABLE"},
    {VhostRequest::kSendRarp, "SEND_RARP"},
    {VhostRequest::kNetSetMtu, "NET_SET_MTU"},
    {VhostRequest::kGetMaxMemSlots, "GET_MAX_MEM_SLOTS"},
    {VhostRequest::kAddMemReg, "ADD_MEM_REG"},
    {VhostRequest::kRemMemReg, "REM_MEM_REG"},
    {VhostRequest::kSetStatus, "SET_STATUS"},
    {VhostRequest::kGetStatus, "GET_STATUS"},
}};

constexpr std::array<std::string_view, 22> kProtocolNames = {"mq",
                                                             "log_shmfd",
                                                             "rarp",
                                                             "reply_ack",
                                                             "net_mtu",
                                                             "backend_req",
                                                             "cross_endian",
                                                             "crypto_session",
                                                             "pagefault",
                                                             "config",
                                                             "backend_send_fd",
                                                             "host_notifier",
                                                             "inflight_shmfd",
                                                             "reset_device",
                                                             "inband_notifications",
                                                             "configure_mem_slots",
                                                             "status",
                                                             "xen_mmap",
                                                             "shared_object",
                                                             "device_state",
                                                             "get_vring_base_inflight",
                                                             "shmem"};

}  // namespace

std::string_view name(VhostRequest request) {
  for (const auto& [number, text] : kRequestNames) {
    if (number == request) return text;
  }
  return "unknown";
}

std::string protocol_feature_names(uint64_t bits) {
  std::string names;
  for (size_t bit = 0; bit < 64; ++bit) {
    if ((bits >> bit & 1) == 0) continue;
    if (!names.empty()) names += ',';
    names += bit < kProtocolNames.size() ? std::string(kProtocolNames.at(bit)) : "bit" + std::to_string(bit);
  }
  return names;
}

}  // namespace sw
