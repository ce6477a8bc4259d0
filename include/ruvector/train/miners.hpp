// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/train/concepts.hpp"
#include "ruvector/train/contrastive.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::train {

/// Which negatives an anchor learns from.
enum class Mining {
  random,             ///< any, equally likely
  hard,               ///< the most similar ones
  semi_hard,          ///< farther than the positive, by less than the margin, the nearest first; then the hard ones
  distance_weighted,  ///< drawn one after the other with probabilities softmax(cosine/temperature) over what is left
};

/// Options of mine_negatives.
struct MiningConfig {
  Mining mining = Mining::hard;  ///< which
  double margin = 0.1;           ///< of semi_hard, in Euclidean distance
  double temperature = 1;        ///< of distance_weighted, > 0
};

/// No candidate.
inline constexpr Index no_candidate = -1;

namespace detail {

/// A candidate and how much it is wanted.
struct MiningCandidate {
  int rank;    // those of a smaller rank come first, then
  double key;  // the larger
  Index id;    // and then the smaller

  [[nodiscard]] bool operator<(const MiningCandidate& other) const {
    if (rank != other.rank) return rank < other.rank;
    return key != other.key ? key > other.key : id < other.id;
  }
};

/// −ln(−ln u): the k largest of x_i + g_i are a sample without replacement with probabilities softmax(x). Source:
/// Gumbel 1954; Efraimidis & Spirakis 2006.
[[nodiscard]] inline double gumbel(Rng& rng) {
  return -std::log(-std::log((double(rng.bits() >> 11) + 0.5) * 0x1p-53));
}

}  // namespace detail

/// Picks negatives for every anchor [n×d], whose positive is the same row of `positive` [n×d], among candidates [m×d]:
/// row i of `out` [n×k] gets different candidates, the most wanted first, and no_candidate where there are not enough.
/// Only pairs(i, j) == Pair::negative may be picked; an empty `pairs` allows all. Candidates with NaN come last. Random
/// numbers of row i come from rng.split(i), so a row depends on itself alone. Similarities are cosines, 0 with a vector
/// of zeros. Throws ShapeError, ConfigError. O(n m d), memory O(m) a worker. Source: Schroff et al. 2015 (semi-hard);
/// the strategies of version 1.
template <Real T, Executor E = Serial>
void mine_negatives(MatrixView<const T> anchor, MatrixView<const T> positive, MatrixView<const T> candidates,
                    MatrixView<const Pair> pairs, MatrixView<Index> out, const MiningConfig& config, const Rng& rng,
                    Workspace& workspace, E&& executor = Serial{}) {
  const Index n = anchor.rows(), m = candidates.rows(), d = anchor.cols(), k = out.cols();
  nn::detail::check_matrix("mine_negatives: positive", n, d, positive);
  check_shape("mine_negatives: columns of candidates", d, candidates.cols());
  nn::detail::check_wanted("mine_negatives: pairs", n, m, pairs);
  check_shape("mine_negatives: rows of out", n, out.rows());
  detail::check_not_negative("mine_negatives: margin", config.margin);
  detail::check_option("mine_negatives: temperature", config.temperature, std::numeric_limits<double>::min(),
                       std::numeric_limits<double>::max(), "finite and > 0");

  const auto candidate = [&](Index i, Index j, double anchor_norm, double near, Rng& own) {
    const auto cosine = [&] {
      const double norm = anchor_norm * std::sqrt(double(simd::squared_norm(candidates.row(j))));
      return norm == 0 ? 0 : double(simd::dot(anchor.row(i), candidates.row(j))) / norm;
    };
    switch (config.mining) {
      case Mining::random:
        return detail::MiningCandidate{0, own.uniform(), j};
      case Mining::hard:
        return detail::MiningCandidate{0, cosine(), j};
      case Mining::semi_hard: {
        const double far = std::sqrt(double(simd::squared_distance(anchor.row(i), candidates.row(j))));
        if (far > near && far < near + config.margin) return detail::MiningCandidate{0, -far, j};
        return detail::MiningCandidate{1, cosine(), j};
      }
      case Mining::distance_weighted:
        break;
    }
    return detail::MiningCandidate{0, cosine() / config.temperature + detail::gumbel(own), j};
  };
  nn::for_row_ranges(
      n, workspace,
      [&](Index first, Index count, Workspace& scratch) {
        auto frame = scratch.frame();
        const auto found = frame.span<detail::MiningCandidate>(m);
        for (Index i = first; i < first + count; ++i) {
          Rng own = rng.split(std::uint64_t(i));
          const double anchor_norm = std::sqrt(double(simd::squared_norm(anchor.row(i))));
          const double near = std::sqrt(double(simd::squared_distance(anchor.row(i), positive.row(i))));
          Index size = 0;
          for (Index j = 0; j < m; ++j)
            if (pairs.empty() || pairs(i, j) == Pair::negative) {
              const detail::MiningCandidate next = candidate(i, j, anchor_norm, near, own);
              found[std::size_t(size++)] = std::isnan(next.key) ? detail::MiningCandidate{2, 0, j} : next;
            }
          const Index picked = std::min(k, size);
          std::partial_sort(found.begin(), found.begin() + picked, found.begin() + size);
          for (Index c = 0; c < k; ++c) out(i, c) = c < picked ? found[std::size_t(c)].id : no_candidate;
        }
      },
      executor);
}

}  // namespace ruvector::inline RUVECTOR_ABI::train
