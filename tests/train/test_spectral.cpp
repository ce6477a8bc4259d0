// SPDX-License-Identifier: MIT
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/train/gradient_check.hpp>
#include <ruvector/train/spectral.hpp>

#include "support/allocation_counter.hpp"
#include "support/alternating.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <cmath>

namespace ruvector_test_spectral {
namespace {

using namespace ruvector;
using train::spectral_regularization;
using train::SpectralConfig;

template <class T>
Matrix<T> normal(Index n, Index d, Rng& rng) {
  Matrix<T> x(n, d);
  for (T& v : x.span()) v = T(rng.normal());
  return x;
}

TEST_CASE("spectral: gradients", "[train][spectral][gradient]") {
  Rng rng(1);
  Workspace ws;
  for (int trial = 0; trial < 24; ++trial) {
    const Index n = trial == 0 ? 1 : 1 + rng.below(12), d = trial < 2 ? 1 : 1 + rng.below(9);
    const SpectralConfig config{.weight = 0.75, .diagonal = trial % 2 == 0};
    const Matrix<double> x = normal<double>(n, d, rng);
    Matrix<double> d_x(n, d);
    (void)spectral_regularization<double>(x, d_x, ws, config);
    const auto check = train::check_gradient(
        [&](std::span<const double> moved) {
          return spectral_regularization<double>(MatrixView<const double>(moved.data(), n, d), {}, ws, config);
        },
        x.span(), d_x.span());
    CAPTURE(n, d);
    INFO(to_string(check));
    CHECK(check.passed);
  }
}

TEST_CASE("spectral: the diagonal form is version 1's variance of variances", "[train][spectral][v1]") {
  Rng rng(2);
  Workspace ws;
  const Index n = 300, d = 5;
  Matrix<double> x = normal<double>(n, d, rng);
  for (Index i = 0; i < n; ++i) x(i, 1) = 3 * x(i, 1) + 10;
  double variance[d], mean_variance = 0, expected = 0;
  for (Index j = 0; j < d; ++j) {
    double mean = 0;
    variance[j] = 0;
    for (Index i = 0; i < n; ++i) mean += x(i, j) / double(n);
    for (Index i = 0; i < n; ++i) variance[j] += (x(i, j) - mean) * (x(i, j) - mean) / double(n);
    mean_variance += variance[j] / double(d);
  }
  for (const double v : variance) expected += 0.1 * (v - mean_variance) * (v - mean_variance) / double(d);
  CHECK(spectral_regularization<double>(x, {}, ws, {.weight = 0.1, .diagonal = true}) ==
        Approx(expected).epsilon(1e-12));
}

TEST_CASE("spectral: the variance of the eigenvalues", "[train][spectral]") {
  Workspace ws;
  // Two points ±(a, b): eigenvalues a² + b² and 0, variance ((a² + b²)/2)².
  Matrix<double> x(2, 2);
  x(0, 0) = 3, x(0, 1) = 4, x(1, 0) = -3, x(1, 1) = -4;
  CHECK(spectral_regularization<double>(x, {}, ws) == Approx(12.5 * 12.5));
  // Four points that spread equally in all directions, turned by 30°.
  Matrix<double> even(4, 2);
  for (Index i = 0; i < 4; ++i) {
    const double angle = 0.52 + 1.5707963267948966 * double(i);
    even(i, 0) = std::cos(angle), even(i, 1) = std::sin(angle);
  }
  CHECK(spectral_regularization<double>(even, {}, ws) == Approx(0).margin(1e-30));
}

TEMPLATE_TEST_CASE("spectral: the workers do not matter, nothing is allocated, shapes are checked", "[train][spectral]",
                   float, double) {
  using T = TestType;
  Rng rng(3);
  Workspace ws;
  const Matrix<T> x = normal<T>(700, 13, rng);
  Matrix<T> d_x(700, 13), again(700, 13);
  support::Alternating two;
  const double value = spectral_regularization<T>(x, d_x, ws);
  CHECK(support::same_bits(value, spectral_regularization<T>(x, again, ws, {}, two)));
  CHECK(support::same_bits(d_x.span(), again.span()));
  if (support::allocations_counted())
    CHECK(support::allocations_in([&] { (void)spectral_regularization<T>(x, d_x, ws); }) == 0);
  Matrix<T> wrong(700, 12);
  CHECK_THROWS_AS(spectral_regularization<T>(x, wrong, ws), ShapeError);
  CHECK_THROWS_AS(spectral_regularization<T>(x, d_x, ws, {.weight = -1}), ConfigError);
  CHECK(spectral_regularization<T>(MatrixView<const T>(nullptr, 0, 3), {}, ws) == 0);
  CHECK(spectral_regularization<T>(MatrixView<const T>(nullptr, 3, 0), {}, ws) == 0);
}

}  // namespace
}  // namespace ruvector_test_spectral
