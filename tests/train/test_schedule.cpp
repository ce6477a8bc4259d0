// SPDX-License-Identifier: MIT
#include <ruvector/io/npy.hpp>
#include <ruvector/train/schedule.hpp>
#include <ruvector/train/state.hpp>

#include "support/catch.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ruvector_test_schedule {
namespace {

using namespace ruvector;
using train::BurnIn;
using train::Constant;

struct Halving {
  double operator()(Index step) const { return step == 0 ? 1 : 0.5 * (*this)(step - 1); }
};

static_assert(train::Schedule<Constant> && train::Schedule<BurnIn<>> && train::Schedule<Halving>);
static_assert(!train::Schedule<double>);
static_assert(train::Schedule<train::StepDecay> && train::Schedule<train::Exponential> &&
              train::Schedule<train::CosineAnnealing> && train::Schedule<train::WarmupLinear> &&
              train::Schedule<train::WarmupCosine>);
static_assert(train::ObservingSchedule<train::ReduceOnPlateau> && !train::ObservingSchedule<Constant>);
static_assert(train::ObservingSchedule<BurnIn<train::ReduceOnPlateau>> && !train::ObservingSchedule<BurnIn<>>);
static_assert(train::Checkpointable<BurnIn<train::ReduceOnPlateau>> && !train::Checkpointable<BurnIn<>>);

TEST_CASE("schedule: constant is the same at every step", "[train][schedule]") {
  CHECK(Constant{}(0) == 1);
  CHECK(Constant{.factor = 0.25}(1000000) == 0.25);
}

TEST_CASE("schedule: burn-in is small for its steps, then what follows begins", "[train][schedule]") {
  const BurnIn<> burn_in{.steps = 3, .factor = 0.01};
  CHECK(burn_in(0) == 0.01);
  CHECK(burn_in(2) == 0.01);
  CHECK(burn_in(3) == 1);
  CHECK(burn_in(1000) == 1);
  CHECK(BurnIn<>{.steps = 0}(0) == 1);

  const BurnIn<Halving> composed{.steps = 2, .factor = 0.1};
  CHECK(composed(1) == 0.1);
  CHECK(composed(2) == 1);  // the step 0 of what follows
  CHECK(composed(4) == 0.25);
  const BurnIn<BurnIn<>> twice{.steps = 1, .factor = 0.1, .next = {.steps = 1, .factor = 0.2}};
  CHECK(twice(0) == 0.1);
  CHECK(twice(1) == 0.2);
  CHECK(twice(2) == 1);
}

// The tables of version 1's own tests: the learning rate after so many of its steps.
TEST_CASE("schedule: the tables of version 1", "[train][schedule][v1]") {
  const train::StepDecay decay{.period = 5, .decay = 0.5};
  for (Index t = 0; t <= 10; ++t) CHECK(0.1 * decay(t) == Approx(t < 5 ? 0.1 : t < 10 ? 0.05 : 0.025).epsilon(1e-14));
  const train::Exponential exponential{.decay = 0.9};
  const double powers[] = {1, 0.9, 0.81, 0.729};
  for (Index t = 0; t < 4; ++t) CHECK(exponential(t) == Approx(powers[t]).epsilon(1e-14));
  const train::CosineAnnealing cosine{.period = 10};
  CHECK(cosine(0) == 1);
  CHECK(cosine(5) == Approx(0.5).epsilon(1e-14));
  CHECK(cosine(9) < 0.1);
  CHECK(cosine(10) == 1);
  CHECK(cosine(11) < 1);
  const train::WarmupLinear linear{.warm_up = 5, .total = 10};
  const double table[] = {0, 0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4, 0.2, 0, 0};
  for (Index t = 0; t < 12; ++t) CHECK(linear(t) == Approx(table[t]).epsilon(1e-14));

  train::ReduceOnPlateau plateau({.decay = 0.5, .patience = 3, .floor = 0.01});
  const std::pair<double, double> told[] = {{1.0, 0.01},   {0.9, 0.01},   {0.91, 0.01},  {0.92, 0.01},
                                            {0.93, 0.005}, {0.94, 0.005}, {0.95, 0.005}, {0.96, 0.0025}};
  for (const auto& [metric, rate] : told) {
    plateau.observe(metric);
    CHECK(0.01 * plateau(0) == Approx(rate).epsilon(1e-14));
  }
  for (int i = 0; i < 20; ++i) plateau.observe(1.0);
  CHECK(plateau(0) == Approx(0.01).epsilon(1e-14));
}

TEST_CASE("schedule: agrees with PyTorch", "[train][schedule][golden]") {
  const auto table = io::read_npy_matrix<double>(RUVECTOR_TEST_DATA "/schedules.npy");
  const train::StepDecay decay{.period = 7, .decay = 0.5};
  const train::Exponential exponential{.decay = 0.9};
  const train::CosineAnnealing cosine{.period = 12, .floor = 0.125};
  // PyTorch's patience is one less, and its threshold is relative.
  train::ReduceOnPlateau plateau(
      {.decay = 0.5, .patience = 4, .floor = 0.1, .least_improvement = 0, .relative_improvement = 1e-4});
  REQUIRE(table.cols() == 40);
  for (Index t = 0; t < 40; ++t) {
    CAPTURE(t);
    CHECK(decay(t) == Approx(table(0, t)).epsilon(1e-13));
    CHECK(exponential(t) == Approx(table(1, t)).epsilon(1e-13));
    CHECK(cosine(t) == Approx(table(2, t)).epsilon(1e-13));
    CHECK(plateau(t) == Approx(table(3, t)).epsilon(1e-13));
    plateau.observe(1.0 / double(1 + std::min<Index>(t, 12)) + 0.01 * double(t % 3));
  }
}

TEST_CASE("schedule: warm-up, then half a cosine", "[train][schedule]") {
  const train::WarmupCosine schedule{.warm_up = 4, .total = 14, .floor = 0.2};
  const double rising[] = {0.25, 0.5, 0.75, 1};
  for (Index t = 0; t < 4; ++t) CHECK(schedule(t) == rising[t]);
  CHECK(schedule(4) == 1);
  CHECK(schedule(9) == Approx(0.6).epsilon(1e-14));
  for (Index t = 4; t < 14; ++t) CHECK(schedule(t + 1) < schedule(t));
  CHECK(schedule(14) == 0.2);
  CHECK(schedule(1000) == 0.2);
  CHECK(train::WarmupCosine{.warm_up = 0, .total = 2}(0) == 1);
}

TEST_CASE("schedule: a plateau under a burn-in, its state, and a metric of NaN", "[train][schedule]") {
  BurnIn<train::ReduceOnPlateau> schedule{
      .steps = 2, .factor = 0.1, .next = train::ReduceOnPlateau({.decay = 0.5, .patience = 2})};
  schedule.observe(1);
  schedule.observe(double(NAN));
  BurnIn<train::ReduceOnPlateau> copy{
      .steps = 2, .factor = 0.1, .next = train::ReduceOnPlateau({.decay = 0.5, .patience = 2})};
  std::vector<double> numbers;
  train::for_each_state([&](std::string_view, auto x) { numbers.push_back(double(x[0])); }, std::as_const(schedule));
  CHECK(numbers.size() == 3);
  std::size_t k = 0;
  train::for_each_state([&]<class T>(std::string_view, std::span<T> x) { x[0] = T(numbers[k++]); }, copy);
  for (auto* s : {&schedule, &copy}) {
    CHECK((*s)(1) == 0.1);
    CHECK((*s)(2) == 1);
    s->observe(1);  // the second without an improvement
    CHECK((*s)(2) == 0.5);
  }
}

TEST_CASE("schedule: a period of 0 is refused", "[train][schedule]") {
  CHECK_THROWS_AS(train::StepDecay{.period = 0}(1), ConfigError);
  CHECK_THROWS_AS(train::CosineAnnealing{.period = 0}(1), ConfigError);
}

}  // namespace
}  // namespace ruvector_test_schedule
