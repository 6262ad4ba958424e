// SPDX-License-Identifier: Apache-2.0
#include "vhost_kernel/vduse_device.h"

#include <fcntl.h>
#include <linux/vduse.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

namespace sw {

namespace {

constexpr const char* kControl = "/dev/vduse/control";

std::string device_path(const std::string& name) { return "/dev/vduse/" + name; }

Error because(int code, const std::string& what, const std::string& remedy) {
  return {code, what + " (" + remedy + ")"};
}

Result<UniqueFd> open_control(KernelCalls& kernel) {
  UniqueFd control(kernel.open(kControl, O_RDWR | O_CLOEXEC));
  if (!control) {
    const int code = errno;
    const std::string what = std::string("open ") + kControl;
    if (code == ENOENT || code == ENXIO || code == ENODEV) {
      return because(code, what, "load the module vduse (modprobe vduse); network devices need Linux 6.10 or newer");
    }
    if (code == EACCES || code == EPERM) {
      return because(code, what,
                     "run the switch as root, or give its user this file and those of devices (a udev rule for "
                     "SUBSYSTEM vduse) and CAP_NET_ADMIN");
    }
    return Error{code, what};
  }
  __u64 version = VDUSE_API_VERSION;
  if (kernel.ioctl(control.get(), VDUSE_SET_API_VERSION, &version) != 0) {
    return Error{errno, "agree on version 0 of the VDUSE interface"};
  }
  return control;
}

Error explain_create(int code, const std::string& name) {
  const std::string what = "create the VDUSE network device " + name;
  switch (code) {
    case EINVAL:
      return because(code, what, "this kernel's vduse takes no network devices (Linux 6.10 or newer does)");
    case EPERM:
      return because(code, what, "network devices need CAP_NET_ADMIN: run the switch as root or grant it");
    case ENOSPC:
      return because(code, what, "the kernel has no room for another VDUSE device");
    default:
      return {code, what};
  }
}

// 0, or an errno.
int create(KernelCalls& kernel, int control, const VduseOptions& options) {
  std::vector<uint8_t> bytes(sizeof(vduse_dev_config) + sizeof options.config);
  auto* const config = reinterpret_cast<vduse_dev_config*>(bytes.data());
  std::memcpy(config->name, options.name.data(), options.name.size());
  config->device_id = kVirtioIdNet;
  config->features = options.features;
  config->vq_num = VduseDevice::kQueues;
  config->vq_align = 4096;
  config->config_size = sizeof options.config;
  std::memcpy(config->config, &options.config, sizeof options.config);
  return kernel.ioctl(control, VDUSE_CREATE_DEV, config) == 0 ? 0 : errno;
}

int destroy(KernelCalls& kernel, int control, const std::string& name) {
  char text[VDUSE_NAME_MAX] = {};
  std::memcpy(text, name.data(), name.size());
  return kernel.ioctl(control, VDUSE_DESTROY_DEV, text) == 0 ? 0 : errno;
}

}  // namespace

Result<VduseDevice> VduseDevice::open(KernelCalls& kernel, const VduseOptions& options) {
  if (options.name.empty() || options.name.size() >= VDUSE_NAME_MAX || options.name.find('/') != std::string::npos ||
      options.name == "control" || options.name[0] == '.') {
    return Error{EINVAL, "create a VDUSE device named '" + options.name +
                             "': 1 to 255 characters without '/', not 'control', not beginning with '.'"};
  }
  auto control = open_control(kernel);
  if (!control) return control.error();
  int code = create(kernel, control->get(), options);
  bool taken_over = false;
  if (code == EEXIST) {
    // Ours from before, or somebody else's. One that is attached or served cannot be destroyed.
    if (destroy(kernel, control->get(), options.name) == 0) {
      code = create(kernel, control->get(), options);
    } else {
      taken_over = true;
      code = 0;
    }
  }
  if (code != 0) return explain_create(code, options.name);

  const std::string path = device_path(options.name);
  UniqueFd fd(kernel.open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!fd) {
    const int failed = errno;
    if (!taken_over) destroy(kernel, control->get(), options.name);
    if (failed == EBUSY) return because(failed, "open " + path, "another process serves this device: end it first");
    if (failed == ENOENT) {
      return because(failed, "open " + path, "the device exists and its file does not: is /dev a devtmpfs here?");
    }
    return Error{failed, "open " + path};
  }
  VduseDevice device(kernel, options.name, std::move(fd), taken_over);
  if (auto done = device.set_up(options); !done) {
    device.remove();
    return done.error();
  }
  return device;
}

Result<void> VduseDevice::set_up(const VduseOptions& options) const {
  if (taken_over_) {
    vduse_vq_info info{};
    if (ring_info(kQueues - 1, info) && !ring_info(kQueues, info)) return {};
    return Error{EINVAL, "take over the VDUSE device " + name_ +
                             ": it is attached and is no network device with one queue pair, or the kernel has given "
                             "it up after a server that did not answer; run: vdpa dev del " +
                             name_};
  }
  for (uint32_t i = 0; i < kQueues; ++i) {
    vduse_vq_config queue{};
    queue.index = i;
    queue.max_size = options.ring_size;
    if (kernel_->ioctl(fd_.get(), VDUSE_VQ_SETUP, &queue) != 0) {
      return Error{errno, "set up queue " + std::to_string(i) + " of the VDUSE device " + name_};
    }
  }
  return {};
}

bool VduseDevice::remove() {
  fd_.reset();
  auto control = open_control(*kernel_);
  return control && destroy(*kernel_, control->get(), name_) == 0;
}

bool VduseDevice::receive(vduse_dev_request& request) const {
  const ssize_t bytes = kernel_->read(fd_.get(), &request, sizeof request);
  if (bytes >= 0 && bytes != static_cast<ssize_t>(sizeof request)) errno = EPROTO;
  return bytes == static_cast<ssize_t>(sizeof request);
}

bool VduseDevice::answer(const vduse_dev_response& response) const {
  return kernel_->write(fd_.get(), &response, sizeof response) == static_cast<ssize_t>(sizeof response);
}

Result<uint64_t> VduseDevice::driver_features() const {
  __u64 features = 0;
  if (kernel_->ioctl(fd_.get(), VDUSE_DEV_GET_FEATURES, &features) != 0) {
    return Error{errno, "ask for the driver's features of the VDUSE device " + name_};
  }
  return uint64_t{features};
}

bool VduseDevice::ring_info(uint32_t index, vduse_vq_info& info) const {
  info = {};
  info.index = index;
  return kernel_->ioctl(fd_.get(), VDUSE_VQ_GET_INFO, &info) == 0;
}

bool VduseDevice::set_kick(uint32_t index, int fd) const {
  vduse_vq_eventfd kick{};
  kick.index = index;
  kick.fd = fd < 0 ? VDUSE_EVENTFD_DEASSIGN : fd;
  return kernel_->ioctl(fd_.get(), VDUSE_VQ_SETUP_KICKFD, &kick) == 0;
}

bool VduseDevice::interrupt(uint32_t index) const {
  __u32 queue = index;
  return kernel_->ioctl(fd_.get(), VDUSE_VQ_INJECT_IRQ, &queue) == 0;
}

int VduseDevice::iotlb_file(vduse_iotlb_entry& entry) const {
  return kernel_->ioctl(fd_.get(), VDUSE_IOTLB_GET_FD, &entry);
}

Result<void> VduseDevice::write_config(uint32_t offset, const void* data, uint32_t bytes) const {
  std::vector<uint8_t> buffer(sizeof(vduse_config_data) + bytes);
  auto* const change = reinterpret_cast<vduse_config_data*>(buffer.data());
  change->offset = offset;
  change->length = bytes;
  std::memcpy(change->buffer, data, bytes);
  if (kernel_->ioctl(fd_.get(), VDUSE_DEV_SET_CONFIG, change) != 0) {
    return Error{errno, "write the configuration of the VDUSE device " + name_};
  }
  // Without a driver there is nobody to tell.
  (void)kernel_->ioctl(fd_.get(), VDUSE_DEV_INJECT_CONFIG_IRQ, nullptr);
  return {};
}

}  // namespace sw
