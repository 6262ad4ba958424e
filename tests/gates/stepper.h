// SPDX-License-Identifier: Apache-2.0
// Stepper: runs a piece of this program in a child process, one instruction at a time, and says which instructions it
// was. Works without performance counters, on any machine that lets a process trace its own child.
//
// Theory of operation. The child prepares what it likes at full speed and marks the part to be counted with
// measured(). The parent is the same program at the same addresses (a fork), so what the child executes can be looked
// up in the parent's own text. Between the marks it steps the child with ptrace and looks at its registers after each
// step. Calls into the C library are not stepped: which instructions they take depends on the CPU (memcpy is chosen at
// run time), so each counts as one call, and a breakpoint at the return address brings the child back at full speed.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace sw::gates {

// What happened between two marks. Addresses are relative to where the program was loaded.
struct Section {
  std::map<uint64_t, uint64_t> executed;  // address of an instruction -> how often
  std::map<uint64_t, uint64_t> calls;     // address behind a call into a library -> how often
};

// All general registers before each instruction, for whoever wants to know which memory it touched. `rip` absolute.
struct Registers {
  uint64_t rip, fs_base;
  uint64_t general[16];  // in the order of their encoding: rax rcx rdx rbx rsp rbp rsi rdi r8 ... r15
};

class Stepper {
 public:
  // Run `body` in a child. Returns a Section for each measured() in it; empty with `error` set when the child failed
  // or may not be traced.
  static std::vector<Section> run(const std::function<bool()>& body, std::string& error);
  // The same, with every step of every section, library code included.
  static std::vector<std::vector<Registers>> trace(const std::function<bool()>& body, std::string& error);
};

// Only inside a body: count what `work` does.
void measured(const std::function<void()>& work);

uint64_t load_address();
// The bytes of the instruction at `rip` (absolute), as hexadecimal digits; a few more than it has.
std::string code_at(uint64_t rip);

}  // namespace sw::gates
