// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/convert.hpp"
#include "ruvector/simd/transpose.hpp"

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
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

/// What comes from memory to be read once, and is asked for in time: nothing (all stays in a cache), the left factor
/// (of a product of many rows with one panel, a fifth slower without), the right one.
enum class Reads { again, left_once, once };
/// Rows between what is asked for and what is used. Of c = a bᵀ as many as two transposed squares have, past the L2
/// cache (into it too: 83 %); of c = a b into L2. On a quiet machine 89 and 96 % of the streaming bandwidth; 16 rows,
/// asked for in the order in which they are used, gave 71 and 81, and nothing asked for 55 and 95.
inline constexpr Index transposed_rows_ahead = 32, rows_ahead = 64;

/// Asks for what lies n elements after p, where memory may have ended: no pointer may be formed there, a number may.
template <int locality, class T>
[[gnu::always_inline]] inline void ask_for(const T* p, Index n) {
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(p) + std::uintptr_t(n) * sizeof(T);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): only asked for
  __builtin_prefetch(reinterpret_cast<const void*>(address), 0, locality);
}

/// p += n where memory may have ended. The compiler does not see that it is a sum: gcc 12 keeps the multiples of a
/// stride in memory else, and reads them again for each row, which took a third of the time.
template <class T>
[[gnu::always_inline]] inline void add_steps(const T*& p, Index n) {
  std::uintptr_t address = reinterpret_cast<std::uintptr_t>(p) + std::uintptr_t(n) * sizeof(T);
  asm("" : "+r"(address));
  p = reinterpret_cast<const T*>(address);  // NOLINT(performance-no-int-to-ptr): see above
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
  const auto add_step = [&] {
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
  };
  if constexpr (reads == Reads::left_once) {
    constexpr Index line = Index(64 / sizeof(T));
    for (Index p = 0; p < depth;) {  // a line at a time of the rows of the next block
      RUVECTOR_UNROLL for (int i = 0; i < rows; ++i) ask_for<3>(left, (rows + i) * left_row);
      for (const Index end = std::min(depth, p + line); p < end; ++p) add_step();
    }
  } else {
    for (Index p = 0; p < depth; ++p) add_step();
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

/// All rows of c, at most vectors · lanes wide. `left_once`: the left factor may come from memory, step by step.
template <int vectors, Edge edge, Real T>
void product_rows_of(LeftFactor<T> a, RightFactor<T> b, Index depth, MatrixView<T> c, Product mode, bool left_once) {
  Index i = 0;
  const auto block = [&]<int rows, Reads reads = Reads::again>(std::integral_constant<int, rows>) {
    product_block<rows, vectors, edge, reads, T>(a.data + i * a.row, a.row, a.step, b.data, b.stride, depth,
                                                 c.data() + i * c.stride(), c.stride(), c.cols(), mode);
  };
  if constexpr (vectors == product_vectors && edge == Edge::none) {
    for (; left_once && i + product_rows <= c.rows(); i += product_rows)
      block.template operator()<product_rows, Reads::left_once>({});
  }
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
void product_panel(LeftFactor<T> a, RightFactor<T> b, Index depth, MatrixView<T> c, Product mode,
                   bool left_once = false) {
  const auto panel = [&]<int vectors>(std::integral_constant<int, vectors>) {
    if (c.cols() % lanes<T> == 0)
      product_rows_of<vectors, Edge::none>(a, b, depth, c, mode, left_once);
    else
      product_rows_of<vectors, padded ? Edge::in_c : Edge::in_both>(a, b, depth, c, mode, left_once);
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

/// Of numbers stored in fewer bits, as many as fill the word of a T.
template <Real T, class S>
inline constexpr int stored_parts = int(sizeof(T) / sizeof(S));

/// Byte `part` of each word as a number.
#if !defined(RUVECTOR_SCALAR) && !defined(XSIMD_NO_SUPPORTED_ARCHITECTURE)
template <int part>
[[gnu::always_inline]] inline Batch<float> signed_byte(Batch<float> words) {
  using Integers [[gnu::vector_size(sizeof(Batch<float>))]] = std::int32_t;
  using Floats = decltype(words.pack.data);
  const auto bits = std::bit_cast<Integers>(words.pack.data);
  return Batch<float>::wrap(Floats(__builtin_convertvector((bits << (24 - 8 * part)) >> 24, Floats)));
}
#else
template <int part>
Batch<float> signed_byte(Batch<float> words) {
  return static_cast<float>(static_cast<std::int8_t>((to_bits(words).pack >> (8 * part)) & 0xffu));
}
#endif

/// Number `part` of the words in which numbers of type S are stored side by side.
template <class S, int part, Real T>
[[gnu::always_inline]] inline Batch<T> unpack(Batch<T> words) {
  if constexpr (std::same_as<S, T>) {
    return words;
  } else {
    static_assert(std::same_as<T, float> && std::endian::native == std::endian::little);
    const Words<float> bits = to_bits(words);
    if constexpr (std::same_as<S, bfloat16>) {
      return from_bits<float>(part == 0 ? bits << 16 : bits & 0xffff0000u);
    } else if constexpr (std::same_as<S, float16>) {  // as float_of_float16
      const Words<float> half = part == 0 ? bits << 16 : bits & 0xffff0000u, magnitude = (half & 0x7fff0000u) >> 3;
      const Batch<float> scaled = from_bits<float>(magnitude) * Batch<float>(0x1p112f);
      const Batch<float> special = from_bits<float>(magnitude | 0x7f800000u);
      const Batch<float> value = select(scaled >= Batch<float>(0x1p16f), special, scaled);
      return from_bits<float>(to_bits(value) | (half & 0x80000000u));
    } else {
      static_assert(std::same_as<S, std::int8_t>);
      return signed_byte<part>(words);
    }
  }
}

/// The words at p.
template <class S, Real T>
[[gnu::always_inline]] inline Batch<T> load_words(const S* p) {
  if constexpr (std::same_as<S, T>) {
    return simd::load(p);
  } else {
    Batch<T> words;
    std::memcpy(&words.pack, p, sizeof words);
    return words;
  }
}
/// The words of `count` numbers at p, then zeros.
template <class S, Real T>
[[nodiscard]] Batch<T> load_words_partial(const S* p, Index count) {
  if constexpr (std::same_as<S, T>) {
    return simd::load_partial(p, count);
  } else {
    S padded[sizeof(Batch<T>) / sizeof(S)] = {};
    std::memcpy(padded, p, std::size_t(count) * sizeof(S));
    return load_words<S, T>(padded);
  }
}

/// Columns of which product_once_transposed takes whole multiples.
template <Real T, class S>
inline constexpr Index squares_at_once = (std::same_as<S, T> ? 2 : 4) * lanes<T>;

/// c = a bᵀ for few rows of a and whole multiples of squares of c, where b comes from memory, perhaps stored in fewer
/// bits, perhaps with a factor a row (`scale`, or null): squares of it are transposed in registers. Two of them at a
/// time, since one would wait for its chain of sums; four where that is still too few to keep up with memory.
template <int rows, Real T, class S>
[[gnu::noinline]] void product_once_transposed_of(MatrixView<const T> a, MatrixView<const S> b, const T* scale,
                                                  MatrixView<T> c, Product mode) {
  constexpr Index width = lanes<T>, line = width * stored_parts<T, S>;
  constexpr int parts = stored_parts<T, S>, squares = rows == 1 && parts > 1 ? 4 : 2;
  constexpr Index in_step = std::min(width, Index(4));  // rows that one pointer reaches
  const Index depth = a.cols(), stride = b.stride();
  // What is asked for next: rows that lie one behind the other from their first line to the last.
  const Index next_line = stride == depth ? line : stride, next_square = stride == depth ? width : 1;
  for (Index j = 0; j < c.cols(); j += squares * width) {
    Batch<T> sum[squares][rows], step[squares][std::size_t(width)];
    RUVECTOR_UNROLL for (int square = 0; square < squares; ++square) {
      RUVECTOR_UNROLL for (int i = 0; i < rows; ++i) sum[square][i] =
          mode == Product::assign ? Batch<T>(T(0)) : simd::load(c.data() + i * c.stride() + j + square * width);
    }
    const S* right = b.data() + j * stride;
    const auto add = [&]<int part>(Index p, Index s, std::integral_constant<int, part>) {
      RUVECTOR_UNROLL for (int square = 0; square < squares; ++square) {
        const Batch<T> x = unpack<S, part>(step[square][s]);
        RUVECTOR_UNROLL for (int i = 0; i < rows; ++i) sum[square][i] =
            simd::fma(Batch<T>(a.data()[i * a.stride() + p + s * parts + part]), x, sum[square][i]);
      }
    };
    const auto add_word = [&]<int... part>(Index p, Index s, Index count, std::integer_sequence<int, part...>) {
      ((part < count ? add(p, s, std::integral_constant<int, part>{}) : void()), ...);
    };
    constexpr auto all = std::make_integer_sequence<int, parts>{};
    Index p = 0;
    for (; p + line <= depth; p += line) {
      RUVECTOR_UNROLL for (int square = 0; square < squares; ++square) {
        const S* row = right + square * width * stride + p;
        RUVECTOR_UNROLL for (Index s = 0; s < width; ++s) {
          step[square][s] = load_words<S, T>(row + s % in_step * stride);
          if (s % in_step == in_step - 1) add_steps(row, in_step * stride);
        }
        transpose_square<T>(step[square]);
      }
      const S* next = right;
      add_steps(next, transposed_rows_ahead * parts * stride + p * next_square);
      for (Index s = 0; s < width; ++s) {
        RUVECTOR_UNROLL for (int square = 0; square < squares; ++square) ask_for<0>(next, square * width * stride);
        add_steps(next, next_line);
        add_word(p, s, parts, all);
      }
    }
    if (p < depth) {
      for (int square = 0; square < squares; ++square) {
        const S* from = right + square * width * stride + p;
        for (Index s = 0; s < width; ++s) step[square][s] = load_words_partial<S, T>(from + s * stride, depth - p);
        transpose_square<T>(step[square]);
      }
      for (Index s = 0; s * parts < depth - p; ++s) add_word(p, s, depth - p - s * parts, all);
    }
    RUVECTOR_UNROLL for (int square = 0; square < squares; ++square) {
      RUVECTOR_UNROLL for (int i = 0; i < rows; ++i) {
        if (scale != nullptr) sum[square][i] = sum[square][i] * simd::load(scale + j + square * width);
        simd::store(c.data() + i * c.stride() + j + square * width, sum[square][i]);
      }
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

/// c (+)= a bᵀ in the same way; c.cols() is a multiple of squares_at_once. `scale`: [rows of b] factors of c's columns,
/// or null.
template <Real T, class S = T>
void product_once_transposed(MatrixView<const T> a, MatrixView<const S> b, MatrixView<T> c, const T* scale = nullptr,
                             Product mode = Product::assign) {
  with_few_rows(c.rows(), [&](auto rows) { product_once_transposed_of<rows.value, T, S>(a, b, scale, c, mode); });
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

/// How a right factor [depth × cols] is cut into blocks that are packed, panel by panel.
template <Real T>
struct PackedBlocks {
  PackedBlocks(Index depth, Index cols)
      : steps(std::clamp(depth, Index(1), product_depth<T>)),
        columns(std::min(padded(cols), std::max(Index(1), product_packed<T> / (steps * width)) * width)) {}

  static constexpr Index width = product_width<T>;
  /// Whole panels that hold so many columns.
  [[nodiscard]] static Index padded(Index cols) { return (cols + width - 1) / width * width; }
  /// Whole registers that hold the columns of a panel, the last of which may be narrower.
  [[nodiscard]] static Index stored(Index cols) { return (cols + lanes<T> - 1) / lanes<T> * lanes<T>; }

  Index steps;    ///< steps of the sum in a block,
  Index columns;  ///< and columns, whole panels
};

/// Packs steps p … of columns j … by pack(first step, steps, first column, columns, width, where to).
template <Real T, class Pack>
void pack_block(Index p, Index steps, Index j, Index cols, T* packed, Pack&& pack) {
  constexpr Index width = product_width<T>;
  for (Index q = 0; q < cols; q += width) {
    const Index panel = std::min(width, cols - q);
    pack(p, steps, j + q, panel, PackedBlocks<T>::stored(panel), packed + q * steps);
  }
}

/// c (+)= a b for a packed block b of `steps` steps.
template <Real T>
void product_of_block(LeftFactor<T> a, const T* packed, Index steps, MatrixView<T> c, Product mode) {
  constexpr Index width = product_width<T>;
  for (Index i = 0; i < c.rows(); i += product_row_chunk) {
    const Index rows = std::min(product_row_chunk, c.rows() - i);
    for (Index q = 0; q < c.cols(); q += width) {
      const Index cols = std::min(width, c.cols() - q);
      product_panel<true>({a.data + i * a.row, a.row, a.step},
                          RightFactor<T>{packed + q * steps, PackedBlocks<T>::stored(cols)}, steps,
                          c.rows(i, rows).cols(q, cols), mode, q == 0 && a.step == 1);
    }
  }
}

template <Real T, class Pack>
void product(LeftFactor<T> a, Index depth, MatrixView<T> c, Product mode, Workspace& workspace, Pack&& pack) {
  if (depth == 0 && mode == Product::assign)
    for (Index i = 0; i < c.rows(); ++i) std::ranges::fill(c.row(i), T(0));
  if (depth == 0 || c.empty()) return;
  const PackedBlocks<T> blocks(depth, c.cols());
  auto frame = workspace.frame();
  T* packed = frame.span<T>(blocks.columns * blocks.steps).data();
  for (Index j = 0; j < c.cols(); j += blocks.columns) {
    const Index cols = std::min(blocks.columns, c.cols() - j);
    for (Index p = 0; p < depth; p += blocks.steps) {
      const Index steps = std::min(blocks.steps, depth - p);
      pack_block<T>(p, steps, j, cols, packed, pack);
      product_of_block<T>({a.data + p * a.step, a.row, a.step}, packed, steps, c.cols(j, cols),
                          p == 0 ? mode : Product::accumulate);
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
  if (c.rows() > 0 && c.rows() <= detail::few_rows) {  // where packing b would cost more than the product
    const Index whole = c.cols() - c.cols() % detail::squares_at_once<T, T>, rest = c.cols() - whole;
    detail::product_once_transposed<T>(a, b.rows(0, whole), c.cols(0, whole), nullptr, mode);
    if (rest == 0) return;
    b = b.rows(whole, rest);
    c = c.cols(whole, rest);
  }
  detail::product<T>({a.data(), a.stride(), 1}, a.cols(), c, mode, workspace,
                     [&](Index p, Index steps, Index j, Index cols, Index width, T* panel) {
                       detail::pack_panel_transposed<T>(b, p, steps, j, cols, width, panel);
                     });
}

/// The right factor of c = a bᵀ, packed once for many products with it: queries that meet one block of candidates after
/// the other. Holds a copy of b [n×k], in memory that ends with the frame.
template <Real T>
class PackedTransposed {
 public:
  /// Packs b. O(n k).
  PackedTransposed(std::type_identity_t<MatrixView<const T>> b, Workspace::Frame& frame)
      : rows_(b.rows()), depth_(b.cols()), blocks_(depth_, rows_) {
    data_ = frame.span<T>(checked_size("PackedTransposed", blocks_.padded(rows_), depth_)).data();
    for_each_block([&](Index p, Index steps, Index j, Index cols, T* packed) {
      detail::pack_block<T>(p, steps, j, cols, packed,
                            [&](Index step, Index count, Index column, Index columns, Index width, T* panel) {
                              detail::pack_panel_transposed<T>(b, step, count, column, columns, width, panel);
                            });
    });
  }

  /// n.
  [[nodiscard]] Index rows() const { return rows_; }
  /// k.
  [[nodiscard]] Index cols() const { return depth_; }

  /// c = a bᵀ with the bits of gemm_transposed. Throws ShapeError where sizes differ.
  void multiply(std::type_identity_t<MatrixView<const T>> a, MatrixView<T> c) const {
    check_shape("PackedTransposed: rows of a", c.rows(), a.rows());
    check_shape("PackedTransposed: columns of a", depth_, a.cols());
    check_shape("PackedTransposed: columns of c", rows_, c.cols());
    for (Index i = 0; depth_ == 0 && i < c.rows(); ++i) std::ranges::fill(c.row(i), T(0));
    for_each_block([&](Index p, Index steps, Index j, Index cols, const T* packed) {
      detail::product_of_block<T>({a.data() + p, a.stride(), 1}, packed, steps, c.cols(j, cols),
                                  p == 0 ? Product::assign : Product::accumulate);
    });
  }

 private:
  template <class F>
  void for_each_block(F&& f) const {
    for (Index j = 0; j < rows_; j += blocks_.columns) {
      const Index cols = std::min(blocks_.columns, rows_ - j);
      for (Index p = 0; p < depth_; p += blocks_.steps)
        f(p, std::min(blocks_.steps, depth_ - p), j, cols, data_ + j * depth_ + p * blocks_.padded(cols));
    }
  }

  Index rows_, depth_;
  detail::PackedBlocks<T> blocks_;
  T* data_;
};

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
