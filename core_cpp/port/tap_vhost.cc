// SPDX-License-Identifier: Apache-2.0
#include "port/tap_vhost.h"

#include <linux/if_tun.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <climits>
#include <utility>

namespace sw {

// Receive queue 0, with what the tap itself lost on the way to us.
class TapVhost::FirstRx final : public RxQueue {
 public:
  explicit FirstRx(DriverRx& ring) : RxQueue(ring.counters()), ring_(ring) {}

  bool peek(Batch& batch, PortWorkerCounters& drops) override {
    kernel_drops.take_over(*counters_, drops);
    return ring_.peek(batch, drops);
  }
  void release() override { ring_.release(); }
  void notify() override { ring_.notify(); }
  bool arm() override { return ring_.arm(); }
  void disarm() override { ring_.disarm(); }
  [[nodiscard]] int wake_fd() const override { return ring_.wake_fd(); }

  KernelDrops kernel_drops;

 private:
  DriverRx& ring_;
};

// Here, where FirstRx is complete.
TapVhost::TapVhost() = default;
TapVhost::~TapVhost() = default;

Result<std::unique_ptr<TapVhost>> TapVhost::make(std::unique_ptr<VhostNet> net, std::span<const int> taps,
                                                 const OffloadCaps& caps, PortCounters counters) {
  // A tap that waits for its readers would hold the kernel's thread, and with it the ring.
  for (const int tap : taps) {
    int unlimited = INT_MAX;
    if (::ioctl(tap, TUNSETSNDBUF, &unlimited) != 0)
      return Error{errno, "lift the send buffer limit of the tap device"};
  }
  DriverMemoryOptions options;
  options.features = net->features(caps);
  options.queue_pairs = static_cast<uint32_t>(taps.size());
  options.ring_size = kRingSize;
  auto device = DriverDevice::make(options, counters.rx, counters.tx);
  if (!device) return device.error();
  auto made = std::make_unique<TapVhost>();
  made->device_ = std::move(*device);
  made->first_rx_ = std::make_unique<FirstRx>(*made->device_->rx().front());
  made->net_ = std::move(net);
  if (auto started = made->net_->start(made->device_->memory(), taps); !started) return started.error();
  made->device_->kick_all();
  return made;
}

std::vector<RxQueue*> TapVhost::rx_queues() const {
  std::vector<RxQueue*> queues{first_rx_.get()};
  for (size_t q = 1; q < device_->rx().size(); ++q) queues.push_back(device_->rx()[q].get());
  return queues;
}

std::vector<TxQueue*> TapVhost::tx_queues() const {
  std::vector<TxQueue*> queues;
  for (const auto& queue : device_->tx()) queues.push_back(queue.get());
  return queues;
}

KernelDrops& TapVhost::kernel_drops() { return first_rx_->kernel_drops; }

std::string TapVhost::broken() {
  if (std::string why = device_->broken(); !why.empty()) return why;
  return net_->take_ring_error() ? "the kernel's vhost-net found a fault in a ring" : std::string();
}

}  // namespace sw
