// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/geometry/lorentz.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <ruvector/train/riemannian_sgd.hpp>

#include "support/allocation_counter.hpp"
#include "support/catch.hpp"
#include "train/optimizer_runs.hpp"

#include <cmath>
#include <limits>
#include <span>

namespace ruvector_test_riemannian_sgd {
namespace {

using namespace ruvector;
using geometry::Euclidean;
using geometry::Lorentz;
using geometry::PoincareBall;
using train::riemannian_sgd_step;
using train::RiemannianSgd;
using train::RiemannianSgdConfig;

using Ball = PoincareBall<double>;
using Model = optimizer_runs::Points<Ball>;
static_assert(train::OptimizerFor<RiemannianSgd, Model>);

template <class M>
M manifold_of() {
  if constexpr (std::is_default_constructible_v<M> && requires(M m) { m.curvature; })
    return M(ScalarOf<M>(0.7));
  else
    return M();
}

// A point about 1 from the origin, inside any margin.
template <class M>
Vector<ScalarOf<M>> random_point(const M& manifold, Rng& rng) {
  Vector<ScalarOf<M>> x(4);
  for (auto& v : x) v = static_cast<ScalarOf<M>>(rng.uniform(-0.5, 0.5));
  (void)manifold.project(x, x, ScalarOf<M>(1e-3));
  return x;
}
template <class T>
Vector<T> random_vector(Rng& rng) {
  Vector<T> v(4);
  for (T& value : v) value = rng.normal<T>();
  return v;
}

TEST_CASE("riemannian_sgd: the fused step of the ball is its parts", "[train][riemannian_sgd]") {
  Rng rng(31);
  Index projected = 0;
  for (int trial = 0; trial < 2000; ++trial) {
    const Ball ball(rng.uniform(0.5, 2.0));
    const Index d = 1 + rng.below(20);
    Vector<double> x(d), gradient(d), step(d), expected(d);
    const double radius = rng.below(4) == 0 ? 3 : 0.4 / std::sqrt(double(d));  // a quarter starts outside
    for (Index i = 0; i < d; ++i) x[i] = radius * rng.normal(), gradient[i] = rng.normal();
    const double rate = rng.uniform(0.0, 20.0), margin = 1e-5;
    (void)ball.project(x, expected);
    ball.riemannian_gradient(expected, gradient, step);
    for (Index i = 0; i < d; ++i) expected[i] -= rate * step[i];
    const bool moved = ball.project(expected, expected, margin);
    CHECK(ball.descend(x, gradient, rate, margin) == moved);
    projected += moved;
    for (Index i = 0; i < d; ++i) CHECK(std::fabs(x[i] - expected[i]) <= 1e-14 * (1 + rate));
  }
  CHECK(projected > 100);
  CHECK_THROWS_AS(Ball().descend(Vector<double>(2).span(), Vector<double>(3).span(), 0.1), ShapeError);
}

TEST_CASE("riemannian_sgd: the fused step of the hyperboloid is its parts", "[train][riemannian_sgd]") {
  Rng rng(32);
  Index projected = 0, far = 0;
  for (int trial = 0; trial < 2000; ++trial) {
    const Lorentz<double> hyperboloid(rng.uniform(0.5, 2.0));
    const Index d = 1 + rng.below(20);
    Vector<double> x(d + 1), gradient(d + 1), step(d + 1), expected(d + 1);
    for (Index i = 0; i <= d; ++i) x[i] = rng.normal(), gradient[i] = rng.normal();  // the time of x is not its own
    const double rate = rng.below(20) == 0 ? 0 : rng.uniform(-1.0, 4.0) / std::sqrt(double(d)), margin = 1e-4;
    if (rng.below(10) == 0) {
      ++far;  // beyond where points count as projected
      for (Index i = 1; i <= d; ++i) x[i] *= 1e14, gradient[i] *= 1e-12;
      gradient[0] = 0;  // in space its rounding is that of 1e14
    } else if (rng.below(10) == 0) {
      for (double& g : gradient) g *= 1e200;  // their squares are not finite
    }
    hyperboloid.project(x, expected);
    hyperboloid.riemannian_gradient(expected, gradient, step);
    for (double& v : step) v *= -rate;
    (void)hyperboloid.exp(expected, step, expected);
    const bool moved = hyperboloid.project(expected, expected, margin);
    CHECK(hyperboloid.descend_along_geodesic(x, gradient, rate, margin) == moved);
    projected += moved;
    double size = 0;
    for (const double v : expected) size = std::max(size, std::fabs(v));
    for (Index i = 0; i <= d; ++i) CHECK(std::fabs(x[i] - expected[i]) <= 1e-11 * size);
  }
  CHECK(projected > 200);
  CHECK(projected < 1800);
  CHECK(far > 100);
  CHECK_THROWS_AS(Lorentz<double>().descend_along_geodesic(Vector<double>(2).span(), Vector<double>(3).span(), 0.1),
                  ShapeError);
}

TEST_CASE("riemannian_sgd: in the ball a step is that of Nickel and Kiela", "[train][riemannian_sgd]") {
  // theta <- proj(theta - eta (1 - |theta|^2)^2 / 4 grad)
  Vector<double> x(2);
  x[0] = 0.6;
  Vector<double> gradient(2);
  gradient[0] = -1, gradient[1] = 2;
  riemannian_sgd_step(Ball(), x.span(), gradient.span(), 0.5);
  CHECK(x[0] == Approx(0.6 + 0.5 * 0.64 * 0.64 / 4).epsilon(1e-15));
  CHECK(x[1] == Approx(-2 * 0.5 * 0.64 * 0.64 / 4).epsilon(1e-15));

  gradient[0] = -1e9;
  riemannian_sgd_step(Ball(), x.span(), gradient.span(), 0.5);
  CHECK(std::hypot(x[0], x[1]) == Approx(1 - 1e-5).epsilon(1e-12));
  riemannian_sgd_step(Ball(), x.span(), gradient.span(), 0.5, {.margin = 0.1});
  CHECK(std::hypot(x[0], x[1]) == Approx(0.9).epsilon(1e-12));
}

TEMPLATE_TEST_CASE("riemannian_sgd: the exponential map moves a point by rate times gradient norm",
                   "[train][riemannian_sgd]", Euclidean<double>, PoincareBall<double>, Lorentz<double>) {
  const auto manifold = manifold_of<TestType>();
  const std::uint64_t seed = 11;
  CAPTURE(seed);
  Rng rng(seed);
  for (int trial = 0; trial < 100; ++trial) {
    const auto x = random_point(manifold, rng);
    const auto gradient = random_vector<double>(rng);
    Vector<double> r(4);
    manifold.riemannian_gradient(x, gradient, r);
    const double norm = manifold.norm(x, r), rate = 0.01;
    const auto distance_with = [&](double longest) {
      auto y = x;
      riemannian_sgd_step(manifold, y.span(), gradient.span(), rate,
                          {.max_gradient_norm = longest, .exponential_map = true});
      return manifold.distance(x, y);
    };
    CHECK(distance_with(std::numeric_limits<double>::infinity()) == Approx(rate * norm).epsilon(1e-9));
    CHECK(distance_with(2 * norm) == Approx(rate * norm).epsilon(1e-9));
    CHECK(distance_with(0.5 * norm) == Approx(0.5 * rate * norm).epsilon(1e-9));
    CHECK(distance_with(0) < 1e-14);
  }
}

TEMPLATE_TEST_CASE("riemannian_sgd: the retraction agrees with the exponential map to first order",
                   "[train][riemannian_sgd]", PoincareBall<double>, Lorentz<double>) {
  const auto manifold = manifold_of<TestType>();
  const std::uint64_t seed = 12;
  CAPTURE(seed);
  Rng rng(seed);
  for (int trial = 0; trial < 100; ++trial) {
    const auto x = random_point(manifold, rng);
    const auto gradient = random_vector<double>(rng);
    const auto gap = [&](double rate) {
      auto a = x, b = x;
      riemannian_sgd_step(manifold, a.span(), gradient.span(), rate);
      riemannian_sgd_step(manifold, b.span(), gradient.span(), rate, {.exponential_map = true});
      return manifold.distance(a, b);
    };
    CHECK(gap(1e-3) < 0.011 * gap(1e-2));  // a tenth of the step, a hundredth of the gap
  }
}

TEMPLATE_TEST_CASE("riemannian_sgd: goes down to the nearest point", "[train][riemannian_sgd]", Euclidean<double>,
                   PoincareBall<double>, Lorentz<double>, Euclidean<float>, PoincareBall<float>, Lorentz<float>) {
  using T = ScalarOf<TestType>;
  const auto manifold = manifold_of<TestType>();
  auto unused = manifold;
  const std::uint64_t seed = 13;
  CAPTURE(seed);
  Rng rng(seed);
  for (const bool exponential_map : {false, true}) {
    auto x = random_point(manifold, rng);
    const auto target = random_point(manifold, rng);
    for (int t = 0; t < 200; ++t) {  // gradient of d(x, target)²/2
      Vector<T> gradient(4), ignored(4);
      manifold.distance_vjp(x, target, manifold.distance(x, target), gradient, ignored, unused);
      riemannian_sgd_step(manifold, x.span(), gradient.span(), T(0.3), {.exponential_map = exponential_map});
    }
    CHECK(double(manifold.distance(x, target)) < (std::same_as<T, float> ? 1e-3 : 1e-8));
  }
}

TEST_CASE("riemannian_sgd: a step allocates nothing, and needs no short rows", "[train][riemannian_sgd]") {
  Matrix<double> rows(2, 256, 1e-3), gradients(2, 256, 1.0);
  const auto step = [&] { riemannian_sgd_step(Ball(), rows.row(0), gradients.row(0), 0.1, {.max_gradient_norm = 5}); };
  CHECK(support::allocations_in(step) == 0);
  Vector<double> x(1000, 1e-3), gradient(1000, 1.0);
  riemannian_sgd_step(Ball(), x.span(), gradient.span(), 0.1);
  for (const double value : x) CHECK(value == x[0]);
  CHECK(x[0] < 1e-3);
}

struct Both {
  using Scalar = double;
  Ball ball = Ball(0.7);
  Matrix<double> points{3, 2, 0.25};
  Vector<double> weight = Vector<double>(5, 1.0);
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("ball", self.ball...);
    visit.on(first_of(self...).ball, "points", self.points...);
    visit("weight", self.weight...);
  }
};

TEST_CASE("riemannian_sgd: rows on a manifold take Riemannian steps, the rest ordinary ones",
          "[train][riemannian_sgd]") {
  Both model;
  const Both gradient = optimizer_runs::gradient_at(model, 1);
  const RiemannianSgdConfig config{.learning_rate = 0.5, .max_gradient_norm = 0.5};
  RiemannianSgd(config).step(model, gradient, 0.5);
  CHECK(model.ball.curvature == 0.7 - 0.25 * gradient.ball.curvature);
  const Both start;
  for (Index i = 0; i < 3; ++i) {
    Vector<double> expected(start.points.row(i));
    riemannian_sgd_step(model.ball, expected.span(), gradient.points.row(i), 0.25, config);
    for (Index j = 0; j < 2; ++j) CHECK(model.points(i, j) == expected[j]);
  }
  for (Index i = 0; i < 5; ++i) CHECK(model.weight[i] == Approx(1 - 0.25 * gradient.weight[i]).epsilon(1e-15));

  // The last tensor does not fit: the first ones are not moved, either.
  Both untouched, narrow = gradient;
  narrow.weight = Vector<double>(4);
  CHECK_THROWS_AS(RiemannianSgd(config).step(untouched, narrow), ShapeError);
  CHECK(optimizer_runs::same_bits(untouched, start));
}

TEST_CASE("riemannian_sgd: a NaN stays in its row", "[train][riemannian_sgd]") {
  Model model;
  optimizer_runs::fill(model, [](Index i) { return optimizer_runs::start(i) / 4; });
  Model clean = model;
  Model gradient = optimizer_runs::gradient_at(model, 1);
  RiemannianSgd().step(clean, gradient);
  gradient.points(3, 1) = double(NAN);
  RiemannianSgd().step(model, gradient);
  for (Index i = 0; i < 8; ++i)
    for (Index j = 0; j < 3; ++j)
      if (i != 3) CHECK(model.points(i, j) == clean.points(i, j));
}

TEST_CASE("riemannian_sgd: a refused step changes nothing", "[train][riemannian_sgd]") {
  Model model;
  optimizer_runs::fill(model, [](Index i) { return optimizer_runs::start(i) / 4; });
  Model wrong = model;
  wrong.points = Matrix<double>(8, 2);
  optimizer_runs::check_laws(model, wrong, [](const Model&) { return RiemannianSgd({.max_gradient_norm = 5}); });
  for (const double bad : {-1.0, double(NAN)}) {
    CHECK_THROWS_AS(RiemannianSgd({.learning_rate = bad}), ConfigError);
    CHECK_THROWS_AS(RiemannianSgd({.max_gradient_norm = bad}), ConfigError);
    CHECK_THROWS_AS(RiemannianSgd({.margin = bad}), ConfigError);
  }
  CHECK_THROWS_AS(RiemannianSgd({.learning_rate = double(INFINITY)}), ConfigError);
  CHECK_THROWS_AS(RiemannianSgd({.margin = 1}), ConfigError);
}

}  // namespace
}  // namespace ruvector_test_riemannian_sgd
