// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/random.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/geometry/columns.hpp"
#include "ruvector/geometry/vectors.hpp"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::geometry {

namespace detail {

/// One point against columns (columns.hpp).
struct FlatColumns {
  static constexpr bool has_radial_part = false;
  static constexpr double c = 1, reach = std::numeric_limits<double>::infinity();
  Clipped x;

  struct Sums {
    Lane delta;
    Lane square = 0.0;  // not needed
  };
  template <class Block>
  [[nodiscard, gnu::always_inline]] Sums sums(const Block& block) const {
    Sums sums{0.0};
    for (Index i = 0; i < block.rows; ++i) {
      const Lane difference = block.Y(i) - block.X(i);
      sums.delta = simd::fma(difference, difference, sums.delta);
    }
    return sums;
  }
  [[nodiscard, gnu::always_inline]] Lane distance(const Sums& sums) const { return simd::sqrt(sums.delta); }
  template <class Distance>
  [[nodiscard, gnu::always_inline]] PairTerms terms(const Sums& sums, Lane d_out, Distance) const {
    return {.a = simd::select(sums.delta == Lane(0.0), 0.0, d_out / distance(sums))};
  }
};

}  // namespace detail

/// Euclidean space R^d, with the interface of the curved manifolds: the honest baseline. It has no parameter.
template <Real T>
struct Euclidean {
  /// What it computes in.
  using Scalar = T;

  /// Names no parameter.
  template <class Visit, class... Self>
  static void parameters(Visit&&, Self&...) {}

  /// Columns of a point of dimension d: d.
  [[nodiscard]] Index point_dim(Index d) const { return d; }

  /// d(x, y) = ‖x − y‖. Throws ShapeError unless both are [d]. O(d).
  [[nodiscard]] T distance(std::span<const T> x, std::span<const T> y) const {
    check_shape("Euclidean::distance: y", detail::length(x), detail::length(y));
    return static_cast<T>(std::sqrt(square(x, y)));
  }

  /// Adds d_out ∂d/∂x = d_out (x − y)/d to d_x, and the same by y to d_y; 0 at x = y.
  void distance_vjp(std::span<const T> x, std::span<const T> y, T d_out, std::span<T> d_x, std::span<T> d_y,
                    Euclidean&) const {
    check_gradients("Euclidean::distance_vjp", x, {y}, {d_x, d_y});
    const double distance = std::sqrt(square(x, y));
    const double k = distance == 0 ? 0 : double(d_out) / distance;
    detail::accumulate(d_x, [&](Index i) { return k * (at(x, i) - at(y, i)); });
    detail::accumulate(d_y, [&](Index i) { return k * (at(y, i) - at(x, i)); });
  }

  /// out_j = d(x, column j) for points stored by columns [d×n]; the bits do not depend on j or n. O(d n).
  void distances(std::span<const T> x, MatrixView<const T> columns, std::span<T> out) const {
    detail::check_columns("Euclidean::distances", x, columns, std::span<const T>(out));
    detail::column_distances(detail::FlatColumns{}, x, columns, out);
  }

  /// Adds the gradients of Σ_j d_out_j d(x, column j) to d_x [d] and d_columns [d×n]; `distances` is not needed. O(d
  /// n).
  void distances_vjp(std::span<const T> x, MatrixView<const T> columns, std::span<const T> d_out, std::span<T> d_x,
                     MatrixView<T> d_columns, Euclidean&, std::span<const T> distances = {}) const {
    detail::check_columns("Euclidean::distances_vjp", x, columns, d_out);
    detail::check_wanted("Euclidean::distances_vjp: d_x", detail::length(x), d_x);
    detail::check_wanted("Euclidean::distances_vjp: d_columns", columns, d_columns);
    detail::column_distances_vjp(detail::FlatColumns{}, x, columns, distances, d_out, d_x, d_columns);
  }

  /// out = x: every point is allowed. Returns false: nothing was moved. `out` may be x.
  bool project(std::span<const T> x, std::span<T> out, T = T(0)) const {
    check("Euclidean::project", x, out);
    copy(x, out);
    return false;
  }

  /// Adds d_out to d_x.
  void project_vjp(std::span<const T> x, std::span<const T> d_out, std::span<T> d_x, Euclidean&, T = T(0)) const {
    check_gradients("Euclidean::project_vjp", x, {d_out}, {d_x});
    detail::accumulate(d_x, [&](Index i) { return at(d_out, i); });
  }

  /// 1: a step is as long as it looks, everywhere.
  [[nodiscard]] T conformal_factor(std::span<const T>) const { return T(1); }

  /// ⟨u, v⟩ = u·v, at every x.
  [[nodiscard]] T inner(std::span<const T> x, std::span<const T> u, std::span<const T> v) const {
    check("Euclidean::inner", x, u, v);
    return static_cast<T>(detail::dot(u, v));
  }

  /// Adds d_out v to d_u and d_out u to d_v.
  void inner_vjp(std::span<const T> x, std::span<const T> u, std::span<const T> v, T d_out, std::span<T> d_x,
                 std::span<T> d_u, std::span<T> d_v, Euclidean&) const {
    check_gradients("Euclidean::inner_vjp", x, {u, v}, {d_x, d_u, d_v});
    detail::accumulate(d_u, [&](Index i) { return double(d_out) * at(v, i); });
    detail::accumulate(d_v, [&](Index i) { return double(d_out) * at(u, i); });
  }

  /// ‖v‖, at every x.
  [[nodiscard]] T norm(std::span<const T> x, std::span<const T> v) const {
    check("Euclidean::norm", x, v);
    return static_cast<T>(std::sqrt(detail::dot(v, v)));
  }

  /// out = g: the metric is the identity. `out` may be g.
  void riemannian_gradient(std::span<const T> x, std::span<const T> g, std::span<T> out) const {
    check("Euclidean::riemannian_gradient", x, g, out);
    copy(g, out);
  }

  /// Adds d_out to d_g.
  void riemannian_gradient_vjp(std::span<const T> x, std::span<const T> g, std::span<const T> d_out, std::span<T> d_x,
                               std::span<T> d_g, Euclidean&) const {
    check_gradients("Euclidean::riemannian_gradient_vjp", x, {g, d_out}, {d_x, d_g});
    detail::accumulate(d_g, [&](Index i) { return at(d_out, i); });
  }

  /// out = x + v. Returns false: nothing was moved. `out` may be x or v.
  bool exp(std::span<const T> x, std::span<const T> v, std::span<T> out) const {
    check("Euclidean::exp", x, v, out);
    detail::assign(out, [&](Index i) { return at(x, i) + at(v, i); });
    return false;
  }

  /// Adds d_out to d_x and d_v.
  void exp_vjp(std::span<const T> x, std::span<const T> v, std::span<const T> d_out, std::span<T> d_x, std::span<T> d_v,
               Euclidean&) const {
    check_gradients("Euclidean::exp_vjp", x, {v, d_out}, {d_x, d_v});
    detail::accumulate(d_x, [&](Index i) { return at(d_out, i); });
    detail::accumulate(d_v, [&](Index i) { return at(d_out, i); });
  }

  /// out = y − x, the inverse of exp. `out` may be x or y.
  void log(std::span<const T> x, std::span<const T> y, std::span<T> out) const {
    check("Euclidean::log", x, y, out);
    detail::assign(out, [&](Index i) { return at(y, i) - at(x, i); });
  }

  /// Subtracts d_out from d_x and adds it to d_y.
  void log_vjp(std::span<const T> x, std::span<const T> y, std::span<const T> d_out, std::span<T> d_x, std::span<T> d_y,
               Euclidean&) const {
    check_gradients("Euclidean::log_vjp", x, {y, d_out}, {d_x, d_y});
    detail::accumulate(d_x, [&](Index i) { return -at(d_out, i); });
    detail::accumulate(d_y, [&](Index i) { return at(d_out, i); });
  }

  /// out = v: exp at the origin. `out` may be v.
  bool exp0(std::span<const T> v, std::span<T> out) const { return project(v, out); }

  /// Adds d_out to d_v.
  void exp0_vjp(std::span<const T> v, std::span<const T> d_out, std::span<T> d_v, Euclidean& grad) const {
    project_vjp(v, d_out, d_v, grad);
  }

  /// out = y: log at the origin. `out` may be y.
  void log0(std::span<const T> y, std::span<T> out) const { project(y, out); }

  /// Adds d_out to d_y.
  void log0_vjp(std::span<const T> y, std::span<const T> d_out, std::span<T> d_y, Euclidean& grad) const {
    project_vjp(y, d_out, d_y, grad);
  }

  /// out = v: parallel lines stay parallel. `out` may be v.
  void transport(std::span<const T> x, std::span<const T> y, std::span<const T> v, std::span<T> out) const {
    check("Euclidean::transport", x, y, v, out);
    copy(v, out);
  }

  /// Adds d_out to d_v.
  void transport_vjp(std::span<const T> x, std::span<const T> y, std::span<const T> v, std::span<const T> d_out,
                     std::span<T> d_x, std::span<T> d_y, std::span<T> d_v, Euclidean&) const {
    check_gradients("Euclidean::transport_vjp", x, {y, v, d_out}, {d_x, d_y, d_v});
    detail::accumulate(d_v, [&](Index i) { return at(d_out, i); });
  }

  /// out = Σ_j w_j x_j / Σ_j w_j over the rows of `points` [n×d]; 0 if the weights, which are >= 0, are all 0. O(n d).
  bool midpoint(std::span<const T> weights, MatrixView<const T> points, std::span<T> out, Workspace&) const {
    check_shape("Euclidean::midpoint: weights", points.rows(), detail::length(weights));
    check_shape("Euclidean::midpoint: out", points.cols(), detail::length(out));
    const double total = detail::sum(points.rows(), [&](Index j) { return at(weights, j); });
    const double scale = total == 0 ? 0 : 1 / total;
    detail::assign(out, [&](Index i) { return scale * weighted_column(weights, points, i); });
    return false;
  }

  /// Adds the gradients of d_out · midpoint(weights, points) to d_weights [n] and d_points [n×d].
  void midpoint_vjp(std::span<const T> weights, MatrixView<const T> points, std::span<const T> d_out,
                    std::span<T> d_weights, MatrixView<T> d_points, Euclidean&, Workspace&) const {
    check_shape("Euclidean::midpoint_vjp: weights", points.rows(), detail::length(weights));
    check_shape("Euclidean::midpoint_vjp: d_out", points.cols(), detail::length(d_out));
    detail::check_wanted("Euclidean::midpoint_vjp: d_weights", points.rows(), d_weights);
    detail::check_wanted("Euclidean::midpoint_vjp: d_points", points, d_points);
    const double total = detail::sum(points.rows(), [&](Index j) { return at(weights, j); });
    if (total == 0) return;
    const double mean =
        detail::sum(points.cols(), [&](Index i) { return at(d_out, i) * weighted_column(weights, points, i) / total; });
    detail::accumulate(d_weights, [&](Index j) { return (detail::dot(d_out, points.row(j)) - mean) / total; });
    for (Index j = 0; j < d_points.rows(); ++j)
      detail::accumulate(d_points.row(j), [&](Index i) { return at(weights, j) / total * at(d_out, i); });
  }

  /// out = 0.
  void origin(std::span<T> out) const { std::fill(out.begin(), out.end(), T(0)); }

  /// out_i normal of the given deviation.
  void random_point(Rng& rng, T deviation, std::span<T> out) const {
    for (T& v : out) v = deviation * rng.template normal<T>();
  }

 private:
  [[nodiscard]] static double at(std::span<const T> x, Index i) { return double(x[std::size_t(i)]); }

  [[nodiscard]] static double square(std::span<const T> x, std::span<const T> y) {
    return detail::sum(detail::length(x), [&](Index i) { return (at(x, i) - at(y, i)) * (at(x, i) - at(y, i)); });
  }

  [[nodiscard]] static double weighted_column(std::span<const T> weights, MatrixView<const T> points, Index i) {
    return detail::sum(points.rows(), [&](Index j) { return at(weights, j) * double(points(j, i)); });
  }

  static void copy(std::span<const T> from, std::span<T> to) {
    if (to.data() != from.data()) std::copy(from.begin(), from.end(), to.begin());
  }

  static void check_gradients(const char* what, std::span<const T> x, std::initializer_list<std::span<const T>> inputs,
                              std::initializer_list<std::span<T>> gradients) {
    for (const auto& input : inputs) detail::check_lengths(what, detail::length(x), input);
    for (const auto& gradient : gradients) detail::check_wanted(what, detail::length(x), gradient);
  }

  template <class... Spans>
  static void check(const char* what, std::span<const T> x, const Spans&... spans) {
    detail::check_lengths(what, detail::length(x), spans...);
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::geometry
