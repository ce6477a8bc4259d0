// SPDX-License-Identifier: MIT
#include <ruvector/nn/linear.hpp>

#include "nn/row_map_laws.hpp"
#include "support/catch.hpp"

#include <cmath>
#include <limits>

namespace ruvector_test_linear {
namespace {

using namespace ruvector;
using namespace row_map_laws;
using nn::Initializer;
using nn::Linear;

static_assert(nn::RowMap<Linear<float>> && nn::RowMap<Linear<double>>);

constexpr std::uint64_t seed = 20;

template <class T>
Linear<T> random_linear(Index in, Index out, bool bias, Rng& rng) {
  Linear<T> map({.input = in, .output = out, .bias = bias}, rng);
  randomize(map, rng);
  return map;
}

TEST_CASE("linear: gradients of inputs and parameters", "[nn][gradient]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index n : {0, 1, 2, 5})
    for (const Index in : {0, 1, 3, 17})
      for (const Index out : {0, 1, 4, 9})
        for (const bool bias : {false, true}) {
          CAPTURE(n, in, out, bias);
          const auto map = random_linear<double>(in, out, bias, rng);
          const auto x = random_matrix<double>(n, in, rng);
          check_gradients(map, x, rng);
          check_accumulation(map, x, rng);
        }
}

TEMPLATE_TEST_CASE("linear: y = x W^T + b within the bound of rounding", "[nn]", float, double) {
  using T = TestType;
  Rng rng(seed);
  CAPTURE(seed);
  Workspace ws;
  for (const Index n : {1, 6, 40})
    for (const Index in : {0, 1, 30, 129})
      for (const Index out : {1, 33}) {
        const auto map = random_linear<T>(in, out, true, rng);
        const auto x = random_matrix<T>(n, in, rng);
        Matrix<T> y(n, out, T(NAN));
        map.forward(x, y, ws);
        bool within = true;
        for (Index i = 0; i < n; ++i)
          for (Index j = 0; j < out; ++j) {
            auto sum = static_cast<long double>(map.bias[j]), size = std::fabs(sum);
            for (Index k = 0; k < in; ++k) {
              const long double term = static_cast<long double>(x(i, k)) * static_cast<long double>(map.weight(j, k));
              sum += term;
              size += std::fabs(term);
            }
            // Higham 2002, §3.1
            const double eps = double(std::numeric_limits<T>::epsilon());
            const long double bound = static_cast<long double>(double(in + 1) * eps) * size;
            within = within && std::fabs(static_cast<long double>(y(i, j)) - sum) <= bound;
          }
        CHECK(within);
      }
}

TEST_CASE("linear: rows do not depend on their batch, threads or shards", "[nn][law]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const bool bias : {false, true}) {
    const auto map = random_linear<float>(21, 37, bias, rng);
    check_batches(map, random_matrix<float>(300, 21, rng), rng);
    for (const Index n : {1, 255, 256, 257, 1800}) {
      CAPTURE(n);
      check_threads(map, random_matrix<float>(n, 21, rng), rng);
      check_shards(map, random_matrix<float>(n, 21, rng), rng);
    }
  }
}

TEST_CASE("linear: memory comes from the workspace, and may fail", "[nn][law]") {
  Rng rng(seed);
  const auto map = random_linear<float>(8, 5, true, rng);
  check_no_allocation(map, random_matrix<float>(700, 8, rng), rng);
  check_failing_memory(map, random_matrix<float>(700, 8, rng), rng);
}

TEST_CASE("linear: NaN stays in its row", "[nn][law]") {
  Rng rng(seed);
  check_nan_stays(random_linear<float>(9, 7, true, rng), random_matrix<float>(20, 9, rng), rng);
}

TEST_CASE("linear: initialisers have their mean, variance and limit", "[nn]") {
  constexpr Index in = 300, out = 200;
  struct Expected {
    Initializer initializer;
    double variance, limit;
  };
  const double inf = std::numeric_limits<double>::infinity();
  for (const Expected& expected : {
           Expected{Initializer::zero, 0, 0},
           Expected{Initializer::fan_in_uniform, 1.0 / (3 * in), 1 / std::sqrt(double(in))},
           Expected{Initializer::xavier_uniform, 2.0 / (in + out), std::sqrt(6.0 / (in + out))},
           Expected{Initializer::xavier_normal, 2.0 / (in + out), inf},
           Expected{Initializer::he_uniform, 2.0 / in, std::sqrt(6.0 / in)},
           Expected{Initializer::he_normal, 2.0 / in, inf},
       }) {
    const Initializer initializer = expected.initializer;
    const double variance = expected.variance, limit = expected.limit;
    CAPTURE(int(initializer), seed);
    Rng rng(seed), same(seed);
    const Linear<double> map({.input = in, .output = out, .initializer = initializer}, rng);
    double sum = 0, square = 0, largest = 0;
    for (const double w : map.weight.span()) {
      sum += w;
      square += w * w;
      largest = std::max(largest, std::fabs(w));
    }
    const double count = in * out;
    // Five standard errors; the fourth moment of a normal number is 3, of a uniform one less.
    CHECK(std::fabs(sum / count) <= 5 * std::sqrt(variance / count));
    CHECK(std::fabs(square / count - variance) <= 5 * variance * std::sqrt(2 / count));
    CHECK(largest <= limit);
    const bool drawn_bias = initializer == Initializer::fan_in_uniform;
    CHECK(std::ranges::any_of(map.bias, [](double b) { return b != 0; }) == drawn_bias);
    CHECK(std::ranges::all_of(map.bias, [&](double b) { return std::fabs(b) <= limit; }));
    CHECK(same_parameters(map, Linear<double>({.input = in, .output = out, .initializer = initializer}, same)));
  }
}

TEST_CASE("linear: shapes that do not fit are refused before anything is touched", "[nn]") {
  Rng rng(seed);
  Workspace ws;
  const Linear<float> map({.input = 3, .output = 2}, rng);
  Linear<float> grad = zeros_like(map), other({.input = 2, .output = 3}, rng);
  Matrix<float> x(4, 3), y(4, 2);
  float one = 0;
  const auto fake = [&](Index rows, Index cols) { return MatrixView<float>(&one, rows, cols, cols); };
  const Index huge = Index(1) << 61;
  CHECK_THROWS_AS(map.forward(fake(4, 2), y, ws), ShapeError);
  CHECK_THROWS_AS(map.forward(x, fake(4, 3), ws), ShapeError);
  CHECK_THROWS_AS(map.forward(x, fake(3, 2), ws), ShapeError);
  CHECK_THROWS_AS(map.forward(fake(huge, 3), y, ws), ShapeError);
  CHECK_THROWS_AS(map.forward(x, fake(huge, 2), ws), ShapeError);
  CHECK_THROWS_AS(map.backward(x, fake(4, 3), {}, grad, ws), ShapeError);
  CHECK_THROWS_AS(map.backward(x, fake(huge, 2), {}, grad, ws), ShapeError);
  CHECK_THROWS_AS(map.backward(x, y, fake(4, 2), grad, ws), ShapeError);
  CHECK_THROWS_AS(map.backward(x, y, fake(3, 3), grad, ws), ShapeError);
  CHECK_THROWS_AS(map.backward(x, y, {}, other, ws), ShapeError);
  CHECK_THROWS_AS(map.output_dim(4), ShapeError);
  CHECK_THROWS_WITH(map.output_dim(4), "Linear: columns of x: expected 3, got 4");
  CHECK_THROWS_AS((Linear<float>({.input = -1, .output = 2}, rng)), ShapeError);
  CHECK_THROWS_AS((Linear<float>({.input = huge, .output = 8}, rng)), ShapeError);
  Linear<float> broken = map;
  broken.bias = Vector<float>(3);
  CHECK_THROWS_AS(broken.forward(x, y, ws), ShapeError);
}

TEST_CASE("linear: a checkpoint names weight and bias", "[nn]") {
  Rng rng(seed);
  const Linear<float> map({.input = 3, .output = 2}, rng);
  std::string names;
  for_each_parameter([&](std::string_view path, auto) { names += std::string(path) + " "; }, map);
  CHECK(names == "weight bias ");
  CHECK(parameter_count(map) == 8);
}

}  // namespace
}  // namespace ruvector_test_linear
