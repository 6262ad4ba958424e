// SPDX-License-Identifier: Apache-2.0
// The kernel's half of a vhost-vdpa device, which does as a test says.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "support/control_device.h"
#include "vhost_kernel/uapi.h"
#include "vhost_kernel/vdpa_session.h"
#include "virtio/driver_features.h"
#include "virtio/spec.h"

namespace sw::testing {

inline constexpr uint64_t kNeeded = feature_mask(VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM);

inline constexpr uint64_t kPairs = feature_mask(VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ);
inline constexpr uint64_t kPromiscuous = feature_mask(VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ);

// Without a data path but with a control queue. Called from the port's threads.
class FakeVdpa final : public KernelCalls {
 public:
  explicit FakeVdpa(std::string device) : path(std::move(device)) { make_file(); }
  ~FakeVdpa() override { stop_control(); }

  // What the test decides, before the port opens or under `mutex`.
  std::string path;
  int open_error = 0;
  unsigned long failing = 0;  // this request ends with `error`
  int error = 0;
  uint32_t device_id = 1;
  uint64_t offered = kNeeded | feature_mask(VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_MTU);
  uint64_t backend_features = 1ULL << VHOST_BACKEND_F_IOTLB_MSG_V2 | 1ULL << VHOST_BACKEND_F_IOTLB_BATCH;
  uint8_t refuses = 0;  // status bits that do not stick
  uint16_t ring_size = 256;
  vhost_vdpa_iova_range range{0, UINT64_MAX};
  NetConfigSpace config{{2, 0, 0, 0, 0, 9}, kNetStatusLinkUp, 4, 1500};
  uint32_t control_ring = 8;  // its number
  std::function<void(ControlDevice&, const TakenCommand&)> obey = [](ControlDevice& device, const TakenCommand&) {
    device.answer(VIRTIO_NET_OK);
  };
  uint32_t served = 0;  // rings; 0: not told
  uint32_t groups = 1;  // of rings; with several the control queue has group 1, all others 0

  // What it looks at.
  std::mutex mutex;
  std::vector<std::string> steps;  // requests that changed something, in order
  std::vector<vhost_msg_v2> messages;
  std::vector<vhost_vring_addr> addresses;
  std::vector<uint32_t> bases;
  std::vector<uint32_t> enabled;                      // ring numbers
  std::vector<std::pair<uint32_t, uint32_t>> spaces;  // group, address space
  // Commands that the control queue brought.
  std::vector<TakenCommand> commands() {
    const std::lock_guard lock(commands_mutex_);
    return commands_;
  }
  uint64_t features = 0;
  uint8_t status = 0;
  int config_call = -1;
  std::atomic<int> opened{0};

  void make_file() { UniqueFd(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600)); }
  void change_link(bool up) {
    const std::lock_guard lock(mutex);
    config.status = up ? kNetStatusLinkUp : 0;
    const uint64_t one = 1;
    (void)!::write(config_call, &one, sizeof one);
  }

  int open(const char* name, int flags) override {
    if (open_error != 0) return failed(open_error);
    const int fd = ::open(name, flags);
    if (fd >= 0) ++opened;
    return fd;
  }
  ssize_t read(int, void*, size_t) override { return failed(EINVAL); }
  ssize_t write(int, const void* data, size_t bytes) override {
    const std::lock_guard lock(mutex);
    if (failing == VHOST_IOTLB_UPDATE) return failed(error);
    vhost_msg_v2 message{};
    std::memcpy(&message, data, std::min(bytes, sizeof message));
    messages.push_back(message);
    steps.emplace_back("map");
    return static_cast<ssize_t>(bytes);
  }
  int ioctl(int, unsigned long request, void* argument) override {
    const std::lock_guard lock(mutex);
    if (request == failing) return failed(error);
    switch (request) {
      case VHOST_SET_OWNER:
        return note("owner");
      case VHOST_VDPA_GET_DEVICE_ID:
        return give(argument, device_id);
      case VHOST_GET_BACKEND_FEATURES:
        return give(argument, backend_features);
      case VHOST_SET_BACKEND_FEATURES:
        return note("backend_features");
      case VHOST_GET_FEATURES:
        return give(argument, offered);
      case VHOST_SET_FEATURES:
        std::memcpy(&features, argument, sizeof features);
        return note("features");
      case VHOST_VDPA_GET_STATUS:
        return give(argument, status);
      case VHOST_VDPA_SET_STATUS:
        std::memcpy(&status, argument, 1);
        status = static_cast<uint8_t>(status & ~refuses);
        if (status == 0) stop_control();
        if ((status & kStatusDriverOk) != 0) start_control();
        return note("status " + std::to_string(status));
      case VHOST_VDPA_GET_CONFIG:
        std::memcpy(static_cast<uint8_t*>(argument) + 8, &config, sizeof config);
        return 0;
      case VHOST_VDPA_GET_VRING_NUM:
        return give(argument, ring_size);
      case VHOST_VDPA_GET_IOVA_RANGE:
        return give(argument, range);
      case VHOST_SET_VRING_BASE:
        bases.push_back(static_cast<const vhost_vring_state*>(argument)->num);
        return note("ring");
      case VHOST_SET_VRING_ADDR: {
        vhost_vring_addr address{};
        std::memcpy(&address, argument, sizeof address);
        addresses.push_back(address);
        return 0;
      }
      case VHOST_SET_VRING_NUM:
        sizes[static_cast<const vhost_vring_state*>(argument)->index] =
            static_cast<const vhost_vring_state*>(argument)->num;
        return 0;
      case VHOST_SET_VRING_KICK: {
        const auto* const file = static_cast<const vhost_vring_file*>(argument);
        if (file->index == control_ring) kick_.reset(::dup(file->fd));
        return 0;
      }
      case VHOST_VDPA_GET_VQS_COUNT:
        return served == 0 ? failed(ENOTTY) : give(argument, served);
      case VHOST_VDPA_GET_GROUP_NUM:
        return give(argument, groups);
      case VHOST_VDPA_GET_VRING_GROUP: {
        auto* const state = static_cast<vhost_vring_state*>(argument);
        state->num = state->index == control_ring ? 1 : 0;
        return 0;
      }
      case VHOST_VDPA_SET_GROUP_ASID: {
        const auto* const state = static_cast<const vhost_vring_state*>(argument);
        spaces.emplace_back(state->index, state->num);
        return 0;
      }
      case VHOST_VDPA_SET_CONFIG_CALL:
        std::memcpy(&config_call, argument, sizeof config_call);
        return note("config_call");
      case VHOST_VDPA_SET_VRING_ENABLE:
        enabled.push_back(static_cast<const vhost_vring_state*>(argument)->index);
        return note("enable");
      default:
        return 0;
    }
  }

 private:
  static int failed(int code) {
    errno = code;
    return -1;
  }
  template <class T>
  static int give(void* to, const T& value) {
    std::memcpy(to, &value, sizeof value);
    return 0;
  }
  int note(const std::string& step) {
    steps.push_back(step);
    return 0;
  }

  // As the device does: a control queue lives from DRIVER_OK to the reset.
  void start_control() {
    if (control_.joinable() || !has_feature(features, VIRTIO_NET_F_CTRL_VQ)) return;
    // The last ones: those of earlier sessions are still in the lists, and their memory is gone.
    const auto areas = std::find_if(addresses.rbegin(), addresses.rend(),
                                    [&](const vhost_vring_addr& one) { return one.index == control_ring; });
    if (areas == addresses.rend()) return;
    const auto update = std::find_if(messages.rbegin(), messages.rend(), [](const vhost_msg_v2& message) {
      return message.iotlb.type == VHOST_IOTLB_UPDATE;
    });
    const uint64_t offset = update->iotlb.uaddr - update->iotlb.iova;
    const auto pointer = [&](uint64_t address) { return reinterpret_cast<uint8_t*>(address + offset); };
    const RingMemory ring{static_cast<uint16_t>(sizes[control_ring]), pointer(areas->desc_user_addr),
                          pointer(areas->avail_user_addr), pointer(areas->used_user_addr)};
    stop_.reset(::eventfd(0, EFD_CLOEXEC));
    control_ = std::thread([this, device = ControlDevice(ring, features, offset)]() mutable {
      for (;;) {
        std::array<pollfd, 2> look = {pollfd{kick_.get(), POLLIN, 0}, pollfd{stop_.get(), POLLIN, 0}};
        if (::poll(look.data(), look.size(), -1) <= 0 || look[1].revents != 0) return;
        uint64_t count = 0;
        (void)!::read(kick_.get(), &count, sizeof count);
        while (auto command = device.take()) {
          {
            const std::lock_guard lock(commands_mutex_);
            commands_.push_back(*command);
          }
          obey(device, *command);
        }
      }
    });
  }
  void stop_control() {
    if (!control_.joinable()) return;
    const uint64_t one = 1;
    (void)!::write(stop_.get(), &one, sizeof one);
    control_.join();
  }

  std::map<uint32_t, uint32_t> sizes;
  std::mutex commands_mutex_;  // the control queue's thread never waits for `mutex`, whose holder may wait for it
  std::vector<TakenCommand> commands_;
  UniqueFd kick_;
  UniqueFd stop_;
  std::thread control_;
};

inline VdpaWishes wishes(const FakeVdpa& kernel) {
  VdpaWishes wanted;
  wanted.device = kernel.path;
  wanted.features = usable_driver_features({});
  wanted.answer_ms = 5000;
  return wanted;
}

// Descriptors of this process that are open on `path`.
inline size_t fds_of(const std::string& path) {
  size_t found = 0;
  for (int fd = 0; fd < 1024; ++fd) {
    char target[512] = {};
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    if (::readlink(link.c_str(), target, sizeof target - 1) > 0 && std::string(target).find(path) == 0) ++found;
  }
  return found;
}

}  // namespace sw::testing
