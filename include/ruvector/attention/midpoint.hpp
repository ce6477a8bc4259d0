// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/positive.hpp"
#include "ruvector/attention/tangent.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/geometry/hyperbolic_functions.hpp"
#include "ruvector/geometry/lorentz.hpp"
#include "ruvector/geometry/poincare_ball.hpp"
#include "ruvector/geometry/vectors.hpp"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// Options of a hyperbolic mean.
template <Real T>
struct MidpointConfig {
  T curvature = 1;                      ///< c > 0, learnable
  Points values = Points::on_manifold;  ///< what values and outputs are; `tangent` for the ball only
  Index first_column = 0;               ///< columns before it are averaged as vectors: the flat part of a product space
};

/// The weighted midpoint on a hyperbolic manifold.
template <class Manifold>
struct Midpoint;

/// The gyromidpoint of points of the ball = Einstein midpoint = Lorentz centroid (Ungar 2008; Shimizu 2021):
///
///     n = Σ w λ x,  t = Σ w (λ − 1),  M = √(t² − c‖n‖²),  mid = n/(t + M)
///
/// so that lift(x) = λ x with mass λ − 1 = cosh, and sums are plain. M ≥ Σ w = 1 is kept where rounding would not. With
/// tangent vectors lift(v) = sinh(2z)/z v, mass = cosh 2z, z = √c‖v‖, and what comes out is log₀(mid) = asinh(√c‖n‖/M)
/// n/(2√c‖n‖). In float the mean of points nearer to the rim than 10⁻³ is as coarse as that: use tangent vectors or
/// double there.
template <Real T>
struct Midpoint<geometry::PoincareBall<T>> {
  using Scalar = T;  ///< what it computes in

  Positive<T> curvature;                ///< c, learnable
  Points values = Points::on_manifold;  ///< what values and outputs are
  Index first_column = 0;               ///< columns before it are averaged as vectors

  /// Of points, c = 1.
  Midpoint() = default;
  /// Throws ConfigError unless c is finite and positive and first_column ≥ 0.
  explicit Midpoint(const MidpointConfig<T>& config)
      : curvature(config.curvature, "Midpoint: curvature"), values(config.values), first_column(config.first_column) {
    if (first_column < 0) throw_config_error("Midpoint: first_column", ">= 0", double(first_column));
  }

  /// Names the curvature.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("curvature", self.curvature...);
  }

  /// The mean for rows of one width.
  struct Bound {
    static constexpr bool lifts = true;     ///< by λ
    static constexpr bool has_mass = true;  ///< λ − 1
    static constexpr Index parameters = 1;  ///< c

    Positive<T> parameter;  ///< c as it is learned
    double c;               ///< c
    Points values;          ///< what values and outputs are
    std::size_t first;      ///< the first column of a point

    /// out = λ x in the columns of the point, mass = λ − 1.
    void lift(std::span<const T> value, std::span<T> out, T& mass) const {
      const std::span<const T> x = value.subspan(first);
      const BallRow row(x, c, values);
      const double factor = 2 * row.inverse_alpha * row.scale;
      mass = T(2 * row.inverse_alpha - 1);
      for (std::size_t i = 0; i < first; ++i) out[i] = value[i];
      for (std::size_t i = 0; i < x.size(); ++i) out[first + i] = T(factor) * x[i];
    }
    /// Adds to d_value and d_parameters. With A = 1/α: lifted = 2A scale x, mass = 2A − 1, ∂A/∂‖p‖² = cA².
    void lift_vjp(std::span<const T> value, std::span<const T> d_out, T d_mass, std::span<T> d_value,
                  std::span<T> d_parameters) const {
      const std::span<const T> x = value.subspan(first), d_lifted = d_out.subspan(first);
      const std::span<T> d_x = d_value.empty() ? d_value : d_value.subspan(first);
      const BallRow row(x, c, values);
      const double along = geometry::detail::dot(x, d_lifted), A = row.inverse_alpha;
      const double d_A = 2 * (row.scale * along + double(d_mass));
      double d_c = 0, d_square = 0;
      if (!row.moved) {
        d_square = c * A * A * d_A;
        d_c = row.square * A * A * d_A;
      }
      row.vjp(x, d_square, 2 * A * along, d_x, d_c);
      for (std::size_t i = 0; i < d_x.size(); ++i) d_x[i] = T(double(d_x[i]) + 2 * A * row.scale * double(d_lifted[i]));
      if (!d_value.empty())
        for (std::size_t i = 0; i < first; ++i) d_value[i] += d_out[i];
      d_parameters[0] += T(d_c);
    }

    /// out = n/(t + M), or its log₀. `mean` may be `out`.
    void project(std::span<const T> mean, T mass, std::span<T> out) const {
      const Projection p(*this, mean.subspan(first), mass);
      for (std::size_t i = 0; i < first; ++i) out[i] = mean[i];
      for (std::size_t i = first; i < mean.size(); ++i) out[i] = T(p.factor * double(mean[i]));
    }
    /// Sets d_mean and d_mass, adds to d_parameters.
    void project_vjp(std::span<const T> mean, T mass, std::span<const T> d_out, std::span<T> d_mean, T& d_mass,
                     std::span<T> d_parameters) const {
      const std::span<const T> n = mean.subspan(first), g = d_out.subspan(first);
      const Projection p(*this, n, mass);
      const double d_factor = geometry::detail::dot(n, g);
      for (std::size_t i = 0; i < first; ++i) d_mean[i] = d_out[i];
      for (std::size_t i = 0; i < n.size(); ++i)
        d_mean[first + i] = T(p.factor * double(g[i]) + 2 * d_factor * p.by_square * double(n[i]));
      d_mass = T(d_factor * p.by_t);
      d_parameters[0] += T(d_factor * p.by_c);
    }
    /// Adds the gradient by c.
    void add_parameters(std::span<const T> sums, Midpoint& grad) const { parameter.add(sums[0], grad.curvature); }

   private:
    using BallRow = attention::detail::BallRow;

    // out = factor · n, a function of ‖n‖², t and c.
    struct Projection {
      double factor, by_square, by_t, by_c;

      Projection(const Bound& mean, std::span<const T> n, T mass) {
        const double kappa = mean.c, t = double(mass), square = geometry::detail::dot(n, n);
        const double m2 = t * t - kappa * square;
        const bool kept = m2 > 1;  // else M = Σ w = 1
        const double M = kept ? std::sqrt(m2) : 1;
        const double m_by_t = kept ? t / M : 0, m_by_square = kept ? -kappa / (2 * M) : 0,
                     m_by_c = kept ? -square / (2 * M) : 0;
        if (mean.values == Points::on_manifold) {
          factor = 1 / (t + M);
          const double by_m = -factor * factor;
          by_square = by_m * m_by_square;
          by_t = by_m * (1 + m_by_t);
          by_c = by_m * m_by_c;
          return;
        }
        // asinh(y)/y = q at y² = c‖n‖²/M²; factor = q/(2M)
        const double y2 = kappa * square / (M * M), y = std::sqrt(y2);
        const bool small = y2 < 1e-4;  // both forms agree to 1e-15 here
        const double q = small ? 1 - y2 / 6 * (1 - y2 * 9 / 20 * (1 - y2 * 25 / 42)) : std::asinh(y) / y;
        const double slope =
            small ? -1.0 / 6 + y2 * 3 / 20 - y2 * y2 * 15 / 112 : (1 / std::sqrt(1 + y2) - q) / (2 * y2);
        factor = q / (2 * M);
        const double by_y2 = slope / (2 * M), by_m = -q / (2 * M * M) - by_y2 * 2 * y2 / M;
        by_square = by_y2 * kappa / (M * M) + by_m * m_by_square;
        by_t = by_m * m_by_t;
        by_c = by_y2 * square / (M * M) + by_m * m_by_c;
      }
    };
  };

  /// The constants for rows of width v. Throws ShapeError where they have no column of a point.
  [[nodiscard]] Bound bind(Index v) const {
    if (first_column > v) throw_shape_error("Midpoint: columns of value", "at least first_column", std::to_string(v));
    return {curvature, double(curvature.value()), values, std::size_t(first_column)};
  }
};

/// The centroid on the hyperboloid (Law 2019): Σ w x scaled back to it. The time of points is taken from their space
/// part, also in what comes out; a value row is [d+1], time first.
template <Real T>
struct Midpoint<geometry::Lorentz<T>> {
  using Scalar = T;  ///< what it computes in

  Positive<T> curvature;  ///< c, learnable

  /// c = 1.
  Midpoint() = default;
  /// Throws ConfigError unless c is finite and positive and rows are points.
  explicit Midpoint(const MidpointConfig<T>& config) : curvature(config.curvature, "Midpoint: curvature") {
    if (config.values != Points::on_manifold || config.first_column != 0)
      throw_config_error("Midpoint: on the hyperboloid, values and first_column", "points and 0",
                         double(config.first_column));
  }

  /// Names the curvature.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("curvature", self.curvature...);
  }

  /// The mean for rows of one width.
  struct Bound {
    static constexpr bool lifts = true;      ///< takes the time from the space part
    static constexpr bool has_mass = false;  ///< the time is a column
    static constexpr Index parameters = 1;   ///< c

    Positive<T> parameter;  ///< c as it is learned
    double c;               ///< c

    /// out = (√(1/c + ‖x⃗‖²), x⃗).
    void lift(std::span<const T> value, std::span<T> out, T&) const {
      const double time = time_of(value.subspan(1));
      std::copy(value.begin() + 1, value.end(), out.begin() + 1);
      out[0] = T(time);
    }
    /// Adds to d_value and d_parameters.
    void lift_vjp(std::span<const T> value, std::span<const T> d_out, T, std::span<T> d_value,
                  std::span<T> d_parameters) const {
      const double time = time_of(value.subspan(1)), d_time = double(d_out[0]) / time;
      if (!d_value.empty())
        for (std::size_t i = 1; i < value.size(); ++i)
          d_value[i] = T(double(d_value[i]) + double(d_out[i]) + d_time * double(value[i]));
      d_parameters[0] -= T(d_time / (2 * c * c));
    }
    /// out⃗ = N⃗/(√c M), M² = −⟨N, N⟩ ≥ 1/c, and its time.
    void project(std::span<const T> mean, T, std::span<T> out) const {
      const double factor = 1 / (std::sqrt(c) * mass(mean).value);
      for (std::size_t i = 1; i < mean.size(); ++i) out[i] = T(factor * double(mean[i]));
      out[0] = T(time_of(std::span<const T>(out).subspan(1)));
    }
    /// Sets d_mean, adds to d_parameters.
    void project_vjp(std::span<const T> mean, T, std::span<const T> d_out, std::span<T> d_mean, T&,
                     std::span<T> d_parameters) const {
      const auto [M, of_sum] = mass(mean);
      const std::span<const T> space = mean.subspan(1), g = d_out.subspan(1);
      const double factor = 1 / (std::sqrt(c) * M), square = geometry::detail::dot(space, space);
      const double time = std::sqrt(1 / c + factor * factor * square);
      const double d_time = double(d_out[0]) / time;  // the time of the output depends on its space part
      const double d_factor = geometry::detail::dot(space, g) + d_time * factor * square;
      const double d_M = of_sum ? -d_factor * factor / M : 0;
      d_mean[0] = T(d_M * double(mean[0]) / M);
      for (std::size_t i = 0; i < space.size(); ++i)
        d_mean[i + 1] = T(factor * double(g[i]) + (d_time * factor * factor - d_M / M) * double(space[i]));
      // By c: the factor ∝ 1/√c (or constant, where M = 1/√c), and 1/c in the time.
      d_parameters[0] += T((of_sum ? -d_factor * factor / (2 * c) : 0) - d_time / (2 * c * c));
    }
    /// Adds the gradient by c.
    void add_parameters(std::span<const T> sums, Midpoint& grad) const { parameter.add(sums[0], grad.curvature); }

   private:
    // M, and whether it is that of the sum: else 1/√c.
    struct Mass {
      double value;
      bool of_sum;
    };
    [[nodiscard]] double time_of(std::span<const T> space) const {
      return std::sqrt(1 / c + geometry::detail::dot(space, space));
    }
    [[nodiscard]] Mass mass(std::span<const T> mean) const {
      const std::span<const T> space = mean.subspan(1);
      const double m2 = double(mean[0]) * double(mean[0]) - geometry::detail::dot(space, space);
      return m2 > 1 / c ? Mass{std::sqrt(m2), true} : Mass{1 / std::sqrt(c), false};
    }
  };

  /// The constants for rows of width v. Throws ShapeError for rows without a time.
  [[nodiscard]] Bound bind(Index v) const {
    if (v < 1) throw_shape_error("Midpoint: columns of value", "time and space", std::to_string(v));
    return {curvature, double(curvature.value())};
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
