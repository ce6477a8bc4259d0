// SPDX-License-Identifier: MIT
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/gnn/hyperbolic_gnn_layer.hpp>
#include <ruvector/gnn/stack.hpp>

#include <cmath>
#include <vector>

#include "gnn/graph_layer_laws.hpp"
#include "support/catch.hpp"

namespace test_hyperbolic_gnn_layer {

using namespace ruvector;
using namespace graph_layer_laws;
using gnn::HyperbolicGNNLayer;
using gnn::HyperbolicUpdate;

constexpr HyperbolicUpdate updates[] = {HyperbolicUpdate::tangent, HyperbolicUpdate::gyro};
static_assert(gnn::GraphLayer<HyperbolicGNNLayer<float>>);
static_assert(gnn::GraphLayer<gnn::Stack<HyperbolicGNNLayer<float>>>);

template <class T>
HyperbolicGNNLayer<T> make(HyperbolicUpdate update, const Shape& shape, Rng& rng) {
  return HyperbolicGNNLayer<T>({.input = shape.input,
                                .hidden = shape.hidden,
                                .curvature = 0.8,
                                .update = update,
                                .activation = shape.nodes % 3 != 0},
                               rng);
}

TEST_CASE("HyperbolicGNNLayer: gradients of both variants", "[gnn]") {
  for (const HyperbolicUpdate update : updates) {
    CAPTURE(int(update));
    check_gradients([&](const Shape& shape, Rng& rng) { return make<double>(update, shape, rng); },
                    51 + std::uint64_t(update), 20, 1, 0, 0.15);
  }
}

TEST_CASE("HyperbolicGNNLayer: laws of graph layers", "[gnn]") {
  for (const HyperbolicUpdate update : updates) {
    CAPTURE(int(update));
    const auto in_float = [&](const Shape& shape, Rng& rng) { return make<float>(update, shape, rng); };
    const auto in_double = [&](const Shape& shape, Rng& rng) { return make<double>(update, shape, rng); };
    check_threads(in_float, 53, 0, 0.1);
    check_rows_alone(in_float, 54, 0, 0.1);
    check_allocations(in_float, 55, 0, 0.1);
    check_allocation_failures("HyperbolicGNNLayer", in_float, 61, 0, 0.1);
    check_empty(in_double, 56, 0, 0.1);
    check_errors(in_double, 57, 0);
  }
}

// The formula, one node at a time, from the operations of the ball.
std::vector<double> by_formula(const HyperbolicGNNLayer<double>& layer, graph::CsrView<> graph, const Matrix<double>& x,
                               std::span<const double> weights, Index i) {
  const auto& ball = layer.ball;
  const Index hidden = layer.bias.size();
  const auto message = [&](Index u) {
    Matrix<double> t(1, x.cols()), m(1, hidden);
    ball.log0(x.row(u), t.row(0));
    for (Index r = 0; r < hidden; ++r)
      for (Index c = 0; c < x.cols(); ++c) m(0, r) += layer.message.weight(r, c) * t(0, c);
    return std::vector<double>(m.span().begin(), m.span().end());
  };
  const auto neighbors = graph.neighbors(i);
  std::vector<double> state = message(i);
  if (layer.update == HyperbolicUpdate::tangent) {
    for (Index c = 0; c < hidden; ++c) state[std::size_t(c)] += layer.bias[c];
    double sum = 0;
    for (std::size_t k = 0; k < neighbors.size(); ++k)
      sum += weights[std::size_t(graph.edge_id(graph.first_edge(i) + Index(k)))];
    for (std::size_t k = 0; k < neighbors.size(); ++k) {
      const double share = weights[std::size_t(graph.edge_id(graph.first_edge(i) + Index(k)))] / sum;
      const std::vector<double> other = message(neighbors[k]);
      for (Index c = 0; c < hidden; ++c) state[std::size_t(c)] += share * (other[std::size_t(c)] + layer.bias[c]);
    }
  } else {
    std::vector<double> shift(static_cast<std::size_t>(hidden));
    ball.exp0(layer.bias.span(), shift);
    const auto point = [&](Index u) {
      std::vector<double> p = message(u);
      ball.exp0(p, p);
      ball.add(p, shift, p);
      return p;
    };
    const std::vector<double> p = point(i);
    Matrix<double> points(Index(neighbors.size()), hidden);
    std::vector<double> a, middle(static_cast<std::size_t>(hidden));
    for (std::size_t k = 0; k < neighbors.size(); ++k) {
      const std::vector<double> q = point(neighbors[k]);
      std::copy(q.begin(), q.end(), points.row(Index(k)).begin());
      a.push_back(weights[std::size_t(graph.edge_id(graph.first_edge(i) + Index(k)))] *
                  std::exp(-layer.attention.score.beta.value() * ball.distance(p, q)));
    }
    Workspace ws;
    ball.midpoint(a, points, middle, ws);
    ball.add(p, middle, state);
    ball.log0(state, state);
  }
  if (layer.activation)
    for (double& v : state) v = std::tanh(v);
  ball.exp0(state, state);
  return state;
}

TEST_CASE("HyperbolicGNNLayer: is what its formula says", "[gnn]") {
  const std::uint64_t seed = 58;
  CAPTURE(seed);
  for (const HyperbolicUpdate update : updates)
    for (int trial = 0; trial < trials(12); ++trial) {
      Rng rng = Rng(seed).split(std::uint64_t(trial));
      CAPTURE(int(update), trial);
      Shape shape = random_shape(rng, trial);
      shape.edge_dim = 0;
      shape.weights = true;
      shape.spread = 0.2;
      const Problem<double> problem(shape, rng);
      auto layer = make<double>(update, shape, rng);
      shake(layer, rng);
      Workspace ws;
      Matrix<double> y(shape.nodes, shape.hidden);
      layer.forward(problem.graph.view(), problem.x, problem.edges(), y, ws);
      for (Index i = 0; i < shape.nodes; ++i) {
        const std::vector<double> expected =
            by_formula(layer, problem.graph.view(), problem.x, problem.weights.span(), i);
        for (Index c = 0; c < shape.hidden; ++c) CHECK(std::abs(y(i, c) - expected[std::size_t(c)]) < 1e-12);
      }
    }
}

TEST_CASE("HyperbolicGNNLayer: points stay in the ball, from anywhere, with weights of any size", "[gnn]") {
  const std::uint64_t seed = 59;
  CAPTURE(seed);
  for (const HyperbolicUpdate update : updates)
    for (const double spread : {1e-3, 1.0, 1e6})
      for (const float size : {0.0F, 1.0F, 1e4F}) {
        CAPTURE(int(update), spread, size);
        Rng rng(seed);
        const Shape shape{.nodes = 20, .edges = 60, .input = 4, .hidden = 4, .edge_dim = 0, .spread = spread};
        Problem<float> problem(shape, rng);
        std::vector<HyperbolicGNNLayer<float>> layers;
        for (int l = 0; l < 3; ++l) {
          layers.push_back(HyperbolicGNNLayer<float>(
              {.input = 4, .hidden = 4, .curvature = 2, .update = update, .activation = l == 1}, rng));
          for (float& w : layers.back().message.weight.span()) w *= size;
          for (float& b : layers.back().bias) b = size * rng.normal<float>();
        }
        for (const auto& layer : layers) {
          Workspace ws;
          layer.forward(problem.graph.view(), problem.x, problem.edges(), problem.x, ws);
          for (Index i = 0; i < shape.nodes; ++i) {
            double square = 0;
            for (const float v : problem.x.row(i)) square += double(v) * double(v);
            CHECK(2 * square < 1);
          }
        }
      }
}

TEST_CASE("HyperbolicGNNLayer: options out of range are refused", "[gnn]") {
  Rng rng(60);
  CHECK_THROWS_AS(HyperbolicGNNLayer<float>({.input = 0, .hidden = 4}, rng), ConfigError);
  CHECK_THROWS_AS(HyperbolicGNNLayer<float>({.input = 4, .hidden = 0}, rng), ConfigError);
  CHECK_THROWS_AS(HyperbolicGNNLayer<float>({.input = 4, .hidden = 4, .curvature = 0}, rng), ConfigError);
  CHECK_THROWS_AS(HyperbolicGNNLayer<float>({.input = 4, .hidden = 4, .beta = -1}, rng), ConfigError);
}

}  // namespace test_hyperbolic_gnn_layer
