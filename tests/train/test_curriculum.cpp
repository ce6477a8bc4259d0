// SPDX-License-Identifier: MIT
#include <ruvector/train/curriculum.hpp>

#include "support/catch.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ruvector_test_curriculum {
namespace {

using namespace ruvector;
using train::Curriculum;
using train::Decay;
using train::TemperatureAnnealing;

TEST_CASE("curriculum: temperatures go from one to the other and stay", "[train][curriculum][v1]") {
  for (const Decay decay : {Decay::linear, Decay::exponential, Decay::cosine, Decay::steps}) {
    const TemperatureAnnealing falling{.from = 1, .to = 0.1, .steps = 100, .decay = decay, .period = 10};
    CHECK(falling(0) == 1);
    CHECK(falling(100) == 0.1);
    CHECK(falling(100000) == 0.1);
    for (Index t = 0; t < 100; ++t) {
      CHECK(falling(t + 1) <= falling(t));
      CHECK(falling(t) >= 0.1);
    }
  }
  // The formulas of version 1 half way.
  CHECK(TemperatureAnnealing{.from = 1, .to = 0.2, .steps = 10}(5) == Approx(0.6).epsilon(1e-14));
  CHECK(TemperatureAnnealing{.from = 1, .to = 0.01, .steps = 10, .decay = Decay::exponential}(5) ==
        Approx(0.1).epsilon(1e-14));
  CHECK(TemperatureAnnealing{.from = 1, .to = 0.2, .steps = 12, .decay = Decay::cosine}(4) ==
        Approx(0.2 + 0.4 * 1.5).epsilon(1e-14));
  CHECK(TemperatureAnnealing{.from = 1, .to = 0.2, .steps = 100, .decay = Decay::steps, .period = 25}(60) ==
        Approx(1 - 0.8 * 2 / 4).epsilon(1e-14));
  // Upwards, too.
  const TemperatureAnnealing rising{.from = 0.1, .to = 1, .steps = 8, .decay = Decay::exponential};
  CHECK(rising(4) == Approx(std::sqrt(0.1)).epsilon(1e-14));
}

TEST_CASE("curriculum: stages follow each other, the last one stays", "[train][curriculum][v1]") {
  const Curriculum curriculum = Curriculum::easy_to_hard(400);
  CHECK(curriculum.total_steps() == 400);
  const Index negatives[] = {5, 10, 20, 50};
  const double temperatures[] = {2, 1, 0.5, 0.1}, difficulties[] = {0.1, 0.3, 0.6, 1};
  for (Index t = 0; t < 600; ++t) {
    const std::size_t stage = std::min<std::size_t>(3, std::size_t(t) / 100);
    CHECK(curriculum(t).negatives == negatives[stage]);
    CHECK(curriculum(t).temperature == temperatures[stage]);
    CHECK(curriculum(t).difficulty == difficulties[stage]);
  }
  CHECK(curriculum.stages().size() == 4);
}

TEST_CASE("curriculum: what may not be is refused", "[train][curriculum]") {
  CHECK_THROWS_AS(Curriculum(std::vector<train::CurriculumStage>()), ConfigError);
  CHECK_THROWS_AS(Curriculum(std::vector<train::CurriculumStage>{{.duration = 0}}), ConfigError);
  CHECK_THROWS_AS(Curriculum::easy_to_hard(3), ConfigError);
  CHECK_THROWS_AS((TemperatureAnnealing{.from = 0}(1)), ConfigError);
  CHECK_THROWS_AS((TemperatureAnnealing{.to = -1}(1)), ConfigError);
  for (const Index period : {0, 1001})
    CHECK_THROWS_AS((TemperatureAnnealing{.decay = Decay::steps, .period = period}(1)), ConfigError);
}

}  // namespace
}  // namespace ruvector_test_curriculum
