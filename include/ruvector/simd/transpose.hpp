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

// Where the elements of a register come from that takes some of a and some of b, b's counted behind a's.

/// Within each 16 bytes of `lane` elements: runs of `run` elements of a and b by turns, of their first or second half.
[[nodiscard]] constexpr std::size_t interleaved(std::size_t k, std::size_t lane, std::size_t run, bool second,
                                                std::size_t width) {
  const std::size_t turn = k % lane / run;
  return k / lane * lane + (turn / 2 + (second ? lane / run / 2 : 0)) * run + k % run + (turn % 2 == 0 ? 0 : width);
}
/// Every other 16 bytes of a, then of b.
[[nodiscard]] constexpr std::size_t every_other(std::size_t k, std::size_t lane, bool odd) {
  return (2 * (k / lane) + (odd ? 1 : 0)) * lane + k % lane;
}

template <std::size_t lane, std::size_t run, bool second, class V, std::size_t... k>
[[gnu::always_inline]] inline V interleave(V a, V b, std::index_sequence<k...>) {
  return __builtin_shufflevector(a, b, interleaved(k, lane, run, second, sizeof...(k))...);
}
template <std::size_t lane, bool odd, class V, std::size_t... k>
[[gnu::always_inline]] inline V take_every_other(V a, V b, std::index_sequence<k...>) {
  return __builtin_shufflevector(a, b, every_other(k, lane, odd)...);
}

// Functions and no lambdas: one that gcc 12 does not inline sends all registers through memory.

/// Transposes squares of 16 bytes: after the last round register i has column i % lane of each.
template <std::size_t lane, std::size_t run, class V, std::size_t width, std::size_t... i>
[[gnu::always_inline]] inline void transpose_within(V (&x)[width], std::index_sequence<i...> all) {
  if constexpr (run < lane) {
    V y[width];
    ((y[i] = interleave<lane, run, i % 2 != 0>(x[i / (2 * run) * (2 * run) + i / 2 % run],
                                               x[i / (2 * run) * (2 * run) + i / 2 % run + run], all)),
     ...);
    ((x[i] = y[i]), ...);
    transpose_within<lane, 2 * run>(x, all);
  }
}

/// Transposes the blocks of 16 bytes, of registers `lane` apart.
template <std::size_t lane, std::size_t blocks, class V, std::size_t width, std::size_t... i>
[[gnu::always_inline]] inline void transpose_blocks(V (&x)[width], std::index_sequence<i...> all) {
  if constexpr (blocks < width / lane) {
    constexpr std::size_t half = width / 2;
    V y[width];
    ((y[i] = take_every_other<lane, i >= half>(x[i % half / lane * 2 * lane + i % lane],
                                               x[i % half / lane * 2 * lane + i % lane + lane], all)),
     ...);
    ((x[i] = y[i]), ...);
    transpose_blocks<lane, 2 * blocks>(x, all);
  }
}

/// A square of lanes × lanes in registers: log₂ lanes rounds. First within 16 bytes, then these as blocks (Eklundh
/// 1972), so that every step is one instruction without a register of indices: exchanging squares from the smallest to
/// the largest, which needs them, took twice as long.
template <Real T>
[[gnu::always_inline]] inline void transpose_square(Batch<T> (&row)[std::size_t(lanes<T>)]) {
  constexpr auto width = std::size_t(lanes<T>), lane = 16 / sizeof(T);
  static_assert(width % lane == 0);
  decltype(Batch<T>::pack.data) x[width];
  for (std::size_t i = 0; i < width; ++i) x[i] = row[i].pack.data;
  transpose_within<lane, 1>(x, std::make_index_sequence<width>{});
  transpose_blocks<lane, 1>(x, std::make_index_sequence<width>{});
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
