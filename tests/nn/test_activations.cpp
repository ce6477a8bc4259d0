// SPDX-License-Identifier: MIT
#include <ruvector/io/npy.hpp>
#include <ruvector/nn/activations.hpp>

#include "nn/row_map_laws.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <type_traits>

namespace ruvector_test_activations {
namespace {

using namespace ruvector;
using namespace row_map_laws;
using nn::Activation;
using nn::ActivationMap;

static_assert(nn::RowMap<ActivationMap<float>> && nn::RowMap<ActivationMap<double>>);

constexpr std::uint64_t seed = 41;

// In the order of tests/golden/make_activations.py.
constexpr Activation all[] = {Activation::identity, Activation::relu, Activation::leaky_relu,
                              Activation::elu,      Activation::gelu, Activation::gelu_tanh,
                              Activation::silu,     Activation::tanh, Activation::sigmoid};

TEMPLATE_TEST_CASE("activations: agree with PyTorch, with their derivatives", "[nn][golden]", float, double) {
  using T = TestType;
  const auto golden = io::read_npy_matrix<double>(std::string(RUVECTOR_TEST_DATA) + "/activations.npy");
  const Index n = golden.cols();
  Matrix<T> x(1, n);
  std::ranges::transform(golden.row(0), x.data(), [](double v) { return static_cast<T>(v); });
  Workspace ws;
  Index row = 1;
  for (const Activation function : all) {
    CAPTURE(int(function));
    const ActivationMap<T> map{.function = function};
    const Matrix<T> ones(1, n, 1);
    const Run<ActivationMap<T>> run(map, x, ones, ws);
    // PyTorch cancels where Φ and 1 + tanh are small, so absolute.
    const double absolute = sizeof(T) == 4 ? 1e-6 : 1e-14, relative = sizeof(T) == 4 ? 1e-6 : 1e-14;
    CHECK(support::first_far(run.y.span(), golden.row(row++), {.relative = relative, .absolute = absolute}) == -1);
    CHECK(support::first_far(run.d_x.span(), golden.row(row++), {.relative = relative, .absolute = absolute}) == -1);
  }
  CHECK(row == golden.rows());
}

// By formulas that do not cancel.
template <class R>
R precise(Activation function, R x) {
  switch (function) {
    case Activation::elu:
      return x > 0 ? x : std::expm1(x);
    case Activation::gelu:
      return x * std::erfc(-x / std::numbers::sqrt2_v<R>) / 2;
    case Activation::gelu_tanh: {
      const R u = std::sqrt(2 * std::numbers::inv_pi_v<R>) * (x + R(0.044715L) * x * x * x);
      return x / (1 + std::exp(-2 * u));
    }
    case Activation::silu:
      return x / (1 + std::exp(-x));
    default:
      return x;
  }
}

TEMPLATE_TEST_CASE("activations: few units in the last place, in the tails, too", "[nn]", float, double) {
  using T = TestType;
  using Better = std::conditional_t<sizeof(T) == 4, double, long double>;
  Rng rng(seed);
  CAPTURE(seed);
  Workspace ws;
  const Index n = 50'000;
  Matrix<T> x(1, n), y(1, n);
  for (T& v : x.span()) v = (rng.below(2) == 0 ? T(1) : T(-1)) * std::exp2(rng.uniform(T(-40), T(3.5)));
  struct Bound {
    Activation function;
    double ulp;
  };
  for (const auto [function, ulp] :
       {Bound{Activation::elu, 4}, Bound{Activation::gelu, 4}, Bound{Activation::silu, 2}}) {
    CAPTURE(int(function));
    const ActivationMap<T> map{.function = function};
    map.forward(x, y, ws);
    double worst = 0;
    T at = 0;
    for (Index i = 0; i < n; ++i) {
      const Better exact = precise(function, Better(x(0, i)));
      if (std::abs(exact) < Better(std::numeric_limits<T>::min())) continue;
      const double error = support::ulp_error(y(0, i), exact);
      if (!(error <= worst)) worst = error, at = x(0, i);
    }
    CAPTURE(at, worst);
    CHECK(worst <= ulp);
  }
}

TEST_CASE("activations: gradients", "[nn][gradient]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const Activation function : all)
    for (const Index n : {0, 1, 3})
      for (const Index dim : {0, 1, 2, 9, 33}) {
        CAPTURE(int(function), n, dim);
        const ActivationMap<double> map{.function = function, .slope = 0.2, .alpha = 0.7};
        auto x = random_matrix<double>(n, dim, rng);
        for (double& v : x.span()) v *= 3;
        for (double& v : x.span())
          if (std::abs(v) < 1e-3) v += 1;  // not within a step of a kink
        check_gradients(map, x, rng);
        check_accumulation(map, x, rng);
      }
}

TEST_CASE("activations: rows do not depend on their batch or threads", "[nn][law]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const Activation function : all) {
    const ActivationMap<float> map{.function = function};
    check_batches(map, random_matrix<float>(300, 37, rng), rng);
    check_threads(map, random_matrix<float>(257, 21, rng), rng);
    check_no_allocation(map, random_matrix<float>(100, 8, rng), rng);
    // In place, and at any lane.
    auto x = random_matrix<float>(1, 67, rng);
    Matrix<float> y(1, 67);
    Workspace ws;
    map.forward(x, y, ws);
    for (Index j = 0; j < 67; ++j) {
      Matrix<float> one(1, 1, x(0, j)), alone(1, 1);
      map.forward(one, alone, ws);
      CHECK(support::same_bits(alone(0, 0), y(0, j)));
    }
    map.forward(x, x, ws);
    CHECK(support::same_bits(x.span(), y.span()));
  }
}

TEMPLATE_TEST_CASE("activations: limits at infinity, and NaN stays NaN", "[nn]", float, double) {
  using T = TestType;
  constexpr T infinity = std::numeric_limits<T>::infinity(), most = std::numeric_limits<T>::max();
  Workspace ws;
  for (const Activation function : all) {
    CAPTURE(int(function));
    const ActivationMap<T> map{.function = function};
    Matrix<T> x(1, 5), ones(1, 5, 1);
    std::ranges::copy(std::array<T, 5>{infinity, most, -most, -infinity, T(NAN)}, x.data());
    const Run<ActivationMap<T>> run(map, x, ones, ws);
    CHECK(std::isnan(run.y(0, 4)));
    const bool bounded = function == Activation::tanh || function == Activation::sigmoid;
    CHECK(run.y(0, 0) == (bounded ? 1 : infinity));
    CHECK(run.y(0, 1) == (bounded ? 1 : most));
    CHECK(run.d_x(0, 0) == (bounded ? 0 : 1));
    CHECK(run.d_x(0, 1) == (bounded ? 0 : 1));
    for (const Index i : {2, 3}) {
      if (function == Activation::identity)
        CHECK(run.y(0, i) == x(0, i));
      else if (function == Activation::leaky_relu)
        CHECK(run.y(0, i) == T(0.01) * x(0, i));
      else
        CHECK(run.y(0, i) == (function == Activation::elu || function == Activation::tanh ? -1 : 0));
      if (function == Activation::identity)
        CHECK(run.d_x(0, i) == 1);
      else if (function == Activation::leaky_relu)
        CHECK(run.d_x(0, i) == T(0.01));
      else
        CHECK(run.d_x(0, i) == 0);
    }
  }
}

TEST_CASE("activations: shapes that do not fit are refused", "[nn]") {
  Workspace ws;
  const ActivationMap<float> map;
  ActivationMap<float> grad;
  Matrix<float> x(4, 3), y(4, 3);
  float one = 0;
  const auto fake = [&](Index rows, Index cols) { return MatrixView<float>(&one, rows, cols, cols); };
  CHECK_THROWS_AS(map.forward(x, fake(4, 2), ws), ShapeError);
  CHECK_THROWS_AS(map.forward(x, fake(Index(1) << 61, 3), ws), ShapeError);
  CHECK_THROWS_AS(map.backward(x, fake(5, 3), y, grad, ws), ShapeError);
  CHECK_THROWS_AS(map.backward(x, y, fake(4, 2), grad, ws), ShapeError);
}

}  // namespace
}  // namespace ruvector_test_activations
