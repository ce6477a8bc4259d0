// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/random.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/geometry/columns.hpp"
#include "ruvector/geometry/hyperbolic_functions.hpp"
#include "ruvector/geometry/vectors.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <cmath>
#include <span>
#include <string_view>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::geometry {

namespace detail {

/// A point of the ball, moved inside if it was not.
struct BallPoint : Clipped {
  double alpha = 1;  // α = 1 − c‖x‖²
};

// α from ‖x‖² in double, rounded once: good to 1e-16 / α, which is 1e-9 for the outermost float. (1 − s‖x‖)(1 + s‖x‖)
// would round the square root and s on top of it, 1 − c‖x‖² without fma the product.
template <Real T>
[[nodiscard]] BallPoint ball_point(std::span<const T> x, double c) {
  constexpr double margin = double(boundary_margin<T>);
  const Clipped clipped = clip(x, c, 1 - margin);
  return {clipped, clipped.moved ? margin * (2 - margin) : std::fma(-c, clipped.square, 1.0)};
}

/// A vector a X + b P + e G in the span of the vectors of one operation; G is the upstream gradient.
struct BallVector {
  double x = 0, p = 0, g = 0;

  friend BallVector operator+(BallVector a, BallVector b) { return {a.x + b.x, a.p + b.p, a.g + b.g}; }
  friend BallVector operator-(BallVector a, BallVector b) { return {a.x - b.x, a.p - b.p, a.g - b.g}; }
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
  double denominator;       // D = αβ + cδ = 1 − 2c⟨X, Y⟩ + c²‖X‖²‖Y‖²

  BallPair(double c_, std::span<const T> x, const BallPoint& x_point, double x_sign, std::span<const T> y,
           double y_scale_, double beta_)
      : x_data(x),
        y_data(y),
        x_scale(x_sign * x_point.scale),
        y_scale(y_scale_),
        c(c_),
        alpha(x_point.alpha),
        beta(beta_),
        xx(x_point.square),
        xp(sum(length(x), [this](Index i) { return X(i) * P(i); })),
        delta(sum(length(x), [this](Index i) { return P(i) * P(i); })),
        denominator(alpha * beta + c * delta) {}

  [[nodiscard]] double X(Index i) const { return x_scale * double(x_data[std::size_t(i)]); }
  [[nodiscard]] double Y(Index i) const { return y_scale * double(y_data[std::size_t(i)]); }
  [[nodiscard]] double P(Index i) const { return Y(i) - X(i); }

  [[nodiscard]] double dot_x(BallVector a, double gx) const { return a.x * xx + a.p * xp + a.g * gx; }
  [[nodiscard]] double dot_y(BallVector a, double gx, double gp) const {
    return dot_x(a, gx) + a.x * xp + a.p * delta + a.g * gp;
  }
};

/// The gradients by X and by Y of a function of both.
struct BallGradient {
  BallVector x, y;
};

/// m = (−X) ⊕ Y = (αP − cδX)/D backward: the gradients of G·m, given gx = G·X and gp = G·P; adds to d_c. Where m had to
/// be projected to the radius `reach`/√c, those of the projection.
template <Real T>
[[nodiscard]] BallGradient translation_vjp(const BallPair<T>& pair, double gx, double gp, double reach, double& d_c) {
  const auto& [x_data, y_data, x_scale, y_scale, c, alpha, beta, xx, xp, delta, denominator] = pair;
  const double cd = c * delta;
  double gm = (alpha * gp - cd * gx) / denominator;
  BallVector g = {0, 0, 1};
  // 1 − c‖m‖² = αβ/D
  if (alpha * beta < (1 - reach * reach) * denominator) {
    // The projection f m, f = R/‖m‖, sends back f (G − (G·m) m/‖m‖²); R is proportional to 1/√c.
    const double mm = delta / denominator;
    const double f = reach / std::sqrt(c * mm), k = -f * gm / mm;
    d_c -= f * gm / (2 * c);
    g = {-k * cd / denominator, k * alpha / denominator, f};
    gx = f * gx + k * (alpha * xp - cd * xx) / denominator;
    gp = f * gp + k * (alpha * delta - cd * xp) / denominator;
    gm = 0;
  }
  const double d_alpha = (gp - beta * gm) / denominator;
  const double d_beta = -alpha * gm / denominator;
  const double d_delta = -c * (gx + gm) / denominator;
  const BallVector y = {1, 1, 0};  // Y = X + P
  const BallVector by_p = (alpha / denominator) * g + BallVector{0, 2 * d_delta, 0};
  const double yy = xx + 2 * xp + delta;
  d_c -= delta * (gx + gm) / denominator + d_alpha * xx + d_beta * yy;
  return {(-cd / denominator) * g - BallVector{2 * c * d_alpha, 0, 0} - by_p, by_p - (2 * c * d_beta) * y};
}

/// One point of the ball against columns (columns.hpp). With cδ = c‖x − y‖², D = αβ + cδ, r = √(cδ D).
struct BallColumns {
  static constexpr bool has_radial_part = true;
  BallPoint x;
  double c, s, reach;

  struct Sums {
    Lane delta, square;
  };
  template <class Block>
  [[nodiscard, gnu::always_inline]] Sums sums(const Block& block) const {
    Sums sums{0.0, 0.0};
    for (Index i = 0; i < block.rows; ++i) {
      const Lane y = block.Y(i), difference = y - block.X(i);
      sums.delta = simd::fma(difference, difference, sums.delta);
      sums.square = simd::fma(y, y, sums.square);
    }
    return sums;
  }

  struct Parts {
    Lane beta, cd, root;
  };
  [[nodiscard, gnu::always_inline]] Parts parts(const Sums& sums) const {
    const Lane beta = simd::detail::residual(Lane(c), sums.square, Lane(1.0));  // 1 − c‖y‖², rounded once
    const Lane cd = c * sums.delta;
    return {beta, cd, simd::sqrt(cd * simd::fma(Lane(x.alpha), beta, cd))};
  }
  [[nodiscard, gnu::always_inline]] Lane distance(const Sums& sums) const {
    const Parts p = parts(sums);
    return (1 / s) * simd::log1p(2.0 * (p.cd + p.root) / (x.alpha * p.beta));
  }

  // κ = 2s/r: a = κ, b = κcδ/β, e = κcδ/α, by c: (κδ(1/α + 1/β − 1) − d)/(2c)
  template <class Distance>
  [[nodiscard, gnu::always_inline]] PairTerms terms(const Sums& sums, Lane d_out, Distance distance) const {
    const Parts p = parts(sums);
    const Lane a = simd::select(p.root == Lane(0.0), 0.0, 2 * s * d_out / p.root);
    const Lane k = a * p.cd, inverse = 1.0 / p.beta;
    const Lane stretch = k * (inverse + (1 / x.alpha - 1));
    return {a, k * inverse, (1 / x.alpha) * k, (0.5 / c) * simd::fnma(d_out, distance(), (1 / c) * stretch)};
  }
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
    detail::column_distances(columns_model(x), x, columns, out);
  }

  /// Adds the gradients of Σ_j d_out_j d(x, column j) to d_x [d], d_columns [d×n] and grad.curvature. `distances` [n],
  /// what `distances` returned, saves their logarithms if it is at hand. O(d n).
  void distances_vjp(std::span<const T> x, MatrixView<const T> columns, std::span<const T> d_out, std::span<T> d_x,
                     MatrixView<T> d_columns, PoincareBall& grad, std::span<const T> distances = {}) const {
    detail::check_columns("PoincareBall::distances_vjp", x, columns, d_out);
    detail::check_wanted("PoincareBall::distances_vjp: d_x", detail::length(x), d_x);
    detail::check_wanted("PoincareBall::distances_vjp: d_columns", columns, d_columns);
    detail::check_wanted("PoincareBall::distances_vjp: distances", columns.cols(), distances);
    grad.curvature += T(detail::column_distances_vjp(columns_model(x), x, columns, distances, d_out, d_x, d_columns));
  }

  /// out = x, moved to ‖x‖ = (1 − margin)/s if it is outside of that. Returns whether it was moved. `out` may be x.
  /// Throws ConfigError unless 0 < margin < 1.
  bool project(std::span<const T> x, std::span<T> out, T margin = boundary_margin<T>) const {
    const double c = checked("PoincareBall::project", x, out);
    return detail::clip_into(x, out, c, 1 - detail::checked_margin(margin));
  }

  /// x ← project(x − rate·riemannian_gradient(x, g), margin) in one pass: what Riemannian SGD does to every row.
  /// Returns whether the result had to be projected. Throws ConfigError unless 0 < margin < 1. O(d).
  bool descend(std::span<T> x, std::span<const T> gradient, T rate, T margin = boundary_margin<T>) const
      requires(std::same_as<T, double>) {
    const double c = checked("PoincareBall::descend", x, gradient), limit = 1 - detail::checked_margin(margin);
    const Index n = detail::length(gradient);
    double square = simd::squared_norm(x.data(), n);
    if (c * square > reach * reach) [[unlikely]] {
      project(x, x);
      square = simd::squared_norm(x.data(), n);
    }
    const double alpha = 1 - c * square;
    const double step = -rate * alpha * alpha / 4;  // −rate/λ²
    const simd::Batch<double> factor(step);
    constexpr Index width = simd::lanes<double>;
    simd::Batch<double> squares(0.0);
    double* at = x.data();
    Index i = 0;
    for (; i + width <= n; i += width) {
      const simd::Batch<double> to = simd::fma(factor, simd::load(gradient.data() + i), simd::load(at + i));
      squares = simd::fma(to, to, squares);
      simd::store(at + i, to);
    }
    double rest = 0;  // one by one: a masked store would cost more than the rest of this function
    for (; i < n; ++i) {
      at[i] += step * gradient[std::size_t(i)];
      rest += at[i] * at[i];
    }
    return c * (simd::reduce_add(squares) + rest) > limit * limit && project(x, x, margin);
  }

  /// Adds the gradients of d_out · project(x): a point that is moved passes no radial gradient on.
  void project_vjp(std::span<const T> x, std::span<const T> d_out, std::span<T> d_x, PoincareBall& grad,
                   T margin = boundary_margin<T>) const {
    const double c = checked("PoincareBall::project_vjp", x, d_out);
    detail::check_wanted("PoincareBall::project_vjp: d_x", detail::length(x), d_x);
    const detail::Clipped cx = detail::clip(x, c, 1 - detail::checked_margin(margin));
    double d_c = 0;
    const double k = detail::pull_back(cx, cx.scale * detail::dot(x, d_out), c, d_c);
    detail::accumulate(d_x, [&](Index i) { return cx.scale * (at(d_out, i) + k * cx.scale * at(x, i)); });
    grad.curvature += static_cast<T>(d_c);
  }

  /// λ_x = 2/(1 − c‖x‖²): how much longer a small step at x is than it looks.
  [[nodiscard]] T conformal_factor(std::span<const T> x) const {
    return static_cast<T>(2 / detail::ball_point(x, checked("PoincareBall::conformal_factor", x)).alpha);
  }

  /// Adds d_out ∂λ/∂x = d_out cλ²x to d_x and d_out λ²‖x‖²/2 to grad.curvature.
  void conformal_factor_vjp(std::span<const T> x, T d_out, std::span<T> d_x, PoincareBall& grad) const {
    const double c = checked("PoincareBall::conformal_factor_vjp", x);
    detail::check_wanted("PoincareBall::conformal_factor_vjp: d_x", detail::length(x), d_x);
    const detail::BallPoint px = detail::ball_point(x, c);
    add_alpha_gradient(x, px, c, -2 * double(d_out) / (px.alpha * px.alpha), d_x, grad);
  }

  /// ⟨u, v⟩_x = λ_x² u·v: the metric.
  [[nodiscard]] T inner(std::span<const T> x, std::span<const T> u, std::span<const T> v) const {
    const double alpha = detail::ball_point(x, checked("PoincareBall::inner", x, u, v)).alpha;
    return static_cast<T>(4 * detail::dot(u, v) / (alpha * alpha));
  }

  /// Adds the gradients of d_out · ⟨u, v⟩_x.
  void inner_vjp(std::span<const T> x, std::span<const T> u, std::span<const T> v, T d_out, std::span<T> d_x,
                 std::span<T> d_u, std::span<T> d_v, PoincareBall& grad) const {
    const double c = checked("PoincareBall::inner_vjp", x, u, v);
    detail::check_wanted("PoincareBall::inner_vjp: gradients", detail::length(x), d_x, d_u, d_v);
    const detail::BallPoint px = detail::ball_point(x, c);
    const double k = 4 * double(d_out) / (px.alpha * px.alpha);
    add_alpha_gradient(x, px, c, -2 * k * detail::dot(u, v) / px.alpha, d_x, grad);
    detail::accumulate(d_u, [&](Index i) { return k * at(v, i); });
    detail::accumulate(d_v, [&](Index i) { return k * at(u, i); });
  }

  /// ‖v‖_x = λ_x ‖v‖: the length of a tangent vector.
  [[nodiscard]] T norm(std::span<const T> x, std::span<const T> v) const {
    const double alpha = detail::ball_point(x, checked("PoincareBall::norm", x, v)).alpha;
    return static_cast<T>(2 * std::sqrt(detail::dot(v, v)) / alpha);
  }

  /// out = g/λ_x² = (α²/4) g: the gradient by the metric of the ball (Nickel & Kiela 2017, eq. 5). `out` may be g.
  void riemannian_gradient(std::span<const T> x, std::span<const T> g, std::span<T> out) const {
    const double alpha = detail::ball_point(x, checked("PoincareBall::riemannian_gradient", x, g, out)).alpha;
    detail::assign(out, [&](Index i) { return alpha * alpha / 4 * at(g, i); });
  }

  /// Adds the gradients of d_out · riemannian_gradient(x, g).
  void riemannian_gradient_vjp(std::span<const T> x, std::span<const T> g, std::span<const T> d_out, std::span<T> d_x,
                               std::span<T> d_g, PoincareBall& grad) const {
    const double c = checked("PoincareBall::riemannian_gradient_vjp", x, g, d_out);
    detail::check_wanted("PoincareBall::riemannian_gradient_vjp: gradients", detail::length(x), d_x, d_g);
    const detail::BallPoint px = detail::ball_point(x, c);
    add_alpha_gradient(x, px, c, px.alpha / 2 * detail::dot(g, d_out), d_x, grad);
    detail::accumulate(d_g, [&](Index i) { return px.alpha * px.alpha / 4 * at(d_out, i); });
  }

  /// out = x ⊕ y = (α(x + y) + cδx)/(αβ + cδ), δ = ‖x + y‖²: Möbius addition (Ungar 2008, eq. 1.8, rearranged). Returns
  /// whether the result had to be projected. `out` may be x or y.
  bool add(std::span<const T> x, std::span<const T> y, std::span<T> out) const {
    const double c = checked("PoincareBall::add", x, y, out);
    const detail::BallPoint px = detail::ball_point(x, c), py = detail::ball_point(y, c);
    return translate(detail::BallPair<T>(c, x, px, -1, y, py.scale, py.alpha), out);
  }

  /// Adds the gradients of d_out · (x ⊕ y).
  void add_vjp(std::span<const T> x, std::span<const T> y, std::span<const T> d_out, std::span<T> d_x, std::span<T> d_y,
               PoincareBall& grad) const {
    const double c = checked("PoincareBall::add_vjp", x, y, d_out);
    detail::check_wanted("PoincareBall::add_vjp: gradients", detail::length(x), d_x, d_y);
    const detail::BallPoint px = detail::ball_point(x, c), py = detail::ball_point(y, c);
    const detail::BallPair<T> pair(c, x, px, -1, y, py.scale, py.alpha);
    const auto [gx, gp] = products(pair, d_out);
    double d_c = 0;
    auto [by_x, by_y] = detail::translation_vjp(pair, gx, gp, reach, d_c);
    by_x.x += detail::pull_back(px, pair.dot_x(by_x, gx), c, d_c);
    const double radial = detail::pull_back(py, pair.dot_y(by_y, gx, gp), c, d_c);
    by_y = by_y + detail::BallVector{radial, radial, 0};
    accumulate(d_x, pair.x_scale, pair, by_x, d_out);
    accumulate(d_y, pair.y_scale, pair, by_y, d_out);
    grad.curvature += static_cast<T>(d_c);
  }

  /// out = exp_x(v) = x ⊕ (tanh(s λ_x ‖v‖/2)/(s‖v‖)) v: where the geodesic from x with velocity v is at time 1.
  /// Returns whether the result had to be projected. `out` may be x or v. (Ganea 2018, lemma 2)
  bool exp(std::span<const T> x, std::span<const T> v, std::span<T> out) const {
    const double c = checked("PoincareBall::exp", x, v, out);
    const Step step(c, x, v);
    return translate(step.pair, out);
  }

  /// Adds the gradients of d_out · exp_x(v).
  void exp_vjp(std::span<const T> x, std::span<const T> v, std::span<const T> d_out, std::span<T> d_x, std::span<T> d_v,
               PoincareBall& grad) const {
    const double c = checked("PoincareBall::exp_vjp", x, v, d_out);
    detail::check_wanted("PoincareBall::exp_vjp: gradients", detail::length(x), d_x, d_v);
    const Step step(c, x, v);
    const detail::BallPair<T>& pair = step.pair;
    const auto [gx, gp] = products(pair, d_out);
    double d_c = 0;
    auto [by_x, by_y] = detail::translation_vjp(pair, gx, gp, reach, d_c);
    // Y = h v with h = g(τ)/α, τ = c‖v‖²/α², g(τ) = tanh √τ / √τ
    const double alpha = pair.alpha;
    const double h_d_h = pair.dot_y(by_y, gx, gp);
    const double d_tau = h_d_h / step.h * step.quotient.slope / alpha;
    const double d_alpha = -(h_d_h + 2 * d_tau * step.tau) / alpha;
    d_c += d_tau * step.v.square / (alpha * alpha) - d_alpha * pair.xx;
    by_x.x -= 2 * c * d_alpha;
    by_x.x += detail::pull_back(step.x, pair.dot_x(by_x, gx), c, d_c);
    const double by_v =
        2 * d_tau * c / (alpha * alpha) + detail::pull_back(step.v, h_d_h + 2 * d_tau * step.tau, c, d_c);
    accumulate(d_x, pair.x_scale, pair, by_x, d_out);
    accumulate(d_v, pair.y_scale, pair, by_y, d_out);
    detail::accumulate(d_v, [&](Index i) { return step.v.scale * by_v * step.v.scale * at(v, i); });
    grad.curvature += static_cast<T>(d_c);
  }

  /// out = log_x(y) = F(u) (α(y − x) − cδx)/β with u² = cδ/(αβ) and F(u) = asinh u/(u√(1 + u²)): the velocity at x of
  /// the geodesic that is at y at time 1, the inverse of exp_x. `out` may be x or y. (Ganea 2018, lemma 2, rearranged)
  void log(std::span<const T> x, std::span<const T> y, std::span<T> out) const {
    const double c = checked("PoincareBall::log", x, y, out);
    const detail::BallPoint px = detail::ball_point(x, c), py = detail::ball_point(y, c);
    const detail::BallPair<T> pair(c, x, px, 1, y, py.scale, py.alpha);
    const double cd = c * pair.delta;
    const double k = detail::asinh_quotient(cd / (pair.alpha * pair.beta)).value / pair.beta;
    detail::assign(out, [&](Index i) { return k * (pair.alpha * pair.P(i) - cd * pair.X(i)); });
  }

  /// Adds the gradients of d_out · log_x(y).
  void log_vjp(std::span<const T> x, std::span<const T> y, std::span<const T> d_out, std::span<T> d_x, std::span<T> d_y,
               PoincareBall& grad) const {
    const double c = checked("PoincareBall::log_vjp", x, y, d_out);
    detail::check_wanted("PoincareBall::log_vjp: gradients", detail::length(x), d_x, d_y);
    const detail::BallPoint px = detail::ball_point(x, c), py = detail::ball_point(y, c);
    const detail::BallPair<T> pair(c, x, px, 1, y, py.scale, py.alpha);
    const auto [gx, gp] = products(pair, d_out);
    const double alpha = pair.alpha, beta = pair.beta, delta = pair.delta;
    const double t = c * delta / (alpha * beta);
    const auto [f, slope] = detail::asinh_quotient(t);
    const double gn = alpha * gp - c * delta * gx;
    const double d_t = slope * gn / beta;
    const double d_alpha = f * gp / beta - d_t * t / alpha;
    const double d_beta = -(f * gn / beta + d_t * t) / beta;
    const double d_delta = c / beta * (d_t / alpha - f * gx);
    double d_c = delta / beta * (d_t / alpha - f * gx) - d_alpha * px.square - d_beta * py.square;
    const detail::BallVector by_p{0, 2 * d_delta, f * alpha / beta};
    detail::BallVector by_x = detail::BallVector{-2 * c * d_alpha, 0, -f * c * delta / beta} - by_p;
    detail::BallVector by_y = by_p - detail::BallVector{2 * c * d_beta, 2 * c * d_beta, 0};
    by_x.x += detail::pull_back(px, pair.dot_x(by_x, gx), c, d_c);
    const double radial = detail::pull_back(py, pair.dot_y(by_y, gx, gp), c, d_c);
    by_y = by_y + detail::BallVector{radial, radial, 0};
    accumulate(d_x, pair.x_scale, pair, by_x, d_out);
    accumulate(d_y, pair.y_scale, pair, by_y, d_out);
    grad.curvature += static_cast<T>(d_c);
  }

  /// out = exp_0(v) = (tanh(s‖v‖)/(s‖v‖)) v. Returns whether the result had to be projected. `out` may be v.
  bool exp0(std::span<const T> v, std::span<T> out) const {
    const double c = checked("PoincareBall::exp0", v, out);
    const detail::Clipped cv = detail::clip(v, c, longest);
    const double scale = cv.scale * detail::tanh_quotient(c * cv.square).value;
    detail::assign(out, [&](Index i) { return scale * at(v, i); });
    return detail::clip_into(std::span<const T>(out), out, c, reach);
  }

  /// Adds the gradients of d_out · exp_0(v).
  void exp0_vjp(std::span<const T> v, std::span<const T> d_out, std::span<T> d_v, PoincareBall& grad) const {
    const double c = checked("PoincareBall::exp0_vjp", v, d_out);
    detail::check_wanted("PoincareBall::exp0_vjp: d_v", detail::length(v), d_v);
    const double square = detail::dot(v, v), vg = detail::dot(v, d_out);
    // Beyond tanh(s‖v‖) = 1 − ε the result is the projection of v itself.
    if (std::sqrt(c * square) > std::atanh(reach)) return project_vjp(v, d_out, d_v, grad);
    const detail::Jet g = detail::tanh_quotient(c * square);
    detail::accumulate(d_v, [&](Index i) { return g.value * at(d_out, i) + 2 * c * g.slope * vg * at(v, i); });
    grad.curvature += static_cast<T>(g.slope * square * vg);
  }

  /// out = log_0(y) = (artanh(s‖y‖)/(s‖y‖)) y, the inverse of exp_0. `out` may be y.
  void log0(std::span<const T> y, std::span<T> out) const {
    const double c = checked("PoincareBall::log0", y, out);
    const detail::BallPoint py = detail::ball_point(y, c);
    const double scale = py.scale * detail::artanh_quotient(c * py.square, py.alpha).value;
    detail::assign(out, [&](Index i) { return scale * at(y, i); });
  }

  /// Adds the gradients of d_out · log_0(y).
  void log0_vjp(std::span<const T> y, std::span<const T> d_out, std::span<T> d_y, PoincareBall& grad) const {
    const double c = checked("PoincareBall::log0_vjp", y, d_out);
    detail::check_wanted("PoincareBall::log0_vjp: d_y", detail::length(y), d_y);
    const detail::BallPoint py = detail::ball_point(y, c);
    const detail::Jet f = detail::artanh_quotient(c * py.square, py.alpha);
    const double yg = py.scale * detail::dot(y, d_out);
    double d_c = f.slope * py.square * yg;
    double k = 2 * c * f.slope * yg;
    k += detail::pull_back(py, f.value * yg + k * py.square, c, d_c);
    detail::accumulate(d_y, [&](Index i) { return py.scale * (f.value * at(d_out, i) + k * py.scale * at(y, i)); });
    grad.curvature += static_cast<T>(d_c);
  }

  /// out = (λ_x/λ_y) gyr[y, −x]v: v at x carried along the geodesic to y, which keeps lengths and angles. Written as
  /// (β/α)[v − (2c/D)((aβ + e)(y − x) + (acδ − eα)y)] with a = x·v, e = (y − x)·v, D = αβ + cδ. `out` may be v.
  /// (Ungar 2008, eq. 1.27 and 3.71, rearranged)
  void transport(std::span<const T> x, std::span<const T> y, std::span<const T> v, std::span<T> out) const {
    const double c = checked("PoincareBall::transport", x, y, v, out);
    const detail::BallPoint px = detail::ball_point(x, c), py = detail::ball_point(y, c);
    const detail::BallPair<T> pair(c, x, px, 1, y, py.scale, py.alpha);
    const auto [a, e] = products(pair, v);
    const double m = 2 * c / pair.denominator, k = pair.beta / pair.alpha;
    const double zp = m * (a * pair.beta + e), zy = m * (a * c * pair.delta - e * pair.alpha);
    detail::assign(out, [&](Index i) { return k * (at(v, i) - zp * pair.P(i) - zy * pair.Y(i)); });
  }

  /// Adds the gradients of d_out · transport(x, y, v).
  void transport_vjp(std::span<const T> x, std::span<const T> y, std::span<const T> v, std::span<const T> d_out,
                     std::span<T> d_x, std::span<T> d_y, std::span<T> d_v, PoincareBall& grad) const {
    const double c = checked("PoincareBall::transport_vjp", x, y, v, d_out);
    detail::check_wanted("PoincareBall::transport_vjp: gradients", detail::length(x), d_x, d_y, d_v);
    const detail::BallPoint px = detail::ball_point(x, c), py = detail::ball_point(y, c);
    const detail::BallPair<T> pair(c, x, px, 1, y, py.scale, py.alpha);
    const auto [a, e] = products(pair, v);
    const auto [gx, gp] = products(pair, d_out);
    const double gv = detail::dot(v, d_out), gy = gx + gp;
    const double alpha = pair.alpha, beta = pair.beta, delta = pair.delta, D = pair.denominator, k = beta / alpha;
    // out = k (v + m Z), m = −2c/D, Z = zp P + zy Y
    const double zp = a * beta + e, zy = a * c * delta - e * alpha, gz = zp * gp + zy * gy;
    const double m = -2 * c / D, d_k = gv + m * gz, d_D = -k * m * gz / D;
    const double d_zp = k * m * gp, d_zy = k * m * gy;
    const double d_a = beta * d_zp + c * delta * d_zy, d_e = d_zp - alpha * d_zy;
    const double d_alpha = -e * d_zy + beta * d_D - d_k * k / alpha;
    const double d_beta = a * d_zp + alpha * d_D + d_k / alpha;
    const double d_delta = c * (a * d_zy + d_D);
    double d_c = -2 * k * gz / D + delta * (a * d_zy + d_D) - d_alpha * px.square - d_beta * py.square;
    const detail::BallVector by_p{0, 2 * d_delta, k * m * zp};                    // and d_e v
    detail::BallVector by_x = detail::BallVector{-2 * c * d_alpha, 0, 0} - by_p;  // and (d_a − d_e) v
    detail::BallVector by_y = by_p + detail::BallVector{-2 * c * d_beta, -2 * c * d_beta, k * m * zy};  // and d_e v
    by_x.x += detail::pull_back(px, pair.dot_x(by_x, gx) + (d_a - d_e) * a, c, d_c);
    const double radial = detail::pull_back(py, pair.dot_y(by_y, gx, gp) + d_e * (a + e), c, d_c);
    by_y = by_y + detail::BallVector{radial, radial, 0};
    accumulate(d_x, pair.x_scale, pair, by_x, d_out, d_a - d_e, v);
    accumulate(d_y, pair.y_scale, pair, by_y, d_out, d_e, v);
    accumulate(d_v, 1, pair, {d_a, d_e, k}, d_out);
    grad.curvature += static_cast<T>(d_c);
  }

  /// out = n/(t + M), n = Σ_j w_j λ_j x_j, t = Σ_j w_j (λ_j − 1), M = √(t² − c‖n‖²): the gyromidpoint of the rows of
  /// `points` [n×d], which is also the Einstein midpoint and the Lorentz centroid. Weights are >= 0 and need not sum to
  /// 1; if all are 0 (or n = 0), out = 0. Returns whether the result had to be projected; counts projected points in
  /// `ws`. O(n d). (Ungar 2008, ch. 7)
  bool midpoint(std::span<const T> weights, MatrixView<const T> points, std::span<T> out, Workspace& ws) const {
    const double c = checked_midpoint("PoincareBall::midpoint", weights, points, std::span<const T>(out));
    auto frame = ws.frame();
    const Mean mean = weighted_mean(weights, points, c, frame.template span<double>(points.cols()),
                                    frame.template span<double>(points.cols()), ws);
    detail::assign(out, [&](Index i) { return mean.point[std::size_t(i)]; });
    return detail::clip_into(std::span<const T>(out), out, c, reach);
  }

  /// Adds the gradients of G·m, m = midpoint(weights, points), to d_weights [n], d_points [n×d] and grad.curvature.
  /// With u = t + M, δ = ‖x − m‖², e = G·(x − m)/u − (G·m)cδ/(2M), for each point x of weight w:
  ///   by w: λ (G·(x − m)/u) − (G·m)cδ/(Mα);  by x: wλ [G/u + c(G·m)/M (m − x) + cλe x];
  ///   by c: Σ wλ²‖x‖²e/2 + (G·m)(Σw − M)/(2cM)
  void midpoint_vjp(std::span<const T> weights, MatrixView<const T> points, std::span<const T> d_out,
                    std::span<T> d_weights, MatrixView<T> d_points, PoincareBall& grad, Workspace& ws) const {
    const double c = checked_midpoint("PoincareBall::midpoint_vjp", weights, points, d_out);
    detail::check_wanted("PoincareBall::midpoint_vjp: d_weights", points.rows(), d_weights);
    detail::check_wanted("PoincareBall::midpoint_vjp: d_points", points, d_points);
    auto frame = ws.frame();
    const Mean mean = weighted_mean(weights, points, c, frame.template span<double>(points.cols()),
                                    frame.template span<double>(points.cols()), ws);
    if (mean.mass == 0) return;
    const Index d = points.cols();
    const double u = mean.t + mean.mass;
    const double pull = detail::sum(d, [&](Index i) { return mean.point[std::size_t(i)] * at(d_out, i); }) / mean.mass;
    double d_c = pull * (mean.weight - mean.mass) / (2 * c);
    for (Index j = 0; j < points.rows(); ++j) {
      const std::span<const T> row = points.row(j);
      const detail::BallPoint px = detail::ball_point(row, c);
      const double lambda = 2 / px.alpha, w = at(weights, j);
      const auto X = [&](Index i) { return px.scale * at(row, i); };
      const auto P = [&](Index i) { return X(i) - mean.point[std::size_t(i)]; };
      const double delta = detail::sum(d, [&](Index i) { return P(i) * P(i); });
      const double gp = detail::sum(d, [&](Index i) { return P(i) * at(d_out, i); }) / u;
      const double e = gp - pull * c * delta / 2;
      if (!d_weights.empty()) d_weights[std::size_t(j)] += static_cast<T>(lambda * e);
      d_c += w * lambda * lambda * px.square * e / 2;
      double kx = w * c * lambda * lambda * e;
      if (px.moved) {
        const double gx = detail::sum(d, [&](Index i) { return X(i) * at(d_out, i); }) / u;
        const double xp = detail::sum(d, [&](Index i) { return X(i) * P(i); });
        kx += detail::pull_back(px, w * lambda * (gx - c * pull * xp) + kx * px.square, c, d_c);
      }
      if (d_points.empty()) continue;
      detail::accumulate(d_points.row(j), [&](Index i) {
        return px.scale * (w * lambda * (at(d_out, i) / u - c * pull * P(i)) + kx * X(i));
      });
    }
    grad.curvature += static_cast<T>(d_c);
  }

  /// out = 0, the centre of the ball.
  void origin(std::span<T> out) const { std::fill(out.begin(), out.end(), T(0)); }

  /// out = exp_0(v) with v_i normal of the given deviation: the wrapped normal distribution (Nagano 2019).
  void random_point(Rng& rng, T deviation, std::span<T> out) const {
    for (T& v : out) v = deviation * rng.template normal<T>();
    exp0(out, out);
  }

 private:
  // The largest s‖x‖.
  static constexpr double reach = 1 - double(boundary_margin<T>);
  // Tangent vectors with s‖v‖ over this are shortened to it: the result is the same, and squares do not overflow.
  static constexpr double longest = 1e100;

  [[nodiscard]] detail::BallColumns columns_model(std::span<const T> x) const {
    const double c = detail::checked_curvature(curvature);
    return {detail::ball_point(x, c), c, std::sqrt(c), reach};
  }

  // exp_x(v) = (−X) ⊕ Y with X = −x, Y = h v.
  struct Step {
    detail::BallPoint x;
    detail::Clipped v;
    double tau;  // c‖v‖²/α²
    detail::Jet quotient;
    double h;
    detail::BallPair<T> pair;

    Step(double c, std::span<const T> x_data, std::span<const T> v_data)
        : x(detail::ball_point(x_data, c)),
          v(detail::clip(v_data, c, longest)),
          tau(c * v.square / (x.alpha * x.alpha)),
          quotient(detail::tanh_quotient(tau)),
          h(quotient.value / x.alpha),
          pair(c, x_data, x, -1, v_data, h * v.scale, detail::sech_squared(std::sqrt(tau))) {}
  };

  // The midpoint and the sums it is made of.
  struct Mean {
    std::span<double> point;  // m = n/(t + M)
    double t = 0, mass = 0;   // Σ w(λ − 1), M
    double weight = 0;        // Σ w
  };

  // M = √(t² − c‖n‖²) cancels near the rim. Adding the points one by one does not: a point of weight w that joins a
  // midpoint m of mass M makes it M² + w² + 2wM (1 + 2cδ/(α_m α_x)), with α_m = 2M/(t + M).
  static Mean weighted_mean(std::span<const T> weights, MatrixView<const T> points, double c, std::span<double> n,
                            std::span<double> point, Workspace& ws) {
    Mean mean{point};
    std::fill(n.begin(), n.end(), 0.0);
    std::fill(point.begin(), point.end(), 0.0);
    for (Index j = 0; j < points.rows(); ++j) {
      const std::span<const T> row = points.row(j);
      const detail::BallPoint x = detail::ball_point(row, c);
      ws.diagnostics().projected_points += x.moved ? 1 : 0;
      const double w = at(weights, j), lambda = 2 / x.alpha;
      if (w == 0) continue;
      const double delta = detail::sum(points.cols(), [&](Index i) {
        const double difference = x.scale * at(row, i) - point[std::size_t(i)];
        return difference * difference;
      });
      // 2wM · 2cδ/(α_m α_x) = wλ · c δ (t + M)
      const double joined = mean.mass * (mean.mass + 2 * w) + w * w + w * lambda * c * delta * (mean.t + mean.mass);
      mean.mass = mean.weight == 0 ? w : std::sqrt(joined);
      mean.t += w * (lambda - 1);
      mean.weight += w;
      const double scale = 1 / (mean.t + mean.mass);
      for (Index i = 0; i < points.cols(); ++i) {
        n[std::size_t(i)] += w * lambda * x.scale * at(row, i);
        point[std::size_t(i)] = scale * n[std::size_t(i)];
      }
    }
    return mean;
  }

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

  [[nodiscard]] double checked_midpoint(std::string_view what, std::span<const T> weights, MatrixView<const T> points,
                                        std::span<const T> out) const {
    check_shape(what, points.rows(), detail::length(weights));
    check_shape(what, points.cols(), detail::length(out));
    return detail::checked_curvature(curvature);
  }

  // (X·g, P·g).
  [[nodiscard]] static std::pair<double, double> products(const detail::BallPair<T>& pair, std::span<const T> g) {
    const Index n = detail::length(g);
    return {detail::sum(n, [&](Index i) { return pair.X(i) * at(g, i); }),
            detail::sum(n, [&](Index i) { return pair.P(i) * at(g, i); })};
  }

  // d += scale · (a + b v) for a vector a in the span of X, P and g.
  static void accumulate(std::span<T> d, double scale, const detail::BallPair<T>& pair, const detail::BallVector& a,
                         std::span<const T> g, double b = 0, std::span<const T> v = {}) {
    detail::accumulate(d, [&](Index i) {
      const double rest = v.empty() ? 0 : b * at(v, i);
      return scale * (a.x * pair.X(i) + a.p * pair.P(i) + a.g * at(g, i) + rest);
    });
  }

  // Adds the gradients of d_alpha · α. A projected point has a constant α.
  static void add_alpha_gradient(std::span<const T> x, const detail::BallPoint& px, double c, double d_alpha,
                                 std::span<T> d_x, PoincareBall& grad) {
    if (px.moved) return;
    detail::accumulate(d_x, [&](Index i) { return -2 * c * d_alpha * at(x, i); });
    grad.curvature += static_cast<T>(-d_alpha * px.square);
  }

  // out = (−X) ⊕ Y = (αP − cδX)/D, projected.
  static bool translate(const detail::BallPair<T>& pair, std::span<T> out) {
    const double p = pair.alpha / pair.denominator, x = pair.c * pair.delta / pair.denominator;
    detail::assign(out, [&](Index i) { return p * pair.P(i) - x * pair.X(i); });
    return detail::clip_into(std::span<const T>(out), out, pair.c, reach);
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::geometry
