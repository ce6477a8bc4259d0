// SPDX-License-Identifier: MIT
#include <ruvector/train/gradient_check.hpp>

#include "support/catch.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

namespace ruvector_test_gradient_check {
namespace {

using namespace ruvector;
using train::check_gradient;
using train::check_module_gradient;

// f(x) = Σ sin(i x_i) x_0, a gradient that one can get wrong.
double wave(std::span<const double> x) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += std::sin(double(i + 1) * x[i]) * x[0];
  return sum;
}
std::vector<double> wave_gradient(std::span<const double> x) {
  std::vector<double> gradient(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    gradient[i] += double(i + 1) * std::cos(double(i + 1) * x[i]) * x[0];
    gradient[0] += std::sin(double(i + 1) * x[i]);
  }
  return gradient;
}
const std::vector<double> at = {0.3, -1.25, 2.5, 0.75};

TEST_CASE("gradient_check: a right gradient passes", "[train][gradient_check]") {
  const auto check = check_gradient(wave, at, wave_gradient(at));
  INFO(to_string(check));
  CHECK(check.passed);
  CHECK(check.worst < 1e-6);
  CHECK(check.checked == 4);
  CHECK(check.index >= 0);
  CHECK(check_gradient(wave, {}, {}).passed);
  const auto exact = check_gradient([](std::span<const double>) { return 1.0; }, at, std::vector<double>(4));
  CHECK(exact.passed);
  CHECK(exact.worst == 0);
  CHECK(exact.index == 0);  // −1 would say that nothing was checked
}

TEST_CASE("gradient_check: an error of 2e-6 in any element is found and named", "[train][gradient_check]") {
  for (std::size_t i = 0; i < at.size(); ++i) {
    auto gradient = wave_gradient(at);
    gradient[i] *= 1 + 2e-6;
    const auto check = check_gradient(wave, at, gradient);
    INFO(to_string(check));
    CHECK_FALSE(check.passed);
    CHECK(check.index == Index(i));
    CHECK(check.analytic == gradient[i]);
    CHECK(check.numeric == Approx(gradient[i]).epsilon(1e-5));
    CHECK(check.worst == Approx(2e-6).epsilon(0.1));
    CHECK(check_gradient(wave, at, gradient, {.relative_tolerance = 1e-5}).passed);
  }
}

TEST_CASE("gradient_check: NaN and infinity never pass, also if finite elements follow", "[train][gradient_check]") {
  for (const double bad : {double(NAN), double(INFINITY), -double(INFINITY)})
    for (std::size_t i = 0; i < at.size(); ++i) {
      auto gradient = wave_gradient(at);
      gradient[i] = bad;
      const auto check = check_gradient(wave, at, gradient);
      CHECK_FALSE(check.passed);
      CHECK(check.index == Index(i));
      CHECK(check.worst == std::numeric_limits<double>::infinity());

      // A function that is not finite on one side of x_i.
      const auto broken = [&](std::span<const double> x) { return x[i] > at[i] ? bad : wave(x); };
      CHECK_FALSE(check_gradient(broken, at, wave_gradient(at)).passed);
    }
}

TEST_CASE("gradient_check: where the gradient is almost 0, rounding passes and errors do not",
          "[train][gradient_check]") {
  const std::vector<double> x = {0.0};
  const auto square = [](std::span<const double> v) { return 1 + v[0] * v[0]; };  // gradient 0 at 0
  CHECK(check_gradient(square, x, std::vector<double>{0.0}).passed);
  CHECK(check_gradient(square, x, std::vector<double>{9e-9}).passed);
  CHECK_FALSE(check_gradient(square, x, std::vector<double>{2e-8}).passed);
  CHECK(check_gradient(square, x, std::vector<double>{2e-8}, {.absolute_tolerance = 1e-7}).passed);
}

TEST_CASE("gradient_check: a small step reaches points near a singularity", "[train][gradient_check]") {
  const std::vector<double> x = {1e-5};
  const auto log = [](std::span<const double> v) { return std::log(v[0]) * 1e-5; };
  CHECK_FALSE(check_gradient(log, x, std::vector<double>{1.0}).passed);  // log of a negative number
  CHECK(check_gradient(log, x, std::vector<double>{1.0}, {.step = 1e-9}).passed);
}

TEST_CASE("gradient_check: wrong sizes and options are refused", "[train][gradient_check]") {
  CHECK_THROWS_AS(check_gradient(wave, at, std::vector<double>(3)), ShapeError);
  for (const double bad : {0.0, -1e-4, double(NAN), double(INFINITY)}) {
    CHECK_THROWS_AS(check_gradient(wave, at, at, {.step = bad}), ConfigError);
    CHECK_THROWS_AS(check_gradient(wave, at, at, {.relative_tolerance = bad}), ConfigError);
    CHECK_THROWS_AS(check_gradient(wave, at, at, {.absolute_tolerance = bad}), ConfigError);
  }
}

// y = w·(a x + b), a user's module with another inside.
struct Affine {
  using Scalar = double;
  double scale = 0.5;
  Vector<double> shift = Vector<double>(2, 0.25);
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("scale", self.scale...);
    visit("shift", self.shift...);
  }
};
struct Model {
  using Scalar = double;
  Matrix<double> weight{2, 2, 0.75};
  std::vector<Affine> layers = std::vector<Affine>(2);
  Vector<double> fixed = Vector<double>(3, 1.0);
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("weight", self.weight...);
    visit("layers", self.layers...);
    visit.buffer("fixed", self.fixed...);
  }
};

double loss_of(const Model& m) {
  double sum = 0;
  for (const Affine& layer : m.layers)
    for (Index i = 0; i < 2; ++i)
      for (Index j = 0; j < 2; ++j) sum += m.weight(i, j) * std::exp(layer.scale * double(i + 1) + layer.shift[j]);
  return sum;
}
Model gradient_of(const Model& m) {
  Model grad = zeros_like(m);
  for (std::size_t l = 0; l < 2; ++l)
    for (Index i = 0; i < 2; ++i)
      for (Index j = 0; j < 2; ++j) {
        const double e = std::exp(m.layers[l].scale * double(i + 1) + m.layers[l].shift[j]);
        grad.weight(i, j) += e;
        grad.layers[l].scale += m.weight(i, j) * e * double(i + 1);
        grad.layers[l].shift[j] += m.weight(i, j) * e;
      }
  return grad;
}

TEST_CASE("gradient_check: every parameter of a module is checked, by its path", "[train][gradient_check]") {
  Model model;
  model.layers[1].scale = -0.125;
  const Model gradient = gradient_of(model);
  const auto check = check_module_gradient(loss_of, model, gradient);
  INFO(to_string(check));
  CHECK(check.passed);
  CHECK(check.checked == 10);  // not the buffer

  Model wrong = gradient;
  wrong.layers[1].shift[1] += 1e-3;
  const auto found = check_module_gradient(loss_of, model, wrong);
  CHECK_FALSE(found.passed);
  CHECK(found.path == "layers.1.shift");
  CHECK(found.index == 1);
  CHECK_THAT(to_string(found), Catch::Matchers::StartsWith("layers.1.shift[1]: analytic "));

  wrong.weight = Matrix<double>(1, 4);
  CHECK_THROWS_AS(check_module_gradient(loss_of, model, wrong), ShapeError);
}

}  // namespace
}  // namespace ruvector_test_gradient_check
