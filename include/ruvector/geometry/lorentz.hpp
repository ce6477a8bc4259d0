// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/random.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/geometry/columns.hpp"
#include "ruvector/geometry/hyperbolic_functions.hpp"
#include "ruvector/geometry/vectors.hpp"

#include <algorithm>
#include <cmath>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::geometry {

namespace detail {

/// A point of the hyperboloid: its space part, and the time that belongs to it.
struct LorentzPoint : Clipped {
  double time = 0;  // x₀ = √(1/c + ‖x⃗‖²)
};

template <Real T>
[[nodiscard]] LorentzPoint lorentz_point(std::span<const T> space, double c) {
  const Clipped clipped = clip(space, c, 1 / double(boundary_margin<T>));
  return {clipped, std::sqrt(1 / c + clipped.square)};
}

/// Two points x, y, with Δ = y − x as the formulas need it: Δ₀ = ⟨Δ⃗, x⃗ + y⃗⟩/(x₀ + y₀), since y₀ − x₀ itself cancels.
template <Real T>
struct LorentzPair {
  std::span<const T> x_data, y_data;  // space parts
  LorentzPoint x, y;
  double c;
  double dt;  // Δ₀
  double q;   // ⟨Δ, Δ⟩ = ‖Δ⃗‖² − Δ₀²
  double t;   // c q/4 = sinh²(s d/2)

  LorentzPair(double c_, std::span<const T> x_space, std::span<const T> y_space)
      : x_data(x_space), y_data(y_space), x(lorentz_point(x_space, c_)), y(lorentz_point(y_space, c_)), c(c_) {
    const double square = sum(length(x_data), [this](Index i) { return delta(i) * delta(i); });
    dt = sum(length(x_data), [this](Index i) { return delta(i) * (X(i) + Y(i)); }) / (x.time + y.time);
    q = square - dt * dt;
    if (q < 0) q = 0;  // by rounding
    t = c * q / 4;
  }

  [[nodiscard]] double X(Index i) const { return x.scale * double(x_data[std::size_t(i)]); }
  [[nodiscard]] double Y(Index i) const { return y.scale * double(y_data[std::size_t(i)]); }
  [[nodiscard]] double delta(Index i) const { return Y(i) - X(i); }
};

}  // namespace detail

/// The hyperboloid {x ∈ R^{d+1} : ⟨x, x⟩ = −1/c, x₀ > 0} of curvature −c, with ⟨x, y⟩ = −x₀y₀ + x⃗·y⃗, s = √c. Rows
/// have d + 1 columns, time first. The time of a point is determined by its space part, x₀ = √(1/c + ‖x⃗‖²), and so is
/// that of a tangent vector, v₀ = x⃗·v⃗/x₀: every operation computes them from the space part, in double, and gradients
/// arrive at the space part only (that by a time is 0). So rounding never leaves the hyperboloid, which would ruin
/// distances far out. Points with s‖x⃗‖ > 1/ε (`boundary_margin`) count as their projection. Source: Nickel & Kiela
/// 2018.
template <Real T>
struct Lorentz {
  /// What it computes in.
  using Scalar = T;

  T curvature = 1;  ///< c > 0

  /// The unit hyperboloid, c = 1.
  Lorentz() = default;
  /// Curvature −c. Throws ConfigError unless c is finite and positive.
  explicit Lorentz(T c) : curvature(c) { (void)detail::checked_curvature(c); }

  /// Names the curvature.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("curvature", self.curvature...);
  }

  /// Columns of a point of dimension d: d + 1.
  [[nodiscard]] Index point_dim(Index d) const { return d + 1; }

  /// d(x, y) = (2/s) asinh((s/2) √⟨x − y, x − y⟩). Relative error about 1e-16 · c x₀y₀. O(d). Throws ShapeError unless
  /// both have the same number of columns, at least 1.
  [[nodiscard]] T distance(std::span<const T> x, std::span<const T> y) const {
    const double c = checked("Lorentz::distance", x, y);
    const detail::LorentzPair<T> pair(c, space(x), space(y));
    return static_cast<T>(2 * std::asinh(std::sqrt(pair.t)) / std::sqrt(c));
  }

  /// Adds the gradients of d_out · d(x, y) to d_x, d_y and grad.curvature; 0 at x = y.
  void distance_vjp(std::span<const T> x, std::span<const T> y, T d_out, std::span<T> d_x, std::span<T> d_y,
                    Lorentz& grad) const {
    const double c = checked("Lorentz::distance_vjp", x, y);
    detail::check_wanted("Lorentz::distance_vjp: gradients", detail::length(x), d_x, d_y);
    const detail::LorentzPair<T> pair(c, space(x), space(y));
    if (pair.t == 0) return;
    const double d = 2 * std::asinh(std::sqrt(pair.t)) / std::sqrt(c);
    const double d_t = double(d_out) / std::sqrt(c * pair.t * (1 + pair.t));
    const double d_q = d_t * c / 4;
    double d_c = d_t * pair.q / 4 - double(d_out) * d / (2 * c);
    // q = ‖Δ⃗‖² − (y₀ − x₀)²; ∂x₀/∂x⃗ = x⃗/x₀, ∂x₀/∂c = −1/(2c²x₀)
    const double d_dt = -2 * d_q * pair.dt;
    const double ax = -d_dt / pair.x.time, by = d_dt / pair.y.time;
    d_c -= (ax + by) / (2 * c * c);
    detail::accumulate(space(d_x), [&](Index i) { return pair.x.scale * (ax * pair.X(i) - 2 * d_q * pair.delta(i)); });
    detail::accumulate(space(d_y), [&](Index i) { return pair.y.scale * (by * pair.Y(i) + 2 * d_q * pair.delta(i)); });
    grad.curvature += static_cast<T>(d_c);
  }

  /// out_j = d(x, column j) for points stored by columns [(d+1)×n]; the bits do not depend on j or n. O(d n).
  void distances(std::span<const T> x, MatrixView<const T> columns, std::span<T> out) const {
    detail::check_columns("Lorentz::distances", x, columns, std::span<const T>(out));
    detail::distances_by_column(*this, x, columns, out);
  }

  /// Adds the gradients of Σ_j d_out_j d(x, column j) to d_x [d+1], d_columns [(d+1)×n] and grad.curvature. O(d n).
  void distances_vjp(std::span<const T> x, MatrixView<const T> columns, std::span<const T> d_out, std::span<T> d_x,
                     MatrixView<T> d_columns, Lorentz& grad) const {
    detail::check_columns("Lorentz::distances_vjp", x, columns, d_out);
    detail::distances_vjp_by_column(*this, x, columns, d_out, d_x, d_columns, grad);
  }

  /// out = the point of the hyperboloid over x⃗, moved to s‖x⃗‖ = 1/margin if it is farther out. Returns whether it was
  /// moved so. `out` may be x.
  bool project(std::span<const T> x, std::span<T> out, T margin = boundary_margin<T>) const {
    const double c = checked("Lorentz::project", x, out);
    return finish(out, c, detail::clip_into(space(x), space(out), c, 1 / double(margin)));
  }

  /// out = h + c⟨x, h⟩x with h = (−g₀, g⃗): the gradient by the Minkowski metric, projected to the tangent space at x
  /// (Nickel & Kiela 2018, algorithm 1). `out` may be g.
  void riemannian_gradient(std::span<const T> x, std::span<const T> g, std::span<T> out) const {
    const double c = checked("Lorentz::riemannian_gradient", x, g, out);
    const detail::LorentzPoint px = detail::lorentz_point(space(x), c);
    const double g0 = double(g[0]);
    const double b = c * (px.time * g0 + px.scale * detail::dot(space(x), space(g)));
    detail::assign(space(out), [&](Index i) { return at(space(g), i) + b * px.scale * at(space(x), i); });
    out[0] = static_cast<T>(b * px.time - g0);
  }

  /// out = exp_x(v) = cosh(s‖v‖) x + (sinh(s‖v‖)/(s‖v‖)) v, ‖v‖² = ⟨v, v⟩. Returns whether the result had to be
  /// projected. `out` may be x or v.
  bool exp(std::span<const T> x, std::span<const T> v, std::span<T> out) const {
    const double c = checked("Lorentz::exp", x, v, out);
    const detail::LorentzPoint px = detail::lorentz_point(space(x), c);
    const double time = px.scale * detail::dot(space(x), space(v)) / px.time;
    const double square = std::max(0.0, detail::dot(space(v), space(v)) - time * time);
    const double cosh = std::cosh(std::sqrt(c * square)), sinh = detail::sinh_quotient(c * square).value;
    detail::assign(space(out), [&](Index i) { return cosh * px.scale * at(space(x), i) + sinh * at(space(v), i); });
    return finish(out, c,
                  detail::clip_into(std::span<const T>(space(out)), space(out), c, 1 / double(boundary_margin<T>)));
  }

 private:
  [[nodiscard]] static double at(std::span<const T> x, Index i) { return double(x[std::size_t(i)]); }
  [[nodiscard]] static std::span<const T> space(std::span<const T> x) { return x.empty() ? x : x.subspan(1); }
  [[nodiscard]] static std::span<T> space(std::span<T> x) { return x.empty() ? x : x.subspan(1); }

  template <class... Spans>
  [[nodiscard]] double checked(std::string_view what, std::span<const T> x, const Spans&... spans) const {
    if (x.empty()) [[unlikely]]
      throw_shape_error(what, "at least 1 column (time)", "0");
    detail::check_lengths(what, detail::length(x), spans...);
    return detail::checked_curvature(curvature);
  }

  // Writes the time that belongs to the space part of out.
  static bool finish(std::span<T> out, double c, bool moved) {
    const std::span<const T> part = space(out);
    out[0] = static_cast<T>(std::sqrt(1 / c + detail::dot(part, part)));
    return moved;
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::geometry
