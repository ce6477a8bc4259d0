// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/view.hpp"
#include "ruvector/geometry/vectors.hpp"
#include "ruvector/simd/arch.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

// One point against many, the hot loop of hyperbolic training: the many are stored by columns, one a lane, and the
// arithmetic is in double for float points, too, for the reasons given in vectors.hpp. What depends on the manifold is
// in its model:
//
//   x                    the point (a Clipped)
//   c, reach             points with c‖y‖² > reach² count as projected; reach = ∞: none
//   sums(block)          what it needs to know of a pair, summed over the coordinates; has `delta` and `square`, ‖y‖²
//   distance(sums)
//   terms(sums, d_out, distance)   the gradients of d_out · distance, as PairTerms; `distance()` is its value
//
// Every product that is added is an explicit fma: the compiler has nothing left to contract, so a full block, a partial
// one and one with projected points give the same bits for the same pair.

namespace ruvector::inline RUVECTOR_ABI::geometry::detail {

using Lane = simd::Batch<double>;
inline constexpr Index lane_count = simd::lanes<double>;

/// p[0…n−1] in double, the rest 0; `full` promises n = lane_count.
template <bool full>
[[nodiscard, gnu::always_inline]] inline Lane load_lanes(const double* p, Index n) {
  return full ? simd::load(p) : simd::load_partial(p, n);
}
template <bool full>
[[nodiscard, gnu::always_inline]] inline Lane load_lanes(const float* p, Index n) {
  // The vectors of the compiler become one conversion instruction; a loop over lanes does not.
  using Narrow [[gnu::vector_size(lane_count * sizeof(float))]] = float;
  using Wide [[gnu::vector_size(lane_count * sizeof(double))]] = double;
  Narrow narrow{};
  std::memcpy(&narrow, p, (full ? std::size_t(lane_count) : std::size_t(n)) * sizeof(float));
  const Wide wide = __builtin_convertvector(narrow, Wide);
  return simd::load(reinterpret_cast<const double*>(&wide));
}

/// The first n lanes to p[0…n−1], rounded to T.
template <bool full>
[[gnu::always_inline]] inline void store_lanes(double* p, Index n, Lane x) {
  full ? simd::store(p, x) : simd::store_partial(p, n, x);
}
template <bool full>
[[gnu::always_inline]] inline void store_lanes(float* p, Index n, Lane x) {
  using Narrow [[gnu::vector_size(lane_count * sizeof(float))]] = float;
  using Wide [[gnu::vector_size(lane_count * sizeof(double))]] = double;
  Wide wide;
  simd::store(reinterpret_cast<double*>(&wide), x);
  const Narrow narrow = __builtin_convertvector(wide, Narrow);
  std::memcpy(p, &narrow, (full ? std::size_t(lane_count) : std::size_t(n)) * sizeof(float));
}

/// A point x and up to lane_count points y, the columns of a matrix from `y` on; `full`: exactly lane_count; `moved`:
/// some of them count as scaled.
template <Real T, bool full, bool moved>
struct ColumnBlock {
  const T* x;
  const T* y;
  Index stride, rows, count;
  double x_scale = 1;
  Lane y_scale = 1.0;

  // fma(…, 0): a plain product would be contracted with the difference y − x in some places and not in others, and for
  // points that coincide after they were moved nothing but that rounding is left.
  [[nodiscard, gnu::always_inline]] Lane X(Index i) const {
    const Lane value = double(x[i]);
    return moved ? simd::fma(Lane(x_scale), value, 0.0) : value;
  }
  [[nodiscard, gnu::always_inline]] Lane Y(Index i) const {
    const Lane value = load_lanes<full>(y + i * stride, count);
    return moved ? simd::fma(y_scale, value, 0.0) : value;
  }
};

/// The gradients by x, y and c of one block of pairs, as coefficients.
struct PairTerms {
  Lane a = 0.0;  // of y − x in the gradient by y, of x − y in that by x
  Lane b = 0.0;  // of y in the gradient by y
  Lane e = 0.0;  // of x in the gradient by x
  Lane curvature = 0.0;
};

/// A block with the sums of its pairs.
template <class Model, Real T, bool full>
struct BlockSums {
  ColumnBlock<T, full, true> block;
  decltype(std::declval<const Model&>().sums(block)) sums;
  simd::Mask<double> over;  // these y were moved
  bool moved = false;       // an y or x was

  [[gnu::always_inline]] BlockSums(const Model& model, const T* x, MatrixView<const T> columns, Index j, Index count)
      : block{x, columns.data() + j, columns.stride(), columns.rows(), count, model.x.scale},
        sums(model.sums(ColumnBlock<T, full, false>{x, block.y, block.stride, block.rows, count})),
        over(model.c * sums.square > Lane(model.reach * model.reach)) {
    if (simd::any(over) || model.x.moved) [[unlikely]] {
      moved = true;
      block.y_scale = simd::select(over, model.reach / std::sqrt(model.c) / simd::sqrt(sums.square), Lane(1.0));
      sums = model.sums(block);
    }
  }

  /// The terms of the model, without the radial parts of points that were moved (`pull_back` of vectors.hpp).
  template <class Distance>
  [[nodiscard, gnu::always_inline]] PairTerms terms(const Model& model, Lane d_out, Distance distance) const {
    PairTerms t = model.terms(sums, d_out, distance);
    if (moved) [[unlikely]] {
      Lane xp = 0.0;
      for (Index i = 0; i < block.rows; ++i) xp = simd::fma(block.X(i), block.Y(i) - block.X(i), xp);
      const Lane by_y = simd::fma(t.b, sums.square, t.a * (xp + sums.delta));
      t.b = simd::select(over, t.b - by_y / sums.square, t.b);
      t.curvature -= simd::select(over, by_y / (2 * model.c), Lane(0.0));
      if (model.x.moved) {
        const Lane by_x = simd::fnma(t.a, xp, t.e * model.x.square);
        t.e -= by_x / model.x.square;
        t.curvature -= by_x / (2 * model.c);
      }
    }
    return t;
  }
};

template <Real T>
void check_columns(std::string_view what, std::span<const T> x, MatrixView<const T> columns, std::span<const T> each) {
  check_shape(what, length(x), columns.rows());
  check_shape(what, columns.cols(), length(each));
}

/// Calls f(full, first column, columns) for every block of columns first … last−1; full is a std::bool_constant.
template <class F>
[[gnu::always_inline]] inline void for_each_block(Index first, Index last, F f) {
  for (; first + lane_count <= last; first += lane_count) f(std::true_type(), first, lane_count);
  if (first < last) f(std::false_type(), first, last - first);
}

/// out_j = distance from x to column j.
template <class Model, Real T>
void column_distances(const Model& model, std::span<const T> x, MatrixView<const T> columns, std::span<T> out) {
  for_each_block(0, columns.cols(), [&](auto full, Index j, Index count) {
    const BlockSums<Model, T, full()> pairs(model, x.data(), columns, j, count);
    store_lanes<full()>(out.data() + j, count, model.distance(pairs.sums));
  });
}

/// What the gradients of a stretch of columns have in common: pass one fills it, pass two goes over the coordinates
/// with it, so that each coordinate of x has its sum in a register.
struct ColumnTerms {
  static constexpr Index blocks = 16;
  static constexpr Index columns = blocks * lane_count;
  std::array<Lane, blocks> a, b, y_scale;
  Lane e = 0.0, curvature = 0.0;
  bool moved = false;
};

/// Adds a_j (y_j − x) + b_j y_j to the columns of d_columns and Σ_j (a_j (x − y_j) + e_j x) to d_x.
template <bool has_radial_part, bool moved, Real T>
void add_column_terms(const ColumnTerms& terms, const T* x, double x_scale, MatrixView<const T> columns, Index first,
                      Index last, std::span<T> d_x, MatrixView<T> d_columns) {
  const double e = simd::reduce_add(terms.e);
  for (Index i = 0; i < columns.rows(); ++i) {
    Lane along = 0.0;
    std::size_t k = 0;
    for_each_block(first, last, [&](auto full, Index j, Index count) {
      const ColumnBlock<T, full(), moved> block{x,       columns.data() + j, columns.stride(), columns.rows(), count,
                                                x_scale, terms.y_scale[k]};
      const Lane y = block.Y(i), difference = y - block.X(i);
      along = simd::fma(terms.a[k], difference, along);
      if (d_columns.data() != nullptr) {
        T* const d_y = d_columns.data() + i * d_columns.stride() + j;
        Lane step = has_radial_part ? simd::fma(terms.a[k], difference, terms.b[k] * y) : terms.a[k] * difference;
        const Lane before = load_lanes<full()>(d_y, count);
        store_lanes<full()>(d_y, count, moved ? simd::fma(terms.y_scale[k], step, before) : before + step);
      }
      ++k;
    });
    if (!d_x.empty()) d_x[std::size_t(i)] += T(x_scale * (e * x_scale * double(x[i]) - simd::reduce_add(along)));
  }
}

/// Adds the gradients of Σ_j d_out_j · distance from x to column j. Returns that by the curvature. `distances`, if not
/// empty, are the values, which otherwise are computed again.
template <class Model, Real T>
double column_distances_vjp(const Model& model, std::span<const T> x, MatrixView<const T> columns,
                            std::span<const T> distances, std::span<const T> d_out, std::span<T> d_x,
                            MatrixView<T> d_columns) {
  double curvature = 0;
  for (Index first = 0; first < columns.cols(); first += ColumnTerms::columns) {
    const Index last = std::min(first + ColumnTerms::columns, columns.cols());
    ColumnTerms terms;
    std::size_t k = 0;
    for_each_block(first, last, [&](auto full, Index j, Index count) {
      const BlockSums<Model, T, full()> pairs(model, x.data(), columns, j, count);
      const PairTerms t = pairs.terms(model, load_lanes<full()>(d_out.data() + j, count), [&] {
        return distances.empty() ? model.distance(pairs.sums) : load_lanes<full()>(distances.data() + j, count);
      });
      terms.a[k] = t.a;
      terms.b[k] = t.b;
      terms.y_scale[k] = pairs.block.y_scale;
      terms.e += t.e;
      terms.curvature += t.curvature;
      terms.moved |= pairs.moved;
      ++k;
    });
    if (terms.moved) [[unlikely]]
      add_column_terms<Model::has_radial_part, true>(terms, x.data(), model.x.scale, columns, first, last, d_x,
                                                     d_columns);
    else
      add_column_terms<Model::has_radial_part, false>(terms, x.data(), 1, columns, first, last, d_x, d_columns);
    curvature += simd::reduce_add(terms.curvature);
  }
  return curvature;
}

}  // namespace ruvector::inline RUVECTOR_ABI::geometry::detail
