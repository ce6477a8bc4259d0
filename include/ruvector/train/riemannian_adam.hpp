// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/parameters.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/geometry/concepts.hpp"
#include "ruvector/train/adam.hpp"
#include "ruvector/train/concepts.hpp"
#include "ruvector/train/riemannian_sgd.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string_view>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::train {

/// Options of Riemannian Adam.
struct RiemannianAdamConfig {
  double learning_rate = 1e-3;  ///< η
  double beta1 = 0.9;           ///< β₁, >= 0 and < 1
  double beta2 = 0.999;         ///< β₂, >= 0 and < 1
  double epsilon = 1e-8;        ///< ε of Adam
  double weight_decay = 0;      ///< w, θ ← θ − η w θ as in AdamW; not for points, to which 0 is nothing special
  double max_gradient_norm = std::numeric_limits<double>::infinity();  ///< longer Riemannian gradients are shortened
  double margin = 1e-5;  ///< points stay this far inside the boundary, ‖x‖ <= (1 − margin)/√c in the ball
  bool exponential_map = false;  ///< move along the geodesic; else x + v, projected, which agrees to first order
};

/// A manifold whose tangent vectors can be carried from point to point.
template <class M>
concept TransportManifold = geometry::Manifold<M> &&
    requires(const M& m, std::span<const ScalarOf<M>> x, std::span<ScalarOf<M>> out) {
  { m.transport(x, x, x, out) } -> std::same_as<void>;  // out = v carried from x to y; out may be v
};

namespace detail {

/// One step of one point: m [d] its first moment, v its second. Scratch [2d].
template <TransportManifold M>
void riemannian_adam_step(const M& manifold, std::span<ScalarOf<M>> x, std::span<const ScalarOf<M>> gradient,
                          std::span<ScalarOf<M>> first, ScalarOf<M>& second, const AdamStep<ScalarOf<M>>& adam,
                          const RiemannianAdamConfig& config, std::span<ScalarOf<M>> scratch) {
  using T = ScalarOf<M>;
  const std::span<T> step = scratch.first(x.size()), moved = scratch.subspan(x.size(), x.size());
  manifold.riemannian_gradient(x, gradient, step);
  const double squared_norm = squared_gradient_norm<T>(gradient, step);
  const double clip = clip_factor(squared_norm, config.max_gradient_norm);

  // m ← β₁ m + (1 − β₁) r, v ← β₂ v + (1 − β₂) ‖r‖_x², step = −η m̂/(√v̂ + ε)
  second = adam.beta2 * second + (1 - adam.beta2) * static_cast<T>(clip * clip * squared_norm);
  const T scale = adam.rate / (std::sqrt(second) * adam.root_scale + adam.epsilon);
  const T weight = (1 - adam.beta1) * static_cast<T>(clip);
  for (std::size_t i = 0; i < x.size(); ++i) {
    first[i] = adam.beta1 * first[i] + weight * step[i];
    step[i] = -scale * first[i];
  }
  std::copy(x.begin(), x.end(), moved.begin());
  move_point(manifold, moved, step, config.margin, config.exponential_map);
  manifold.transport(x, moved, first, first);
  std::copy(moved.begin(), moved.end(), x.begin());
}

/// One step of every parameter of a module.
template <Real T>
struct RiemannianAdamStep {
  AdamStep<T> adam;
  const RiemannianAdamConfig& config;
  T shrink;              // η w
  std::span<T> scratch;  // for the widest row, twice

  void operator()(std::string_view, std::span<T> x, std::span<const T> g, std::span<T> m, std::span<T> v) const {
    adam.update(x, g, m, v, T(0), shrink);
  }
  template <TransportManifold G>
  void on(const G& manifold, std::string_view, MatrixView<T> points, MatrixView<const T> gradients, MatrixView<T> first,
          MatrixView<T> second) const {
    for (Index i = 0; i < points.rows() && points.cols() > 0; ++i) {
      riemannian_adam_step(manifold, points.row(i), gradients.row(i), first.row(i), second(i, 0), adam, config,
                           scratch);
    }
  }
};

}  // namespace detail

/// Riemannian Adam: on every row x that a module names with `visit.on`, with r = riemannian_gradient(x, g),
///
///     m ← β₁ m + (1 − β₁) r,   v ← β₂ v + (1 − β₂) ‖r‖_x²  (one number a point),
///     x' = project(x − η m̂/(√v̂ + ε))  or the exponential map,   m ← m transported from x to x',
///
/// and AdamW on its other parameters. The v of a row is in its first column of `state().second_moment`. Source:
/// Bécigneul & Ganea 2019, as in geoopt's RiemannianAdam.
template <Module M>
class RiemannianAdam {
 public:
  /// Starts with moments of zero. Throws ConfigError for options out of range.
  explicit RiemannianAdam(const M& model, RiemannianAdamConfig config = {})
      : RiemannianAdam(AdamState<M>{zeros_like(model), zeros_like(model)}, config) {}
  /// Continues from a state.
  explicit RiemannianAdam(AdamState<M> state, RiemannianAdamConfig config = {})
      : state_(std::move(state)), config_(config) {
    detail::check_adam_config(config);
    detail::check_not_negative("RiemannianAdam: weight_decay", config.weight_decay);
    detail::check_option("RiemannianAdam: max_gradient_norm", config.max_gradient_norm, 0,
                         std::numeric_limits<double>::infinity(), ">= 0");
    detail::check_decay("RiemannianAdam: margin", config.margin);
  }

  /// Moves `model` once, with the configured learning rate times `factor`. Throws ShapeError, ConfigError or
  /// std::bad_alloc before anything changes; allocates nothing unless a point has more than 128 elements.
  void step(M& model, const M& gradient, double factor = 1) {
    using T = ScalarOf<M>;
    detail::check_not_negative("RiemannianAdam: factor", factor);
    check_same_parameters(model, gradient, state_.first_moment, state_.second_moment);
    detail::RowBuffer<T> scratch(2 * std::size_t(detail::WidestPoint(model).cols));
    const detail::RiemannianAdamStep<T> step{detail::AdamStep<T>(config_, factor, ++state_.steps), config_,
                                             T(config_.learning_rate * factor * config_.weight_decay), scratch.span()};
    for_each_parameter(step, model, gradient, state_.first_moment, state_.second_moment);
  }

  /// What it remembers.
  [[nodiscard]] const AdamState<M>& state() const { return state_; }
  /// The options.
  [[nodiscard]] const RiemannianAdamConfig& config() const { return config_; }
  /// Names what it remembers.
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    AdamState<M>::checkpoint(visit, self.state_);
  }

 private:
  AdamState<M> state_;
  RiemannianAdamConfig config_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::train
