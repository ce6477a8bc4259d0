// SPDX-License-Identifier: MIT
#include <ruvector/train/adam.hpp>

#include "support/catch.hpp"
#include "train/optimizer_runs.hpp"

#include <cmath>
#include <string>
#include <utility>

namespace ruvector_test_adam {
namespace {

using namespace ruvector;
using train::Adam;
using train::AdamConfig;
using Model = optimizer_runs::Parts<double>;

static_assert(train::OptimizerFor<Adam<Model>, Model>);

TEMPLATE_TEST_CASE("adam: agrees with PyTorch over 1000 steps", "[train][adam]", float, double) {
  using T = TestType;
  const std::pair<std::string, AdamConfig> runs[] = {
      {"adam", {.learning_rate = 0.01}},
      {"adam_decay", {.learning_rate = 0.01, .beta1 = 0.8, .beta2 = 0.99, .epsilon = 1e-6, .weight_decay = 0.05}},
      {"adamw", {.learning_rate = 0.01, .weight_decay = 0.05, .decoupled_weight_decay = true}},
      {"amsgrad", {.learning_rate = 0.01, .beta2 = 0.9, .amsgrad = true}},
      {"adamw_amsgrad",
       {.learning_rate = 0.01, .beta2 = 0.9, .weight_decay = 0.05, .decoupled_weight_decay = true, .amsgrad = true}},
  };
  for (const auto& [name, config] : runs) {
    CAPTURE(name);
    optimizer_runs::Parts<T> model;
    optimizer_runs::fill(model, optimizer_runs::start);
    Adam adam(model, config);
    CHECK(optimizer_runs::worst_error(model, adam, name) <= optimizer_runs::tolerance<T>);
    CHECK(adam.state().steps == 1000);
  }
}

TEST_CASE("adam: a refused step changes nothing, a copy goes on with the same bits", "[train][adam]") {
  Model model;
  optimizer_runs::fill(model, optimizer_runs::start);
  Model wrong = model;
  wrong.matrix = Matrix<double>(5, 3);
  optimizer_runs::check_laws(model, wrong, [](const Model& m) { return Adam(m, {.weight_decay = 0.1}); });
  optimizer_runs::check_laws(model, wrong, [](const Model& m) { return Adam(m, {.amsgrad = true}); });
}

TEST_CASE("adam: goes on from its state", "[train][adam]") {
  for (const AdamConfig& config : {AdamConfig{}, AdamConfig{.beta2 = 0.9, .amsgrad = true}}) {
    Model a;
    Adam adam(a, config);
    for (Index t = 1; t <= 500; ++t) adam.step(a, optimizer_runs::gradient_at(a, t));
    Model b = a;
    Adam resumed(adam.state(), adam.config());
    for (Index t = 501; t <= 1000; ++t) {
      adam.step(a, optimizer_runs::gradient_at(a, t));
      resumed.step(b, optimizer_runs::gradient_at(b, t));
    }
    CHECK(optimizer_runs::same_bits(a, b));
  }
}

TEST_CASE("adam: amsgrad begins and ends with the options, not with the state", "[train][adam]") {
  Model a;
  Adam plain(a);
  CHECK_FALSE(plain.state().largest_second_moment.has_value());
  for (Index t = 1; t <= 5; ++t) plain.step(a, optimizer_runs::gradient_at(a, t));
  const Adam with(plain.state(), {.amsgrad = true});
  REQUIRE(with.state().largest_second_moment.has_value());
  CHECK(optimizer_runs::same_bits(*with.state().largest_second_moment, plain.state().second_moment));
  CHECK_FALSE(Adam(with.state(), {}).state().largest_second_moment.has_value());
}

TEST_CASE("adam: the first step has the length of the learning rate, whatever the gradient's", "[train][adam]") {
  for (const double scale : {1e-4, 1.0, 1e6}) {
    Model model;
    Model gradient = model;
    optimizer_runs::fill(gradient, [&](Index i) { return i % 2 == 0 ? scale : -scale; });
    Adam adam(model, {.learning_rate = 0.5});
    adam.step(model, gradient);
    CHECK(model.matrix(0, 0) == Approx(-0.5).epsilon(1e-3));
    CHECK(model.matrix(0, 1) == Approx(0.5).epsilon(1e-3));
  }
}

TEST_CASE("adam: options out of range are refused", "[train][adam]") {
  const Model model;
  for (const double bad : {-1.0, double(NAN), double(INFINITY)}) {
    CHECK_THROWS_AS(Adam(model, {.learning_rate = bad}), ConfigError);
    CHECK_THROWS_AS(Adam(model, {.beta1 = bad}), ConfigError);
    CHECK_THROWS_AS(Adam(model, {.beta2 = bad}), ConfigError);
    CHECK_THROWS_AS(Adam(model, {.epsilon = bad}), ConfigError);
    CHECK_THROWS_AS(Adam(model, {.weight_decay = bad}), ConfigError);
  }
  CHECK_THROWS_AS(Adam(model, {.beta1 = 1}), ConfigError);
  CHECK_THROWS_AS(Adam(model, {.beta2 = 1}), ConfigError);
}

}  // namespace
}  // namespace ruvector_test_adam
