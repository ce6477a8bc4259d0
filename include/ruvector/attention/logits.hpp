// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/mask.hpp"
#include "ruvector/attention/scores.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/ordered_sum.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/convert.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"
#include "ruvector/simd/transpose.hpp"

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>

// What stands between the products q·k and the softmax, tile by tile: the score, bias, ALiBi and the mask. Both engines
// and both directions use it.

namespace ruvector::inline RUVECTOR_ABI::attention::detail {

/// Keys of a tile, by absolute index: what a row does between two looks at its maximum, the same for every target.
inline constexpr Index tile_keys = 64;
/// Queries of which it is known together what they see of a tile of keys.
inline constexpr Index tile_rows = 24;
/// Queries that share one packing of a tile of keys, lifted values and scalars of keys. 576 are a point faster than
/// 288, four where keys have scalars; beyond one leaf of keys there are several states of a block, which have to fit.
[[nodiscard]] constexpr Index block_rows(Index keys) {
  return keys <= key_leaf ? 576 : 288;
}

template <Real T>
inline constexpr Index tile_vectors = tile_keys / simd::lanes<T>;

/// Row j of stored numbers as T.
template <Real T, Storage S>
void read_row(MatrixView<const S> stored, std::span<const T> scale, Index j, std::span<T> out) {
  const std::span<const S> row = stored.row(j);
  if constexpr (std::same_as<S, std::int8_t> && std::same_as<T, float>) {
    simd::dequantize(row, scale[std::size_t(j)], out);
  } else if constexpr (std::same_as<T, float> && !Real<S>) {
    simd::convert(row, out);
  } else {
    for (std::size_t c = 0; c < out.size(); ++c) {
      if constexpr (std::same_as<S, std::int8_t>)
        out[c] = T(row[c]) * scale[std::size_t(j)];
      else if constexpr (Real<S>)
        out[c] = static_cast<T>(row[c]);
      else
        out[c] = static_cast<T>(static_cast<float>(row[c]));
    }
  }
}

/// Rows begin … begin+count−1 as T: where they lie if they are T, else converted into `scratch`.
template <Real T, Storage S>
[[nodiscard]] MatrixView<const T> read_rows(MatrixView<const S> stored, std::span<const T> scale, Index begin,
                                            Index count, MatrixView<T> scratch) {
  if constexpr (std::same_as<S, T>) {
    return stored.rows(begin, count);
  } else {
    for (Index j = 0; j < count; ++j) read_row<T, S>(stored, scale, begin + j, scratch.row(j));
    return scratch.rows(0, count);
  }
}

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
  /// A range of the keys begin … end−1 outside of which no query sees one.
  [[nodiscard]] std::pair<Index, Index> range(Index begin, Index end) const {
    const Index from = begin < any.globals ? begin : std::max(begin, any.first);
    return {from, std::max(from, std::min(end, std::max(any.globals, any.last)))};
  }
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

/// products [rows × tile_keys] = rows · packed keysᵀ over columns begin … end−1, for keys first … last−1 of the tile
/// and what completes their registers.
template <Real T>
void multiply_keys(MatrixView<const T> rows, Index begin, Index end, const T* packed, MatrixView<T> products,
                   Index first = 0, Index last = tile_keys) {
  constexpr Index width = simd::detail::product_width<T>, lanes = simd::lanes<T>;
  first = first / lanes * lanes;
  last = (last + lanes - 1) / lanes * lanes;
  for (Index j = first / width * width; j < last; j += width) {
    const Index from = std::max(first, j), count = std::min(last, j + width) - from;
    simd::detail::product_panel<true>(
        simd::detail::LeftFactor<T>{rows.data() + begin, rows.stride(), 1},
        simd::detail::RightFactor<T>{packed + j * rows.cols() + begin * width + from - j, width}, end - begin,
        products.cols(from, count), simd::Product::assign);
  }
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
/// factor 0, so they only matter where right holds what is not finite: it must not be touched then. `plain`: all are
/// seen, or right is known to be finite.
template <Real T, class Sees>
void add_seen_products(simd::detail::LeftFactor<T> left, MatrixView<const T> right, MatrixView<T> out, bool plain,
                       Sees&& sees) {
  if (plain || all_finite(right)) {
    simd::detail::product_in_place(left, right, out, simd::Product::accumulate);
    return;
  }
  for (Index i = 0; i < out.rows(); ++i)
    for (Index p = 0; p < right.rows(); ++p)
      if (sees(i, p)) simd::axpy(left.data[i * left.row + p * left.step], right.row(p), out.row(i));
}

/// What a score says of a pair, on registers: one lane a key.
template <class Bound, Real T>
struct Pairs {
  using B = simd::Batch<T>;           ///< register
  B z[std::size_t(Bound::products)];  ///< products, or what the score measures by them
  B query[std::size_t(Bound::query_scalars) + 1], key[std::size_t(Bound::key_scalars) + 1];
  simd::Mask<T> near;  ///< computed from differences; only where the score is guarded
};

/// Partial derivatives of a pair, times what arrives at its logit.
template <class Bound, Real T>
struct PairDerivative {
  using B = simd::Batch<T>;  ///< register
  B z[std::size_t(Bound::products)] = {};
  B query[std::size_t(Bound::query_scalars) + 1] = {}, key[std::size_t(Bound::key_scalars) + 1] = {};
  B parameter[std::size_t(Bound::parameters) + 1] = {};
};

/// Logits of a block of queries against tiles of keys.
template <class Score, Storage S = ScalarOf<Score>>
class Logits {
 public:
  using T = ScalarOf<Score>;                                       ///< what it computes in
  using B = simd::Batch<T>;                                        ///< register
  using Bound = typename Score::Bound;                             ///< the score for this width
  static constexpr Index width = simd::lanes<T>;                   ///< keys of a register
  static constexpr Index tile_dots = Bound::products * tile_keys;  ///< products of a query with a tile
  static constexpr bool has_rank = requires(const Bound& b, const B* z) { b.rank(z, z, z); };

  /// For queries first … first+rows−1: computes their scalars.
  Logits(const Score& score, const AttentionInput<T, S>& in, Index first, Index rows, Workspace::Frame& frame)
      : in_(in),
        bound_(score.bind(in.query.cols())),
        first_(first),
        query_scalars_(frame.template matrix<T>(rows, Bound::query_scalars)),
        scratch_(frame.template matrix<T>(std::same_as<S, T> ? 0 : tile_keys + 1, in.key.cols())) {
    if constexpr (Bound::query_scalars > 0)
      for (Index i = 0; i < rows; ++i) bound_.query_row(in.query.row(first + i), query_scalars_.row(i).data());
  }

  [[nodiscard]] const Bound& bound() const { return bound_; }
  /// Numbers of a packed tile of keys: panels and then scalars.
  [[nodiscard]] Index packed_size() const { return tile_keys * (in_.key.cols() + Bound::key_scalars); }

  /// The keys of a tile as rows of T: valid until the next call.
  [[nodiscard]] MatrixView<const T> key_rows(Index begin, Index keys) const {
    return read_rows<T, S>(in_.key, in_.key_scale, begin, keys, scratch_);
  }

  /// Packs keys begin … begin+keys−1, a tile at most.
  void pack(Index begin, Index keys, T* packed) const {
    const MatrixView<const T> rows = key_rows(begin, keys);
    pack_keys(rows, packed);
    if constexpr (Bound::key_scalars > 0) {
      T* scalars = packed + tile_keys * rows.cols();
      std::fill_n(scalars, Bound::key_scalars * tile_keys, T(0));
      for (Index j = 0; j < keys; ++j) {
        T of_row[std::size_t(Bound::key_scalars)];
        bound_.key_row(rows.row(j), of_row);
        for (Index s = 0; s < Bound::key_scalars; ++s) scalars[s * tile_keys + j] = of_row[s];
      }
    }
  }

  /// dots [rows × products·tile_keys]: products of queries i … with keys first … last−1 of a packed tile.
  void multiply(Index i, const T* packed, MatrixView<T> dots, Index first = 0, Index last = tile_keys) const {
    const Index d = in_.query.cols();
    for (int p = 0; p < Bound::products; ++p) {
      const Index begin = bound_.column(p), end = p + 1 < Bound::products ? bound_.column(p + 1) : d;
      multiply_keys<T>(in_.query.rows(i, dots.rows()), begin, end, packed, dots.cols(p * tile_keys, tile_keys), first,
                       last);
    }
  }

  /// The keys that query i sees, dense bytes apart.
  [[nodiscard]] VisibleKeys visible(Index i) const { return in_.mask.visible(i, in_.query.rows(), in_.key.rows()); }

  /// Which of the keys begin+v·lanes … query i sees. `visible`: visible(i).
  [[nodiscard]] simd::Mask<T> seen(const VisibleKeys& visible, Index i, Index begin, Index v) const {
    const Index n = in_.key.rows(), j = begin + v * width, count = std::clamp(n - j, Index(0), width);
    const auto below = [&](Index key) { return lane_numbers() < B(T(std::clamp(key - j, Index(0), count))); };
    const simd::Mask<T> range = below(visible.globals) | (below(visible.last) & !below(visible.first));
    if (!in_.mask.dense()) return range;
    T allowed[width];
    for (Index lane = 0; lane < width; ++lane)
      allowed[lane] = T(lane < count && in_.mask.allowed_row(i)[j + lane] != 0);
    return range & (simd::load(allowed) > B(T(0)));
  }

  /// What the score sees of query i and register v of a tile. `seen`: null where all keys of the tile are.
  [[nodiscard, gnu::always_inline]] Pairs<Bound, T> pairs(Index i, Index begin, Index v, const T* dots, const T* packed,
                                                          const simd::Mask<T>* seen) const {
    Pairs<Bound, T> pair;
    for (int p = 0; p < Bound::products; ++p) pair.z[p] = simd::load(dots + p * tile_keys + v * width);
    for (Index s = 0; s < Bound::query_scalars; ++s) pair.query[s] = B(query_scalars_(i - first_, s));
    const T* scalars = packed + tile_keys * in_.key.cols();
    for (Index s = 0; s < Bound::key_scalars; ++s) pair.key[s] = simd::load(scalars + s * tile_keys + v * width);
    if constexpr (Bound::guarded) {
      bound_.measure(pair.z, pair.query, pair.key);
      pair.near = bound_.near(pair.z, pair.query, pair.key);
      if (seen != nullptr) pair.near = pair.near & *seen;
      if (simd::any(pair.near)) [[unlikely]]
        refine(i, begin + v * width, pair);
    }
    return pair;
  }

  /// Bias and ALiBi on the logits of query i and register v of a tile.
  [[nodiscard]] B biased(Index i, Index begin, Index v, B x) const {
    const Index n = in_.key.rows(), j = begin + v * width;
    if (bound_.alibi_slope != 0) {
      const B distance = simd::abs(B(T(in_.mask.position(i, in_.query.rows(), n) - j)) - lane_numbers());
      x = simd::fnma(distance, B(bound_.alibi_slope), x);
    }
    if (in_.bias.cols() != 0) {
      const T* bias = in_.bias.data() + (in_.bias.rows() == 1 ? 0 : i * in_.bias.stride());
      x = x + simd::load_partial(bias + std::min(j, n), std::clamp(n - j, Index(0), width));
    }
    return x;
  }

  /// x = logits of query i against a tile, −∞ for hidden keys. `covered`: none is hidden.
  void operator()(Index i, Index begin, const T* dots, const T* packed, bool covered, B (&x)[tile_vectors<T>]) const {
    const VisibleKeys keys = covered ? VisibleKeys() : visible(i);
    RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) {
      if (covered) {
        const Pairs<Bound, T> pair = pairs(i, begin, v, dots, packed, nullptr);
        x[v] = bound_.logit(pair.z, pair.query, pair.key);
        if (!unbiased()) x[v] = biased(i, begin, v, x[v]);
        continue;
      }
      const simd::Mask<T> shown = seen(keys, i, begin, v);
      const Pairs<Bound, T> pair = pairs(i, begin, v, dots, packed, &shown);
      const B logit = biased(i, begin, v, bound_.logit(pair.z, pair.query, pair.key));
      x[v] = simd::select(shown, logit, B(-std::numeric_limits<T>::infinity()));
    }
  }

  /// x = ranks, in the same way; only where `ranked()`.
  void ranks(Index i, Index begin, const T* dots, const T* packed, bool covered,
             B (&x)[tile_vectors<T>]) const requires has_rank {
    const VisibleKeys keys = covered ? VisibleKeys() : visible(i);
    RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) {
      if (covered) {
        const Pairs<Bound, T> pair = pairs(i, begin, v, dots, packed, nullptr);
        x[v] = bound_.rank(pair.z, pair.query, pair.key);
        continue;
      }
      const simd::Mask<T> shown = seen(keys, i, begin, v);
      const Pairs<Bound, T> pair = pairs(i, begin, v, dots, packed, &shown);
      x[v] = simd::select(shown, bound_.rank(pair.z, pair.query, pair.key), B(-std::numeric_limits<T>::infinity()));
    }
  }

  /// The ranks of a covered tile; false, where a pair of it is near. `bound`: a copy of bound().
  template <class LocalBound>
  [[nodiscard, gnu::always_inline]] bool usual_ranks(const LocalBound& bound, Index i, const T* dots, const T* packed,
                                                     B (&x)[tile_vectors<T>]) const requires has_rank {
    B query[std::size_t(Bound::query_scalars) + 1], key[std::size_t(Bound::key_scalars) + 1];
    for (Index s = 0; s < Bound::query_scalars; ++s) query[s] = B(query_scalars_(i - first_, s));
    const T* scalars = packed + tile_keys * in_.key.cols();
    [[maybe_unused]] simd::Mask<T> near[tile_vectors<T>];
    RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) {
      B z[std::size_t(Bound::products)];
      for (int p = 0; p < Bound::products; ++p) z[p] = simd::load(dots + p * tile_keys + v * width);
      for (Index s = 0; s < Bound::key_scalars; ++s) key[s] = simd::load(scalars + s * tile_keys + v * width);
      if constexpr (Bound::guarded) {
        bound.measure(z, query, key);
        near[v] = bound.near(z, query, key);
      }
      x[v] = bound.rank(z, query, key);
    }
    if constexpr (Bound::guarded) {
      RUVECTOR_UNROLL for (Index v = 1; v < tile_vectors<T>; ++v) near[0] = near[0] | near[v];
      return !simd::any(near[0]);
    } else {
      return true;
    }
  }

  /// Whether query i sees key j.
  [[nodiscard]] bool sees(Index i, Index j) const {
    return visible(i).contains(j) && (!in_.mask.dense() || in_.mask.allowed_row(i)[j] != 0);
  }

  /// Whether logits are the scores alone.
  [[nodiscard]] bool unbiased() const { return in_.bias.cols() == 0 && bound_.alibi_slope == 0; }
  /// Whether weights may be computed from ranks: a property of the call, the same for all rows and tiles.
  [[nodiscard]] bool ranked() const {
    if constexpr (has_rank)
      return unbiased() && bound_.ranked();
    else
      return false;
  }
  /// Whether every query of a tile of queries sees every key of a tile of keys.
  [[nodiscard]] bool covered(const VisibleTile& tile, Index begin) const {
    return begin + tile_keys <= in_.key.rows() && tile.covers(begin, begin + tile_keys);
  }

  /// The scalars of query i.
  [[nodiscard]] const T* query_scalars(Index i) const { return query_scalars_.row(i - first_).data(); }

 private:
  [[nodiscard]] static B lane_numbers() {
    static constexpr T number[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return simd::load(number);
  }

  // Measures the near ones of the keys j … again, from differences.
  [[gnu::noinline]] void refine(Index i, Index j, Pairs<Bound, T>& pair) const {
    constexpr int last = Bound::products - 1;
    T z[width];
    simd::store(z, pair.z[last]);
    for (std::uint32_t near = simd::lane_bits(pair.near); near != 0; near &= near - 1) {
      const Index lane = std::countr_zero(near);
      const Index spare = std::same_as<S, T> ? 0 : tile_keys;  // the tile's own rows may be in use
      const MatrixView<const T> key =
          read_rows<T, S>(in_.key, in_.key_scale, j + lane, 1, scratch_.rows(spare, scratch_.rows() - spare));
      z[lane] = bound_.exact(in_.query.row(i), key.row(0));
    }
    pair.z[last] = simd::load(z);
  }

  const AttentionInput<T, S>& in_;
  const Bound bound_;
  Index first_;
  MatrixView<T> query_scalars_;  // [rows × query_scalars]
  MatrixView<T> scratch_;        // [tile_keys + 1 × d] for converted keys
};

/// Takes queries first … first+rows−1 that see some of the keys begin … begin+keys−1, a tile at most, in runs that are
/// as long as all of a run see all keys, or none has to: run(r, count, covered) for queries first+r …
template <class L, Real T, Storage S, class Run>
void for_each_run(const L& logits, const AttentionInput<T, S>& in, Index first, Index rows, Index begin, Index keys,
                  Run&& run) {
  enum class Sees { nothing, some, all };
  const auto sees = [&](Index r) {
    const Index last = first + std::min(rows, r + tile_rows);
    const VisibleTile tile(in.mask, first + r, last, in.query.rows(), in.key.rows());
    if (tile.misses(begin, begin + keys)) return Sees::nothing;
    return logits.covered(tile, begin) ? Sees::all : Sees::some;
  };
  for (Index r = 0; r < rows;) {
    const Sees these = sees(r);
    Index end = r + tile_rows;
    while (end < rows && sees(end) == these) end += tile_rows;
    end = std::min(end, rows);
    if (these != Sees::nothing) run(r, end - r, these == Sees::all);
    r = end;
  }
}

/// Calls row(i, begin, dots, packed, covered) for queries first … first+rows−1 and all tiles of keys, seen or not.
template <class L, Real T, Storage S, class Row>
void for_each_row_of_tiles(const L& logits, const AttentionInput<T, S>& in, Index first, Index rows,
                           Workspace::Frame& frame, Row&& row) {
  const Index m = in.query.rows(), n = in.key.rows();
  T* packed = frame.template span<T>(logits.packed_size()).data();
  const MatrixView<T> dots = frame.template matrix<T>(tile_rows, L::tile_dots);
  for (Index j = 0; j < n; j += tile_keys) {
    logits.pack(j, std::min(tile_keys, n - j), packed);
    for (Index i = first; i < first + rows; i += tile_rows) {
      const Index count = std::min(tile_rows, first + rows - i);
      const bool covered = logits.covered(VisibleTile(in.mask, i, i + count, m, n), j);
      logits.multiply(i, packed, dots.rows(0, count));
      for (Index r = 0; r < count; ++r) row(i + r, j, dots.row(r).data(), packed, covered);
    }
  }
}

/// Stores a tile's registers in columns begin … of a row, as far as it goes.
template <Real T>
void store_tile(const simd::Batch<T> (&x)[tile_vectors<T>], Index begin, std::span<T> row) {
  for (Index v = 0; v < tile_vectors<T>; ++v) {
    const Index j = begin + v * simd::lanes<T>, count = Index(row.size()) - j;
    if (count >= simd::lanes<T>)
      simd::store(row.data() + j, x[v]);
    else if (count > 0)
      simd::store_partial(row.data() + j, count, x[v]);
  }
}

}  // namespace ruvector::inline RUVECTOR_ABI::attention::detail
