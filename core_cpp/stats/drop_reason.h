// SPDX-License-Identifier: Apache-2.0
// DropReason: the closed set of reasons for which a frame is lost. Every lost frame is counted under exactly one of
// them, at exactly one port and direction. The names are a contract: label values of switch_port_drops_total.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace sw {

enum class DropReason : uint8_t {
  // The source's fault or state (direction rx).
  kMalformedDescriptor,  // chain outside guest memory, loop, wrong direction, shorter than its header
  kFrameTooShort,        // below 14 bytes
  kFrameTooLong,         // above what the port may send
  kBadOffload,           // virtio-net header asks for something impossible or not negotiated
  kQueueDisabled,        // started but disabled queue: virtio says the device discards
  kVlanMalformed,        // truncated tag
  kVlanNotAllowed,       // the port does not carry this VLAN
  kReservedMac,          // link-local protocols (802.1D), never forwarded
  kSourceZero,           // source address 00:00:00:00:00:00
  kSourceMulticast,      // source address with the group bit
  kHairpin,              // destination lives on the port the frame came from
  kIsolated,             // protected port to protected port
  kBlackhole,            // destination has a drop entry
  kNoDestination,        // nobody else carries this VLAN
  kFloodDisabled,        // unknown destination and flooding is off
  kPortDisabled,         // administratively down
  kKernelDropped,        // the kernel's ring to us was full (tap, afpacket, afxdp)
  // The destination's fault or state (direction tx).
  kRingFull,            // the peer gave no receive buffers
  kBufferTooSmall,      // the peer's receive buffer cannot hold the frame and mergeable buffers were not negotiated
  kLinkDown,            // nobody is connected, or no queue is ready
  kMtuExceeded,         // longer than the destination's MTU
  kOffloadUnsupported,  // could not be segmented or checksummed for the destination
  kKernelBusy,          // the kernel refused the frame for now (EAGAIN, ENOBUFS)
  kDeviceError,         // the kernel or device refused the frame for good
  kCount
};

inline constexpr DropReason kNoDrop = DropReason::kCount;
inline constexpr size_t kDropReasons = static_cast<size_t>(DropReason::kCount);

inline constexpr std::array<std::string_view, kDropReasons> kDropReasonNames = {"malformed_descriptor",
                                                                                "frame_too_short",
                                                                                "frame_too_long",
                                                                                "bad_offload",
                                                                                "queue_disabled",
                                                                                "vlan_malformed",
                                                                                "vlan_not_allowed",
                                                                                "reserved_mac",
                                                                                "source_zero",
                                                                                "source_multicast",
                                                                                "hairpin",
                                                                                "isolated",
                                                                                "blackhole",
                                                                                "no_destination",
                                                                                "flood_disabled",
                                                                                "port_disabled",
                                                                                "kernel_dropped",
                                                                                "ring_full",
                                                                                "buffer_too_small",
                                                                                "link_down",
                                                                                "mtu_exceeded",
                                                                                "offload_unsupported",
                                                                                "kernel_busy",
                                                                                "device_error"};

constexpr std::string_view name(DropReason reason) { return kDropReasonNames.at(static_cast<size_t>(reason)); }

}  // namespace sw
