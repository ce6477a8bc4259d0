// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/simd/arch.hpp"

#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::simd {

namespace detail {

#if !defined(RUVECTOR_SCALAR) && !defined(XSIMD_NO_SUPPORTED_ARCHITECTURE)

/// Swaps the upper right with the lower left squares of side s in the 2s × 2s blocks whose rows a and b are s apart.
template <std::size_t s, class V, std::size_t... k>
[[gnu::always_inline]] inline void exchange_squares(V& a, V& b, std::index_sequence<k...>) {
  constexpr std::size_t width = sizeof...(k);
  const V upper = __builtin_shufflevector(a, b, ((k & s) == 0 ? k : width + k - s)...);
  b = __builtin_shufflevector(a, b, ((k & s) == 0 ? k + s : width + k)...);
  a = upper;
}

// A function and no lambda: one that gcc 12 does not inline sends all registers through memory.
template <std::size_t s, class V, std::size_t width, std::size_t... i>
[[gnu::always_inline]] inline void exchange_all(V (&row)[width], std::index_sequence<i...> all) {
  (((i & s) == 0 ? exchange_squares<s>(row[i], row[i | s], all) : void()), ...);
}

template <std::size_t s, class V, std::size_t width>
[[gnu::always_inline]] inline void transpose_registers(V (&row)[width]) {
  if constexpr (s < width) {
    exchange_all<s>(row, std::make_index_sequence<width>{});
    transpose_registers<2 * s>(row);
  }
}

/// A square of lanes × lanes in registers: log₂ lanes rounds, each of which exchanges squares twice as large (Eklundh
/// 1972).
template <Real T>
[[gnu::always_inline]] inline void transpose_square(Batch<T> (&row)[std::size_t(lanes<T>)]) {
  constexpr auto width = std::size_t(lanes<T>);
  decltype(Batch<T>::pack.data) x[width];
  for (std::size_t i = 0; i < width; ++i) x[i] = row[i].pack.data;
  transpose_registers<1>(x);
  for (std::size_t i = 0; i < width; ++i) row[i] = Batch<T>::wrap(x[i]);
}

#else

template <Real T>
void transpose_square(Batch<T> (&)[1]) {}

#endif

/// A square tile of lanes × lanes, from memory to memory.
template <Real T>
void transpose_tile(const T* from, Index from_stride, T* to, Index to_stride) {
  Batch<T> row[std::size_t(lanes<T>)];
  for (Index i = 0; i < lanes<T>; ++i) row[i] = simd::load(from + i * from_stride);
  transpose_square<T>(row);
  for (Index i = 0; i < lanes<T>; ++i) simd::store(to + i * to_stride, row[i]);
}

}  // namespace detail

/// b = aᵀ: [m×n] → [n×m], O(m n). The two do not overlap. Throws ShapeError where sizes differ.
template <Real T>
void transpose(std::type_identity_t<MatrixView<const T>> a, MatrixView<T> b) {
  check_shape("transpose: rows", a.cols(), b.rows());
  check_shape("transpose: columns", a.rows(), b.cols());
  constexpr Index width = lanes<T>;
  const Index tiled_rows = a.rows() / width * width;
  const Index tiled_cols = a.cols() / width * width;
  for (Index i = 0; i < tiled_rows; i += width)
    for (Index j = 0; j < tiled_cols; j += width)
      detail::transpose_tile(a.data() + i * a.stride() + j, a.stride(), b.data() + j * b.stride() + i, b.stride());
  for (Index i = 0; i < a.rows(); ++i)
    for (Index j = i < tiled_rows ? tiled_cols : 0; j < a.cols(); ++j)
      b.data()[j * b.stride() + i] = a.data()[i * a.stride() + j];
}

}  // namespace ruvector::inline RUVECTOR_ABI::simd
