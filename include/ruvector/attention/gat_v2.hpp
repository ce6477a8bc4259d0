// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/gat_v2_pass.hpp"
#include "ruvector/attention/logits.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/graph/csr_graph.hpp"
#include "ruvector/nn/linear.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"
#include "ruvector/simd/transpose.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// What a row of input gives to its row of output beside attention.
enum class Residual {
  none,      ///< nothing
  linear,    ///< a learned projection of the target's features
  identity,  ///< the target's features, which must be as many as the output has columns
};

/// Shape and options of GatV2. The defaults are those of the paper.
struct GatV2Config {
  Index source_dim = 0;                  ///< columns of keys and values: features of source nodes; ≥ 0
  std::optional<Index> target_dim = {};  ///< columns of queries: features of target nodes; default source_dim
  Index edge_dim = 0;                    ///< features an edge; 0: none
  Index heads = 1;                       ///< H ≥ 1
  Index channels = 0;                    ///< C ≥ 1, columns a head
  bool concat = true;                    ///< output [H·C], head after head; otherwise [C], the mean of the heads
  bool share_weights = false;            ///< Θ_r = Θ_l, b_r = b_l
  bool edge_in_value = false;            ///< the value of an edge is x_l + W_e e, not x_l alone
  bool bias = true;                      ///< b_l and b_r
  bool output_bias = true;               ///< b
  Residual residual = Residual::none;    ///< what is added to the output
  AddedLoops loops = AddedLoops::none;   ///< of a graph
  double loop_feature = 0;               ///< for AddedLoops::constant; finite
  double negative_slope = 0.2;           ///< of LeakyReLU, 0 to 1
  double dropout = 0;                    ///< probability, 0 ≤ p < 1, that a weight is dropped in training
};

/// Graph attention with dynamic keys: target i, sources or keys j that it sees, H heads of C channels.
///
///     x_l = Θ_l x_source + b_l,   x_r = Θ_r x_target + b_r            (Θ_r = Θ_l, b_r = b_l with share_weights)
///     z_ij = x_r[i] + x_l[j] + W_e e_ij                               (the last with edge_dim > 0)
///     ℓ_ij = a_h · LeakyReLU(z_ij),   α_i = softmax_j(ℓ_ij + bias_ij)
///     out_i = Σ_j α_ij x_l[j] + residual_i + b                        (heads side by side, or their mean)
///
/// The nonlinearity stands before the product with a, so that the ranking of the keys depends on the query; in GAT's
/// LeakyReLU(a · [x_r | x_l]) it does not. Source: Brody, Alon & Yahav 2022, eq. 7, in the convention of PyTorch
/// Geometric's GATv2Conv, whose tensors are
///
///     source.weight lin_l.weight   source.bias lin_l.bias   target.weight lin_r.weight   target.bias lin_r.bias
///     attention [H×C] att [1,H,C]  edge.weight lin_edge.weight   residual.weight res.weight   bias bias
///
/// Two forms. *Dense*: an AttentionInput, whose rows of `query` are targets and rows of `key` sources. The mean is over
/// x_l of the rows of `value`, as wide as the keys: give the keys again for GATv2 as published (they are then projected
/// once). *Graph*: the nodes of a CsrView, each projected once, on any executor. Both need memory for the projections,
/// (m + n) H C numbers, and for one row of logits a worker, never for edges × H × C. Backward takes n H C numbers more
/// for a graph, on several workers (m + n) H C, and 2 n H C for a dense input.
///
/// A target without edges, or whose keys are all hidden, gets residual + b alone, and sends no gradient but to them.
/// Sums over edges are chains in the order of the edges; every result has the same bits for any number of workers.
template <Real T>
class GatV2 {
 public:
  using Scalar = T;                            ///< what it computes in
  static constexpr bool projects_keys = true;  ///< queries and keys may differ in width
  using Saved = detail::SavedGatV2<T>;  ///< kept from forward to backward; `saved.rng` draws the dropout, so seed it

  nn::Linear<T> source;    ///< Θ_l [H·C × source_dim], b_l
  nn::Linear<T> target;    ///< Θ_r [H·C × target_dim], b_r; empty with share_weights
  nn::Linear<T> edge;      ///< W_e [H·C × edge_dim], or empty
  Matrix<T> attention;     ///< a [H×C]
  nn::Linear<T> residual;  ///< [output × target_dim], or empty
  Vector<T> bias;          ///< b [output], or empty

  /// Nothing, to be assigned.
  GatV2() = default;
  /// Weights start as Glorot 2010 proposes (uniform), biases at 0. Throws ConfigError for options outside their range.
  explicit GatV2(const GatV2Config& config, Rng& rng) : config_(checked(config)) {
    const Index columns = config_.heads * config_.channels;
    const auto linear = [&](Index input, Index output, bool with_bias) {
      return nn::Linear<T>(
          {.input = input, .output = output, .bias = with_bias, .initializer = nn::Initializer::xavier_uniform}, rng);
    };
    source = linear(config_.source_dim, columns, config_.bias);
    if (!config_.share_weights) target = linear(target_dim(), columns, config_.bias);
    if (config_.edge_dim > 0) edge = linear(config_.edge_dim, columns, false);
    attention = Matrix<T>(config_.heads, config_.channels);
    nn::initialize<T>(nn::Initializer::xavier_uniform, attention, {}, rng);
    if (config_.residual == Residual::linear) residual = linear(target_dim(), output_columns(), false);
    if (config_.output_bias) bias = Vector<T>(output_columns());
  }

  /// Names all weights, also those that are empty.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("source", self.source...);
    visit("target", self.target...);
    visit("edge", self.edge...);
    visit("attention", self.attention...);
    visit("residual", self.residual...);
    visit("bias", self.bias...);
  }

  /// The options.
  [[nodiscard]] const GatV2Config& config() const { return config_; }

  /// Columns of the output for values, or source features, of this width; ShapeError for others than source_dim.
  [[nodiscard]] Index output_dim(Index value_dim) const {
    check_shape("GatV2: columns of value", config_.source_dim, value_dim);
    return output_columns();
  }

  /// Dense form. Writes what is wanted of `out`: weights are the mean of those of the heads, without dropout;
  /// log_sum_exp needs heads = 1, otherwise ConfigError. ConfigError, too, without edges where edge_dim > 0. Throws
  /// ShapeError, ConfigError before anything is written. O(m n H C (1 + edge_dim) + (m + n) H C d).
  ///@{
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Workspace& ws) const {
    check_no_edges();
    run_dense(in, {}, out, nullptr, ws);
  }
  void forward(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, const AttentionOutput<T>& out,
               Workspace& ws) const {
    run_dense(in, edges, out, nullptr, ws);
  }
  ///@}

  /// The same in training: with dropout, and `saved` for backward, two numbers a row and head.
  ///@{
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Saved& saved, Workspace& ws) const {
    check_no_edges();
    run_dense(in, {}, out, &saved, ws);
  }
  void forward(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, const AttentionOutput<T>& out, Saved& saved,
               Workspace& ws) const {
    run_dense(in, edges, out, &saved, ws);
  }
  ///@}

  /// Adds the gradients by query, key, value and bias to `d_in`, by the edges to `d_edges`, by the weights to `grad`.
  /// Throws ShapeError, ConfigError before anything is added. Three times the cost of forward.
  ///@{
  void backward(const AttentionInput<T>& in, const Saved& saved, const AttentionOutputGradient<T>& d_out,
                const AttentionGradient<T>& d_in, GatV2& grad, Workspace& ws) const {
    check_no_edges();
    backward_dense(in, {}, saved, d_out, d_in, {}, grad, ws);
  }
  void backward(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, const Saved& saved,
                const AttentionOutputGradient<T>& d_out, const AttentionGradient<T>& d_in,
                const typename EdgeFeatures<T>::Gradient& d_edges, GatV2& grad, Workspace& ws) const {
    backward_dense(in, edges, saved, d_out, d_in, d_edges, grad, ws);
  }
  ///@}

  /// scores [m×n] such that softmax(scores) are the weights: the logits of one head, or of several
  /// log((1/H) Σ_h α_h), a mixture's; −∞ where masked. Throws ShapeError, ConfigError.
  ///@{
  void scores(const AttentionInput<T>& in, MatrixView<T> scores, Workspace& ws) const {
    check_no_edges();
    this->scores(in, EdgeFeatures<T>{}, scores, ws);
  }
  void scores(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, MatrixView<T> scores, Workspace& ws) const {
    check_dense(in, edges);
    detail::check_size("GatV2: scores", scores, in.query.rows(), in.key.rows());
    auto frame = ws.frame();
    const detail::DensePairs<T> pairs{in};
    Packed<detail::DensePairs<T>> packed(*this, pairs, edges, frame);
    Serial serial;
    project_ends(Ends{in.key, in.value, in.query, {}, {}, {}}, packed, frame, ws, serial);
    const Scratch<detail::DensePairs<T>> scratch(frame, packed.pass, pairs.most_neighbors(), false);
    const auto log_weights = frame.template matrix<T>(config_.heads == 1 ? 0 : in.key.rows(), config_.heads);
    for (Index i = 0; i < in.query.rows(); ++i) write_scores(i, packed.pass, scratch, log_weights, scores.row(i));
  }
  ///@}

  /// Graph form: out [nodes × output] from x_source [nodes × source_dim] and x_target [nodes × target_dim], which may
  /// be the same matrix, and edges [graph.edges() × edge_dim], rows by edge id, or none. Messages flow to a node from
  /// the targets of its edges (CsrView). Throws ShapeError before anything is written.
  /// O(nodes H C d + edges H C (1 + edge_dim)).
  template <graph::NodeId I, Executor E = Serial>
  void forward(graph::CsrView<I> graph, MatrixView<const T> x_source, MatrixView<const T> x_target,
               const EdgeFeatures<T>& edges, MatrixView<T> out, Workspace& ws, E&& executor = Serial{}) const {
    run_graph(graph, x_source, x_target, edges, out, nullptr, ws, executor);
  }

  /// The same in training: with dropout, and `saved` for backward, two numbers a node and head.
  template <graph::NodeId I, Executor E = Serial>
  void forward(graph::CsrView<I> graph, MatrixView<const T> x_source, MatrixView<const T> x_target,
               const EdgeFeatures<T>& edges, MatrixView<T> out, Saved& saved, Workspace& ws,
               E&& executor = Serial{}) const {
    run_graph(graph, x_source, x_target, edges, out, &saved, ws, executor);
  }

  /// Given d_out [nodes × output], adds the gradients by the features of nodes and edges (empty: not wanted; d_source
  /// and d_target may be the same matrix) and by the weights. Several workers go over the edges twice, to the targets
  /// and to the sources, one goes once; if edges share rows of features whose gradient is wanted, one works. Throws
  /// ShapeError before anything is added.
  template <graph::NodeId I, Executor E = Serial>
  void backward(graph::CsrView<I> graph, MatrixView<const T> x_source, MatrixView<const T> x_target,
                const EdgeFeatures<T>& edges, const Saved& saved, MatrixView<const T> d_out, MatrixView<T> d_source,
                MatrixView<T> d_target, const typename EdgeFeatures<T>::Gradient& d_edges, GatV2& grad, Workspace& ws,
                E&& executor = Serial{}) const {
    check_graph(graph, x_source, x_target, edges);
    nn::detail::check_matrix("GatV2: gradient of the output", graph.nodes(), output_columns(), d_out);
    nn::detail::check_wanted("GatV2: gradient of x_source", graph.nodes(), config_.source_dim, d_source);
    nn::detail::check_wanted("GatV2: gradient of x_target", graph.nodes(), target_dim(), d_target);
    nn::detail::check_wanted("GatV2: gradient of edges", graph.edges(), config_.edge_dim, d_edges.features);
    const Pairs<I> pairs = pairs_of(graph);
    const auto call = [&](auto&& runner) {
      const Ends ends{x_source, x_source, x_target, d_source, {}, d_target};
      backward_pairs(pairs, ends, edges, saved, AttentionOutputGradient<T>{d_out}, {}, d_edges.features, grad, ws,
                     runner);
    };
    if (executor.concurrency() == 1 || (!d_edges.features.empty() && shares_features(graph, ws)))
      call(Serial{});
    else
      call(executor);
  }

 private:
  template <graph::NodeId I>
  using Pairs = detail::GraphPairs<T, I>;
  template <class P>
  using Scratch = typename detail::GatV2Pass<T, P>::Scratch;

  GatV2Config config_;

  static GatV2Config checked(const GatV2Config& config) {
    const auto at_least = [](std::string_view what, Index least, Index value) {
      if (value < least)
        throw_config_error(std::string("GatV2: ") + std::string(what), ">= " + std::to_string(least), double(value));
    };
    at_least("source_dim", 0, config.source_dim);
    at_least("target_dim", 0, config.target_dim.value_or(0));
    at_least("edge_dim", 0, config.edge_dim);
    at_least("heads", 1, config.heads);
    at_least("channels", 1, config.channels);
    const Index columns = checked_size("GatV2: heads x channels", config.heads, config.channels, Index(sizeof(T)));
    const Index output = config.concat ? columns : config.channels;
    const Index target_dim = config.target_dim.value_or(config.source_dim);
    if (config.share_weights && target_dim != config.source_dim)
      throw_config_error("GatV2: target_dim with share_weights", std::to_string(config.source_dim), double(target_dim));
    if (config.residual == Residual::identity && target_dim != output)
      throw_config_error("GatV2: target_dim with Residual::identity", std::to_string(output), double(target_dim));
    if (config.edge_in_value && config.edge_dim == 0)
      throw_config_error("GatV2: edge_dim with edge_in_value", ">= 1", 0);
    if (!std::isfinite(config.loop_feature)) throw_config_error("GatV2: loop_feature", "finite", config.loop_feature);
    if (!(config.negative_slope >= 0 && config.negative_slope <= 1))
      throw_config_error("GatV2: negative_slope", "0 to 1", config.negative_slope);
    if (!(config.dropout >= 0 && config.dropout < 1))
      throw_config_error("GatV2: dropout", ">= 0 and < 1", config.dropout);
    return config;
  }

  [[nodiscard]] Index target_dim() const { return config_.target_dim.value_or(config_.source_dim); }
  [[nodiscard]] Index output_columns() const {
    return config_.concat ? config_.heads * config_.channels : config_.channels;
  }

  // --- Front door. ---

  void check_no_edges() const {
    if (config_.edge_dim != 0)
      throw_config_error("GatV2: edge_dim of an input without edges", "0", double(config_.edge_dim));
  }
  void check_weights() const {
    const Index columns = config_.heads * config_.channels;
    const auto check = [](std::string_view what, const nn::Linear<T>& linear, Index rows, Index cols, Index with_bias) {
      nn::detail::check_matrix(what, rows, cols, linear.weight.view());
      check_shape(what, with_bias, linear.bias.size());
    };
    const Index biases = config_.bias ? columns : 0;
    check("GatV2: source", source, columns, config_.source_dim, biases);
    if (!config_.share_weights) check("GatV2: target", target, columns, target_dim(), biases);
    if (config_.edge_dim > 0) check("GatV2: edge", edge, columns, config_.edge_dim, 0);
    if (config_.residual == Residual::linear) check("GatV2: residual", residual, output_columns(), target_dim(), 0);
    nn::detail::check_matrix("GatV2: attention", config_.heads, config_.channels, attention.view());
    check_shape("GatV2: bias", config_.output_bias ? output_columns() : 0, bias.size());
  }
  void check_edges(const EdgeFeatures<T>& edges, Index rows) const {
    check_shape("GatV2: columns of edges", config_.edge_dim, edges.features.cols());
    if (config_.edge_dim > 0) check_shape("GatV2: rows of edges", rows, edges.features.rows());
  }
  void check_dense(const AttentionInput<T>& in, const EdgeFeatures<T>& edges) const {
    check_weights();
    check_rows(in);
    check_shape("GatV2: columns of query", target_dim(), in.query.cols());
    check_shape("GatV2: columns of key", config_.source_dim, in.key.cols());
    check_shape("GatV2: columns of value", config_.source_dim, in.value.cols());
    check_edges(edges, checked_size("GatV2: edges", in.query.rows(), in.key.rows()));
  }
  void check_one_head(std::string_view what, bool wanted) const {
    if (wanted && config_.heads != 1) throw_config_error(what, "1", double(config_.heads));
  }
  template <graph::NodeId I>
  void check_graph(graph::CsrView<I> graph, MatrixView<const T> x_source, MatrixView<const T> x_target,
                   const EdgeFeatures<T>& edges) const {
    check_weights();
    nn::detail::check_matrix("GatV2: x_source", graph.nodes(), config_.source_dim, x_source);
    nn::detail::check_matrix("GatV2: x_target", graph.nodes(), target_dim(), x_target);
    check_edges(edges, graph.edges());
  }
  static void check_saved(const Saved& saved, Index rows, Index slots) {
    nn::detail::check_matrix("GatV2: saved", rows, slots, saved.reference.view());
    nn::detail::check_matrix("GatV2: saved", rows, slots, saved.inverse_sum.view());
  }

  template <graph::NodeId I>
  [[nodiscard]] Pairs<I> pairs_of(graph::CsrView<I> graph) const {
    return {graph, config_.loops, T(config_.loop_feature)};
  }

  template <graph::NodeId I>
  [[nodiscard]] static bool shares_features(graph::CsrView<I> graph, Workspace& ws) {
    auto frame = ws.frame();
    const auto seen = frame.template span<bool>(graph.edge_ids().empty() ? 0 : graph.edges());
    std::ranges::fill(seen, false);
    return std::ranges::any_of(graph.edge_ids(), [&](Index id) { return std::exchange(seen[std::size_t(id)], true); });
  }

  // --- Projections. ---

  // The weights in packed columns; what a pass needs apart from the projections.
  template <class P>
  struct Packed {
    detail::GatV2Pass<T, P> pass;
    MatrixView<T> key, query;                     // those of the pass, to be written over by their gradients
    MatrixView<T> source, target;                 // [width × source_dim], [width × target_dim]
    std::span<const T> source_bias, target_bias;  // [width] or empty

    Packed(const GatV2& model, const P& pairs, const EdgeFeatures<T>& edges, Workspace::Frame& frame)
        : pass{.layout{model.config_.heads, model.config_.channels},
               .pairs = pairs,
               .slope = T(model.config_.negative_slope),
               .edge_in_value = model.config_.edge_in_value} {
      const Index width = pass.layout.width();
      const auto pack = [&](const T* row) {
        const std::span<T> packed = frame.span<T>(width);
        pass.layout.pack(row, packed.data());
        return packed;
      };
      pass.attention = pack(model.attention.data()).data();
      source = pack_rows(model.source.weight, frame);
      if (!model.source.bias.empty()) source_bias = pack(model.source.bias.data());
      target = source;
      target_bias = source_bias;
      if (!model.config_.share_weights) {
        target = pack_rows(model.target.weight, frame);
        if (!model.target.bias.empty()) target_bias = pack(model.target.bias.data());
      }
      if (model.config_.edge_dim == 0) return;
      pass.features = edges.features;
      pass.edge_out = pack_rows(model.edge.weight, frame);
      const auto transposed = frame.matrix<T>(model.config_.edge_dim, width);
      simd::transpose<T>(pass.edge_out, transposed);
      pass.edge_in = transposed;
    }

   private:
    MatrixView<T> pack_rows(MatrixView<const T> rows, Workspace::Frame& frame) const {
      const detail::HeadLayout<T>& layout = pass.layout;
      const auto packed = frame.matrix<T>(layout.width(), rows.cols());
      for (Index r = 0; r < packed.rows(); ++r) std::ranges::fill(packed.row(r), T(0));
      for (Index h = 0; h < layout.heads; ++h)
        for (Index c = 0; c < layout.channels; ++c)
          std::ranges::copy(rows.row(h * layout.channels + c), packed.row(layout.position(h, c)).begin());
      return packed;
    }
  };

  // x Wᵀ + b in packed columns.
  template <Executor E>
  [[nodiscard]] static MatrixView<T> project(MatrixView<const T> x, MatrixView<const T> weight, std::span<const T> bias,
                                             Workspace::Frame& frame, Workspace& ws, E& executor) {
    const auto y = frame.matrix<T>(x.rows(), weight.rows());
    nn::for_row_ranges(
        x.rows(), ws,
        [&](Index first, Index count, Workspace& own) {
          for (Index i = first; i < first + count && !bias.empty(); ++i) std::ranges::copy(bias, y.row(i).begin());
          simd::gemm_transposed<T>(x.rows(first, count), weight, y.rows(first, count), own,
                                   bias.empty() ? simd::Product::assign : simd::Product::accumulate);
        },
        executor);
    return y;
  }

  // Rows of sources, values and targets, and where their gradients go.
  struct Ends {
    MatrixView<const T> key, value, query;
    MatrixView<T> d_key, d_value, d_query;
  };

  [[nodiscard]] static bool same(MatrixView<const T> a, MatrixView<const T> b) {
    return a.data() == b.data() && a.rows() == b.rows() && a.cols() == b.cols() && a.stride() == b.stride();
  }

  template <class P, Executor E>
  void project_ends(const Ends& ends, Packed<P>& packed, Workspace::Frame& frame, Workspace& ws, E& executor) const {
    const auto from_source = [&](MatrixView<const T> x) {
      return project(x, packed.source, packed.source_bias, frame, ws, executor);
    };
    packed.key = from_source(ends.key);
    packed.query = config_.share_weights && same(ends.key, ends.query)
                       ? packed.key
                       : project(ends.query, packed.target, packed.target_bias, frame, ws, executor);
    packed.pass.key = packed.key;
    packed.pass.value = same(ends.key, ends.value) ? packed.key : from_source(ends.value);
    packed.pass.query = packed.query;
  }

  // --- Forward. ---

  void start_saving(Saved* saved, Index rows, Index slots) const {
    if (saved == nullptr) return;
    for (Matrix<T>* kept : {&saved->reference, &saved->inverse_sum})
      if (kept->rows() != rows || kept->cols() != slots) *kept = Matrix<T>(rows, slots);
    if (config_.dropout > 0) saved->dropout_key = saved->rng.bits();
  }

  void run_dense(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, const AttentionOutput<T>& out, Saved* saved,
                 Workspace& ws) const {
    check_dense(in, edges);
    check_output(in, out, output_columns());
    check_one_head("GatV2: heads for log_sum_exp", !out.log_sum_exp.empty());
    run(detail::DensePairs<T>{in}, Ends{in.key, in.value, in.query, {}, {}, {}}, edges, out, saved, ws, Serial{});
  }

  template <graph::NodeId I, Executor E>
  void run_graph(graph::CsrView<I> graph, MatrixView<const T> x_source, MatrixView<const T> x_target,
                 const EdgeFeatures<T>& edges, MatrixView<T> out, Saved* saved, Workspace& ws, E& executor) const {
    check_graph(graph, x_source, x_target, edges);
    nn::detail::check_matrix("GatV2: output", graph.nodes(), output_columns(), out);
    run(pairs_of(graph), Ends{x_source, x_source, x_target, {}, {}, {}}, edges, AttentionOutput<T>{out}, saved, ws,
        executor);
  }

  template <class P, Executor E>
  void run(const P& pairs, const Ends& ends, const EdgeFeatures<T>& edges, const AttentionOutput<T>& out, Saved* saved,
           Workspace& ws, E&& executor) const {
    auto frame = ws.frame();
    Packed<P> packed(*this, pairs, edges, frame);
    project_ends(ends, packed, frame, ws, executor);
    auto& pass = packed.pass;
    start_saving(saved, pairs.targets(), pass.layout.slots());
    if (saved != nullptr) pass.dropout = config_.dropout, pass.dropout_key = saved->dropout_key;
    const Index most = pairs.most_neighbors();
    nn::for_row_ranges(
        pairs.targets(), ws,
        [&](Index first, Index count, Workspace& own) {
          auto scope = own.frame();
          const Scratch<P> scratch(scope, pass, most, false);
          if (out.value.data() != nullptr)
            start_output(ends.query.rows(first, count), out.value.rows(first, count), own);
          for (Index i = first; i < first + count; ++i) {
            T* reference = saved == nullptr ? nullptr : saved->reference.row(i).data();
            T* inverse_sum = saved == nullptr ? nullptr : saved->inverse_sum.row(i).data();
            forward_row(i, pass, scratch, out, reference, inverse_sum);
          }
        },
        executor);
  }

  // out = residual + b, or 0.
  void start_output(MatrixView<const T> x, MatrixView<T> out, Workspace& ws) const {
    for (Index i = 0; i < out.rows(); ++i) {
      if (bias.empty())
        std::ranges::fill(out.row(i), T(0));
      else
        std::ranges::copy(bias, out.row(i).begin());
      if (config_.residual == Residual::identity) simd::axpy(T(1), x.row(i), out.row(i));
    }
    if (config_.residual == Residual::linear)
      simd::gemm_transposed<T>(x, residual.weight, out, ws, simd::Product::accumulate);
  }

  template <class P>
  void forward_row(Index i, const detail::GatV2Pass<T, P>& pass, const Scratch<P>& scratch,
                   const AttentionOutput<T>& out, T* reference, T* inverse_sum) const {
    if (out.weights.data() != nullptr) std::ranges::fill(out.weights.row(i), T(0));
    pass.forward_target(i, scratch, reference, inverse_sum,
                        [&](std::span<const detail::Neighbor> all, Index group, const Softmax& softmax) {
                          const Lanes mu(softmax.mu), sum(softmax.sum), inverse(softmax.inverse);
                          if (!out.log_sum_exp.empty()) out.log_sum_exp[std::size_t(i)] = log_sum_exp(mu[0], sum[0]);
                          if (out.weights.data() == nullptr) return;
                          for (std::size_t k = 0; k < all.size(); ++k)
                            for (Index h = 0; h < pass.layout.heads_of(group); ++h)
                              out.weights(i, all[k].row) +=
                                  scratch.logits[Index(k) * simd::lanes<T> + h] * inverse[h] / T(config_.heads);
                        });
    if (out.value.data() == nullptr) return;
    pass.layout.unpack(scratch.row, scratch.heads);
    const Index c = config_.channels;
    if (config_.concat) return simd::axpy(T(1), scratch.heads, out.value.row(i).data(), config_.heads * c);
    for (Index h = 0; h < config_.heads; ++h)
      simd::axpy(T(1) / T(config_.heads), scratch.heads + h * c, out.value.row(i).data(), c);
  }

  using Softmax = detail::GatV2Softmax<T>;

  // A register as numbers.
  struct Lanes {
    std::array<T, std::size_t(simd::lanes<T>)> value;
    explicit Lanes(simd::Batch<T> x) { simd::store(value.data(), x); }
    [[nodiscard]] T operator[](Index lane) const { return value[std::size_t(lane)]; }
  };

  [[nodiscard]] static T log_sum_exp(T mu, T sum) {
    return sum == 0 ? -std::numeric_limits<T>::infinity() : mu + std::log(sum);
  }

  // --- Scores. ---

  template <class P>
  void write_scores(Index i, const detail::GatV2Pass<T, P>& pass, const Scratch<P>& scratch, MatrixView<T> log_weights,
                    std::span<T> scores) const {
    std::ranges::fill(scores, -std::numeric_limits<T>::infinity());
    const auto all = pass.neighbors(i, scratch);
    for (Index group = 0; group < pass.layout.groups; ++group) {
      const auto top = pass.write_logits(i, group, all, scratch);
      if (config_.heads == 1) {
        for (std::size_t k = 0; k < all.size(); ++k)
          scores[std::size_t(all[k].row)] = scratch.logits[Index(k) * simd::lanes<T>];
        return;
      }
      for (std::size_t k = 0; k < all.size(); ++k)
        std::copy_n(scratch.logits + Index(k) * simd::lanes<T>, pass.layout.heads_of(group),
                    log_weights.row(Index(k)).data() + group * pass.layout.side);
      const Softmax softmax = pass.exponentiate(all, top, scratch);
      const Lanes mu(softmax.mu), sum(softmax.sum);
      for (Index h = 0; h < pass.layout.heads_of(group); ++h)
        for (std::size_t k = 0; k < all.size(); ++k) {
          T& x = log_weights(Index(k), group * pass.layout.side + h);
          const bool direct = std::isfinite(mu[h]) && sum[h] > 0;  // otherwise ∞ − ∞
          x = direct ? x - log_sum_exp(mu[h], sum[h])
                     : std::log(scratch.logits[Index(k) * simd::lanes<T> + h] / std::max(sum[h], T(1)));
        }
    }
    for (std::size_t k = 0; k < all.size(); ++k)
      scores[std::size_t(all[k].row)] = log_mean_exp(log_weights.row(Index(k)));
  }

  [[nodiscard]] static T log_mean_exp(std::span<const T> x) {
    const T top = *std::ranges::max_element(x);
    if (top == -std::numeric_limits<T>::infinity()) return top;
    T sum = 0;
    for (const T value : x) sum += std::exp(value - top);
    return top + std::log(sum / T(x.size()));
  }

  // --- Backward. ---

  void backward_dense(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, const Saved& saved,
                      const AttentionOutputGradient<T>& d_out, const AttentionGradient<T>& d_in,
                      const typename EdgeFeatures<T>::Gradient& d_edges, GatV2& grad, Workspace& ws) const {
    check_dense(in, edges);
    check_gradient(in, d_out, d_in, output_columns());
    check_one_head("GatV2: heads for a gradient of log_sum_exp", !d_out.log_sum_exp.empty());
    if (d_edges.features.data() != nullptr)
      nn::detail::check_matrix("GatV2: gradient of edges", edges.features.rows(), config_.edge_dim, d_edges.features);
    const Ends ends{in.key, in.value, in.query, d_in.key, d_in.value, d_in.query};
    backward_pairs(detail::DensePairs<T>{in}, ends, edges, saved, d_out, d_in.bias, d_edges.features, grad, ws,
                   Serial{});
  }

  template <class P>
  using Gradients = typename detail::GatV2Pass<T, P>::Gradients;

  template <class P, Executor E>
  void backward_pairs(const P& pairs, const Ends& ends, const EdgeFeatures<T>& edges, const Saved& saved,
                      const AttentionOutputGradient<T>& d_out, MatrixView<T> d_bias, MatrixView<T> d_features,
                      GatV2& grad, Workspace& ws, E&& executor) const {
    check_same_parameters(*this, std::as_const(grad));
    auto frame = ws.frame();
    Packed<P> packed(*this, pairs, edges, frame);
    auto& pass = packed.pass;
    const Index m = pairs.targets(), n = pairs.sources(), width = pass.layout.width();
    check_saved(saved, m, pass.layout.slots());
    project_ends(ends, packed, frame, ws, executor);
    pass.dropout = config_.dropout;
    pass.dropout_key = saved.dropout_key;

    // One worker sends gradients to targets and sources in one pass, after which nobody asks for x_r[i]: x̄_r takes its
    // place. Several make a second pass over the sources, for which they keep x_r and G; there x̄_l takes that of x_l.
    const bool scatter = executor.concurrency() == 1, apart = packed.query.data() != packed.key.data();
    const MatrixView<T> d_key = !scatter && apart ? packed.key : frame.matrix<T>(n, width);
    const MatrixView<T> d_value = P::keys_are_values ? d_key : frame.matrix<T>(n, width);
    const MatrixView<T> g = frame.matrix<T>(scatter ? 0 : m, width);
    Gradients<P> to{.saved = saved,
                    .d_log_sum_exp = d_out.log_sum_exp,
                    .d_query = {},
                    .d_key = scatter ? d_key : MatrixView<T>(),
                    .d_value = scatter ? d_value : MatrixView<T>(),
                    .d_bias = d_bias,
                    .d_features = d_features,
                    .delta = scatter ? MatrixView<T>() : frame.matrix<T>(m, pass.layout.slots())};
    if (scatter) {
      std::fill_n(d_key.data(), d_key.size(), T(0));
      std::fill_n(d_value.data(), d_value.size(), T(0));
    }
    {
      auto scope = ws.frame();
      to.d_query = scatter && apart ? packed.query : scope.template matrix<T>(m, width);
      add_targets(pass, d_out.value, g, to, grad, ws, executor);
      add_projection(ends.query, to.d_query, packed.target, ends.d_query, pass.layout,
                     config_.share_weights ? grad.source : grad.target, ws, executor);
      to.d_query = {};
    }
    if constexpr (P::keys_are_values)
      if (!scatter) add_sources(pass, g, to, d_key, ws, executor);

    add_projection(ends.key, d_key, packed.source, ends.d_key, pass.layout, grad.source, ws, executor);
    if (!P::keys_are_values)
      add_projection(ends.value, d_value, packed.source, ends.d_value, pass.layout, grad.source, ws, executor);
    add_residual(ends.query, d_out.value, ends.d_query, grad, ws, executor);
  }

  // G of a target: the gradient of its output, a share for each head, in packed columns. `heads`: scratch.
  void pack_heads(std::span<const T> d_out, const detail::HeadLayout<T>& layout, T* heads, T* packed) const {
    const Index c = config_.channels;
    if (config_.concat) return layout.pack(d_out.data(), packed);
    for (Index h = 0; h < config_.heads; ++h)
      for (Index k = 0; k < c; ++k) heads[h * c + k] = d_out[std::size_t(k)] / T(config_.heads);
    layout.pack(heads, packed);
  }

  // Everything but the gradients of sources, target by target; adds those of a and W_e. Writes the rows of g [m×width],
  // or keeps none of them where it is empty.
  template <class P, Executor E>
  void add_targets(const detail::GatV2Pass<T, P>& pass, MatrixView<const T> d_out, MatrixView<T> g,
                   const Gradients<P>& to, GatV2& grad, Workspace& ws, E& executor) const {
    auto frame = ws.frame();
    const Index width = pass.layout.width(), e = config_.edge_dim, most = pass.pairs.most_neighbors();
    const std::array sums{frame.span<T>(width), frame.span<T>(checked_size("GatV2: edge gradient", e, width))};
    for (const std::span<T> sum : sums) std::ranges::fill(sum, T(0));
    nn::add_row_sums(
        pass.pairs.targets(), sums, ws,
        [&](const std::array<std::span<T>, 2>& parts, Index first, Index last, Workspace& own) {
          for (const std::span<T> part : parts) std::ranges::fill(part, T(0));
          auto scope = own.frame();
          const Scratch<P> scratch(scope, pass, most, true);
          const std::span<T> own_g = scope.template span<T>(g.empty() ? width : 0);
          for (Index i = first; i < last; ++i) {
            T* packed = g.empty() ? own_g.data() : g.row(i).data();
            pack_heads(d_out.row(i), pass.layout, scratch.heads, packed);
            pass.backward_target(i, packed, scratch, to, parts[0].data(), MatrixView<T>(parts[1].data(), e, width));
          }
        },
        executor);
    const Index columns = config_.heads * config_.channels;
    const std::span<T> heads = frame.span<T>(columns);
    pass.layout.unpack(sums[0].data(), heads.data());
    simd::axpy(T(1), heads.data(), grad.attention.data(), columns);
    for (Index f = 0; f < e; ++f) {
      pass.layout.unpack(sums[1].data() + f * width, heads.data());
      for (Index r = 0; r < columns; ++r) grad.edge.weight(r, f) += heads[std::size_t(r)];
    }
  }

  // The gradients of sources, source by source: the edges sorted by source, then in the order of the targets.
  template <class P, Executor E>
  void add_sources(const detail::GatV2Pass<T, P>& pass, MatrixView<const T> g, const Gradients<P>& to,
                   MatrixView<T> d_key, Workspace& ws, E& executor) const {
    auto frame = ws.frame();
    const P& pairs = pass.pairs;
    const Index n = pairs.sources();
    const std::span<detail::Neighbor> list = frame.template span<detail::Neighbor>(pairs.most_neighbors());
    const std::span<Index> next = frame.template span<Index>(n + 2);  // next[j + 1]: where the next edge of j goes
    std::ranges::fill(next, Index(0));
    for (Index i = 0; i < pairs.targets(); ++i)
      for (const auto& neighbor : list.first(std::size_t(pairs.neighbors(i, list.data()))))
        ++next[std::size_t(neighbor.row) + 2];
    for (std::size_t j = 2; j < next.size(); ++j) next[j] += next[j - 1];
    const std::span<detail::Neighbor> sorted = frame.template span<detail::Neighbor>(next.back());
    for (Index i = 0; i < pairs.targets(); ++i)
      for (const auto& neighbor : list.first(std::size_t(pairs.neighbors(i, list.data()))))
        sorted[std::size_t(next[std::size_t(neighbor.row) + 1]++)] = {i, neighbor.edge};
    nn::for_row_ranges(
        n, ws,
        [&](Index first, Index count, Workspace& own) {
          auto scope = own.frame();
          const Scratch<P> scratch(scope, pass, detail::neighbors_at_once, true);
          for (Index j = first; j < first + count; ++j) {
            const auto begin = std::size_t(next[std::size_t(j)]), end = std::size_t(next[std::size_t(j) + 1]);
            pass.backward_source(j, sorted.subspan(begin, end - begin), g, scratch, to, d_key);
          }
        },
        executor);
  }

  // d_x += d_y Θ; the gradients of Θ and its bias.
  template <Executor E>
  static void add_projection(MatrixView<const T> x, MatrixView<const T> d_y, MatrixView<const T> weight,
                             MatrixView<T> d_x, const detail::HeadLayout<T>& layout, nn::Linear<T>& grad, Workspace& ws,
                             E& executor) {
    auto frame = ws.frame();
    if (!d_x.empty())
      nn::for_row_ranges(
          x.rows(), ws,
          [&](Index first, Index count, Workspace& own) {
            simd::gemm<T>(d_y.rows(first, count), weight, d_x.rows(first, count), own, simd::Product::accumulate);
          },
          executor);
    const MatrixView<const T> seen = seen_rows(x, d_y, frame);
    const std::array sums{frame.span<T>(weight.size()), frame.span<T>(grad.bias.empty() ? 0 : weight.rows())};
    for (const std::span<T> sum : sums) std::ranges::fill(sum, T(0));
    nn::add_row_sums(
        x.rows(), sums, ws,
        [&](const std::array<std::span<T>, 2>& parts, Index first, Index last, Workspace& own) {
          simd::gemm_left_transposed<T>(d_y.rows(first, last - first), seen.rows(first, last - first),
                                        MatrixView<T>(parts[0].data(), weight.rows(), weight.cols()), own);
          std::ranges::fill(parts[1], T(0));
          if (parts[1].empty()) return;
          for (Index i = first; i < last; ++i) simd::axpy<T>(T(1), d_y.row(i), parts[1]);
        },
        executor);
    const MatrixView<const T> d_weight(sums[0].data(), weight.rows(), weight.cols());
    for (Index h = 0; h < layout.heads; ++h)
      for (Index c = 0; c < layout.channels; ++c) {
        const Index row = h * layout.channels + c, at = layout.position(h, c);
        simd::axpy(T(1), d_weight.row(at), grad.weight.row(row));
        if (!grad.bias.empty()) grad.bias[row] += sums[1][std::size_t(at)];
      }
  }

  // x, but where it is not finite with zeros in the rows that nobody sees: their gradient is 0, and 0·NaN is not.
  [[nodiscard]] static MatrixView<const T> seen_rows(MatrixView<const T> x, MatrixView<const T> d_y,
                                                     Workspace::Frame& frame) {
    if (detail::all_finite(x)) return x;
    const MatrixView<T> seen = frame.matrix<T>(x.rows(), x.cols());
    for (Index i = 0; i < x.rows(); ++i)
      if (std::ranges::all_of(d_y.row(i), [](T d) { return d == 0; }))
        std::ranges::fill(seen.row(i), T(0));
      else
        std::ranges::copy(x.row(i), seen.row(i).begin());
    return seen;
  }

  template <Executor E>
  void add_residual(MatrixView<const T> x, MatrixView<const T> d_out, MatrixView<T> d_x, GatV2& grad, Workspace& ws,
                    E& executor) const {
    if (config_.residual == Residual::linear) residual.backward(x, d_out, d_x, grad.residual, ws, executor);
    if (config_.residual == Residual::identity && !d_x.empty())
      for (Index i = 0; i < x.rows(); ++i) simd::axpy(T(1), d_out.row(i), d_x.row(i));
    if (bias.empty()) return;
    nn::add_row_sums(
        x.rows(), std::array{grad.bias.span()}, ws,
        [&](const std::array<std::span<T>, 1>& parts, Index first, Index last, Workspace&) {
          std::ranges::fill(parts[0], T(0));
          for (Index i = first; i < last; ++i) simd::axpy<T>(T(1), d_out.row(i), parts[0]);
        },
        executor);
  }
};

/// The name it has in configurations: attention that sees the features of edges.
template <Real T>
using EdgeFeaturedAttention = GatV2<T>;

}  // namespace ruvector::inline RUVECTOR_ABI::attention
