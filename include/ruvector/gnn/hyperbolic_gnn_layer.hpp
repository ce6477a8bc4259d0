// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/hyperbolic.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/geometry/poincare_ball.hpp"
#include "ruvector/gnn/concepts.hpp"
#include "ruvector/gnn/neighbor_attention.hpp"
#include "ruvector/gnn/neighbor_sum.hpp"
#include "ruvector/graph/csr_graph.hpp"
#include "ruvector/nn/linear.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <span>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::gnn {

/// Where a HyperbolicGNNLayer adds and averages.
enum class HyperbolicUpdate {
  tangent,  ///< in the tangent space at the origin, where both are Euclidean. Source: Chami et al. 2019
  gyro,     ///< in the ball: Möbius addition, and attention by distance with the gyromidpoint. Source: Ganea et al.
            ///< 2018; Gulcehre et al. 2019
};

/// The shape and options of a HyperbolicGNNLayer.
struct HyperbolicLayerConfig {
  Index input = 0;                                      ///< columns of x, ≥ 1
  Index hidden = 0;                                     ///< columns of y, ≥ 1
  double curvature = 1;                                 ///< c > 0: rows are points of the ball of radius 1/√c
  HyperbolicUpdate update = HyperbolicUpdate::tangent;  ///< where the layer works
  double beta = 1;                                      ///< of attention, with gyro; learned
  bool activation = true;                               ///< tanh in the tangent space, at the end
};

/// Message passing among points of the Poincaré ball: rows of x and y are points, whatever the weights. With
/// t_i = log₀(x_i) W ᵀ, ŵ the weights of the edges (summing to 1, see add_neighbor_sums) and φ = tanh or nothing,
///
///     tangent   m_i = t_i + b,            y_i = exp₀ φ(m_i + Σ_u ŵ_iu m_u)
///     gyro      p_i = exp₀(t_i) ⊕ exp₀(b),  y_i = exp₀ φ(log₀(p_i ⊕ n_i))
///               n_i = gyromidpoint of {p_u} by a_iu ∝ w_iu exp(−β d(p_i, p_u))
///
/// where n_i = 0 without neighbours. The weights of edges must not be negative; with gyro one of 0 hides its edge, and
/// edges are alike where there are no weights. The curvature is not learned: points of one layer must be points of the
/// next. A GraphLayer without features of edges. O(nodes input hidden + edges hidden).
template <Real T>
class HyperbolicGNNLayer {
 public:
  using Scalar = T;  ///< what it computes in

  nn::Linear<T> message;                                ///< W [hidden×input], without bias
  Vector<T> bias;                                       ///< b [hidden], a tangent vector at the origin
  attention::Hyperbolic<T> attention;                   ///< β, with gyro
  geometry::PoincareBall<T> ball;                       ///< of the points
  HyperbolicUpdate update = HyperbolicUpdate::tangent;  ///< where the layer works
  bool activation = true;                               ///< whether φ is tanh

  /// What `backward` needs of a forward pass, and its scratch; owned by the caller and reused.
  struct Saved {
    Rng rng{0};                                                  ///< nothing is drawn
    Matrix<T> tangents;                                          ///< log₀ x [nodes×input]
    Matrix<T> messages;                                          ///< t, or m [nodes×hidden]
    Matrix<T> points;                                            ///< p [nodes×hidden], with gyro
    Matrix<T> neighborhoods;                                     ///< n [m×hidden], with gyro
    Matrix<T> states;                                            ///< under exp₀ [m×hidden]
    detail::SavedNeighbors<attention::Hyperbolic<T>> neighbors;  ///< with gyro
  };

  /// W starts at U(±√(6/(input + hidden))), b at 0. Throws ConfigError for options out of range.
  HyperbolicGNNLayer(const HyperbolicLayerConfig& config, Rng& rng)
      : message({.input = checked(config).input,
                 .output = config.hidden,
                 .bias = false,
                 .initializer = nn::Initializer::xavier_uniform},
                rng),
        bias(config.hidden),
        attention(attention::make_hyperbolic<attention::Hyperbolic<T>>(
            {.curvature = config.curvature, .beta = config.beta, .input = attention::Points::on_manifold})),
        ball(static_cast<T>(config.curvature)),
        update(config.update),
        activation(config.activation) {}

  /// Names W, b and β.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("message", self.message...);
    visit("bias", self.bias...);
    visit("beta", self.attention.score.beta...);
  }

  /// Columns of x.
  [[nodiscard]] Index input_dim() const { return message.input_dim(); }
  /// Columns of y, for rows of input_dim() elements; ShapeError for others.
  [[nodiscard]] Index output_dim(Index input_dim) const { return message.output_dim(input_dim); }

  /// Writes y [m×hidden], the points of the first m ≤ nodes. Points of x outside of the ball count as their
  /// projections. Throws ShapeError before anything is written.
  template <graph::NodeId I, Executor E = Serial>
  void forward(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, MatrixView<T> y,
               Workspace& ws, E&& executor = Serial{}) const {
    run(graph, x, edges, y, nullptr, ws, executor);
  }
  /// The same, and keeps in `saved` what `backward` needs.
  template <graph::NodeId I, Executor E = Serial>
  void forward(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, MatrixView<T> y,
               Saved& saved, Workspace& ws, E&& executor = Serial{}) const {
    run(graph, x, edges, y, &saved, ws, executor);
  }

  /// Given d_y [m×hidden], adds the gradients, in the coordinates of the ball, to d_x [nodes×input] and the weights of
  /// edges in d_edges (empty: not wanted) and to grad. Throws ShapeError before anything is added.
  template <graph::NodeId I, Executor E = Serial>
  void backward(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, Saved& saved,
                MatrixView<const T> d_y, MatrixView<T> d_x, const typename GraphEdges<T>::Gradient& d_edges,
                HyperbolicGNNLayer& grad, Workspace& ws, E&& executor = Serial{}) const {
    const Index m = d_y.rows(), hidden = bias.size();
    detail::check_graph_input<T>(graph, x, input_dim(), edges, 0, d_y, hidden);
    detail::check_graph_gradient<T>(graph, x, d_x, edges, d_edges);
    check_same_parameters(*this, std::as_const(grad));
    nn::detail::check_matrix("HyperbolicGNNLayer: saved", graph.nodes(), hidden, saved.messages.view());
    nn::detail::check_matrix("HyperbolicGNNLayer: saved", m, hidden, saved.states.view());
    auto frame = ws.frame();
    const auto d_messages = detail::zeros<T>(frame, graph.nodes(), hidden);
    const auto d_states = detail::zeros<T>(frame, m, hidden);
    // y = exp₀ v, v = tanh u
    for_rows(m, ws, executor, [&](Index i, geometry::PoincareBall<T>& unused) {
      ball.exp0_vjp(saved.states.row(i), d_y.row(i), d_states.row(i), unused);
      if (!activation) return;
      for (Index c = 0; c < hidden; ++c) d_states(i, c) *= T(1) - saved.states(i, c) * saved.states(i, c);
    });
    if (update == HyperbolicUpdate::tangent)
      pull_back_tangent(graph, edges, saved, d_states, d_messages, d_edges, grad, ws, executor);
    else
      pull_back_gyro(graph, edges, saved, d_states, d_messages, d_edges, grad, ws, executor);
    const auto d_tangents = detail::zeros<T>(frame, d_x.empty() ? 0 : graph.nodes(), input_dim());
    message.backward(saved.tangents, d_messages, d_tangents, grad.message, ws, executor);
    for_rows(d_tangents.rows(), ws, executor, [&](Index i, geometry::PoincareBall<T>& unused) {
      ball.log0_vjp(x.row(i), d_tangents.row(i), d_x.row(i), unused);
    });
  }

 private:
  static const HyperbolicLayerConfig& checked(const HyperbolicLayerConfig& config) {
    for (const Index size : {config.input, config.hidden})
      if (size < 1) throw_config_error("HyperbolicGNNLayer: input and hidden", ">= 1", double(size));
    return config;
  }

  // f(i, a gradient of the ball that nobody asks for) for each row.
  template <class E, class F>
  void for_rows(Index rows, Workspace& ws, E& executor, F&& f) const {
    nn::for_row_ranges(
        rows, ws,
        [&](Index first, Index count, Workspace&) {
          geometry::PoincareBall<T> unused = ball;
          for (Index i = first; i < first + count; ++i) f(i, unused);
        },
        executor);
  }

  template <graph::NodeId I, class E>
  void run(graph::CsrView<I> graph, MatrixView<const T> x, const GraphEdges<T>& edges, MatrixView<T> y, Saved* saved,
           Workspace& ws, E& executor) const {
    const Index m = y.rows(), n = graph.nodes(), hidden = bias.size();
    detail::check_graph_input<T>(graph, x, input_dim(), edges, 0, y, hidden);
    auto frame = ws.frame();
    const auto rows = [&](Matrix<T> Saved::*kept, Index count, Index columns) {
      if (saved == nullptr) return frame.template matrix<T>(count, columns);
      set_shape(saved->*kept, count, columns);
      return (saved->*kept).view();
    };
    const MatrixView<T> tangents = rows(&Saved::tangents, n, input_dim()), messages = rows(&Saved::messages, n, hidden),
                        states = rows(&Saved::states, m, hidden);
    for_rows(n, ws, executor, [&](Index i, auto&) { ball.log0(x.row(i), tangents.row(i)); });
    message.forward(tangents, messages, ws, executor);
    if (update == HyperbolicUpdate::tangent) {
      for_rows(n, ws, executor, [&](Index i, auto&) { simd::axpy<T>(T(1), bias.span(), messages.row(i)); });
      copy<T>(messages.rows(0, m), states);
      add_neighbor_sums<T>(graph, messages, edges.weights, states, ws, executor);
    } else {
      const MatrixView<T> points = rows(&Saved::points, n, hidden), near = rows(&Saved::neighborhoods, m, hidden);
      const std::span<T> shift = frame.template span<T>(hidden);
      ball.exp0(bias.span(), shift);
      for_rows(n, ws, executor, [&](Index i, auto&) {
        ball.exp0(messages.row(i), points.row(i));
        ball.add(points.row(i), shift, points.row(i));
      });
      look_around(graph, edges, points, frame, [&](const auto& pass) {
        pass.forward(attention, near, saved ? &saved->neighbors : nullptr, saved ? &saved->rng : nullptr, ws, executor);
      });
      for_rows(m, ws, executor, [&](Index i, auto&) {
        ball.add(points.row(i), near.row(i), states.row(i));
        ball.log0(states.row(i), states.row(i));
      });
    }
    for_rows(m, ws, executor, [&](Index i, auto&) {
      if (activation)
        for (T& v : states.row(i)) v = std::tanh(v);
      ball.exp0(states.row(i), y.row(i));
    });
  }

  // The pass of attention over the neighbours, in which log w of an edge is added to its logit.
  template <graph::NodeId I, class F>
  static void look_around(graph::CsrView<I> graph, const GraphEdges<T>& edges, MatrixView<const T> points,
                          Workspace::Frame& frame, F&& f) {
    const auto log_weights = frame.template matrix<T>(Index(edges.weights.size()), 1);
    std::ranges::transform(edges.weights, log_weights.data(), [](T w) { return std::log(w); });
    const auto one = frame.template matrix<T>(edges.weights.empty() ? 0 : 1, 1);
    if (!one.empty()) one(0, 0) = 1;
    f(detail::NeighborAttention<T, I>{graph, points, log_weights, one});
  }

  template <graph::NodeId I, class E>
  void pull_back_tangent(graph::CsrView<I> graph, const GraphEdges<T>& edges, Saved& saved,
                         MatrixView<const T> d_states, MatrixView<T> d_messages,
                         const typename GraphEdges<T>::Gradient& d_edges, HyperbolicGNNLayer& grad, Workspace& ws,
                         E& executor) const {
    copy<T>(d_states, d_messages.rows(0, d_states.rows()));
    add_neighbor_sums_gradient<T>(graph, saved.messages, edges.weights, d_states, d_messages, d_edges.weights, ws,
                                  executor);
    nn::add_row_sums(
        d_messages.rows(), std::array{grad.bias.span()}, ws,
        [&](const std::array<std::span<T>, 1>& parts, Index first, Index last, Workspace&) {
          std::ranges::fill(parts[0], T(0));
          for (Index i = first; i < last; ++i) simd::axpy<T>(T(1), d_messages.row(i), parts[0]);
        },
        executor);
  }

  template <graph::NodeId I, class E>
  void pull_back_gyro(graph::CsrView<I> graph, const GraphEdges<T>& edges, Saved& saved, MatrixView<T> d_states,
                      MatrixView<T> d_messages, const typename GraphEdges<T>::Gradient& d_edges,
                      HyperbolicGNNLayer& grad, Workspace& ws, E& executor) const {
    const Index m = d_states.rows(), n = graph.nodes(), hidden = bias.size();
    auto frame = ws.frame();
    const auto d_points = detail::zeros<T>(frame, n, hidden), d_near = detail::zeros<T>(frame, m, hidden);
    const auto moved = frame.template matrix<T>(m, hidden), d_moved = detail::zeros<T>(frame, m, hidden);
    for_rows(m, ws, executor, [&](Index i, geometry::PoincareBall<T>& unused) {
      ball.add(saved.points.row(i), saved.neighborhoods.row(i), moved.row(i));
      ball.log0_vjp(moved.row(i), d_states.row(i), d_moved.row(i), unused);
      ball.add_vjp(saved.points.row(i), saved.neighborhoods.row(i), d_moved.row(i), d_points.row(i), d_near.row(i),
                   unused);
    });
    const auto d_log_weights = detail::zeros<T>(frame, Index(d_edges.weights.size()), 1);
    const auto d_one = detail::zeros<T>(frame, edges.weights.empty() ? 0 : 1, 1);
    look_around(graph, edges, saved.points, frame, [&](const auto& pass) {
      pass.backward(attention, MatrixView<const T>(d_near), saved.neighbors, d_points, d_log_weights, d_one,
                    grad.attention, ws, executor);
    });
    for (std::size_t e = 0; e < d_edges.weights.size(); ++e)  // an edge that is hidden has no gradient
      if (edges.weights[e] != 0) d_edges.weights[e] += d_log_weights(Index(e), 0) / edges.weights[e];
    // p = exp₀(t) ⊕ exp₀(b)
    const std::span<T> shift = frame.template span<T>(hidden), d_shift = frame.template span<T>(hidden);
    std::ranges::fill(d_shift, T(0));
    ball.exp0(bias.span(), shift);
    nn::add_row_sums(
        n, std::array{d_shift}, ws,
        [&](const std::array<std::span<T>, 1>& parts, Index first, Index last, Workspace& own) {
          auto scope = own.frame();
          const std::span<T> start = scope.template span<T>(hidden), d_start = scope.template span<T>(hidden);
          geometry::PoincareBall<T> unused = ball;
          std::ranges::fill(parts[0], T(0));
          for (Index i = first; i < last; ++i) {
            ball.exp0(saved.messages.row(i), start);
            std::ranges::fill(d_start, T(0));
            ball.add_vjp(start, shift, d_points.row(i), d_start, parts[0], unused);
            ball.exp0_vjp(saved.messages.row(i), d_start, d_messages.row(i), unused);
          }
        },
        executor);
    geometry::PoincareBall<T> unused = ball;
    ball.exp0_vjp(bias.span(), d_shift, grad.bias.span(), unused);
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::gnn
