// SPDX-License-Identifier: Apache-2.0
#include "port/afxdp_port.h"
#include "port/host_device.h"

namespace sw {

namespace {

std::string count_of(uint64_t number, const std::string& what) {
  return std::to_string(number) + " " + what + (number == 1 ? "" : "s");
}

std::string memory_text(const XdpUmem& umem) {
  if (!umem.region.warning().empty()) return umem.region.warning();
  const size_t page = umem.region.page_bytes();
  if (page >= kHugePage1G) return "huge pages of 1 GB";
  return page >= kHugePage2M ? "huge pages of 2 MB" : "normal pages";
}

}  // namespace

PortStatus AfXdpPort::status() const {
  PortStatus status;
  status.facts["device"] = config_.device;
  status.counters["attached"] = attached_;
  status.counters["kernel_dropped"] = kernel_dropped_;
  status.counters["invalid_descriptors"] = invalid_descriptors_;
  const bool attached = attachment_ != nullptr;
  if (!describe_host_device(status, config_.device, exists_, link_, attached, problem_)) return status;
  if (attached) describe(status);
  return status;
}

void AfXdpPort::describe(PortStatus& status) const {
  const Attachment& now = *attachment_;
  const XdpMode& mode = now.queues.front().socket->mode();
  auto& facts = status.facts;
  facts["driver"] = now.device.driver;
  facts["xdp"] = now.program.in_driver() ? "in the driver" : "generic, which is slow: " + now.program.why_generic();
  facts["copy"] = mode.zero_copy ? "none (zero-copy)" : "by the kernel, each way: the driver has no zero-copy";
  facts["system_calls"] = mode.need_wakeup && mode.zero_copy ? "when the driver asks for one"
                          : mode.zero_copy                   ? "one per burst sent"
                                                             : "one per burst sent, none to receive";
  facts["multi_buffer"] = mode.fragments ? "yes" : "no: needs Linux 6.6 and a driver that can";
  facts["memory"] = memory_text(now.queues.front().socket->slice().umem());
  facts["offloads"] = "none: the switch finishes checksums and segments";
  facts["checksum"] = now.fixes_checksums ? "unfinished ones of local senders are finished" : "trusted";
  if (now.device.strips_vlan_tags) {
    facts["vlan_tags"] =
        "rx-vlan-offload is on: a tag that the device takes out is lost; turn it off with: ethtool -K " +
        config_.device + " rxvlan off (of a veth: txvlan off at its peer)";
  }
  std::string queues = std::to_string(now.queues.size());
  if (now.queues.size() < now.device.rx_queues) {
    queues += " of " + std::to_string(now.device.rx_queues) + ": frames that come in on the other " +
              count_of(now.device.rx_queues - now.queues.size(), "queue") +
              " stay with the host; raise `queues`, or use: ethtool -L " + config_.device + " combined " +
              std::to_string(now.queues.size());
  }
  facts["queues"] = queues;
  for (size_t q = 0; q < now.queues.size(); ++q) {
    const Queue& queue = now.queues[q];
    status.rings.push_back({"rx" + std::to_string(q),
                            {{"kind", "ring shared with the kernel"},
                             {"entries", std::to_string(kXdpRingEntries)},
                             {"chunk_bytes", std::to_string(kXdpChunkBytes)},
                             {"kernel_dropped", std::to_string(queue.counts.rx_lost)},
                             {"ring_full", std::to_string(queue.counts.rx_ring_full)},
                             {"fill_ring_empty", std::to_string(queue.counts.rx_fill_ring_empty)}}});
    if (!queue.tx) continue;
    status.rings.push_back({"tx" + std::to_string(q),
                            {{"kind", "ring shared with the kernel"},
                             {"entries", std::to_string(kXdpRingEntries)},
                             {"system_calls", std::to_string(queue.tx->wakeups())}}});
  }
}

}  // namespace sw
