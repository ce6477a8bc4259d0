// SPDX-License-Identifier: MIT
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/geometry/lorentz.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <ruvector/train/adam.hpp>
#include <ruvector/train/riemannian_adam.hpp>
#include <ruvector/train/riemannian_sgd.hpp>

#include "support/allocation_counter.hpp"
#include "support/allocation_failures.hpp"
#include "support/catch.hpp"
#include "train/optimizer_runs.hpp"

#include <cmath>
#include <string>

namespace ruvector_test_riemannian_adam {
namespace {

using namespace ruvector;
using geometry::Euclidean;
using geometry::Lorentz;
using geometry::PoincareBall;
using train::RiemannianAdam;
using train::RiemannianAdamConfig;

using Model = optimizer_runs::Points<PoincareBall<double>>;
static_assert(train::OptimizerFor<RiemannianAdam<Model>, Model>);

// The start of the reference runs: points in the ball, or the hyperboloid over the last two columns.
template <class G>
optimizer_runs::Points<G> started(const G& manifold) {
  using T = ScalarOf<G>;
  optimizer_runs::Points<G> model{manifold, {8, 3}};
  const double scale = std::same_as<G, PoincareBall<T>> ? 1 / (4 * std::sqrt(double(manifold.curvature))) : 1;
  optimizer_runs::fill(model, [&](Index i) { return scale * optimizer_runs::start(i); });
  for (Index i = 0; i < 8; ++i) (void)manifold.project(model.points.row(i), model.points.row(i));
  return model;
}

const RiemannianAdamConfig retraction{.learning_rate = 0.01};
const RiemannianAdamConfig geodesic{.learning_rate = 0.01, .max_gradient_norm = 2, .exponential_map = true};

TEMPLATE_TEST_CASE("riemannian_adam: agrees with geoopt's algorithm over 1000 steps", "[train][riemannian_adam]", float,
                   double) {
  using T = TestType;
  // Riemannian gradients near the rim depend on 1 - |x|², which is small there: float loses a few digits more.
  const double tolerance = std::same_as<T, float> ? 1e-4 : 1e-10;
  const auto check = [&](const auto& manifold, const std::string& name) {
    for (const bool exponential_map : {false, true}) {
      auto model = started(manifold);
      RiemannianAdam adam(model, exponential_map ? geodesic : retraction);
      const std::string golden = "riemannian_adam_" + name + (exponential_map ? "_exp" : "_retraction");
      CAPTURE(golden);
      CHECK(optimizer_runs::worst_error(model, adam, golden) <= tolerance);
    }
  };
  check(PoincareBall<T>(), "ball");
  check(PoincareBall<T>(T(0.7)), "ball07");
  check(Lorentz<T>(T(0.7)), "lorentz07");
}

TEST_CASE("riemannian_adam: on parameters without a manifold it is Adam, bit for bit", "[train][riemannian_adam]") {
  optimizer_runs::Parts<double> a, b;
  RiemannianAdam riemannian(a);
  train::Adam adam(b);
  for (Index t = 1; t <= 20; ++t) {
    riemannian.step(a, optimizer_runs::gradient_at(a, t));
    adam.step(b, optimizer_runs::gradient_at(b, t));
  }
  CHECK(optimizer_runs::same_bits(a, b));
}

// Points among ordinary parameters.
struct Mixed {
  using Scalar = double;
  optimizer_runs::Parts<double> before;
  optimizer_runs::Points<PoincareBall<double>> points;
  optimizer_runs::Parts<double> after;
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("before", self.before...);
    visit("points", self.points...);
    visit("after", self.after...);
  }
};

TEST_CASE("riemannian_adam: points and other parameters of one module move as each would by itself",
          "[train][riemannian_adam]") {
  const RiemannianAdamConfig config{.learning_rate = 0.01, .weight_decay = 0.05};
  Mixed mixed;
  mixed.points = started(PoincareBall<double>());
  optimizer_runs::fill(mixed.before, optimizer_runs::start);
  optimizer_runs::fill(mixed.after, optimizer_runs::start);
  Mixed alone = mixed;
  RiemannianAdam together(mixed, config);
  RiemannianAdam points(alone.points, config);
  const train::AdamConfig adam_config{.learning_rate = 0.01, .weight_decay = 0.05, .decoupled_weight_decay = true};
  train::Adam before(alone.before, adam_config), after(alone.after, adam_config);
  for (Index t = 1; t <= 50; ++t) {
    Mixed gradient = mixed;
    gradient.before = optimizer_runs::gradient_at(mixed.before, t);
    gradient.points = optimizer_runs::gradient_at(mixed.points, t);
    gradient.after = optimizer_runs::gradient_at(mixed.after, t + 1000);
    together.step(mixed, gradient);
    before.step(alone.before, gradient.before);
    points.step(alone.points, gradient.points);
    after.step(alone.after, gradient.after);
  }
  CHECK(optimizer_runs::same_bits(mixed, alone));
}

struct Line {
  using Scalar = double;
  Euclidean<double> flat;
  Matrix<double> points{24, 1};
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit.on(first_of(self...).flat, "points", self.points...);
  }
};

TEST_CASE("riemannian_adam: in flat space with rows of one column it is Adam", "[train][riemannian_adam]") {
  Line a, b;
  RiemannianAdam riemannian(a, {.learning_rate = 0.01});
  train::Adam adam(b, {.learning_rate = 0.01});
  for (Index t = 1; t <= 100; ++t) {
    riemannian.step(a, optimizer_runs::gradient_at(a, t));
    adam.step(b, optimizer_runs::gradient_at(b, t));
  }
  for (Index i = 0; i < 24; ++i) CHECK(a.points(i, 0) == Approx(b.points(i, 0)).epsilon(1e-12));
}

TEST_CASE("riemannian_adam: points stay inside the margin, whatever the rate", "[train][riemannian_adam]") {
  auto model = started(PoincareBall<double>());
  RiemannianAdam adam(model, {.learning_rate = 10, .margin = 1e-3});
  for (Index t = 1; t <= 200; ++t) {
    adam.step(model, optimizer_runs::gradient_at(model, t));
    for (Index i = 0; i < 8; ++i) {
      double square = 0;
      for (const double x : model.points.row(i)) square += x * x;
      REQUIRE(std::sqrt(square) <= 1 - 1e-3 + 1e-15);
    }
  }
}

TEST_CASE("riemannian_adam: a step allocates nothing", "[train][riemannian_adam]") {
  auto model = started(PoincareBall<double>());
  RiemannianAdam adam(model);
  const auto gradient = optimizer_runs::gradient_at(model, 1);
  CHECK(support::allocations_in([&] { adam.step(model, gradient); }) == 0);
}

// Promise P-36: rows too wide for scratch on the stack.
TEST_CASE("riemannian_adam: whichever allocation fails, a step is whole or not at all", "[train][riemannian_adam]") {
  Model start{PoincareBall<double>(), Matrix<double>(3, 300)};
  optimizer_runs::fill(start, [](Index i) { return 1e-4 * optimizer_runs::start(i % 97); });
  const auto gradient = optimizer_runs::gradient_at(start, 1);
  struct Run {
    Model model;
    RiemannianAdam<Model> adam;
  };
  const auto make = [&] { return Run{start, RiemannianAdam(start, geodesic)}; };
  const auto step = [&](Run& run) { run.adam.step(run.model, gradient); };
  Run expected = make();
  step(expected);
  const auto same = [](const Run& a, const Run& b) {
    return optimizer_runs::same_bits(a.model, b.model) && a.adam.state().steps == b.adam.state().steps &&
           optimizer_runs::same_bits(a.adam.state().first_moment, b.adam.state().first_moment) &&
           optimizer_runs::same_bits(a.adam.state().second_moment, b.adam.state().second_moment);
  };
  support::check_allocation_failures(
      "RiemannianAdam::step", make, step, [&](const Run& run) { return same(run, make()); },
      [&](const Run& run) { return same(run, expected); });

  const train::RiemannianSgd sgd({.exponential_map = true});
  Model moved = start;
  sgd.step(moved, gradient);
  support::check_allocation_failures(
      "RiemannianSgd::step", [&] { return start; }, [&](Model& model) { sgd.step(model, gradient); },
      [&](const Model& model) { return optimizer_runs::same_bits(model, start); },
      [&](const Model& model) { return optimizer_runs::same_bits(model, moved); });

  support::check_allocation_failures(
      "Adam", [&] { return start; },
      [&](Model& model) {
        train::Adam adam(model, {.amsgrad = true});
        adam.step(model, gradient);
      },
      [&](const Model& model) { return optimizer_runs::same_bits(model, start); },
      [&](const Model& model) { return !optimizer_runs::same_bits(model, start); });
}

TEST_CASE("riemannian_adam: a refused step changes nothing, a copy goes on with the same bits",
          "[train][riemannian_adam]") {
  const Model model = started(PoincareBall<double>());
  Model wrong = model;
  wrong.points = Matrix<double>(7, 3);
  optimizer_runs::check_laws(model, wrong, [](const Model& m) { return RiemannianAdam(m, {.learning_rate = 0.01}); });

  Model a = model;
  RiemannianAdam adam(a);
  for (Index t = 1; t <= 500; ++t) adam.step(a, optimizer_runs::gradient_at(a, t));
  Model b = a;
  RiemannianAdam resumed(adam.state(), adam.config());
  for (Index t = 501; t <= 1000; ++t) {
    adam.step(a, optimizer_runs::gradient_at(a, t));
    resumed.step(b, optimizer_runs::gradient_at(b, t));
  }
  CHECK(optimizer_runs::same_bits(a, b));
}

TEST_CASE("riemannian_adam: options out of range are refused", "[train][riemannian_adam]") {
  const Model model;
  for (const double bad : {-1.0, double(NAN)}) {
    CHECK_THROWS_AS(RiemannianAdam(model, {.learning_rate = bad}), ConfigError);
    CHECK_THROWS_AS(RiemannianAdam(model, {.beta1 = bad}), ConfigError);
    CHECK_THROWS_AS(RiemannianAdam(model, {.beta2 = bad}), ConfigError);
    CHECK_THROWS_AS(RiemannianAdam(model, {.epsilon = bad}), ConfigError);
    CHECK_THROWS_AS(RiemannianAdam(model, {.max_gradient_norm = bad}), ConfigError);
    CHECK_THROWS_AS(RiemannianAdam(model, {.margin = bad}), ConfigError);
    CHECK_THROWS_AS(RiemannianAdam(model, {.weight_decay = bad}), ConfigError);
  }
}

}  // namespace
}  // namespace ruvector_test_riemannian_adam
