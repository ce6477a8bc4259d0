// SPDX-License-Identifier: MIT
#pragma once

#include "hierarchy.hpp"

#include <ruvector/core/executor.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/view.hpp>
#include <ruvector/geometry/concepts.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace examples {

/// How well distances tell the ancestors of a node, or some of them, from the nodes that are none.
struct Reconstruction {
  double mean_rank = 0;               ///< of an ancestor among the nodes that are none, 1 is best; mean over the pairs
  double mean_average_precision = 0;  ///< mean over the nodes that have such ancestors
  double recall_at_10 = 0;            ///< |ten nearest ∩ ancestors| / min(10, ancestors), mean over those nodes
};

namespace detail {

/// One node, of whose ancestors some are ranked. `distance` [n] is to all nodes; `distance[node]` and those of
/// ancestors are overwritten.
[[nodiscard]] inline Reconstruction rank_ancestors(Index node, std::span<const std::int32_t> ranked,
                                                   std::span<const std::int32_t> ancestors, std::span<double> distance,
                                                   std::vector<double>& near) {
  using Limits = std::numeric_limits<double>;
  near.clear();
  for (const std::int32_t v : ranked) {
    const double d = distance[static_cast<std::size_t>(v)];
    near.push_back(std::isnan(d) ? Limits::infinity() : d);
  }
  std::sort(near.begin(), near.end());
  // What diverged is as bad as can be: its ancestors are far, its rivals near.
  std::replace_if(
      distance.begin(), distance.end(), [](double d) { return std::isnan(d); }, -Limits::infinity());
  // From here on NaN is no rival: neither the node itself nor its ancestors are
  distance[static_cast<std::size_t>(node)] = Limits::quiet_NaN();
  for (const std::int32_t v : ancestors) distance[static_cast<std::size_t>(v)] = Limits::quiet_NaN();

  Reconstruction result;
  for (std::size_t i = 0; i < near.size(); ++i) {
    // a tie counts against the embedding; this loop is SIMD, and faster than sorting n distances
    const Index nearer = std::count_if(distance.begin(), distance.end(), [&](double d) { return d <= near[i]; });
    const auto position = static_cast<double>(nearer + static_cast<Index>(i) + 1);
    result.mean_rank += static_cast<double>(nearer + 1);
    result.mean_average_precision += static_cast<double>(i + 1) / position;
    result.recall_at_10 += position <= 10;
  }
  const auto count = static_cast<double>(near.size());
  result.mean_average_precision /= count;
  result.recall_at_10 /= std::min(10.0, count);
  return result;
}

}  // namespace detail

/// Ranks, for each node of the hierarchy, those of its ancestors that `ranked` lists among the nodes that are none, by
/// their distance. `points` are [n×columns] of `manifold`. O(n² columns) time, O(n) memory a thread. The same bits for
/// any number of threads.
template <ruvector::geometry::Manifold M, ruvector::Executor E>
[[nodiscard]] Reconstruction reconstruct(const M& manifold, const Hierarchy& hierarchy, const Adjacency& ranked,
                                         ruvector::MatrixView<const double> points, E& executor) {
  const Index n = hierarchy.size();
  ruvector::Matrix<double> columns(points.cols(), n);
  for (Index i = 0; i < n; ++i)
    for (Index k = 0; k < points.cols(); ++k) columns(k, i) = points(i, k);

  // Some nodes at a time and a block of the others: so the points come from memory once for all of them.
  constexpr Index together = 16, block = 1024;
  struct Worker {
    ruvector::Matrix<double> distance;  // [together × n]
    std::vector<double> near;
  };
  std::vector<Worker> workers(static_cast<std::size_t>(executor.concurrency()));
  std::vector<Reconstruction> results(static_cast<std::size_t>(n));
  executor.parallel_for((n + together - 1) / together, [&](Index task, Index w) {
    Worker& worker = workers[static_cast<std::size_t>(w)];
    if (worker.distance.empty()) worker.distance = ruvector::Matrix<double>(together, n);
    const Index first = task * together, count = std::min(together, n - first);
    for (Index j = 0; j < n; j += block)
      for (Index u = first; u < first + count; ++u)
        if (const Index width = std::min(block, n - j); !ranked[u].empty())
          manifold.distances(points.row(u), columns.view().cols(j, width),
                             worker.distance.row(u - first).subspan(std::size_t(j), std::size_t(width)));
    for (Index u = first; u < first + count; ++u)
      if (!ranked[u].empty())
        results[static_cast<std::size_t>(u)] =
            detail::rank_ancestors(u, ranked[u], hierarchy.ancestors[u], worker.distance.row(u - first), worker.near);
  });

  Reconstruction mean;
  double nodes = 0;
  for (Index u = 0; u < n; ++u) {
    const Reconstruction& one = results[static_cast<std::size_t>(u)];
    mean.mean_rank += one.mean_rank;
    mean.mean_average_precision += one.mean_average_precision;
    mean.recall_at_10 += one.recall_at_10;
    nodes += !ranked[u].empty();
  }
  mean.mean_rank /= static_cast<double>(ranked.target.size());
  mean.mean_average_precision /= nodes;
  mean.recall_at_10 /= nodes;
  return mean;
}

/// The same for all ancestors.
template <ruvector::geometry::Manifold M, ruvector::Executor E>
[[nodiscard]] Reconstruction reconstruct(const M& manifold, const Hierarchy& hierarchy,
                                         ruvector::MatrixView<const double> points, E& executor) {
  return reconstruct(manifold, hierarchy, hierarchy.ancestors, points, executor);
}

}  // namespace examples
