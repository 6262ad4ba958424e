// SPDX-License-Identifier: Apache-2.0
#include "stepper.h"

#include <dlfcn.h>
#include <link.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>

namespace sw::gates {

namespace {

constexpr uint8_t kBreakpoint = 0xcc;
constexpr uint64_t kMostSteps = 2'000'000;  // of one section: far above all of them, far below a hung test
constexpr int kCannotTrace = 77;

struct Program {
  uint64_t base = 0;
  uint64_t text_begin = 0, text_end = 0;  // absolute
  [[nodiscard]] bool holds(uint64_t rip) const { return rip >= text_begin && rip < text_end; }
};

const Program& program() {
  static const Program found = [] {
    Program self;
    ::dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* to) {
          auto& here = *static_cast<Program*>(to);
          here.base = info->dlpi_addr;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& segment = info->dlpi_phdr[i];
            if (segment.p_type != PT_LOAD || (segment.p_flags & PF_X) == 0) continue;
            here.text_begin = here.base + segment.p_vaddr;
            here.text_end = here.text_begin + segment.p_memsz;
          }
          return 1;  // the first one is the program itself
        },
        &self);
    return self;
  }();
  return found;
}

uint8_t byte_at(uint64_t rip) { return *reinterpret_cast<const uint8_t*>(rip); }

// Parent and child take turns: on one CPU a step costs half as much as on two.
void stay_on_this_cpu() {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(::sched_getcpu()), &set);
  ::sched_setaffinity(0, sizeof set, &set);
}

// The traced child, stopped.
class Child {
 public:
  explicit Child(const std::function<bool()>& body) {
    std::fflush(nullptr);
    pid_ = ::fork();
    if (pid_ != 0) return;
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(kCannotTrace);
    ::_exit(body() ? 0 : 1);
  }
  ~Child() {
    if (pid_ <= 0 || gone_) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // Run to the next trap. False: it ended, or stopped for another reason (then error says so).
  bool resume(__ptrace_request how, std::string& error) {
    int status = 0;
    if (pid_ < 0 || ::ptrace(how, pid_, nullptr, nullptr) != 0) {
      error = std::string("trace the child: ") + std::strerror(errno);
      return false;
    }
    return wait(status, error);
  }
  // The first stop, at the first mark.
  bool started(std::string& error) {
    int status = 0;
    return wait(status, error);
  }
  [[nodiscard]] user_regs_struct registers() const {
    user_regs_struct registers{};
    ::ptrace(PTRACE_GETREGS, pid_, nullptr, &registers);
    return registers;
  }
  [[nodiscard]] uint64_t peek(uint64_t address) const {
    return static_cast<uint64_t>(::ptrace(PTRACE_PEEKDATA, pid_, address, nullptr));
  }
  // At full speed to `address`.
  bool run_to(uint64_t address, std::string& error) {
    const uint64_t kept = peek(address);
    ::ptrace(PTRACE_POKEDATA, pid_, address, (kept & ~uint64_t{0xff}) | kBreakpoint);
    const bool stopped = resume(PTRACE_CONT, error);
    if (!stopped) return false;
    ::ptrace(PTRACE_POKEDATA, pid_, address, kept);
    user_regs_struct registers = this->registers();
    registers.rip = address;
    ::ptrace(PTRACE_SETREGS, pid_, nullptr, &registers);
    return true;
  }

 private:
  bool wait(int& status, std::string& error) {
    if (::waitpid(pid_, &status, 0) != pid_) {
      error = std::string("wait for the child: ") + std::strerror(errno);
      return false;
    }
    if (WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP) return true;
    if (WIFSTOPPED(status)) {
      error = std::string("the child got signal ") + ::strsignal(WSTOPSIG(status));
      return false;
    }
    gone_ = true;
    if (WIFEXITED(status) && WEXITSTATUS(status) == kCannotTrace) {
      error = "this machine does not let a process trace its child (ptrace): allow it (Docker: --cap-add SYS_PTRACE)";
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
      error = "the child failed: the frames of the counted pass did not arrive as expected";
    }
    return false;
  }

  pid_t pid_ = -1;
  bool gone_ = false;
};

// Call `step` with the registers before every instruction of every section, `begin` before each section. `step` may
// move the child itself; it returns false when it did so and failed.
template <class Begin, class Step>
void walk(const std::function<bool()>& body, std::string& error, Begin begin, Step step) {
  stay_on_this_cpu();
  (void)program();
  Child child(body);
  for (bool there = child.started(error); there; there = child.resume(PTRACE_CONT, error)) {
    begin();
    for (uint64_t steps = 0;; ++steps) {
      const user_regs_struct registers = child.registers();
      if (program().holds(registers.rip) && byte_at(registers.rip) == kBreakpoint) break;  // the closing mark
      if (steps == kMostSteps) {
        error = "a section does not end after " + std::to_string(kMostSteps) + " instructions";
        return;
      }
      if (!step(child, registers)) return;
    }
    // Over the closing mark.
    if (!child.resume(PTRACE_SINGLESTEP, error)) return;
  }
}

}  // namespace

std::vector<Section> Stepper::run(const std::function<bool()>& body, std::string& error) {
  std::vector<Section> sections;
  walk(
      body, error, [&] { sections.emplace_back(); },
      [&](Child& child, const user_regs_struct& registers) {
        Section& section = sections.back();
        if (program().holds(registers.rip)) {
          ++section.executed[registers.rip - program().base];
          return child.resume(PTRACE_SINGLESTEP, error);
        }
        const uint64_t back = child.peek(registers.rsp);
        ++section.calls[back - program().base];
        return child.run_to(back, error);
      });
  if (!error.empty()) sections.clear();
  return sections;
}

std::vector<std::vector<Registers>> Stepper::trace(const std::function<bool()>& body, std::string& error) {
  std::vector<std::vector<Registers>> sections;
  walk(
      body, error, [&] { sections.emplace_back(); },
      [&](Child& child, const user_regs_struct& r) {
        sections.back().push_back({r.rip,
                                   r.fs_base,
                                   {r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11,
                                    r.r12, r.r13, r.r14, r.r15}});
        return child.resume(PTRACE_SINGLESTEP, error);
      });
  if (!error.empty()) sections.clear();
  return sections;
}

[[gnu::noinline]] void measured(const std::function<void()>& work) {
  asm volatile("int3" ::: "memory");
  work();
  asm volatile("int3" ::: "memory");
}

uint64_t load_address() { return program().base; }

std::string code_at(uint64_t rip) {
  constexpr size_t kLongest = 15;
  std::array<uint8_t, kLongest> code{};
  const iovec here{code.data(), code.size()};
  const iovec there{reinterpret_cast<void*>(rip), code.size()};
  const ssize_t bytes = ::process_vm_readv(::getpid(), &here, 1, &there, 1, 0);  // stops where nothing is mapped
  std::string digits;
  for (ssize_t i = 0; i < bytes; ++i) {
    std::array<char, 3> pair{};
    (void)std::snprintf(pair.data(), pair.size(), "%02x", code[static_cast<size_t>(i)]);
    digits += pair.data();
  }
  return digits;
}

}  // namespace sw::gates
