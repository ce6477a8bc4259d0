// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/graph/csr_graph.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

// Coordinates of nodes, one row a node, for rotary positions: attention rotates node i by angles Ω r_i, so a score sees
// r_i − r_j alone. Each function fills a matrix [n×m] of the caller's; renaming the nodes permutes its rows. They run
// once a graph, not once a call of a model: they allocate, and no gradient flows through them. Those that need
// eigenvectors are in graph/spectral_positions.hpp, which takes seconds longer to compile.

namespace ruvector::inline RUVECTOR_ABI::graph {

/// r_i = first + i, [n×1]: the positions of a sequence, so that graph rotary attention is plain RoPE. Throws
/// ShapeError.
template <Real T>
void sequence_positions(MatrixView<T> out, Index first = 0) {
  check_shape("sequence_positions: columns", 1, out.cols());
  for (Index i = 0; i < out.rows(); ++i) out(i, 0) = static_cast<T>(first + i);
}

// --- Hops ---

/// The number of hops to a node that cannot be reached.
inline constexpr std::int32_t unreachable = -1;

namespace detail {

/// hops[i] = edges on a shortest path from `source` to node i, breadth first.
template <NodeId I>
void breadth_first(CsrView<I> graph, Index source, std::span<std::int32_t> hops) {
  std::ranges::fill(hops, unreachable);
  std::vector<I> queue;
  queue.reserve(hops.size());
  queue.push_back(static_cast<I>(source));
  hops[static_cast<std::size_t>(source)] = 0;
  for (std::size_t k = 0; k < queue.size(); ++k) {
    const std::int32_t next = hops[static_cast<std::size_t>(queue[k])] + 1;
    for (const I to : graph.neighbors(static_cast<Index>(queue[k]))) {
      if (hops[static_cast<std::size_t>(to)] != unreachable) continue;
      hops[static_cast<std::size_t>(to)] = next;
      queue.push_back(to);
    }
  }
}

inline void check_hop_count(Index nodes) {
  if (nodes > std::numeric_limits<std::int32_t>::max()) [[unlikely]]
    throw_shape_error("hops: nodes", "below 2^31", std::to_string(nodes));
}

}  // namespace detail

/// hops(i, l) = edges on a shortest path from node i to landmarks[l] along the edges' direction, or `unreachable`:
/// [n×m]. Throws ShapeError. O(m (n + edges)). Landmarks of an HNSW graph are the nodes of its top level.
template <NodeId I>
void landmark_hops(CsrView<I> graph, std::span<const I> landmarks, MatrixView<std::int32_t> hops) {
  detail::check_hop_count(graph.nodes());
  detail::check_indices("landmark_hops: landmarks", landmarks, graph.nodes());
  check_shape("landmark_hops: rows", graph.nodes(), hops.rows());
  check_shape("landmark_hops: columns", static_cast<Index>(landmarks.size()), hops.cols());
  const CsrGraph<I> reversed = transpose(graph);
  std::vector<std::int32_t> column(static_cast<std::size_t>(graph.nodes()));
  for (Index l = 0; l < hops.cols(); ++l) {
    detail::breadth_first<I>(reversed, static_cast<Index>(landmarks[static_cast<std::size_t>(l)]), column);
    for (Index i = 0; i < graph.nodes(); ++i) hops(i, l) = column[static_cast<std::size_t>(i)];
  }
}

/// The hops of a node that is inserted with edges to `neighbors`: 1 + the fewest of a neighbour, for each landmark;
/// `unreachable` if it is so for all of them. Exact for the new node; the others keep theirs, though a path through it
/// may be shorter. Throws ShapeError. O(neighbors·m).
template <NodeId I>
void inserted_hops(MatrixView<const std::int32_t> hops, std::span<const I> neighbors, std::span<std::int32_t> out) {
  detail::check_indices("inserted_hops: neighbors", neighbors, hops.rows());
  check_shape("inserted_hops: out", hops.cols(), static_cast<Index>(out.size()));
  std::ranges::fill(out, unreachable);
  for (const I neighbor : neighbors)
    for (std::size_t l = 0; l < out.size(); ++l) {
      const std::int32_t through = hops(static_cast<Index>(neighbor), static_cast<Index>(l));
      if (through != unreachable && (out[l] == unreachable || through + 1 < out[l])) out[l] = through + 1;
    }
}

/// The number of hops that becomes coordinate 1: the most hops to a landmark, one more if some node cannot reach one,
/// at least 1. Keep it while nodes are inserted, so that those before them stay where they are.
[[nodiscard]] inline std::int32_t farthest_hops(MatrixView<const std::int32_t> hops) {
  std::int32_t most = 1;
  bool missing = false;
  for (Index i = 0; i < hops.rows(); ++i)
    for (const std::int32_t h : hops.row(i)) {
      most = std::max(most, h);
      missing = missing || h == unreachable;
    }
  return missing ? most + 1 : most;
}

/// r = log(1 + hops)/log(1 + farthest), [n×m]: 0 at the landmark, 1 at `farthest` hops and where it cannot be reached;
/// beyond 1 only for nodes inserted later. Throws ShapeError, ConfigError unless farthest >= 1.
template <Real T>
void landmark_positions(MatrixView<const std::int32_t> hops, std::int32_t farthest, MatrixView<T> out) {
  check_shape("landmark_positions: rows", hops.rows(), out.rows());
  check_shape("landmark_positions: columns", hops.cols(), out.cols());
  if (farthest < 1) [[unlikely]]
    throw_config_error("landmark_positions: farthest", ">= 1", double(farthest));
  const double scale = std::log1p(double(farthest));
  for (Index i = 0; i < out.rows(); ++i)
    for (Index l = 0; l < out.cols(); ++l)
      out(i, l) = hops(i, l) == unreachable ? T(1) : static_cast<T>(std::log1p(double(hops(i, l))) / scale);
}

/// The three steps at once, for a graph that does not grow: [n×landmarks].
template <NodeId I, Real T>
void landmark_positions(CsrView<I> graph, std::span<const std::type_identity_t<I>> landmarks, MatrixView<T> out) {
  Matrix<std::int32_t> hops(graph.nodes(), static_cast<Index>(landmarks.size()));
  landmark_hops<I>(graph, landmarks, hops);
  landmark_positions<T>(hops, farthest_hops(hops), out);
}

/// Version 1's bucket of a distance in hops: d up to 8, else 8 + min(⌈log₂ d⌉, most − 8), so 9 hops are bucket 12;
/// `unreachable` is the last one, `most`. Throws ConfigError unless most >= 8. Only to reproduce old results: the
/// distance is that of a key *from the query*, so positions are not relative between keys, and change with the query.
[[nodiscard]] inline Index hop_bucket(Index hops, Index most) {
  if (most < 8) [[unlikely]]
    throw_config_error("hop_bucket: most", ">= 8", static_cast<double>(most));
  if (hops < 0) return most;
  if (hops <= 8) return hops;
  const auto log2 = static_cast<Index>(std::bit_width(static_cast<std::uint64_t>(hops - 1)));  // ⌈log₂ hops⌉
  return 8 + std::min(log2, most - 8);
}

/// r_i = hop_bucket(hops from `query` to node i), [n×1]. Throws ShapeError, ConfigError. O(n + edges).
template <NodeId I, Real T>
void hop_bucket_positions(CsrView<I> graph, Index query, Index most, MatrixView<T> out) {
  detail::check_hop_count(graph.nodes());
  detail::check_indices<Index>("hop_bucket_positions: query", {&query, 1}, graph.nodes());
  check_shape("hop_bucket_positions: rows", graph.nodes(), out.rows());
  check_shape("hop_bucket_positions: columns", 1, out.cols());
  std::vector<std::int32_t> hops(static_cast<std::size_t>(graph.nodes()));
  detail::breadth_first<I>(graph, query, hops);
  for (Index i = 0; i < graph.nodes(); ++i)
    out(i, 0) = static_cast<T>(hop_bucket(hops[static_cast<std::size_t>(i)], most));
}

// --- Random walks ---

namespace detail {

/// A distribution over nodes that is zero at most of them.
struct Walk {
  std::vector<double> probability, next;  // [n], zero but where listed
  std::vector<Index> at, next_at;

  explicit Walk(Index nodes) : probability(static_cast<std::size_t>(nodes)), next(probability) {}

  void start(Index node) {
    for (const Index i : at) probability[static_cast<std::size_t>(i)] = 0;
    at.assign(1, node);
    probability[static_cast<std::size_t>(node)] = 1;
  }

  template <NodeId I>
  void step(CsrView<I> graph) {
    next_at.clear();
    for (const Index i : at) {
      double& here = probability[static_cast<std::size_t>(i)];
      const double share = here / static_cast<double>(graph.degree(i));
      here = 0;
      if (!(share > 0)) continue;  // a node without edges ends the walk
      for (const I to : graph.neighbors(i)) {
        double& there = next[static_cast<std::size_t>(to)];
        if (there == 0) next_at.push_back(static_cast<Index>(to));
        there += share;
      }
    }
    std::swap(probability, next);
    std::swap(at, next_at);
  }
};

}  // namespace detail

/// r_it = the chance that a random walk from node i is there again after t steps, diag(Pᵗ)_i for t = 1 … m, P = D⁻¹A:
/// [n×m]. A walk ends at a node without edges. Throws ShapeError. O(n m edges) at worst, far less where m steps stay
/// near. Source: Dwivedi et al. 2022 (RWPE).
template <NodeId I, Real T, Executor E = Serial>
void rwpe_positions(CsrView<I> graph, MatrixView<T> out, E&& executor = Serial{}) {
  check_shape("rwpe_positions: rows", graph.nodes(), out.rows());
  std::vector<detail::Walk> walks(static_cast<std::size_t>(executor.concurrency()), detail::Walk(graph.nodes()));
  executor.parallel_for(graph.nodes(), [&](Index i, Index worker) {
    detail::Walk& walk = walks[static_cast<std::size_t>(worker)];
    walk.start(i);
    for (T& r : out.row(i)) {
      walk.step(graph);
      r = static_cast<T>(walk.probability[static_cast<std::size_t>(i)]);
    }
  });
}

}  // namespace ruvector::inline RUVECTOR_ABI::graph
