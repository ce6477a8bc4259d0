// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/parameters.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/geometry/concepts.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/train/concepts.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::train {

/// Options of Riemannian stochastic gradient descent.
struct RiemannianSgdConfig {
  double learning_rate = 1e-2;                                         ///< η
  double max_gradient_norm = std::numeric_limits<double>::infinity();  ///< longer Riemannian gradients are shortened
  double margin = 1e-5;  ///< ε: points stay this far inside the boundary, ‖x‖ <= (1 − ε)/√c in the ball
  bool exponential_map = false;  ///< move along the geodesic; else x + v, projected, which agrees to first order
};

namespace detail {

/// Scratch for one row: rows of up to 256 elements need no memory from the heap.
template <Real T>
class RowBuffer {
 public:
  explicit RowBuffer(std::size_t size) : size_(size) {
    if (size > small_.size()) large_.resize(size);
  }
  [[nodiscard]] std::span<T> span() { return {size_ > small_.size() ? large_.data() : small_.data(), size_}; }

 private:
  std::size_t size_;
  std::array<T, 256> small_;
  std::vector<T> large_;
};

/// Finds the widest row of a module that lies on a manifold: what a step of an optimizer needs scratch for, which it
/// takes before anything changes.
struct WidestPoint {
  Index cols = 0;

  template <Module M>
  explicit WidestPoint(const M& model) {
    for_each_parameter(*this, model);
  }
  void operator()(std::string_view, auto) {}
  template <class G>
  void on(const G&, std::string_view, auto points) {
    cols = std::max(cols, points.cols());
  }
};

/// ‖r‖_x of r = riemannian_gradient(x, g). With the metric G_x, r = G_x⁻¹ g, so ⟨r, r⟩_x = r·G_x r = r·g on any
/// manifold.
template <Real T>
[[nodiscard]] double squared_gradient_norm(std::span<const T> gradient, std::span<const T> riemannian) {
  double sum = 0;
  for (std::size_t i = 0; i < gradient.size(); ++i) sum += double(gradient[i]) * double(riemannian[i]);
  return std::max(sum, 0.0);
}

/// What to multiply a Riemannian gradient with so that its norm does not exceed `longest`.
[[nodiscard]] inline double clip_factor(double squared_norm, double longest) {
  return squared_norm > longest * longest ? longest / std::sqrt(squared_norm) : 1;
}

/// x ← x moved by the tangent vector v, inside the margin. v is used up.
template <geometry::Manifold M>
void move_point(const M& manifold, std::span<ScalarOf<M>> x, std::span<ScalarOf<M>> v, double margin,
                bool exponential_map) {
  using T = ScalarOf<M>;
  if (exponential_map)
    (void)manifold.exp(x, v, x);
  else
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += v[i];
  (void)manifold.project(x, x, static_cast<T>(margin));
}

/// riemannian_sgd_step with scratch [d].
template <geometry::Manifold M>
void riemannian_sgd_step(const M& manifold, std::span<ScalarOf<M>> x, std::span<const ScalarOf<M>> gradient,
                         ScalarOf<M> learning_rate, const RiemannianSgdConfig& config, std::span<ScalarOf<M>> step) {
  using T = ScalarOf<M>;
  if (config.max_gradient_norm == std::numeric_limits<double>::infinity()) {
    const T margin = static_cast<T>(config.margin);
    if constexpr (requires { manifold.descend(x, gradient, learning_rate, margin); })
      if (!config.exponential_map) return void(manifold.descend(x, gradient, learning_rate, margin));
    if constexpr (requires { manifold.descend_along_geodesic(x, gradient, learning_rate, margin); })
      if (config.exponential_map) return void(manifold.descend_along_geodesic(x, gradient, learning_rate, margin));
  }
  manifold.riemannian_gradient(x, gradient, step);
  T scale = -learning_rate;
  if (config.max_gradient_norm < std::numeric_limits<double>::infinity())
    scale *= static_cast<T>(clip_factor(squared_gradient_norm<T>(gradient, step), config.max_gradient_norm));
  for (T& v : step) v *= scale;
  move_point(manifold, x, step, config.margin, config.exponential_map);
}

}  // namespace detail

/// One step of one point, for training that touches a few rows at a time:
///
///     r = riemannian_gradient(x, g),   r ← r·min(1, max_gradient_norm/‖r‖_x),   x ← project(x − η r)   or exp_x(−η r)
///
/// x [d] in and out, g [d] the ordinary ("Euclidean") gradient, η the learning rate (that in `config` is not used). A
/// NaN in g makes this row NaN. O(d), no allocation for d <= 256. Source: Bonnabel 2013; Nickel & Kiela 2017, eq. 5.
template <geometry::Manifold M>
void riemannian_sgd_step(const M& manifold, std::span<ScalarOf<M>> x, std::span<const ScalarOf<M>> gradient,
                         ScalarOf<M> learning_rate, const RiemannianSgdConfig& config = {}) {
  detail::RowBuffer<ScalarOf<M>> buffer(x.size());
  detail::riemannian_sgd_step(manifold, x, gradient, learning_rate, config, buffer.span());
}

#ifndef __clang__  // its message is short as it is
/// Makes the message short where M is no Manifold. `static_assert(geometry::Manifold<M>)` says what it lacks.
template <class M>
void riemannian_sgd_step(const M&, auto&&...) requires(!geometry::Manifold<M>) = delete;  // M is no geometry::Manifold
#endif

namespace detail {

/// One step of every parameter of a module.
template <Real T>
struct RiemannianSgdStep {
  T learning_rate;
  const RiemannianSgdConfig& config;
  std::span<T> scratch;  // for the widest row

  void operator()(std::string_view, std::span<T> x, std::span<const T> gradient) const {
    simd::axpy(-learning_rate, gradient, x);
  }
  template <geometry::Manifold G>
  void on(const G& manifold, std::string_view, MatrixView<T> points, MatrixView<const T> gradients) const {
    for (Index i = 0; i < points.rows(); ++i)
      detail::riemannian_sgd_step(manifold, points.row(i), gradients.row(i), learning_rate, config,
                                  scratch.first(std::size_t(points.cols())));
  }
};

}  // namespace detail

/// Riemannian stochastic gradient descent: `riemannian_sgd_step` on every row that a module names with `visit.on`, and
/// x ← x − η g on its other parameters. It has no state.
class RiemannianSgd {
 public:
  /// Throws ConfigError for options out of range.
  explicit RiemannianSgd(RiemannianSgdConfig config = {}) : config_(config) {
    detail::check_not_negative("RiemannianSgd: learning_rate", config.learning_rate);
    detail::check_option("RiemannianSgd: max_gradient_norm", config.max_gradient_norm, 0,
                         std::numeric_limits<double>::infinity(), ">= 0");
    detail::check_decay("RiemannianSgd: margin", config.margin);
  }

  /// Moves `model` once, with the configured learning rate times `factor`. Throws ShapeError, ConfigError or
  /// std::bad_alloc before anything changes; allocates nothing unless a point has more than 256 elements.
  template <Module M>
  void step(M& model, const M& gradient, double factor = 1) const {
    using T = ScalarOf<M>;
    detail::check_not_negative("RiemannianSgd: factor", factor);
    check_same_parameters(model, gradient);
    detail::RowBuffer<T> scratch(std::size_t(detail::WidestPoint(model).cols));
    for_each_parameter(
        detail::RiemannianSgdStep<T>{static_cast<T>(config_.learning_rate * factor), config_, scratch.span()}, model,
        gradient);
  }

  /// The options.
  [[nodiscard]] const RiemannianSgdConfig& config() const { return config_; }
  /// There is nothing to name.
  static void checkpoint(auto&&, auto&) {}

 private:
  RiemannianSgdConfig config_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::train
