// SPDX-License-Identifier: MIT
#include <ruvector/nn/rms_norm.hpp>

#include "nn/golden.hpp"
#include "nn/row_map_laws.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <cmath>
#include <limits>

namespace ruvector_test_rms_norm {
namespace {

using namespace ruvector;
using namespace row_map_laws;
using nn::RmsNorm;

static_assert(nn::RowMap<RmsNorm<float>> && nn::RowMap<RmsNorm<double>>);

constexpr std::uint64_t seed = 42;

template <class T>
RmsNorm<T> random_norm(Index dim, Rng& rng) {
  RmsNorm<T> norm({.dim = dim});
  randomize(norm, rng);
  return norm;
}

TEST_CASE("rms_norm: gradients of inputs and parameters", "[nn][gradient]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index n : {0, 1, 2, 5})
    for (const Index dim : {0, 1, 2, 3, 8, 17, 33}) {
      CAPTURE(n, dim);
      const auto norm = random_norm<double>(dim, rng);
      auto x = random_matrix<double>(n, dim, rng);
      for (double& v : x.span()) v += v > 0 ? 1 : -1;  // near 0 and ε a step of 1e-4 is coarse
      check_gradients(norm, x, rng);
      check_accumulation(norm, x, rng);
    }
}

TEMPLATE_TEST_CASE("rms_norm: agrees with PyTorch, forward and backward", "[nn][golden]", float, double) {
  using T = TestType;
  golden::Tensors golden("rms_norm");
  const auto x = golden.matrix<T>(5, 37), d_y = golden.matrix<T>(5, 37);
  RmsNorm<T> norm({.dim = 37});
  golden.read(norm);
  Workspace ws;
  const Run<RmsNorm<T>> run(norm, x, d_y, ws);
  golden.check("y", run.y.span());
  golden.check("d_x", run.d_x.span());
  golden.check(run.grad);
  CHECK(golden.finished());
}

TEST_CASE("rms_norm: rows do not depend on their batch, threads or shards", "[nn][law]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index dim : {1, 5, 16, 37}) {
    CAPTURE(dim);
    const auto norm = random_norm<float>(dim, rng);
    check_batches(norm, random_matrix<float>(300, dim, rng), rng);
    for (const Index n : {1, 256, 257, 1800}) {
      CAPTURE(n);
      check_threads(norm, random_matrix<float>(n, dim, rng), rng);
      check_shards(norm, random_matrix<float>(n, dim, rng), rng);
    }
  }
}

TEST_CASE("rms_norm: memory comes from the workspace, and may fail", "[nn][law]") {
  Rng rng(seed);
  const auto norm = random_norm<float>(8, rng);
  check_no_allocation(norm, random_matrix<float>(700, 8, rng), rng);
  check_failing_memory(norm, random_matrix<float>(700, 8, rng), rng);
}

TEST_CASE("rms_norm: NaN stays in its row, rows of any size are finite", "[nn][law]") {
  Rng rng(seed);
  Workspace ws;
  for (const Index dim : {1, 9, 32}) {
    const auto norm = random_norm<float>(dim, rng);
    check_nan_stays(norm, random_matrix<float>(20, dim, rng), rng);
    for (const float size : {0.f, 1e-39f, 1.f, 1e18f}) {
      const Matrix<float> x(2, dim, size), d_y(2, dim, 1);
      const Run<RmsNorm<float>> run(norm, x, d_y, ws);
      CAPTURE(dim, size);
      CHECK(std::ranges::all_of(run.y.span(), [](float v) { return std::abs(v) <= 1.6f; }));
      CHECK(std::ranges::all_of(run.d_x.span(), [](float v) { return std::isfinite(v); }));
    }
  }
}

TEST_CASE("rms_norm: in place has the same bits", "[nn]") {
  Rng rng(seed);
  const auto norm = random_norm<float>(21, rng);
  auto x = random_matrix<float>(5, 21, rng);
  Matrix<float> y(5, 21);
  Workspace ws;
  norm.forward(x, y, ws);
  norm.forward(x, x, ws);
  CHECK(support::same_bits(x.span(), y.span()));
}

TEST_CASE("rms_norm: shapes and options that do not fit are refused", "[nn]") {
  Workspace ws;
  const RmsNorm<float> norm({.dim = 3});
  RmsNorm<float> grad = zeros_like(norm), other({.dim = 4});
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
  CHECK_THROWS_AS(RmsNorm<float>({.dim = -1}), ShapeError);
  for (const double bad : {0.0, -1e-5, 1e-60, double(NAN), double(INFINITY)})
    CHECK_THROWS_AS(RmsNorm<float>({.dim = 3, .epsilon = bad}), ConfigError);
}

}  // namespace
}  // namespace ruvector_test_rms_norm
