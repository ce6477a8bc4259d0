// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/executor.hpp"
#include "ruvector/core/ordered_sum.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <span>

// What layers do with the rows of a batch: share them among workers, and sum over them in one fixed order.

namespace ruvector::inline RUVECTOR_ABI::nn {

namespace detail {

/// The scratch memory of a task.
template <Executor E>
[[nodiscard]] Workspace& workspace_of(Workspace& workspace, E& executor, Index worker) {
  return executor.concurrency() == 1 ? workspace : workspace.worker(worker);
}

/// The sum over some rows; what `values` points to counts only if it is not zero.
template <Real T>
struct RowSum {
  T* values = nullptr;
  bool zero = true;
};

template <Real T>
struct RowSumMonoid {
  Index size;
  void clear(RowSum<T>& sum) const { sum.zero = true; }
  void merge(RowSum<T>& sum, const RowSum<T>& right) const {
    if (right.zero) return;
    if (sum.zero)
      std::copy_n(right.values, size, sum.values);
    else
      simd::axpy(T(1), right.values, sum.values, size);
    sum.zero = false;
  }
};

}  // namespace detail

/// Calls body(first, count, workspace) for ranges of rows that together are 0 … rows−1, shared among workers, each with
/// a workspace of its own. For work on rows that do not meet: the ranges depend on the executor.
template <std::invocable<Index, Index, Workspace&> Body, Executor E = Serial>
void for_row_ranges(Index rows, Workspace& workspace, Body&& body, E&& executor = Serial{}) {
  if (rows == 0) return;
  const Index concurrency = executor.concurrency();
  if (concurrency == 1) return body(Index(0), rows, workspace);
  constexpr Index fewest = 32;  // rows that are worth a task, and a packing of the other factor of a product
  const Index count = std::max(fewest, rows / (4 * concurrency) + 1);
  workspace.reserve_workers(concurrency);
  executor.parallel_for((rows - 1) / count + 1, [&](Index range, Index worker) {
    const Index first = range * count;
    body(first, std::min(count, rows - first), workspace.worker(worker));
  });
}

/// sums[p] += Σ_i (what row i contributes to it), the gradient of a weight for example. `sum_block(parts, first, last,
/// workspace)` writes the sums over rows first … last−1, in index order, to `parts`, spans as long as `sums`. Blocks of
/// `row_leaf` rows and the fixed tree of core/ordered_sum.hpp: the same bits for any number of workers. Memory for
/// O(log rows + workers) times the sums comes from the workspace.
template <std::size_t n, Real T, class SumBlock, Executor E = Serial>
  requires std::invocable < SumBlock&, const std::array<std::span<T>, n>
&, Index, Index,
    Workspace& > void add_row_sums(Index rows, const std::array<std::span<T>, n>& sums, Workspace& workspace,
                                   SumBlock&& sum_block, E&& executor = Serial{}) {
  if (rows == 0) return;
  Index size = 0;
  for (const std::span<T> sum : sums) size += Index(sum.size());
  const auto parts_of = [&](T* values) {
    std::array<std::span<T>, n> parts;
    for (std::size_t p = 0; p < n; values += sums[p++].size()) parts[p] = {values, sums[p].size()};
    return parts;
  };

  auto frame = workspace.frame();
  using Sum = detail::RowSum<T>;
  Sum total{frame.span<T>(size).data()};
  if (rows <= row_leaf) {
    sum_block(parts_of(total.values), Index(0), rows, workspace);
  } else {
    const Index slot_count = ordered_reduce_slots(rows, row_leaf, executor.concurrency());
    const auto slots = frame.span<OrderedSumSlot<Sum>>(slot_count);
    const auto memory = frame.matrix<T>(slot_count, size);
    for (Index k = 0; k < slot_count; ++k) slots[std::size_t(k)] = {{memory.data() + k * size}};
    workspace.reserve_workers(executor.concurrency());
    ordered_reduce<Sum>(
        rows, row_leaf, detail::RowSumMonoid<T>{size}, slots, total,
        [&](Sum& sum, Index first, Index last, Index worker) {
          sum_block(parts_of(sum.values), first, last, detail::workspace_of(workspace, executor, worker));
          sum.zero = false;
        },
        executor);
  }
  const auto parts = parts_of(total.values);
  for (std::size_t p = 0; p < n; ++p) simd::axpy(T(1), parts[p], sums[p]);
}

}  // namespace ruvector::inline RUVECTOR_ABI::nn
