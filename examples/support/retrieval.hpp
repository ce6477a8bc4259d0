// SPDX-License-Identifier: MIT
#pragma once

#include "dual_encoder.hpp"

#include <ruvector/core/matrix.hpp>
#include <ruvector/search/types.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace examples {

/// How much of what belongs to queries was found. S is the set that belongs to a query: itself and its ancestors.
struct Recall {
  static constexpr std::size_t hops = 9;

  double at_10 = 0;                   ///< mean over queries of |10 best ∩ S|/min(10, |S|)
  double at_size = 0;                 ///< mean over queries of |the |S| best ∩ S|/|S|
  std::array<double, hops> by_hop{};  ///< of the pairs (query, ancestor) that are h = 0 … 8 edges apart on the
                                      ///< shortest way up (0: the query itself), the share with the ancestor among
                                      ///< the |S| best of its query; NaN where there is no such pair
  double worst = 0;                   ///< the least of them
};

/// The most that can belong to a query: as many places must be searched for.
[[nodiscard]] inline Index most_relevant(const Relevance& relevance) {
  Index most = 10;
  for (Index q = 0; q < relevance.items.size(); ++q)
    most = std::max(most, static_cast<Index>(relevance.items[q].size()));
  return most;
}

/// Recall of ids [queries × places], best first, −1 for none. With fewer places than `most_relevant`, `at_size` and
/// what follows from it cannot be told, and are NaN.
[[nodiscard]] inline Recall recall(const Relevance& relevance, std::span<const std::int32_t> queries,
                                   MatrixView<const Index> ids) {
  Recall result;
  std::array<double, Recall::hops> pairs{};
  for (std::size_t i = 0; i < queries.size(); ++i) {
    const auto items = relevance.items[queries[i]];
    const auto hops = relevance.hops(queries[i]);
    const auto found = ids.row(static_cast<Index>(i));
    double in_10 = 0, in_size = 0;
    for (std::size_t p = 0; p < items.size(); ++p) {
      const auto place = static_cast<std::size_t>(std::find(found.begin(), found.end(), items[p]) - found.begin());
      const bool in = place < std::min(items.size(), found.size());
      in_10 += place < std::min<std::size_t>(10, found.size());
      in_size += in;
      if (const auto h = static_cast<std::size_t>(hops[p]); h < Recall::hops) {
        pairs[h] += 1;
        result.by_hop[h] += in;
      }
    }
    const auto size = static_cast<double>(items.size()), all = static_cast<double>(queries.size());
    result.at_10 += in_10 / std::min(10.0, size) / all;
    result.at_size += in_size / size / all;
  }
  constexpr double unknown = std::numeric_limits<double>::quiet_NaN();
  const bool enough = ids.cols() >= most_relevant(relevance);
  if (!enough) result.at_size = unknown;
  result.worst = enough ? 1 : unknown;
  for (std::size_t h = 0; h < Recall::hops; ++h) {
    result.by_hop[h] = enough && pairs[h] > 0 ? result.by_hop[h] / pairs[h] : unknown;
    if (pairs[h] > 0) result.worst = std::min(result.worst, result.by_hop[h]);
  }
  return result;
}

/// The share of the ten best of `exact` [queries × ≥ 10] that are among the ten best of `found`, mean over queries.
[[nodiscard]] inline double agreement(MatrixView<const Index> exact, MatrixView<const Index> found) {
  double shared = 0, wanted = 0;
  for (Index i = 0; i < exact.rows(); ++i) {
    const auto places = [](std::span<const Index> ids) { return ids.first(std::min<std::size_t>(10, ids.size())); };
    const auto there = places(found.row(i));
    for (const Index id : places(exact.row(i))) {
      if (id < 0) continue;
      wanted += 1;
      shared += std::find(there.begin(), there.end(), id) != there.end();
    }
  }
  return shared / wanted;
}

}  // namespace examples
