// SPDX-License-Identifier: Apache-2.0
// Theory of operation. The port exists without its device: it waits for the control plane to bring one (port/nic.h),
// and a device that is lost takes its queues out of the plan and leaves the port waiting again. Registered memory is on
// huge pages when there are any, one run of receive and one of transmit slots per queue.
#include "port/verbs.h"

#ifdef SW_HAVE_VERBS
#include <algorithm>
#include <optional>
#include <utility>

#include "mem/region.h"
#include "port/nic.h"
#include "port/verbs_handles.h"
#include "port/verbs_rx.h"
#include "port/verbs_tx.h"

namespace sw {

namespace {

constexpr uint32_t kMaxQueues = 128;
constexpr uint32_t kRxSlots = 1024;
constexpr uint32_t kTxSlots = 1024;
constexpr uint32_t kMaxSlotBytes = 65536;
constexpr uint32_t kSlotAlign = 64;
constexpr uint32_t kLinkBytes = kEthHeaderBytes + 2 * kVlanTagBytes;
constexpr uint32_t kMaxMtu = kMaxSlotBytes - kLinkBytes;
constexpr uint32_t kMinMtu = 68;  // of IPv4 (RFC 791)

class VerbsPort : public Port, public NicSeat {
 public:
  VerbsPort(const PortConfig& config, PortCounters counters) : config_(config), counters_(counters) {}

  Result<void> open(PortHost& host) override;
  void close() override;
  [[nodiscard]] std::vector<RxQueue*> rx_queues() const override;
  [[nodiscard]] std::vector<TxQueue*> tx_queues() const override;
  [[nodiscard]] PortStatus status() const override;
  NicSeat* nic_seat() override { return this; }

  Result<NicMemory> reserve(uint32_t mtu) override;
  Result<int> attach(const NicHandles& handles) override;
  void detach(const std::string& why) override;
  void set_link(bool up, const std::string& why) override;
  [[nodiscard]] std::string fault() const override;

 private:
  [[nodiscard]] bool attached() const { return !tx_.empty(); }
  [[nodiscard]] std::string segmentation() const;
  [[nodiscard]] VerbsSlots slots(uint32_t queue, bool transmit, uint32_t lkey) const;
  Result<void> check_shape(const NicHandles& handles) const;
  void add_rings(PortStatus& status) const;

  PortConfig config_;
  PortCounters counters_;
  PortHost* host_ = nullptr;
  std::optional<HugeRegion> memory_;
  uint32_t slot_bytes_ = 0;
  uint32_t mtu_ = 0;  // of the device
  std::vector<std::unique_ptr<VerbsRx>> rx_;
  std::vector<std::unique_ptr<VerbsTx>> tx_;
  NicHandles handles_;  // of the attached device
  bool link_up_ = false;
  std::string why_ = "no device was given to the port yet";  // why it does not run
  uint64_t attached_times_ = 0;
  uint64_t tso_frames_ = 0;  // of queues that are gone
  uint64_t lost_times_ = 0;
};

Result<void> VerbsPort::open(PortHost& host) {
  host_ = &host;
  if (config_.device.empty()) return Error{0, "open a verbs port: no device is given"};
  if (config_.queues == 0 || config_.queues > kMaxQueues) {
    return Error{0, "open a verbs port with " + std::to_string(config_.queues) + " queues: it can have 1 to " +
                        std::to_string(kMaxQueues)};
  }
  return {};
}

void VerbsPort::close() {
  for (const auto& queue : tx_) tso_frames_ += queue->tso_frames();
  rx_.clear();
  tx_.clear();
}

// Receive queues are polled while the device is there: what arrives before a lost link was noticed is delivered still.
std::vector<RxQueue*> VerbsPort::rx_queues() const {
  std::vector<RxQueue*> list;
  for (const auto& queue : rx_) list.push_back(queue.get());
  return list;
}

std::vector<TxQueue*> VerbsPort::tx_queues() const {
  std::vector<TxQueue*> list;
  if (!link_up_) return list;
  for (const auto& queue : tx_) list.push_back(queue.get());
  return list;
}

VerbsSlots VerbsPort::slots(uint32_t queue, bool transmit, uint32_t lkey) const {
  const size_t first = size_t{queue} * (kRxSlots + kTxSlots) + (transmit ? kRxSlots : 0);
  return {.memory = reinterpret_cast<uint8_t*>(memory_->data()) + first * slot_bytes_,
          .slot_bytes = slot_bytes_,
          .count = transmit ? kTxSlots : kRxSlots,
          .lkey = lkey};
}

Result<NicMemory> VerbsPort::reserve(uint32_t mtu) {
  if (attached()) return Error{0, "reserve memory for " + config_.device + ": a device is attached"};
  if (mtu < kMinMtu || mtu > kMaxMtu) {
    return Error{0, "reserve memory for frames of " + config_.device + " with an MTU of " + std::to_string(mtu) +
                        ": possible are " + std::to_string(kMinMtu) + " to " + std::to_string(kMaxMtu)};
  }
  const uint32_t slot_bytes = (mtu + kLinkBytes + kSlotAlign - 1) / kSlotAlign * kSlotAlign;
  if (!memory_ || slot_bytes != slot_bytes_) {
    memory_.reset();
    const size_t bytes = size_t{config_.queues} * (kRxSlots + kTxSlots) * slot_bytes;
    auto region = HugeRegion::make({.name = "switch-" + config_.name, .bytes = bytes});
    if (!region) {
      return Error{region.error().code, region.error().what + " for " + config_.device + " (" +
                                            std::to_string(bytes / config_.queues >> 20) +
                                            " MB for each queue: free memory, or give the port fewer queues)"};
    }
    memory_ = std::move(*region);
    slot_bytes_ = slot_bytes;
  }
  mtu_ = mtu;
  return NicMemory{.address = reinterpret_cast<uintptr_t>(memory_->data()),
                   .bytes = memory_->size(),
                   .page_bytes = memory_->page_bytes(),
                   .rx_slots = kRxSlots,
                   .tx_slots = kTxSlots};
}

Result<void> VerbsPort::check_shape(const NicHandles& handles) const {
  const std::string what = "attach " + config_.device + ": ";
  if (attached()) return Error{0, what + "a device is attached already"};
  if (!memory_) return Error{0, what + "no memory was reserved for it"};
  if (handles.tx.size() != config_.queues || handles.rx.empty() || handles.rx.size() > config_.queues) {
    return Error{0, what + std::to_string(handles.rx.size()) + " receive and " + std::to_string(handles.tx.size()) +
                        " transmit queues for a port of " + std::to_string(config_.queues)};
  }
  return {};
}

Result<int> VerbsPort::attach(const NicHandles& handles) {
  if (auto fits = check_shape(handles); !fits) return fits.error();
  auto objects = check_handles(handles);
  if (!objects) return objects.error();
  const VerbsCalls calls = VerbsCalls::find();
  std::vector<std::unique_ptr<VerbsRx>> rx;
  for (uint32_t q = 0; q < handles.rx.size(); ++q) {
    VerbsRx::Source source;
    if (handles.rx_work_queues) {
      source.wq = objects->rx_wqs[q];
    } else {
      source.qp = objects->rx_qps[q];
    }
    rx.push_back(std::make_unique<VerbsRx>(source, slots(q, false, handles.lkey),
                                           handles.rx_checksum && config_.offloads, calls, counters_.rx[q]));
    if (auto posted = rx.back()->post_all(); !posted) return posted.error();
  }
  std::vector<std::unique_ptr<VerbsTx>> tx;
  for (uint32_t q = 0; q < handles.tx.size(); ++q) {
    const VerbsTx::Options options{.mtu = mtu_,
                                   .max_inline = handles.max_inline,
                                   .checksum = handles.tx_checksum && config_.offloads,
                                   .checksum_v6 = handles.tx_checksum_v6 && config_.offloads,
                                   .offloads = config_.offloads,
                                   .max_tso = handles.max_tso,
                                   .max_tso_header = handles.max_tso_header};
    tx.push_back(std::make_unique<VerbsTx>(objects->tx[q], slots(q, true, handles.lkey), options, counters_.tx[q]));
  }
  {
    const PortPause pause(*host_, *this);
    rx_ = std::move(rx);
    tx_ = std::move(tx);
    link_up_ = false;
  }
  handles_ = handles;
  why_ = "the device was opened a moment ago";
  ++attached_times_;
  host_->event(*this, "device_attached", config_.device);
  return objects->context->async_fd;
}

void VerbsPort::detach(const std::string& why) {
  why_ = why;
  if (!attached()) return;
  {
    const PortPause pause(*host_, *this);
    close();
    link_up_ = false;
  }
  handles_ = {};
  ++lost_times_;
  host_->event(*this, "device_detached", why);
}

void VerbsPort::set_link(bool up, const std::string& why) {
  if (!attached()) return;
  why_ = why;
  if (up == link_up_) return;
  {
    const PortPause pause(*host_, *this);
    link_up_ = up;
  }
  host_->event(*this, up ? "link_up" : "link_down", up ? config_.device : why);
}

std::string VerbsPort::fault() const {
  for (const auto& queue : rx_) {
    if (queue->fault().is_set()) return queue->fault().text();
  }
  for (const auto& queue : tx_) {
    if (queue->fault().is_set()) return queue->fault().text();
  }
  return "";
}

void VerbsPort::add_rings(PortStatus& status) const {
  for (size_t q = 0; q < rx_.size(); ++q) {
    status.rings.push_back({"rx" + std::to_string(q),
                            {{"kind", handles_.rx_work_queues ? "work queue" : "raw packet queue pair"},
                             {"number", std::to_string(handles_.rx[q].number)},
                             {"slots", std::to_string(kRxSlots)},
                             {"slot_bytes", std::to_string(slot_bytes_)},
                             {"wakes_worker", rx_[q]->wake_fd() < 0 ? "no" : "yes"},
                             {"fault", rx_[q]->fault().text()}}});
  }
  for (size_t q = 0; q < tx_.size(); ++q) {
    status.rings.push_back({"tx" + std::to_string(q),
                            {{"kind", "raw packet queue pair"},
                             {"number", std::to_string(handles_.tx[q].number)},
                             {"slots", std::to_string(kTxSlots)},
                             {"slot_bytes", std::to_string(slot_bytes_)},
                             {"inline_bytes", std::to_string(handles_.max_inline)},
                             {"fault", tx_[q]->fault().text()}}});
  }
}

std::string VerbsPort::segmentation() const {
  if (!config_.offloads) return "off";
  if (handles_.max_tso == 0) return "none: the switch cuts";
  const bool all = std::all_of(tx_.begin(), tx_.end(), [](const auto& queue) { return queue->device_cuts(); });
  if (!all) return "the device's library refused it: the switch cuts";
  return "TCP up to " + std::to_string(handles_.max_tso) + " bytes";
}

PortStatus VerbsPort::status() const {
  PortStatus status;
  status.facts = handles_.facts;
  status.facts["device"] = config_.device;
  status.counters["attached"] = attached_times_;
  status.counters["lost"] = lost_times_;
  uint64_t tso_frames = tso_frames_;
  for (const auto& queue : tx_) tso_frames += queue->tso_frames();
  status.counters["tso_frames"] = tso_frames;
  if (memory_) {
    status.facts["mtu"] = std::to_string(mtu_);
    status.facts["memory"] = std::to_string(memory_->size() >> 20) + " MB in pages of " +
                             std::to_string(memory_->page_bytes() >> 10) + " KB";
  }
  if (!attached()) {
    status.stage = "waiting_for_device";
    status.detail = why_;
    return status;
  }
  status.facts["checksum_offload"] = !config_.offloads                              ? "off"
                                     : handles_.rx_checksum && handles_.tx_checksum ? "both ways"
                                     : handles_.rx_checksum                         ? "receive"
                                     : handles_.tx_checksum                         ? "transmit"
                                                                                    : "none";
  // Devices say of received frames over IPv4 alone whether their checksums are right.
  status.facts["checksum_offload_ipv6"] = config_.offloads && handles_.tx_checksum_v6 ? "transmit" : "none";
  status.facts["segmentation_offload"] = segmentation();
  add_rings(status);
  if (const std::string broken = fault(); !broken.empty()) {
    status.stage = "device_broken";
    status.detail = broken + "; it is opened anew";
  } else if (!link_up_) {
    status.stage = "link_down";
    status.detail = why_;
  } else {
    status.stage = "running";
    status.up = true;
  }
  return status;
}

}  // namespace

Result<std::unique_ptr<Port>> make_verbs(const PortConfig& config, PortCounters counters) {
  return std::unique_ptr<Port>(std::make_unique<VerbsPort>(config, counters));
}

}  // namespace sw
#else
namespace sw {

Result<std::unique_ptr<Port>> make_verbs(const PortConfig&, PortCounters) {
  return Error{0,
               "type 'verbs' was not built: it needs the header of libibverbs; install libibverbs-dev (rdma-core-devel "
               "elsewhere) and build the switch again"};
}

}  // namespace sw
#endif
