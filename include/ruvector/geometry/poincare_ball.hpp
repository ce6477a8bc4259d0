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

/// A point of the ball, moved inside if it was not.
struct BallPoint : Clipped {
  double alpha = 1;  // α = 1 − c‖x‖²
};

// α from ‖x‖² in double: exact to 1e-16 / α for double points and to 1e-9 for all float points. (1 − s‖x‖)(1 + s‖x‖)
// would round the square root and s on top of it.
template <Real T>
[[nodiscard]] BallPoint ball_point(std::span<const T> x, double c) {
  constexpr double margin = double(boundary_margin<T>);
  const Clipped clipped = clip(x, c, 1 - margin);
  return {clipped, clipped.moved ? margin * (2 - margin) : 1 - c * clipped.square};
}

/// A vector in the span of X, P and the upstream gradient G of one operation.
struct BallVector {
  double x = 0, p = 0, g = 0;

  friend BallVector operator+(BallVector a, BallVector b) { return {a.x + b.x, a.p + b.p, a.g + b.g}; }
  friend BallVector operator*(double k, BallVector a) { return {k * a.x, k * a.p, k * a.g}; }
};

/// Two points as the formulas see them: X, Y and P = Y − X, where X is x or −x. All operations are written in P, α, β
/// and δ = ‖P‖², which keeps them free of cancellation near the rim.
template <Real T>
struct BallPair {
  std::span<const T> x_data, y_data;
  double x_scale, y_scale;  // X = x_scale · x, Y = y_scale · y
  double c, alpha, beta;    // α = 1 − c‖X‖², β = 1 − c‖Y‖²
  double xx, xp, delta;     // X·X, X·P, P·P
  double denominator;       // αβ + cδ = 1 − 2c⟨X, Y⟩ + c²‖X‖²‖Y‖²

  BallPair(double c_, std::span<const T> x, const BallPoint& x_point, double x_sign, std::span<const T> y,
           double y_scale_, double beta_)
      : x_data(x),
        y_data(y),
        x_scale(x_sign * x_point.scale),
        y_scale(y_scale_),
        c(c_),
        alpha(x_point.alpha),
        beta(beta_),
        xx(x_point.square) {
    delta = sum(length(x), [this](Index i) { return P(i) * P(i); });
    xp = sum(length(x), [this](Index i) { return X(i) * P(i); });
    denominator = alpha * beta + c * delta;
  }

  [[nodiscard]] double X(Index i) const { return x_scale * double(x_data[std::size_t(i)]); }
  [[nodiscard]] double Y(Index i) const { return y_scale * double(y_data[std::size_t(i)]); }
  [[nodiscard]] double P(Index i) const { return Y(i) - X(i); }
};

}  // namespace detail

/// The Poincaré ball {x : c‖x‖² < 1} of curvature −c, with s = √c and the conformal factor λ_x = 2/(1 − c‖x‖²). Points
/// on or over the rim count as their projection to ‖x‖ <= (1 − ε)/s (`boundary_margin`), in values and gradients.
/// Sources: Ungar 2008; Nickel & Kiela 2017; Ganea 2018. The forms in differences of points are ours.
template <Real T>
struct PoincareBall {
  /// What it computes in.
  using Scalar = T;

  T curvature = 1;  ///< c > 0; the ball has radius 1/√c

  /// The unit ball, c = 1.
  PoincareBall() = default;
  /// Curvature −c. Throws ConfigError unless c is finite and positive.
  explicit PoincareBall(T c) : curvature(c) { (void)detail::checked_curvature(c); }

  /// Names the curvature.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("curvature", self.curvature...);
  }

  /// Columns of a point of dimension d: d.
  [[nodiscard]] Index point_dim(Index d) const { return d; }

  /// d(x, y) = (1/s) arcosh(1 + 2cδ/(αβ)) = (1/s) log1p(2(cδ + √(cδ(αβ + cδ)))/(αβ)) with δ = ‖x − y‖²,
  /// α = 1 − c‖x‖², β = 1 − c‖y‖²: no cancellation anywhere, and 2‖x − y‖ as c → 0. O(d).
  [[nodiscard]] T distance(std::span<const T> x, std::span<const T> y) const {
    const double c = checked("PoincareBall::distance", x, y);
    const detail::BallPoint px = detail::ball_point(x, c), py = detail::ball_point(y, c);
    const double delta = squared_distance(x, px.scale, y, py.scale);
    const double product = px.alpha * py.alpha;
    const double root = std::sqrt(c * delta * (product + c * delta));
    return static_cast<T>(std::log1p(2 * (c * delta + root) / product) / std::sqrt(c));
  }

  /// Adds the gradients of d_out · d(x, y): κ[(x − y) + (cδ/α)x] to d_x, κ[(y − x) + (cδ/β)y] to d_y, with
  /// κ = 2s/√(cδ(αβ + cδ)); ∂d/∂c to grad.curvature. Defined as 0 at x = y.
  void distance_vjp(std::span<const T> x, std::span<const T> y, T d_out, std::span<T> d_x, std::span<T> d_y,
                    PoincareBall& grad) const {
    const double c = checked("PoincareBall::distance_vjp", x, y);
    detail::check_wanted("PoincareBall::distance_vjp: gradients", detail::length(x), d_x, d_y);
    const detail::BallPoint px = detail::ball_point(x, c), py = detail::ball_point(y, c);
    const detail::BallPair<T> pair(c, x, px, 1, y, py.scale, py.alpha);
    if (pair.delta == 0) return;
    const double s = std::sqrt(c), cd = c * pair.delta, product = pair.alpha * pair.beta;
    const double root = std::sqrt(cd * pair.denominator);
    const double d = std::log1p(2 * (cd + root) / product) / s;
    const double k = double(d_out) * 2 * s / root;
    const double a = k * cd / pair.alpha, b = k * cd / pair.beta;  // coefficients of x and of y
    // ∂d/∂c = −d/(2c) + κδ/(2c) (1 + c‖x‖²/α + c‖y‖²/β)
    double d_c =
        (k * pair.delta * (1 + c * px.square / px.alpha + c * py.square / py.alpha) - double(d_out) * d) / (2 * c);
    const double yp = pair.xp + pair.delta;
    const double ax = a + pull_back(px, a * px.square - k * pair.xp, c, d_c);
    const double by = b + pull_back(py, b * py.square + k * yp, c, d_c);
    detail::accumulate(d_x, [&](Index i) { return px.scale * (ax * pair.X(i) - k * pair.P(i)); });
    detail::accumulate(d_y, [&](Index i) { return py.scale * (by * pair.Y(i) + k * pair.P(i)); });
    grad.curvature += static_cast<T>(d_c);
  }

  /// out_j = d(x, column j) for points stored by columns [d×n]; the bits do not depend on j or n. O(d n).
  void distances(std::span<const T> x, MatrixView<const T> columns, std::span<T> out) const {
    detail::check_columns("PoincareBall::distances", x, columns, std::span<const T>(out));
    detail::distances_by_column(*this, x, columns, out);
  }

  /// Adds the gradients of Σ_j d_out_j d(x, column j) to d_x [d], d_columns [d×n] and grad.curvature. O(d n).
  void distances_vjp(std::span<const T> x, MatrixView<const T> columns, std::span<const T> d_out, std::span<T> d_x,
                     MatrixView<T> d_columns, PoincareBall& grad) const {
    detail::check_columns("PoincareBall::distances_vjp", x, columns, d_out);
    detail::distances_vjp_by_column(*this, x, columns, d_out, d_x, d_columns, grad);
  }

  /// out = x, moved to ‖x‖ = (1 − margin)/s if it is outside of that. Returns whether it was moved. `out` may be x.
  bool project(std::span<const T> x, std::span<T> out, T margin = boundary_margin<T>) const {
    const double c = checked("PoincareBall::project", x, out);
    return detail::clip_into(x, out, c, 1 - double(margin));
  }

  /// out = g/λ_x² = (α²/4) g: the gradient by the metric of the ball (Nickel & Kiela 2017, eq. 5). `out` may be g.
  void riemannian_gradient(std::span<const T> x, std::span<const T> g, std::span<T> out) const {
    const double c = checked("PoincareBall::riemannian_gradient", x, g, out);
    const double alpha = detail::ball_point(x, c).alpha;
    detail::assign(out, [&](Index i) { return alpha * alpha / 4 * at(g, i); });
  }

  /// out = exp_x(v) = x ⊕ (tanh(s λ_x ‖v‖/2)/(s‖v‖)) v: where the geodesic from x with velocity v is at time 1.
  /// Returns whether the result had to be projected. `out` may be x or v. (Ganea 2018, lemma 2)
  bool exp(std::span<const T> x, std::span<const T> v, std::span<T> out) const {
    const double c = checked("PoincareBall::exp", x, v, out);
    const detail::BallPoint px = detail::ball_point(x, c);
    const detail::Clipped cv = detail::clip(v, c, longest);
    const double h = detail::tanh_quotient(c * cv.square / (px.alpha * px.alpha)).value / px.alpha;
    const double beta = detail::sech_squared(std::sqrt(c * cv.square) / px.alpha);
    return translate(detail::BallPair<T>(c, x, px, -1, v, h * cv.scale, beta), out);
  }

 private:
  // Tangent vectors with s‖v‖ over this are shortened to it: the result is the same, and squares do not overflow.
  static constexpr double longest = 1e100;

  [[nodiscard]] static double at(std::span<const T> x, Index i) { return double(x[std::size_t(i)]); }

  [[nodiscard]] static double squared_distance(std::span<const T> x, double sx, std::span<const T> y, double sy) {
    return detail::sum(detail::length(x), [&](Index i) {
      const double difference = sy * at(y, i) - sx * at(x, i);
      return difference * difference;
    });
  }

  template <class... Spans>
  [[nodiscard]] double checked(std::string_view what, std::span<const T> x, const Spans&... spans) const {
    detail::check_lengths(what, detail::length(x), spans...);
    return detail::checked_curvature(curvature);
  }

  // out = (−X) ⊕ Y = (αP − cδX)/(αβ + cδ), projected.
  static bool translate(const detail::BallPair<T>& pair, std::span<T> out) {
    const double p = pair.alpha / pair.denominator, x = pair.c * pair.delta / pair.denominator;
    detail::assign(out, [&](Index i) { return p * pair.P(i) - x * pair.X(i); });
    return detail::clip_into(std::span<const T>(out), out, pair.c, 1 - double(boundary_margin<T>));
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::geometry
