// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/huge_pages.hpp"
#include "ruvector/core/view.hpp"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI {

namespace detail {

inline constexpr std::size_t cache_line = 64;  // also the widest SIMD register

struct AlignedDelete {
  void operator()(void* p) const noexcept { ::operator delete (p, std::align_val_t{cache_line}); }
};

/// Uninitialised memory for n elements of a trivial type on a cache line's start; null for n = 0.
template <class T>
[[nodiscard]] std::unique_ptr<T[], AlignedDelete> aligned_array(Index n) {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);
  if (n == 0) return nullptr;
  const auto bytes = static_cast<std::size_t>(checked_size("aligned_array", n, 1, Index(sizeof(T)))) * sizeof(T);
  void* block = ::operator new (bytes, std::align_val_t{cache_line});
  advise_huge_pages(block, bytes);
  return std::unique_ptr<T[], AlignedDelete>(static_cast<T*>(block));
}

}  // namespace detail

/// An owning row-major [rows×cols] matrix, contiguous, 64-byte aligned, with value semantics. New elements are zero.
/// Throws ShapeError for negative or impossible sizes. For algebra, `eigen(x)` of core/eigen.hpp maps it without a
/// copy.
template <class T>
class Matrix {
 public:
  /// The type of an element.
  using Scalar = T;

  /// [0×0].
  Matrix() = default;
  /// [rows×cols] elements equal to `fill`.
  Matrix(Index rows, Index cols, T fill = T{})
      : data_(detail::aligned_array<T>(checked_size("Matrix", rows, cols, Index(sizeof(T))))),
        rows_(rows),
        cols_(cols) {
    std::fill_n(data_.get(), size(), fill);
  }
  /// Copies a view: explicit, since copies should be seen.
  explicit Matrix(MatrixView<const T> view)
      : data_(detail::aligned_array<T>(checked_size("Matrix", view.rows(), view.cols(), Index(sizeof(T))))),
        rows_(view.rows()),
        cols_(view.cols()) {
    copy(view, MatrixView<T>(*this));
  }
  /// Copies the elements.
  Matrix(const Matrix& other) : Matrix(MatrixView<const T>(other)) {}
  /// Takes over the memory; the other is left [0×0].
  Matrix(Matrix&& other) noexcept
      : data_(std::move(other.data_)), rows_(std::exchange(other.rows_, 0)), cols_(std::exchange(other.cols_, 0)) {}
  /// Takes over the other's shape; keeps its own memory where the sizes agree. Strong exception guarantee.
  Matrix& operator=(const Matrix& other) {
    if (this == &other) return *this;
    if (size() != other.size()) return *this = Matrix(other);
    std::copy_n(other.data(), other.size(), data());
    rows_ = other.rows_;
    cols_ = other.cols_;
    return *this;
  }
  /// Takes over the memory; the other is left [0×0].
  Matrix& operator=(Matrix&& other) noexcept {
    data_ = std::move(other.data_);
    rows_ = std::exchange(other.rows_, 0);
    cols_ = std::exchange(other.cols_, 0);
    return *this;
  }
  ~Matrix() = default;

  /// Implicit: a matrix is passed where a view is asked for, as long as it outlives the view.
  ///@{
  operator MatrixView<T>() & { return {data(), rows_, cols_}; }
  operator MatrixView<const T>() const& { return {data(), rows_, cols_}; }
  operator MatrixView<T>() && = delete;             // the view would outlive the matrix
  operator MatrixView<const T>() const&& = delete;  // the view would outlive the matrix
  ///@}

  /// The first element; null if there is none.
  ///@{
  [[nodiscard]] T* data() { return data_.get(); }
  [[nodiscard]] const T* data() const { return data_.get(); }
  ///@}
  /// Number of rows.
  [[nodiscard]] Index rows() const { return rows_; }
  /// Number of columns.
  [[nodiscard]] Index cols() const { return cols_; }
  /// rows · cols.
  [[nodiscard]] Index size() const { return rows_ * cols_; }
  /// True if there is no element.
  [[nodiscard]] bool empty() const { return size() == 0; }

  /// The whole as a view, for its `rows(first, count)` and `cols(first, count)`.
  ///@{
  [[nodiscard]] MatrixView<T> view() & { return *this; }
  [[nodiscard]] MatrixView<const T> view() const& { return *this; }
  ///@}
  /// Element (i, j).
  ///@{
  [[nodiscard]] T& operator()(Index i, Index j) { return view()(i, j); }
  [[nodiscard]] const T& operator()(Index i, Index j) const { return view()(i, j); }
  ///@}
  /// Row i as [cols] elements.
  ///@{
  [[nodiscard]] std::span<T> row(Index i) { return view().row(i); }
  [[nodiscard]] std::span<const T> row(Index i) const { return view().row(i); }
  ///@}
  /// All elements, row by row.
  ///@{
  [[nodiscard]] std::span<T> span() { return {data(), static_cast<std::size_t>(size())}; }
  [[nodiscard]] std::span<const T> span() const { return {data(), static_cast<std::size_t>(size())}; }
  ///@}

 private:
  std::unique_ptr<T[], detail::AlignedDelete> data_;
  Index rows_ = 0;
  Index cols_ = 0;
};

/// An owning vector of [n] elements, 64-byte aligned, with value semantics. New elements are zero. A contiguous range,
/// so it converts to `std::span` by itself.
template <class T>
class Vector {
 public:
  /// The type of an element.
  using Scalar = T;

  /// No element.
  Vector() = default;
  /// [size] elements equal to `fill`.
  explicit Vector(Index size, T fill = T{}) : elements_(1, size, fill) {}
  /// Copies a span: explicit, since copies should be seen.
  explicit Vector(std::span<const T> values)
      : elements_(MatrixView<const T>(values.data(), 1, static_cast<Index>(values.size()))) {}

  /// The first element; null if there is none.
  ///@{
  [[nodiscard]] T* data() { return elements_.data(); }
  [[nodiscard]] const T* data() const { return elements_.data(); }
  ///@}
  /// Number of elements.
  [[nodiscard]] Index size() const { return elements_.size(); }
  /// True if there is no element.
  [[nodiscard]] bool empty() const { return elements_.empty(); }
  /// Element i.
  ///@{
  [[nodiscard]] T& operator[](Index i) { return elements_(0, i); }
  [[nodiscard]] const T& operator[](Index i) const { return elements_(0, i); }
  ///@}
  /// The elements as a range.
  ///@{
  [[nodiscard]] T* begin() { return data(); }
  [[nodiscard]] T* end() { return data() + size(); }
  [[nodiscard]] const T* begin() const { return data(); }
  [[nodiscard]] const T* end() const { return data() + size(); }
  [[nodiscard]] std::span<T> span() { return elements_.span(); }
  [[nodiscard]] std::span<const T> span() const { return elements_.span(); }
  ///@}

 private:
  Matrix<T> elements_;
};

/// Gives x this shape. Where it has it, memory and elements stay as they are; otherwise all elements are new zeros.
/// Throws ShapeError; x is unchanged then, as after std::bad_alloc, so each of several is asked for its own shape.
///@{
template <class T>
void set_shape(Matrix<T>& x, Index rows, Index cols) {
  if (x.rows() != rows || x.cols() != cols) x = Matrix<T>(rows, cols);
}
template <class T>
void set_shape(Vector<T>& x, Index size) {
  if (x.size() != size) x = Vector<T>(size);
}
///@}

}  // namespace ruvector::inline RUVECTOR_ABI
