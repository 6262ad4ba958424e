// SPDX-License-Identifier: Apache-2.0
// The one table from a port's kind to its factory.
#include <array>
#include <cerrno>
#include <string>

#include "port/afpacket.h"
#include "port/afxdp.h"
#include "port/port.h"
#include "port/tap.h"
#include "port/vdpa.h"
#include "port/vduse.h"
#include "port/verbs.h"
#include "port/vhostuser.h"
#include "port/virtiouser.h"

namespace sw {

namespace {

struct Kind {
  const char* name;
  Result<std::unique_ptr<Port>> (*make)(const PortConfig&, PortCounters);
};

constexpr std::array<Kind, 8> kKinds = {{
    {"vhostuser", make_vhostuser},
    {"virtiouser", make_virtiouser},
    {"tap", make_tap},
    {"afpacket", make_afpacket},
    {"verbs", make_verbs},
    {"vdpa", make_vdpa},
    {"vduse", make_vduse},
    {"afxdp", make_afxdp},
}};

}  // namespace

Result<std::unique_ptr<Port>> make_port(const PortConfig& config, PortCounters counters) {
  std::string known;
  for (const Kind& kind : kKinds) {
    if (config.type == kind.name) return kind.make(config, counters);
    known += known.empty() ? kind.name : std::string(", ") + kind.name;
  }
  return Error{0, "type '" + config.type + "' is not built into this switch; it has: " + known};
}

}  // namespace sw
