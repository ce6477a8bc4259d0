// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/multi_head.hpp"
#include "ruvector/attention/scaled_dot_product.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/gnn/concepts.hpp"
#include "ruvector/gnn/neighbor_attention.hpp"
#include "ruvector/gnn/neighbor_sum.hpp"
#include "ruvector/graph/csr_graph.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/gru_cell.hpp"
#include "ruvector/nn/layer_norm.hpp"
#include "ruvector/nn/linear.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::gnn {

/// The shape of a RuvectorLayer, in the order of version 1's constructor.
struct RuvectorLayerConfig {
  Index input = 0;     ///< columns of x, ≥ 1
  Index hidden = 0;    ///< columns of y, ≥ 1
  Index heads = 1;     ///< of attention; they divide `hidden`
  double dropout = 0;  ///< 0 ≤ p ≤ 1: no dropout, but a factor 1 − p of the states, always
};

/// The layer of version 1, to the formula; see RuvectorLayerV2 for the one to use. For node i with neighbours u:
///
///     M = x W_mᵀ + b_m,   a_i = MultiHead(M_i, {M_u}, {M_u}),   g_i = Σ_u ŵ_iu M_u
///     h_i = GRU(input W_a (a_i + g_i) + b_a, state M_i),   y_i = LN((1 − p) h_i)
///
/// and y_i = LN(M_i) without neighbours; ŵ = w/Σw where Σw > 0, 1/|N(i)| otherwise. The GRU replaces where z is 1 and
/// resets before its product, all weights start at N(0, 2/(in + out)) and biases at 0. A GraphLayer: unlike the
/// original it takes whole graphs and learns. Source: the package `@ruvector/gnn` 0.1.25, which it equals within 1e-5.
template <Real T>
class RuvectorLayer {
 public:
  using Scalar = T;                                                        ///< what it computes in
  using Attention = attention::MultiHead<attention::ScaledDotProduct<T>>;  ///< over the messages

  nn::Linear<T> message;    ///< W_m [hidden×input], b_m
  Attention attention;      ///< W_q, W_k, W_v, W_o with biases
  nn::Linear<T> aggregate;  ///< W_a [hidden×hidden], b_a
  nn::GruCell<T> cell;      ///< replaces, resets before the product
  nn::LayerNorm<T> norm;    ///< ε = 1e-5
  double dropout = 0;       ///< p

  /// What `backward` needs of a forward pass, and its scratch; owned by the caller and reused.
  struct Saved {
    Rng rng{0};                                   ///< nothing is drawn
    Matrix<T> messages;                           ///< M
    Matrix<T> sums;                               ///< a + g
    Matrix<T> combined;                           ///< input of the GRU
    Matrix<T> states;                             ///< input of the norm
    detail::SavedNeighbors<Attention> neighbors;  ///< of attention
    typename nn::GruCell<T>::Saved cell;          ///< of the GRU
  };

  /// Starts as version 1 does. Throws ConfigError for options out of range.
  RuvectorLayer(const RuvectorLayerConfig& config, Rng& rng)
      : message(linear(checked(config).input, config.hidden), rng),
        attention({.dim = config.hidden, .heads = config.heads, .initializer = nn::Initializer::xavier_normal}, rng),
        aggregate(linear(config.hidden, config.hidden), rng),
        cell({.input = config.hidden,
              .hidden = config.hidden,
              .update = nn::GruUpdate::replace,
              .reset = nn::GruReset::before_product,
              .initializer = nn::Initializer::xavier_normal},
             rng),
        norm(nn::LayerNormConfig{.dim = config.hidden}),
        dropout(config.dropout) {}

  /// Names all weights.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("message", self.message...);
    visit("attention", self.attention...);
    visit("aggregate", self.aggregate...);
    visit("cell", self.cell...);
    visit("norm", self.norm...);
  }

  /// Columns of x.
  [[nodiscard]] Index input_dim() const { return message.input_dim(); }
  /// Columns of y, for rows of input_dim() elements; ShapeError for others.
  [[nodiscard]] Index output_dim(Index input_dim) const { return message.output_dim(input_dim); }

  /// Writes y [m×hidden], the outputs of the first m ≤ nodes. Edges may have weights, but no features. Throws
  /// ShapeError before anything is written. O(nodes hidden² + edges hidden).
  template <graph::NodeId I, Executor E = Serial>
  void forward(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, MatrixView<T> y,
               Workspace& ws, E&& executor = Serial{}) const {
    run(graph, x, edges, y, nullptr, ws, executor, over_edges<I>(ws));
  }
  /// The same, and keeps in `saved` what `backward` needs.
  template <graph::NodeId I, Executor E = Serial>
  void forward(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, MatrixView<T> y,
               Saved& saved, Workspace& ws, E&& executor = Serial{}) const {
    run(graph, x, edges, y, &saved, ws, executor, over_edges<I>(ws));
  }
  /// Version 1's call: out [hidden] from a node [input], rows `neighbors` [n×input] and the weights [n] of the edges
  /// to them. Equals the whole graph to rounding, and is faster: keys and values are not projected, O(hidden² +
  /// n (input + heads) hidden). Throws ShapeError, also where version 1 dropped what is too much in silence.
  void forward(std::span<const T> node, MatrixView<const T> neighbors, std::span<const T> edge_weights,
               std::span<T> out, Workspace& ws) const {
    const Index hidden = message.weight.rows();
    check_shape("RuvectorLayer: elements of out", hidden, Index(out.size()));
    check_shape("RuvectorLayer: edge weights", neighbors.rows(), Index(edge_weights.size()));
    detail::with_star<T>(node, neighbors, input_dim(), ws, [&](auto star, MatrixView<const T> rows) {
      Serial serial;
      const auto attend = [&](auto, MatrixView<const T> messages, MatrixView<T> sums, Saved*, Serial&) {
        attend_from_one(messages, sums, ws);
      };
      run(star, rows, {.weights = edge_weights}, MatrixView<T>(out.data(), 1, hidden), nullptr, ws, serial, attend);
    });
  }

  /// Given d_y [m×hidden], adds the gradients to d_x [nodes×input] and the weights of edges in d_edges (empty: not
  /// wanted) and to grad. Throws ShapeError before anything is added.
  template <graph::NodeId I, Executor E = Serial>
  void backward(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, Saved& saved,
                MatrixView<const T> d_y, MatrixView<T> d_x, const typename GraphEdges<T>::Gradient& d_edges,
                RuvectorLayer& grad, Workspace& ws, E&& executor = Serial{}) const {
    const Index m = d_y.rows(), hidden = message.weight.rows();
    detail::check_graph_input<T>(graph, x, input_dim(), edges, 0, d_y, hidden);
    detail::check_graph_gradient<T>(graph, x, d_x, edges, d_edges);
    check_same_parameters(*this, std::as_const(grad));
    nn::detail::check_matrix("RuvectorLayer: saved", graph.nodes(), hidden, saved.messages.view());
    nn::detail::check_matrix("RuvectorLayer: saved", m, hidden, saved.states.view());
    auto frame = ws.frame();
    const MatrixView<const T> messages = saved.messages;
    const MatrixView<T> d_messages = detail::zeros<T>(frame, graph.nodes(), hidden),
                        d_sums = detail::zeros<T>(frame, m, hidden), d_combined = detail::zeros<T>(frame, m, hidden),
                        d_states = detail::zeros<T>(frame, m, hidden);
    norm.backward(saved.states, d_y, d_states, grad.norm, ws, executor);
    for (Index i = 0; i < m; ++i) {
      if (graph.degree(i) > 0) {
        simd::scale(static_cast<T>(1 - dropout), d_states.row(i));
      } else {
        std::ranges::copy(d_states.row(i), d_messages.row(i).begin());
        std::ranges::fill(d_states.row(i), T(0));
      }
    }
    cell.backward(saved.combined, messages.rows(0, m), saved.cell, d_states, d_combined, d_messages.rows(0, m),
                  grad.cell, ws, executor);
    aggregate.backward(saved.sums, d_combined, d_sums, grad.aggregate, ws, executor);
    add_neighbor_sums_gradient<T>(graph, messages, edges.weights, d_sums, d_messages, d_edges.weights, ws, executor);
    detail::NeighborAttention<T, I>{graph, messages, {}, {}}.backward(
        attention, MatrixView<const T>(d_sums), saved.neighbors, d_messages, {}, {}, grad.attention, ws, executor);
    message.backward(x, d_messages, d_x, grad.message, ws, executor);
  }

 private:
  [[nodiscard]] static nn::LinearConfig linear(Index input, Index output) {
    return {.input = input, .output = output, .initializer = nn::Initializer::xavier_normal};
  }
  static const RuvectorLayerConfig& checked(const RuvectorLayerConfig& config) {
    if (config.input < 1) throw_config_error("RuvectorLayer: input", ">= 1", double(config.input));
    if (config.heads < 1) throw_config_error("RuvectorLayer: heads", ">= 1", double(config.heads));
    if (config.hidden < 1 || config.hidden % config.heads != 0)
      throw_config_error("RuvectorLayer: hidden", "a multiple of " + std::to_string(config.heads),
                         double(config.hidden));
    if (!(config.dropout >= 0 && config.dropout <= 1))
      throw_config_error("RuvectorLayer: dropout", "0 to 1", config.dropout);
    return config;
  }

  // Attention of each node over its neighbours, the keys and values of a node projected once.
  template <graph::NodeId I>
  [[nodiscard]] auto over_edges(Workspace& ws) const {
    return [this, &ws](graph::CsrView<I> graph, MatrixView<const T> messages, MatrixView<T> sums, Saved* saved,
                       auto& executor) {
      detail::NeighborAttention<T, I>{graph, messages, {}, {}}.forward(
          attention, sums, saved ? &saved->neighbors : nullptr, saved ? &saved->rng : nullptr, ws, executor);
    };
  }

  // Attention of message 0 over the others. With one query the projections change sides: q·(W_k m + b_k) is (W_kᵀq)·m
  // plus what is the same for all keys, and Σ p (W_v m + b_v) is W_v (Σ p m) + b_v.
  void attend_from_one(MatrixView<const T> messages, MatrixView<T> sum, Workspace& ws) const {
    const Index n = messages.rows() - 1, hidden = messages.cols(), heads = Index(attention.heads.size()),
                width = hidden / heads;
    std::ranges::fill(sum.row(0), T(0));
    if (n == 0) return;
    const MatrixView<const T> keys = messages.rows(1, n);
    auto frame = ws.frame();
    const auto query = frame.template matrix<T>(1, hidden), direction = frame.template matrix<T>(1, hidden),
               mean = frame.template matrix<T>(1, hidden), concat = frame.template matrix<T>(1, hidden),
               dots = frame.template matrix<T>(1, n);
    const T one = 1;
    attention.query.forward(messages.rows(0, 1), query, ws);
    for (Index h = 0; h < heads; ++h) {
      const auto& head = attention.heads[std::size_t(h)];
      const MatrixView<const T> key_weight = attention.key.weight.view().rows(h * width, width),
                                value_weight = attention.value.weight.view().rows(h * width, width);
      const MatrixView<T> own = query.cols(h * width, width), out = concat.cols(h * width, width);
      simd::gemm<T>(own, key_weight, direction, ws);
      simd::gemm_transposed<T>(direction, keys, dots, ws);
      simd::scale(T(1 / std::sqrt(T(width))), dots.row(0));
      // Keys of one column, which are the logits.
      head.forward({.query = {&one, 1, 1}, .key = {dots.data(), n, 1}, .value = keys}, {.value = mean}, ws);
      std::ranges::copy(attention.value.bias.span().subspan(std::size_t(h * width), std::size_t(width)),
                        out.row(0).begin());
      simd::gemm_transposed<T>(mean, value_weight, out, ws, simd::Product::accumulate);
    }
    attention.output.forward(concat, sum, ws);
  }

  template <graph::NodeId I, class E, class Attend>
  void run(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, MatrixView<T> y, Saved* saved,
           Workspace& ws, E& executor, Attend&& attend) const {
    const Index m = y.rows(), hidden = message.weight.rows();
    detail::check_graph_input<T>(graph, x, input_dim(), edges, 0, y, hidden);
    auto frame = ws.frame();
    const auto rows = [&](Matrix<T> Saved::*kept, Index count) {
      if (saved == nullptr) return frame.template matrix<T>(count, hidden);
      set_shape(saved->*kept, count, hidden);
      return (saved->*kept).view();
    };
    const MatrixView<T> messages = rows(&Saved::messages, graph.nodes()), sums = rows(&Saved::sums, m),
                        combined = rows(&Saved::combined, m), states = rows(&Saved::states, m);
    message.forward(x, messages, ws, executor);
    attend(graph, messages, sums, saved, executor);
    add_neighbor_sums<T>(graph, messages, edges.weights, sums, ws, executor);
    aggregate.forward(sums, combined, ws, executor);
    if (saved == nullptr)
      cell.forward(combined, messages.rows(0, m), states, ws, executor);
    else
      cell.forward(combined, messages.rows(0, m), states, saved->cell, ws, executor);
    for (Index i = 0; i < m; ++i) {
      if (graph.degree(i) > 0)
        simd::scale(static_cast<T>(1 - dropout), states.row(i));
      else
        std::ranges::copy(messages.row(i), states.row(i).begin());
    }
    norm.forward(states, y, ws, executor);
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::gnn
