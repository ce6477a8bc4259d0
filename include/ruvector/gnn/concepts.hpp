// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/graph/csr_graph.hpp"

#include <concepts>
#include <cstdint>
#include <span>
#include <string>

namespace ruvector::inline RUVECTOR_ABI::gnn {

/// What a layer may know about the edges of a graph. Rows and weights are found by the id of an edge (CsrView).
template <Real T>
struct GraphEdges {
  MatrixView<const T> features = {};  ///< [edges × edge_dim], or empty: none
  std::span<const T> weights = {};    ///< [edges], larger is more influence; empty: all alike

  /// By features and weights; empty: not wanted. Accumulated.
  struct Gradient {
    MatrixView<T> features = {};  ///< as the features
    std::span<T> weights = {};    ///< as the weights
  };
};

/// Renews the rows of nodes by what their neighbours have: x [nodes × input] → y. Message passing, so a message flows
/// from the target of an edge to its node. y has as many rows as outputs are wanted, those of the first m ≤ nodes, and
/// edges of other nodes are not looked at: in a mini-batch the nodes that are asked for come first. Layers know nothing
/// about particular nodes, so they work on graphs they have not seen. Const, reentrant; row i of y depends on row i of
/// x, its edges and their targets alone, bit for bit, for any executor.
///
/// The caller owns `Saved`, reuses it for the same layer, and seeds `saved.rng`. Backward works in it, too: one call at
/// a time. After std::bad_alloc what was to be written is undefined, and the same call may be made again: on the same
/// `saved` with `saved.rng` seeded anew, and backward with what it adds to set back.
template <class L>
concept GraphLayer = Module<L> && Real<ScalarOf<L>> &&
    requires(const L& layer, graph::CsrView<std::int32_t> graph, MatrixView<const ScalarOf<L>> x,
             const GraphEdges<ScalarOf<L>>& edges, MatrixView<ScalarOf<L>> y, typename L::Saved& saved,
             MatrixView<const ScalarOf<L>> d_y, MatrixView<ScalarOf<L>> d_x,
             const typename GraphEdges<ScalarOf<L>>::Gradient& d_edges, L& grad, Workspace& ws, Index input_dim) {
  { layer.output_dim(input_dim) } -> std::convertible_to<Index>;           // columns of y; ShapeError for other inputs
  { layer.forward(graph, x, edges, y, ws) } -> std::same_as<void>;         // writes every element of y
  { layer.forward(graph, x, edges, y, saved, ws) } -> std::same_as<void>;  // training mode
  // adds to d_x, d_edges (empty: not wanted) and grad
  { layer.backward(graph, x, edges, saved, d_y, d_x, d_edges, grad, ws) } -> std::same_as<void>;
};

namespace detail {

/// Throws ShapeError unless x, edges and y fit the graph.
template <Real T, graph::NodeId I>
void check_graph_input(graph::CsrView<I> graph, MatrixView<const T> x, Index input_dim, const GraphEdges<T>& edges,
                       Index edge_dim, MatrixView<const T> y, Index output_dim) {
  check_shape("graph layer: rows of x", graph.nodes(), x.rows());
  check_shape("graph layer: columns of x", input_dim, x.cols());
  check_shape("graph layer: columns of y", output_dim, y.cols());
  if (y.rows() > graph.nodes()) [[unlikely]]
    throw_shape_error("graph layer: rows of y", "at most " + std::to_string(graph.nodes()), std::to_string(y.rows()));
  check_shape("graph layer: columns of edge features", edge_dim, edges.features.cols());
  if (edge_dim > 0) check_shape("graph layer: rows of edge features", graph.edges(), edges.features.rows());
  if (!edges.weights.empty()) check_shape("graph layer: edge weights", graph.edges(), Index(edges.weights.size()));
}

/// The same for what backward writes.
template <Real T, graph::NodeId I>
void check_graph_gradient(graph::CsrView<I> graph, MatrixView<const T> x, MatrixView<T> d_x, const GraphEdges<T>& edges,
                          const typename GraphEdges<T>::Gradient& d_edges) {
  if (!d_x.empty()) {
    check_shape("graph layer: rows of d_x", graph.nodes(), d_x.rows());
    check_shape("graph layer: columns of d_x", x.cols(), d_x.cols());
  }
  if (!d_edges.features.empty()) {
    check_shape("graph layer: rows of gradient of edge features", edges.features.rows(), d_edges.features.rows());
    check_shape("graph layer: columns of gradient of edge features", edges.features.cols(), d_edges.features.cols());
  }
  if (!d_edges.weights.empty())
    check_shape("graph layer: gradient of edge weights", Index(edges.weights.size()), Index(d_edges.weights.size()));
}

}  // namespace detail

}  // namespace ruvector::inline RUVECTOR_ABI::gnn
