// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/batches.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::nn {

/// The shape of a LayerNorm.
struct LayerNormConfig {
  Index dim = 0;          ///< columns of x
  double epsilon = 1e-5;  ///< added to the variance, > 0
};

/// y = γ∘x̂ + β, x̂ = (x − μ)/σ, σ = √(variance + ε) with the mean μ and the biased variance of the row: [n×d] → [n×d].
/// A RowMap. Source: Ba et al. 2016.
template <Real T>
struct LayerNorm {
  using Scalar = T;     ///< what it computes in
  Vector<T> gamma;      ///< γ [d], starts at 1
  Vector<T> beta;       ///< β [d], starts at 0
  T epsilon = T(1e-5);  ///< ε

  /// [0], to be assigned.
  LayerNorm() = default;
  /// Starts as normalisation alone. Throws ShapeError, or ConfigError unless ε is finite and > 0.
  explicit LayerNorm(const LayerNormConfig& config)
      : gamma(config.dim, T(1)), beta(config.dim), epsilon(static_cast<T>(config.epsilon)) {
    if (!(epsilon > 0 && epsilon <= std::numeric_limits<T>::max())) [[unlikely]]
      throw_config_error("LayerNorm: epsilon", "finite and > 0", config.epsilon);
  }

  /// Names γ and β.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("gamma", self.gamma...);
    visit("beta", self.beta...);
  }

  /// d, for rows of d elements; ShapeError for others.
  [[nodiscard]] Index output_dim(Index input_dim) const {
    check_shape("LayerNorm: columns of x", gamma.size(), input_dim);
    check_shape("LayerNorm: beta", gamma.size(), beta.size());
    return input_dim;
  }

  /// y = γ∘x̂ + β: [n×d] → [n×d], O(n d). y may be x. A row that holds NaN or infinity becomes NaN. The variance
  /// must not overflow: |x − μ| up to 1e18 in float. Throws ShapeError.
  template <Executor E = Serial>
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& workspace, E&& executor = Serial{}) const {
    detail::check_matrix("LayerNorm::forward: y", x.rows(), output_dim(x.cols()), y);
    if (x.empty()) return;
    for_row_ranges(
        x.rows(), workspace,
        [&](Index first, Index count, Workspace&) {
          for (Index i = first; i < first + count; ++i) normalize(x.row(i).data(), y.row(i).data());
        },
        executor);
  }

  /// Given d_y [n×d], with ĝ = γ∘d_y and the means taken over the row, adds
  ///
  ///     d_x += (ĝ − mean ĝ − x̂ mean(ĝ∘x̂))/σ,   grad.gamma += Σ_i d_y∘x̂,   grad.beta += Σ_i d_y
  ///
  /// d_x [n×d] or empty: not wanted. The sums over rows are ordered (add_row_sums). O(n d). Throws ShapeError.
  template <Executor E = Serial>
  void backward(MatrixView<const T> x, MatrixView<const T> d_y, MatrixView<T> d_x, LayerNorm& grad,
                Workspace& workspace, E&& executor = Serial{}) const {
    check_same_parameters(*this, static_cast<const LayerNorm&>(grad));
    detail::check_matrix("LayerNorm::backward: d_y", x.rows(), output_dim(x.cols()), d_y);
    detail::check_wanted("LayerNorm::backward: d_x", x.rows(), x.cols(), d_x);
    if (x.empty()) return;
    add_row_sums(
        x.rows(), std::array{grad.gamma.span(), grad.beta.span()}, workspace,
        [&](const std::array<std::span<T>, 2>& parts, Index first, Index last, Workspace&) {
          for (const std::span<T> part : parts) std::ranges::fill(part, T(0));
          for (Index i = first; i < last; ++i)
            pull_back(x.row(i).data(), d_y.row(i).data(), d_x.empty() ? nullptr : d_x.row(i).data(), parts[0].data(),
                      parts[1].data());
        },
        executor);
  }

 private:
  using Batch = simd::Batch<T>;

  /// x̂ = ((x − mean) − shift) / σ: what rounding took from the mean is in the shift.
  struct Statistics {
    Batch mean, shift, inverse_sigma;
    [[nodiscard]] Batch normalized(Batch x) const { return ((x - mean) - shift) * inverse_sigma; }
  };

  // Two passes, the second corrects the mean: with differences d from an approximate mean,
  //
  //     shift = Σd/n,   variance = Σd²/n − shift²,
  //
  // which loses nothing where the mean is large against σ (Chan, Golub & LeVeque 1983, eq. 1.7).
  [[nodiscard]] Statistics statistics(const T* x) const {
    const Index n = gamma.size();
    const T count = static_cast<T>(n);
    const Batch mean(simd::sum(x, n) / count);
    Batch sum(T(0)), square(T(0));
    simd::for_each_batch<T>(n, [&](Index i, auto lanes) {
      const Batch difference = lanes.load(x + i, mean) - mean;
      sum += difference;
      square = simd::fma(difference, difference, square);
    });
    const T shift = simd::reduce_add(sum) / count;
    // `<` and not max: a NaN stays one.
    T variance = simd::reduce_add(square) / count - shift * shift;
    if (variance < 0) variance = 0;
    return {mean, Batch(shift), Batch(T(1) / std::sqrt(variance + epsilon))};
  }

  void normalize(const T* x, T* y) const {
    const Statistics row = statistics(x);
    simd::for_each_batch<T>(gamma.size(), [&](Index i, auto lanes) {
      lanes.store(y + i, simd::fma(row.normalized(lanes.load(x + i, row.mean)), lanes.load(gamma.data() + i),
                                   lanes.load(beta.data() + i)));
    });
  }

  void pull_back(const T* x, const T* d_y, T* d_x, T* d_gamma, T* d_beta) const {
    const Index n = gamma.size();
    const Statistics row = statistics(x);
    Batch sum(T(0)), product(T(0));
    simd::for_each_batch<T>(n, [&](Index i, auto lanes) {
      const Batch normalized = row.normalized(lanes.load(x + i, row.mean)), d = lanes.load(d_y + i);
      const Batch g = lanes.load(gamma.data() + i) * d;
      sum += g;
      product = simd::fma(g, normalized, product);
      lanes.store(d_gamma + i, simd::fma(d, normalized, lanes.load(d_gamma + i)));
      lanes.store(d_beta + i, d + lanes.load(d_beta + i));
    });
    if (d_x == nullptr) return;
    const Batch mean(simd::reduce_add(sum) / static_cast<T>(n)), slope(simd::reduce_add(product) / static_cast<T>(n));
    simd::for_each_batch<T>(n, [&](Index i, auto lanes) {
      const Batch g = lanes.load(gamma.data() + i) * lanes.load(d_y + i);
      const Batch centred = simd::fnma(row.normalized(lanes.load(x + i, row.mean)), slope, g - mean);
      lanes.store(d_x + i, simd::fma(centred, row.inverse_sigma, lanes.load(d_x + i)));
    });
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::nn
