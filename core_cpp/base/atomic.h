// SPDX-License-Identifier: Apache-2.0
// Ordered access to plain memory shared with another thread, process or guest. Ring fields live in guest memory, so
// they cannot be declared std::atomic; these helpers are the only way the core reads or writes them (TSan understands
// them).
#pragma once

#include <atomic>
#include <type_traits>

namespace sw {

template <class T>
T load_relaxed(const T& shared) {
  return std::atomic_ref<T>(const_cast<T&>(shared)).load(std::memory_order_relaxed);
}
template <class T>
T load_acquire(const T& shared) {
  return std::atomic_ref<T>(const_cast<T&>(shared)).load(std::memory_order_acquire);
}
template <class T>
void store_relaxed(T& shared, std::type_identity_t<T> value) {
  std::atomic_ref<T>(shared).store(value, std::memory_order_relaxed);
}
template <class T>
void store_release(T& shared, std::type_identity_t<T> value) {
  std::atomic_ref<T>(shared).store(value, std::memory_order_release);
}
// Store -> load barrier: needed between "publish" and "read the peer's notification wish", once a burst.
inline void full_fence() {
#if defined(__SANITIZE_THREAD__)
  // TSan does not model fences; a locked operation on a private word orders the same on every machine we run on.
  static thread_local std::atomic<int> word{0};
  word.fetch_add(1, std::memory_order_seq_cst);
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

// A lock held for one burst at most, by workers that share one transmit queue.
class Spinlock {
 public:
  bool try_lock() { return !locked_.exchange(true, std::memory_order_acquire); }
  void lock() {
    while (!try_lock()) {
      while (locked_.load(std::memory_order_relaxed)) __builtin_ia32_pause();
    }
  }
  void unlock() { locked_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> locked_{false};
};

}  // namespace sw
