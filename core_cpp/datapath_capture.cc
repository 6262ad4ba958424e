// SPDX-License-Identifier: Apache-2.0
// Captures: frames of a port for whoever wants to look at them. See worker/capture.h for how they are taken.
#include <algorithm>
#include <cerrno>

#include "datapath.h"
#include "datapath_records.h"

namespace sw {

namespace {

constexpr size_t kMostCaptures = 8;  // of 4 MB each

}  // namespace

Result<uint64_t> Datapath::capture_start(const std::string& port, const CaptureOptions& options) {
  auto capture = std::make_shared<Capture>(options);
  const Guard guard(control_.mutex());
  PortRecord* const record = find(port);
  if (record == nullptr) return Error{ENOENT, "no such port"};
  if (captures_.size() >= kMostCaptures) {
    return Error{0, std::to_string(kMostCaptures) + " captures run already; end one of them"};
  }
  record->captures.push_back(capture);
  captures_[++last_capture_] = std::move(capture);
  publish();
  return last_capture_;
}

Result<CaptureView> Datapath::capture_read(uint64_t id, size_t most) {
  std::shared_ptr<Capture> capture;
  bool attached = false;
  {
    const Guard guard(control_.mutex());
    const auto found = captures_.find(id);
    if (found == captures_.end()) return Error{ENOENT, "no such capture"};
    capture = found->second;
    for (const auto& [name, record] : ports_) {
      attached = attached || std::ranges::find(record->captures, capture) != record->captures.end();
    }
  }
  CaptureView view{.frames = capture->ring.read(most), .missed = capture->ring.missed(), .attached = attached};
  return view;
}

void Datapath::capture_stop(uint64_t id) {
  const Guard guard(control_.mutex());
  const auto found = captures_.find(id);
  if (found == captures_.end()) return;
  bool any = false;
  for (const auto& [name, record] : ports_) any |= std::erase(record->captures, found->second) != 0;
  captures_.erase(found);
  if (any) publish();
}

}  // namespace sw
