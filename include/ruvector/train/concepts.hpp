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
