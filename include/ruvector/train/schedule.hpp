// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <numbers>

namespace ruvector::inline RUVECTOR_ABI::train {

/// What the learning rate is multiplied with over time: `optimizer.step(model, gradient, schedule(epoch))`. Counts what
/// the caller counts, steps or epochs, from 0. Pure; one that watches a metric is told of it by `observe` in between.
template <class S>
concept Schedule = std::copyable<S> && requires(const S& s, Index step) {
  { s(step) } -> std::convertible_to<double>;  // the factor, >= 0
};

/// A schedule that depends on how well training goes.
template <class S>
concept ObservingSchedule = Schedule<S> && requires(S& s, double metric) {
  { s.observe(metric) } -> std::same_as<void>;  // a new value of the metric; smaller is better
};

/// The same factor for ever.
struct Constant {
  double factor = 1;  ///< of the learning rate

  /// The factor.
  [[nodiscard]] double operator()(Index) const { return factor; }
};

/// A small learning rate for the first `steps`, so that what starts in disorder finds its place before it moves fast;
/// then `next`, from its own step 0 on. Source: Nickel & Kiela 2017, §3 ("burn-in", 20 epochs at 0.01).
template <Schedule Next = Constant>
struct BurnIn {
  Index steps = 20;      ///< how many
  double factor = 0.01;  ///< of the learning rate during them
  Next next = {};        ///< what follows

  /// The factor at a step.
  [[nodiscard]] double operator()(Index step) const { return step < steps ? factor : double(next(step - steps)); }
  /// Told to what follows.
  void observe(double metric) requires ObservingSchedule<Next> { next.observe(metric); }
  /// Names what `next` remembers.
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) requires ObservingSchedule<Next> {
    visit("next", self.next);
  }
};

namespace detail {

inline void check_period(Index period) {
  if (period < 1) [[unlikely]]
    throw_config_error("Schedule: period", ">= 1", double(period));
}

}  // namespace detail

/// decay^⌊t/period⌋. Throws ConfigError when called with period < 1.
struct StepDecay {
  Index period = 30;   ///< >= 1
  double decay = 0.1;  ///< every so many steps

  /// The factor at a step.
  [[nodiscard]] double operator()(Index step) const {
    detail::check_period(period);
    const Index decays = step / period;
    return std::pow(decay, double(decays));
  }
};

/// decay^t.
struct Exponential {
  double decay = 0.99;  ///< every step

  /// The factor at a step.
  [[nodiscard]] double operator()(Index step) const { return std::pow(decay, double(step)); }
};

/// floor + (1 − floor)·½(1 + cos(π (t mod period)/period)): from 1 towards `floor`, then up again at once. Source:
/// Loshchilov & Hutter 2017 (SGDR), eq. 5, with periods of one length. Throws ConfigError when called with period < 1.
struct CosineAnnealing {
  Index period = 100;  ///< >= 1
  double floor = 0;    ///< >= 0

  /// The factor at a step.
  [[nodiscard]] double operator()(Index step) const {
    detail::check_period(period);
    const double angle = std::numbers::pi * double(step % period) / double(period);
    return floor + 0.5 * (1 - floor) * (1 + std::cos(angle));
  }
};

/// t/warm_up up to step `warm_up`, from there on a straight line down to 0 at step `total`. At step 0 nothing moves.
struct WarmupLinear {
  Index warm_up = 100;  ///< steps
  Index total = 1000;   ///< > warm_up

  /// The factor at a step.
  [[nodiscard]] double operator()(Index step) const {
    if (step < warm_up) return double(step) / double(warm_up);
    return step < total ? double(total - step) / double(total - warm_up) : 0;
  }
};

/// (t + 1)/warm_up during the first `warm_up` steps; then floor + (1 − floor)·½(1 + cos(π p)) with p from 0 to 1 at
/// step `total`, and `floor` after it.
struct WarmupCosine {
  Index warm_up = 100;  ///< steps
  Index total = 1000;   ///< > warm_up
  double floor = 0;     ///< >= 0

  /// The factor at a step.
  [[nodiscard]] double operator()(Index step) const {
    if (step < warm_up) return double(step + 1) / double(warm_up);
    if (step >= total) return floor;
    const double progress = double(step - warm_up) / double(total - warm_up);
    return floor + 0.5 * (1 - floor) * (1 + std::cos(std::numbers::pi * progress));
  }
};

/// Options of ReduceOnPlateau.
struct ReduceOnPlateauConfig {
  double decay = 0.1;                 ///< of the factor, at each reduction
  Index patience = 10;                ///< so many values without an improvement lead to one (PyTorch: one more)
  double floor = 0;                   ///< the factor stays at least this large
  double least_improvement = 1e-8;    ///< an improvement is a metric < best − this
  double relative_improvement = 0.0;  ///< − this·|best| (PyTorch: 1e-4, and least_improvement 0)
};

/// Reduces the factor when a metric stops falling. A NaN is no improvement.
class ReduceOnPlateau {
 public:
  /// Starts at the factor 1.
  explicit ReduceOnPlateau(const ReduceOnPlateauConfig& config = {}) : config_(config) {}

  /// The factor; the step does not matter.
  [[nodiscard]] double operator()(Index) const { return factor_; }

  /// A new value of the metric.
  void observe(double metric) {
    const double gain = config_.least_improvement + config_.relative_improvement * std::abs(best_);
    if (metric < (best_ < std::numeric_limits<double>::infinity() ? best_ - gain : best_)) {
      best_ = metric;
      waited_ = 0;
    } else if (++waited_ >= config_.patience) {
      factor_ = std::max(factor_ * config_.decay, config_.floor);
      waited_ = 0;
    }
  }

  /// Names what it remembers.
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("factor", self.factor_);
    visit("best", self.best_);
    visit("waited", self.waited_);
  }

 private:
  ReduceOnPlateauConfig config_;
  double factor_ = 1;
  double best_ = std::numeric_limits<double>::infinity();
  Index waited_ = 0;
};

}  // namespace ruvector::inline RUVECTOR_ABI::train
