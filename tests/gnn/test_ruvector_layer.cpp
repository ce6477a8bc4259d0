// SPDX-License-Identifier: MIT
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/gnn/ruvector_layer.hpp>

#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "gnn/graph_layer_laws.hpp"
#include "support/catch.hpp"

namespace test_ruvector_layer {

using namespace ruvector;
using namespace graph_layer_laws;
using gnn::RuvectorLayer;

static_assert(gnn::GraphLayer<RuvectorLayer<float>>);

template <class T>
RuvectorLayer<T> make(const Shape& shape, Rng& rng) {
  return RuvectorLayer<T>({shape.input, shape.hidden, shape.heads, shape.dropout}, rng);
}
using Json = nlohmann::json;

template <class T>
void read(const Json& tensor, MatrixView<T> to) {
  const Json& data = tensor.at("data");
  REQUIRE(Index(data.size()) == to.size());
  for (Index i = 0; i < to.rows(); ++i)
    for (Index j = 0; j < to.cols(); ++j) to(i, j) = data[std::size_t(i * to.cols() + j)].get<T>();
}
template <class T>
void read(const Json& tensor, std::span<T> to) {
  read(tensor, MatrixView<T>(to.data(), 1, Index(to.size())));
}
template <class T>
void read(const Json& linear, nn::Linear<T>& to) {
  read(linear.at("weights"), to.weight.view());
  read(linear.at("bias"), to.bias.span());
}

// A layer as version 1 writes it.
template <class T>
RuvectorLayer<T> layer_of(const Json& golden) {
  const Json json = Json::parse(golden.at("json").get<std::string>());
  Rng unused(0);
  RuvectorLayer<T> layer({golden.at("input").get<Index>(), golden.at("hidden").get<Index>(),
                          golden.at("heads").get<Index>(), json.at("dropout").get<double>()},
                         unused);
  read(json.at("w_msg"), layer.message);
  read(json.at("w_agg"), layer.aggregate);
  read(json.at("attention").at("q_linear"), layer.attention.query);
  read(json.at("attention").at("k_linear"), layer.attention.key);
  read(json.at("attention").at("v_linear"), layer.attention.value);
  read(json.at("attention").at("out_linear"), layer.attention.output);
  const Index hidden = layer.cell.hidden_dim();
  const char* gates[] = {"r", "z", "h"};
  for (Index g = 0; g < 3; ++g) {
    const Json& w = json.at("w_update").at(std::string("w_") + gates[g]);
    const Json& u = json.at("w_update").at(std::string("u_") + gates[g]);
    const auto part = [&](Vector<T>& bias) {
      return bias.span().subspan(std::size_t(g * hidden), std::size_t(hidden));
    };
    read(w.at("weights"), layer.cell.weight_ih.view().rows(g * hidden, hidden));
    read(u.at("weights"), layer.cell.weight_hh.view().rows(g * hidden, hidden));
    read(w.at("bias"), part(layer.cell.bias_ih));
    read(u.at("bias"), part(layer.cell.bias_hh));
  }
  read(json.at("norm").at("gamma"), layer.norm.gamma.span());
  read(json.at("norm").at("beta"), layer.norm.beta.span());
  CHECK(json.at("norm").at("eps").get<double>() == 1e-5);
  return layer;
}

template <class T>
void check_golden() {
  std::ifstream file(std::string(RUVECTOR_TEST_DATA) + "/ruvector_v1.json");
  const Json golden = Json::parse(file);
  REQUIRE(golden.at("layers").size() == 20);
  Workspace ws;
  double worst = 0;
  int cases = 0;
  for (const Json& entry : golden.at("layers")) {
    const RuvectorLayer<T> layer = layer_of<T>(entry);
    for (const Json& call : entry.at("cases")) {
      const auto node = call.at("node").get<std::vector<T>>(), weights = call.at("edge_weights").get<std::vector<T>>(),
                 expected = call.at("output").get<std::vector<T>>();
      Matrix<T> neighbors(Index(weights.size()), layer.input_dim());
      for (Index k = 0; k < neighbors.rows(); ++k) {
        const auto row = call.at("neighbors").at(std::size_t(k)).get<std::vector<T>>();
        std::copy(row.begin(), row.end(), neighbors.row(k).begin());
      }
      std::vector<T> out(expected.size());
      layer.forward(node, neighbors, weights, out, ws);
      for (std::size_t c = 0; c < out.size(); ++c) {
        const double error = std::abs(double(out[c]) - double(expected[c]));
        worst = std::isnan(error) ? error : std::max(worst, error);
      }
      ++cases;
    }
  }
  CHECK(cases == 140);
  CHECK(worst <= 1e-5);
}

TEST_CASE("RuvectorLayer: agrees with @ruvector/gnn on 20 layers to 1e-5", "[gnn]") {
  check_golden<float>();
  check_golden<double>();
}

TEST_CASE("RuvectorLayer: gradients", "[gnn]") {
  check_gradients([](const Shape& shape, Rng& rng) { return make<double>(shape, rng); }, 21, 20, 1, 0);
}

TEST_CASE("RuvectorLayer: laws of graph layers", "[gnn]") {
  const auto in_float = [](const Shape& shape, Rng& rng) { return make<float>(shape, rng); };
  const auto in_double = [](const Shape& shape, Rng& rng) { return make<double>(shape, rng); };
  check_threads(in_float, 22, 0);
  check_rows_alone(in_float, 23, 0);
  check_allocations(in_float, 24, 0);
  check_allocation_failures("RuvectorLayer", in_float, 28, 0);
  check_empty(in_double, 25, 0);
  check_errors(in_double, 26, 0);
}

TEST_CASE("RuvectorLayer: options that version 1 refuses", "[gnn]") {
  Rng rng(27);
  CHECK_THROWS_AS(RuvectorLayer<float>({4, 8, 2, 1.5}, rng), ConfigError);
  CHECK_THROWS_AS(RuvectorLayer<float>({4, 8, 2, -0.1}, rng), ConfigError);
  CHECK_THROWS_AS(RuvectorLayer<float>({4, 8, 3, 0.1}, rng), ConfigError);
  CHECK_THROWS_AS(RuvectorLayer<float>({4, 8, 0, 0.1}, rng), ConfigError);
  CHECK_THROWS_AS(RuvectorLayer<float>({4, 0, 1, 0.1}, rng), ConfigError);
  CHECK_THROWS_AS(RuvectorLayer<float>({0, 8, 2, 0.1}, rng), ConfigError);
}

TEST_CASE("RuvectorLayer: 8 numbers with and without neighbours, and lengths that must match", "[gnn]") {
  Rng rng(28);
  Workspace ws;
  const RuvectorLayer<float> layer({4, 8, 2, 0.1}, rng);
  const std::vector<float> node{1, 2, 3, 4}, weights{0.3F, 0.7F};
  Matrix<float> neighbors(2, 4);
  for (float& value : neighbors.span()) value = rng.normal<float>();
  std::vector<float> out(8, 1e30F), alone(8, 1e30F);
  layer.forward(node, neighbors, weights, out, ws);
  layer.forward(node, {}, {}, alone, ws);
  for (const float value : out) CHECK(std::abs(value) < 1e3F);
  for (const float value : alone) CHECK(std::abs(value) < 1e3F);
  CHECK_THROWS_AS(layer.forward(node, neighbors, std::span(weights).first(1), out, ws), ShapeError);
  CHECK_THROWS_AS(layer.forward(node, {}, weights, out, ws), ShapeError);
  CHECK_THROWS_AS(layer.forward(node, neighbors, weights, std::span(out).first(7), ws), ShapeError);
}

}  // namespace test_ruvector_layer
