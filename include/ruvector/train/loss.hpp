// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/ordered_sum.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/batches.hpp"
#include "ruvector/simd/math.hpp"

#include <array>
#include <cmath>
#include <concepts>
#include <limits>
#include <span>

// What all losses share. A loss gives each row of its inputs a number ℓ_i, and adds the gradient of their mean, their
// sum or any other function of them to the gradients of *all* its inputs (an empty one is not wanted). A row depends on
// itself alone, bit for bit, and rows are summed in one fixed order, in double.

namespace ruvector::inline RUVECTOR_ABI::train {

/// Losses of some samples: their sum, and the sum of their weights, by which it is divided for the mean. Samples of
/// different weight (class weights, ignored labels) are so averaged rightly over batches and workers, too.
struct LossSum {
  double sum = 0;     ///< Σ ℓ, each with its weight
  double weight = 0;  ///< Σ w

  /// sum/weight; 0 without weight.
  [[nodiscard]] double mean() const { return weight == 0 ? 0 : sum / weight; }
  /// Adds other samples.
  LossSum& operator+=(const LossSum& other) {
    sum += other.sum;
    weight += other.weight;
    return *this;
  }
};

/// The function of the losses of rows whose gradient is taken.
enum class Reduction {
  mean,  ///< Σ ℓ_i/Σ w_i
  sum,   ///< Σ ℓ_i, for batches that are parts of a larger one: what an objective of fit() wants
  none,  ///< the caller's, who knows ∂L/∂ℓ_i
};

/// What becomes of the losses of rows.
template <Real T>
struct LossRows {
  Reduction reduction = Reduction::mean;  ///< of which the gradient is taken
  std::span<T> losses = {};               ///< [n], written: ℓ_i; empty: not wanted
  std::span<const T> d_losses = {};       ///< [n], ∂L/∂ℓ_i for Reduction::none
};

namespace detail {

/// Σ x_i in double, in leaves of `row_leaf` and the fixed tree. Allocates nothing.
template <std::invocable<Index> F>
[[nodiscard]] double ordered_total(Index n, F&& number) {
  struct Plus {
    void clear(double& sum) const { sum = 0; }
    void merge(double& sum, const double& right) const { sum += right; }
  };
  std::array<OrderedSumSlot<double>, std::size_t(2 * ordered_sum_slots(PTRDIFF_MAX))> slots;
  double total = 0;
  ordered_reduce<double>(
      n, row_leaf, Plus{}, slots, total,
      [&](double& sum, Index first, Index last, Index) {
        for (Index i = first; i < last; ++i) sum += double(number(i));
      },
      Serial{});
  return total;
}

/// ℓ_i = row(i, ∂L/∂ℓ_i, workspace) for all rows, and their sum. `gradient`: whether one is wanted of `row`.
template <Real T, class Row, Executor E>
LossSum reduce_rows(Index n, double weight, bool gradient, const LossRows<T>& rows, Workspace& workspace, Row&& row,
                    E& executor) {
  if (!rows.losses.empty()) check_shape("loss: losses", n, Index(rows.losses.size()));
  if (rows.reduction == Reduction::none && gradient) check_shape("loss: d_losses", n, Index(rows.d_losses.size()));
  auto frame = workspace.frame();
  const std::span<T> losses = rows.losses.empty() ? frame.template span<T>(n) : rows.losses;
  const T common = rows.reduction == Reduction::mean ? (weight == 0 ? T(0) : T(1 / weight)) : T(1);
  const bool own_scale = rows.reduction == Reduction::none && gradient;
  nn::for_row_ranges(
      n, workspace,
      [&](Index first, Index count, Workspace& own) {
        for (Index i = first; i < first + count; ++i)
          losses[std::size_t(i)] = row(i, own_scale ? rows.d_losses[std::size_t(i)] : common, own);
      },
      executor);
  return {ordered_total(n, [&](Index i) { return losses[std::size_t(i)]; }), weight};
}

/// Lanes beyond the last element are 0.
template <Real T>
[[nodiscard]] simd::Batch<T> only_lanes(simd::AllLanes<T>, simd::Batch<T> x) {
  return x;
}
template <Real T>
[[nodiscard]] simd::Batch<T> only_lanes(simd::FirstLanes<T> lanes, simd::Batch<T> x) {
  return simd::select(simd::first_lanes<T>(lanes.count), x, simd::Batch<T>(T(0)));
}

/// Σ term(i, lanes) over the elements of a row, a register full at a time.
template <Real T, class Term>
[[nodiscard]] T sum_over_row(Index n, Term&& term) {
  simd::Batch<T> sum(T(0));
  simd::for_each_batch<T>(n, [&](Index i, auto lanes) { sum = sum + only_lanes<T>(lanes, term(i, lanes)); });
  return simd::reduce_add(sum);
}

/// p += x, for an output that may not be wanted.
template <Real T, class Lanes>
void add_to(T* p, Lanes lanes, simd::Batch<T> x) {
  if (p != nullptr) lanes.store(p, lanes.load(p) + x);
}

/// Where row i of a gradient is, or null: not wanted.
template <Real T>
[[nodiscard]] T* row_of(MatrixView<T> d_x, Index i) {
  return d_x.empty() ? nullptr : d_x.row(i).data();
}
template <Real T>
[[nodiscard]] T* shifted(T* p, Index i) {
  return p == nullptr ? nullptr : p + i;
}

/// ln Σ e^x_i in two parts: differences to it are exact where the numbers are large.
template <Real T>
struct LogSumExp {
  T top;  // the largest; −∞ of nothing
  T log;  // ln Σ e^(x_i − top) >= 0

  explicit LogSumExp(std::span<const T> x) : top(-std::numeric_limits<T>::infinity()), log(0) {
    const Index n = Index(x.size());
    simd::Batch<T> largest(top);
    simd::for_each_batch<T>(n, [&](Index i, auto lanes) {
      largest = simd::max(largest, lanes.load(x.data() + i, simd::Batch<T>(-std::numeric_limits<T>::infinity())));
    });
    top = simd::reduce_max(largest);
    if (top == -std::numeric_limits<T>::infinity()) return;
    log = std::log(sum_over_row<T>(
        n, [&](Index i, auto lanes) { return simd::exp(lanes.load(x.data() + i) - simd::Batch<T>(top)); }));
  }
  /// ln Σ e^x_i − x.
  [[nodiscard]] T above(T x) const { return (top - x) + log; }
  /// eˣ/Σ e^x_i; 0 of nothing.
  [[nodiscard]] simd::Batch<T> softmax(simd::Batch<T> x) const {
    if (top == -std::numeric_limits<T>::infinity()) return simd::Batch<T>(T(0));
    return simd::exp((x - simd::Batch<T>(top)) - simd::Batch<T>(log));
  }
};

}  // namespace detail

}  // namespace ruvector::inline RUVECTOR_ABI::train
