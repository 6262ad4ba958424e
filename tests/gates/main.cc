// SPDX-License-Identifier: Apache-2.0
// gate: counts the instructions of every path and prints them as JSON for tests/gates/gates.py, which knows the limits.
//   gate list               names of the paths
//   gate count NAME...      {"base": hex, "paths": [{name, frames, queues, idle: SECTION, busy: SECTION}], "code": {...}}
//   gate sharing SITUATION FILE             what two workers touch, see sharing.h
//   gate rate SITUATION WORKERS BYTES MILLISECONDS   frames a second of one or two workers on CPUs 0 and 1, see scaling.h
#include <cstdio>
#include <set>
#include <string>
#include <vector>

#include "base/cpu.h"
#include "paths.h"
#include "scaling.h"
#include "sharing.h"
#include "stepper.h"

namespace sw::gates {
namespace {

std::string hex(uint64_t value) {
  char digits[19];
  (void)std::snprintf(digits, sizeof digits, "0x%llx", static_cast<unsigned long long>(value));
  return digits;
}

std::string object(const std::map<uint64_t, uint64_t>& counts) {
  std::string text = "{";
  for (const auto& [address, count] : counts) {
    if (text.size() > 1) text += ", ";
    text += '"';
    text += hex(address);
    text += "\": ";
    text += std::to_string(count);
  }
  return text + "}";
}

std::string object(const Section& section) {
  return R"({"executed": )" + object(section.executed) + R"(, "calls": )" + object(section.calls) + "}";
}

int fail(const std::string& path, const std::string& error) {
  std::fprintf(stderr, "gate: %s: %s\n", path.c_str(), error.c_str());
  return 1;
}

// A loop of known length, so that a machine on which stepping does not work is found out before it passes anything.
bool counts_right(std::string& error) {
  constexpr uint64_t kTurns = 500;
  const auto turn = [] {
    uint64_t left = kTurns;
    asm volatile("1: dec %0\n\tjnz 1b" : "+r"(left) : : "cc");
  };
  const std::vector<Section> sections = Stepper::run(
      [&turn] {
        measured(turn);
        return true;
      },
      error);
  uint64_t repeated = 0;
  for (const Section& section : sections) {
    for (const auto& [address, times] : section.executed) repeated += times == kTurns ? 1 : 0;
  }
  if (error.empty() && repeated != 2) error = "stepping misses instructions on this machine";
  return error.empty();
}

int count(const std::set<std::string>& names) {
  std::string stepping;
  if (!counts_right(stepping)) return fail("stepping", stepping);
  std::set<uint64_t> executed;
  std::printf("{\"paths\": [");
  bool first = true;
  for (const Path& path : all_paths()) {
    if (!names.empty() && !names.contains(path.name)) continue;
    std::string error;
    const std::vector<Section> sections = Stepper::run([&path] { return walk_path(path); }, error);
    const size_t expected = path.frames == 0 ? 1 : 2;
    if (error.empty() && sections.size() != expected) error = "the child did not come to its marks";
    if (!error.empty()) return fail(path.name, error);
    for (const Section& section : sections) {
      for (const auto& [address, times] : section.executed) executed.insert(address);
    }
    const uint32_t queues = path.world.guests * path.world.queue_pairs / path.world.workers;
    std::printf("%s\n {\"name\": \"%s\", \"frames\": %u, \"queues\": %u, \"shared\": %s, \"idle\": %s",
                first ? "" : ",", path.name.c_str(), path.frames, queues, path.world.shared ? "true" : "false",
                object(sections.front()).c_str());
    if (path.frames != 0) std::printf(", \"busy\": %s", object(sections.back()).c_str());
    std::printf("}");
    first = false;
  }
  std::printf("],\n\"code\": {");
  first = true;
  for (const uint64_t address : executed) {
    std::printf("%s\"%s\": \"%s\"", first ? "" : ", ", hex(address).c_str(), code_at(load_address() + address).c_str());
    first = false;
  }
  const char* const vectors = vector_level() == VectorLevel::kBase ? "SSE4.2" : "AVX2";
  std::printf("}, \"made_with\": \"gcc %s, %s\"}\n", __VERSION__, vectors);
  return 0;
}

int rate(const std::string& name, const ScalingRound& round) {
  for (const Sharing& sharing : all_sharings()) {
    if (sharing.name != name) continue;
    std::string error;
    const double frames = frames_per_second(sharing, round, error);
    if (!error.empty()) return fail(name, error);
    std::printf("%.0f\n", frames);
    return 0;
  }
  return fail(name, "no such situation");
}

int share(const std::string& name, const std::string& file) {
  for (const Sharing& sharing : all_sharings()) {
    if (sharing.name != name) continue;
    std::string error;
    const std::string description = trace_sharing(sharing, file, error);
    if (!error.empty()) return fail(name, error);
    std::printf("%s\n", description.c_str());
    return 0;
  }
  return fail(name, "no such situation");
}

}  // namespace
}  // namespace sw::gates

int main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  if (verb == "list") {
    for (const auto& path : sw::gates::all_paths()) std::printf("%s\n", path.name.c_str());
    return 0;
  }
  if (verb == "count") return sw::gates::count({argv + 2, argv + argc});
  if (verb == "sharing" && argc == 4) return sw::gates::share(argv[2], argv[3]);
  if (verb == "rate" && argc == 6) {
    const auto number = [argv](int at) { return static_cast<uint32_t>(std::stoul(argv[at])); };
    return sw::gates::rate(argv[2], {.workers = number(3), .bytes = number(4), .milliseconds = number(5)});
  }
  std::fprintf(stderr,
               "usage: gate list | gate count [NAME...] | gate sharing SITUATION FILE | "
               "gate rate SITUATION 1|2 BYTES MILLISECONDS\n");
  return 2;
}
