// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/matrix.hpp"
#include "ruvector/core/real.hpp"

namespace ruvector::inline RUVECTOR_ABI::search {

/// What a search found for a batch of B queries, k places each; passed by reference and reused, so that a second search
/// of the same size allocates nothing. Scores: larger is better, distances enter negated. Best first, ties by the
/// smaller id.
template <Real T>
struct SearchResult {
  Matrix<Index> ids;    ///< [B×k] rows of the candidates; −1 where there was none to return
  Matrix<T> scores;     ///< [B×k] their scores; −∞ there
  Vector<Index> count;  ///< [B] how many places are filled: those in front

  /// Takes on a size; what was there is lost. Allocates only if the size changes. Throws ShapeError.
  void resize(Index queries, Index k) {
    if (ids.rows() == queries && ids.cols() == k && scores.rows() == queries && scores.cols() == k &&
        count.size() == queries)
      return;
    *this = SearchResult{Matrix<Index>(queries, k), Matrix<T>(queries, k), Vector<Index>(queries)};
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::search
