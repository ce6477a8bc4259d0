// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/parameters.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/batches.hpp"
#include "ruvector/train/concepts.hpp"

#include <cmath>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::train {

/// Options of Adam.
struct AdamConfig {
  double learning_rate = 1e-3;          ///< η
  double beta1 = 0.9;                   ///< β₁, >= 0 and < 1
  double beta2 = 0.999;                 ///< β₂, >= 0 and < 1
  double epsilon = 1e-8;                ///< ε
  double weight_decay = 0;              ///< w
  bool decoupled_weight_decay = false;  ///< AdamW: θ ← θ − η w θ; else w θ is added to the gradient
  bool amsgrad = false;                 ///< divide by the root of the largest v so far. Source: Reddi et al. 2018
};

/// What Adam remembers: all of it, for checkpoints.
template <Module M>
struct AdamState {
  M first_moment;                                         ///< m, shaped like the model
  M second_moment;                                        ///< v, shaped like the model
  Index steps = 0;                                        ///< t
  std::optional<M> largest_second_moment = std::nullopt;  ///< max v over the steps so far; only where amsgrad is wanted

  /// Names all of it.
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("first_moment", self.first_moment);
    visit("second_moment", self.second_moment);
    visit("steps", self.steps);
    visit("largest_second_moment", self.largest_second_moment);
  }
};

namespace detail {

/// Throws ConfigError unless the options that Adam and Riemannian Adam share are in range.
template <class Config>
void check_adam_config(const Config& config) {
  check_not_negative("Adam: learning_rate", config.learning_rate);
  check_decay("Adam: beta1", config.beta1);
  check_decay("Adam: beta2", config.beta2);
  check_not_negative("Adam: epsilon", config.epsilon);
}

/// The numbers of one step that all elements share, with the bias of the moments that start at zero corrected:
/// η m̂/(√v̂ + ε) = η/(1 − β₁ᵗ) · m/(√v/√(1 − β₂ᵗ) + ε).
template <Real T>
struct AdamStep {
  T beta1, beta2, epsilon;
  T rate;        // η/(1 − β₁ᵗ)
  T root_scale;  // 1/√(1 − β₂ᵗ)

  template <class Config>
  AdamStep(const Config& config, double factor, Index steps)
      : beta1(T(config.beta1)),
        beta2(T(config.beta2)),
        epsilon(T(config.epsilon)),
        rate(T(config.learning_rate * factor / (1 - std::pow(config.beta1, double(steps))))),
        root_scale(T(1 / std::sqrt(1 - std::pow(config.beta2, double(steps))))) {}

  /// g ← g + w θ; m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²; θ ← (1 − shrink) θ − η m̂/(√v̂ + ε). With `largest`
  /// not empty, largest ← max(largest, v) takes the place of v in the last of them.
  void update(std::span<T> x, std::span<const T> gradient, std::span<T> first, std::span<T> second, T weight_decay = 0,
              T shrink = 0, std::span<T> largest = {}) const {
    using B = simd::Batch<T>;
    simd::for_each_batch<T>(Index(x.size()), [&](Index i, auto lanes) {
      const B x_i = lanes.load(x.data() + i);
      const B g = simd::fma(B(weight_decay), x_i, lanes.load(gradient.data() + i));
      const B m = simd::fma(B(1 - beta1), g, beta1 * lanes.load(first.data() + i));
      const B v = simd::fma((1 - beta2) * g, g, beta2 * lanes.load(second.data() + i));
      lanes.store(first.data() + i, m);
      lanes.store(second.data() + i, v);
      B divisor = v;
      if (!largest.empty()) {
        divisor = simd::max(v, lanes.load(largest.data() + i));
        lanes.store(largest.data() + i, divisor);
      }
      const B step = rate * m / simd::fma(simd::sqrt(divisor), B(root_scale), B(epsilon));
      lanes.store(x.data() + i, simd::fnma(B(shrink), x_i, x_i) - step);
    });
  }
};

}  // namespace detail

/// Adam, with bias correction,
///
///     m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²,   θ ← θ − η m̂/(√v̂ + ε),   m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ),
///
/// on all parameters alike, those on manifolds too (see RiemannianAdam). Source: Kingma & Ba 2015, algorithm 1; AdamW:
/// Loshchilov & Hutter 2019, algorithm 2. A step allocates nothing.
template <Module M>
class Adam {
 public:
  /// Starts with moments of zero. Throws ConfigError for options out of range.
  explicit Adam(const M& model, AdamConfig config = {})
      : Adam(AdamState<M>{zeros_like(model), zeros_like(model)}, config) {}
  /// Continues from a state; amsgrad begins now if the state is of a run without it.
  explicit Adam(AdamState<M> state, AdamConfig config = {}) : state_(std::move(state)), config_(config) {
    detail::check_adam_config(config);
    detail::check_not_negative("Adam: weight_decay", config.weight_decay);
    if (!config.amsgrad)
      state_.largest_second_moment.reset();
    else if (!state_.largest_second_moment)
      state_.largest_second_moment = state_.second_moment;
  }

  /// Moves `model` once, with the configured learning rate times `factor`. Throws ShapeError or ConfigError before
  /// anything changes.
  void step(M& model, const M& gradient, double factor = 1) {
    using T = ScalarOf<M>;
    detail::check_not_negative("Adam: factor", factor);
    check_same_parameters(model, gradient, state_.first_moment, state_.second_moment);
    const detail::AdamStep<T> step(config_, factor, ++state_.steps);
    const bool decoupled = config_.decoupled_weight_decay;
    const T decay = decoupled ? T(0) : T(config_.weight_decay);
    const T shrink = decoupled ? T(config_.learning_rate * factor * config_.weight_decay) : T(0);
    const auto update = [&](std::string_view, std::span<T> x, std::span<const T> g, std::span<T> m, std::span<T> v,
                            auto... largest) { step.update(x, g, m, v, decay, shrink, largest...); };
    if (config_.amsgrad)
      for_each_parameter(update, model, gradient, state_.first_moment, state_.second_moment,
                         *state_.largest_second_moment);
    else
      for_each_parameter(update, model, gradient, state_.first_moment, state_.second_moment);
  }

  /// What it remembers.
  [[nodiscard]] const AdamState<M>& state() const { return state_; }
  /// The options.
  [[nodiscard]] const AdamConfig& config() const { return config_; }
  /// Names what it remembers.
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    AdamState<M>::checkpoint(visit, self.state_);
  }

 private:
  AdamState<M> state_;
  AdamConfig config_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::train
