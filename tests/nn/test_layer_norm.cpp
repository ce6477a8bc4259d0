// SPDX-License-Identifier: MIT
#include <ruvector/io/npy.hpp>
#include <ruvector/nn/layer_norm.hpp>

#include "nn/row_map_laws.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <cmath>
#include <limits>
#include <string>

namespace ruvector_test_layer_norm {
namespace {

using namespace ruvector;
using namespace row_map_laws;
using nn::LayerNorm;

static_assert(nn::RowMap<LayerNorm<float>> && nn::RowMap<LayerNorm<double>>);

constexpr std::uint64_t seed = 21;

template <class T>
LayerNorm<T> random_norm(Index dim, Rng& rng) {
  LayerNorm<T> norm({.dim = dim});
  randomize(norm, rng);
  return norm;
}

// Elements alternate around 0, so no row has a variance near 0, where differences of step 1e-4 are too coarse.
template <class T>
Matrix<T> spread_matrix(Index rows, Index cols, Rng& rng) {
  Matrix<T> x(rows, cols);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < cols; ++j) x(i, j) = (j % 2 == 0 ? T(1) : T(-1)) * rng.uniform(T(1), T(3));
  return x;
}

TEST_CASE("layer_norm: gradients of inputs and parameters", "[nn][gradient]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index n : {0, 1, 2, 5})
    for (const Index dim : {0, 1, 2, 3, 8, 17, 33}) {
      CAPTURE(n, dim);
      const auto norm = random_norm<double>(dim, rng);
      const auto x = spread_matrix<double>(n, dim, rng);
      check_gradients(norm, x, rng);
      check_accumulation(norm, x, rng);
    }
}

// Rows of tests/golden/make_layer_norm.py: plain, far from 0 (mean 1000), nearly constant, constant.
TEMPLATE_TEST_CASE("layer_norm: agrees with PyTorch, forward and backward", "[nn][golden]", float, double) {
  using T = TestType;
  const auto golden = [](const char* name) {
    return io::read_npy_matrix<double>(std::string(RUVECTOR_TEST_DATA) + "/layer_norm_" + name + ".npy");
  };
  const auto as = [](const Matrix<double>& from) {
    Matrix<T> to(from.rows(), from.cols());
    std::ranges::transform(from.span(), to.data(), [](double v) { return static_cast<T>(v); });
    return to;
  };
  const auto x = as(golden("x")), d_y = as(golden("d_y")), parameters = as(golden("parameters"));
  LayerNorm<T> norm({.dim = x.cols()});
  std::ranges::copy(parameters.row(0), norm.gamma.begin());
  std::ranges::copy(parameters.row(1), norm.beta.begin());
  Workspace ws;
  const Run<LayerNorm<T>> run(norm, x, d_y, ws);
  // Every number is a sum of some terms of size up to 10 (d_x of the nearly constant row: 1/σ = 316), each rounded; the
  // row far from 0 costs PyTorch, in double, the digits of its mean.
  const double eps = double(std::numeric_limits<T>::epsilon());
  const double reference = 4000 * std::numeric_limits<double>::epsilon();
  CHECK(support::first_far(run.y.span(), golden("y").span(), {.relative = 8 * eps, .absolute = 40 * eps + reference}) ==
        -1);
  CHECK(support::first_far(run.d_x.span(), golden("d_x").span(),
                           {.relative = 16 * eps, .absolute = 4000 * eps + reference}) == -1);
  const auto d_parameters = golden("d_parameters");
  CHECK(support::first_far(run.grad.gamma.span(), d_parameters.row(0),
                           {.relative = 8 * eps, .absolute = 40 * eps + reference}) == -1);
  CHECK(support::first_far(run.grad.beta.span(), d_parameters.row(1),
                           {.relative = 8 * eps, .absolute = 40 * eps + reference}) == -1);
}

TEST_CASE("layer_norm: a row with a large mean keeps the digits of its differences", "[nn]") {
  // In float: multiples of 1/8 near 65536 are exact, so normalisation must not see the mean at all.
  constexpr Index dim = 100;
  const LayerNorm<float> norm({.dim = dim});
  Rng rng(seed);
  Matrix<float> x(1, dim), far(1, dim), y(1, dim), far_y(1, dim);
  for (Index j = 0; j < dim; ++j) {
    x(0, j) = static_cast<float>(rng.below(64)) / 8;
    far(0, j) = x(0, j) + 65536;
  }
  Workspace ws;
  norm.forward(x, y, ws);
  norm.forward(far, far_y, ws);
  CHECK(support::max_error(y.span(), far_y.span()) <= 4 * double(std::numeric_limits<float>::epsilon()));
}

TEST_CASE("layer_norm: a constant row becomes beta, of whatever size", "[nn]") {
  Workspace ws;
  Rng rng(seed);
  for (const Index dim : {1, 2, 3, 7, 16, 19, 64})
    for (const float value : {0.f, 1.f, -3e-39f, 1e15f, 1e37f}) {
      if (value > 1e20f && dim > 2) continue;  // the square of one rounding of the mean overflows
      CAPTURE(dim, value);
      const auto norm = random_norm<float>(dim, rng);
      const Matrix<float> x(2, dim, value), d_y(2, dim, 1);
      const Run<LayerNorm<float>> run(norm, x, d_y, ws);
      if (value < 1e10f) CHECK(support::max_error(run.y.row(0), norm.beta.span()) <= 1e-3);  // x̂ <= 316 roundings of x
      CHECK(std::ranges::all_of(run.d_x.span(), [](float v) { return std::isfinite(v); }));
    }
}

TEST_CASE("layer_norm: rows do not depend on their batch, threads or shards", "[nn][law]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index dim : {1, 5, 16, 37}) {
    CAPTURE(dim);
    const auto norm = random_norm<float>(dim, rng);
    check_batches(norm, random_matrix<float>(300, dim, rng), rng);
    for (const Index n : {1, 255, 256, 257, 1800}) {
      CAPTURE(n);
      check_threads(norm, random_matrix<float>(n, dim, rng), rng);
      check_shards(norm, random_matrix<float>(n, dim, rng), rng);
    }
  }
}

TEST_CASE("layer_norm: memory comes from the workspace, and may fail", "[nn][law]") {
  Rng rng(seed);
  const auto norm = random_norm<float>(8, rng);
  check_no_allocation(norm, random_matrix<float>(700, 8, rng), rng);
  check_failing_memory(norm, random_matrix<float>(700, 8, rng), rng);
}

TEST_CASE("layer_norm: NaN and infinity stay in their row", "[nn][law]") {
  Rng rng(seed);
  for (const Index dim : {1, 9, 32}) {
    const auto norm = random_norm<float>(dim, rng);
    check_nan_stays(norm, random_matrix<float>(20, dim, rng), rng);
    Workspace ws;
    Matrix<float> x(1, dim, 1), y(1, dim);
    x(0, 0) = std::numeric_limits<float>::infinity();
    norm.forward(x, y, ws);
    CHECK(std::ranges::all_of(y.span(), [](float v) { return std::isnan(v); }));
  }
}

TEST_CASE("layer_norm: in place has the same bits", "[nn]") {
  Rng rng(seed);
  const auto norm = random_norm<float>(21, rng);
  auto x = random_matrix<float>(5, 21, rng);
  Matrix<float> y(5, 21);
  Workspace ws;
  norm.forward(x, y, ws);
  norm.forward(x, x, ws);
  CHECK(support::same_bits(x.span(), y.span()));
}

TEST_CASE("layer_norm: shapes and options that do not fit are refused", "[nn]") {
  Workspace ws;
  const LayerNorm<float> norm({.dim = 3});
  LayerNorm<float> grad = zeros_like(norm), other({.dim = 4});
  Matrix<float> x(4, 3), y(4, 3);
  float one = 0;
  const auto fake = [&](Index rows, Index cols) { return MatrixView<float>(&one, rows, cols, cols); };
  const Index huge = Index(1) << 61;
  CHECK_THROWS_AS(norm.forward(fake(4, 2), y, ws), ShapeError);
  CHECK_THROWS_AS(norm.forward(x, fake(4, 2), ws), ShapeError);
  CHECK_THROWS_AS(norm.forward(x, fake(huge, 3), ws), ShapeError);
  CHECK_THROWS_AS(norm.backward(x, fake(5, 3), {}, grad, ws), ShapeError);
  CHECK_THROWS_AS(norm.backward(x, y, fake(4, 2), grad, ws), ShapeError);
  CHECK_THROWS_AS(norm.backward(x, y, {}, other, ws), ShapeError);
  CHECK_THROWS_AS(LayerNorm<float>({.dim = -1}), ShapeError);
  LayerNorm<float> broken = norm;
  broken.beta = Vector<float>(2);
  CHECK_THROWS_AS(broken.forward(x, y, ws), ShapeError);
  for (const double bad : {0.0, -1e-5, 1e-60, double(NAN), double(INFINITY)})
    CHECK_THROWS_AS(LayerNorm<float>({.dim = 3, .epsilon = bad}), ConfigError);
}

}  // namespace
}  // namespace ruvector_test_layer_norm
