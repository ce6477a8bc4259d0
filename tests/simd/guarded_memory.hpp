// SPDX-License-Identifier: MIT
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>

/// Elements between two pages that fault when touched, so that a kernel that reads or writes one byte too many dies.
template <class T>
class GuardedMemory {
 public:
  /// Room for n elements.
  explicit GuardedMemory(std::ptrdiff_t n) : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    const std::size_t wanted = static_cast<std::size_t>(n) * sizeof(T);
    bytes_ = (wanted / page_ + 1) * page_;
    void* memory = mmap(nullptr, bytes_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    base_ = static_cast<std::byte*>(memory);
    if (mprotect(base_ + page_, bytes_, PROT_READ | PROT_WRITE) != 0) std::abort();
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  ~GuardedMemory() { munmap(base_, bytes_ + 2 * page_); }

  /// n elements whose first one follows the guard.
  [[nodiscard]] T* at_begin() const { return reinterpret_cast<T*>(base_ + page_); }
  /// n elements whose last one precedes the guard.
  [[nodiscard]] T* at_end(std::ptrdiff_t n) const { return reinterpret_cast<T*>(base_ + page_ + bytes_) - n; }

 private:
  std::size_t page_;
  std::size_t bytes_ = 0;
  std::byte* base_ = nullptr;
};
