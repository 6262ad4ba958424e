// SPDX-License-Identifier: Apache-2.0
// How far the set-up of a vhost-user port has come, and what to do when it is stuck.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <string_view>

#include "base/clock.h"
#include "port/vhostuser.h"
#include "vhost_user/features.h"
#include "virtio/spec.h"

namespace sw {

namespace {

std::string yes_no(bool value) { return value ? "yes" : "no"; }

struct Stage {
  std::string_view name;
  std::string detail;
};

// What the first ring that does not run waits for; a ring that broke comes first.
std::string ring_detail(const Backend& backend) {
  const auto& rings = backend.rings();
  const auto describe = [&](const Backend::Ring& ring) {
    const auto index = static_cast<size_t>(&ring - rings.data());
    return "ring " + std::to_string(index) + (index % 2 == 1 ? " (transmitq " : " (receiveq ") +
           std::to_string(index / 2) + ") " + ring.waiting;
  };
  for (const auto& ring : rings) {
    if (!ring.broken.empty()) return describe(ring) + "; reset the guest's driver (rebind it, or restart the guest)";
  }
  for (const auto& ring : rings) {
    if (ring.live() == nullptr && (ring.wish.address || ring.wish.kicked)) return describe(ring);
  }
  return "no ring was set up and kicked: the guest's driver is not loaded, or the guest is restarting";
}

Stage stage_of(const Backend& backend) {
  if (!backend.heard()) return {"connected", "the peer is connected and says nothing: is it a vhost-user front-end?"};
  if (!backend.features()) {
    return {
        "negotiating",
        "no features were agreed on: a guest that moves here has not arrived yet (QEMU with -incoming), or the guest's "
        "virtio-net driver is not loaded yet, or its front-end does not accept what is offered (see offered_features)"};
  }
  const bool has_memory = backend.memory() != nullptr && !backend.memory()->regions().empty();
  if (!has_memory) {
    return {
        "memory",
        backend.memory_table_seen()
            ? "the guest's memory was withdrawn, or none of it is shared: start the guest with shared memory (QEMU: "
              "-object memory-backend-memfd,share=on)"
            : "no guest memory came: the guest's driver is not loaded yet, or its memory is not shared (QEMU: -object "
              "memory-backend-memfd,share=on)"};
  }
  bool started = false;
  for (const auto& ring : backend.rings()) {
    if (ring.live() == nullptr) continue;
    started = true;
    if (!backend.ring_enabled(ring)) continue;
    return {"running",
            backend.logging() ? "pages that are written for the guest are logged: it moves to another host" : ""};
  }
  if (!started) return {"rings", ring_detail(backend)};
  return {"enable", "rings run but none is enabled: bring the interface up in the guest (ip link set ... up)"};
}

}  // namespace

std::string VhostUserPort::waiting_detail() const {
  const std::string& path = config_.socket;
  if (listening_ && !listening_->trouble().empty()) return listening_->trouble();
  if (config_.socket_owner_switch) {
    const std::string hint = "nobody is connected to " + path +
                             ": start the guest with this socket (QEMU: -chardev socket,path=" + path +
                             ",reconnect=1) and see that it may open it";
    return last_end_.empty() ? hint : hint + "; the last connection ended: " + last_end_;
  }
  switch (connect_error_.code) {
    case 0:
      return "about to connect to " + path + (last_end_.empty() ? "" : "; the last connection ended: " + last_end_);
    case ENOENT:
      return path + " does not exist: start the guest (QEMU: -chardev socket,path=" + path +
             ",server=on,wait=off) or correct `socket`; trying again for ever";
    case ECONNREFUSED:
      return "nobody listens on " + path + ": the guest's process has ended; trying again for ever";
    case EACCES:
    case EPERM:
      return "this process may not connect to " + path +
             ": give it write permission on the socket and search permission "
             "on its directories; trying again for ever";
    case EAGAIN:
      return "the listener on " + path + " is busy with another connection; trying again for ever";
    default:
      return connect_error_.message() + "; trying again for ever";
  }
}

void VhostUserPort::describe_connection(PortStatus& status) const {
  auto& facts = status.facts;
  const auto features = backend_->features();
  facts["negotiated_features"] = features ? feature_names(*features) : "";
  facts["protocol_features"] = protocol_feature_names(backend_->protocol_features());
  uint64_t bytes = 0;
  size_t regions = 0;
  if (const GuestMemory* memory = backend_->memory(); memory != nullptr) {
    regions = memory->regions().size();
    for (const auto& region : memory->regions()) bytes += region->bytes;
  }
  facts["memory_regions"] = std::to_string(regions);
  facts["memory_bytes"] = std::to_string(bytes);
  facts["device_status"] = std::to_string(backend_->device_status());
  facts["dirty_logging"] = yes_no(backend_->logging());
  if (backend_->mtu() != 0) facts["mtu"] = std::to_string(backend_->mtu());
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(backend_->fd(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.pid > 0) {
    facts["peer_pid"] = std::to_string(peer.pid);
  }
}

void VhostUserPort::describe_rings(PortStatus& status) const {
  const bool packed = backend_->features() && has_feature(*backend_->features(), VIRTIO_F_RING_PACKED);
  const auto& rings = backend_->rings();
  for (size_t i = 0; i < rings.size(); ++i) {
    const Backend::Ring& ring = rings[i];
    PortStatus::Ring shown;
    shown.name = (i % 2 == 1 ? "rx" : "tx") + std::to_string(i / 2);
    auto& facts = shown.facts;
    facts["guest_queue"] = (i % 2 == 1 ? "transmitq" : "receiveq") + std::to_string(i / 2);
    facts["size"] = std::to_string(ring.wish.size.value_or(0));
    facts["layout"] = packed ? "packed" : "split";
    facts["started"] = yes_no(ring.live() != nullptr);
    facts["enabled"] = yes_no(backend_->ring_enabled(ring));
    // The live index belongs to the worker; this is where the ring last started or stopped.
    facts["base"] = std::to_string(ring.wish.base.value_or(0));
    facts["kick_fd"] = yes_no(ring.wish.kick != nullptr);
    facts["call_fd"] = yes_no(ring.wish.call != nullptr);
    if (!ring.waiting.empty()) facts["waiting"] = ring.waiting;
    const DeviceRing* live = ring.live();
    if (const uint32_t ticks = live != nullptr ? live->line_ticks() : 0; ticks != 0) {
      const uint32_t far_ticks = LineWatch::default_far_ticks();
      facts["line_ns"] = std::to_string(uint64_t{ticks} * 1'000'000'000U / tsc_hz());
      facts["far"] = yes_no(far_ticks != 0 && ticks >= far_ticks);
    }
    const std::string broken = live != nullptr ? live->broken() : ring.broken;
    if (!broken.empty()) facts["broken"] = broken;
    status.rings.push_back(std::move(shown));
  }
}

PortStatus VhostUserPort::status() const {
  PortStatus status;
  status.facts["socket"] = config_.socket;
  status.facts["socket_owner"] = config_.socket_owner_switch ? "switch" : "peer";
  status.facts["offered_features"] = feature_names(backend_config_.features);
  status.facts["queues"] = std::to_string(backend_config_.rx_counters.size());
  if (mtu_ != 0) status.facts["mtu"] = std::to_string(mtu_);
  if (!last_end_.empty()) status.facts["last_disconnect"] = last_end_;
  status.counters = {{"connects", connects_},    {"disconnects", disconnects_},
                     {"refused", refused_},      {"messages", totals_.messages},
                     {"errors", totals_.errors}, {"rings_broken", totals_.rings_broken},
                     {"throttled", throttled_}};
  if (!backend_) {
    status.stage = "waiting_for_peer";
    status.detail = waiting_detail();
    return status;
  }
  const Stage stage = stage_of(*backend_);
  status.stage = stage.name;
  status.detail = stage.detail;
  status.up = status.stage == "running";
  describe_connection(status);
  describe_rings(status);
  return status;
}

}  // namespace sw
