// SPDX-License-Identifier: MIT
#include <ruvector/nn/mlp.hpp>

#include "nn/row_map_laws.hpp"
#include "support/catch.hpp"

#include <string>
#include <vector>

namespace ruvector_test_mlp {
namespace {

using namespace ruvector;
using namespace row_map_laws;
using nn::Activation;
using nn::Mlp;

static_assert(nn::RowMap<Mlp<float>> && nn::RowMap<Mlp<double>>);

constexpr std::uint64_t seed = 43;

TEST_CASE("mlp: gradients of inputs and parameters", "[nn][gradient]") {
  Rng rng(seed);
  CAPTURE(seed);
  const std::vector<std::vector<Index>> shapes = {{3, 2},    {1, 1, 1}, {4, 6, 3}, {5, 7, 4, 2},
                                                  {2, 0, 3}, {0, 3, 2}, {2, 3, 0}, {17, 9, 1}};
  for (const auto& widths : shapes)
    for (const Index n : {0, 1, 4})
      for (const Activation activation : {Activation::tanh, Activation::gelu}) {
        CAPTURE(widths, n, int(activation));
        const Mlp<double> map({.widths = widths, .activation = activation}, rng);
        const auto x = random_matrix<double>(n, widths.front(), rng);
        check_gradients(map, x, rng);
        check_accumulation(map, x, rng);
      }
}

TEST_CASE("mlp: layers and activations after each other", "[nn]") {
  Rng rng(seed);
  Workspace ws;
  const Mlp<float> map({.widths = {5, 8, 3}, .activation = Activation::relu}, rng);
  const auto x = random_matrix<float>(600, 5, rng);
  Matrix<float> hidden(600, 8), expected(600, 3), y(600, 3);
  map.layers[0].forward(x, hidden, ws);
  for (float& v : hidden.span()) v = std::max(v, 0.f);
  map.layers[1].forward(hidden, expected, ws);
  map.forward(x, y, ws);
  CHECK(support::same_bits(y.span(), expected.span()));
  std::vector<std::string> names;
  for_each_parameter([&](std::string_view path, auto) { names.emplace_back(path); }, map);
  CHECK(names == std::vector<std::string>{"layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"});
}

TEST_CASE("mlp: rows do not depend on their batch, threads or shards", "[nn][law]") {
  Rng rng(seed);
  CAPTURE(seed);
  const Mlp<float> map({.widths = {13, 21, 18, 7}, .activation = Activation::silu}, rng);
  check_batches(map, random_matrix<float>(300, 13, rng), rng);
  for (const Index n : {1, 257, 900}) {
    check_threads(map, random_matrix<float>(n, 13, rng), rng);
    check_shards(map, random_matrix<float>(n, 13, rng), rng);
  }
  check_nan_stays(map, random_matrix<float>(20, 13, rng), rng);
}

TEST_CASE("mlp: memory comes from the workspace, and may fail", "[nn][law]") {
  Rng rng(seed);
  const Mlp<float> map({.widths = {8, 6, 4, 5}}, rng);
  check_no_allocation(map, random_matrix<float>(700, 8, rng), rng);
  check_failing_memory(map, random_matrix<float>(700, 8, rng), rng);
}

TEST_CASE("mlp: shapes and options that do not fit are refused", "[nn]") {
  Rng rng(seed);
  Workspace ws;
  const Mlp<float> map({.widths = {3, 4, 2}}, rng), other({.widths = {3, 5, 2}}, rng);
  Mlp<float> grad = zeros_like(map), other_grad = zeros_like(other);
  Matrix<float> x(4, 3), y(4, 2);
  float one = 0;
  const auto fake = [&](Index rows, Index cols) { return MatrixView<float>(&one, rows, cols, cols); };
  CHECK_THROWS_AS(map.forward(fake(4, 2), y, ws), ShapeError);
  CHECK_THROWS_AS(map.forward(fake(Index(1) << 61, 3), y, ws), ShapeError);
  CHECK_THROWS_AS(map.forward(x, fake(4, 3), ws), ShapeError);
  CHECK_THROWS_AS(map.backward(x, fake(5, 2), {}, grad, ws), ShapeError);
  CHECK_THROWS_AS(map.backward(x, y, fake(4, 2), grad, ws), ShapeError);
  CHECK_THROWS_AS(map.backward(x, y, {}, other_grad, ws), ShapeError);
  Mlp<float> broken = map;
  broken.layers[1] = other.layers[1];
  CHECK_THROWS_AS(broken.forward(x, y, ws), ShapeError);
  CHECK_THROWS_AS(Mlp<float>().forward(x, y, ws), ConfigError);
  CHECK_THROWS_AS(Mlp<float>({.widths = {3}}, rng), ConfigError);
  CHECK_THROWS_AS(Mlp<float>({.widths = {3, -1}}, rng), ShapeError);
}

}  // namespace
}  // namespace ruvector_test_mlp
