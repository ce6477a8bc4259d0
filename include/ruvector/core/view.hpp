// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"

#include <concepts>
#include <span>
#include <type_traits>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI {

namespace detail {

template <class E>
inline constexpr bool owning_temporary =
    !std::is_lvalue_reference_v<E> &&
    std::same_as<typename std::remove_cvref_t<E>::PlainObject, std::remove_cvref_t<E>>;

/// A dense array of Eigen (or alike), recognised by its members, so that no header of Eigen is needed here.
template <class E, class T>
concept RowMajorArray = requires(E& e) {
  { e.data() } -> std::convertible_to<T*>;            // mutable elements only from a mutable array
  { e.outerStride() } -> std::convertible_to<Index>;  // elements from one row to the next
  requires bool(std::remove_cvref_t<E>::IsRowMajor);  // column-major would be transposed, or copied, in silence
  requires int(std::remove_cvref_t<E>::InnerStrideAtCompileTime) == 1;  // rows are contiguous
  requires !owning_temporary<E>;                                        // the view would dangle
};

template <class E, class T>
concept RefusedArray = !RowMajorArray<E, T> && requires(E & e) {
  { e.data() } -> std::convertible_to<T*>;
  { e.outerStride() } -> std::convertible_to<Index>;
};

}  // namespace detail

/// A view of a row-major matrix: pointer, rows, columns, stride (elements from one row to the next). Four words, copied
/// by value, owns nothing. One row = one token, node or candidate. Converts implicitly from `Matrix`, from a mutable
/// view to a const one, and from row-major Eigen matrices, maps and blocks; not from column-major ones, nor from owning
/// temporaries.
template <class T>
class MatrixView {
 public:
  /// The type of an element, without const.
  using Scalar = std::remove_const_t<T>;

  /// [0×0].
  constexpr MatrixView() = default;

  /// [rows×cols] elements at `data`, rows `stride` elements apart.
  constexpr MatrixView(T* data, Index rows, Index cols, Index stride)
      : data_(data), rows_(rows), cols_(cols), stride_(stride) {
    RUVECTOR_ASSERT(rows >= 0 && cols >= 0 && (stride >= cols || rows <= 1));
  }

  /// Contiguous [rows×cols] elements at `data`.
  constexpr MatrixView(T* data, Index rows, Index cols) : MatrixView(data, rows, cols, cols) {}

  /// Implicit: a mutable view is a const view.
  template <class U>
    requires(std::same_as<const U, T> && !std::same_as<U, T>)
  constexpr MatrixView(MatrixView<U> other) : MatrixView(other.data(), other.rows(), other.cols(), other.stride()) {}

  /// Implicit: Eigen's row-major matrices, maps and blocks are views already.
  template <class E>
    requires detail::RowMajorArray<E, T>
  constexpr MatrixView(E&& e) : MatrixView(e.data(), Index(e.rows()), Index(e.cols()), Index(e.outerStride())) {}

  /// Deleted rather than absent, so that the compiler's message shows the reason.
  template <class E>
    requires detail::RefusedArray<E, T>
  constexpr MatrixView(E&&) = delete;  // not row-major with contiguous rows, or a temporary that owns its elements

  /// The first element; row i starts at data() + i · stride().
  [[nodiscard]] constexpr T* data() const { return data_; }
  /// Number of rows.
  [[nodiscard]] constexpr Index rows() const { return rows_; }
  /// Number of columns.
  [[nodiscard]] constexpr Index cols() const { return cols_; }
  /// Elements from one row to the next.
  [[nodiscard]] constexpr Index stride() const { return stride_; }
  /// rows · cols.
  [[nodiscard]] constexpr Index size() const { return rows_ * cols_; }
  /// True if there is no element.
  [[nodiscard]] constexpr bool empty() const { return rows_ == 0 || cols_ == 0; }
  /// True if rows follow each other without a gap, so that all elements are one span.
  [[nodiscard]] constexpr bool contiguous() const { return stride_ == cols_ || rows_ <= 1; }

  /// Element (i, j).
  [[nodiscard]] constexpr T& operator()(Index i, Index j) const {
    RUVECTOR_ASSERT(0 <= i && i < rows_ && 0 <= j && j < cols_);
    return data_[i * stride_ + j];
  }
  /// Row i as [cols] elements.
  [[nodiscard]] constexpr std::span<T> row(Index i) const {
    RUVECTOR_ASSERT(0 <= i && i < rows_);
    return {data_ + i * stride_, static_cast<std::size_t>(cols_)};
  }
  /// Rows first … first+count−1.
  [[nodiscard]] constexpr MatrixView rows(Index first, Index count) const {
    RUVECTOR_ASSERT(0 <= first && 0 <= count && count <= rows_ - first);
    return {data_ + first * stride_, count, cols_, stride_};
  }
  /// Columns first … first+count−1: `x.cols(h * width, width)` is head h.
  [[nodiscard]] constexpr MatrixView cols(Index first, Index count) const {
    RUVECTOR_ASSERT(0 <= first && 0 <= count && count <= cols_ - first);
    return {rows_ == 0 ? data_ : data_ + first, rows_, count, stride_};  // no offset to a null pointer
  }

 private:
  T* data_ = nullptr;
  Index rows_ = 0;
  Index cols_ = 0;
  Index stride_ = 0;
};

/// Copies a into b, which may be the same elements but must not overlap otherwise. Throws ShapeError unless both are
/// [rows×cols] alike.
template <class T>
void copy(MatrixView<const std::type_identity_t<T>> a, MatrixView<T> b) {
  check_shape("copy: rows", a.rows(), b.rows());
  check_shape("copy: columns", a.cols(), b.cols());
  for (Index i = 0; i < a.rows(); ++i)
    for (Index j = 0; j < a.cols(); ++j) b(i, j) = a(i, j);
}

}  // namespace ruvector::inline RUVECTOR_ABI
