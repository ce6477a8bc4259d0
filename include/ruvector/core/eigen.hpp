// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/matrix.hpp"
#include "ruvector/core/view.hpp"

// gcc 12 takes the undefined operands of its own AVX-512 intrinsics for variables that were never set (gcc bug 105593)
// and says so wherever Eigen's products and solvers are instantiated.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <Eigen/Core>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <span>
#include <type_traits>

namespace ruvector::inline RUVECTOR_ABI {

/// A row-major Eigen matrix of dynamic size: what converts to MatrixView without a copy.
template <class T>
using EigenMatrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace detail {

template <class T, class Plain>
using EigenMap =
    Eigen::Map<std::conditional_t<std::is_const_v<T>, const Plain, Plain>, Eigen::Unaligned, Eigen::OuterStride<>>;

}  // namespace detail

/// The same elements as an Eigen map, for algebra: `eigen(y).noalias() = eigen(x) * eigen(w).transpose()`. No copy; a
/// matrix has to outlive the map.
///@{
template <class T>
[[nodiscard]] auto eigen(MatrixView<T> view) {
  using Map = detail::EigenMap<T, EigenMatrix<std::remove_const_t<T>>>;
  return Map(view.data(), view.rows(), view.cols(), Eigen::OuterStride<>(view.stride()));
}
template <class T>
[[nodiscard]] auto eigen(Matrix<T>& matrix) {
  return eigen(matrix.view());
}
template <class T>
[[nodiscard]] auto eigen(const Matrix<T>& matrix) {
  return eigen(matrix.view());
}
template <class T>
void eigen(const Matrix<T>&&) = delete;
///@}

/// The same elements as a column vector of Eigen. No copy; a vector has to outlive the map.
///@{
template <class T>
[[nodiscard]] auto eigen(std::span<T> values) {
  using Plain = Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, 1>;
  return Eigen::Map<std::conditional_t<std::is_const_v<T>, const Plain, Plain>>(values.data(),
                                                                                Eigen::Index(values.size()));
}
template <class T>
[[nodiscard]] auto eigen(Vector<T>& vector) {
  return eigen(vector.span());
}
template <class T>
[[nodiscard]] auto eigen(const Vector<T>& vector) {
  return eigen(vector.span());
}
template <class T>
void eigen(const Vector<T>&&) = delete;
///@}

}  // namespace ruvector::inline RUVECTOR_ABI
