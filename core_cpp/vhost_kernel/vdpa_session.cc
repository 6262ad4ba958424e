// SPDX-License-Identifier: Apache-2.0
#include "vhost_kernel/vdpa_session.h"

#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "vhost_kernel/uapi.h"
#include "virtio/control_queue.h"
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
  if (auto done = session->share_address_space(); !done) return done.error();
  if (auto done = session->hand_over_rings(); !done) return done.error();
  if (auto done = session->give_orders(wishes.answer_ms); !done) return done.error();
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
  offered_backend_features_ = *features;
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
  // 5.1.3.1: both need the control queue, and without them it has nothing to do.
  const uint64_t orders =
      feature_mask(VIRTIO_NET_F_CTRL_RX) | (wishes.queue_pairs > 1 ? feature_mask(VIRTIO_NET_F_MQ) : 0);
  if (has_feature(offered_, VIRTIO_NET_F_CTRL_VQ) && (offered_ & orders) != 0) {
    wanted |= orders | feature_mask(VIRTIO_NET_F_CTRL_VQ);
  }
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
  const bool several = has_feature(offered_, VIRTIO_NET_F_MQ) && has_feature(offered_, VIRTIO_NET_F_CTRL_VQ);
  device_queue_pairs_ = several ? std::max<uint32_t>(config_.max_virtqueue_pairs, 1) : 1;
  queue_pairs_ = wishes.queue_pairs;
  if (queue_pairs_ > device_queue_pairs_) {
    std::string why = "use " + std::to_string(queue_pairs_) + " queue pairs of " + device_.path() + ": it has " +
                      std::to_string(device_queue_pairs_);
    if (!several) why += ", for it does not offer VIRTIO_NET_F_MQ with VIRTIO_NET_F_CTRL_VQ";
    return Error{EINVAL, why + "; set queues: " + std::to_string(device_queue_pairs_) +
                             ", or make the device with more (vdpa dev add ... max_vqp N, where its driver has them)"};
  }
  const bool control = has_feature(features_, VIRTIO_NET_F_CTRL_VQ);
  const uint32_t needed = control ? control_ring() + 1 : 2 * queue_pairs_;
  uint32_t served = 0;  // kernels before 5.18 do not tell
  if (auto done = device_.request(VHOST_VDPA_GET_VQS_COUNT, &served, "count the rings of");
      !done && done.error().code != ENOTTY) {
    return done;
  }
  if (served != 0 && served < needed) {
    return Error{EINVAL, "use " + std::to_string(queue_pairs_) + " queue pairs of " + device_.path() + ": it serves " +
                             std::to_string(served) + " rings, and " + std::to_string(needed) +
                             " are needed (the control queue lies behind all pairs of the device)" +
                             (queue_pairs_ > 1 ? "; set queues: 1" : "")};
  }
  uint16_t largest = 0;
  if (auto done = device_.request(VHOST_VDPA_GET_VRING_NUM, &largest, "ask for the ring size of"); !done) return done;
  if (largest == 0) return Error{EINVAL, "use " + device_.path() + ": its rings have no entries"};
  const uint32_t room = std::bit_floor(uint32_t{largest});
  ring_size_ = std::min(room, wishes.ring_size);
  if (control) {
    constexpr uint32_t kControlEntries = 64;
    control_entries_ = std::min(room, kControlEntries);
    if (control_entries_ < 2) {
      return Error{EINVAL, "use " + device_.path() + ": its rings have too few entries for a command"};
    }
  }
  return {};
}

Result<void> VdpaSession::hand_over_memory() {
  DriverMemoryOptions options;
  options.features = features_;
  options.queue_pairs = queue_pairs_;
  options.ring_size = static_cast<uint16_t>(ring_size_);
  options.control_entries = static_cast<uint16_t>(control_entries_);
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

// 5.1.2: behind all pairs that the device has, used or not; without MQ it has one.
uint32_t VdpaSession::control_ring() const {
  return has_feature(features_, VIRTIO_NET_F_MQ) ? 2 * device_queue_pairs_ : 2;
}

std::vector<std::pair<uint32_t, const DriverMemory::Ring*>> VdpaSession::rings() const {
  std::vector<std::pair<uint32_t, const DriverMemory::Ring*>> rings;
  for (uint32_t i = 0; i < memory_->rings().size(); ++i) rings.emplace_back(i, &memory_->rings()[i]);
  if (memory_->control() != nullptr) rings.emplace_back(control_ring(), memory_->control());
  return rings;
}

// A device may keep groups of rings apart, most often the control queue, each group in an address space of its choice.
// We map one space.
Result<void> VdpaSession::share_address_space() {
  if ((offered_backend_features_ & backend_bit(VHOST_BACKEND_F_IOTLB_ASID)) == 0) return {};
  const auto absent = [](const Error& error) { return error.code == ENOTTY || error.code == EOPNOTSUPP; };
  uint32_t groups = 0;
  if (auto done = device_.request(VHOST_VDPA_GET_GROUP_NUM, &groups, "ask for the ring groups of"); !done) {
    return absent(done.error()) ? Result<void>() : done;
  }
  if (groups < 2) return {};
  for (const auto& [index, ring] : rings()) {
    const std::string what = "ring " + std::to_string(index) + " of";
    vhost_vring_state group{index, 0};
    if (auto done = device_.request(VHOST_VDPA_GET_VRING_GROUP, &group, "ask for the group of " + what); !done) {
      return absent(done.error()) ? Result<void>() : done;
    }
    vhost_vring_state space{group.num, 0};
    if (auto done = device_.request(VHOST_VDPA_SET_GROUP_ASID, &space, "choose the address space of " + what); !done) {
      return absent(done.error()) ? Result<void>() : done;
    }
  }
  return {};
}

Result<void> VdpaSession::hand_over_rings() {
  const auto rings = this->rings();
  for (const auto& [index, ring] : rings) {
    if (auto done = device_.set_ring(index, *ring); !done) return done;
  }
  int changed = config_changed_.get();
  // A device without such interrupts says so, and the link is then up for ever.
  if (auto done = device_.request(VHOST_VDPA_SET_CONFIG_CALL, &changed, "watch the configuration of"); !done) {
    if (has_feature(features_, VIRTIO_NET_F_STATUS)) return done;
  }
  for (const auto& [index, ring] : rings) {
    vhost_vring_state enable{index, 1};
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

// 5.1.6.5: after DRIVER_OK, and before a frame is sent on a further pair.
Result<void> VdpaSession::give_orders(uint64_t answer_ms) {
  promiscuous_ = Promiscuous::kNotOffered;
  if (memory_->control() != nullptr) {
    ControlQueue control(memory_->control()->config);
    if (has_feature(features_, VIRTIO_NET_F_MQ)) {
      const std::array<uint8_t, 2> pairs = {static_cast<uint8_t>(queue_pairs_),
                                            static_cast<uint8_t>(queue_pairs_ >> 8)};
      const std::string order = "tell " + device_.path() + " to use " + std::to_string(queue_pairs_) +
                                " queue pairs (VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET): ";
      const std::string remedy = "; with queues: 1 the port does without this command";
      auto answer = control.send(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, pairs, answer_ms);
      if (!answer) return Error{0, order + answer.error().what + remedy};
      if (*answer == ControlAnswer::kRefused) return Error{0, order + "the device refused" + remedy};
    }
    if (has_feature(features_, VIRTIO_NET_F_CTRL_RX)) {
      const std::array<uint8_t, 1> on = {1};
      auto answer = control.send(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, on, answer_ms);
      if (!answer) {
        return Error{0, "tell " + device_.path() +
                            " to take frames to every address (VIRTIO_NET_CTRL_RX_PROMISC): " + answer.error().what +
                            "; unbind and bind it to its driver, update its firmware, or use it through another one"};
      }
      promiscuous_ = *answer == ControlAnswer::kDone ? Promiscuous::kOn : Promiscuous::kRefused;
    }
  }
  if (promiscuous_ == Promiscuous::kOn) return {};
  limits_ = "frames to other addresses than the device's own may not come in: ";
  limits_ +=
      promiscuous_ == Promiscuous::kRefused
          ? "it refused promiscuous mode (VIRTIO_NET_CTRL_RX_PROMISC); a virtual function has to be trusted by its "
            "host (ip link set PARENT vf N trust on)"
          : "it does not offer promiscuous mode (VIRTIO_NET_F_CTRL_RX)";
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
