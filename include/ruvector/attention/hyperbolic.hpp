// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/dense.hpp"
#include "ruvector/attention/distance_score.hpp"
#include "ruvector/attention/midpoint.hpp"
#include "ruvector/attention/tiled.hpp"
#include "ruvector/geometry/poincare_ball.hpp"

namespace ruvector::inline RUVECTOR_ABI::attention {

/// Attention in the Poincaré ball (Gulcehre 2019): softmax of −β d(q, k)^ρ and the gyromidpoint of the values. With
/// `Points::tangent` rows are tangent vectors at the origin, exp₀ is applied inside and log₀ to the output.
template <Real T>
using Hyperbolic = Dense<DistanceScore<geometry::PoincareBall<T>>, Midpoint<geometry::PoincareBall<T>>>;

/// The same in tiles, for long sequences: memory O(block).
template <Real T>
using HyperbolicFlash = Tiled<DistanceScore<geometry::PoincareBall<T>>, Midpoint<geometry::PoincareBall<T>>>;

/// Options of hyperbolic attention.
struct HyperbolicConfig {
  double curvature = 1;            ///< c > 0: the ball has radius 1/√c. Learned for scores and values separately
  double beta = 1;                 ///< β > 0; where β/√c is an integer up to 16, weights need no logarithm
  int power = 1;                   ///< ρ, 1 or 2
  Points input = Points::tangent;  ///< what queries, keys, values and outputs are
  double dropout = 0;              ///< on the weights, in training
};

/// `Hyperbolic<T>` or `HyperbolicFlash<T>` with these options. Throws ConfigError.
template <class Attention>
[[nodiscard]] Attention make_hyperbolic(const HyperbolicConfig& config) {
  using T = ScalarOf<Attention>;
  return Attention(
      decltype(Attention::score)(
          {.beta = T(config.beta), .power = config.power, .curvature = T(config.curvature), .input = config.input}),
      decltype(Attention::mean)({.curvature = T(config.curvature), .values = config.input, .first_column = 0}),
      T(config.dropout));
}

}  // namespace ruvector::inline RUVECTOR_ABI::attention
