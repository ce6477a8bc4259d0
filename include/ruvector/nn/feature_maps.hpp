// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/batches.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::nn {

namespace detail {

template <Real T>
void check_feature_forward(Index features, MatrixView<const T> x, MatrixView<T> phi, std::span<T> log_scale) {
  check_matrix("FeatureMap::forward: phi", x.rows(), features, phi);
  if (!log_scale.empty()) check_shape("FeatureMap::forward: log_scale", x.rows(), Index(log_scale.size()));
}

template <Real T>
void check_feature_backward(Index features, MatrixView<const T> x, MatrixView<const T> phi, MatrixView<const T> d_phi,
                            MatrixView<T> d_x) {
  check_matrix("FeatureMap::backward: phi", x.rows(), features, phi);
  check_matrix("FeatureMap::backward: d_phi", x.rows(), features, d_phi);
  check_wanted("FeatureMap::backward: d_x", x.rows(), x.cols(), d_x);
}

/// phi = f(x), element by element; nothing is factored out.
template <Real T, class F>
void map_elements(MatrixView<const T> x, MatrixView<T> phi, std::span<T> log_scale, F f) {
  check_feature_forward(x.cols(), x, phi, log_scale);
  std::ranges::fill(log_scale, T(0));
  if (x.empty()) return;
  for (Index i = 0; i < x.rows(); ++i)
    simd::for_each_batch<T>(
        x.cols(), [&](Index j, auto lanes) { lanes.store(phi.row(i).data() + j, f(lanes.load(x.row(i).data() + j))); });
}

/// d_x += f(phi, d_phi), element by element.
template <Real T, class F>
void pull_back_elements(MatrixView<const T> x, MatrixView<const T> phi, MatrixView<const T> d_phi, MatrixView<T> d_x,
                        F f) {
  check_feature_backward(x.cols(), x, phi, d_phi, d_x);
  if (d_x.empty()) return;
  for (Index i = 0; i < x.rows(); ++i)
    simd::for_each_batch<T>(x.cols(), [&](Index j, auto lanes) {
      T* to = d_x.row(i).data() + j;
      lanes.store(to, lanes.load(to) + f(lanes.load(phi.row(i).data() + j), lanes.load(d_phi.row(i).data() + j)));
    });
}

}  // namespace detail

/// φ(x) = elu(x) + 1, that is x + 1 for x > 0, else eˣ: positive everywhere. A FeatureMap [n×d] → [n×d] whose scale is
/// 1, so log_scale becomes 0. Source: Katharopoulos et al. 2020, eq. 7.
template <Real T>
struct EluPlusOne {
  using Scalar = T;  ///< what it computes in

  /// There is nothing to learn.
  template <class Visit, class... Self>
  static void parameters(Visit&&, Self&...) {}

  /// As many features as elements.
  [[nodiscard]] Index output_dim(Index input_dim) const { return input_dim; }

  /// phi = φ(x), O(n d). phi may be x. Throws ShapeError.
  void forward(MatrixView<const T> x, MatrixView<T> phi, std::span<T> log_scale, Workspace&) const {
    detail::map_elements<T>(x, phi, log_scale, [](simd::Batch<T> element) {
      return simd::select(element > simd::Batch<T>(T(0)), element + T(1), simd::exp(element));
    });
  }

  /// d_x += d_phi ∘ min(phi, 1), since φ' is 1 where φ > 1, else eˣ = φ. O(n d). Throws ShapeError.
  void backward(MatrixView<const T> x, MatrixView<const T> phi, MatrixView<const T> d_phi, MatrixView<T> d_x,
                EluPlusOne&, Workspace&) const {
    detail::pull_back_elements<T>(x, phi, d_phi, d_x, [](simd::Batch<T> feature, simd::Batch<T> d) {
      return d * simd::min(simd::Batch<T>(T(1)), feature);
    });
  }
};

/// φ(x) = max(x, 0). A FeatureMap [n×d] → [n×d] whose scale is 1, so log_scale becomes 0. A row without a positive
/// element has no features and sees nothing. Source: Choromanski et al. 2021, §4.
template <Real T>
struct Relu {
  using Scalar = T;  ///< what it computes in

  /// There is nothing to learn.
  template <class Visit, class... Self>
  static void parameters(Visit&&, Self&...) {}

  /// As many features as elements.
  [[nodiscard]] Index output_dim(Index input_dim) const { return input_dim; }

  /// phi = φ(x), O(n d). phi may be x. Throws ShapeError.
  void forward(MatrixView<const T> x, MatrixView<T> phi, std::span<T> log_scale, Workspace&) const {
    detail::map_elements<T>(x, phi, log_scale,
                            [](simd::Batch<T> element) { return simd::max(simd::Batch<T>(T(0)), element); });
  }

  /// d_x += d_phi where φ > 0, and 0 elsewhere, at x = 0 too. O(n d). Throws ShapeError.
  void backward(MatrixView<const T> x, MatrixView<const T> phi, MatrixView<const T> d_phi, MatrixView<T> d_x, Relu&,
                Workspace&) const {
    detail::pull_back_elements<T>(x, phi, d_phi, d_x, [](simd::Batch<T> feature, simd::Batch<T> d) {
      return simd::select(feature <= simd::Batch<T>(T(0)), T(0), d);
    });
  }
};

/// The shape of FavorPlus.
struct FavorPlusConfig {
  Index dim = 0;       ///< d, columns of x, >= 1
  Index features = 0;  ///< M, >= 1: the error falls as 1/√M; d log d is usual
};

/// Positive random features of the softmax kernel,
///
///     φ_j(x) = exp(ω_j·x̂ − ‖x̂‖²/2)/√M,   x̂ = x d^(−1/4),   E[φ(q)·φ(k)] = exp(q·k/√d),
///
/// for rows ω_j ~ N(0, I) that are orthogonal within blocks of d. A FeatureMap [n×d] → [n×M]. The scale of a row is its
/// largest exponential, so that phi lies in [0, 1/√M] and log_scale_i = max_j ω_j·x̂_i − ‖x̂_i‖²/2. Source: Choromanski
/// et al. 2021, lemma 1 and §2.4.
template <Real T>
struct FavorPlus {
  using Scalar = T;  ///< what it computes in
  Matrix<T> omega;   ///< ω [M×d], random, saved but not learned

  /// [0×0], to be assigned.
  FavorPlus() = default;
  /// Draws ω; assign a new one to redraw. Throws ConfigError for sizes below 1, ShapeError for impossible ones.
  FavorPlus(const FavorPlusConfig& config, Rng& rng) {
    if (config.dim < 1) [[unlikely]]
      throw_config_error("FavorPlus: dim", ">= 1", static_cast<double>(config.dim));
    if (config.features < 1) [[unlikely]]
      throw_config_error("FavorPlus: features", ">= 1", static_cast<double>(config.features));
    omega = Matrix<T>(config.features, config.dim);
    Matrix<double> basis(std::min(config.features, config.dim), config.dim);
    for (Index first = 0; first < omega.rows(); first += config.dim) {
      const Index count = std::min(config.dim, omega.rows() - first);
      for (Index j = 0; j < count; ++j) draw(basis, j, omega.row(first + j), rng);
    }
  }

  /// Names ω, a buffer.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit.buffer("omega", self.omega...);
  }

  /// M, for rows of d elements; ShapeError for others.
  [[nodiscard]] Index output_dim(Index input_dim) const {
    check_shape("FavorPlus: columns of x", omega.cols(), input_dim);
    return omega.rows();
  }

  /// φ(x_i) = exp(log_scale_i) phi_i: [n×d] → [n×M], [n]. With an empty log_scale phi is φ itself, which overflows for
  /// long rows. A row that holds NaN or infinity has NaN features and, as log_scale, NaN. O(n d M). Throws ShapeError.
  void forward(MatrixView<const T> x, MatrixView<T> phi, std::span<T> log_scale, Workspace& workspace) const {
    detail::check_feature_forward(output_dim(x.cols()), x, phi, log_scale);
    if (phi.empty()) return;
    simd::gemm_transposed<T>(x, omega, phi, workspace);
    const T scale = input_scale();
    for (Index i = 0; i < x.rows(); ++i) {
      const std::span<T> row = phi.row(i);
      const T half_square = T(0.5) * scale * scale * simd::squared_norm(x.row(i));
      if (log_scale.empty()) {
        exponentials(row, half_square);
      } else {
        const T largest = scale * row_max(row);
        exponentials(row, largest);
        log_scale[std::size_t(i)] = largest - half_square;
      }
    }
  }

  /// d_x̂ = Σ_j t_j (ω_j − x̂), t = d_phi∘phi, so with the scale d^(−1/4) of x̂
  ///
  ///     d_x += d^(−1/4) (t ω − (Σ_j t_j) x̂).
  ///
  /// O(n d M); memory for 256 rows of t. Throws ShapeError.
  void backward(MatrixView<const T> x, MatrixView<const T> phi, MatrixView<const T> d_phi, MatrixView<T> d_x,
                FavorPlus&, Workspace& workspace) const {
    detail::check_feature_backward(output_dim(x.cols()), x, phi, d_phi, d_x);
    if (d_x.empty()) return;
    constexpr Index block = 256;  // rows that share one packing of ω
    const T scale = input_scale();
    auto frame = workspace.frame();
    const auto t = frame.matrix<T>(std::min(block, x.rows()), omega.rows());
    for (Index first = 0; first < x.rows(); first += block) {
      const Index count = std::min(block, x.rows() - first);
      for (Index i = 0; i < count; ++i) {
        const T *p = phi.row(first + i).data(), *d = d_phi.row(first + i).data();
        simd::for_each_batch<T>(omega.rows(), [&](Index j, auto lanes) {
          lanes.store(t.row(i).data() + j, scale * lanes.load(p + j) * lanes.load(d + j));
        });
        simd::axpy<T>(-scale * simd::sum<T>(t.row(i)), x.row(first + i), d_x.row(first + i));
      }
      simd::gemm<T>(t.rows(0, count), omega, d_x.rows(first, count), workspace, simd::Product::accumulate);
    }
  }

 private:
  // row = a direction orthogonal to rows 0 … j−1 of `basis`, which it joins, times the length of another normal vector:
  // so each row by itself is N(0, I).
  static void draw(MatrixView<double> basis, Index j, std::span<T> row, Rng& rng) {
    const std::span<double> direction = basis.row(j);
    double square = 0;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const double x = rng.normal();
      square += x * x;
    }
    constexpr double dependent = 1e-6;  // what is left of so short a direction would be rounding
    double length = 0;
    while (length < dependent) {
      for (double& x : direction) x = rng.normal();
      for (int pass = 0; pass < 2; ++pass)  // "twice is enough" (Kahan): the second removes what rounding left
        for (Index k = 0; k < j; ++k)
          simd::axpy<double>(-simd::dot<double>(direction, basis.row(k)), basis.row(k), direction);
      length = std::sqrt(simd::squared_norm<double>(direction));
      simd::scale<double>(1 / length, direction);
    }
    std::ranges::transform(direction, row.begin(), [&](double x) { return static_cast<T>(std::sqrt(square) * x); });
  }

  [[nodiscard]] T input_scale() const { return static_cast<T>(1 / std::sqrt(std::sqrt(double(omega.cols())))); }

  [[nodiscard]] static T row_max(std::span<const T> row) {
    const simd::Batch<T> least(-std::numeric_limits<T>::infinity());
    simd::Batch<T> largest = least;
    simd::for_each_batch<T>(Index(row.size()), [&](Index j, auto lanes) {
      largest = simd::max(largest, lanes.load(row.data() + j, least));
    });
    return simd::reduce_max(largest);
  }

  // row = exp(scale·row − subtracted)/√M
  void exponentials(std::span<T> row, T subtracted) const {
    const T scale = input_scale(), factor = static_cast<T>(1 / std::sqrt(double(omega.rows())));
    simd::for_each_batch<T>(Index(row.size()), [&](Index j, auto lanes) {
      T* p = row.data() + j;
      lanes.store(p, factor * simd::exp(simd::fma(simd::Batch<T>(scale), lanes.load(p), -simd::Batch<T>(subtracted))));
    });
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::nn
