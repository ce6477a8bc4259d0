// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/abi.hpp"

#include <cmath>

// Quotients of hyperbolic functions that are smooth at 0, as functions of t = z², each with its derivative by t. Where
// the closed form cancels, a Taylor series takes over.

namespace ruvector::inline RUVECTOR_ABI::geometry::detail {

/// A value and its derivative.
struct Jet {
  double value;
  double slope;
};

// The closed forms of the slopes subtract two numbers that agree up to O(t), which leaves an error of about eps / t;
// the series end after t⁶, which leaves about t⁶ in the slope. Both are near 1e-14 here.
inline constexpr double series_radius = 0.004;

/// c₀ + c₁ t + … + c₆ t⁶ and its derivative.
[[nodiscard]] inline Jet polynomial(double t, double c0, double c1, double c2, double c3, double c4, double c5,
                                    double c6) {
  return {c0 + t * (c1 + t * (c2 + t * (c3 + t * (c4 + t * (c5 + t * c6))))),
          c1 + t * (2 * c2 + t * (3 * c3 + t * (4 * c4 + t * (5 * c5 + t * 6 * c6))))};
}

/// sech² z, without cancellation and without overflow, for z >= 0.
[[nodiscard]] inline double sech_squared(double z) {
  const double e = std::exp(-2 * z);
  return 4 * e / ((1 + e) * (1 + e));
}

/// tanh(z) / z for t = z² >= 0.
[[nodiscard]] inline Jet tanh_quotient(double t) {
  if (t < series_radius)
    return polynomial(t, 1, -1.0 / 3, 2.0 / 15, -17.0 / 315, 62.0 / 2835, -1382.0 / 155925, 21844.0 / 6081075);
  const double z = std::sqrt(t);
  const double value = std::tanh(z) / z;
  return {value, (sech_squared(z) - value) / (2 * t)};
}

/// artanh(z) / z for t = z² in [0, 1). `complement` = 1 − t is an argument of its own, since near 1 the caller has it
/// with more digits than t can give.
[[nodiscard]] inline Jet artanh_quotient(double t, double complement) {
  if (t < series_radius) return polynomial(t, 1, 1.0 / 3, 1.0 / 5, 1.0 / 7, 1.0 / 9, 1.0 / 11, 1.0 / 13);
  const double value = std::asinh(std::sqrt(t / complement)) / std::sqrt(t);
  return {value, (1 / complement - value) / (2 * t)};
}

/// sinh(z) / z for t = z² >= 0.
[[nodiscard]] inline Jet sinh_quotient(double t) {
  if (t < series_radius)
    return polynomial(t, 1, 1.0 / 6, 1.0 / 120, 1.0 / 5040, 1.0 / 362880, 1.0 / 39916800, 1.0 / 6227020800);
  const double z = std::sqrt(t);
  const double value = std::sinh(z) / z;
  return {value, (std::cosh(z) - value) / (2 * t)};
}

/// asinh(z) / (z √(1 + z²)) for t = z² >= 0: 2z √(1 + z²) = sinh(2 asinh z), so this is D / sinh D at D = 2 asinh z.
[[nodiscard]] inline Jet asinh_quotient(double t) {
  if (t < series_radius)
    return polynomial(t, 1, -2.0 / 3, 8.0 / 15, -16.0 / 35, 128.0 / 315, -256.0 / 693, 1024.0 / 3003);
  const double value = std::asinh(std::sqrt(t)) / (std::sqrt(t) * std::sqrt(1 + t));
  return {value, (1 - value * (1 + 2 * t)) / (2 * t * (1 + t))};
}

}  // namespace ruvector::inline RUVECTOR_ABI::geometry::detail
