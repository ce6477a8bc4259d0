// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/real.hpp"

#include <concepts>

namespace ruvector::inline RUVECTOR_ABI {

/// Runs independent tasks. The library starts no thread by itself: parallel overloads take an executor.
template <class E>
concept Executor = requires(E& e, Index n, void (&task)(Index, Index)) {
  { e.concurrency() } -> std::convertible_to<Index>;  // workers: `worker` of a task is below it
  { e.parallel_for(n, task) } -> std::same_as<void>;  // task(index, worker) for all 0 <= index < n, in any order
};

/// The default: runs tasks one after the other, in order, on the calling thread.
struct Serial {
  [[nodiscard]] Index concurrency() const { return 1; }
  template <class Task>
  void parallel_for(Index n, Task&& task) {
    for (Index i = 0; i < n; ++i) task(i, Index(0));
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI
