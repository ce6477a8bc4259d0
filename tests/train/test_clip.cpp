// SPDX-License-Identifier: MIT
#include <ruvector/train/clip.hpp>

#include "support/allocation_counter.hpp"
#include "support/catch.hpp"
#include "train/optimizer_runs.hpp"

#include <cmath>
#include <limits>

namespace ruvector_test_clip {
namespace {

using namespace ruvector;

TEMPLATE_TEST_CASE("clip: the norm is that of all parameters together", "[train][clip]", float, double) {
  optimizer_runs::Parts<TestType> gradient;
  optimizer_runs::fill(gradient, [](Index i) { return double(i); });
  const double norm = std::sqrt(23.0 * 24 * 47 / 6);  // Σ i², i < 24
  CHECK(train::gradient_norm(gradient) == Approx(norm).epsilon(1e-14));
  const auto before = gradient;
  CHECK(train::clip_gradient_norm(gradient, 1000) == Approx(norm).epsilon(1e-14));
  CHECK(optimizer_runs::same_bits(gradient, before));
  CHECK(train::clip_gradient_norm(gradient, 2) == Approx(norm).epsilon(1e-14));
  CHECK(train::gradient_norm(gradient) == Approx(2).epsilon(1e-6));
  CHECK(double(gradient.scalar) == Approx(23 * 2 / norm).epsilon(1e-6));
  CHECK(train::clip_gradient_norm(gradient, 0) > 0);
  CHECK(train::gradient_norm(gradient) == 0);
}

TEST_CASE("clip: squares of large floats do not overflow, those of small ones are not lost", "[train][clip]") {
  optimizer_runs::Parts<float> gradient;
  for (const double size : {1e30, 1e-30}) {
    optimizer_runs::fill(gradient, [&](Index) { return size; });
    CHECK(train::clip_gradient_norm(gradient, size) == Approx(size * std::sqrt(24.0)).epsilon(1e-6));
    CHECK(double(gradient.scalar) == Approx(size / std::sqrt(24.0)).epsilon(1e-6));
  }
}

TEST_CASE("clip: what is not finite is told and left alone", "[train][clip]") {
  for (const double bad : {double(NAN), double(INFINITY)}) {
    optimizer_runs::Parts<double> gradient;
    gradient.scalar = bad;
    gradient.vector[0] = 7;
    CHECK_FALSE(std::isfinite(train::clip_gradient_norm(gradient, 1)));
    CHECK(gradient.vector[0] == 7);
  }
}

TEST_CASE("clip: by value", "[train][clip]") {
  optimizer_runs::Parts<double> gradient;
  optimizer_runs::fill(gradient, [](Index i) { return double(i) - 10; });
  gradient.scalar = double(NAN);
  train::clip_gradient_value(gradient, 3);
  CHECK(gradient.matrix(0, 0) == -3);
  CHECK(gradient.matrix(2, 0) == 0);
  CHECK(gradient.vector[7] == 3);
  CHECK(std::isnan(gradient.scalar));
  for (const double bad : {-1.0, double(NAN)}) {
    CHECK_THROWS_AS(train::clip_gradient_value(gradient, bad), ConfigError);
    CHECK_THROWS_AS(train::clip_gradient_norm(gradient, bad), ConfigError);
  }
}

TEST_CASE("clip: allocates nothing", "[train][clip]") {
  optimizer_runs::Parts<float> gradient;
  optimizer_runs::fill(gradient, [](Index i) { return double(i); });
  CHECK(support::allocations_in([&] {
          (void)train::clip_gradient_norm(gradient, 1);
          train::clip_gradient_value(gradient, 0.1);
        }) == 0);
}

}  // namespace
}  // namespace ruvector_test_clip
