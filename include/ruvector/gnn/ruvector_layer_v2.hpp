// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/any_attention.hpp"
#include "ruvector/attention/concepts.hpp"
#include "ruvector/attention/dual_space.hpp"
#include "ruvector/attention/gat_v2.hpp"
#include "ruvector/attention/hyperbolic.hpp"
#include "ruvector/attention/mixture_of_experts.hpp"
#include "ruvector/attention/multi_head.hpp"
#include "ruvector/attention/scaled_dot_product.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/gnn/concepts.hpp"
#include "ruvector/gnn/linear_expert.hpp"
#include "ruvector/gnn/neighbor_attention.hpp"
#include "ruvector/gnn/neighbor_sum.hpp"
#include "ruvector/graph/csr_graph.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/dropout.hpp"
#include "ruvector/nn/gru_cell.hpp"
#include "ruvector/nn/layer_norm.hpp"
#include "ruvector/nn/linear.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <concepts>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::gnn {

/// What a row of x gives to its row of y beside the layer. Both need as many columns out as in.
enum class Skip {
  none,           ///< nothing
  sum,            ///< itself: y = x + norm(…)
  from_identity,  ///< the same, and the norm starts at 0: an untrained layer, or stack of layers, gives back x exactly
};

/// The shape and options of a graph layer.
struct LayerConfig {
  Index input = 0;         ///< columns of x, ≥ 1
  Index hidden = 0;        ///< columns of y, ≥ 1
  Index heads = 1;         ///< of attention; they divide `hidden`
  double dropout = 0;      ///< 0 ≤ p < 1, of the new states, in training
  Index edge_dim = 0;      ///< features an edge; 0: none
  Skip skip = Skip::none;  ///< from x to y
};

/// Options of a layer whose attention is a mixture of experts.
struct MixtureConfig {
  Index experts = 3;                                        ///< N: scaled dot product, hyperbolic, linear, and again
  Index choices = 2;                                        ///< experts a node, 2 ≤ k ≤ N; 1 with GateMode::all
  bool noise = false;                                       ///< learned noise on the router's logits, in training
  double curvature = 1;                                     ///< of hyperbolic experts
  attention::GateMode gates = attention::GateMode::chosen;  ///< what the gates are
};

/// A layer of message passing: from x [nodes×input] to y [m×hidden], for node i with neighbours u,
///
///     M = x W_mᵀ + b_m                                    messages of all nodes, once
///     a_i = attention of M_i over {M_u}                   over the edges, see below
///     g_i = Σ_u ŵ_iu M_u                                  ŵ: weights of the edges, summing to 1
///     c_i = W_a (a_i + g_i) + b_a
///     h_i = cell(input c_i, state M_i)
///     y_i = norm(dropout(h_i)) (+ x_i)
///
/// Features e of edges enter an EdgeAwareAttention (GATv2) as they are, any other as a learned bias w_h·e of each head
/// h, which starts at 0. A node without neighbours has a_i = g_i = 0. `Attention` is any DifferentiableAttention of
/// width `hidden`: MultiHead of any heads, GatV2, a single Flash, or AnyAttention, the layer configured at run time,
/// which the four factories `with_…` make. MultiHead and GatV2 project each node once, also inside AnyAttention where
/// the factories put them; another attention is called node by node with the messages of its neighbours.
///
/// A GraphLayer. O(nodes hidden² + edges hidden); memory O(nodes hidden), never O(edges hidden). The cell is a
/// RecurrentCell, the norm a RowMap.
template <attention::DifferentiableAttention Attention, nn::RecurrentCell Cell = nn::GruCell<ScalarOf<Attention>>,
          nn::RowMap Norm = nn::LayerNorm<ScalarOf<Attention>>>
class RuvectorLayerV2 {
 public:
  using Scalar = ScalarOf<Attention>;  ///< what it computes in
  using T = Scalar;                    ///< short

  nn::Linear<T> message;    ///< W_m [hidden×input], b_m
  Attention attention;      ///< over the messages
  nn::Linear<T> edge_bias;  ///< w [heads×edge_dim]; empty without edges, or where attention sees them itself
  nn::Linear<T> aggregate;  ///< W_a [hidden×hidden], b_a
  Cell cell;                ///< hidden, hidden
  Norm norm;                ///< of the new states

  /// What `backward` needs of a forward pass, and its scratch; owned by the caller, reused, and seeded (`saved.rng`)
  /// for dropout.
  struct Saved {
    Rng rng{0};                                   ///< what the next forward pass draws from
    Matrix<T> messages;                           ///< M
    Matrix<T> sums;                               ///< a + g
    Matrix<T> combined;                           ///< c
    Matrix<T> states;                             ///< dropout(h)
    detail::SavedNeighbors<Attention> neighbors;  ///< of attention
    typename Cell::Saved cell;                    ///< of the cell
    nn::Dropout::Saved dropout;                   ///< of dropout
  };

  /// With this attention, cell and norm. Throws ConfigError for options out of range and parts that do not fit.
  RuvectorLayerV2(const LayerConfig& config, Attention with_attention, Cell with_cell, Norm with_norm, Rng& rng)
      : message(linear(config.input, config.hidden), rng),
        attention(std::move(with_attention)),
        aggregate(linear(config.hidden, config.hidden), rng),
        cell(std::move(with_cell)),
        norm(std::move(with_norm)),
        config_(config) {
    check_config();
    if (config.edge_dim > 0 && detail::edge_biases(attention) > 0)
      edge_bias = nn::Linear<T>({.input = config.edge_dim,
                                 .output = detail::edge_biases(attention),
                                 .bias = false,
                                 .initializer = nn::Initializer::zero},
                                rng);
    if (config.skip == Skip::from_identity)
      for_each_parameter([](std::string_view, auto tensor) { std::ranges::fill(tensor, 0); }, norm);
  }
  /// With this attention, and a cell and a norm with their defaults. Throws as above.
  RuvectorLayerV2(const LayerConfig& config, Attention with_attention, Rng& rng) requires(
      std::constructible_from<Cell, nn::GruConfig, Rng&>&& std::constructible_from<Norm, nn::LayerNormConfig>)
      : RuvectorLayerV2(config, std::move(with_attention),
                        Cell(nn::GruConfig{.input = config.hidden, .hidden = config.hidden}, rng),
                        Norm(nn::LayerNormConfig{.dim = config.hidden}), rng) {}

  /// A layer configured at run time, whose heads are copies of `head`, each on hidden/heads columns of its own.
  [[nodiscard]] static RuvectorLayerV2 with_heads(const LayerConfig& config, const Attention& head,
                                                  Rng& rng) requires(detail::is_any<Attention>) {
    check_heads(config);
    return RuvectorLayerV2(
        config, Attention(attention::MultiHead<Attention>({.dim = config.hidden, .heads = config.heads}, rng, head)),
        rng);
  }
  /// Heads in the Poincaré ball: attention::Hyperbolic. Throws ConfigError.
  [[nodiscard]] static RuvectorLayerV2 with_hyperbolic(const LayerConfig& config,
                                                       const attention::HyperbolicConfig& options,
                                                       Rng& rng) requires(detail::is_any<Attention>) {
    return with_heads(config, attention::make_hyperbolic<attention::Hyperbolic<T>>(options), rng);
  }
  /// GATv2, which looks at the features of edges: as it stands they steer the weights alone, so that where all
  /// neighbours are alike they change nothing; with `options.edge_in_value` they are part of what is averaged. The
  /// layer sets widths, heads and concat; edge_dim may stand in either configuration. Throws ConfigError.
  [[nodiscard]] static RuvectorLayerV2 with_edge_featured(LayerConfig config, attention::GatV2Config options,
                                                          Rng& rng) requires(detail::is_any<Attention>) {
    check_heads(config);
    if (config.edge_dim == 0) config.edge_dim = options.edge_dim;
    if (options.edge_dim != 0 && options.edge_dim != config.edge_dim)
      throw_config_error("with_edge_featured: edge_dim", std::to_string(config.edge_dim), double(options.edge_dim));
    options.source_dim = config.hidden;
    options.target_dim = config.hidden;
    options.edge_dim = config.edge_dim;
    options.heads = config.heads;
    options.channels = config.hidden / config.heads;
    options.concat = true;
    return RuvectorLayerV2(config, Attention(attention::GatV2<T>(options, rng)), rng);
  }
  /// Heads in a flat and a hyperbolic space at once: attention::DualSpace. Of the columns of a head the first
  /// `euclidean_dim` are flat, half of them by default. Throws ConfigError, also for heads of one column.
  [[nodiscard]] static RuvectorLayerV2 with_dual_space(const LayerConfig& config, attention::DualSpaceConfig options,
                                                       Rng& rng) requires(detail::is_any<Attention>) {
    check_heads(config);
    const Index columns = config.hidden / config.heads;
    if (options.euclidean_dim == 0) options.euclidean_dim = columns / 2;
    if (options.euclidean_value_dim == 0) options.euclidean_value_dim = columns / 2;
    for (const Index flat : {options.euclidean_dim, options.euclidean_value_dim})
      if (flat < 1 || flat >= columns)
        throw_config_error("with_dual_space: columns of the flat space", "1 to " + std::to_string(columns - 1),
                           double(flat));
    return with_heads(config, attention::make_dual_space<attention::DualSpace<T>>(options), rng);
  }
  /// Heads that are mixtures of experts: each node is routed by itself, to `choices` of the experts, and the gates are
  /// learned through what they let through. Losses that balance experts are off: they are about batches of rows, and
  /// here a row is a call; besides, they help throughput, not quality. Throws ConfigError.
  [[nodiscard]] static RuvectorLayerV2 with_moe(const LayerConfig& config, const MixtureConfig& options,
                                                Rng& rng) requires(detail::is_any<Attention>) {
    check_heads(config);
    using Router = attention::NoisyTopKRouter<T>;
    using Mixture = attention::MixtureOfExpertsList<Router, Attention>;
    Mixture mixture{Router({.dim = config.hidden / config.heads,
                            .experts = options.experts,
                            .choices = options.choices,
                            .gates = options.gates,
                            .noise = options.noise,
                            .balance = 0,
                            .z = 0},
                           rng),
                    {}};
    for (Index e = 0; e < options.experts; ++e) mixture.experts.push_back(expert(e % 3, options));
    return with_heads(config, Attention(std::move(mixture)), rng);
  }

  /// Names all weights.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("message", self.message...);
    visit("attention", self.attention...);
    visit("edge_bias", self.edge_bias...);
    visit("aggregate", self.aggregate...);
    visit("cell", self.cell...);
    visit("norm", self.norm...);
  }

  /// The options.
  [[nodiscard]] const LayerConfig& config() const { return config_; }
  /// Columns of x.
  [[nodiscard]] Index input_dim() const { return config_.input; }
  /// Columns of y, for rows of input_dim() elements; ShapeError for others.
  [[nodiscard]] Index output_dim(Index input_dim) const {
    check_shape("RuvectorLayerV2: columns of x", config_.input, input_dim);
    return config_.hidden;
  }

  /// Writes y [m×hidden], the outputs of the first m ≤ nodes, for any graph: the nodes need not be those that the layer
  /// was trained on. Throws ShapeError, ConfigError before anything is written.
  template <graph::NodeId I, Executor E = Serial>
  void forward(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, MatrixView<T> y,
               Workspace& ws, E&& executor = Serial{}) const {
    run(graph, x, edges, y, nullptr, ws, executor);
  }
  /// The same in training: with dropout, and keeps in `saved` what `backward` needs.
  template <graph::NodeId I, Executor E = Serial>
  void forward(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, MatrixView<T> y,
               Saved& saved, Workspace& ws, E&& executor = Serial{}) const {
    run(graph, x, edges, y, &saved, ws, executor);
  }
  /// out [hidden] = the output of one node, x [input], from rows `neighbors` [n×input] and what is known of the edges
  /// to them, row by row: `forward` over the graph of one node and its neighbours, to the bit.
  void forward(std::span<const T> x, MatrixView<const T> neighbors, const GraphEdges<T>& edges, std::span<T> out,
               Workspace& ws) const {
    check_shape("RuvectorLayerV2: elements of out", config_.hidden, Index(out.size()));
    detail::with_star<T>(x, neighbors, config_.input, ws, [&](auto star, MatrixView<const T> rows) {
      forward(star, rows, edges, MatrixView<T>(out.data(), 1, config_.hidden), ws);
    });
  }

  /// Given d_y = ∂L/∂y [m×hidden], and graph, x and edges as the forward pass in training mode had them, adds the
  /// gradients to d_x [nodes×input] and d_edges (empty: not wanted) and to grad. Attention runs again, node by node.
  /// Throws ShapeError before anything is added. About three times the cost of forward.
  template <graph::NodeId I, Executor E = Serial>
  void backward(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, Saved& saved,
                MatrixView<const T> d_y, MatrixView<T> d_x, const typename GraphEdges<T>::Gradient& d_edges,
                RuvectorLayerV2& grad, Workspace& ws, E&& executor = Serial{}) const {
    detail::check_graph_input<T>(graph, x, config_.input, edges, config_.edge_dim, d_y, config_.hidden);
    detail::check_graph_gradient<T>(graph, x, d_x, edges, d_edges);
    check_same_parameters(*this, std::as_const(grad));
    const Index m = d_y.rows();
    nn::detail::check_matrix("RuvectorLayerV2: saved", graph.nodes(), config_.hidden, saved.messages.view());
    nn::detail::check_matrix("RuvectorLayerV2: saved", m, config_.hidden, saved.states.view());
    auto frame = ws.frame();
    const Index hidden = config_.hidden;
    const MatrixView<const T> messages = saved.messages;
    const MatrixView<T> d_messages = detail::zeros<T>(frame, graph.nodes(), hidden),
                        d_sums = detail::zeros<T>(frame, m, hidden), d_combined = detail::zeros<T>(frame, m, hidden),
                        d_states = detail::zeros<T>(frame, m, hidden);
    const bool drops = config_.dropout > 0;
    const MatrixView<T> d_dropped = drops ? detail::zeros<T>(frame, m, hidden) : d_states;
    detail::with_executor(executor,
                          [&](auto&... e) -> decltype(norm.backward(d_y, d_y, d_dropped, grad.norm, ws, e...)) {
                            norm.backward(saved.states, d_y, d_dropped, grad.norm, ws, e...);
                          });
    if (drops) dropout().template backward<T>(saved.dropout, d_dropped, d_states, executor);
    const MatrixView<T> d_own = d_messages.rows(0, m);
    detail::with_executor(
        executor,
        [&](auto&... e) -> decltype(cell.backward(d_y, d_y, saved.cell, d_y, d_own, d_own, grad.cell, ws, e...)) {
          cell.backward(saved.combined, messages.rows(0, m), saved.cell, d_states, d_combined, d_own, grad.cell, ws,
                        e...);
        });
    aggregate.backward(saved.sums, d_combined, d_sums, grad.aggregate, ws, executor);
    add_neighbor_sums_gradient<T>(graph, messages, edges.weights, d_sums, d_messages, d_edges.weights, ws, executor);
    neighbors(graph, messages, edges)
        .backward(attention, MatrixView<const T>(d_sums), saved.neighbors, d_messages, d_edges.features,
                  grad.edge_bias.weight, grad.attention, ws, executor);
    message.backward(x, d_messages, d_x, grad.message, ws, executor);
    if (config_.skip != Skip::none && !d_x.empty())
      for (Index i = 0; i < m; ++i) simd::axpy<T>(T(1), d_y.row(i), d_x.row(i));
  }

 private:
  [[nodiscard]] static nn::LinearConfig linear(Index input, Index output) {
    for (const Index size : {input, output})
      if (size < 1) throw_config_error("RuvectorLayerV2: input and hidden", ">= 1", double(size));
    return {.input = input, .output = output, .initializer = nn::Initializer::xavier_uniform};
  }
  static void check_heads(const LayerConfig& config) {
    if (config.heads < 1) throw_config_error("RuvectorLayerV2: heads", ">= 1", double(config.heads));
    if (config.hidden < 1 || config.hidden % config.heads != 0)
      throw_config_error("RuvectorLayerV2: hidden", "a multiple of " + std::to_string(config.heads),
                         double(config.hidden));
  }
  void check_config() const {
    check_heads(config_);
    if (!(config_.dropout >= 0 && config_.dropout < 1))
      throw_config_error("RuvectorLayerV2: dropout", ">= 0 and < 1", config_.dropout);
    if (config_.edge_dim < 0) throw_config_error("RuvectorLayerV2: edge_dim", ">= 0", double(config_.edge_dim));
    if (config_.skip != Skip::none && config_.input != config_.hidden)
      throw_config_error("RuvectorLayerV2: hidden with a skip", std::to_string(config_.input), double(config_.hidden));
    check_shape("RuvectorLayerV2: columns of attention", config_.hidden, attention.output_dim(config_.hidden));
    check_shape("RuvectorLayerV2: input of the cell", config_.hidden, cell.input_dim());
    check_shape("RuvectorLayerV2: state of the cell", config_.hidden, cell.hidden_dim());
    check_shape("RuvectorLayerV2: columns of the norm", config_.hidden, norm.output_dim(config_.hidden));
  }

  // Experts in the order of the RFC's table.
  [[nodiscard]] static Attention expert(Index kind, const MixtureConfig& options) {
    if (kind == 0) return attention::ScaledDotProduct<T>();
    if (kind == 1) return attention::make_hyperbolic<attention::Hyperbolic<T>>({.curvature = options.curvature});
    return LinearExpert<T>();
  }

  [[nodiscard]] nn::Dropout dropout() const { return nn::Dropout(config_.dropout); }

  template <graph::NodeId I>
  [[nodiscard]] detail::NeighborAttention<T, I> neighbors(graph::CsrView<I> graph, MatrixView<const T> messages,
                                                          const GraphEdges<T>& edges) const {
    return {graph, messages, edges.features, edge_bias.weight};
  }

  template <graph::NodeId I, class E>
  void run(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, MatrixView<T> y, Saved* saved,
           Workspace& ws, E& executor) const {
    detail::check_graph_input<T>(graph, x, config_.input, edges, config_.edge_dim, y, config_.hidden);
    const Index m = y.rows();
    auto frame = ws.frame();
    const auto rows = [&](Matrix<T> Saved::*kept, Index count) {
      if (saved == nullptr) return frame.template matrix<T>(count, config_.hidden);
      set_shape(saved->*kept, count, config_.hidden);
      return (saved->*kept).view();
    };
    const MatrixView<T> messages = rows(&Saved::messages, graph.nodes()), sums = rows(&Saved::sums, m),
                        combined = rows(&Saved::combined, m), states = rows(&Saved::states, m);
    message.forward(x, messages, ws, executor);
    neighbors(graph, messages, edges)
        .forward(attention, sums, saved ? &saved->neighbors : nullptr, saved ? &saved->rng : nullptr, ws, executor);
    add_neighbor_sums<T>(graph, messages, edges.weights, sums, ws, executor);
    aggregate.forward(sums, combined, ws, executor);
    const MatrixView<const T> own = messages.rows(0, m);
    if (saved == nullptr)
      detail::with_executor(executor, [&](auto&... e) -> decltype(cell.forward(combined, own, states, ws, e...)) {
        cell.forward(combined, own, states, ws, e...);
      });
    else
      detail::with_executor(executor,
                            [&](auto&... e) -> decltype(cell.forward(combined, own, states, saved->cell, ws, e...)) {
                              cell.forward(combined, own, states, saved->cell, ws, e...);
                            });
    if (saved != nullptr && config_.dropout > 0)
      dropout().template forward<T>(states, states, saved->rng, saved->dropout, executor);
    detail::with_executor(executor, [&](auto&... e) -> decltype(norm.forward(states, y, ws, e...)) {
      norm.forward(states, y, ws, e...);
    });
    if (config_.skip != Skip::none)
      for (Index i = 0; i < m; ++i) simd::axpy<T>(T(1), x.row(i), y.row(i));
  }

  LayerConfig config_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::gnn
