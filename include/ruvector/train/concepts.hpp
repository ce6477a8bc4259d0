// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/parameters.hpp"

#include <cmath>
#include <concepts>
#include <limits>
#include <string_view>

namespace ruvector::inline RUVECTOR_ABI::train {

/// Moves the parameters of a module against a gradient. A value: a copy of optimizer and model continues with the same
/// bits. A step either happens as a whole or, if it throws ShapeError or ConfigError, not at all.
template <class O, class M>
concept OptimizerFor = Module<M> && std::copyable<O> && requires(O& o, M& model, const M& gradient, double factor) {
  { o.step(model, gradient, factor) } -> std::same_as<void>;  // learning rate = the configured one times factor
};

/// A penalty on the parameters of a module that is added to the loss: Ewc, SynapticIntelligence. A value, like an
/// optimizer.
template <class R, class M>
concept RegularizerFor = Module<M> && std::copyable<R> && requires(const R& r, const M& model, M& gradient) {
  { r.penalty(model) } -> std::convertible_to<double>;        // what is added to the loss
  { r.add_gradient(model, gradient) } -> std::same_as<void>;  // gradient += ∂penalty/∂model
};

/// A regularizer that learns from every step which parameters matter.
template <class R, class M>
concept ObservingRegularizerFor = RegularizerFor<R, M> && requires(R& r, const M& model, const M& gradient) {
  { r.before_step(model, gradient) } -> std::same_as<void>;  // ahead of a step: the gradient of the loss alone
  { r.after_step(model) } -> std::same_as<void>;             // where the step led
};

/// No penalty.
struct NoRegularizer {
  /// 0.
  template <Module M>
  [[nodiscard]] double penalty(const M&) const {
    return 0;
  }
  /// Adds nothing.
  template <Module M>
  void add_gradient(const M&, M&) const {}
};

namespace detail {

/// Throws ConfigError unless low <= value <= high (a NaN is neither).
inline void check_option(std::string_view what, double value, double low, double high, std::string_view expected) {
  if (!(low <= value && value <= high)) [[unlikely]]
    throw_config_error(what, expected, value);
}

inline void check_not_negative(std::string_view what, double value) {
  check_option(what, value, 0, std::numeric_limits<double>::max(), "finite and >= 0");
}

/// A decay rate: at 1 nothing new would ever come in.
inline void check_decay(std::string_view what, double value) {
  check_option(what, value, 0, std::nextafter(1.0, 0.0), ">= 0 and < 1");
}

}  // namespace detail

}  // namespace ruvector::inline RUVECTOR_ABI::train
