// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/logits.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

// The one softmax: terms e^(x−μ) of a row and a tile of keys, and their sums.

namespace ruvector::inline RUVECTOR_ABI::attention::detail {

/// eˣ, the same as in the tiles.
template <Real T>
[[nodiscard]] T exp_of(T x) {
  return simd::reduce_max(simd::exp(simd::Batch<T>(x)));
}

/// References beyond this take the path without shortcuts, where nothing overflows.
template <Real T>
inline constexpr T huge_logit = T(1e37);

/// Terms e^(x−μ) of the logits of a row, in place: of ∞ too, where all weight is on the keys that have it.
template <Real T>
void weigh_logits(simd::Batch<T> (&x)[tile_vectors<T>], T mu) {
  using B = simd::Batch<T>;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  if (mu == infinity) [[unlikely]] {  // ∞ − ∞
    for (B& term : x) term = simd::select(term < B(infinity), B(T(0)), simd::select(simd::isnan(term), term, B(T(1))));
    return;
  }
  const B reference(mu == -infinity ? T(0) : mu);  // −∞ − −∞: no key seen, weights 0
  RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) x[v] = simd::exp(x[v] - reference);
}

/// Terms e^(x−μ) of query i and a tile of keys, for a reference that is known.
template <class L, class B, class T>
void weigh_tile(const L& logits, Index i, Index begin, const T* dots, const T* packed, bool covered, T mu,
                B (&x)[tile_vectors<T>]) {
  if constexpr (L::has_rank) {
    if (logits.ranked() && std::fabs(mu) < huge_logit<T>) {
      logits.ranks(i, begin, dots, packed, covered, x);
      const B reference(logits.bound().rank_reference(mu));
      RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) x[v] = logits.bound().rank_weight(x[v], reference);
      return;
    }
  }
  logits(i, begin, dots, packed, covered, x);
  weigh_logits<T>(x, mu);
}

/// The softmax of a block of queries over some keys, not yet divided by its sum. The reference μ keeps the terms in
/// range.
template <Real T>
struct BlockState {
  std::span<T> reference;       ///< [rows], μ; −∞ while no key was seen
  std::span<T> rank_reference;  ///< [rows], what weights from ranks need of μ
  std::span<T> sum;             ///< [rows×lanes], Σ e^(x−μ) by lanes
  std::span<T> mass;            ///< [rows×lanes], Σ e^(x−μ) mass by lanes; empty where the mean has none
  MatrixView<T> value;          ///< [rows×v], Σ e^(x−μ) v

  [[nodiscard]] T& mu(Index i) const { return reference[std::size_t(i)]; }
  [[nodiscard]] T& rank_mu(Index i) const { return rank_reference[std::size_t(i)]; }
  [[nodiscard]] T* sum_row(Index i) const { return sum.data() + i * simd::lanes<T>; }
  [[nodiscard]] T* mass_row(Index i) const { return mass.data() + i * simd::lanes<T>; }
  /// Rows first … first+count−1 of it.
  [[nodiscard]] BlockState rows(Index first, Index count) const {
    const auto part = [&](std::span<T> all, Index width) {
      return all.empty() ? all : all.subspan(std::size_t(first * width), std::size_t(count * width));
    };
    return {part(reference, 1), part(rank_reference, 1), part(sum, simd::lanes<T>), part(mass, simd::lanes<T>),
            value.rows(first, count)};
  }
  /// Multiplies the sums of row i.
  void rescale(Index i, T factor) const {
    simd::scale(factor, sum_row(i), simd::lanes<T>);
    if (!mass.empty()) simd::scale(factor, mass_row(i), simd::lanes<T>);
    simd::scale(factor, value.row(i));
  }
  /// No key seen.
  void clear() const {
    std::ranges::fill(reference, -std::numeric_limits<T>::infinity());
    std::ranges::fill(rank_reference, T(0));
    std::ranges::fill(sum, T(0));
    std::ranges::fill(mass, T(0));
    for (Index i = 0; i < value.rows(); ++i) std::ranges::fill(value.row(i), T(0));
  }
  /// Adds the state of other keys.
  void merge(const BlockState& right) const {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    for (Index i = 0; i < value.rows(); ++i) {
      const bool unseen = right.mu(i) == -infinity && simd::reduce_add(simd::load(right.sum_row(i))) == 0;  // not NaN
      if (unseen) continue;
      if (right.mu(i) > mu(i)) {
        rescale(i, exp_of(mu(i) - right.mu(i)));
        mu(i) = right.mu(i);
        rank_mu(i) = right.rank_mu(i);
      }
      const T factor = right.mu(i) == mu(i) ? T(1) : exp_of(right.mu(i) - mu(i));
      simd::axpy(factor, right.sum_row(i), sum_row(i), simd::lanes<T>);
      if (!mass.empty()) simd::axpy(factor, right.mass_row(i), mass_row(i), simd::lanes<T>);
      simd::axpy(factor, std::span<const T>(right.value.row(i)), value.row(i));
    }
  }
};

/// How the states of disjoint sets of keys are added; see core/ordered_sum.hpp.
template <Real T>
struct BlockMonoid {
  Workspace::Frame& frame;
  Index rows, value_dim;
  bool has_mass;

  void clear(BlockState<T>& state) const {
    if (state.value.data() == nullptr) {
      // In one piece: a workspace has no holes then.
      constexpr Index line = Index(64 / sizeof(T));
      const auto padded = [](Index n) { return (n + line - 1) / line * line; };
      const Index sums = padded(rows * simd::lanes<T>), numbers = rows * value_dim;
      T* at = frame.span<T>(2 * padded(rows) + (has_mass ? 2 : 1) * sums + numbers).data();
      const auto take = [&](Index n) {
        const std::span<T> taken(at, std::size_t(n));
        at += padded(n);
        return taken;
      };
      state.reference = take(rows);
      state.rank_reference = take(rows);
      state.sum = take(rows * simd::lanes<T>);
      state.mass = take(has_mass ? rows * simd::lanes<T> : 0);
      state.value = MatrixView<T>(at, rows, value_dim);
    }
    state.clear();
  }
  void merge(BlockState<T>& left, const BlockState<T>& right) const { left.merge(right); }
};

/// Dropout on the weights (Srivastava 2014): weight (i, j) is kept with probability 1 − p and divided by it. Whether it
/// is depends on the key of the call, i and j alone, so backward knows it again.
template <Real T>
struct Dropout {
  std::uint64_t key = 0;
  T probability = 0;

  /// factors[j] = 0 or 1/(1−p) for query i and the keys of a tile.
  void factors(Index i, Index begin, T (&factor)[tile_keys]) const {
    const std::uint64_t row = Rng(key).split(std::uint64_t(i)).bits();
    const auto low = std::uint32_t(row), high = std::uint32_t(row >> 32);
    const auto threshold = std::uint32_t(double(probability) * 0x1p32);
    const T kept = 1 / (1 - probability);
    for (Index j = 0; j < tile_keys; ++j) {
      // The finaliser of MurmurHash3 (Appleby), a bijection with good avalanche, between two words of the row.
      std::uint32_t h = (std::uint32_t(begin + j) * 0x9e3779b1u) ^ low;
      h = (h ^ (h >> 16)) * 0x85ebca6bu;
      h = (h ^ (h >> 13)) * 0xc2b2ae35u;
      h = (h ^ (h >> 16)) ^ high;
      factor[j] = h < threshold ? T(0) : kept;
    }
  }
};

/// What `weigh_row` does, for a tile that all see and a reference that stays, with weights from ranks and no pair near:
/// the same bits. Returns false, and does nothing, where that is not so. `bound`: a copy of the score's, which the
/// compiler knows not to lie where weights are written.
template <class L, class Bound, class T>
[[nodiscard, gnu::always_inline]] inline bool weigh_usual_row(const L& logits, const Bound& bound, Index i, T* dots,
                                                              const T* packed, const T* masses,
                                                              const BlockState<T>& state, Index r) {
  using B = simd::Batch<T>;
  constexpr Index width = simd::lanes<T>;
  B x[tile_vectors<T>];
  if (!logits.usual_ranks(bound, i, dots, packed, x)) [[unlikely]]
    return false;
  B largest = x[0];
  RUVECTOR_UNROLL for (Index v = 1; v < tile_vectors<T>; ++v) largest = simd::max(largest, x[v]);
  const T rank_mu = state.rank_mu(r);
  if (!(std::fabs(state.mu(r)) < huge_logit<T>) || simd::any(largest > B(bound.rank_limit(rank_mu)))) [[unlikely]]
    return false;
  RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) x[v] = bound.rank_weight(x[v], B(rank_mu));
  B sum = simd::load(state.sum_row(r));
  RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) {
    sum += x[v];
    simd::store(dots + v * width, x[v]);
  }
  simd::store(state.sum_row(r), sum);
  if (masses != nullptr) {
    B mass = simd::load(state.mass_row(r));
    RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) mass =
        simd::fma(x[v], simd::load(masses + v * width), mass);
    simd::store(state.mass_row(r), mass);
  }
  return true;
}

/// Turns the products of row r of a block, query i, with a tile of keys into weights e^(x−μ), in place, and adds them
/// to the sums of the state. `masses`: [tile_keys], where the mean has them.
template <class L, class T>
void weigh_row(const L& logits, Index i, Index begin, bool covered, T* dots, const T* packed, const T* masses,
               const BlockState<T>& state, Index r, const Dropout<T>* dropout) {
  using B = simd::Batch<T>;
  constexpr T margin = T(softmax_margin);
  constexpr Index width = simd::lanes<T>;
  B x[tile_vectors<T>];
  const auto move = [&](T logit) {
    if (state.mu(r) != -std::numeric_limits<T>::infinity()) state.rescale(r, exp_of(state.mu(r) - logit));
    state.mu(r) = logit;
    if constexpr (L::has_rank) state.rank_mu(r) = logits.bound().rank_reference(logit);
  };
  const auto top = [&] {
    B largest = x[0];
    RUVECTOR_UNROLL for (Index v = 1; v < tile_vectors<T>; ++v) largest = simd::max(largest, x[v]);
    return largest;
  };
  bool weighed = false;
  if constexpr (L::has_rank) {
    if (logits.ranked()) {
      logits.ranks(i, begin, dots, packed, covered, x);
      const auto& bound = logits.bound();
      const B largest = top();
      bool usual = std::fabs(state.mu(r)) < huge_logit<T>;
      if (!usual || simd::any(largest > B(bound.rank_limit(state.rank_mu(r))))) [[unlikely]] {
        const T logit = bound.rank_logit(simd::reduce_max(largest));
        usual = std::fabs(logit) < huge_logit<T> && !(state.mu(r) >= huge_logit<T>);
        if (usual && logit > state.mu(r)) move(logit);
      }
      if (usual) {
        const B reference(state.rank_mu(r));
        RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) x[v] = bound.rank_weight(x[v], reference);
        weighed = true;
      }
    }
  }
  if (!weighed) {
    logits(i, begin, dots, packed, covered, x);
    const B largest = top();
    if (simd::any(largest > B(state.mu(r) + margin))) [[unlikely]]
      move(simd::reduce_max(largest));
    weigh_logits<T>(x, state.mu(r));
  }
  B sum = simd::load(state.sum_row(r));
  RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) sum += x[v];
  simd::store(state.sum_row(r), sum);
  if (dropout != nullptr) {
    T factor[tile_keys];
    dropout->factors(i, begin, factor);
    for (Index v = 0; v < tile_vectors<T>; ++v) x[v] = x[v] * simd::load(factor + v * width);
  }
  if (masses != nullptr) {
    B mass = simd::load(state.mass_row(r));
    for (Index v = 0; v < tile_vectors<T>; ++v)  // of hidden keys it may be anything
      mass = simd::fma(x[v], simd::select(x[v] == B(T(0)), B(T(0)), simd::load(masses + v * width)), mass);
    simd::store(state.mass_row(r), mass);
  }
  RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) simd::store(dots + v * width, x[v]);
}

/// weigh_usual_row for rows k … rows−1 of `dots`, as far as they are usual: the first that is not, or `rows`. No other
/// call stands in this loop, so that constants stay in registers.
template <class L, class Bound, class T>
[[nodiscard, gnu::noinline]] Index weigh_usual_rows(const L& logits, const Bound bound, Index i, Index k, Index rows,
                                                    MatrixView<T> dots, const T* packed, const T* masses,
                                                    const BlockState<T>& state, Index r) {
  const BlockState<T> own = state;  // a copy, which lies in no place that is written
  for (; k < rows; ++k)
    if (!weigh_usual_row(logits, bound, i + k, dots.row(k).data(), packed, masses, own, r + k)) break;
  return k;
}

/// weigh_row for queries i … i+rows−1, rows r … of a block.
template <class L, class T>
[[gnu::noinline]] void weigh_rows(const L& logits, Index i, Index rows, Index begin, bool covered, MatrixView<T> dots,
                                  const T* packed, const T* masses, const BlockState<T>& state, Index r,
                                  const Dropout<T>* dropout) {
  const auto weigh = [&](Index k) {
    weigh_row(logits, i + k, begin, covered, dots.row(k).data(), packed, masses, state, r + k, dropout);
  };
  if constexpr (L::has_rank) {
    if (covered && dropout == nullptr && logits.ranked()) {
      const auto usual = [&](const auto& bound) {
        for (Index k = 0; k < rows; ++k) {
          k = weigh_usual_rows(logits, bound, i, k, rows, dots, packed, masses, state, r);
          if (k < rows) weigh(k);
        }
      };
      if constexpr (requires { logits.bound().decide(usual); })
        logits.bound().decide(usual);
      else
        usual(logits.bound());
      return;
    }
  }
  for (Index k = 0; k < rows; ++k) weigh(k);
}

/// What the backward pass of a softmax needs beside its inputs: m (v + 2) numbers.
template <Real T>
struct SavedSoftmax {
  Vector<T> reference;        ///< [m], μ
  Vector<T> inverse_sum;      ///< [m], 1/Σ e^(x−μ); 0 where the query saw no key
  Vector<T> mass;             ///< [m], mean of the masses; empty where the mean has none
  Matrix<T> value;            ///< [m×v], mean of the lifted values
  Rng rng{0};                 ///< for dropout; seeded by the caller
  std::uint64_t dropout = 0;  ///< the number drawn for the last forward pass

  /// Keeps the memory where the sizes are the same.
  void resize(Index m, Index value_dim, bool has_mass) {
    set_shape(reference, m);
    set_shape(inverse_sum, m);
    set_shape(mass, has_mass ? m : 0);
    set_shape(value, m, value_dim);
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention::detail
