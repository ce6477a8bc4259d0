// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/parameters.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/batches.hpp"
#include "ruvector/train/concepts.hpp"

#include <span>
#include <string_view>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::train {

/// Options of stochastic gradient descent.
struct SgdConfig {
  double learning_rate = 1e-2;  ///< η
  double momentum = 0;          ///< μ, >= 0 and < 1
  bool nesterov = false;        ///< look ahead along the velocity
  double weight_decay = 0;      ///< w, added to the gradient as w θ
};

/// What stochastic gradient descent remembers: all of it, for checkpoints.
template <Module M>
struct SgdState {
  M velocity;  ///< v, shaped like the model

  /// Names all of it.
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("velocity", self.velocity);
  }
};

/// Stochastic gradient descent with momentum,
///
///     g ← g + w θ,   v ← μ v + g,   θ ← θ − η v      (Nesterov: θ ← θ − η (g + μ v)),
///
/// on all parameters alike, those on manifolds too (see RiemannianSgd). As in PyTorch, η multiplies the velocity, not
/// the gradients in it; at a constant rate it makes no difference. Source: Sutskever et al. 2013.
template <Module M>
class Sgd {
 public:
  /// Starts at rest. Throws ConfigError for options out of range.
  explicit Sgd(const M& model, SgdConfig config = {}) : Sgd(SgdState<M>{zeros_like(model)}, config) {}
  /// Continues from a state.
  explicit Sgd(SgdState<M> state, SgdConfig config = {}) : state_(std::move(state)), config_(config) {
    detail::check_not_negative("Sgd: learning_rate", config.learning_rate);
    detail::check_decay("Sgd: momentum", config.momentum);
    detail::check_not_negative("Sgd: weight_decay", config.weight_decay);
  }

  /// Moves `model` once, with the configured learning rate times `factor`. Throws ShapeError or ConfigError before
  /// anything changes.
  void step(M& model, const M& gradient, double factor = 1) {
    detail::check_not_negative("Sgd: factor", factor);
    check_same_parameters(model, gradient, state_.velocity);
    const T rate = static_cast<T>(config_.learning_rate * factor);
    for_each_parameter(
        [&](std::string_view, std::span<T> x, std::span<const T> g, std::span<T> v) { update(rate, x, g, v); }, model,
        gradient, state_.velocity);
  }

  /// What it remembers.
  [[nodiscard]] const SgdState<M>& state() const { return state_; }
  /// The options.
  [[nodiscard]] const SgdConfig& config() const { return config_; }
  /// Names what it remembers.
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    SgdState<M>::checkpoint(visit, self.state_);
  }

 private:
  using T = ScalarOf<M>;

  void update(T rate, std::span<T> x, std::span<const T> gradient, std::span<T> velocity) const {
    const simd::Batch<T> momentum = T(config_.momentum), decay = T(config_.weight_decay), eta = rate;
    const auto move = [&](Index i, auto lanes) {
      const simd::Batch<T> x_i = lanes.load(x.data() + i);
      const simd::Batch<T> g = simd::fma(decay, x_i, lanes.load(gradient.data() + i));
      const simd::Batch<T> v = simd::fma(momentum, lanes.load(velocity.data() + i), g);
      lanes.store(velocity.data() + i, v);
      lanes.store(x.data() + i, simd::fnma(eta, config_.nesterov ? simd::fma(momentum, v, g) : v, x_i));
    };
    simd::for_each_batch<T>(Index(x.size()), move);
  }

  SgdState<M> state_;
  SgdConfig config_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::train
