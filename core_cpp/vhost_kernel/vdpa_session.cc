// SPDX-License-Identifier: Apache-2.0
#include "vhost_kernel/vdpa_session.h"

#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "vhost_kernel/uapi.h"
#include "virtio/driver_features.h"

namespace sw {

namespace {

constexpr uint64_t backend_bit(uint32_t number) { return uint64_t{1} << number; }

// struct vhost_vdpa_config with room for what we read.
struct ConfigRequest {
  uint32_t offset = 0;
  uint32_t bytes = kNetConfigBytes;
  NetConfigSpace space{};
};
static_assert(offsetof(ConfigRequest, space) == offsetof(vhost_vdpa_config, buf));

Error explain_open(const Error& error, const std::string& path) {
  const auto because = [&](const std::string& remedy) { return Error{error.code, error.what + " (" + remedy + ")"}; };
  switch (error.code) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
      return because(
          "load the module vhost_vdpa, make the device (vdpa dev add name NAME mgmtdev DEVICE; vdpa mgmtdev "
          "show lists them) and bind it to vhost_vdpa; ls /sys/bus/vdpa/devices/*/ shows which file it has");
    case EBUSY:
      return because("another process uses this device: find it with fuser " + path + " and end it there");
    case EACCES:
    case EPERM:
      return because(
          "give the switch read and write permission on the file (a udev rule for SUBSYSTEM vhost-vdpa), or "
          "run it as root");
    default:
      return error;
  }
}

std::string memory_limit_hint(uint64_t bytes) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return {};
  return " (the device pins this memory, and the limit of locked memory is " + std::to_string(limit.rlim_cur / 1024) +
         " KB: raise it above " + std::to_string(bytes / 1024) + " KB for every such port: ulimit -l, LimitMEMLOCK=)";
}

// Of the file at `path`, another one for every file that was ever there; 0: none is.
uint64_t identity_of(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) return 0;
  return uint64_t{status.st_rdev} << 32 ^ uint64_t { status.st_ino };
}

}  // namespace

VdpaSession::VdpaSession(VhostDevice device) : device_(std::move(device)) {}
VdpaSession::~VdpaSession() = default;

Result<std::unique_ptr<VdpaSession>> VdpaSession::start(KernelCalls& kernel, const VdpaWishes& wishes) {
  auto device = VhostDevice::open(kernel, wishes.device);
  if (!device) return explain_open(device.error(), wishes.device);
  std::unique_ptr<VdpaSession> session(new VdpaSession(std::move(*device)));
  session->identity_ = identity_of(wishes.device);
  session->config_changed_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!session->config_changed_) return Error{errno, "create an eventfd"};
  if (auto done = session->identify(); !done) return done.error();
  if (auto done = session->negotiate(wishes); !done) return done.error();
  if (auto done = session->choose_queues(wishes); !done) return done.error();
  if (auto done = session->hand_over_memory(); !done) return done.error();
  if (auto done = session->hand_over_rings(); !done) return done.error();
  return session;
}

Result<void> VdpaSession::identify() {
  uint32_t id = 0;
  if (auto done = device_.request(VHOST_VDPA_GET_DEVICE_ID, &id, "ask for the kind of"); !done) return done;
  if (id != kVirtioIdNet) {
    return Error{EINVAL, "use " + device_.path() + " as a network device: it is a virtio device of kind " +
                             std::to_string(id) + ", not 1 (network)"};
  }
  auto features = device_.backend_features();
  if (!features) return features.error();
  if ((*features & backend_bit(VHOST_BACKEND_F_IOTLB_MSG_V2)) == 0) {
    return Error{EINVAL,
                 "hand memory to " + device_.path() + ": its kernel lacks IOTLB messages of version 2 (Linux 5.7)"};
  }
  backend_features_ =
      *features & (backend_bit(VHOST_BACKEND_F_IOTLB_MSG_V2) | backend_bit(VHOST_BACKEND_F_IOTLB_BATCH));
  return device_.set_backend_features(backend_features_);
}

Result<uint8_t> VdpaSession::status() const {
  uint8_t status = 0;
  if (auto done = device_.request(VHOST_VDPA_GET_STATUS, &status, "ask for the status of"); !done) return done.error();
  return status;
}

Result<void> VdpaSession::set_status(uint8_t bits) {
  status_ = bits == 0 ? uint8_t{0} : static_cast<uint8_t>(status_ | bits);
  return device_.request(VHOST_VDPA_SET_STATUS, &status_, "set the status of");
}

// virtio 1.3 3.1.1, steps 1 to 6.
Result<void> VdpaSession::negotiate(const VdpaWishes& wishes) {
  if (auto done = set_status(0); !done) return done;
  if (auto done = set_status(kStatusAcknowledge); !done) return done;
  if (auto done = set_status(kStatusDriver); !done) return done;
  auto offered = device_.features();
  if (!offered) return offered.error();
  offered_ = *offered;
  for (const auto& [bit, name] : {std::pair{VIRTIO_F_VERSION_1, "VIRTIO_F_VERSION_1"},
                                  std::pair{VIRTIO_F_ACCESS_PLATFORM, "VIRTIO_F_ACCESS_PLATFORM"}}) {
    if (!has_feature(offered_, bit)) {
      return Error{EINVAL, "use " + device_.path() + ": the device does not offer " + name + ", which vDPA needs"};
    }
  }
  uint64_t wanted =
      wishes.features | feature_mask(VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_ORDER_PLATFORM,
                                     VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_MTU);
  if (!has_feature(offered_, VIRTIO_NET_F_CTRL_VQ)) wanted |= feature_mask(VIRTIO_NET_F_MQ);
  uint64_t features = drop_dependent_features(offered_ & wanted);
  if (auto done = device_.set_features(features); !done) return done;
  features_ = features;
  if (auto done = set_status(kStatusFeaturesOk); !done) return done;
  auto now = status();
  if (!now) return now.error();
  if ((*now & kStatusFeaturesOk) == 0) {
    return Error{ENOTSUP, "agree on features with " + device_.path() +
                              ": the device refused them; try the port with offloads: false or packed: false"};
  }
  return refresh_config();
}

Result<void> VdpaSession::refresh_config() {
  uint64_t count = 0;
  (void)!::read(config_changed_.get(), &count, sizeof count);
  ConfigRequest request;
  if (auto done = device_.request(VHOST_VDPA_GET_CONFIG, &request, "read the configuration of"); !done) return done;
  config_ = request.space;
  return {};
}

bool VdpaSession::link_up() const {
  return !has_feature(features_, VIRTIO_NET_F_STATUS) || (config_.status & kNetStatusLinkUp) != 0;
}

Result<void> VdpaSession::choose_queues(const VdpaWishes& wishes) {
  uint32_t most = 1;
  if (has_feature(features_, VIRTIO_NET_F_MQ)) most = std::max<uint32_t>(config_.max_virtqueue_pairs, 1);
  queue_pairs_ = std::min(most, wishes.queue_pairs);
  if (queue_pairs_ < wishes.queue_pairs) {
    limits_ = "the device serves " + std::to_string(queue_pairs_) + " of " + std::to_string(wishes.queue_pairs) +
              " queue pairs";
    if (has_feature(offered_, VIRTIO_NET_F_MQ) && !has_feature(features_, VIRTIO_NET_F_MQ)) {
      limits_ += ": its further pairs are switched on over a control queue, which this port does not drive";
    }
  }
  uint16_t largest = 0;
  if (auto done = device_.request(VHOST_VDPA_GET_VRING_NUM, &largest, "ask for the ring size of"); !done) return done;
  if (largest == 0) return Error{EINVAL, "use " + device_.path() + ": its rings have no entries"};
  ring_size_ = std::min(std::bit_floor(uint32_t{largest}), wishes.ring_size);
  return {};
}

Result<void> VdpaSession::hand_over_memory() {
  DriverMemoryOptions options;
  options.features = features_;
  options.queue_pairs = queue_pairs_;
  options.ring_size = static_cast<uint16_t>(ring_size_);
  auto memory = DriverMemory::make(options);
  if (!memory) return memory.error();
  memory_ = std::move(*memory);
  memory_bytes_ = memory_->bytes();
  memory_warning_ = memory_->warning();

  vhost_vdpa_iova_range range{0, UINT64_MAX};
  // Kernels before 5.12 do not tell; there every address is tried.
  if (auto done = device_.request(VHOST_VDPA_GET_IOVA_RANGE, &range, "ask for the address range of");
      !done && done.error().code != ENOTTY && done.error().code != EOPNOTSUPP) {
    return done;
  }
  const auto fits = [&](uint64_t base) {
    return base >= range.first && base <= range.last && range.last - base >= memory_bytes_ - 1;
  };
  if (!fits(memory_->address())) {
    constexpr uint64_t kAlign = uint64_t{2} << 20;  // huge pages stay huge in the device's own tables
    // Not at 0, which some devices take for "nothing".
    const uint64_t base = (std::max<uint64_t>(range.first, 1) + kAlign - 1) / kAlign * kAlign;
    if (!fits(base)) {
      return Error{EINVAL, "place " + std::to_string(memory_bytes_) + " bytes of ring memory in the address range of " +
                               device_.path() + ": it is too small; lower ring_size or queues"};
    }
    memory_->place_at(base);
  }
  device_base_ = memory_->device_base();
  const bool batch = (backend_features_ & backend_bit(VHOST_BACKEND_F_IOTLB_BATCH)) != 0;
  auto mapped = device_.map(*memory_, batch);
  if (!mapped && (mapped.error().code == ENOMEM || mapped.error().code == EPERM)) {
    return Error{mapped.error().code, mapped.error().what + memory_limit_hint(memory_bytes_)};
  }
  return mapped;
}

Result<void> VdpaSession::hand_over_rings() {
  const auto& rings = memory_->rings();
  for (uint32_t i = 0; i < rings.size(); ++i) {
    if (auto done = device_.set_ring(i, rings[i]); !done) return done;
  }
  int changed = config_changed_.get();
  // A device without such interrupts says so, and the link is then up for ever.
  if (auto done = device_.request(VHOST_VDPA_SET_CONFIG_CALL, &changed, "watch the configuration of"); !done) {
    if (has_feature(features_, VIRTIO_NET_F_STATUS)) return done;
  }
  for (uint32_t i = 0; i < rings.size(); ++i) {
    vhost_vring_state enable{i, 1};
    if (auto done = device_.request(VHOST_VDPA_SET_VRING_ENABLE, &enable, "enable a ring of"); !done) return done;
  }
  if (auto done = set_status(kStatusDriverOk); !done) return done;
  auto now = status();
  if (!now) return now.error();
  if ((*now & kStatusDriverOk) == 0 || (*now & (kStatusNeedsReset | kStatusFailed)) != 0) {
    return Error{EIO, "start " + device_.path() + ": the device did not accept its rings (status " +
                          std::to_string(*now) + "); the kernel's log may say why"};
  }
  return {};
}

DriverDevice& VdpaSession::make_queues(std::span<QueueCounters> rx_counters, std::span<QueueCounters> tx_counters) {
  queues_ = DriverDevice::make(std::move(memory_), rx_counters, tx_counters);
  queues_->kick_all();
  return *queues_;
}

Result<void> VdpaSession::check() const {
  const uint64_t identity = identity_of(device_.path());
  if (identity != identity_) return Error{ENODEV, device_.path() + " was removed"};
  auto now = status();
  if (!now) return now.error();
  if ((*now & (kStatusNeedsReset | kStatusFailed)) != 0) {
    return Error{EIO, device_.path() + " asks for a reset (status " + std::to_string(*now) + ")"};
  }
  if ((*now & kStatusDriverOk) == 0) return Error{EIO, device_.path() + " was reset by somebody else"};
  return {};
}

}  // namespace sw
