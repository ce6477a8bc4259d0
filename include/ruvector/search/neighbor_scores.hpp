// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/graph/hnsw_layers.hpp"
#include "ruvector/search/scores.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <span>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::search {

/// A score that reads the rows it is asked for where they lie, however far apart: what a walk along a graph needs. A
/// score without this has its rows gathered first.
template <class S>
concept NeighborScore = CandidateScore<S> &&
    requires(const S& score, std::span<const ScalarOf<S>> query, MatrixView<const ScalarOf<S>> rows,
             std::span<const graph::HnswNode> chosen, std::span<ScalarOf<S>> out) {
  { score.neighbor_scores(query, rows, chosen, out) } -> std::same_as<void>;  // out_j of row chosen_j, bits as `scores`
};

namespace detail {

/// Σ_i term(sum, q_i, x_i) for `count` rows x at a time: their sums are independent, so that none waits for another,
/// and each has the order of simd/dot.hpp. Meanwhile the rows that come next are fetched line by line, since most of
/// the time of a walk goes into waiting for rows that no hardware can foresee.
template <int count, Real T, class Term>
[[gnu::always_inline]] inline void sums_of_rows(const T* q, const std::array<const T*, 4>& x,
                                                const std::array<const T*, 4>& next, Index d, T* out, Term term) {
  constexpr Index width = simd::lanes<T>;
  simd::Batch<T> sum[count];
  RUVECTOR_UNROLL for (int r = 0; r < count; ++r) sum[r] = simd::Batch<T>(T(0));
  Index i = 0;
  for (; i + width <= d; i += width) {
    const simd::Batch<T> of_query = simd::load(q + i);
    RUVECTOR_UNROLL for (int r = 0; r < count; ++r) {
      __builtin_prefetch(next[std::size_t(r)] + i);
      sum[r] = term(sum[r], of_query, simd::load(x[std::size_t(r)] + i));
    }
  }
  if (i < d) {
    const simd::Batch<T> of_query = simd::load_partial(q + i, d - i);
    RUVECTOR_UNROLL for (int r = 0; r < count; ++r) {
      __builtin_prefetch(next[std::size_t(r)] + i);
      sum[r] = term(sum[r], of_query, simd::load_partial(x[std::size_t(r)] + i, d - i));
    }
  }
  RUVECTOR_UNROLL for (int r = 0; r < count; ++r) out[r] = simd::reduce_add(sum[r]);
}

/// out_j = Σ_i term(sum, q_i, row chosen_j_i).
template <Real T, class Term>
[[gnu::flatten]] void sums_of_chosen(std::span<const T> query, MatrixView<const T> rows,
                                     std::span<const graph::HnswNode> chosen, std::span<T> out, Term term) {
  constexpr std::size_t at_once = 4;
  const Index d = Index(query.size());
  const auto pointers = [&](std::size_t first) {
    std::array<const T*, at_once> to;
    for (std::size_t r = 0; r < at_once; ++r)
      to[r] = rows.data() + Index(chosen[std::min(first + r, chosen.size() - 1)]) * rows.stride();
    return to;
  };
  for (std::size_t j = 0; j < chosen.size(); j += at_once) {
    const auto x = pointers(j), next = pointers(j + at_once);
    T* to = out.data() + j;
    switch (std::min(at_once, chosen.size() - j)) {
      case 1:
        sums_of_rows<1>(query.data(), x, next, d, to, term);
        break;
      case 2:
        sums_of_rows<2>(query.data(), x, next, d, to, term);
        break;
      case 3:
        sums_of_rows<3>(query.data(), x, next, d, to, term);
        break;
      default:
        sums_of_rows<4>(query.data(), x, next, d, to, term);
        break;
    }
  }
}

}  // namespace detail

/// score = −‖q − k‖²: orders like the distance and saves the square root. hnswlib's L2Space, negated.
template <Real T>
struct SquaredDistance {
  /// What it computes in.
  using Scalar = T;

  /// out_ij = −‖q_i − k_j‖². O(m n d).
  void scores(MatrixView<const T> queries, MatrixView<const T> candidates, MatrixView<T> out, Workspace&) const {
    for (Index i = 0; i < out.rows(); ++i)
      for (Index j = 0; j < out.cols(); ++j) out(i, j) = 0 - simd::squared_distance(queries.row(i), candidates.row(j));
  }

  /// out_j = −‖q − row chosen_j‖². O(n d).
  void neighbor_scores(std::span<const T> query, MatrixView<const T> rows, std::span<const graph::HnswNode> chosen,
                       std::span<T> out) const {
    detail::sums_of_chosen(query, rows, chosen, out, [](simd::Batch<T> sum, simd::Batch<T> x, simd::Batch<T> y) {
      const simd::Batch<T> difference = x - y;
      return simd::fma(difference, difference, sum);
    });
    for (T& score : out) score = 0 - score;  // not -score: a distance of 0 scores 0, not −0
  }
};

namespace detail {

/// out_j = the score of row chosen_j.
template <CandidateScore S>
void neighbor_scores(const S& score, std::span<const ScalarOf<S>> query, MatrixView<const ScalarOf<S>> rows,
                     std::span<const graph::HnswNode> chosen, std::span<ScalarOf<S>> out, Workspace& workspace) {
  using T = ScalarOf<S>;
  if constexpr (NeighborScore<S>) {
    score.neighbor_scores(query, rows, chosen, out);
  } else {
    auto frame = workspace.frame();
    const auto gathered = frame.template matrix<T>(Index(chosen.size()), rows.cols());
    for (std::size_t j = 0; j < chosen.size(); ++j)
      std::ranges::copy(rows.row(Index(chosen[j])), gathered.row(Index(j)).begin());
    score.scores({query.data(), 1, Index(query.size())}, gathered, {out.data(), 1, Index(out.size())}, workspace);
  }
}

}  // namespace detail

}  // namespace ruvector::inline RUVECTOR_ABI::search
