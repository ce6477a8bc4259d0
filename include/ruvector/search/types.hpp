// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/matrix.hpp"
#include "ruvector/core/real.hpp"

#include <type_traits>

namespace ruvector::inline RUVECTOR_ABI::search {

/// What a search found for a batch of B queries, k places each; passed by reference and reused, so that a second search
/// of the same size allocates nothing. Scores: larger is better, distances enter negated. Best first, ties by the
/// smaller id.
///
/// What concerns the softmax is empty where it was not asked for. Its weights are exact: p_j = e^(s_j/τ − lse) over
/// *all* candidates that the query was allowed to see, not over the k.
template <Real T>
struct SearchResult {
  Matrix<Index> ids;             ///< [B×k] rows of the candidates; −1 where there was none to return
  Matrix<T> scores;              ///< [B×k] their scores s; −∞ there
  Vector<Index> count;           ///< [B] how many places are filled: those in front
  Vector<Index> distance_count;  ///< [B] how many candidates a query was compared with
  Matrix<T> weights;             ///< [B×k] p of those returned; 0 in empty places
  Vector<T> log_sum_exp;         ///< [B] log Σ e^(s_j/τ) over all candidates; −∞ where there is none
  Vector<T> mass;                ///< [B] Σ p over the k: how much of the softmax they are
  Matrix<T> embedding;           ///< [B×v] o = Σ p_j v_j over all candidates; zeros where there is none
  Vector<T> error_bound;         ///< [B] ‖o − o_C‖ is at most this, if o_C averages the values of the k alone
  bool stopped = false;          ///< ended before all candidates were seen; all of the above is exact for those seen

  /// Takes on a size; what was there is lost. Allocates only what changes its size. Throws ShapeError.
  void resize(Index queries, Index k, bool softmax = false, Index value_dim = 0) {
    const auto matrix = [](auto& x, Index rows, Index cols) {
      if (x.rows() != rows || x.cols() != cols) x = std::remove_cvref_t<decltype(x)>(rows, cols);
    };
    const auto vector = [](auto& x, Index size) {
      if (x.size() != size) x = std::remove_cvref_t<decltype(x)>(size);
    };
    const Index weighed = softmax ? queries : 0, embedded = value_dim > 0 ? weighed : 0;
    matrix(ids, queries, k);
    matrix(scores, queries, k);
    vector(count, queries);
    vector(distance_count, queries);
    matrix(weights, weighed, softmax ? k : 0);
    vector(log_sum_exp, weighed);
    vector(mass, weighed);
    matrix(embedding, embedded, value_dim);
    vector(error_bound, embedded);
    stopped = false;
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::search
