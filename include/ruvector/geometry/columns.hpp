// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/matrix.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/geometry/vectors.hpp"

#include <span>

namespace ruvector::inline RUVECTOR_ABI::geometry::detail {

template <Real T>
void check_columns(std::string_view what, std::span<const T> x, MatrixView<const T> columns, std::span<const T> each) {
  check_shape(what, length(x), columns.rows());
  check_shape(what, columns.cols(), length(each));
}

template <class M, Real T>
void distances_by_column(const M& m, std::span<const T> x, MatrixView<const T> columns, std::span<T> out) {
  Vector<T> y(columns.rows());
  for (Index j = 0; j < columns.cols(); ++j) {
    for (Index i = 0; i < columns.rows(); ++i) y[i] = columns(i, j);
    out[std::size_t(j)] = m.distance(x, y);
  }
}

template <class M, Real T>
void distances_vjp_by_column(const M& m, std::span<const T> x, MatrixView<const T> columns, std::span<const T> d_out,
                             std::span<T> d_x, MatrixView<T> d_columns, M& grad) {
  Vector<T> y(columns.rows()), d_y(columns.rows());
  for (Index j = 0; j < columns.cols(); ++j) {
    for (Index i = 0; i < columns.rows(); ++i) y[i] = columns(i, j), d_y[i] = 0;
    m.distance_vjp(x, y, d_out[std::size_t(j)], d_x, d_y, grad);
    if (d_columns.empty()) continue;
    for (Index i = 0; i < columns.rows(); ++i) d_columns(i, j) += d_y[i];
  }
}

}  // namespace ruvector::inline RUVECTOR_ABI::geometry::detail
