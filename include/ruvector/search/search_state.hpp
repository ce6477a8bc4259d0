// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/softmax.hpp"
#include "ruvector/attention/softmax_state.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/search/types.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/top_k.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::search {

namespace detail {

/// Logits s/τ of scores that are there. NaN marks a candidate that is absent: it has the logit −∞.
template <Real T>
struct ScoreLogits {
  static constexpr bool has_rank = false;  ///< what `weigh_rows` asks
  T inverse_temperature;                   ///< 1/τ

  using Tile = simd::Batch<T>[attention::detail::tile_vectors<T>];  ///< 64 logits
  void operator()(Index, Index, const T* scores, const T*, bool, Tile& x) const {
    RUVECTOR_UNROLL for (Index v = 0; v < attention::detail::tile_vectors<T>; ++v) {
      const simd::Batch<T> score = simd::load(scores + v * simd::lanes<T>);
      x[v] = simd::select(score == score, score * inverse_temperature, -std::numeric_limits<T>::infinity());
    }
  }
};

/// What is known of a group of queries: nobody else works on it.
template <Real T>
struct Findings {
  std::span<simd::TopK<T>> best;          ///< [m]
  std::span<Index> seen;                  ///< [m] candidates that were scored
  attention::detail::BlockState<T> sums;  ///< of the softmax; no rows where it is not wanted
};

/// How results are written.
template <Real T>
struct Writing {
  ScoreLogits<T> logits;  ///< of the scores
  bool softmax;           ///< whether weights and the rest are wanted
  bool renormalize;       ///< whether weights of the k shall sum to 1
  T value_diameter;       ///< no two values are further apart

  /// Writes row `query` of the result from row i of the findings.
  void write(const Findings<T>& found, Index i, Index query, SearchResult<T>& result) const {
    const std::span<Index> ids = result.ids.row(query);
    const std::span<T> scores = result.scores.row(query);
    simd::TopK<T>& best = found.best[std::size_t(i)];
    const auto kept = std::size_t(std::min(best.k(), Index(ids.size())));
    result.count[query] = best.finish(ids.first(kept), scores.first(kept));
    std::fill(ids.begin() + Index(kept), ids.end(), Index(-1));
    std::fill(scores.begin() + Index(kept), scores.end(), -std::numeric_limits<T>::infinity());
    result.distance_count[query] = found.seen[std::size_t(i)];
    if (softmax) write_softmax(found.sums, i, query, result);
  }

 private:
  void write_softmax(const attention::detail::BlockState<T>& sums, Index i, Index query, SearchResult<T>& out) const {
    const T sum = simd::reduce_add(simd::load(sums.sum_row(i)));
    const bool blind = sum == 0;  // no candidate seen, or none above −∞
    const T inverse = blind ? T(0) : 1 / sum;
    write_weights(out.scores.row(query), sums.mu(i), inverse, out.weights.row(query));
    double mass = 0;
    for (const T weight : out.weights.row(query)) mass += double(weight);
    if (renormalize && mass > 0)
      for (T& weight : out.weights.row(query)) weight = T(double(weight) / mass);
    out.log_sum_exp[query] = blind ? -std::numeric_limits<T>::infinity() : sums.mu(i) + std::log(sum);
    out.mass[query] = T(std::min(mass, 1.0));
    if (out.embedding.empty()) return;
    const std::span<T> embedding = out.embedding.row(query);
    for (std::size_t c = 0; c < embedding.size(); ++c) embedding[c] = blind ? T(0) : sums.value(i, Index(c)) * inverse;
    // ‖o − o_C‖ = (1 − mass_C) ‖o_rest − o_C‖: both are in the convex hull of the values.
    out.error_bound[query] = blind || mass >= 1 ? T(0) : T(1 - mass) * value_diameter;
  }

  // The terms e^(s/τ − μ) of the sum again, divided by it.
  void write_weights(std::span<const T> scores, T mu, T inverse, std::span<T> weights) const {
    constexpr Index tile = attention::detail::tile_keys;
    for (Index p = 0; p < Index(scores.size()); p += tile) {
      T part[tile];
      const Index count = std::min(tile, Index(scores.size()) - p);
      std::fill(std::copy_n(scores.begin() + p, count, part), part + tile, -std::numeric_limits<T>::infinity());
      typename ScoreLogits<T>::Tile x;
      logits(0, 0, part, nullptr, true, x);
      attention::detail::weigh_logits<T>(x, mu);
      for (simd::Batch<T>& weight : x) weight = weight * inverse;
      attention::detail::store_tile<T>(x, p, weights);
    }
  }
};

/// Throws ConfigError unless the temperature can be divided by.
template <Real T>
void check_temperature(T temperature) {
  if (!(temperature > 0) || !std::isfinite(temperature) || !std::isfinite(1 / temperature)) [[unlikely]]
    throw_config_error("search: temperature", "> 0 and finite, as its inverse", double(temperature));
}

}  // namespace detail

/// The search of m queries among some of the candidates, still open: the k best so far and the softmax over all. It can
/// be continued with more candidates, and merged with the states of other shards: exactly, in any order, and what it
/// finds in the end has the bits of one search over all candidates. `ExactSearch::accumulate` fills it. Shards start at
/// multiples of 4096. Memory O(m (k + v log n)). It moves and is not copied.
template <Real T>
class SearchState {
 public:
  using Scalar = T;  ///< what it computes in

  /// Nothing seen by these queries. `value_dim`: columns of the values, or 0 for no embedding. Throws ShapeError for
  /// impossible sizes, ConfigError for an impossible temperature.
  SearchState(Index queries, Index k, T temperature = 1, Index value_dim = 0)
      : k_(k), temperature_(temperature), softmax_(queries, value_dim, false), seen_(std::size_t(queries), 0) {
    using Best = simd::TopK<T>;
    detail::check_temperature(temperature);
    (void)checked_size("SearchState: places", queries, k, 4 * Index(sizeof(simd::Ranked<T>)));
    const Index size = Best::buffer_size(k);
    buffers_.resize(std::size_t(checked_size("SearchState: buffers", queries, size, Index(sizeof(simd::Ranked<T>)))));
    for (Index i = 0; i < queries; ++i)
      best_.push_back(Best(k, std::span(buffers_).subspan(std::size_t(i * size), std::size_t(size))));
  }
  SearchState(const SearchState&) = delete;
  SearchState& operator=(const SearchState&) = delete;
  /// Takes over what was found.
  ///@{
  SearchState(SearchState&&) noexcept = default;
  SearchState& operator=(SearchState&&) noexcept = default;
  ///@}

  /// m.
  [[nodiscard]] Index queries() const { return softmax_.queries(); }
  /// v.
  [[nodiscard]] Index value_dim() const { return softmax_.value_dim(); }
  /// τ.
  [[nodiscard]] T temperature() const { return temperature_; }
  /// The candidate with which to go on in an incomplete leaf, or 0.
  [[nodiscard]] Index open_end() const { return softmax_.open_end(); }

  /// Adds all candidates that `other` has seen. Throws ShapeError for other sizes, ConfigError for another temperature
  /// or a leaf that is in both; then nothing was changed.
  void merge(const SearchState& other) {
    check_shape("SearchState: k", k_, other.k_);
    if (temperature_ != other.temperature_) [[unlikely]]
      throw_config_error("SearchState: temperature", std::to_string(temperature_), double(other.temperature_));
    softmax_.merge(other.softmax_);
    for (std::size_t i = 0; i < best_.size(); ++i) {
      best_[i].merge(other.best_[i]);
      seen_[i] += other.seen_[i];
    }
  }

  /// Calls scan(findings of all queries, begin, end) for `count` candidates from id first_id on, counted from 0, a leaf
  /// at a time. What `ExactSearch::accumulate` is made of. Throws ConfigError as it says.
  template <class Scan>
  void add(Index first_id, Index count, Scan&& scan) {
    softmax_.add(first_id, count, [&](const attention::detail::BlockState<T>& sums, Index begin, Index end) {
      scan(detail::Findings<T>{best_, seen_, sums}, begin, end);
    });
  }

  /// Writes what was found among all candidates seen, with the softmax. The search may go on afterwards; not const
  /// because merging needs room. `value_diameter`: for the bound of the error.
  void finish(SearchResult<T>& result, bool renormalize = false,
              T value_diameter = std::numeric_limits<T>::infinity()) {
    result.resize(queries(), k_, true, value_dim());
    const detail::Writing<T> writing{{1 / temperature_}, true, renormalize, value_diameter};
    const detail::Findings<T> found{best_, seen_, softmax_.total()};
    for (Index i = 0; i < queries(); ++i) writing.write(found, i, i, result);
  }

 private:
  Index k_;
  T temperature_;
  attention::SoftmaxState<T> softmax_;
  std::vector<Index> seen_;
  std::vector<simd::Ranked<T>> buffers_;
  std::vector<simd::TopK<T>> best_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::search
