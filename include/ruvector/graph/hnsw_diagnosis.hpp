// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/graph/csr_graph.hpp"
#include "ruvector/graph/hnsw_layers.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::graph {

/// What may keep searches from the points of one level. Nodes are named by their vectors, in ascending order.
struct HnswLevelDiagnosis {
  Index nodes = 0;                    ///< on this level
  Index links = 0;                    ///< on this level
  std::vector<HnswNode> unreachable;  ///< no path leads there from where searches can enter the level
  std::vector<HnswNode>
      no_incoming;  ///< no link leads there; the entry point and a node that is alone may be among them
  std::vector<std::vector<HnswNode>> duplicates;  ///< groups of two and more nodes with the same vector, bit for bit:
                                                  ///< large ones crowd out the links to anything else
};

namespace detail {

/// Which nodes of a graph a path leads to from those that are marked; marks them.
inline void mark_reachable(CsrView<HnswNode> graph, std::vector<bool>& marked) {
  std::vector<HnswNode> open;
  for (std::size_t i = 0; i < marked.size(); ++i)
    if (marked[i]) open.push_back(HnswNode(i));
  while (!open.empty()) {
    const HnswNode node = open.back();
    open.pop_back();
    for (const HnswNode target : graph.neighbors(Index(node)))
      if (!marked[target]) {
        marked[target] = true;
        open.push_back(target);
      }
  }
}

/// The nodes whose numbers on the level are not marked.
[[nodiscard]] inline std::vector<HnswNode> unmarked(const HnswLevel& level, const std::vector<bool>& marked) {
  std::vector<HnswNode> nodes;
  for (std::size_t i = 0; i < marked.size(); ++i)
    if (!marked[i]) nodes.push_back(level.nodes[i]);
  return nodes;
}

template <Real T>
[[nodiscard]] std::vector<std::vector<HnswNode>> duplicates(MatrixView<const T> vectors, std::vector<HnswNode> nodes) {
  const auto bytes = [&](HnswNode node) {
    const std::span<const T> row = vectors.row(Index(node));
    return std::string_view(reinterpret_cast<const char*>(row.data()), row.size() * sizeof(T));
  };
  std::ranges::stable_sort(nodes, {}, bytes);
  std::vector<std::vector<HnswNode>> groups;
  for (std::size_t first = 0, last = 0; first < nodes.size(); first = last) {
    for (last = first + 1; last < nodes.size() && bytes(nodes[last]) == bytes(nodes[first]);) ++last;
    if (last - first > 1) groups.emplace_back(nodes.begin() + Index(first), nodes.begin() + Index(last));
  }
  std::ranges::sort(groups);
  return groups;
}

}  // namespace detail

/// Looks for points that a search cannot find, level by level: [levels]. Searches enter the top level at the entry
/// point, and each other level at a node that they can reach on the level above. O(points · log points · d + links).
template <Real T>
[[nodiscard]] std::vector<HnswLevelDiagnosis> diagnose(const HnswLayers<T>& layers) {
  std::vector<HnswLevelDiagnosis> found(static_cast<std::size_t>(layers.levels()));
  std::vector<bool> reached;
  for (Index l = layers.levels() - 1; l >= 0; --l) {
    const HnswLevel& level = layers.level(l);
    std::vector<bool> start(level.nodes.size()), incoming(level.nodes.size());
    if (l == layers.levels() - 1)
      start[layers.entry()] = true;
    else
      for (std::size_t i = 0; i < reached.size(); ++i)
        if (reached[i]) start[layers.level(l + 1).below[i]] = true;
    reached = std::move(start);
    detail::mark_reachable(level.graph, reached);
    for (const HnswNode target : level.graph.view().targets()) incoming[target] = true;
    found[std::size_t(l)] = {.nodes = level.graph.nodes(),
                             .links = level.graph.edges(),
                             .unreachable = detail::unmarked(level, reached),
                             .no_incoming = detail::unmarked(level, incoming),
                             .duplicates = detail::duplicates(layers.vectors(), level.nodes)};
  }
  return found;
}

}  // namespace ruvector::inline RUVECTOR_ABI::graph
