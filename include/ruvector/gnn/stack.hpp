// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/gnn/concepts.hpp"
#include "ruvector/gnn/neighbor_attention.hpp"
#include "ruvector/graph/csr_graph.hpp"

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::gnn {

/// Layers one after the other over the same graph: what one gives the next takes. All but the last give a row for every
/// node. A GraphLayer itself. Its parameters are layers.0.…, layers.1.…
template <GraphLayer Layer>
class Stack {
 public:
  using Scalar = ScalarOf<Layer>;  ///< what it computes in
  using T = Scalar;                ///< short

  std::vector<Layer> layers;  ///< at least one

  /// What `backward` needs of a forward pass, and its scratch; owned by the caller, reused, and seeded (`saved.rng`).
  struct Saved {
    Rng rng{0};                                 ///< what the next forward pass draws from
    std::vector<typename Layer::Saved> layers;  ///< of each layer
    std::vector<Matrix<T>> between;             ///< outputs of all layers but the last
  };

  /// Throws ConfigError without layers, ShapeError where one does not fit the next.
  explicit Stack(std::vector<Layer> with_layers) : layers(std::move(with_layers)) {
    if (layers.empty()) throw_config_error("Stack: layers", ">= 1", 0);
    (void)output_dim(layers.front().input_dim());
  }

  /// Names the weights of all layers.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("layers", self.layers...);
  }

  /// Columns of x.
  [[nodiscard]] Index input_dim() const { return layers.front().input_dim(); }
  /// Columns of y, for rows of input_dim() elements; ShapeError for others.
  [[nodiscard]] Index output_dim(Index input_dim) const {
    for (const Layer& layer : layers) input_dim = layer.output_dim(input_dim);
    return input_dim;
  }

  /// y [m × output_dim] of the first m ≤ nodes. Throws ShapeError, as the layers do.
  template <graph::NodeId I, Executor E = Serial>
  void forward(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, MatrixView<T> y,
               Workspace& ws, E&& executor = Serial{}) const {
    auto frame = ws.frame();
    for (std::size_t l = 0; l + 1 < layers.size(); ++l) {
      const auto next = frame.template matrix<T>(graph.nodes(), layers[l].output_dim(x.cols()));
      layers[l].forward(graph, x, edges, next, ws, executor);
      x = next;
    }
    layers.back().forward(graph, x, edges, y, ws, executor);
  }
  /// The same in training: keeps in `saved` what `backward` needs.
  template <graph::NodeId I, Executor E = Serial>
  void forward(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, MatrixView<T> y,
               Saved& saved, Workspace& ws, E&& executor = Serial{}) const {
    if (saved.layers.size() != layers.size()) {
      std::vector<Matrix<T>> between(layers.size() - 1);  // both or neither, should memory run out
      saved.layers = std::vector<typename Layer::Saved>(layers.size());
      saved.between = std::move(between);
    }
    const Rng draw(saved.rng.bits());
    for (std::size_t l = 0; l < layers.size(); ++l) saved.layers[l].rng = draw.split(std::uint64_t(l));
    for (std::size_t l = 0; l + 1 < layers.size(); ++l) {
      set_shape(saved.between[l], graph.nodes(), layers[l].output_dim(x.cols()));
      layers[l].forward(graph, x, edges, saved.between[l], saved.layers[l], ws, executor);
      x = saved.between[l];
    }
    layers.back().forward(graph, x, edges, y, saved.layers.back(), ws, executor);
  }

  /// Given d_y, adds the gradients to d_x, d_edges (empty: not wanted) and grad, as the layers do, from the last to the
  /// first. Throws ShapeError before anything is added.
  template <graph::NodeId I, Executor E = Serial>
  void backward(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, Saved& saved,
                MatrixView<const T> d_y, MatrixView<T> d_x, const typename GraphEdges<T>::Gradient& d_edges,
                Stack& grad, Workspace& ws, E&& executor = Serial{}) const {
    check_same_parameters(*this, std::as_const(grad));
    check_shape("Stack: saved layers", Index(layers.size()), Index(saved.layers.size()));
    check_shape("Stack: rows of x", graph.nodes(), x.rows());
    check_shape("Stack: columns of x", input_dim(), x.cols());
    detail::check_graph_gradient<T>(graph, x, d_x, edges, d_edges);
    auto frame = ws.frame();
    for (std::size_t l = layers.size(); l-- > 0;) {
      const MatrixView<const T> from = l == 0 ? x : MatrixView<const T>(saved.between[l - 1]);
      const MatrixView<T> d_from = l == 0 ? d_x : detail::zeros<T>(frame, from.rows(), from.cols());
      layers[l].backward(graph, from, edges, saved.layers[l], d_y, d_from, d_edges, grad.layers[l], ws, executor);
      d_y = d_from;
    }
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::gnn
