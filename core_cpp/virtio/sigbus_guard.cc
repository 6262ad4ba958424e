// SPDX-License-Identifier: Apache-2.0
#include "virtio/sigbus_guard.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>

namespace sw {

namespace {

// Room for 30 ports with the 509 regions that vhost-user allows, or 2000 with the usual 8; further ones are refused. Two
// mappings each at most (one is split where it faults), so that half of what a process may have (vm.max_map_count, 65530)
// is left.
constexpr int kSlots = 16384;

enum SlotState : uint32_t { kFree, kFilling, kActive };

struct Slot {
  std::atomic<uint32_t> state{kFree};  // kActive is stored last with release: the handler's acquire then sees the rest
  std::atomic<uint32_t> faulted{0};
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<uintptr_t> page_bytes{0};
};

std::array<Slot, kSlots> g_slots;
std::atomic<int> g_slots_used{0};  // one past the highest slot ever taken: the handler looks no further
struct sigaction g_previous;
std::once_flag g_installed;

void pass_on(int signal_number, siginfo_t* info, void* context) {
  if ((g_previous.sa_flags & SA_SIGINFO) != 0) {
    g_previous.sa_sigaction(signal_number, info, context);
  } else if (g_previous.sa_handler != SIG_DFL && g_previous.sa_handler != SIG_IGN) {
    g_previous.sa_handler(signal_number);
  } else {
    // Die as if we had never been here: the faulting instruction runs again under the default action.
    struct sigaction fallback{};
    fallback.sa_handler = SIG_DFL;
    ::sigaction(SIGBUS, &fallback, nullptr);
    if (info->si_code <= 0) ::raise(SIGBUS);  // sent by kill(): nothing would fault again
  }
}

// Async-signal-safe: atomics and one system call.
void on_sigbus(int signal_number, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  const int used = g_slots_used.load(std::memory_order_acquire);
  for (int i = 0; info->si_code > 0 && i < used; ++i) {
    Slot& slot = g_slots[static_cast<size_t>(i)];
    if (slot.state.load(std::memory_order_acquire) != kActive) continue;
    const uintptr_t begin = slot.begin.load(std::memory_order_relaxed);
    const uintptr_t end = slot.end.load(std::memory_order_relaxed);
    if (address < begin || address >= end) continue;
    const bool again = slot.faulted.load(std::memory_order_relaxed) != 0;
    const uintptr_t page = again ? begin : address & ~(slot.page_bytes.load(std::memory_order_relaxed) - 1);
    void* const from = reinterpret_cast<void*>(page);
    if (::mmap(from, end - page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
               0) == MAP_FAILED) {
      break;
    }
    slot.faulted.store(1, std::memory_order_release);
    errno = saved_errno;
    return;
  }
  errno = saved_errno;
  pass_on(signal_number, info, context);
}

void install() {
  struct sigaction action{};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, &g_previous);
}

}  // namespace

int sigbus_guard_add(void* host, size_t bytes, size_t page_bytes) {
  std::call_once(g_installed, install);
  for (int i = 0; i < kSlots; ++i) {
    Slot& slot = g_slots[static_cast<size_t>(i)];
    uint32_t expected = kFree;
    if (!slot.state.compare_exchange_strong(expected, kFilling, std::memory_order_acquire)) continue;
    slot.faulted.store(0, std::memory_order_relaxed);
    slot.begin.store(reinterpret_cast<uintptr_t>(host), std::memory_order_relaxed);
    slot.end.store(reinterpret_cast<uintptr_t>(host) + bytes, std::memory_order_relaxed);
    slot.page_bytes.store(page_bytes, std::memory_order_relaxed);
    slot.state.store(kActive, std::memory_order_release);
    int used = g_slots_used.load(std::memory_order_relaxed);
    while (used <= i && !g_slots_used.compare_exchange_weak(used, i + 1, std::memory_order_release)) {
    }
    return i;
  }
  return -1;
}

void sigbus_guard_remove(int slot) {
  if (slot >= 0) g_slots[static_cast<size_t>(slot)].state.store(kFree, std::memory_order_release);
}

bool sigbus_guard_faulted(int slot) {
  return slot >= 0 && g_slots[static_cast<size_t>(slot)].faulted.load(std::memory_order_acquire) != 0;
}

}  // namespace sw
