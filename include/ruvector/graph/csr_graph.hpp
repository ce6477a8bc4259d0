// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::graph {

/// The integers that name nodes: narrow ones halve the memory of a graph.
template <class I>
concept NodeId = std::same_as<I, std::int32_t> || std::same_as<I, std::uint32_t> || std::same_as<I, std::int64_t>;

namespace detail {

/// Throws ShapeError "what[position]: expected low to high, got value".
[[noreturn, gnu::cold, gnu::noinline]] inline void throw_index_error(std::string_view what, Index position, Index low,
                                                                     Index high, Index value) {
  throw_shape_error(std::string(what) + "[" + std::to_string(position) + "]",
                    high < low ? std::string("none") : std::to_string(low) + " to " + std::to_string(high),
                    std::to_string(value));
}

/// Throws ShapeError unless all of `values` are in 0 … count−1.
template <std::integral I>
void check_indices(std::string_view what, std::span<const I> values, Index count) {
  for (std::size_t k = 0; k < values.size(); ++k)
    if (values[k] < 0 || static_cast<Index>(values[k]) >= count) [[unlikely]]
      throw_index_error(what, static_cast<Index>(k), 0, count - 1, static_cast<Index>(values[k]));
}

template <NodeId I>
void check_node_count(std::string_view what, Index nodes) {
  (void)checked_size(what, nodes, 1, Index(sizeof(Index)));
  if (nodes > 0 && static_cast<std::uintmax_t>(nodes - 1) > std::uintmax_t(std::numeric_limits<I>::max())) [[unlikely]]
    throw_shape_error(what, "at most " + std::to_string(std::numeric_limits<I>::max()) + " + 1", std::to_string(nodes));
}

}  // namespace detail

template <NodeId I>
class CsrGraph;

/// A view of a directed graph in compressed rows: node i has the edges offsets[i] … offsets[i+1]−1, and edge e leads to
/// targets[e]. In attention a node is a query and its targets are its keys, so a message flows from the target to the
/// node; for PyTorch Geometric's edge_index pass its row 1 as sources and its row 0 as targets. Duplicates and loops
/// are kept, a node may have no edges.
///
/// What belongs to an edge (features, weights) is found by its id, `edge_ids[e]`, or e itself where there are no ids:
/// so it stays in place when a graph is sorted or transposed, and two edges may share one row of features.
///
/// Three spans, copied by value, owning nothing. All indices are checked once, when the view is made.
template <NodeId I = std::int32_t>
class CsrView {
 public:
  /// What names a node.
  using Id = I;

  /// No node.
  CsrView() = default;

  /// offsets [nodes + 1] (or none: no node), targets [edges], edge_ids [edges] or none. Throws ShapeError unless the
  /// offsets start at 0, never decrease and end at `edges`, targets are in 0 … nodes−1 and ids in 0 … edges−1.
  /// O(nodes + edges).
  explicit CsrView(std::span<const Index> offsets, std::span<const I> targets, std::span<const Index> edge_ids = {})
      : offsets_(offsets), targets_(targets), edge_ids_(edge_ids) {
    if (offsets.empty()) {
      check_shape("CsrView: targets without offsets", 0, edges());
    } else {
      check_shape("CsrView: offsets[0]", 0, offsets[0]);
      for (std::size_t i = 1; i < offsets.size(); ++i)
        if (offsets[i] < offsets[i - 1] || offsets[i] > edges()) [[unlikely]]
          detail::throw_index_error("CsrView: offsets", static_cast<Index>(i), offsets[i - 1], edges(), offsets[i]);
      check_shape("CsrView: last offset", edges(), offsets.back());
    }
    detail::check_indices("CsrView: targets", targets, nodes());
    if (!edge_ids.empty()) check_shape("CsrView: edge_ids", edges(), static_cast<Index>(edge_ids.size()));
    detail::check_indices("CsrView: edge_ids", edge_ids, edges());
  }

  /// Number of nodes.
  [[nodiscard]] Index nodes() const { return offsets_.empty() ? 0 : static_cast<Index>(offsets_.size()) - 1; }
  /// Number of edges.
  [[nodiscard]] Index edges() const { return static_cast<Index>(targets_.size()); }
  /// Where the edges of node i start, and after the last node; empty if there is no node.
  [[nodiscard]] std::span<const Index> offsets() const { return offsets_; }
  /// Where each edge leads.
  [[nodiscard]] std::span<const I> targets() const { return targets_; }
  /// The id of each edge; empty: its position.
  [[nodiscard]] std::span<const Index> edge_ids() const { return edge_ids_; }

  /// The position of node i's first edge.
  [[nodiscard]] Index first_edge(Index i) const {
    RUVECTOR_ASSERT(0 <= i && i < nodes());
    return offsets_[static_cast<std::size_t>(i)];
  }
  /// How many edges node i has.
  [[nodiscard]] Index degree(Index i) const { return static_cast<Index>(neighbors(i).size()); }
  /// The targets of node i's edges.
  [[nodiscard]] std::span<const I> neighbors(Index i) const {
    const auto first = static_cast<std::size_t>(first_edge(i));
    return targets_.subspan(first, static_cast<std::size_t>(offsets_[static_cast<std::size_t>(i) + 1]) - first);
  }
  /// The id of the edge at position e.
  [[nodiscard]] Index edge_id(Index e) const {
    RUVECTOR_ASSERT(0 <= e && e < edges());
    return edge_ids_.empty() ? e : edge_ids_[static_cast<std::size_t>(e)];
  }

 private:
  friend class CsrGraph<I>;
  struct Checked {};
  CsrView(Checked, std::span<const Index> offsets, std::span<const I> targets, std::span<const Index> edge_ids)
      : offsets_(offsets), targets_(targets), edge_ids_(edge_ids) {}

  std::span<const Index> offsets_;
  std::span<const I> targets_;
  std::span<const Index> edge_ids_;
};

namespace detail {

/// Positions 0 … e−1 sorted by keys[position] in 0 … nodes−1, equal keys in their order, and where each key starts.
template <NodeId I>
struct Grouping {
  std::vector<Index> offsets;  // [nodes + 1]
  std::vector<Index> order;    // [e]

  Grouping(Index nodes, std::span<const I> keys) : offsets(static_cast<std::size_t>(nodes) + 1), order(keys.size()) {
    for (const I key : keys) ++offsets[static_cast<std::size_t>(key) + 1];
    for (std::size_t i = 1; i < offsets.size(); ++i) offsets[i] += offsets[i - 1];
    std::vector<Index> next(offsets.begin(), offsets.end() - 1);
    for (std::size_t k = 0; k < keys.size(); ++k)
      order[static_cast<std::size_t>(next[static_cast<std::size_t>(keys[k])]++)] = static_cast<Index>(k);
  }
};

/// values[order[0]], values[order[1]], …
template <class T>
[[nodiscard]] std::vector<T> gather(std::span<const T> values, std::span<const Index> order) {
  std::vector<T> gathered(order.size());
  std::ranges::transform(order, gathered.begin(), [&](Index k) { return values[static_cast<std::size_t>(k)]; });
  return gathered;
}

}  // namespace detail

/// An owning graph in compressed rows, with value semantics; it never changes. It is read through its view.
template <NodeId I = std::int32_t>
class CsrGraph {
 public:
  /// What names a node.
  using Id = I;

  /// No node.
  CsrGraph() = default;

  /// Edge k leads from sources[k] to targets[k] and has the id k. The edges of a node keep the order of the list.
  /// Throws ShapeError if the lists differ in length, a node is not in 0 … nodes−1, or I cannot count the nodes.
  /// O(nodes + edges).
  CsrGraph(Index nodes, std::span<const I> sources, std::span<const I> targets) {
    detail::check_node_count<I>("CsrGraph: nodes", nodes);
    check_shape("CsrGraph: targets", static_cast<Index>(sources.size()), static_cast<Index>(targets.size()));
    detail::check_indices("CsrGraph: sources", sources, nodes);
    detail::check_indices("CsrGraph: targets", targets, nodes);
    detail::Grouping<I> rows(nodes, sources);
    targets_ = detail::gather<I>(targets, rows.order);
    offsets_ = std::move(rows.offsets);
    edge_ids_ = std::move(rows.order);
  }

  /// Takes over arrays as CsrView describes and checks them.
  CsrGraph(std::vector<Index> offsets, std::vector<I> targets, std::vector<Index> edge_ids = {})
      : offsets_(std::move(offsets)), targets_(std::move(targets)), edge_ids_(std::move(edge_ids)) {
    (void)CsrView<I>(offsets_, targets_, edge_ids_);
  }

  /// Copies what a view shows.
  explicit CsrGraph(CsrView<I> view)
      : offsets_(view.offsets().begin(), view.offsets().end()),
        targets_(view.targets().begin(), view.targets().end()),
        edge_ids_(view.edge_ids().begin(), view.edge_ids().end()) {}

  /// The whole as a view.
  [[nodiscard]] CsrView<I> view() const& { return {typename CsrView<I>::Checked{}, offsets_, targets_, edge_ids_}; }
  void view() const&& = delete;  // the view would outlive the graph
  /// Implicit: a graph is passed where a view is asked for, as long as it outlives the view.
  ///@{
  operator CsrView<I>() const& { return view(); }
  operator CsrView<I>() const&& = delete;  // the view would outlive the graph
  ///@}

  /// Number of nodes.
  [[nodiscard]] Index nodes() const { return view().nodes(); }
  /// Number of edges.
  [[nodiscard]] Index edges() const { return view().edges(); }

 private:
  std::vector<Index> offsets_;
  std::vector<I> targets_;
  std::vector<Index> edge_ids_;
};

/// The graph with every edge turned round, which keeps its id; the edges of a node come in the order of the nodes that
/// they came from. `positions` [edges], if wanted, becomes the permutation: edge k here is edge positions[k] of
/// `graph`. Throws ShapeError. O(nodes + edges).
template <NodeId I>
[[nodiscard]] CsrGraph<I> transpose(CsrView<I> graph, std::span<Index> positions = {}) {
  if (!positions.empty()) check_shape("transpose: positions", graph.edges(), static_cast<Index>(positions.size()));
  detail::Grouping<I> columns(graph.nodes(), graph.targets());
  std::vector<I> source(static_cast<std::size_t>(graph.edges()));
  for (Index i = 0; i < graph.nodes(); ++i)
    std::fill_n(source.begin() + graph.first_edge(i), graph.degree(i), static_cast<I>(i));
  if (!positions.empty()) std::ranges::copy(columns.order, positions.begin());
  std::vector<I> targets = detail::gather<I>(source, columns.order);
  for (Index& e : columns.order) e = graph.edge_id(e);
  return CsrGraph<I>(std::move(columns.offsets), std::move(targets), std::move(columns.order));
}

/// A graph in which every node has a loop, and which loops are new.
template <NodeId I>
struct SelfLoops {
  CsrGraph<I> graph;            ///< the loop of a node that had none is its last edge
  std::vector<I> looped_nodes;  ///< ascending; the loop of looped_nodes[k] has the id edges + k, edges as before
};

/// Gives a loop to every node that has none. Ids of edges stay, so features of the new ones are rows to append.
/// O(nodes + edges).
template <NodeId I>
[[nodiscard]] SelfLoops<I> with_self_loops(CsrView<I> graph) {
  std::vector<Index> offsets(static_cast<std::size_t>(graph.nodes()) + 1), ids;
  std::vector<I> targets, looped;
  for (Index i = 0; i < graph.nodes(); ++i) {
    const std::span<const I> neighbors = graph.neighbors(i);
    targets.insert(targets.end(), neighbors.begin(), neighbors.end());
    for (Index e = graph.first_edge(i); e < graph.first_edge(i) + graph.degree(i); ++e) ids.push_back(graph.edge_id(e));
    if (std::ranges::find(neighbors, static_cast<I>(i)) == neighbors.end()) {
      targets.push_back(static_cast<I>(i));
      ids.push_back(graph.edges() + static_cast<Index>(looped.size()));
      looped.push_back(static_cast<I>(i));
    }
    offsets[static_cast<std::size_t>(i) + 1] = static_cast<Index>(targets.size());
  }
  return {CsrGraph<I>(std::move(offsets), std::move(targets), std::move(ids)), std::move(looped)};
}

}  // namespace ruvector::inline RUVECTOR_ABI::graph
