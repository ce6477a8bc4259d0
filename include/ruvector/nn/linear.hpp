// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::nn {

/// How a weight matrix [out×in] starts.
enum class Initializer {
  zero,            ///< all 0
  fan_in_uniform,  ///< U(±1/√in), bias too: PyTorch's default for Linear
  xavier_uniform,  ///< U(±√(6/(in + out))), bias 0. Source: Glorot & Bengio 2010
  xavier_normal,   ///< N(0, 2/(in + out)), bias 0
  he_uniform,      ///< U(±√(6/in)), bias 0. Source: He et al. 2015
  he_normal,       ///< N(0, 2/in), bias 0
};

/// Fills a weight matrix [out×in], row by row, and its bias [out] or none. An empty matrix takes nothing from `rng`.
template <Real T>
void initialize(Initializer initializer, MatrixView<T> weight, std::span<T> bias, Rng& rng) {
  const double in = static_cast<double>(weight.cols()), both = in + static_cast<double>(weight.rows());
  const auto fill = [&](auto number) {
    for (Index i = 0; i < weight.rows() && !weight.empty(); ++i)
      for (T& w : weight.row(i)) w = number();
  };
  const auto uniform = [&](double limit) {
    return [&rng, limit] { return static_cast<T>(rng.uniform(-limit, limit)); };
  };
  const auto normal = [&](double sigma) { return [&rng, sigma] { return static_cast<T>(sigma * rng.normal()); }; };
  std::ranges::fill(bias, T(0));
  switch (initializer) {
    case Initializer::zero:
      return fill([] { return T(0); });
    case Initializer::fan_in_uniform:
      fill(uniform(1 / std::sqrt(in)));
      if (in > 0) std::ranges::generate(bias, uniform(1 / std::sqrt(in)));
      return;
    case Initializer::xavier_uniform:
      return fill(uniform(std::sqrt(6 / both)));
    case Initializer::xavier_normal:
      return fill(normal(std::sqrt(2 / both)));
    case Initializer::he_uniform:
      return fill(uniform(std::sqrt(6 / in)));
    case Initializer::he_normal:
      return fill(normal(std::sqrt(2 / in)));
  }
}

/// The shape and start of a linear layer.
struct LinearConfig {
  Index input = 0;                                        ///< columns of x
  Index output = 0;                                       ///< columns of y
  bool bias = true;                                       ///< without: y = x Wᵀ
  Initializer initializer = Initializer::fan_in_uniform;  ///< of the weight; all but this one start the bias at 0
};

/// y = x Wᵀ + b for each row: [n×in] → [n×out]. A RowMap.
template <Real T>
struct Linear {
  using Scalar = T;  ///< what it computes in
  Matrix<T> weight;  ///< W [out×in]
  Vector<T> bias;    ///< b [out], or empty: none

  /// [0×0], to be assigned.
  Linear() = default;
  /// Starts as `config` says. Throws ShapeError for impossible sizes.
  Linear(const LinearConfig& config, Rng& rng)
      : weight(config.output, config.input), bias(config.bias ? config.output : 0) {
    initialize<T>(config.initializer, weight, bias.span(), rng);
  }

  /// Names W and b.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("weight", self.weight...);
    visit("bias", self.bias...);
  }

  /// Columns of x.
  [[nodiscard]] Index input_dim() const { return weight.cols(); }
  /// Columns of y, for rows of input_dim() elements; ShapeError for others.
  [[nodiscard]] Index output_dim(Index input_dim) const {
    check_shape("Linear: columns of x", weight.cols(), input_dim);
    return weight.rows();
  }

  /// y = x Wᵀ + b: [n×in] → [n×out], O(n in out). x and y do not overlap. Element (i, j) is one chain of fma from b_j,
  /// in the order of the columns of x. Throws ShapeError.
  template <Executor E = Serial>
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& workspace, E&& executor = Serial{}) const {
    check_bias();
    detail::check_matrix("Linear::forward: y", x.rows(), output_dim(x.cols()), y);
    if (y.empty()) return;
    for_row_ranges(
        x.rows(), workspace,
        [&](Index first, Index count, Workspace& own) {
          const MatrixView<T> to = y.rows(first, count);
          if (!bias.empty())
            for (Index i = 0; i < count; ++i) std::ranges::copy(bias, to.row(i).begin());
          simd::gemm_transposed<T>(x.rows(first, count), weight, to, own,
                                   bias.empty() ? simd::Product::assign : simd::Product::accumulate);
        },
        executor);
  }

  /// Given d_y = ∂L/∂y [n×out], adds
  ///
  ///     d_x += d_y W,   grad.weight += d_yᵀ x,   grad.bias += Σ_i d_y_i
  ///
  /// d_x [n×in] or empty: not wanted. The sums over rows are ordered (add_row_sums). O(n in out). Throws ShapeError.
  template <Executor E = Serial>
  void backward(MatrixView<const T> x, MatrixView<const T> d_y, MatrixView<T> d_x, Linear& grad, Workspace& workspace,
                E&& executor = Serial{}) const {
    check_bias();
    check_same_parameters(*this, static_cast<const Linear&>(grad));
    detail::check_matrix("Linear::backward: d_y", x.rows(), output_dim(x.cols()), d_y);
    detail::check_wanted("Linear::backward: d_x", x.rows(), x.cols(), d_x);
    if (d_y.empty()) return;
    if (!d_x.empty())
      for_row_ranges(
          x.rows(), workspace,
          [&](Index first, Index count, Workspace& own) {
            simd::gemm<T>(d_y.rows(first, count), weight, d_x.rows(first, count), own, simd::Product::accumulate);
          },
          executor);
    add_row_sums(
        x.rows(), std::array{grad.weight.span(), grad.bias.span()}, workspace,
        [&](const std::array<std::span<T>, 2>& parts, Index first, Index last, Workspace& own) {
          const MatrixView<T> d_weight(parts[0].data(), weight.rows(), weight.cols());
          simd::gemm_left_transposed<T>(d_y.rows(first, last - first), x.rows(first, last - first), d_weight, own);
          std::ranges::fill(parts[1], T(0));
          if (!parts[1].empty())
            for (Index i = first; i < last; ++i) simd::axpy<T>(T(1), d_y.row(i), parts[1]);
        },
        executor);
  }

 private:
  void check_bias() const {
    if (!bias.empty()) check_shape("Linear: bias", weight.rows(), bias.size());
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::nn
