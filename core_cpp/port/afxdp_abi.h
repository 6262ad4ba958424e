// SPDX-License-Identifier: Apache-2.0
// AF_XDP as the kernel speaks it (Documentation/networking/af_xdp.rst): what headers of distributions lack, and the
// system call bpf(). What a kernel does not know is found out at run time, never while compiling.
#pragma once

#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace sw {

inline constexpr uint16_t kXdpUseSg = 1U << 4;         // sxdp_flags: frames in several chunks; Linux 6.6
inline constexpr uint32_t kXdpPktContd = 1U << 0;      // xdp_desc.options: the frame goes on in the next one
inline constexpr int kXdpMaxTxSkbBudget = 9;           // option: descriptors sent by one system call; Linux 6.17
inline constexpr uint32_t kBpfXdpHasFrags = 1U << 5;   // prog_flags; Linux 5.18
inline constexpr uint32_t kXdpFlagsSkbMode = 1U << 1;  // link_create.flags
inline constexpr uint32_t kXdpFlagsDrvMode = 1U << 2;
inline constexpr uint32_t kBpfAttachTypeXdp = 37;  // BPF_XDP
inline constexpr int kBpfCommandLinkCreate = 28;   // BPF_LINK_CREATE

// A new descriptor or -1 with errno; 0 or -1 for commands that make none.
template <class Attributes>
int bpf_call(int command, Attributes& attributes) {
  return static_cast<int>(::syscall(SYS_bpf, command, &attributes, sizeof attributes));
}

}  // namespace sw
