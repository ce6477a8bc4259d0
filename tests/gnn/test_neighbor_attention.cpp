// SPDX-License-Identifier: MIT
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/gat_v2.hpp>
#include <ruvector/attention/hyperbolic.hpp>
#include <ruvector/attention/multi_head.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/gnn/neighbor_attention.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "gnn/graph_layer_laws.hpp"
#include "support/catch.hpp"

namespace test_neighbor_attention {

using namespace ruvector;
using graph_layer_laws::Problem;
using graph_layer_laws::Shape;
namespace parts = ruvector::gnn::detail;

// Outputs over a graph, and those of the attention itself, called with the neighbours of one node after the other.
template <class A>
void check_agrees(const A& attention, const Problem<double>& problem, MatrixView<const double> bias_weight,
                  double bound) {
  using T = double;
  const graph::CsrView<> graph = problem.graph.view();
  const Index n = graph.nodes();
  Workspace ws;
  Serial serial;
  Matrix<T> out(n, attention.output_dim(problem.x.cols()));
  parts::NeighborAttention<T, std::int32_t>{graph, problem.x, problem.features, bias_weight}.forward(
      attention, out.view(), nullptr, nullptr, ws, serial);
  for (Index i = 0; i < n; ++i) {
    const auto targets = graph.neighbors(i);
    Matrix<T> near(Index(targets.size()), problem.x.cols()), bias(1, near.rows()), expected(1, out.cols());
    for (Index k = 0; k < near.rows(); ++k) {
      std::ranges::copy(problem.x.row(targets[std::size_t(k)]), near.row(k).begin());
      for (Index c = 0; c < bias_weight.cols(); ++c)
        bias(0, k) += bias_weight(0, c) * problem.features(graph.edge_id(graph.first_edge(i) + k), c);
    }
    attention::AttentionInput<T> in{.query = problem.x.view().rows(i, 1), .key = near, .value = near};
    if (!bias_weight.empty()) in.bias = bias;
    attention.forward(in, {.value = expected}, ws);
    for (Index c = 0; c < out.cols(); ++c) {
      CAPTURE(i, c, near.rows());
      CHECK(std::abs(out(i, c) - expected(0, c)) <= bound);
    }
  }
}

TEST_CASE("attention over a graph: is the attention of each node over its neighbours", "[gnn]") {
  const std::uint64_t seed = 71;
  CAPTURE(seed);
  Rng rng(seed);
  // Up to dozens of neighbours, more than a register has lanes, and widths that do not fill one.
  for (const Index columns : {1, 6, 24, 40}) {
    const Shape shape{.nodes = 30, .edges = 400, .input = columns, .edge_dim = 3};
    const Problem<double> problem(shape, rng);
    Problem<double> plain = problem;
    plain.features = Matrix<double>();
    CAPTURE(columns);
    constexpr double exact = 0, rounded = 1e-12;
    // Flat enough that points stay away from the rim, where a rounding becomes large.
    const auto distances = attention::make_hyperbolic<attention::Hyperbolic<double>>({.curvature = 0.01});
    check_agrees(attention::ScaledDotProduct<double>(), plain, {}, rounded);
    check_agrees(attention::Flash<double>(attention::DotScore<double>({.scale = 0.7, .temperature = 1.5})), plain, {},
                 rounded);
    check_agrees(distances, plain, {}, exact);
    check_agrees(attention::ScaledDotProduct<double>(attention::DotScore<double>({.softcap = 2})), plain, {}, exact);
    Matrix<double> one(1, 3);
    for (double& w : one.span()) w = rng.normal();
    check_agrees(attention::ScaledDotProduct<double>(), problem, one, rounded);
    check_agrees(distances, problem, one, rounded);
    for (const Index heads : {1, 2}) {
      if (columns % heads != 0) continue;
      using Dots = attention::MultiHead<attention::ScaledDotProduct<double>>;
      using Distances = attention::MultiHead<attention::Hyperbolic<double>>;
      check_agrees(Dots({.dim = columns, .heads = heads}, rng), plain, {}, rounded);
      check_agrees(Dots({.dim = columns, .heads = heads, .kv_heads = 1, .output = false}, rng), plain, {}, rounded);
      check_agrees(Distances({.dim = columns, .heads = heads}, rng, distances), plain, {}, rounded);
    }
  }
}

TEST_CASE("attention over a graph: dot products that are infinite share the weight, and NaN shows", "[gnn]") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const auto weights = [](std::vector<float> logits) {
    logits.resize(std::size_t(parts::padded<float>(Index(logits.size()))), -infinity);
    parts::neighbor_softmax<float>(logits);
    return logits;
  };
  CHECK(weights({1, infinity, 3})[1] == 1);
  CHECK(weights({1, infinity, 3})[0] == 0);
  CHECK(weights({infinity, 0, infinity})[2] == 0.5F);
  CHECK(weights({-infinity, -infinity})[0] == 0);
  CHECK(weights({3e38F, -3e38F})[0] == 1);
  CHECK(std::isnan(weights({1, std::numeric_limits<float>::quiet_NaN(), 3})[0]));
  CHECK(std::isnan(weights({infinity, std::numeric_limits<float>::quiet_NaN()})[1]));
  float sum = 0;
  for (const float w : weights(std::vector<float>(37, 88.0F))) sum += w;
  CHECK(std::abs(sum - 1) < 1e-6F);
}

TEST_CASE("neighbor sums: shares of the weights, or alike where they sum to nothing", "[gnn]") {
  const graph::CsrGraph<> graph({0, 3, 5, 5}, {1, 2, 0, 0, 1}, {4, 0, 2, 1, 3});
  Matrix<double> x(3, 2);
  for (Index i = 0; i < 3; ++i) x(i, 0) = double(i + 1), x(i, 1) = 10 * double(i + 1);
  const std::vector<double> weights{3, 1, 4, -1, 1};  // by id
  Workspace ws;
  const auto sums = [&](std::span<const double> w) {
    Matrix<double> y(3, 2, 100.0);
    gnn::add_neighbor_sums<double>(graph.view(), x, w, y.view(), ws);
    return std::vector<double>(y.span().begin(), y.span().end());
  };
  // Node 0: ids 4, 0, 2 of weights 1, 3, 4 to nodes 1, 2, 0; node 1: ids 1, 3 of weights 1, −1: alike.
  const double first = (1 * 2.0 + 3 * 3.0 + 4 * 1.0) / 8;
  const std::vector<double> expected{100 + first, 100 + 10 * first, 101.5, 115, 100, 100};
  const std::vector<double> actual = sums(weights);
  for (std::size_t k = 0; k < 6; ++k) CHECK(std::abs(actual[k] - expected[k]) < 1e-12);
  CHECK(std::abs(sums({})[0] - 102) < 1e-12);
  CHECK(std::abs(sums(std::vector<double>(5))[0] - 102) < 1e-12);
  CHECK(std::isnan(sums(std::vector<double>(5, std::nan("")))[0]));
}

}  // namespace test_neighbor_attention
