// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"

#include <cmath>
#include <limits>
#include <string_view>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// A learnable number that stays positive whatever an optimizer does: value = softplus(raw) = ln(1 + e^raw). For
/// temperatures, curvatures and inverse temperatures.
template <Real T>
struct Positive {
  using Scalar = T;  ///< what it computes in

  T raw = T(0.5413248546129181);  ///< learned; default: value 1

  /// 1.
  Positive() = default;
  /// Starts at this value. Throws ConfigError, naming it, unless it is finite and > 0.
  explicit Positive(T value, std::string_view name = "Positive") {
    if (!(value > 0 && value <= std::numeric_limits<T>::max()))
      throw_config_error(name, "finite and > 0", double(value));
    raw = T(double(value) + std::log(-std::expm1(-double(value))));
  }

  /// softplus(raw).
  [[nodiscard]] T value() const {
    const double x = double(raw);
    return T(std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x))));
  }
  /// Adds the gradient by the value to that by raw: ∂value/∂raw = 1 − e^(−value).
  void add(T d_value, Positive& grad) const { grad.raw += T(double(d_value) * -std::expm1(-double(value()))); }

  /// Names raw.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("raw", self.raw...);
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
