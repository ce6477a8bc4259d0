// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/transpose.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

// One packed, register-blocked product for everything: attention tiles, Linear, batched search. Element (i, j) is one
// chain
//
//   c = fma(a_i0, b_0j, c),  c = fma(a_i1, b_1j, c),  …
//
// in index order, whatever the shapes and blocks, so that a row of the result depends on that row alone, bit for bit.

#if defined(__clang__)
#define RUVECTOR_UNROLL _Pragma("clang loop unroll(full)")
#else
#define RUVECTOR_UNROLL _Pragma("GCC unroll 16")
#endif

namespace ruvector::inline RUVECTOR_ABI::simd {

/// What a product does with the matrix it writes to.
enum class Product {
  assign,      ///< c = a b
  accumulate,  ///< c += a b, continuing the chain from c
};

namespace detail {

#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int vector_registers = 32;
#else
inline constexpr int vector_registers = 16;
#endif

// A block of 6 × 4 accumulators leaves room in 32 registers for a row of B and a broadcast; 6 × 2 in 16.
inline constexpr int product_rows = 6;
inline constexpr int product_vectors = vector_registers >= 32 ? 4 : 2;

/// Columns of a panel.
template <Real T>
inline constexpr Index product_width = product_vectors* lanes<T>;

/// Steps of the sum that a packed panel holds: 192 × 64 floats fill a 48 KiB L1 cache.
template <Real T>
inline constexpr Index product_depth = Index(768 / sizeof(T));

/// Elements of B packed at a time: a quarter of a 1 MiB L2 cache.
template <Real T>
inline constexpr Index product_packed = Index((1 << 18) / sizeof(T));

/// Rows that meet one panel before the next is taken: their part of A stays in L2, their part of C within reach of the
/// TLB.
inline constexpr Index product_row_chunk = 96;

/// The left factor: element (i, p) is data[i · row + p · step], so that a transposed one is the same thing.
template <Real T>
struct LeftFactor {
  const T* data;
  Index row, step;
};

/// The right factor: step p is vectors[p · stride …], `cols` of them, in memory padded to whole registers or not.
template <Real T>
struct RightFactor {
  const T* data;
  Index stride;
};

/// Where the last register of a row of B and C is not whole.
enum class Edge {
  none,    ///< nowhere
  in_c,    ///< in C: B is readable up to whole registers
  in_both  ///< in both
};

/// Whether the right factor stays in a cache, or comes from memory to be read once: then it is asked for in time.
enum class Reads { again, once };
/// Rows between what is asked for and what is used. Of c = a bᵀ as many as two transposed squares have, into the L1
/// cache; of c = a b into L2. On a quiet machine 85 and 96 % of the streaming bandwidth; 16 rows into L1, asked for in
/// the order in which they are used, gave 71 and 81, and nothing asked for 55 and 95.
inline constexpr Index transposed_rows_ahead = 32, rows_ahead = 64;

/// Asks for what lies n elements after p, where memory may have ended: no pointer may be formed there, a number may.
template <int locality, Real T>
[[gnu::always_inline]] inline void ask_for(const T* p, Index n) {
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(p) + std::uintptr_t(n) * sizeof(T);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): only asked for
  __builtin_prefetch(reinterpret_cast<const void*>(address), 0, locality);
}

/// A block of [rows × cols] of the product, cols ≤ vectors · lanes. Not inlined, and with plain arguments, which come
/// in registers: factors passed as they are cost gcc 12 a tenth of the speed at a depth of 64.
template <int rows, int vectors, Edge edge, Reads reads, Real T>
[[gnu::noinline]] void product_block(const T* left, Index left_row, Index left_step, const T* right, Index right_stride,
                                     Index depth, T* c, Index c_stride, Index cols, Product mode) {
  constexpr Index width = lanes<T>;
  const Index last = cols - (vectors - 1) * width;  // columns in the last register
  const auto load = [&](const T* p, bool whole) { return whole ? simd::load(p) : simd::load_partial(p, last); };
  Batch<T> sum[rows][vectors];
  if (mode == Product::assign) {
    RUVECTOR_UNROLL for (int i = 0; i < rows; ++i) {
      RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) sum[i][v] = Batch<T>(T(0));
    }
  } else {
    RUVECTOR_UNROLL for (int i = 0; i < rows; ++i) {
      RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) sum[i][v] =
          load(c + i * c_stride + v * width, edge == Edge::none || v + 1 < vectors);
    }
  }
  for (Index p = 0; p < depth; ++p) {
    Batch<T> step[vectors];
    RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) step[v] =
        load(right + v * width, edge != Edge::in_both || v + 1 < vectors);
    if constexpr (reads == Reads::once)
      RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) ask_for<2>(right + v * width, rows_ahead * right_stride);
    RUVECTOR_UNROLL for (int i = 0; i < rows; ++i) {
      const Batch<T> factor(left[i * left_row]);
      RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) sum[i][v] = simd::fma(factor, step[v], sum[i][v]);
    }
    left += left_step;
    right += right_stride;
  }
  RUVECTOR_UNROLL for (int i = 0; i < rows; ++i) {
    T* to = c + i * c_stride;
    RUVECTOR_UNROLL for (int v = 0; v + 1 < vectors; ++v) simd::store(to + v * width, sum[i][v]);
    if (edge == Edge::none)  // a masked store of a full register costs ten times a plain one on Zen 5
      simd::store(to + (vectors - 1) * width, sum[i][vectors - 1]);
    else
      simd::store_partial(to + (vectors - 1) * width, last, sum[i][vectors - 1]);
  }
}

/// All rows of c, at most vectors · lanes wide.
template <int vectors, Edge edge, Real T>
void product_rows_of(LeftFactor<T> a, RightFactor<T> b, Index depth, MatrixView<T> c, Product mode) {
  Index i = 0;
  const auto block = [&]<int rows>(std::integral_constant<int, rows>) {
    product_block<rows, vectors, edge, Reads::again, T>(a.data + i * a.row, a.row, a.step, b.data, b.stride, depth,
                                                        c.data() + i * c.stride(), c.stride(), c.cols(), mode);
  };
  for (; i + product_rows <= c.rows(); i += product_rows) block(std::integral_constant<int, product_rows>{});
  static_assert(product_rows == 6);
  switch (c.rows() - i) {
    case 1:
      return block(std::integral_constant<int, 1>{});
    case 2:
      return block(std::integral_constant<int, 2>{});
    case 3:
      return block(std::integral_constant<int, 3>{});
    case 4:
      return block(std::integral_constant<int, 4>{});
    case 5:
      return block(std::integral_constant<int, 5>{});
    default:
      return;
  }
}

/// c (+)= a b for a panel: c is at most `product_width` wide. `padded`: b is readable up to whole registers.
template <bool padded, Real T>
void product_panel(LeftFactor<T> a, RightFactor<T> b, Index depth, MatrixView<T> c, Product mode) {
  const auto panel = [&]<int vectors>(std::integral_constant<int, vectors>) {
    if (c.cols() % lanes<T> == 0)
      product_rows_of<vectors, Edge::none>(a, b, depth, c, mode);
    else
      product_rows_of<vectors, padded ? Edge::in_c : Edge::in_both>(a, b, depth, c, mode);
  };
  switch ((c.cols() + lanes<T> - 1) / lanes<T>) {
    case 0:
      return;
    case 1:
      return panel(std::integral_constant<int, 1>{});
    case 2:
      return panel(std::integral_constant<int, 2>{});
    case 3:
      if constexpr (product_vectors > 2) return panel(std::integral_constant<int, 3>{});
      [[fallthrough]];
    default:
      return panel(std::integral_constant<int, product_vectors>{});
  }
}

/// c (+)= a b for a right factor that lies in memory row by row, without a copy of it: for few rows of a, or a flat b.
template <Real T>
void product_in_place(LeftFactor<T> a, MatrixView<const T> b, MatrixView<T> c, Product mode) {
  for (Index j = 0; j < c.cols(); j += product_width<T>) {
    const MatrixView<T> panel = c.cols(j, std::min(product_width<T>, c.cols() - j));
    product_panel<false>(a, RightFactor<T>{b.data() + j, b.stride()}, b.rows(), panel, mode);
  }
}

/// Most rows of a for which b, read once, costs less as it lies than packed.
inline constexpr Index few_rows = 4;

/// c (+)= a b for few rows of a, where b comes from memory: for one row wide panels, which pass by in longer pieces.
template <int rows, Real T>
void product_once_of(LeftFactor<T> a, MatrixView<const T> b, MatrixView<T> c, Product mode) {
  constexpr int vectors = (rows == 1 ? 2 : 1) * product_vectors;
  constexpr Index width = vectors * lanes<T>;
  Index j = 0;
  for (; j + width <= c.cols(); j += width)
    product_block<rows, vectors, Edge::none, Reads::once, T>(a.data, a.row, a.step, b.data() + j, b.stride(), b.rows(),
                                                             c.data() + j, c.stride(), width, mode);
  if (j < c.cols()) product_in_place<T>(a, b.cols(j, b.cols() - j), c.cols(j, c.cols() - j), mode);
}

/// c = a bᵀ for few rows of a and whole pairs of registers of c, where b comes from memory: squares of it are
/// transposed in registers. Two of them at a time, since one would wait for its chain of sums.
template <int rows, Real T>
[[gnu::noinline]] void product_once_transposed_of(MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> c) {
  constexpr Index width = lanes<T>;
  constexpr int squares = 2;
  const Index depth = a.cols(), stride = b.stride();
  // What is asked for next: rows that lie one behind the other from their first line to the last.
  const Index next_line = stride == depth ? width : stride, next_square = stride == depth ? width : 1;
  for (Index j = 0; j < c.cols(); j += squares * width) {
    Batch<T> sum[squares][rows], step[std::size_t(width)];
    for (auto& of_square : sum)
      for (Batch<T>& x : of_square) x = Batch<T>(T(0));
    const T* right = b.data() + j * stride;
    const auto add = [&](int square, Index p, Index s) {
      RUVECTOR_UNROLL for (int i = 0; i < rows; ++i) sum[square][i] =
          simd::fma(Batch<T>(a.data()[i * a.stride() + p + s]), step[s], sum[square][i]);
    };
    Index p = 0;
    for (; p + width <= depth; p += width) RUVECTOR_UNROLL for (int square = 0; square < squares; ++square) {
        const T* from = right + square * width * stride;
        RUVECTOR_UNROLL for (Index s = 0; s < width; ++s) {
          step[s] = simd::load(from + s * stride + p);
          ask_for<3>(from, transposed_rows_ahead * stride + s * next_line + p * next_square);
        }
        transpose_square<T>(step);
        RUVECTOR_UNROLL for (Index s = 0; s < width; ++s) add(square, p, s);
      }
    for (int square = 0; square < squares && p < depth; ++square) {
      const T* from = right + square * width * stride + p;
      for (Index s = 0; s < width; ++s) step[s] = simd::load_partial(from + s * stride, depth - p);
      transpose_square<T>(step);
      for (Index s = 0; s < depth - p; ++s) add(square, p, s);
    }
    RUVECTOR_UNROLL for (int square = 0; square < squares; ++square) {
      RUVECTOR_UNROLL for (int i = 0; i < rows; ++i)
          simd::store(c.data() + i * c.stride() + j + square * width, sum[square][i]);
    }
  }
}

/// Calls f(integral constant) with a number of rows from 1 to few_rows.
template <class F>
void with_few_rows(Index rows, F&& f) {
  static_assert(few_rows == 4);
  switch (rows) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    default:
      return f(std::integral_constant<int, 4>{});
  }
}

/// c (+)= a b with a of 1 to few_rows rows, and b read once from memory.
template <Real T>
void product_once(LeftFactor<T> a, MatrixView<const T> b, MatrixView<T> c, Product mode) {
  with_few_rows(c.rows(), [&](auto rows) { product_once_of<rows.value, T>(a, b, c, mode); });
}

/// c = a bᵀ in the same way; c.cols() is a multiple of twice the lanes.
template <Real T>
void product_once_transposed(MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> c) {
  with_few_rows(c.rows(), [&](auto rows) { product_once_transposed_of<rows.value, T>(a, b, c); });
}

/// Copies rows first … first+depth−1 of b's columns into a panel `width` wide, zero where there is no column.
template <Real T>
void pack_panel(MatrixView<const T> b, Index first, Index depth, Index column, Index cols, Index width, T* panel) {
  for (Index p = 0; p < depth; ++p) {
    const T* from = b.data() + (first + p) * b.stride() + column;
    T* to = panel + p * width;
    std::copy_n(from, cols, to);
    std::fill_n(to + cols, width - cols, T(0));
  }
}

/// The same from bᵀ: columns of the product are rows of b.
template <Real T>
void pack_panel_transposed(MatrixView<const T> b, Index first, Index depth, Index column, Index cols, Index width,
                           T* panel) {
  transpose<T>(b.rows(column, cols).cols(first, depth), MatrixView<T>(panel, depth, cols, width));
  if (cols < width)
    for (Index p = 0; p < depth; ++p) std::fill_n(panel + p * width + cols, width - cols, T(0));
}

template <Real T, class Pack>
void product(LeftFactor<T> a, Index depth, MatrixView<T> c, Product mode, Workspace& workspace, Pack&& pack) {
  constexpr Index width = product_width<T>;
  if (depth == 0 && mode == Product::assign)
    for (Index i = 0; i < c.rows(); ++i) std::ranges::fill(c.row(i), T(0));
  if (depth == 0 || c.empty()) return;
  // Steps of the sum a panel holds, and panels packed together.
  const Index steps_at_once = std::min(depth, product_depth<T>);
  const Index cols_at_once =
      std::min((c.cols() + width - 1) / width, std::max(Index(1), product_packed<T> / (steps_at_once * width))) * width;
  auto frame = workspace.frame();
  T* packed = frame.span<T>(cols_at_once * steps_at_once).data();
  for (Index j = 0; j < c.cols(); j += cols_at_once) {
    const Index block_cols = std::min(cols_at_once, c.cols() - j);
    for (Index p = 0; p < depth; p += steps_at_once) {
      const Index steps = std::min(steps_at_once, depth - p);
      const Product block_mode = p == 0 ? mode : Product::accumulate;
      for (Index q = 0; q < block_cols; q += width) {
        const Index cols = std::min(width, block_cols - q);
        pack(p, steps, j + q, cols, (cols + lanes<T> - 1) / lanes<T> * lanes<T>, packed + q * steps_at_once);
      }
      for (Index i = 0; i < c.rows(); i += product_row_chunk) {
        const Index rows = std::min(product_row_chunk, c.rows() - i);
        const LeftFactor<T> left{a.data + i * a.row + p * a.step, a.row, a.step};
        for (Index q = 0; q < block_cols; q += width) {
          const Index cols = std::min(width, block_cols - q);
          const RightFactor<T> right{packed + q * steps_at_once, (cols + lanes<T> - 1) / lanes<T> * lanes<T>};
          product_panel<true>(left, right, steps, c.rows(i, rows).cols(j + q, cols), block_mode);
        }
      }
    }
  }
}

/// product() for a right factor of rows in memory. One that is a single panel wide needs no packing.
template <Real T>
void product_of_rows(LeftFactor<T> a, MatrixView<const T> b, MatrixView<T> c, Product mode, Workspace& workspace) {
  if (c.cols() > product_width<T> || b.rows() == 0)
    return product<T>(a, b.rows(), c, mode, workspace,
                      [&](Index p, Index steps, Index j, Index cols, Index width, T* panel) {
                        pack_panel<T>(b, p, steps, j, cols, width, panel);
                      });
  for (Index p = 0; p < b.rows(); p += product_depth<T>)
    product_in_place<T>({a.data + p * a.step, a.row, a.step}, b.rows(p, std::min(product_depth<T>, b.rows() - p)), c,
                        p == 0 ? mode : Product::accumulate);
}

}  // namespace detail

/// c = a b: [m×k] [k×n] → [m×n], O(m n k). Throws ShapeError where sizes differ.
template <Real T>
void gemm(std::type_identity_t<MatrixView<const T>> a, std::type_identity_t<MatrixView<const T>> b, MatrixView<T> c,
          Workspace& workspace, Product mode = Product::assign) {
  check_shape("gemm: rows of a", c.rows(), a.rows());
  check_shape("gemm: rows of b", a.cols(), b.rows());
  check_shape("gemm: columns of b", c.cols(), b.cols());
  detail::product_of_rows<T>({a.data(), a.stride(), 1}, b, c, mode, workspace);
}

/// c = a bᵀ: [m×k] [n×k] → [m×n], O(m n k). Scores of queries against keys, a linear layer. Throws ShapeError where
/// sizes differ.
template <Real T>
void gemm_transposed(std::type_identity_t<MatrixView<const T>> a, std::type_identity_t<MatrixView<const T>> b,
                     MatrixView<T> c, Workspace& workspace, Product mode = Product::assign) {
  check_shape("gemm_transposed: rows of a", c.rows(), a.rows());
  check_shape("gemm_transposed: columns of b", a.cols(), b.cols());
  check_shape("gemm_transposed: rows of b", c.cols(), b.rows());
  detail::product<T>({a.data(), a.stride(), 1}, a.cols(), c, mode, workspace,
                     [&](Index p, Index steps, Index j, Index cols, Index width, T* panel) {
                       detail::pack_panel_transposed<T>(b, p, steps, j, cols, width, panel);
                     });
}

/// c = aᵀ b: [k×m] [k×n] → [m×n], O(m n k). Gradients of weights. Throws ShapeError where sizes differ.
template <Real T>
void gemm_left_transposed(std::type_identity_t<MatrixView<const T>> a, std::type_identity_t<MatrixView<const T>> b,
                          MatrixView<T> c, Workspace& workspace, Product mode = Product::assign) {
  check_shape("gemm_left_transposed: columns of a", c.rows(), a.cols());
  check_shape("gemm_left_transposed: rows of b", a.rows(), b.rows());
  check_shape("gemm_left_transposed: columns of b", c.cols(), b.cols());
  detail::product_of_rows<T>({a.data(), 1, a.stride()}, b, c, mode, workspace);
}

}  // namespace ruvector::inline RUVECTOR_ABI::simd
