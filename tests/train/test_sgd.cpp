// SPDX-License-Identifier: MIT
#include <ruvector/train/sgd.hpp>

#include "support/catch.hpp"
#include "train/optimizer_runs.hpp"

#include <cmath>
#include <string>

namespace ruvector_test_sgd {
namespace {

using namespace ruvector;
using train::Sgd;
using train::SgdConfig;
using Model = optimizer_runs::Parts<double>;

static_assert(train::OptimizerFor<Sgd<Model>, Model>);
static_assert(!train::OptimizerFor<Sgd<Model>, optimizer_runs::Parts<float>>);

TEMPLATE_TEST_CASE("sgd: agrees with PyTorch over 1000 steps", "[train][sgd]", float, double) {
  using T = TestType;
  const std::pair<std::string, SgdConfig> runs[] = {
      {"sgd", {.learning_rate = 0.01}},
      {"sgd_momentum", {.learning_rate = 0.01, .momentum = 0.9, .weight_decay = 0.05}},
      {"sgd_nesterov", {.learning_rate = 0.01, .momentum = 0.9, .nesterov = true, .weight_decay = 0.05}},
  };
  for (const auto& [name, config] : runs) {
    CAPTURE(name);
    optimizer_runs::Parts<T> model;
    optimizer_runs::fill(model, optimizer_runs::start);
    Sgd sgd(model, config);
    CHECK(optimizer_runs::worst_error(model, sgd, name) <= optimizer_runs::tolerance<T>);
  }
}

TEST_CASE("sgd: a refused step changes nothing, a copy goes on with the same bits", "[train][sgd]") {
  Model model;
  optimizer_runs::fill(model, optimizer_runs::start);
  Model wrong = model;
  wrong.vector = Vector<double>(7);
  optimizer_runs::check_laws(model, wrong, [](const Model& m) { return Sgd(m, {.momentum = 0.9}); });
}

TEST_CASE("sgd: goes on from its state", "[train][sgd]") {
  Model a;
  Sgd sgd(a, {.momentum = 0.9, .nesterov = true});
  sgd.step(a, optimizer_runs::gradient_at(a, 1));
  Model b = a;
  Sgd resumed(sgd.state(), sgd.config());
  sgd.step(a, optimizer_runs::gradient_at(a, 2));
  resumed.step(b, optimizer_runs::gradient_at(b, 2));
  CHECK(optimizer_runs::same_bits(a, b));
}

TEST_CASE("sgd: options out of range are refused", "[train][sgd]") {
  const Model model;
  CHECK_NOTHROW(Sgd(model, {.learning_rate = 0}));
  for (const double bad : {-1.0, double(NAN), double(INFINITY)}) {
    CHECK_THROWS_AS(Sgd(model, {.learning_rate = bad}), ConfigError);
    CHECK_THROWS_AS(Sgd(model, {.momentum = bad}), ConfigError);
    CHECK_THROWS_AS(Sgd(model, {.weight_decay = bad}), ConfigError);
  }
  CHECK_THROWS_AS(Sgd(model, {.momentum = 1}), ConfigError);
}

}  // namespace
}  // namespace ruvector_test_sgd
