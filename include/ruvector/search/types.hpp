// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/matrix.hpp"
#include "ruvector/core/real.hpp"

#include <vector>

namespace ruvector::inline RUVECTOR_ABI::search {

/// A step of a hierarchical search: a node that it went to.
template <Real T>
struct SearchStep {
  Index level;  ///< 0 at the bottom
  Index node;   ///< row of the vectors
  T score;      ///< what it was chosen by: the learned score
};

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
  Matrix<T> state;               ///< [B×d] hierarchical: what the queries had become where level 0 was entered
  std::vector<std::vector<SearchStep<T>>> trace;  ///< [B] hierarchical: the nodes gone to; on levels above 0 the beams
  bool stopped = false;  ///< ended before all candidates were seen; all of the above is exact for those seen

  /// Takes on a size; what was there is lost. Allocates only what changes its size. Throws ShapeError.
  /// After std::bad_alloc, here or in a search, the contents are undefined and the next search makes them good.
  void resize(Index queries, Index k, bool softmax = false, Index value_dim = 0) {
    const Index weighed = softmax ? queries : 0, embedded = value_dim > 0 ? weighed : 0;
    set_shape(ids, queries, k);
    set_shape(scores, queries, k);
    set_shape(count, queries);
    set_shape(distance_count, queries);
    set_shape(weights, weighed, softmax ? k : 0);
    set_shape(log_sum_exp, weighed);
    set_shape(mass, weighed);
    set_shape(embedding, embedded, value_dim);
    set_shape(error_bound, embedded);
    set_shape(state, 0, 0);
    trace.clear();
    stopped = false;
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::search
