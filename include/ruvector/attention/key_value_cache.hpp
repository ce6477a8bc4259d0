// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"

#include <algorithm>
#include <span>
#include <string>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// Keys and values that grow: what a decoder, a search or a graph looks at again and again. Memory doubles, so that
/// appending is O(d + v) on average and allocates rarely.
template <Real T>
class KeyValueCache {
 public:
  /// Keys.
  [[nodiscard]] Index rows() const { return rows_; }
  /// [rows×d].
  [[nodiscard]] MatrixView<const T> key() const { return key_.view().rows(0, rows_); }
  /// [rows×v].
  [[nodiscard]] MatrixView<const T> value() const { return value_.view().rows(0, rows_); }

  /// Forgets the rows and sets their widths; keeps the memory where the widths stay.
  void clear(Index key_dim, Index value_dim) {
    rows_ = 0;
    if (key_.cols() != key_dim) key_ = Matrix<T>(0, key_dim);
    if (value_.cols() != value_dim) value_ = Matrix<T>(0, value_dim);
  }

  /// Makes room for this many rows in all.
  void reserve(Index rows) {
    grow(key_, rows);
    grow(value_, rows);
  }

  /// `count` more rows, whose contents the caller writes through `new_key`, `new_value`.
  void extend(Index count) {
    if (rows_ + count > std::min(key_.rows(), value_.rows())) reserve(std::max(rows_ + count, 2 * rows_));
    rows_ += count;
  }
  /// The last `count` rows, to be written.
  ///@{
  [[nodiscard]] MatrixView<T> new_key(Index count) { return key_.view().rows(rows_ - count, count); }
  [[nodiscard]] MatrixView<T> new_value(Index count) { return value_.view().rows(rows_ - count, count); }
  ///@}

  /// Adds keys [c×d] and values [c×v]. Throws ShapeError, and changes nothing, where the sizes differ.
  void append(MatrixView<const T> key, MatrixView<const T> value) {
    check_shape("KeyValueCache: columns of key", key_.cols(), key.cols());
    check_shape("KeyValueCache: columns of value", value_.cols(), value.cols());
    check_shape("KeyValueCache: rows of value", key.rows(), value.rows());
    extend(key.rows());
    copy(key, new_key(key.rows()));
    copy(value, new_value(key.rows()));
  }

  /// Becomes rows ids[0], ids[1], … of another one. Throws ShapeError, and changes nothing, for an id out of range.
  void select(const KeyValueCache& from, std::span<const Index> ids) {
    for (const Index id : ids)
      if (id < 0 || id >= from.rows()) [[unlikely]]
        throw_shape_error("KeyValueCache: id", "0 to " + std::to_string(from.rows() - 1), std::to_string(id));
    clear(from.key_.cols(), from.value_.cols());
    extend(Index(ids.size()));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      std::ranges::copy(from.key_.row(ids[i]), key_.row(Index(i)).begin());
      std::ranges::copy(from.value_.row(ids[i]), value_.row(Index(i)).begin());
    }
  }

 private:
  static void copy(MatrixView<const T> from, MatrixView<T> to) {
    for (Index i = 0; i < from.rows(); ++i) std::ranges::copy(from.row(i), to.row(i).begin());
  }
  void grow(Matrix<T>& matrix, Index rows) {
    if (matrix.rows() >= rows) return;
    Matrix<T> larger(rows, matrix.cols());
    copy(matrix.view().rows(0, rows_), larger.view().rows(0, rows_));
    matrix = std::move(larger);
  }

  Matrix<T> key_, value_;
  Index rows_ = 0;
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
