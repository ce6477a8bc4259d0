// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/random.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/geometry/columns.hpp"
#include "ruvector/geometry/hyperbolic_functions.hpp"
#include "ruvector/geometry/vectors.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <cmath>
#include <span>
#include <string_view>
#include <tuple>

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

/// Two points x, y with Δ = y − x. All of y₀ − x₀, ⟨Δ, Δ⟩ = ‖Δ⃗‖² − Δ₀² and arcosh(−c⟨x, y⟩) cancel far out, so
/// ⟨Δ, Δ⟩ is summed from its parts along the radius and around it, both >= 0: with ρ = ‖x⃗‖, σ = ‖y⃗‖, T = x₀ + y₀,
///   Δ₀ = ⟨Δ⃗, x⃗ + y⃗⟩/T,  ⟨Δ, Δ⟩ = (σ − ρ)² (T² − (ρ + σ)²)/T² + ρσ ‖x⃗/ρ − y⃗/σ‖².
template <Real T, Real U = T>
struct LorentzPair {
  std::span<const T> x_data;  // space parts
  std::span<const U> y_data;
  LorentzPoint x, y;
  double c;
  double dt;      // Δ₀
  double square;  // ‖Δ⃗‖²
  double q;       // ⟨Δ, Δ⟩
  double t;       // c q/4 = sinh²(s d/2)

  LorentzPair(double c_, std::span<const T> x_space, std::span<const U> y_space)
      : x_data(x_space), y_data(y_space), x(lorentz_point(x_space, c_)), y(lorentz_point(y_space, c_)), c(c_) {
    const double rho = std::sqrt(x.square), sigma = std::sqrt(y.square), time = x.time + y.time;
    square = sum(d(), [this](Index i) { return delta(i) * delta(i); });
    const double difference = sum(d(), [this](Index i) { return delta(i) * (X(i) + Y(i)); });  // σ² − ρ²
    dt = difference / time;
    const double radial = difference == 0 ? 0 : difference / (rho + sigma);
    const double around = rho * sigma == 0 ? 0 : rho * sigma * sum(d(), [&](Index i) {
                                                   const double turn = Y(i) / sigma - X(i) / rho;
                                                   return turn * turn;
                                                 });
    // x₀y₀ − ρσ = (x₀²y₀² − ρ²σ²)/(x₀y₀ + ρσ)
    const double gap = (1 / c + (x.square + y.square)) / (c * (x.time * y.time + rho * sigma));
    q = radial * radial * 2 * (1 / c + gap) / (time * time) + around;
    t = c * q / 4;
  }

  [[nodiscard]] double X(Index i) const { return x.scale * double(x_data[std::size_t(i)]); }
  [[nodiscard]] double Y(Index i) const { return y.scale * double(y_data[std::size_t(i)]); }
  [[nodiscard]] double delta(Index i) const { return Y(i) - X(i); }

  [[nodiscard]] Index d() const { return length(x_data); }
  // x⃗·g and Δ⃗·g
  template <Real G>
  [[nodiscard]] double x_dot(std::span<const G> g) const {
    return sum(length(g), [&](Index i) { return X(i) * double(g[std::size_t(i)]); });
  }
  template <Real G>
  [[nodiscard]] double delta_dot(std::span<const G> g) const {
    return sum(length(g), [&](Index i) { return delta(i) * double(g[std::size_t(i)]); });
  }
};

/// The coefficient of x⃗ in the gradient by x⃗ that comes from the time, x₀ = √(1/c + ‖x⃗‖²), and from projecting, given
/// the gradient by x₀ and `radial` = x⃗·(gradient by x⃗ so far). Adds to d_c.
[[nodiscard]] inline double fold_time(const LorentzPoint& x, double d_time, double radial, double c, double& d_c) {
  const double k = d_time / x.time;
  d_c -= k / (2 * c * c);
  return k + pull_back(x, radial + k * x.square, c, d_c);
}

/// One point of the hyperboloid against columns (columns.hpp), by the formulas of LorentzPair.
struct LorentzColumns {
  static constexpr bool has_radial_part = true;
  LorentzPoint x;
  double c, s, reach;
  double rho, inverse_rho;  // ‖x⃗‖; 1/‖x⃗‖, or 0

  struct Sums {
    Lane delta, square, sigma, difference, turn;  // ‖Δ⃗‖², ‖y⃗‖², ‖y⃗‖, σ² − ρ², ‖x⃗/ρ − y⃗/σ‖²
  };
  template <class Block>
  [[nodiscard, gnu::always_inline]] Sums sums(const Block& block) const {
    Sums sums{0.0, 0.0, 0.0, 0.0, 0.0};
    for (Index i = 0; i < block.rows; ++i) {
      const Lane y = block.Y(i), X = block.X(i), delta = y - X;
      sums.delta = simd::fma(delta, delta, sums.delta);
      sums.square = simd::fma(y, y, sums.square);
      sums.difference = simd::fma(delta, y + X, sums.difference);
    }
    sums.sigma = simd::sqrt(sums.square);
    const Lane inverse = simd::select(sums.sigma == Lane(0.0), 0.0, 1.0 / sums.sigma);
    for (Index i = 0; i < block.rows; ++i) {
      const Lane turn = simd::fnma(Lane(inverse_rho), block.X(i), block.Y(i) * inverse);
      sums.turn = simd::fma(turn, turn, sums.turn);
    }
    return sums;
  }

  struct Parts {
    Lane time, dt, q, t;
  };
  [[nodiscard, gnu::always_inline]] Parts parts(const Sums& sums) const {
    const Lane time = simd::sqrt(sums.square + 1 / c), both = time + x.time;
    const Lane product = rho * sums.sigma;
    const Lane radial = simd::select(sums.difference == Lane(0.0), 0.0, sums.difference / (sums.sigma + rho));
    const Lane gap = (sums.square + x.square + 1 / c) / (c * simd::fma(time, Lane(x.time), product));
    const Lane ratio = radial / both;
    const Lane q = simd::fma(ratio * ratio, 2.0 * (gap + 1 / c), product * sums.turn);
    return {time, sums.difference / both, q, 0.25 * c * q};
  }
  [[nodiscard, gnu::always_inline]] Lane distance(const Sums& sums) const {
    const Lane t = parts(sums).t;
    return (1 / s) * simd::log1p(2.0 * (t + simd::sqrt(simd::fma(t, t, t))));
  }

  // With d_q = 1/√(q(4 + cq)): a = 2 d_q, b = −2 d_q Δ₀/y₀, e = 2 d_q Δ₀/x₀, by c: (d_q q − d/2)/c and b, e through
  // the times.
  template <class Distance>
  [[nodiscard, gnu::always_inline]] PairTerms terms(const Sums& sums, Lane d_out, Distance distance) const {
    const Parts p = parts(sums);
    const Lane a = simd::select(p.q == Lane(0.0), 0.0, 2.0 * d_out / simd::sqrt(p.q * simd::fma(Lane(c), p.q, 4.0)));
    const Lane k = a * p.dt, b = -k / p.time, e = (1 / x.time) * k;
    const Lane length = simd::fnma(d_out, distance(), a * p.q);
    return {a, b, e, (0.5 / c) * simd::fnma(Lane(1 / c), b + e, length)};
  }
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

  /// d(x, y) = (2/s) asinh((s/2) √⟨x − y, x − y⟩). O(d). Throws ShapeError unless
  /// both have the same number of columns, at least 1.
  [[nodiscard]] T distance(std::span<const T> x, std::span<const T> y) const {
    const double c = checked("Lorentz::distance", x, y);
    const Pair pair(c, space(x), space(y));
    return static_cast<T>(2 * std::asinh(std::sqrt(pair.t)) / std::sqrt(c));
  }

  /// Adds the gradients of d_out · d(x, y) to d_x, d_y and grad.curvature; 0 at x = y. With q = ⟨x − y, x − y⟩:
  /// ∂d/∂q = 1/√(q(4 + cq)), ∂q/∂x⃗ = 2(x⃗ − y⃗) − 2(x₀ − y₀) x⃗/x₀.
  void distance_vjp(std::span<const T> x, std::span<const T> y, T d_out, std::span<T> d_x, std::span<T> d_y,
                    Lorentz& grad) const {
    const double c = checked("Lorentz::distance_vjp", x, y);
    detail::check_wanted("Lorentz::distance_vjp: gradients", detail::length(x), d_x, d_y);
    const Pair pair(c, space(x), space(y));
    if (pair.q == 0) return;
    const double d = 2 * std::asinh(std::sqrt(pair.t)) / std::sqrt(c);
    const double d_q = double(d_out) / std::sqrt(pair.q * (4 + c * pair.q));
    double d_c = (d_q * pair.q - double(d_out) * d / 2) / c;
    add_pair_gradient(pair, {.d_q = d_q}, d_x, d_y, d_c);
    grad.curvature += static_cast<T>(d_c);
  }

  /// out_j = d(x, column j) for points stored by columns [(d+1)×n]; the bits do not depend on j or n. O(d n).
  void distances(std::span<const T> x, MatrixView<const T> columns, std::span<T> out) const {
    detail::check_columns("Lorentz::distances", x, columns, std::span<const T>(out));
    detail::column_distances(columns_model(x), space(x), space(columns), out);
  }

  /// Adds the gradients of Σ_j d_out_j d(x, column j) to d_x [d+1], d_columns [(d+1)×n] and grad.curvature. `distances`
  /// [n], what `distances` returned, saves their logarithms if it is at hand. O(d n).
  void distances_vjp(std::span<const T> x, MatrixView<const T> columns, std::span<const T> d_out, std::span<T> d_x,
                     MatrixView<T> d_columns, Lorentz& grad, std::span<const T> distances = {}) const {
    detail::check_columns("Lorentz::distances_vjp", x, columns, d_out);
    detail::check_wanted("Lorentz::distances_vjp: d_x", detail::length(x), d_x);
    detail::check_wanted("Lorentz::distances_vjp: d_columns", columns, d_columns);
    detail::check_wanted("Lorentz::distances_vjp: distances", columns.cols(), distances);
    grad.curvature += T(detail::column_distances_vjp(columns_model(x), space(x), space(columns), distances, d_out,
                                                     space(d_x), space(d_columns)));
  }

  /// out = the point of the hyperboloid over x⃗, moved to s‖x⃗‖ = 1/margin if it is farther out. Returns whether it was
  /// moved so. `out` may be x. Throws ConfigError unless 0 < margin < 1.
  bool project(std::span<const T> x, std::span<T> out, T margin = boundary_margin<T>) const {
    const double c = checked("Lorentz::project", x, out);
    const bool moved = detail::clip_into(space(x), space(out), c, 1 / detail::checked_margin(margin));
    set_time(out, c);
    return moved;
  }

  /// Adds the gradients of d_out · project(x): a point that is moved passes no radial gradient on.
  void project_vjp(std::span<const T> x, std::span<const T> d_out, std::span<T> d_x, Lorentz& grad,
                   T margin = boundary_margin<T>) const {
    const double c = checked("Lorentz::project_vjp", x, d_out);
    detail::check_wanted("Lorentz::project_vjp: d_x", detail::length(x), d_x);
    const detail::Clipped cx = detail::clip(space(x), c, 1 / detail::checked_margin(margin));
    const detail::LorentzPoint px{cx, std::sqrt(1 / c + cx.square)};
    double d_c = 0;
    const double radial = px.scale * detail::dot(space(x), space(d_out));
    const double k = detail::fold_time(px, double(d_out[0]), radial, c, d_c);
    add(d_x, px.scale, [&](Index i) { return at(d_out, i) + k * px.scale * at(x, i); });
    grad.curvature += static_cast<T>(d_c);
  }

  /// 1: lengths are what the Minkowski form says, everywhere.
  [[nodiscard]] T conformal_factor(std::span<const T>) const { return T(1); }

  /// ⟨u, v⟩ = u⃗·v⃗ − u₀v₀ for vectors tangent at x: the metric.
  [[nodiscard]] T inner(std::span<const T> x, std::span<const T> u, std::span<const T> v) const {
    const double c = checked("Lorentz::inner", x, u, v);
    const detail::LorentzPoint px = detail::lorentz_point(space(x), c);
    return static_cast<T>(minkowski(x, px, c, u, v, 1));
  }

  /// Adds the gradients of d_out · ⟨u, v⟩.
  void inner_vjp(std::span<const T> x, std::span<const T> u, std::span<const T> v, T d_out, std::span<T> d_x,
                 std::span<T> d_u, std::span<T> d_v, Lorentz& grad) const {
    const double c = checked("Lorentz::inner_vjp", x, u, v);
    detail::check_wanted("Lorentz::inner_vjp: gradients", detail::length(x), d_x, d_u, d_v);
    const detail::LorentzPoint px = detail::lorentz_point(space(x), c);
    const double g = double(d_out);
    const double u0 = tangent_time(x, px, u), v0 = tangent_time(x, px, v);
    double d_c = 0;
    const double k = detail::fold_time(px, 2 * g * u0 * v0 / px.time, -2 * g * u0 * v0, c, d_c);
    add(d_x, px.scale,
        [&](Index i) { return k * px.scale * at(x, i) - g / px.time * (v0 * at(u, i) + u0 * at(v, i)); });
    add(d_u, 1, [&](Index i) { return g * (at(v, i) - v0 / px.time * px.scale * at(x, i)); });
    add(d_v, 1, [&](Index i) { return g * (at(u, i) - u0 / px.time * px.scale * at(x, i)); });
    grad.curvature += static_cast<T>(d_c);
  }

  /// ‖v‖ = √⟨v, v⟩: the length of a vector tangent at x.
  [[nodiscard]] T norm(std::span<const T> x, std::span<const T> v) const {
    const double c = checked("Lorentz::norm", x, v);
    return static_cast<T>(std::sqrt(minkowski(x, detail::lorentz_point(space(x), c), c, v, v, 1)));
  }

  /// out = h + c⟨x, h⟩x with h = (−g₀, g⃗): the gradient by the Minkowski metric, projected to the tangent space at x
  /// (Nickel & Kiela 2018, algorithm 1). `out` may be g.
  void riemannian_gradient(std::span<const T> x, std::span<const T> g, std::span<T> out) const {
    const double c = checked("Lorentz::riemannian_gradient", x, g, out);
    const detail::LorentzPoint px = detail::lorentz_point(space(x), c);
    const double g0 = double(g[0]);
    const double b = c * (px.time * g0 + px.scale * detail::dot(space(x), space(g)));
    set(out, b * px.time - g0, [&](Index i) { return at(g, i) + b * px.scale * at(x, i); });
  }

  /// Adds the gradients of d_out · riemannian_gradient(x, g).
  void riemannian_gradient_vjp(std::span<const T> x, std::span<const T> g, std::span<const T> d_out, std::span<T> d_x,
                               std::span<T> d_g, Lorentz& grad) const {
    const double c = checked("Lorentz::riemannian_gradient_vjp", x, g, d_out);
    detail::check_wanted("Lorentz::riemannian_gradient_vjp: gradients", detail::length(x), d_x, d_g);
    const detail::LorentzPoint px = detail::lorentz_point(space(x), c);
    const double g0 = double(g[0]), d0 = double(d_out[0]);
    const double xg = px.scale * detail::dot(space(x), space(g)), xd = px.scale * detail::dot(space(x), space(d_out));
    // out = h + c b x, b = x₀g₀ + x⃗·g⃗
    const double b = px.time * g0 + xg, d_b = c * (px.time * d0 + xd);
    double d_c = b * d_b / c;
    const double k = detail::fold_time(px, c * b * d0 + d_b * g0, c * b * xd + d_b * xg, c, d_c);
    add(d_x, px.scale, [&](Index i) { return c * b * at(d_out, i) + d_b * at(g, i) + k * px.scale * at(x, i); });
    add(d_g, 1, [&](Index i) { return at(d_out, i) + d_b * px.scale * at(x, i); });
    if (!d_g.empty()) d_g[0] += static_cast<T>(d_b * px.time - d0);
    grad.curvature += static_cast<T>(d_c);
  }

  /// out = exp_x(v) = cosh(s‖v‖) x + (sinh(s‖v‖)/(s‖v‖)) v, ‖v‖² = ⟨v, v⟩. Returns whether the result had to be
  /// projected. `out` may be x or v.
  bool exp(std::span<const T> x, std::span<const T> v, std::span<T> out) const {
    const double c = checked("Lorentz::exp", x, v, out);
    return write_point(out, c, Step(c, x, v));
  }

  /// x ← project(exp_x(−rate·riemannian_gradient(x, g)), margin) in one pass: what Riemannian SGD along geodesics does
  /// to every row. The gradient by the time arrives at the space part, h = g⃗ + (g₀/x₀) x⃗; with b = x⃗·h the step is
  /// −rate·(h + c b x⃗), its length rate·√(‖h‖² + c b²). Returns whether the result had to be projected. Throws
  /// ConfigError unless 0 < margin < 1. O(d).
  bool descend_along_geodesic(std::span<T> x, std::span<const T> gradient, T rate, T margin = boundary_margin<T>) const
      requires(std::same_as<T, double>) {
    const double c = checked("Lorentz::descend_along_geodesic", x, gradient);
    const double limit = 1 / detail::checked_margin(margin);
    using Batch = simd::Batch<double>;
    constexpr Index width = simd::lanes<double>;
    const Index n = detail::length(gradient) - 1;
    double* const at = x.data() + 1;
    const double* const g = gradient.data() + 1;
    const auto products = [&](double unit) {  // ‖x⃗‖², x⃗·g⃗, ‖g⃗‖² for g in units
      double xx = 0, xg = 0, gg = 0;
      Index i = 0;
      if (n >= width) {
        Batch sum_xx(0.0), sum_xg(0.0), sum_gg(0.0);
        for (; i + width <= n; i += width) {
          const Batch xi = simd::load(at + i), gi = unit * simd::load(g + i);
          sum_xx = simd::fma(xi, xi, sum_xx);
          sum_xg = simd::fma(xi, gi, sum_xg);
          sum_gg = simd::fma(gi, gi, sum_gg);
        }
        xx = simd::reduce_add(sum_xx), xg = simd::reduce_add(sum_xg), gg = simd::reduce_add(sum_gg);
      }
      for (; i < n; ++i) {
        const double gi = unit * g[i];
        xx += at[i] * at[i], xg += at[i] * gi, gg += gi * gi;
      }
      return std::tuple(xx, xg, gg);
    };
    double unit = 1;
    auto [xx, xg, gg] = products(unit);
    const bool large = !(gg + gradient[0] * gradient[0] < 1e250);
    if (c * xx > reach * reach || large) [[unlikely]] {
      project(x, x);
      if (large) unit = 0x1p-600;
      std::tie(xx, xg, gg) = products(unit);
    }
    const double k = unit * gradient[0] / std::sqrt(1 / c + xx), b = xg + k * xx;
    const double norm = std::sqrt(c * (std::max(0.0, gg + k * (xg + b)) + c * b * b));
    const double z = std::min(std::abs(rate) / unit * norm, longest);
    // cosh z = 1 + e²/(2(1 + e)), sinh z = (e + e/(1 + e))/2 of e = exp(z) − 1
    const double e = std::expm1(z), part = e / (1 + e);
    const double step = z == 0 ? -rate / unit : std::copysign((e + part) / (2 * norm), -rate);
    const double along = unit * step, stay = 1 + e * part / 2 + step * (k + c * b);
    double square_to = 0;
    Index i = 0;
    if (n >= width) {
      Batch squares(0.0);
      for (; i + width <= n; i += width) {
        const Batch to = simd::fma(Batch(stay), simd::load(at + i), Batch(along) * simd::load(g + i));
        squares = simd::fma(to, to, squares);
        simd::store(at + i, to);
      }
      square_to = simd::reduce_add(squares);
    }
    for (; i < n; ++i) {
      at[i] = stay * at[i] + along * g[i];
      square_to += at[i] * at[i];
    }
    x[0] = std::sqrt(1 / c + square_to);
    return c * square_to > limit * limit && project(x, x, margin);
  }

  /// Adds the gradients of d_out · exp_x(v).
  void exp_vjp(std::span<const T> x, std::span<const T> v, std::span<const T> d_out, std::span<T> d_x, std::span<T> d_v,
               Lorentz& grad) const {
    const double c = checked("Lorentz::exp_vjp", x, v, d_out);
    detail::check_wanted("Lorentz::exp_vjp: gradients", detail::length(x), d_x, d_v);
    const Step step(c, x, v);
    const double C = step.cosh, S = step.sinh.value, x0 = step.x.time, v0 = step.time;
    double gx = step.x.scale * detail::dot(space(x), space(d_out));
    double gv = step.v.scale * detail::dot(space(v), space(d_out));
    double g0 = double(d_out[0]), d_c = 0;
    double g = 1, kx = 0, kv = 0;  // the gradient by the result before its projection: g d_out + kx x + kv v
    if (c * step.square > reach * reach) {
      const double f = reach / std::sqrt(c * step.square), gm = C * gx + S * gv, k = -f * gm / step.square;
      d_c -= (f * gm + g0 * std::sqrt((1 + reach * reach) / c)) / (2 * c);
      g = f, kx = k * C, kv = k * S, g0 = 0;
      gx = f * gx + kx * step.x.square + kv * step.xv;
      gv = f * gv + kx * step.xv + kv * step.v.square;
    }
    // out = C x + S v with C = cosh √τ, S = sinh √τ / √τ, τ = c⟨v, v⟩, v₀ = x⃗·v⃗/x₀
    const double d_C = g0 * x0 + gx, d_S = g0 * v0 + gv;
    const double d_tau = d_C * S / 2 + d_S * step.sinh.slope;
    d_c += d_tau * step.norm2;
    const double d_v0 = S * g0 - 2 * c * d_tau * v0;
    const double d_x0 = C * g0 - d_v0 * v0 / x0;
    const double k = detail::fold_time(step.x, d_x0, C * gx + d_v0 * v0, c, d_c);
    add(d_x, step.x.scale, [&](Index i) {
      return C * (g * at(d_out, i) + kv * step.V(i)) + d_v0 / x0 * step.V(i) + (C * kx + k) * step.X(i);
    });
    add(d_v, step.v.scale, [&](Index i) {
      return S * (g * at(d_out, i) + kx * step.X(i)) + (S * kv + 2 * c * d_tau) * step.V(i) + d_v0 / x0 * step.X(i);
    });
    grad.curvature += static_cast<T>(d_c);
  }

  /// out = log_x(y) = F(u)(y − x − 2u²x), u = (s/2)√⟨y − x, y − x⟩, F(u) = asinh u/(u√(1 + u²)): the inverse of exp_x,
  /// arcosh(β)/√(β² − 1) (y − βx) without its cancellation. `out` may be x or y.
  void log(std::span<const T> x, std::span<const T> y, std::span<T> out) const {
    const double c = checked("Lorentz::log", x, y, out);
    const Pair pair(c, space(x), space(y));
    const double f = detail::asinh_quotient(pair.t).value;
    set(out, f * (pair.dt - 2 * pair.t * pair.x.time),
        [&](Index i) { return f * (pair.delta(i - 1) - 2 * pair.t * pair.X(i - 1)); });
  }

  /// Adds the gradients of d_out · log_x(y).
  void log_vjp(std::span<const T> x, std::span<const T> y, std::span<const T> d_out, std::span<T> d_x, std::span<T> d_y,
               Lorentz& grad) const {
    const double c = checked("Lorentz::log_vjp", x, y, d_out);
    detail::check_wanted("Lorentz::log_vjp: gradients", detail::length(x), d_x, d_y);
    const Pair pair(c, space(x), space(y));
    const detail::Jet f = detail::asinh_quotient(pair.t);
    const double g0 = double(d_out[0]);
    const double gx = g0 * pair.x.time + pair.x_dot(space(d_out));
    const double gd = g0 * pair.dt + pair.delta_dot(space(d_out));
    const double d_t = f.slope * (gd - 2 * pair.t * gx) - 2 * f.value * gx;
    double d_c = d_t * pair.q / 4;
    // out = F Δ − 2tF x
    add_pair_gradient(pair, {.g = d_out, .a = f.value, .bx = -2 * pair.t * f.value, .d_q = c * d_t / 4}, d_x, d_y, d_c);
    grad.curvature += static_cast<T>(d_c);
  }

  /// out = exp at the origin (1/s, 0) of (0, v⃗): (sinh(s‖v⃗‖)/(s‖v⃗‖)) v⃗; the time of v is not read. Returns whether the
  /// result had to be projected. `out` may be v.
  bool exp0(std::span<const T> v, std::span<T> out) const {
    const double c = checked("Lorentz::exp0", v, out);
    return write_point(out, c, Ray(c, v));
  }

  /// Adds the gradients of d_out · exp_0(v).
  void exp0_vjp(std::span<const T> v, std::span<const T> d_out, std::span<T> d_v, Lorentz& grad) const {
    const double c = checked("Lorentz::exp0_vjp", v, d_out);
    detail::check_wanted("Lorentz::exp0_vjp: d_v", detail::length(v), d_v);
    const Ray ray(c, v);
    const double vg = ray.v.scale * detail::dot(space(v), space(d_out)), g0 = double(d_out[0]);
    double d_c = 0;
    if (c * ray.square > reach * reach) {  // the result is R v/‖v‖, with R and its time proportional to 1/√c
      const double f = reach / std::sqrt(c * ray.v.square);
      d_c = -(f * vg + g0 * std::sqrt((1 + reach * reach) / c)) / (2 * c);
      add(d_v, ray.v.scale * f, [&](Index i) { return at(d_out, i) - vg / ray.v.square * ray.V(i); });
    } else {
      // out⃗ = S v⃗, out₀ = √(1/c + ‖out⃗‖²)
      const double S = ray.sinh.value, k = g0 / std::sqrt(1 / c + ray.square);
      const double d_S = vg + k * S * ray.v.square;
      d_c = ray.sinh.slope * ray.v.square * d_S - k / (2 * c * c);
      add(d_v, 1, [&](Index i) { return S * at(d_out, i) + (k * S * S + 2 * c * ray.sinh.slope * d_S) * ray.V(i); });
    }
    grad.curvature += static_cast<T>(d_c);
  }

  /// out = (0, (asinh(s‖y⃗‖)/(s‖y⃗‖)) y⃗), the inverse of exp_0. `out` may be y.
  void log0(std::span<const T> y, std::span<T> out) const {
    const double c = checked("Lorentz::log0", y, out);
    const detail::LorentzPoint py = detail::lorentz_point(space(y), c);
    const double scale = py.scale * arsinh_quotient(c * py.square).value;
    set(out, 0, [&](Index i) { return scale * at(y, i); });
  }

  /// Adds the gradients of d_out · log_0(y).
  void log0_vjp(std::span<const T> y, std::span<const T> d_out, std::span<T> d_y, Lorentz& grad) const {
    const double c = checked("Lorentz::log0_vjp", y, d_out);
    detail::check_wanted("Lorentz::log0_vjp: d_y", detail::length(y), d_y);
    const detail::LorentzPoint py = detail::lorentz_point(space(y), c);
    const detail::Jet f = arsinh_quotient(c * py.square);
    const double yg = py.scale * detail::dot(space(y), space(d_out));
    double d_c = f.slope * py.square * yg, k = 2 * c * f.slope * yg;
    k += detail::pull_back(py, f.value * yg + k * py.square, c, d_c);
    add(d_y, py.scale, [&](Index i) { return f.value * at(d_out, i) + k * py.scale * at(y, i); });
    grad.curvature += static_cast<T>(d_c);
  }

  /// out = v + c⟨y, v⟩/(1 − c⟨x, y⟩) (x + y): v at x carried along the geodesic to y. `out` may be v.
  void transport(std::span<const T> x, std::span<const T> y, std::span<const T> v, std::span<T> out) const {
    const double c = checked("Lorentz::transport", x, y, v, out);
    const Pair pair(c, space(x), space(y));
    const double v0 = tangent_time(x, pair.x, v);
    const double k = c * (pair.delta_dot(space(v)) - pair.dt * v0) / (2 * (1 + pair.t));  // ⟨y, v⟩ = ⟨y − x, v⟩
    set(out, v0 + k * (pair.x.time + pair.y.time),
        [&](Index i) { return at(v, i) + k * (pair.X(i - 1) + pair.Y(i - 1)); });
  }

  /// Adds the gradients of d_out · transport(x, y, v).
  void transport_vjp(std::span<const T> x, std::span<const T> y, std::span<const T> v, std::span<const T> d_out,
                     std::span<T> d_x, std::span<T> d_y, std::span<T> d_v, Lorentz& grad) const {
    const double c = checked("Lorentz::transport_vjp", x, y, v, d_out);
    detail::check_wanted("Lorentz::transport_vjp: gradients", detail::length(x), d_x, d_y, d_v);
    const Pair pair(c, space(x), space(y));
    const double g0 = double(d_out[0]), v0 = tangent_time(x, pair.x, v), x0 = pair.x.time;
    // out = v + k (x + y), k = c e/(2(1 + t)), e = ⟨Δ, v⟩
    const double k = c * (pair.delta_dot(space(v)) - pair.dt * v0) / (2 * (1 + pair.t));
    const double d_k = g0 * (x0 + pair.y.time) + 2 * pair.x_dot(space(d_out)) + pair.delta_dot(space(d_out));
    const double d_e = d_k * c / (2 * (1 + pair.t)), d_t = -d_k * k / (1 + pair.t);
    double d_c = d_k * k / c + d_t * pair.q / 4;
    // v₀ = x⃗·v⃗/x₀
    const double d_v0 = g0 - d_e * pair.dt;
    add(d_v, 1, [&](Index i) { return at(d_out, i) + d_e * pair.delta(i - 1) + d_v0 / x0 * pair.X(i - 1); });
    add_pair_gradient(
        pair, {.g = d_out, .bx = k, .by = k, .v = v, .e = d_e, .v0 = v0, .through_v = d_v0 / x0, .d_q = c * d_t / 4},
        d_x, d_y, d_c);
    grad.curvature += static_cast<T>(d_c);
  }

  /// out = n/M, n = Σ_j w_j x_j over the rows of `points` [n×(d+1)], M = √(−c⟨n, n⟩): the centroid (Law 2019), the same
  /// point as the gyromidpoint. Weights are >= 0; if all are 0 (or n = 0), out is the origin. Returns whether the
  /// result had to be projected; counts projected points in `ws`. O(n d).
  bool midpoint(std::span<const T> weights, MatrixView<const T> points, std::span<T> out, Workspace& ws) const {
    const double c = checked_midpoint("Lorentz::midpoint", weights, points, std::span<const T>(out));
    auto frame = ws.frame();
    const Mean mean = weighted_mean(weights, points, c, frame.template span<double>(points.cols() - 1),
                                    frame.template span<double>(points.cols() - 1), ws);
    set(out, 0, [&](Index i) { return mean.point[std::size_t(i - 1)]; });
    const bool moved = detail::clip_into(std::span<const T>(space(out)), space(out), c, reach);
    set_time(out, c);
    return moved;
  }

  /// Adds the gradients of G·m, m = midpoint(weights, points), to d_weights [n], d_points [n×(d+1)] and grad.curvature.
  /// With G·m over time and space, t = c⟨x − m, x − m⟩/4, for each point x of weight w:
  ///   by w: (G·(x − m) − 2t G·m)/M;  by x: w(G + c(G·m)(−m₀, m⃗))/M;  by c: −G·m/(2c) and through the times
  void midpoint_vjp(std::span<const T> weights, MatrixView<const T> points, std::span<const T> d_out,
                    std::span<T> d_weights, MatrixView<T> d_points, Lorentz& grad, Workspace& ws) const {
    const double c = checked_midpoint("Lorentz::midpoint_vjp", weights, points, d_out);
    detail::check_wanted("Lorentz::midpoint_vjp: d_weights", points.rows(), d_weights);
    detail::check_wanted("Lorentz::midpoint_vjp: d_points", points, d_points);
    auto frame = ws.frame();
    const Mean mean = weighted_mean(weights, points, c, frame.template span<double>(points.cols() - 1),
                                    frame.template span<double>(points.cols() - 1), ws);
    if (mean.mass == 0) return;
    const double scale = 1 / mean.mass, g0 = double(d_out[0]);
    const auto m = [&](Index i) { return mean.point[std::size_t(i - 1)]; };
    const double square = detail::sum(points.cols() - 1, [&](Index i) { return m(i + 1) * m(i + 1); });
    const double gm = g0 * std::sqrt(1 / c + square) +
                      detail::sum(points.cols() - 1, [&](Index i) { return at(d_out, i + 1) * m(i + 1); });
    double d_c = -gm / (2 * c);
    for (Index j = 0; j < points.rows(); ++j) {
      const detail::LorentzPair<double, T> pair(c, std::span<const double>(mean.point), space(points.row(j)));
      const double w = at(weights, j);
      const double gd = g0 * pair.dt + pair.delta_dot(space(d_out));
      if (!d_weights.empty()) d_weights[std::size_t(j)] += static_cast<T>(scale * (gd - 2 * pair.t * gm));
      // c(G·m)(m⃗ − m₀ x⃗/x₀) = −c(G·m)(Δ⃗ − Δ₀ x⃗/x₀)
      double radial = 0;
      if (pair.y.moved)
        radial =
            detail::sum(pair.d(), [&](Index i) { return pair.Y(i) * (at(d_out, i + 1) - c * gm * pair.delta(i)); });
      const double k = detail::fold_time(pair.y, w * scale * (g0 + c * gm * pair.dt), w * scale * radial, c, d_c);
      d_c += w * scale * gm / (2 * c);  // the other part of the time: −x₀ of m₀ = x₀ − Δ₀
      if (d_points.empty()) continue;
      add(d_points.row(j), pair.y.scale,
          [&](Index i) { return w * scale * (at(d_out, i) - c * gm * pair.delta(i - 1)) + k * pair.Y(i - 1); });
    }
    grad.curvature += static_cast<T>(d_c);
  }

  /// out = (1/s, 0).
  void origin(std::span<T> out) const {
    const double c = checked("Lorentz::origin", std::span<const T>(out));
    set(out, 1 / std::sqrt(c), [](Index) { return 0.0; });
  }

  /// out = exp_0(v) with v⃗_i normal of the given deviation: the wrapped normal distribution (Nagano 2019).
  void random_point(Rng& rng, T deviation, std::span<T> out) const {
    (void)checked("Lorentz::random_point", std::span<const T>(out));
    for (T& v : space(out)) v = deviation * rng.template normal<T>();
    exp0(out, out);
  }

 private:
  using Pair = detail::LorentzPair<T>;

  // The largest s‖x⃗‖: as far from the origin as the ball reaches with the same margin.
  static constexpr double reach = 1 / double(boundary_margin<T>);
  // Tangent vectors with s‖v‖ over this are shortened to it: the result is projected anyway, and cosh does not
  // overflow.
  static constexpr double longest = 300;

  [[nodiscard]] detail::LorentzColumns columns_model(std::span<const T> x) const {
    if (x.empty()) [[unlikely]]
      throw_shape_error("Lorentz: columns of a point", "at least 1 (time)", "0");
    const double c = detail::checked_curvature(curvature);
    const detail::LorentzPoint px = detail::lorentz_point(space(x), c);
    const double rho = std::sqrt(px.square);
    return {px, c, std::sqrt(c), reach, rho, rho == 0 ? 0 : 1 / rho};
  }

  // exp_x(v) = C x + S v.
  struct Step {
    std::span<const T> x_data, v_data;
    detail::LorentzPoint x;
    detail::Clipped v;
    double xv, time, norm2;  // x⃗·v⃗, v₀, ⟨v, v⟩
    double cosh;
    detail::Jet sinh;
    double square;  // ‖C x⃗ + S v⃗‖²

    Step(double c, std::span<const T> x_row, std::span<const T> v_row)
        : x_data(x_row),
          v_data(v_row),
          x(detail::lorentz_point(space(x_row), c)),
          v(detail::clip(space(v_row), c, 1e100)) {
      norm2 = minkowski(x_row, x, c, v_row, v_row, v.scale);
      if (const double z = std::sqrt(c * norm2); z > longest) {
        const double shorter = longest / z;
        v.scale *= shorter;
        v.square *= shorter * shorter;
        norm2 *= shorter * shorter;
      }
      xv = detail::sum(detail::length(x_row) - 1, [&](Index i) { return X(i + 1) * V(i + 1); });
      time = xv / x.time;
      cosh = std::cosh(std::sqrt(c * norm2));
      sinh = detail::sinh_quotient(c * norm2);
      square = detail::sum(detail::length(x_row) - 1, [&](Index i) { return point(i + 1) * point(i + 1); });
    }
    [[nodiscard]] double X(Index i) const { return x.scale * at(x_data, i); }
    [[nodiscard]] double V(Index i) const { return v.scale * at(v_data, i); }
    [[nodiscard]] double point(Index i) const { return cosh * X(i) + sinh.value * V(i); }
  };

  // exp_0(v) = S v.
  struct Ray {
    std::span<const T> v_data;
    detail::Clipped v;
    detail::Jet sinh;
    double square;  // ‖S v⃗‖²

    Ray(double c, std::span<const T> v_row)
        : v_data(v_row),
          v(detail::clip(space(v_row), c, longest)),
          sinh(detail::sinh_quotient(c * v.square)),
          square(sinh.value * sinh.value * v.square) {}
    [[nodiscard]] double V(Index i) const { return v.scale * at(v_data, i); }
    [[nodiscard]] double point(Index i) const { return sinh.value * V(i); }
  };

  // The midpoint and its M.
  struct Mean {
    std::span<double> point;  // m⃗ = n⃗/M
    double mass = 0;
  };

  // M = √(c(n₀² − ‖n⃗‖²)) cancels far out. Adding the points one by one does not: a point of weight w that joins a
  // midpoint m of mass M makes it M² + w² + 2wM (1 + 2t), t = c⟨x − m, x − m⟩/4.
  static Mean weighted_mean(std::span<const T> weights, MatrixView<const T> points, double c, std::span<double> n,
                            std::span<double> point, Workspace& ws) {
    Mean mean{point};
    std::fill(n.begin(), n.end(), 0.0);
    std::fill(point.begin(), point.end(), 0.0);
    for (Index j = 0; j < points.rows(); ++j) {
      const double w = at(weights, j);
      const detail::LorentzPair<double, T> pair(c, std::span<const double>(point), space(points.row(j)));
      ws.diagnostics().projected_points += pair.y.moved ? 1 : 0;
      if (w == 0) continue;
      const double M = mean.mass;
      mean.mass = M == 0 ? w : std::sqrt(M * (M + 2 * w) + w * w + 4 * w * M * pair.t);
      for (Index i = 0; i < pair.d(); ++i) n[std::size_t(i)] += w * pair.Y(i);
      for (Index i = 0; i < pair.d(); ++i) point[std::size_t(i)] = n[std::size_t(i)] / mean.mass;
    }
    return mean;
  }

  // Component i of a row, as a double.
  [[nodiscard]] static double at(std::span<const T> x, Index i) { return double(x[std::size_t(i)]); }
  [[nodiscard]] static std::span<const T> space(std::span<const T> x) { return x.empty() ? x : x.subspan(1); }
  [[nodiscard]] static std::span<T> space(std::span<T> x) { return x.empty() ? x : x.subspan(1); }
  template <class U>
  [[nodiscard]] static MatrixView<U> space(MatrixView<U> columns) {
    return columns.rows() == 0 ? columns : columns.rows(1, columns.rows() - 1);
  }

  template <class... Spans>
  [[nodiscard]] double checked(std::string_view what, std::span<const T> x, const Spans&... spans) const {
    if (x.empty()) [[unlikely]]
      throw_shape_error(what, "at least 1 column (time)", "0");
    detail::check_lengths(what, detail::length(x), spans...);
    return detail::checked_curvature(curvature);
  }

  [[nodiscard]] double checked_midpoint(std::string_view what, std::span<const T> weights, MatrixView<const T> points,
                                        std::span<const T> out) const {
    check_shape(what, points.rows(), detail::length(weights));
    check_shape(what, points.cols(), detail::length(out));
    return checked(what, out);
  }

  // asinh(z)/z for t = z².
  [[nodiscard]] static detail::Jet arsinh_quotient(double t) {
    const detail::Jet f = detail::asinh_quotient(t);
    const double root = std::sqrt(1 + t);
    return {f.value * root, f.slope * root + f.value / (2 * root)};
  }

  // v₀ = x⃗·v⃗/x₀.
  [[nodiscard]] static double tangent_time(std::span<const T> x, const detail::LorentzPoint& px, std::span<const T> v) {
    return px.scale * detail::dot(space(x), space(v)) / px.time;
  }

  // ⟨k u, k v⟩ for tangent vectors, split into parts along x⃗ and across, since u⃗·v⃗ − u₀v₀ cancels far out:
  // (x⃗·u⃗)(x⃗·v⃗)/(‖x⃗‖² c x₀²) + u⃗_⊥·v⃗_⊥.
  [[nodiscard]] static double minkowski(std::span<const T> x, const detail::LorentzPoint& px, double c,
                                        std::span<const T> u, std::span<const T> v, double k) {
    if (px.square == 0) return k * k * detail::dot(space(u), space(v));
    const double xu = k * px.scale * detail::dot(space(x), space(u)) / px.square;
    const double xv = k * px.scale * detail::dot(space(x), space(v)) / px.square;
    const double across = detail::sum(detail::length(x) - 1, [&](Index i) {
      const double along = px.scale * at(x, i + 1);
      return (k * at(u, i + 1) - xu * along) * (k * at(v, i + 1) - xv * along);
    });
    return across + xu * xv * px.square / (c * px.time * px.time);
  }

  // d_i += scale · value(i) in space, i = 1 … d.
  template <class Value>
  static void add(std::span<T> d, double scale, Value value) {
    detail::accumulate(space(d), [&](Index i) { return scale * value(i + 1); });
  }

  // out_i = value(i) in space, i = 1 … d, and the time.
  template <class Value>
  static void set(std::span<T> out, double time, Value value) {
    detail::assign(space(out), [&](Index i) { return value(i + 1); });
    out[0] = static_cast<T>(time);
  }

  static void set_time(std::span<T> out, double c) {
    const std::span<const T> part = space(out);
    out[0] = static_cast<T>(std::sqrt(1 / c + detail::dot(part, part)));
  }

  // Writes result.point, projected before it is rounded: it may not fit a float.
  template <class R>
  static bool write_point(std::span<T> out, double c, const R& result) {
    const bool far = c * result.square > reach * reach;
    const double f = far ? reach / std::sqrt(c * result.square) : 1;
    set(out, 0, [&](Index i) { return f * result.point(i); });
    const bool moved = detail::clip_into(std::span<const T>(space(out)), space(out), c, reach);
    set_time(out, c);
    return far || moved;
  }

  // What the operations on two points share: with Δ = y − x, adds the gradients by x and y of
  //   a G·Δ + bx G·x + by G·y + e ⟨Δ, v⟩ + d_q ⟨Δ, Δ⟩
  // (products with G are Euclidean), and by c through the times. `through_v` is the gradient by v₀ over x₀, for what
  // depends on x through v₀ = x⃗·v⃗/x₀.
  struct Terms {
    std::span<const T> g = {};
    double a = 0, bx = 0, by = 0;
    std::span<const T> v = {};
    double e = 0, v0 = 0, through_v = 0;
    double d_q = 0;
  };

  static void add_pair_gradient(const Pair& pair, const Terms& k, std::span<T> d_x, std::span<T> d_y, double& d_c) {
    const double g0 = k.g.empty() ? 0 : double(k.g[0]);
    const double xg = k.g.empty() ? 0 : pair.x_dot(space(k.g)), dg = k.g.empty() ? 0 : pair.delta_dot(space(k.g));
    const double xv = k.v.empty() ? 0 : pair.x_dot(space(k.v)), dv = k.v.empty() ? 0 : pair.delta_dot(space(k.v));
    const double xd = detail::sum(pair.d(), [&](Index i) { return pair.X(i) * pair.delta(i); });
    // by Δ: a G + e v + 2 d_q Δ⃗ in space, a G₀ − e v₀ − 2 d_q Δ₀ in time
    const double d_dt = k.a * g0 - k.e * k.v0 - 2 * k.d_q * pair.dt;
    const double kx = detail::fold_time(pair.x, k.bx * g0 - d_dt - k.through_v * k.v0,
                                        (k.bx - k.a) * xg + (k.through_v - k.e) * xv - 2 * k.d_q * xd, pair.c, d_c);
    const double ky =
        detail::fold_time(pair.y, k.by * g0 + d_dt,
                          (k.by + k.a) * (xg + dg) + k.e * (xv + dv) + 2 * k.d_q * (xd + pair.square), pair.c, d_c);
    const auto at_or_0 = [](std::span<const T> row, Index i) { return row.empty() ? 0 : at(row, i); };
    add(d_x, pair.x.scale, [&](Index i) {
      return (k.bx - k.a) * at_or_0(k.g, i) + (k.through_v - k.e) * at_or_0(k.v, i) - 2 * k.d_q * pair.delta(i - 1) +
             kx * pair.X(i - 1);
    });
    add(d_y, pair.y.scale, [&](Index i) {
      return (k.by + k.a) * at_or_0(k.g, i) + k.e * at_or_0(k.v, i) + 2 * k.d_q * pair.delta(i - 1) +
             ky * pair.Y(i - 1);
    });
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::geometry
