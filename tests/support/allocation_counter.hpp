// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

#include <malloc.h>

// Counts the calls of operator new and the bytes they hold, and makes a chosen one fail. Any test file may include
// this: the operators below are weak, so the copies of several files of one program become one. What malloc gives
// (Eigen's own matrices) is not seen. The counter is one for all threads, so do not run two of these functions at a
// time. The sanitizers of clang bring operators of their own, which win: then nothing is counted and nothing fails, and
// `allocations_counted()` says so.

namespace support {

namespace detail {

inline std::atomic<std::ptrdiff_t> allocations = 0;
inline std::atomic<std::ptrdiff_t> allocations_until_failure = 0;  // 0: none fails
inline std::atomic<bool> failure_stays = false;
inline std::atomic<std::ptrdiff_t> live_bytes = 0, peak_bytes = 0;

inline void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
  allocations.fetch_add(1);
  if (allocations_until_failure.load() > 0 && allocations_until_failure.fetch_sub(1) == 1) {
    if (failure_stays.load()) allocations_until_failure.store(1);
    return nullptr;
  }
  bytes = (bytes + alignment - 1) / alignment * alignment;  // aligned_alloc asks for a multiple
  void* memory = std::aligned_alloc(alignment, bytes == 0 ? alignment : bytes);
  if (memory == nullptr) return nullptr;
  const auto held = static_cast<std::ptrdiff_t>(malloc_usable_size(memory));
  const std::ptrdiff_t live = live_bytes.fetch_add(held) + held;
  std::ptrdiff_t peak = peak_bytes.load();
  while (peak < live && !peak_bytes.compare_exchange_weak(peak, live)) {
  }
  return memory;
}

inline void release(void* memory) noexcept {
  if (memory != nullptr) live_bytes.fetch_sub(static_cast<std::ptrdiff_t>(malloc_usable_size(memory)));
  std::free(memory);
}

inline void* allocate_or_throw(std::size_t bytes, std::size_t alignment) {
  if (bytes <= PTRDIFF_MAX)
    if (void* memory = allocate(bytes, alignment)) return memory;
  throw std::bad_alloc();
}

struct FailureGuard {
  FailureGuard(std::ptrdiff_t k, bool stays) {
    failure_stays = stays;
    allocations_until_failure = k;
  }
  FailureGuard(const FailureGuard&) = delete;
  FailureGuard& operator=(const FailureGuard&) = delete;
  ~FailureGuard() { allocations_until_failure = 0; }
};

}  // namespace detail

/// False where the operators below are not the ones in use.
[[nodiscard]] inline bool allocations_counted() {
  const std::ptrdiff_t before = detail::allocations;
  ::operator delete(::operator new(1));  // by name, since a new-expression may be left out by the compiler
  return detail::allocations != before;
}

/// How often `f()` called operator new, on whatever thread. No CHECK inside: Catch2 allocates.
template <class F>
[[nodiscard]] std::ptrdiff_t allocations_in(F&& f) {
  const std::ptrdiff_t before = detail::allocations;
  f();
  return detail::allocations - before;
}

/// The most bytes that operator new held during `f()` beyond those it held before, on whatever thread.
template <class F>
[[nodiscard]] std::ptrdiff_t peak_bytes_in(F&& f) {
  const std::ptrdiff_t before = detail::live_bytes;
  detail::peak_bytes = before;
  f();
  return detail::peak_bytes - before;
}

/// Calls `f()` with its first allocation failing, then with its second, … until one call succeeds; first so that one
/// allocation fails each time, then so that all later ones fail too. After each std::bad_alloc calls `after()`, which
/// checks what must hold then. Returns how many allocations failed in the first round: 0 if f never allocates.
template <class F, class After>
std::ptrdiff_t fail_each_allocation(F&& f, After&& after) {
  std::ptrdiff_t points = 0;
  for (const bool stays : {false, true}) {
    for (std::ptrdiff_t k = 1;; ++k) {
      try {
        const detail::FailureGuard guard(k, stays);
        f();
        break;
      } catch (const std::bad_alloc&) {
      }
      after();
      if (!stays) points = k;
    }
  }
  return points;
}

}  // namespace support

[[gnu::weak]] void* operator new(std::size_t bytes) {
  return support::detail::allocate_or_throw(bytes, alignof(std::max_align_t));
}
[[gnu::weak]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return support::detail::allocate_or_throw(bytes, static_cast<std::size_t>(alignment));
}
[[gnu::weak]] void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return support::detail::allocate(bytes, alignof(std::max_align_t));
}
[[gnu::weak]] void operator delete(void* memory) noexcept {
  support::detail::release(memory);
}
[[gnu::weak]] void operator delete(void* memory, std::size_t) noexcept {
  support::detail::release(memory);
}
[[gnu::weak]] void operator delete(void* memory, std::align_val_t) noexcept {
  support::detail::release(memory);
}
[[gnu::weak]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  support::detail::release(memory);
}
[[gnu::weak]] void operator delete(void* memory, const std::nothrow_t&) noexcept {
  support::detail::release(memory);
}
