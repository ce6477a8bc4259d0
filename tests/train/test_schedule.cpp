// SPDX-License-Identifier: MIT
#include <ruvector/train/schedule.hpp>

#include "support/catch.hpp"

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

}  // namespace
}  // namespace ruvector_test_schedule
