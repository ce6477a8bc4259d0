// SPDX-License-Identifier: MIT
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/gnn/ruvector_layer_v2.hpp>
#include <ruvector/gnn/stack.hpp>

#include <string>
#include <vector>

#include "gnn/graph_layer_laws.hpp"
#include "support/catch.hpp"

namespace test_stack {

using namespace ruvector;
using namespace graph_layer_laws;
using gnn::LayerConfig;
using gnn::Skip;

template <class T>
using Layer = gnn::RuvectorLayerV2<attention::AnyAttention<T>>;
template <class T>
using Stack = gnn::Stack<Layer<T>>;
static_assert(gnn::GraphLayer<Stack<float>>);

// Three layers, of different attentions.
template <class T>
Stack<T> make(const Shape& shape, Rng& rng) {
  const auto config = [&](Index input) {
    return LayerConfig{.input = input,
                       .hidden = shape.hidden,
                       .heads = shape.heads,
                       .dropout = shape.dropout,
                       .edge_dim = shape.edge_dim,
                       .skip = input == shape.hidden ? Skip::sum : Skip::none};
  };
  std::vector<Layer<T>> layers;
  layers.push_back(Layer<T>::with_edge_featured(config(shape.input), {}, rng));
  layers.push_back(Layer<T>::with_hyperbolic(config(shape.hidden), {.curvature = 0.1}, rng));
  layers.push_back(Layer<T>::with_heads(config(shape.hidden), attention::ScaledDotProduct<T>(), rng));
  return Stack<T>(std::move(layers));
}

TEST_CASE("Stack: gradients through three layers", "[gnn]") {
  check_gradients([](const Shape& shape, Rng& rng) { return make<double>(shape, rng); }, 31, 8);
}

TEST_CASE("Stack: laws of graph layers", "[gnn]") {
  const auto in_float = [](const Shape& shape, Rng& rng) { return make<float>(shape, rng); };
  check_threads(in_float, 32);
  check_allocations(in_float, 33);
  check_allocation_failures("Stack", in_float, 38);
  check_errors([](const Shape& shape, Rng& rng) { return make<double>(shape, rng); }, 34);
}

TEST_CASE("Stack: is its layers one after the other", "[gnn]") {
  Rng rng(35);
  Workspace ws;
  const Shape shape{.nodes = 20, .edges = 60};
  const Problem<float> problem(shape, rng);
  const Stack<float> stack = make<float>(shape, rng);
  Matrix<float> y(shape.nodes, shape.hidden), a = y, b = y, c = y;
  stack.forward(problem.graph.view(), problem.x, problem.edges(), y, ws);
  stack.layers[0].forward(problem.graph.view(), problem.x, problem.edges(), a, ws);
  stack.layers[1].forward(problem.graph.view(), a, problem.edges(), b, ws);
  stack.layers[2].forward(problem.graph.view(), b, problem.edges(), c, ws);
  CHECK(same_bits<float>(y.span(), c.span()));
  std::vector<std::string> paths;
  for_each_parameter([&](std::string_view path, auto) { paths.emplace_back(path); }, stack);
  CHECK(paths.front() == "layers.0.message.weight");
  CHECK(paths.back() == "layers.2.norm.beta");
}

TEST_CASE("Stack: untrained identity layers give back their input", "[gnn]") {
  Rng rng(36);
  Workspace ws;
  const Shape shape{.nodes = 15, .edges = 50, .input = 4, .hidden = 4};
  const Problem<float> problem(shape, rng);
  std::vector<Layer<float>> layers;
  for (int l = 0; l < 4; ++l)
    layers.push_back(Layer<float>::with_moe(
        {.input = 4, .hidden = 4, .heads = 2, .edge_dim = shape.edge_dim, .skip = Skip::from_identity}, {}, rng));
  const Stack<float> stack(std::move(layers));
  Matrix<float> y(shape.nodes, 4);
  stack.forward(problem.graph.view(), problem.x, problem.edges(), y, ws);
  CHECK(same_bits<float>(y.span(), problem.x.span()));
}

TEST_CASE("Stack: layers that do not fit are refused", "[gnn]") {
  Rng rng(37);
  CHECK_THROWS_AS(Stack<float>({}), ConfigError);
  std::vector<Layer<float>> layers;
  for (int l = 0; l < 2; ++l) layers.push_back(Layer<float>::with_hyperbolic({.input = 3, .hidden = 4}, {}, rng));
  CHECK_THROWS_AS(Stack<float>(std::move(layers)), ShapeError);
}

}  // namespace test_stack
