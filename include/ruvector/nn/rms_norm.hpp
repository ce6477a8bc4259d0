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
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::nn {

/// The shape of an RmsNorm.
struct RmsNormConfig {
  Index dim = 0;          ///< columns of x
  double epsilon = 1e-5;  ///< added to the mean square, > 0
};

/// y = γ∘x̂, x̂ = x/ρ, ρ = √(mean x² + ε) over the row: [n×d] → [n×d]. LayerNorm without its mean and shift, at half of
/// the cost. A RowMap. Source: Zhang & Sennrich 2019, eq. 4.
template <Real T>
struct RmsNorm {
  using Scalar = T;     ///< what it computes in
  Vector<T> gamma;      ///< γ [d], starts at 1
  T epsilon = T(1e-5);  ///< ε

  /// [0], to be assigned.
  RmsNorm() = default;
  /// Starts as normalisation alone. Throws ShapeError, or ConfigError unless ε is finite and > 0.
  explicit RmsNorm(const RmsNormConfig& config) : gamma(config.dim, T(1)), epsilon(static_cast<T>(config.epsilon)) {
    if (!(epsilon > 0 && epsilon <= std::numeric_limits<T>::max())) [[unlikely]]
      throw_config_error("RmsNorm: epsilon", "finite and > 0", config.epsilon);
  }

  /// Names γ.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("gamma", self.gamma...);
  }

  /// d, for rows of d elements; ShapeError for others.
  [[nodiscard]] Index output_dim(Index input_dim) const {
    check_shape("RmsNorm: columns of x", gamma.size(), input_dim);
    return input_dim;
  }

  /// y = γ∘x̂: [n×d] → [n×d], O(n d). y may be x. A row that holds NaN becomes NaN. Its squares must not overflow: |x|
  /// up to 1e18 in float. Throws ShapeError.
  template <Executor E = Serial>
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& workspace, E&& executor = Serial{}) const {
    detail::check_matrix("RmsNorm::forward: y", x.rows(), output_dim(x.cols()), y);
    if (x.empty()) return;
    for_row_ranges(
        x.rows(), workspace,
        [&](Index first, Index count, Workspace&) {
          for (Index i = first; i < first + count; ++i) normalize(x.row(i).data(), y.row(i).data());
        },
        executor);
  }

  /// Given d_y [n×d], with ĝ = γ∘d_y and the mean taken over the row, adds
  ///
  ///     d_x += (ĝ − x̂ mean(ĝ∘x̂))/ρ,   grad.gamma += Σ_i d_y∘x̂
  ///
  /// d_x [n×d] or empty: not wanted. The sum over rows is ordered (add_row_sums). O(n d). Throws ShapeError.
  template <Executor E = Serial>
  void backward(MatrixView<const T> x, MatrixView<const T> d_y, MatrixView<T> d_x, RmsNorm& grad, Workspace& workspace,
                E&& executor = Serial{}) const {
    check_same_parameters(*this, static_cast<const RmsNorm&>(grad));
    detail::check_matrix("RmsNorm::backward: d_y", x.rows(), output_dim(x.cols()), d_y);
    detail::check_wanted("RmsNorm::backward: d_x", x.rows(), x.cols(), d_x);
    if (x.empty()) return;
    add_row_sums(
        x.rows(), std::array{grad.gamma.span()}, workspace,
        [&](const std::array<std::span<T>, 1>& parts, Index first, Index last, Workspace&) {
          std::ranges::fill(parts[0], T(0));
          for (Index i = first; i < last; ++i)
            pull_back(x.row(i).data(), d_y.row(i).data(), d_x.empty() ? nullptr : d_x.row(i).data(), parts[0].data());
        },
        executor);
  }

 private:
  using Batch = simd::Batch<T>;

  // 1/ρ
  [[nodiscard]] Batch inverse_root(const T* x) const {
    const T mean = simd::squared_norm(x, gamma.size()) / static_cast<T>(gamma.size());
    return Batch(T(1) / std::sqrt(mean + epsilon));
  }

  void normalize(const T* x, T* y) const {
    const Batch inverse = inverse_root(x);
    simd::for_each_batch<T>(gamma.size(), [&](Index i, auto lanes) {
      lanes.store(y + i, lanes.load(x + i) * inverse * lanes.load(gamma.data() + i));
    });
  }

  void pull_back(const T* x, const T* d_y, T* d_x, T* d_gamma) const {
    const Index n = gamma.size();
    const Batch inverse = inverse_root(x);
    Batch product(T(0));
    simd::for_each_batch<T>(n, [&](Index i, auto lanes) {
      const Batch normalized = lanes.load(x + i) * inverse, d = lanes.load(d_y + i);
      product = simd::fma(lanes.load(gamma.data() + i) * d, normalized, product);
      lanes.store(d_gamma + i, simd::fma(d, normalized, lanes.load(d_gamma + i)));
    });
    if (d_x == nullptr) return;
    const Batch slope(simd::reduce_add(product) / static_cast<T>(n));
    simd::for_each_batch<T>(n, [&](Index i, auto lanes) {
      const Batch g = simd::detail::rounded_product(lanes.load(gamma.data() + i), lanes.load(d_y + i));
      const Batch centred = simd::fnma(lanes.load(x + i) * inverse, slope, g);
      lanes.store(d_x + i, simd::fma(centred, inverse, lanes.load(d_x + i)));
    });
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::nn
