// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/mask.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"
#include "ruvector/simd/transpose.hpp"

#include <algorithm>
#include <limits>

// What stands between the products q·k and the softmax, tile by tile: the score, bias, ALiBi and the mask. Both engines
// and both directions use it.

namespace ruvector::inline RUVECTOR_ABI::attention::detail {

/// Keys of a tile, by absolute index: what a row does between two looks at its maximum, the same for every target.
inline constexpr Index tile_keys = 64;
/// Queries of a tile: their products, weights and sums share the L1 cache with a tile of keys.
inline constexpr Index tile_rows = 24;

template <Real T>
inline constexpr Index tile_vectors = tile_keys / simd::lanes<T>;

/// The visible keys of queries first … last−1 together: what one of them sees, and what all of them see.
struct VisibleTile {
  VisibleKeys any, all;
  bool dense;

  VisibleTile(const Mask& mask, Index first, Index last, Index m, Index n) : dense(mask.dense()) {
    // All three bounds grow with the query.
    const VisibleKeys low = mask.visible(first, m, n), high = mask.visible(last - 1, m, n);
    any = {high.globals, low.first, high.last};
    all = {low.globals, high.first, low.last};
  }
  [[nodiscard]] bool misses(Index begin, Index end) const { return any.misses(begin, end); }
  [[nodiscard]] bool covers(Index begin, Index end) const { return !dense && all.covers(begin, end); }
};

/// A tile of keys packed for the product: panels of [d × product_width], zero where there is no key.
template <Real T>
void pack_keys(MatrixView<const T> keys, T* packed) {
  constexpr Index width = simd::detail::product_width<T>;
  for (Index j = 0; j < tile_keys; j += width) {
    const Index count = std::clamp(keys.rows() - j, Index(0), width);
    simd::detail::pack_panel_transposed<T>(keys, 0, keys.cols(), std::min(j, keys.rows()), count, width,
                                           packed + j * keys.cols());
  }
}

/// products [rows × tile_keys] = rows · packed keysᵀ.
template <Real T>
void multiply_keys(MatrixView<const T> rows, const T* packed, MatrixView<T> products) {
  constexpr Index width = simd::detail::product_width<T>;
  for (Index j = 0; j < tile_keys; j += width)
    simd::detail::product_panel<true>(simd::detail::LeftFactor<T>{rows.data(), rows.stride(), 1},
                                      simd::detail::RightFactor<T>{packed + j * rows.cols(), width}, rows.cols(),
                                      products.cols(j, width), simd::Product::assign);
}

/// Whether all elements are finite.
template <Real T>
[[nodiscard]] bool all_finite(MatrixView<const T> x) {
  simd::Batch<T> zero(T(0));  // 0·x is NaN for what is not finite, and stays
  const simd::Batch<T> nothing(T(0));
  for (Index i = 0; i < x.rows(); ++i) {
    const T* row = x.data() + i * x.stride();
    Index j = 0;
    for (; j + simd::lanes<T> <= x.cols(); j += simd::lanes<T>) zero = simd::fma(simd::load(row + j), nothing, zero);
    zero = simd::fma(simd::load_partial(row + j, x.cols() - j), nothing, zero);
  }
  return !simd::any(simd::isnan(zero));
}

/// out [a×c] += left [a×b] · right [b×c] over the pairs for which `sees(row of out, row of right)`. The others have a
/// factor 0, so they only matter where right holds what is not finite: it must not be touched then.
template <Real T, class Sees>
void add_seen_products(simd::detail::LeftFactor<T> left, MatrixView<const T> right, MatrixView<T> out, bool all_seen,
                       Sees&& sees) {
  if (all_seen || all_finite(right)) {
    simd::detail::product_in_place(left, right, out, simd::Product::accumulate);
    return;
  }
  for (Index i = 0; i < out.rows(); ++i)
    for (Index p = 0; p < right.rows(); ++p)
      if (sees(i, p)) simd::axpy(left.data[i * left.row + p * left.step], right.row(p), out.row(i));
}

/// Logits of one query against a tile of keys.
template <Real T, class Bound>
class TileLogits {
 public:
  using B = simd::Batch<T>;  ///< register

  TileLogits(const AttentionInput<T>& in, const Bound& bound) : in_(in), bound_(bound) {}

  /// x[v] = logits of query i against keys begin + v·lanes …, from the products in `dots`; −∞ for hidden keys. `plain`:
  /// every key of the tile is visible, and there is neither bias nor ALiBi.
  void operator()(Index i, Index begin, const T* dots, bool plain, B (&x)[tile_vectors<T>]) const {
    for (Index v = 0; v < tile_vectors<T>; ++v) x[v] = bound_.logit(simd::load(dots + v * width), nullptr, nullptr);
    if (plain) return;
    const VisibleKeys visible = in_.mask.visible(i, in_.query.rows(), in_.key.rows());
    const Index n = in_.key.rows();
    for (Index v = 0; v < tile_vectors<T>; ++v) {
      const Index j = begin + v * width;
      const Index count = std::clamp(n - j, Index(0), width);
      if (bound_.alibi_slope != 0) x[v] = simd::fnma(distance(i, j), B(bound_.alibi_slope), x[v]);
      if (in_.bias.cols() != 0) {
        const T* bias = in_.bias.data() + (in_.bias.rows() == 1 ? 0 : i * in_.bias.stride());
        x[v] = x[v] + simd::load_partial(bias + std::min(j, n), count);
      }
      x[v] = simd::select(seen(visible, i, j, count), x[v], B(-std::numeric_limits<T>::infinity()));
    }
  }

  /// Whether query i sees key j.
  [[nodiscard]] bool sees(Index i, Index j) const {
    return in_.mask.visible(i, in_.query.rows(), in_.key.rows()).contains(j) &&
           (!in_.mask.dense() || in_.mask.allowed_row(i)[j] != 0);
  }

  /// Whether a tile has nothing but its products to look at.
  [[nodiscard]] bool plain(const VisibleTile& tile, Index begin) const {
    return begin + tile_keys <= in_.key.rows() && tile.covers(begin, begin + tile_keys) && in_.bias.cols() == 0 &&
           bound_.alibi_slope == 0;
  }

 private:
  static constexpr Index width = simd::lanes<T>;

  [[nodiscard]] static B lane_numbers() {
    static constexpr T number[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return simd::load(number);
  }
  // |i + (n − m) − j| for the keys of a register.
  [[nodiscard]] B distance(Index i, Index j) const {
    return simd::abs(B(T(in_.mask.position(i, in_.query.rows(), in_.key.rows()) - j)) - lane_numbers());
  }
  [[nodiscard]] simd::Mask<T> seen(const VisibleKeys& visible, Index i, Index j, Index count) const {
    const auto below = [&](Index key) { return lane_numbers() < B(T(std::clamp(key - j, Index(0), count))); };
    const simd::Mask<T> range = below(visible.globals) | (below(visible.last) & !below(visible.first));
    if (!in_.mask.dense()) return range;
    T allowed[width];
    for (Index lane = 0; lane < width; ++lane)
      allowed[lane] = T(lane < count && in_.mask.allowed_row(i)[j + lane] != 0);
    return range & (simd::load(allowed) > B(T(0)));
  }

  const AttentionInput<T>& in_;
  const Bound bound_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention::detail
