// SPDX-License-Identifier: Apache-2.0
#include "base/cache_line.h"

#include <cpuid.h>
#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <thread>

#include "base/affinity.h"
#include "base/clock.h"

namespace sw {

namespace {

bool has_clflushopt() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & bit_CLFLUSHOPT) != 0;
}

__attribute__((target("clflushopt"))) void flush_lines(const uint8_t* first, const uint8_t* end) {
  for (; first < end; first += kLineBytes) _mm_clflushopt(const_cast<uint8_t*>(first));
}

template <class Access>
uint32_t ticks_of(Access access) {
  _mm_mfence();
  _mm_lfence();
  const uint64_t begin = tsc_now();
  _mm_lfence();
  access();
  _mm_lfence();
  return static_cast<uint32_t>(tsc_now() - begin);
}

uint32_t measure_memory() {
  if (!has_clflushopt()) return 0;
  constexpr size_t kLines = 64, kStride = 5 * kLineBytes;
  alignas(kLineBytes) static std::array<uint8_t, kLines * kStride> lines;
  lines.fill(1);
  flush_lines(lines.data(), lines.data() + lines.size());
  _mm_mfence();
  std::array<uint32_t, kLines> ticks;
  // Steps of ever other lengths, all lines once: nothing that a prefetcher guesses.
  for (size_t i = 0; i < kLines; ++i) ticks[i] = ticks_of_load(&lines[i * (i + 1) / 2 % kLines * kStride]);
  std::nth_element(ticks.begin(), ticks.begin() + kLines / 2, ticks.end());
  return ticks[kLines / 2];
}

// Odd values are answered by the other side.
struct alignas(2 * kLineBytes) Ball {
  std::atomic<uint64_t> value{0};
};

constexpr uint64_t kBallGone = UINT64_MAX;

void return_balls(Ball& ball) {
  for (uint64_t seen = 0; seen != kBallGone;) {
    seen = ball.value.load(std::memory_order_acquire);
    if (seen % 2 == 1 && seen != kBallGone) ball.value.store(seen + 1, std::memory_order_release);
  }
}

uint32_t play(Ball& ball) {
  constexpr uint64_t kBalls = 100;
  uint64_t best = UINT64_MAX;
  uint64_t value = 0;
  for (const uint64_t end = monotonic_ns() + 2'000'000; monotonic_ns() < end;) {
    const uint64_t begin = tsc_now();
    for (uint64_t i = 0; i < kBalls; ++i, value += 2) {
      ball.value.store(value + 1, std::memory_order_release);
      while (ball.value.load(std::memory_order_acquire) != value + 2) {
      }
    }
    best = std::min(best, (tsc_now() - begin) / (2 * kBalls));
  }
  return static_cast<uint32_t>(best);
}

}  // namespace

uint32_t ticks_of_load(const void* line) {
  return ticks_of([line] { (void)*static_cast<const volatile uint8_t*>(line); });
}

uint32_t ticks_of_store(uint8_t* line) {
  return ticks_of([line] { std::atomic_ref<uint8_t>(*line).fetch_or(0, std::memory_order_relaxed); });
}

uint32_t ticks_of_memory() {
  static const uint32_t ticks = measure_memory();
  return ticks;
}

void give_back(const uint8_t* data, size_t bytes) {
  flush_lines(line_of(data + kLineBytes - 1), line_of(data + bytes));
}

// 16 bytes a store, as 32 and 64 (AVX2, AVX-512) were measured and gain nothing: a buffer of the CPU gathers a line.
void stream_copy(uint8_t* to, const uint8_t* from, size_t bytes) {
  const size_t lead = static_cast<size_t>(line_of(to + kLineBytes - 1) - to);
  if (bytes < lead + kLineBytes) {
    std::memcpy(to, from, bytes);
    return;
  }
  std::memcpy(to, from, lead);
  to += lead;
  from += lead;
  for (bytes -= lead; bytes >= kLineBytes; bytes -= kLineBytes, to += kLineBytes, from += kLineBytes) {
    const auto* const source = reinterpret_cast<const __m128i*>(from);
    auto* const line = reinterpret_cast<__m128i*>(to);
    const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
    const __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
    _mm_stream_si128(line, a);
    _mm_stream_si128(line + 1, b);
    _mm_stream_si128(line + 2, c);
    _mm_stream_si128(line + 3, d);
  }
  std::memcpy(to, from, bytes);
}

Result<uint32_t> ticks_between(int cpu, int other_cpu) {
  if (cpu == other_cpu) return Error{EINVAL, "measure from CPU " + std::to_string(cpu) + " to itself"};
  Ball ball;
  Result<uint32_t> found = 0U;
  Result<void> other_pinned;
  std::atomic<bool> ready{false};
  std::thread other([&] {
    other_pinned = pin_this_thread(other_cpu);
    ready.store(true, std::memory_order_release);
    return_balls(ball);
  });
  std::thread self([&] {
    const Result<void> pinned = pin_this_thread(cpu);
    while (!ready.load(std::memory_order_acquire)) ::sched_yield();
    if (!pinned) {
      found = pinned.error();
    } else if (!other_pinned) {
      found = other_pinned.error();
    } else {
      found = play(ball);
    }
    ball.value.store(kBallGone, std::memory_order_release);
  });
  self.join();
  other.join();
  return found;
}

}  // namespace sw
