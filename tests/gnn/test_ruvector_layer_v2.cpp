// SPDX-License-Identifier: MIT
#include <ruvector/attention/flash.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/gnn/ruvector_layer_v2.hpp>

#include <string>
#include <string_view>
#include <vector>

#include "gnn/graph_layer_laws.hpp"
#include "support/catch.hpp"

namespace test_ruvector_layer_v2 {

using namespace ruvector;
using namespace graph_layer_laws;
using attention::AnyAttention;
using gnn::LayerConfig;
using gnn::RuvectorLayerV2;
using gnn::Skip;

template <class T>
using Any = RuvectorLayerV2<AnyAttention<T>>;

LayerConfig config_of(const Shape& shape) {
  return {.input = shape.input,
          .hidden = shape.hidden,
          .heads = shape.heads,
          .dropout = shape.dropout,
          .edge_dim = shape.edge_dim,
          .skip = shape.input == shape.hidden ? Skip::sum : Skip::none};
}

enum class Kind { hyperbolic, edge_featured, dual_space, moe, dense, flash, alone };
constexpr Kind factories[] = {Kind::hyperbolic, Kind::edge_featured, Kind::dual_space, Kind::moe};
constexpr Kind all_kinds[] = {Kind::hyperbolic, Kind::edge_featured, Kind::dual_space, Kind::moe,
                              Kind::dense,      Kind::flash,         Kind::alone};
constexpr std::string_view names[] = {"hyperbolic", "edge_featured", "dual_space", "moe", "dense", "flash", "alone"};

template <class T>
Any<T> make_kind(Kind kind, const Shape& shape, Rng& rng) {
  const LayerConfig config = config_of(shape);
  switch (kind) {
    case Kind::hyperbolic:
      return Any<T>::with_hyperbolic(config, {.curvature = 0.1}, rng);  // far from the rim, where doubles run out
    case Kind::edge_featured:
      return Any<T>::with_edge_featured(config, {}, rng);
    case Kind::dual_space:
      return Any<T>::with_dual_space(config, {.curvature = 0.1}, rng);
    case Kind::moe:
      return Any<T>::with_moe(config, {.experts = 4, .choices = 2, .curvature = 0.1}, rng);
    case Kind::dense:
      return Any<T>::with_heads(config, attention::ScaledDotProduct<T>(), rng);
    case Kind::flash:
      return Any<T>::with_heads(config, attention::Flash<T>(), rng);
    case Kind::alone:
      break;
  }
  return Any<T>(config, attention::Flash<T>(), rng);
}

// A cell and a norm that know nothing of executors, from outside.
struct LeakyCell {
  using Scalar = double;
  struct Saved {};
  nn::Linear<double> input;
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("input", self.input...);
  }
  [[nodiscard]] Index input_dim() const { return input.input_dim(); }
  [[nodiscard]] Index hidden_dim() const { return input.weight.rows(); }
  void forward(MatrixView<const double> x, MatrixView<const double> h, MatrixView<double> out, Workspace& ws) const {
    input.forward(x, out, ws);
    for (Index i = 0; i < h.rows(); ++i)
      for (Index c = 0; c < h.cols(); ++c) out(i, c) = 0.5 * (out(i, c) + h(i, c));
  }
  void forward(MatrixView<const double> x, MatrixView<const double> h, MatrixView<double> out, Saved&,
               Workspace& ws) const {
    forward(x, h, out, ws);
  }
  void backward(MatrixView<const double> x, MatrixView<const double>, const Saved&, MatrixView<const double> d_out,
                MatrixView<double> d_x, MatrixView<double> d_h, LeakyCell& grad, Workspace& ws) const {
    Matrix<double> half(d_out);
    for (double& value : half.span()) value *= 0.5;
    input.backward(x, half, d_x, grad.input, ws);
    for (Index i = 0; i < d_h.rows(); ++i)
      for (Index c = 0; c < d_h.cols(); ++c) d_h(i, c) += half(i, c);
  }
};
static_assert(nn::RecurrentCell<LeakyCell>);

static_assert(gnn::GraphLayer<Any<float>>);
static_assert(gnn::GraphLayer<RuvectorLayerV2<attention::GatV2<float>>>);
static_assert(gnn::GraphLayer<RuvectorLayerV2<attention::Flash<double>, LeakyCell, nn::Linear<double>>>);
static_assert(!gnn::GraphLayer<nn::Linear<float>>);

TEST_CASE("RuvectorLayerV2: gradients of the four factories", "[gnn]") {
  for (const Kind kind : factories) {
    INFO(names[std::size_t(kind)]);
    check_gradients([&](const Shape& shape, Rng& rng) { return make_kind<double>(kind, shape, rng); },
                    100 + std::uint64_t(kind), 20, kind == Kind::dual_space ? 2 : 1);
  }
}

TEST_CASE("RuvectorLayerV2: gradients with dense and tiled dot products, heads or not", "[gnn]") {
  for (const Kind kind : {Kind::dense, Kind::flash, Kind::alone}) {
    INFO(names[std::size_t(kind)]);
    check_gradients([&](const Shape& shape, Rng& rng) { return make_kind<double>(kind, shape, rng); },
                    200 + std::uint64_t(kind));
  }
}

TEST_CASE("RuvectorLayerV2: gradients of attention, cell and norm known at compile time", "[gnn]") {
  check_gradients(
      [](const Shape& shape, Rng& rng) {
        return RuvectorLayerV2<attention::GatV2<double>>(
            config_of(shape),
            attention::GatV2<double>({.source_dim = shape.hidden,
                                      .edge_dim = shape.edge_dim,
                                      .heads = shape.heads,
                                      .channels = shape.hidden / shape.heads,
                                      .dropout = 0.3},
                                     rng),
            rng);
      },
      301);
  check_gradients(
      [](const Shape& shape, Rng& rng) {
        using Heads = attention::MultiHead<attention::ScaledDotProduct<double>>;
        using L = RuvectorLayerV2<Heads, LeakyCell, nn::Linear<double>>;
        const Index kv = shape.heads == 2 ? 1 : shape.heads;  // grouped queries, too
        return L(config_of(shape),
                 Heads({.dim = shape.hidden, .heads = shape.heads, .kv_heads = kv}, rng,
                       attention::ScaledDotProduct<double>({}, {}, 0.2)),
                 LeakyCell{nn::Linear<double>({.input = shape.hidden, .output = shape.hidden}, rng)},
                 nn::Linear<double>({.input = shape.hidden, .output = shape.hidden}, rng), rng);
      },
      302);
}

TEST_CASE("RuvectorLayerV2: the same bits for any number of threads", "[gnn]") {
  for (const Kind kind : all_kinds) {
    INFO(names[std::size_t(kind)]);
    check_threads([&](const Shape& shape, Rng& rng) { return make_kind<float>(kind, shape, rng); }, 11);
  }
}

TEST_CASE("RuvectorLayerV2: a row depends on its neighbourhood alone", "[gnn]") {
  for (const Kind kind : all_kinds) {
    INFO(names[std::size_t(kind)]);
    check_rows_alone([&](const Shape& shape, Rng& rng) { return make_kind<float>(kind, shape, rng); }, 12);
  }
}

TEST_CASE("RuvectorLayerV2: a second call allocates nothing", "[gnn]") {
  for (const Kind kind : all_kinds) {
    INFO(names[std::size_t(kind)]);
    check_allocations([&](const Shape& shape, Rng& rng) { return make_kind<float>(kind, shape, rng); }, 13);
  }
}

TEST_CASE("RuvectorLayerV2: any allocation may fail", "[gnn]") {
  for (const Kind kind : all_kinds) {
    const std::string name = "RuvectorLayerV2 " + std::string(names[std::size_t(kind)]);
    check_allocation_failures(
        name.c_str(), [&](const Shape& shape, Rng& rng) { return make_kind<float>(kind, shape, rng); }, 17);
  }
}

TEST_CASE("RuvectorLayerV2: no nodes, no edges, and a NaN that nobody sees", "[gnn]") {
  for (const Kind kind : all_kinds) {
    INFO(names[std::size_t(kind)]);
    check_empty([&](const Shape& shape, Rng& rng) { return make_kind<double>(kind, shape, rng); }, 14);
  }
}

TEST_CASE("RuvectorLayerV2: what does not fit is refused", "[gnn]") {
  for (const Kind kind : {Kind::edge_featured, Kind::dense})
    check_errors([&](const Shape& shape, Rng& rng) { return make_kind<double>(kind, shape, rng); }, 15);
}

TEST_CASE("RuvectorLayerV2: options out of range are refused", "[gnn]") {
  Rng rng(16);
  using L = Any<float>;
  const auto refused = [&](LayerConfig config) {
    CHECK_THROWS_AS(L::with_hyperbolic(config, {}, rng), ConfigError);
    CHECK_THROWS_AS(L::with_edge_featured(config, {}, rng), ConfigError);
    CHECK_THROWS_AS(L::with_dual_space(config, {}, rng), ConfigError);
    CHECK_THROWS_AS(L::with_moe(config, {}, rng), ConfigError);
  };
  refused({.input = 4, .hidden = 8, .heads = 3});
  refused({.input = 4, .hidden = 8, .heads = 0});
  refused({.input = 4, .hidden = 0, .heads = 1});
  refused({.input = 0, .hidden = 8, .heads = 2});
  refused({.input = 4, .hidden = 8, .heads = 2, .dropout = 1});
  refused({.input = 4, .hidden = 8, .heads = 2, .dropout = -0.1});
  refused({.input = 4, .hidden = 8, .heads = 2, .edge_dim = -1});
  refused({.input = 4, .hidden = 8, .heads = 2, .skip = Skip::sum});
  const LayerConfig good{.input = 4, .hidden = 8, .heads = 2, .dropout = 0.1};
  CHECK_THROWS_AS(L::with_hyperbolic(good, {.curvature = 0}, rng), ConfigError);
  CHECK_THROWS_AS(L::with_edge_featured({.input = 4, .hidden = 8, .edge_dim = 2}, {.edge_dim = 3}, rng), ConfigError);
  CHECK_THROWS_AS(L::with_dual_space({.input = 4, .hidden = 8, .heads = 8}, {}, rng), ConfigError);
  CHECK_THROWS_AS(L::with_moe(good, {.experts = 2, .choices = 3}, rng), ConfigError);
  CHECK_THROWS_AS(L(good, attention::GatV2<float>({.source_dim = 8, .channels = 4}, rng), rng), ShapeError);
}

TEST_CASE("RuvectorLayerV2: version 1's shapes give 8 numbers with and without neighbours", "[gnn]") {
  Rng rng(17);
  Workspace ws;
  for (const Kind kind : all_kinds) {
    INFO(names[std::size_t(kind)]);
    const auto layer =
        make_kind<float>(kind, {.input = 4, .hidden = 8, .heads = 2, .edge_dim = 0, .dropout = 0.1}, rng);
    Matrix<float> neighbors(3, 4);
    for (float& value : neighbors.span()) value = rng.normal<float>();
    const std::vector<float> node{0.1F, 0.2F, 0.3F, 0.4F};
    std::vector<float> out(8, 1e30F), alone(8, 1e30F);
    layer.forward(node, neighbors, {}, out, ws);
    layer.forward(node, Matrix<float>(0, 4).view(), {}, alone, ws);
    for (const float value : out) CHECK(std::abs(value) < 1e3F);
    for (const float value : alone) CHECK(std::abs(value) < 1e3F);
    CHECK(out != alone);
    CHECK_THROWS_AS(layer.forward(node, neighbors.view().cols(0, 3), {}, out, ws), ShapeError);
    CHECK_THROWS_AS(layer.forward(std::span(node).first(3), neighbors, {}, out, ws), ShapeError);
    CHECK_THROWS_AS(layer.forward(node, neighbors, {}, std::span(out).first(7), ws), ShapeError);
  }
}

TEST_CASE("RuvectorLayerV2: edges tell, by their features and by their weights", "[gnn]") {
  Rng rng(18);
  Workspace ws;
  for (const Kind kind : all_kinds) {
    INFO(names[std::size_t(kind)]);
    const Shape shape{.nodes = 6, .edges = 14, .edge_dim = 2};
    Problem<double> problem(shape, rng);
    auto layer = make_kind<double>(kind, shape, rng);
    const auto outputs = [&](const gnn::GraphEdges<double>& edges) {
      Matrix<double> y(shape.nodes, shape.hidden);
      layer.forward(problem.graph.view(), problem.x, edges, y, ws);
      return std::vector<double>(y.span().begin(), y.span().end());
    };
    const auto before = outputs(problem.edges());
    CHECK(outputs({problem.features, {}}) != before);
    Matrix<double> others(shape.edges, shape.edge_dim);
    // Biases start at 0: only an attention that sees edges tells features apart before it learned to.
    CHECK((outputs({others, problem.weights.span()}) != before) == (kind == Kind::edge_featured));
    shake(layer, rng);
    const auto learned = outputs(problem.edges());
    CHECK(outputs({others, problem.weights.span()}) != learned);
    // Only the ratios of weights count, and weights that sum to nothing are alike.
    Vector<double> twice = problem.weights, nothing(shape.edges);
    for (double& weight : twice) weight *= 2;
    CHECK(outputs({problem.features, twice.span()}) == learned);
    CHECK(outputs({problem.features, nothing.span()}) == outputs({problem.features, {}}));
  }
}

TEST_CASE("RuvectorLayerV2: every weight is named once and matters", "[gnn]") {
  Rng rng(19);
  Workspace ws;
  for (const Kind kind : all_kinds) {
    const Shape shape{.nodes = 12, .edges = 40, .hidden = 8, .edge_dim = 2};
    Problem<double> problem(shape, rng);
    auto layer = make_kind<double>(kind, shape, rng);
    shake(layer, rng);
    Any<double> grad = zeros_like(layer);
    Any<double>::Saved saved;
    Matrix<double> y(shape.nodes, shape.hidden);
    layer.forward(problem.graph.view(), problem.x, problem.edges(), y, saved, ws);
    for (double& value : y.span()) value = rng.normal();
    layer.backward(problem.graph.view(), problem.x, problem.edges(), saved, y, {}, {}, grad, ws);
    std::vector<std::string> seen;
    for_each_parameter(
        [&](std::string_view path, std::span<const double> tensor) {
          CHECK(std::find(seen.begin(), seen.end(), path) == seen.end());
          seen.emplace_back(path);
          CAPTURE(names[std::size_t(kind)], path);
          // Softmax does not see what all keys share: the bias of keys has no gradient but where scores are no
          // products.
          const bool invariant = path == "attention.key.bias" && (kind == Kind::dense || kind == Kind::flash);
          if (!tensor.empty() && !invariant)
            CHECK(std::any_of(tensor.begin(), tensor.end(), [](double value) { return value != 0; }));
        },
        grad);
    CHECK(std::find(seen.begin(), seen.end(), "message.weight") != seen.end());
    if (kind != Kind::edge_featured && kind != Kind::alone)
      CHECK(std::find(seen.begin(), seen.end(), "attention.query.weight") != seen.end());
  }
}

TEST_CASE("RuvectorLayerV2: from_identity gives back its input until it has learned", "[gnn]") {
  Rng rng(20);
  Workspace ws;
  for (const Kind kind : all_kinds) {
    INFO(names[std::size_t(kind)]);
    const Shape shape{.nodes = 9, .edges = 30, .input = 6, .hidden = 6, .edge_dim = 2};
    const Problem<float> problem(shape, rng);
    LayerConfig config = config_of(shape);
    config.skip = Skip::from_identity;
    auto layer = kind == Kind::edge_featured ? Any<float>::with_edge_featured(config, {}, rng)
                                             : Any<float>::with_hyperbolic(config, {}, rng);
    Matrix<float> y(shape.nodes, shape.hidden);
    layer.forward(problem.graph.view(), problem.x, problem.edges(), y, ws);
    CHECK(same_bits<float>(y.span(), problem.x.span()));
    // A step along the gradient of Σ y² / 2 moves it.
    Any<float>::Saved saved;
    Any<float> grad = zeros_like(layer);
    layer.forward(problem.graph.view(), problem.x, problem.edges(), y, saved, ws);
    layer.backward(problem.graph.view(), problem.x, problem.edges(), saved, y, {}, {}, grad, ws);
    for_each_parameter(
        [](std::string_view, std::span<float> to, std::span<const float> by) {
          for (std::size_t i = 0; i < to.size(); ++i) to[i] -= 0.1F * by[i];
        },
        layer, grad);
    layer.forward(problem.graph.view(), problem.x, problem.edges(), y, ws);
    CHECK(!same_bits<float>(y.span(), problem.x.span()));
  }
}

}  // namespace test_ruvector_layer_v2
