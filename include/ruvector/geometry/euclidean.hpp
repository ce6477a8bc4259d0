// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/random.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/geometry/columns.hpp"
#include "ruvector/geometry/vectors.hpp"

#include <algorithm>
#include <cmath>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::geometry {

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
    check("Euclidean::distance_vjp", x, y, d_x, d_y);
    const double distance = std::sqrt(square(x, y));
    const double k = distance == 0 ? 0 : double(d_out) / distance;
    detail::accumulate(d_x, [&](Index i) { return k * (at(x, i) - at(y, i)); });
    detail::accumulate(d_y, [&](Index i) { return k * (at(y, i) - at(x, i)); });
  }

  /// out_j = d(x, column j) for points stored by columns [d×n]; the bits do not depend on j or n. O(d n).
  void distances(std::span<const T> x, MatrixView<const T> columns, std::span<T> out) const {
    check_shape("Euclidean::distances: rows of columns", detail::length(x), columns.rows());
    check_shape("Euclidean::distances: out", columns.cols(), detail::length(out));
    detail::distances_by_column(*this, x, columns, out);
  }

  /// Adds the gradients of Σ_j d_out_j d(x, column j) to d_x [d] and d_columns [d×n].
  void distances_vjp(std::span<const T> x, MatrixView<const T> columns, std::span<const T> d_out, std::span<T> d_x,
                     MatrixView<T> d_columns, Euclidean& grad) const {
    check_shape("Euclidean::distances_vjp: rows of columns", detail::length(x), columns.rows());
    check_shape("Euclidean::distances_vjp: d_out", columns.cols(), detail::length(d_out));
    detail::distances_vjp_by_column(*this, x, columns, d_out, d_x, d_columns, grad);
  }

  /// out = x: every point is allowed. Returns false: nothing was moved. `out` may be x.
  bool project(std::span<const T> x, std::span<T> out, T = T(0)) const {
    check("Euclidean::project", x, out);
    if (out.data() != x.data()) std::copy(x.begin(), x.end(), out.begin());
    return false;
  }

  /// out = g: the metric is the identity. `out` may be g.
  void riemannian_gradient(std::span<const T> x, std::span<const T> g, std::span<T> out) const {
    check("Euclidean::riemannian_gradient", x, g, out);
    if (out.data() != g.data()) std::copy(g.begin(), g.end(), out.begin());
  }

  /// out = x + v. Returns false: nothing was moved.
  bool exp(std::span<const T> x, std::span<const T> v, std::span<T> out) const {
    check("Euclidean::exp", x, v, out);
    detail::assign(out, [&](Index i) { return at(x, i) + at(v, i); });
    return false;
  }

 private:
  [[nodiscard]] static double at(std::span<const T> x, Index i) { return double(x[std::size_t(i)]); }

  [[nodiscard]] static double square(std::span<const T> x, std::span<const T> y) {
    return detail::sum(detail::length(x), [&](Index i) { return (at(x, i) - at(y, i)) * (at(x, i) - at(y, i)); });
  }

  template <class... Spans>
  static void check(const char* what, std::span<const T> x, const Spans&... spans) {
    detail::check_lengths(what, detail::length(x), spans...);
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::geometry
