// SPDX-License-Identifier: Apache-2.0
// FakeVduse: the kernel's half of one VDUSE device, in this process: /dev/vduse/control, the device's file with its
// messages, the IOTLB. Refuses what the real one refuses.
#pragma once

#include <fcntl.h>
#include <linux/ioctl.h>
#include <linux/vduse.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "base/fd.h"
#include "vhost_kernel/system.h"

namespace sw::testing {

class FakeVduse final : public KernelCalls {
 public:
  struct Range {
    uint64_t start;
    uint64_t last;
    int file;  // not owned
    uint64_t offset = 0;
    uint8_t perm = VDUSE_ACCESS_RW;
  };

  // What the test decides.
  int control_error = 0;                  // of opening /dev/vduse/control
  int device_error = 0;                   // of opening the device
  int create_error = 0;                   // of a device that does not exist
  bool exists = false;                    // the device
  bool attached = false;                  // to the vDPA bus: cannot be destroyed
  bool driver_ok = false;                 // what the kernel believes; set when DRIVER_OK was answered with OK
  uint64_t driver_features = 0;           //
  std::array<vduse_vq_info, 2> queues{};  //
  std::vector<Range> iotlb;               // sorted
  int broken = 0;                         // what reading messages ends with

  // What the test looks at.
  std::vector<unsigned long> requests;
  std::vector<uint8_t> created;  // the argument of CREATE_DEV
  std::vector<vduse_dev_response> answers;
  std::array<uint64_t, 2> interrupts{};
  std::array<UniqueFd, 2> kicks;
  std::vector<uint8_t> config_written;

  FakeVduse() : ready_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

  // The kernel asks something.
  void post(vduse_dev_request request) {
    request.request_id = next_id_++;
    messages_.push_back(request);
    wake();
  }
  void post_status(uint8_t status) {
    vduse_dev_request request{};
    request.type = VDUSE_SET_STATUS;
    request.s.status = status;
    post(request);
  }
  void wake() {
    const uint64_t one = 1;
    (void)!::write(ready_.get(), &one, sizeof one);
  }
  void kick(size_t queue) {
    const uint64_t one = 1;
    if (kicks[queue]) (void)!::write(kicks[queue].get(), &one, sizeof one);
  }
  [[nodiscard]] bool asked(unsigned long request) const {
    for (const unsigned long seen : requests) {
      if (seen == request) return true;
    }
    return false;
  }

  int open(const char* path, int) override {
    const std::string name = path;
    if (name == "/dev/vduse/control") return control_error != 0 ? failed(control_error) : duplicate(ready_.get());
    if (!exists) return failed(ENOENT);
    return device_error != 0 ? failed(device_error) : duplicate(ready_.get());
  }

  int ioctl(int, unsigned long request, void* argument) override {
    requests.push_back(request);
    switch (request) {
      case VDUSE_SET_API_VERSION:
        return 0;
      case VDUSE_CREATE_DEV:
        return create(argument);
      case VDUSE_DESTROY_DEV:
        if (!exists) return failed(EINVAL);
        if (attached) return failed(EBUSY);
        exists = false;
        return 0;
      case VDUSE_VQ_SETUP:
        return 0;
      case VDUSE_DEV_GET_FEATURES:
        std::memcpy(argument, &driver_features, sizeof driver_features);
        return 0;
      case VDUSE_DEV_SET_CONFIG: {
        const auto* change = static_cast<const vduse_config_data*>(argument);
        config_written.assign(change->buffer, change->buffer + change->length);
        return 0;
      }
      case VDUSE_VQ_GET_INFO: {
        auto* info = static_cast<vduse_vq_info*>(argument);
        if (info->index >= queues.size()) return failed(EINVAL);
        const uint32_t index = info->index;
        *info = queues[index];
        info->index = index;
        return 0;
      }
      case VDUSE_VQ_SETUP_KICKFD: {
        const auto* kick_fd = static_cast<const vduse_vq_eventfd*>(argument);
        if (kick_fd->index >= queues.size()) return failed(EINVAL);
        kicks[kick_fd->index].reset(kick_fd->fd < 0 ? -1 : duplicate(kick_fd->fd));
        return 0;
      }
      case VDUSE_VQ_INJECT_IRQ: {
        uint32_t index = 0;
        std::memcpy(&index, argument, sizeof index);
        if (!driver_ok || index >= queues.size()) return failed(EINVAL);
        ++interrupts[index];
        return 0;
      }
      case VDUSE_DEV_INJECT_CONFIG_IRQ:
        return driver_ok ? 0 : failed(EINVAL);
      case VDUSE_IOTLB_GET_FD:
        return range(static_cast<vduse_iotlb_entry*>(argument));
      default:
        return failed(ENOTTY);
    }
  }

  ssize_t read(int, void* data, size_t bytes) override {
    if (broken != 0) return failed(broken);
    if (messages_.empty()) {
      uint64_t count = 0;
      (void)!::read(ready_.get(), &count, sizeof count);
      return failed(EAGAIN);
    }
    std::memcpy(data, &messages_.front(), std::min(bytes, sizeof(vduse_dev_request)));
    asked_.push_back(messages_.front());
    messages_.pop_front();
    return sizeof(vduse_dev_request);
  }

  ssize_t write(int, const void* data, size_t bytes) override {
    vduse_dev_response response{};
    std::memcpy(&response, data, std::min(bytes, sizeof response));
    for (const vduse_dev_request& request : asked_) {
      if (request.request_id != response.request_id) continue;
      if (request.type == VDUSE_SET_STATUS && response.result == VDUSE_REQ_RESULT_OK) {
        driver_ok = (request.s.status & 4) != 0;
      }
    }
    answers.push_back(response);
    return static_cast<ssize_t>(bytes);
  }

 private:
  static int failed(int error) {
    errno = error;
    return -1;
  }
  static int duplicate(int fd) { return ::fcntl(fd, F_DUPFD_CLOEXEC, 0); }

  int create(const void* argument) {
    if (exists) return failed(EEXIST);
    if (create_error != 0) return failed(create_error);
    const auto* config = static_cast<const vduse_dev_config*>(argument);
    const auto* bytes = static_cast<const uint8_t*>(argument);
    created.assign(bytes, bytes + sizeof *config + config->config_size);
    exists = true;
    return 0;
  }

  int range(vduse_iotlb_entry* entry) {
    if (entry->start > entry->last) return failed(EINVAL);
    for (const Range& known : iotlb) {
      if (known.last < entry->start || known.start > entry->last) continue;
      *entry = {};
      entry->offset = known.offset;
      entry->start = known.start;
      entry->last = known.last;
      entry->perm = known.perm;
      return duplicate(known.file);
    }
    return failed(EINVAL);
  }

  UniqueFd ready_;
  std::deque<vduse_dev_request> messages_;
  std::vector<vduse_dev_request> asked_;
  uint32_t next_id_ = 1;
};

}  // namespace sw::testing
