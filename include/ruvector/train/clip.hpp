// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/parameters.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/simd/batches.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/train/concepts.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string_view>

namespace ruvector::inline RUVECTOR_ABI::train {

namespace detail {

/// Σ x_i² in double: squares of large floats do not overflow, and small ones are not lost.
template <Real T>
[[nodiscard]] double squared_norm(std::span<const T> x) {
  constexpr std::size_t lanes = 16;
  double sums[lanes] = {};
  const auto add = [&](std::size_t i, std::size_t count) {
    for (std::size_t lane = 0; lane < count; ++lane)
      sums[lane] = std::fma(double(x[i + lane]), double(x[i + lane]), sums[lane]);
  };
  std::size_t i = 0;
  for (; i + lanes <= x.size(); i += lanes) add(i, lanes);
  add(i, x.size() - i);
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

}  // namespace detail

/// ‖g‖ over all parameters of a gradient together. O(parameters), no allocation.
template <Module M>
[[nodiscard]] double gradient_norm(const M& gradient) {
  double sum = 0;
  for_each_parameter(
      [&](std::string_view, std::span<const ScalarOf<M>> g) { sum += detail::squared_norm<ScalarOf<M>>(g); }, gradient);
  return std::sqrt(sum);
}

/// g ← α g, all parameters.
template <Module M>
void scale_gradient(M& gradient, double factor) {
  using T = ScalarOf<M>;
  for_each_parameter([&](std::string_view, std::span<T> g) { simd::scale(static_cast<T>(factor), g); }, gradient);
}

/// Shortens a gradient to a norm, over all parameters together, of at most `longest`: g ← g·min(1, longest/‖g‖).
/// Returns ‖g‖ as it was. A norm that is not finite leaves the gradient alone, to be dealt with by the caller: no
/// factor could mend it. Throws ConfigError unless longest >= 0. Source: Pascanu et al. 2013, algorithm 1.
template <Module M>
double clip_gradient_norm(M& gradient, double longest) {
  detail::check_option("clip_gradient_norm: longest", longest, 0, std::numeric_limits<double>::infinity(), ">= 0");
  const double norm = gradient_norm(gradient);
  if (norm > longest && norm <= std::numeric_limits<double>::max()) scale_gradient(gradient, longest / norm);
  return norm;
}

/// Clamps every element of a gradient to ±largest; a NaN stays. Throws ConfigError unless largest >= 0.
template <Module M>
void clip_gradient_value(M& gradient, double largest) {
  using T = ScalarOf<M>;
  detail::check_option("clip_gradient_value: largest", largest, 0, std::numeric_limits<double>::infinity(), ">= 0");
  const T limit = static_cast<T>(largest);
  for_each_parameter(
      [&](std::string_view, std::span<T> g) {
        for (T& x : g) x = std::clamp(x, -limit, limit);  // its comparisons leave a NaN
      },
      gradient);
}

}  // namespace ruvector::inline RUVECTOR_ABI::train
