// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/graph/csr_graph.hpp"
#include "ruvector/graph/subgraph.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::graph {

/// What kind an edge is of: 0 … types−1.
using EdgeType = std::int32_t;

/// A graph whose edges have types, found by the id of an edge, as all that belongs to edges is: "is a kind of", "has
/// part", and the other way round. Value semantics; it never changes but for its types.
template <NodeId I = std::int32_t>
class TypedGraph {
 public:
  /// No node, no type.
  TypedGraph() = default;

  /// Edge k leads from sources[k] to targets[k], has the id k and the type edge_types[k] in 0 … types−1. Throws
  /// ShapeError for lists that differ in length, nodes or types out of range. O(nodes + edges).
  TypedGraph(Index nodes, std::span<const I> sources, std::span<const I> targets, Index types,
             std::span<const EdgeType> edge_types)
      : graph_(nodes, sources, targets), types_(types), edge_types_(edge_types.begin(), edge_types.end()) {
    check_types();
  }
  /// The edges of a graph have the types edge_types[id]. Throws ShapeError as above.
  TypedGraph(CsrGraph<I> graph, Index types, std::vector<EdgeType> edge_types)
      : graph_(std::move(graph)), types_(types), edge_types_(std::move(edge_types)) {
    check_types();
  }

  /// The edges without their types.
  [[nodiscard]] CsrView<I> view() const& { return graph_.view(); }
  void view() const&& = delete;  // the view would outlive the graph
  /// Number of nodes.
  [[nodiscard]] Index nodes() const { return graph_.nodes(); }
  /// Number of edges.
  [[nodiscard]] Index edges() const { return graph_.edges(); }
  /// Number of types.
  [[nodiscard]] Index types() const { return types_; }
  /// [edges], by id.
  [[nodiscard]] std::span<const EdgeType> edge_types() const& { return edge_types_; }
  void edge_types() const&& = delete;  // the span would outlive the graph

  /// Puts the types into random order among the edges: how many there are of each stays, where they stand does not. A
  /// layer that learns from types must become worse by it.
  void shuffle_types(Rng& rng) { rng.shuffle(std::span<EdgeType>(edge_types_)); }

 private:
  void check_types() const {
    if (types_ < 0 || types_ > std::numeric_limits<EdgeType>::max()) [[unlikely]]
      throw_shape_error("TypedGraph: types", "0 to " + std::to_string(std::numeric_limits<EdgeType>::max()),
                        std::to_string(types_));
    check_shape("TypedGraph: edge types", edges(), static_cast<Index>(edge_types_.size()));
    detail::check_indices("TypedGraph: edge types", std::span<const EdgeType>(edge_types_), types_);
  }

  CsrGraph<I> graph_;
  Index types_ = 0;
  std::vector<EdgeType> edge_types_;
};

/// Both directions of every edge: behind the edges of a graph those turned round, edge of id k with the id edges + k
/// and type + types, so that a type and its inverse differ. O(nodes + edges).
template <NodeId I>
[[nodiscard]] TypedGraph<I> with_inverses(const TypedGraph<I>& graph) {
  const CsrView<I> view = graph.view();
  const auto count = static_cast<std::size_t>(graph.edges());
  std::vector<I> sources(2 * count), targets(2 * count);
  std::vector<EdgeType> types(2 * count);
  std::vector<char> seen(count);
  for (Index i = 0; i < graph.nodes(); ++i)
    for (Index e = view.first_edge(i); e < view.first_edge(i) + view.degree(i); ++e) {
      const auto id = static_cast<std::size_t>(view.edge_id(e));
      if (std::exchange(seen[id], 1) != 0) [[unlikely]]
        throw_shape_error("with_inverses: edge ids", "each once", std::to_string(id) + " twice");
      sources[id] = targets[count + id] = static_cast<I>(i);
      targets[id] = sources[count + id] = view.targets()[static_cast<std::size_t>(e)];
      types[id] = graph.edge_types()[id];
      types[count + id] = static_cast<EdgeType>(types[id] + graph.types());
    }
  return TypedGraph<I>(graph.nodes(), sources, targets, 2 * graph.types(), types);
}

/// The edges of one type, between all nodes, which keep their names. Throws ShapeError for a type that is none of the
/// graph's. O(nodes + edges).
template <NodeId I>
[[nodiscard]] Subgraph<I> edges_of_type(const TypedGraph<I>& graph, EdgeType type) {
  const EdgeType one[] = {type};
  detail::check_indices("edges_of_type: type", std::span<const EdgeType>(one), graph.types());
  const CsrView<I> view = graph.view();
  std::vector<Index> offsets{0}, edges;
  std::vector<I> targets, nodes;
  for (Index i = 0; i < graph.nodes(); ++i) {
    nodes.push_back(static_cast<I>(i));
    for (Index e = view.first_edge(i); e < view.first_edge(i) + view.degree(i); ++e) {
      if (graph.edge_types()[static_cast<std::size_t>(view.edge_id(e))] != type) continue;
      targets.push_back(view.targets()[static_cast<std::size_t>(e)]);
      edges.push_back(view.edge_id(e));
    }
    offsets.push_back(static_cast<Index>(targets.size()));
  }
  return {CsrGraph<I>(std::move(offsets), std::move(targets)), std::move(nodes), std::move(edges)};
}

/// The types of the edges of a part of a graph.
template <NodeId I>
[[nodiscard]] TypedGraph<I> typed(const Subgraph<I>& part, const TypedGraph<I>& whole) {
  detail::check_indices("typed: edges", std::span<const Index>(part.edges), whole.edges());
  std::vector<EdgeType> types;
  for (const Index id : part.edges) types.push_back(whole.edge_types()[static_cast<std::size_t>(id)]);
  return TypedGraph<I>(part.graph, whole.types(), std::move(types));
}

/// features [edges × types] = 1 where an edge is of the type, else 0: rows by the id of an edge, as layers want them.
/// More columns may follow, for features of another kind; they are left alone. Throws ShapeError, before anything is
/// written, unless there is a row for each edge and a column for each type.
template <Real T>
void write_one_hot(std::span<const EdgeType> edge_types, Index types, MatrixView<T> features) {
  check_shape("write_one_hot: rows of features", static_cast<Index>(edge_types.size()), features.rows());
  if (features.cols() < types) [[unlikely]]
    throw_shape_error("write_one_hot: columns of features", "at least " + std::to_string(types),
                      std::to_string(features.cols()));
  detail::check_indices("write_one_hot: types", edge_types, types);
  for (std::size_t e = 0; e < edge_types.size(); ++e)
    for (Index t = 0; t < types; ++t) features(static_cast<Index>(e), t) = static_cast<T>(t == edge_types[e] ? 1 : 0);
}

}  // namespace ruvector::inline RUVECTOR_ABI::graph
