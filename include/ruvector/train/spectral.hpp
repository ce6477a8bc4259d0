// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/executor.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"
#include "ruvector/train/concepts.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::train {

/// Options of spectral_regularization.
struct SpectralConfig {
  double weight = 1;      ///< of the penalty, >= 0
  bool diagonal = false;  ///< only the variances of columns, as version 1's SpectralRegularization
};

/// Keeps embeddings from collapsing into few directions: `weight` times the variance of the eigenvalues λ of their
/// covariance, which is 0 where they spread equally in all directions. With x [n×d], μ its mean row,
///
///     C = (x − μ)ᵀ (x − μ)/n,   λ̄ = tr C/d,   L = weight/d Σ_k (λ_k − λ̄)² = weight/d ‖C − λ̄ I‖²,
///
/// so no eigenvalue is needed; with `diagonal` the elements off the diagonal of C are left out. Adds
/// ∂L/∂x = 4 weight/(n d) (x − μ)(C − λ̄ I) to d_x. Returns L, 0 for an empty x. Sums over rows are ordered. Throws
/// ShapeError, ConfigError. O(n d²), memory O(n d + d²).
template <Real T, Executor E = Serial>
double spectral_regularization(MatrixView<const T> x, MatrixView<T> d_x, Workspace& workspace,
                               const SpectralConfig& config = {}, E&& executor = Serial{}) {
  const Index n = x.rows(), d = x.cols();
  nn::detail::check_wanted("spectral_regularization: d_x", n, d, d_x);
  detail::check_not_negative("spectral_regularization: weight", config.weight);
  if (x.empty()) return 0;
  auto frame = workspace.frame();
  const std::span<T> mean = frame.span<T>(d);
  std::ranges::fill(mean, T(0));
  nn::add_row_sums(
      n, std::array{mean}, workspace,
      [&](const std::array<std::span<T>, 1>& parts, Index first, Index last, Workspace&) {
        std::ranges::fill(parts[0], T(0));
        for (Index i = first; i < last; ++i) simd::axpy<T>(T(1), x.row(i), parts[0]);
      },
      executor);
  simd::scale(T(1) / T(n), mean);
  const auto centered = frame.matrix<T>(n, d);
  for (Index i = 0; i < n; ++i) {
    std::ranges::copy(x.row(i), centered.row(i).begin());
    simd::axpy<T>(T(-1), mean, centered.row(i));
  }

  const auto covariance = frame.matrix<T>(d, d);
  const std::span<T> elements(covariance.data(), std::size_t(covariance.size()));
  std::ranges::fill(elements, T(0));
  nn::add_row_sums(
      n, std::array{elements}, workspace,
      [&](const std::array<std::span<T>, 1>& parts, Index first, Index last, Workspace& own) {
        const auto block = centered.rows(first, last - first);
        simd::gemm_left_transposed<T>(block, block, MatrixView<T>(parts[0].data(), d, d), own);
      },
      executor);
  simd::scale(T(1) / T(n), elements);
  T trace = 0;
  for (Index j = 0; j < d; ++j) trace += covariance(j, j);
  // C ← C − λ̄ I
  double square = 0;
  for (Index j = 0; j < d; ++j) {
    covariance(j, j) -= trace / T(d);
    if (config.diagonal)
      for (Index k = 0; k < d; ++k)
        if (k != j) covariance(j, k) = 0;
    square += double(simd::squared_norm<T>(covariance.row(j)));
  }
  if (!d_x.empty()) {
    simd::scale(T(4 * config.weight / (double(n) * double(d))), elements);
    nn::for_row_ranges(
        n, workspace,
        [&](Index first, Index count, Workspace& own) {
          simd::gemm<T>(centered.rows(first, count), covariance, d_x.rows(first, count), own,
                        simd::Product::accumulate);
        },
        executor);
  }
  return config.weight * square / double(d);
}

}  // namespace ruvector::inline RUVECTOR_ABI::train
