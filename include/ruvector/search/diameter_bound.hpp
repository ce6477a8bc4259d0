// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/logits.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <type_traits>

namespace ruvector::inline RUVECTOR_ABI::search {

/// A distance that no two of the values [n×v] exceed, at most √v times the largest: twice the largest distance from the
/// middle of the box around them. For `Candidates::value_diameter`; by it a mean over some of the candidates is known
/// to be near the mean over all:
///
///     ‖o − o_C‖ ≤ (1 − mass_C) diam(V),   o_C = Σ_C p_j v_j / mass_C
///
/// since the rest has the mass 1 − mass_C and both means are in the convex hull of V. ∞ where a value is not finite.
/// O(n v), two passes, once for all searches. `scale`: [n], for int8.
template <Real T, attention::Storage S = T>
[[nodiscard]] T diameter_bound(std::type_identity_t<MatrixView<const S>> values, std::span<const T> scale = {}) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  Vector<T> row(values.cols()), low(values.cols(), infinity), high(values.cols(), -infinity);
  for (Index j = 0; j < values.rows(); ++j) {
    attention::detail::read_row<T, S>(values, scale, j, row.span());
    for (Index c = 0; c < row.size(); ++c) {
      low[c] = std::min(low[c], row[c]);
      high[c] = std::max(high[c], row[c]);
    }
  }
  double largest = 0;
  for (Index j = 0; j < values.rows(); ++j) {
    attention::detail::read_row<T, S>(values, scale, j, row.span());
    double square = 0;
    for (Index c = 0; c < row.size(); ++c) {
      const double difference = double(row[c]) - (double(low[c]) + double(high[c])) / 2;
      square += difference * difference;
    }
    if (!(square <= std::numeric_limits<double>::max())) return infinity;
    largest = std::max(largest, square);
  }
  return std::nextafter(static_cast<T>(2 * std::sqrt(largest)), infinity);
}

}  // namespace ruvector::inline RUVECTOR_ABI::search
