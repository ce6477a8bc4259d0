// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/graph/csr_graph.hpp"

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::graph {

/// A part of a graph under names of its own, and what they were.
template <NodeId I = std::int32_t>
struct Subgraph {
  CsrGraph<I> graph;         ///< edges have their positions as ids
  std::vector<I> nodes;      ///< node i is nodes[i] of the whole
  std::vector<Index> edges;  ///< edge k has the id edges[k] in the whole
};

namespace detail {

/// New names of nodes: those that were given one, in their order. Reused, so a batch costs what it holds and not what
/// the graph holds.
template <NodeId I>
class Renaming {
 public:
  explicit Renaming(Index nodes) : names_(static_cast<std::size_t>(nodes), none) {}

  /// Forgets all names.
  void clear() {
    for (const I node : nodes_) names_[static_cast<std::size_t>(node)] = none;
    nodes_.clear();
  }
  /// The name of a node, or `none`.
  [[nodiscard]] Index name(I node) const { return names_[static_cast<std::size_t>(node)]; }
  /// The name of a node, which gets the next one if it has none.
  Index enter(I node) {
    Index& name = names_[static_cast<std::size_t>(node)];
    if (name == none) {
      nodes_.push_back(node);
      name = static_cast<Index>(nodes_.size()) - 1;
    }
    return name;
  }
  /// Enters nodes that must differ. Throws ShapeError, and has no names, for one out of range or entered twice.
  void enter_all(std::string_view what, std::span<const I> nodes) {
    check_indices(what, nodes, static_cast<Index>(names_.size()));
    for (std::size_t k = 0; k < nodes.size(); ++k)
      if (enter(nodes[k]) != static_cast<Index>(k)) [[unlikely]] {
        clear();
        throw_shape_error(std::string(what) + "[" + std::to_string(k) + "]", "a node that is not there yet",
                          std::to_string(nodes[k]));
      }
  }
  /// The nodes that have names.
  [[nodiscard]] const std::vector<I>& nodes() const { return nodes_; }

  static constexpr Index none = -1;

 private:
  std::vector<Index> names_;
  std::vector<I> nodes_;
};

}  // namespace detail

/// The nodes of a list, which must differ, in its order, and all edges between them, in their order. Throws ShapeError
/// for a node out of range or twice in the list. O(nodes of the graph + edges of these nodes).
template <NodeId I>
[[nodiscard]] Subgraph<I> induced_subgraph(CsrView<I> graph, std::type_identity_t<std::span<const I>> nodes) {
  detail::Renaming<I> names(graph.nodes());
  names.enter_all("induced_subgraph: nodes", nodes);
  std::vector<Index> offsets{0}, edges;
  std::vector<I> targets;
  for (const I node : nodes) {
    const Index first = graph.first_edge(static_cast<Index>(node));
    for (Index e = first; e < first + graph.degree(static_cast<Index>(node)); ++e) {
      const Index target = names.name(graph.targets()[static_cast<std::size_t>(e)]);
      if (target == names.none) continue;
      targets.push_back(static_cast<I>(target));
      edges.push_back(graph.edge_id(e));
    }
    offsets.push_back(static_cast<Index>(targets.size()));
  }
  return {CsrGraph<I>(std::move(offsets), std::move(targets)), names.nodes(), std::move(edges)};
}

/// out.row(k) = rows.row(ids[k]): what belongs to the nodes or edges of a part of a graph. Throws ShapeError, before
/// anything is written, for an id out of range and for shapes that do not fit. O(ids · columns).
template <class T, std::integral Id>
void gather_rows(std::type_identity_t<MatrixView<const T>> rows, const std::vector<Id>& ids, MatrixView<T> out) {
  detail::check_indices("gather_rows: ids", std::span<const Id>(ids), rows.rows());
  check_shape("gather_rows: rows of out", static_cast<Index>(ids.size()), out.rows());
  check_shape("gather_rows: columns of out", rows.cols(), out.cols());
  for (std::size_t k = 0; k < ids.size(); ++k)
    std::ranges::copy(rows.row(static_cast<Index>(ids[k])), out.row(static_cast<Index>(k)).begin());
}

/// sums.row(ids[k]) += rows.row(k), in the order of k: the gradient of gather_rows. Throws ShapeError before anything
/// is added. O(ids · columns).
template <Real T, std::integral Id>
void scatter_rows(std::type_identity_t<MatrixView<const T>> rows, const std::vector<Id>& ids, MatrixView<T> sums) {
  detail::check_indices("scatter_rows: ids", std::span<const Id>(ids), sums.rows());
  check_shape("scatter_rows: rows", static_cast<Index>(ids.size()), rows.rows());
  check_shape("scatter_rows: columns", sums.cols(), rows.cols());
  for (std::size_t k = 0; k < ids.size(); ++k)
    for (Index c = 0; c < sums.cols(); ++c) sums(static_cast<Index>(ids[k]), c) += rows(static_cast<Index>(k), c);
}

}  // namespace ruvector::inline RUVECTOR_ABI::graph
