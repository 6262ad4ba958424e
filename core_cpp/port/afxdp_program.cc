// SPDX-License-Identifier: Apache-2.0
#include "port/afxdp_program.h"

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "port/afxdp_abi.h"

namespace sw {

namespace {

Error no_rights(const std::string& device) {
  return {0, "load an XDP program for " + device +
                 ": this needs CAP_BPF and CAP_NET_ADMIN (run as root, or give the service "
                 "AmbientCapabilities=CAP_NET_RAW CAP_NET_ADMIN CAP_BPF)"};
}

Error bpf_error(int error, const std::string& what, const std::string& device) {
  if (error == EPERM) return no_rights(device);
  if (error == ENOSYS) return {0, what + " for " + device + ": this kernel is built without BPF system calls"};
  return {error, what + " for " + device};
}

UniqueFd make_map(uint32_t queues) {
  bpf_attr attributes{};
  attributes.map_type = BPF_MAP_TYPE_XSKMAP;
  attributes.key_size = sizeof(uint32_t);
  attributes.value_size = sizeof(uint32_t);
  attributes.max_entries = queues;
  std::strncpy(attributes.map_name, "sw_queues", sizeof attributes.map_name - 1);
  return UniqueFd(bpf_call(BPF_MAP_CREATE, attributes));
}

// return bpf_redirect_map(&map, context->rx_queue_index, XDP_PASS);
UniqueFd load_program(int map, uint32_t flags) {
  const auto instruction = [](uint8_t code, uint8_t to, uint8_t from, int16_t offset, int32_t immediate) {
    bpf_insn made{};
    made.code = code;
    made.dst_reg = to & 0xfU;
    made.src_reg = from & 0xfU;
    made.off = offset;
    made.imm = immediate;
    return made;
  };
  const std::array<bpf_insn, 6> code = {
      instruction(BPF_LDX | BPF_MEM | BPF_W, BPF_REG_2, BPF_REG_1, offsetof(xdp_md, rx_queue_index), 0),
      instruction(BPF_LD | BPF_IMM | BPF_DW, BPF_REG_1, BPF_PSEUDO_MAP_FD, 0, map),
      instruction(0, 0, 0, 0, 0),  // upper half of the 64-bit constant
      instruction(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_3, 0, 0, XDP_PASS),
      instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_redirect_map),
      instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
  };
  bpf_attr attributes{};
  attributes.prog_type = BPF_PROG_TYPE_XDP;
  attributes.insns = reinterpret_cast<uintptr_t>(code.data());
  attributes.insn_cnt = code.size();
  attributes.license = reinterpret_cast<uintptr_t>("Apache-2.0");
  attributes.prog_flags = flags;
  attributes.expected_attach_type = static_cast<uint32_t>(kBpfAttachTypeXdp);
  std::strncpy(attributes.prog_name, "sw_to_sockets", sizeof attributes.prog_name - 1);
  return UniqueFd(bpf_call(BPF_PROG_LOAD, attributes));
}

UniqueFd attach_link(int program, int index, uint32_t flags) {
  bpf_attr attributes{};
  attributes.link_create.prog_fd = static_cast<uint32_t>(program);
  attributes.link_create.target_ifindex = static_cast<uint32_t>(index);
  attributes.link_create.attach_type = kBpfAttachTypeXdp;
  attributes.link_create.flags = flags;
  return UniqueFd(bpf_call(kBpfCommandLinkCreate, attributes));
}

// Two programs exclude each other: EBUSY in the same mode, EEXIST in the other one.
Error occupied(const std::string& device) {
  return {0, "attach an XDP program to " + device + ": another XDP program is on it already (see: ip link show dev " +
                 device + "; bpftool net); stop what put it there, or remove it with: ip link set dev " + device +
                 " xdp off"};
}

bool is_occupied(int error) { return error == EBUSY || error == EEXIST; }

}  // namespace

Result<XdpProgram> XdpProgram::attach(int index, const std::string& device, uint32_t queues) {
  XdpProgram made;
  made.map_ = make_map(queues);
  if (!made.map_) return bpf_error(errno, "make a map of AF_XDP sockets", device);
  made.program_ = load_program(made.map_.get(), kBpfXdpHasFrags);
  made.fragments_ = static_cast<bool>(made.program_);
  if (!made.program_ && errno == EINVAL) made.program_ = load_program(made.map_.get(), 0);
  if (!made.program_) return bpf_error(errno, "load an XDP program", device);
  made.link_ = attach_link(made.program_.get(), index, kXdpFlagsDrvMode);
  if (made.link_) return made;
  const int in_driver = errno;
  if (is_occupied(in_driver)) return occupied(device);
  if (in_driver == EPERM) return no_rights(device);
  made.link_ = attach_link(made.program_.get(), index, kXdpFlagsSkbMode);
  if (!made.link_) {
    if (is_occupied(errno)) return occupied(device);
    return bpf_error(errno, "attach an XDP program", device);
  }
  made.why_generic_ = "the driver refused the program (" + std::string(std::strerror(in_driver)) + ")";
  return made;
}

Result<void> XdpProgram::serve(uint32_t queue, int socket) {
  bpf_attr attributes{};
  attributes.map_fd = static_cast<uint32_t>(map_.get());
  attributes.key = reinterpret_cast<uintptr_t>(&queue);
  attributes.value = reinterpret_cast<uintptr_t>(&socket);
  if (bpf_call(BPF_MAP_UPDATE_ELEM, attributes) != 0) {
    return Error{errno, "direct queue " + std::to_string(queue) + " to its AF_XDP socket"};
  }
  return {};
}

}  // namespace sw
