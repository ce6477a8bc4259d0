// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/real.hpp"
#include "ruvector/geometry/hyperbolic_functions.hpp"
#include "ruvector/geometry/vectors.hpp"

#include <cmath>
#include <concepts>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// What the rows of queries, keys and values are.
enum class Points {
  tangent,      ///< tangent vectors at the origin: exp₀ is applied inside, log₀ to what comes out
  on_manifold,  ///< points
};

namespace detail {

/// A row as a point p = scale · x of the ball of curvature −c: x itself, or exp₀(x) = tanh(√c r)/(√c r) x. Beyond the
/// rim it counts as its projection.
struct BallRow {
  double c;
  bool tangent;
  bool moved = false;        ///< to the rim
  double norm2 = 0;          ///< ‖x‖²
  double scale = 1;          ///< p = scale · x
  double scale_slope = 0;    ///< ∂scale/∂(c‖x‖²), where it is not moved
  double square = 0;         ///< ‖p‖²
  double inverse_alpha = 1;  ///< A = 1/(1 − c‖p‖²)

  template <Real T>
  BallRow(std::span<const T> x, double curvature, Points input) : c(curvature), tangent(input == Points::tangent) {
    constexpr double margin = double(geometry::boundary_margin<T>), reach = 1 - margin;
    norm2 = geometry::detail::dot(x, x);
    const double u = c * norm2;
    if (!tangent) {
      moved = u > reach * reach;  // not NaN
      if (!moved) [[likely]] {
        square = norm2;
        inverse_alpha = 1 / std::fma(-c, square, 1.0);
        return;
      }
      const geometry::detail::Clipped clipped = geometry::detail::clip(x, c, reach);
      scale = clipped.scale;
      square = clipped.square;
      inverse_alpha = 1 / (margin * (2 - margin));
      return;
    }
    // artanh(reach) = ln(2/margin − 1)/2
    constexpr double farthest = std::same_as<T, float> ? 8.664339742098154 : 14.20951720147865;
    moved = u > farthest * farthest;
    if (moved) {
      scale = reach / std::sqrt(u);
      square = reach * reach / c;
      inverse_alpha = 1 / (margin * (2 - margin));
      return;
    }
    const geometry::detail::Jet jet = geometry::detail::tanh_quotient(u);
    const double cosh = std::cosh(std::sqrt(u));
    scale = jet.value;
    scale_slope = jet.slope;
    square = scale * scale * norm2;
    inverse_alpha = cosh * cosh;
  }

  /// Given the gradients by ‖p‖² and by the scale of x, adds 2x(…) to d_x, and to d_c what comes through exp₀ or the
  /// projection. (A curvature that stands in a formula itself is the caller's.)
  template <Real T>
  void vjp(std::span<const T> x, double d_square, double d_scale, std::span<T> d_x, double& d_c) const {
    double d_norm2 = 0;
    if (moved) {  // scale = reach/(√c ‖x‖); ‖p‖² is constant but for c, which no formula sees apart from c‖p‖²
      d_norm2 = -d_scale * scale / (2 * norm2);
      d_c -= d_scale * scale / (2 * c);
    } else {
      // ‖p‖² = scale² ‖x‖²
      const double by_scale = d_scale + 2 * scale * norm2 * d_square;
      d_norm2 = d_square * scale * scale + by_scale * scale_slope * c;
      d_c += by_scale * scale_slope * norm2;
    }
    if (d_x.empty()) return;
    for (std::size_t i = 0; i < x.size(); ++i) d_x[i] = T(double(d_x[i]) + 2 * d_norm2 * double(x[i]));
  }
};

}  // namespace detail

}  // namespace ruvector::inline RUVECTOR_ABI::attention
