// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/search/soft_top_k.hpp>
#include <ruvector/train/gradient_check.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "support/allocation_counter.hpp"
#include "support/allocation_failures.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

namespace test_soft_top_k {
namespace {

using namespace ruvector;
using search::Entmax15;
using search::SoftTopK;
using search::Sparsemax;

using Maps = std::tuple<Sparsemax<double>, Entmax15<double>, SoftTopK<double>>;

template <class Map>
Map make(double temperature, Index k) {
  Map map;
  map.temperature = temperature;
  if constexpr (requires { map.k; }) map.k = k;
  return map;
}
template <class Map>
double total(const Map& map, Index n) {
  if constexpr (requires { map.k; }) return double(std::min(map.k, n));
  return 1;
}
template <class Map>
std::vector<double> weights(const Map& map, const std::vector<double>& s, Workspace& ws) {
  std::vector<double> p(s.size(), 7.0);
  map.forward(s, p, ws);
  return p;
}
std::vector<double> random(Rng& rng, Index n, double spread) {
  std::vector<double> s(std::size_t(n), 0.0);
  for (double& e : s) e = spread * rng.normal();
  return s;
}

// What makes p the solution: with one threshold θ, the map's own formula gives every weight.
double formula(const Sparsemax<double>& map, double s, double theta) {
  return std::max(0.0, s / map.temperature - theta);
}
double formula(const Entmax15<double>& map, double s, double theta) {
  const double root = std::max(0.0, s / (2 * map.temperature) - theta);
  return root * root;
}
double formula(const SoftTopK<double>& map, double s, double theta) {
  return 1 / (1 + std::exp(theta - s / map.temperature));
}
// θ from a weight that tells it well: that of the largest score, or one far from 0 and 1.
template <class Map>
std::size_t telling(const Map& map, const std::vector<double>& p) {
  const auto worth = [&](double w) {
    return requires {
      map.k;
    }
    ? w*(1 - w) : w;
  };
  return std::size_t(std::ranges::max_element(p, {}, worth) - p.begin());
}
double threshold(const Sparsemax<double>& map, double s, double p) {
  return s / map.temperature - p;
}
double threshold(const Entmax15<double>& map, double s, double p) {
  return s / (2 * map.temperature) - std::sqrt(p);
}
double threshold(const SoftTopK<double>& map, double s, double p) {
  return s / map.temperature - std::log(p / (1 - p));
}

TEMPLATE_LIST_TEST_CASE("soft selection: weights follow the formula with one threshold, and sum up", "[search]", Maps) {
  Rng rng(41);
  Workspace ws;
  for (int trial = 0; trial < 200; ++trial) {
    const Index n = 1 + rng.below(60), k = 1 + rng.below(n);
    const double temperature = std::exp(rng.uniform(-1.5, 1.5));
    const auto map = make<TestType>(temperature, k);
    const std::vector<double> s = random(rng, n, 2), p = weights(map, s, ws);
    CAPTURE(trial, n, k, temperature);
    CHECK(support::near(std::accumulate(p.begin(), p.end(), 0.0), total(map, n), {.relative = 1e-13}));
    const std::size_t at = telling(map, p);
    if (p[at] == 1) continue;  // nothing to compare with: a single one, or all of them
    const double theta = threshold(map, s[at], p[at]);
    for (std::size_t i = 0; i < s.size(); ++i)
      REQUIRE(support::near(p[i], formula(map, s[i], theta), {.relative = 1e-9, .absolute = 1e-12}));
  }
}

TEMPLATE_LIST_TEST_CASE("soft selection: gradients by scores and temperature", "[search][gradient]", Maps) {
  Rng rng(42);
  Workspace ws;
  for (int trial = 0; trial < 40; ++trial) {
    const Index n = 1 + rng.below(12), k = 1 + rng.below(n);
    const auto map = make<TestType>(rng.uniform(0.4, 2.0), k);
    std::vector<double> x = random(rng, n, 1);
    const std::vector<double> d_p = random(rng, n, 1), p = weights(map, x, ws);
    if (std::ranges::any_of(p, [](double w) { return w > 0 && w < 1e-3; })) continue;  // near a kink
    std::vector<double> gradient(std::size_t(n), 0.0);
    const double d_temperature = map.backward(x, p, d_p, gradient);
    x.push_back(map.temperature);
    gradient.push_back(d_temperature);
    const auto loss = [&](std::span<const double> at) {
      const std::vector<double> s(at.begin(), at.end() - 1);
      auto moved = map;
      moved.temperature = at.back();
      const std::vector<double> q = weights(moved, s, ws);
      return std::inner_product(q.begin(), q.end(), d_p.begin(), 0.0);
    };
    const auto check = train::check_gradient(loss, x, gradient, {.step = 1e-5});
    CAPTURE(trial, n, k);
    INFO(train::to_string(check));
    CHECK(check.passed);
  }
}

TEMPLATE_LIST_TEST_CASE("soft selection: cold it is hard, absent scores have nothing, ties share", "[search]", Maps) {
  constexpr double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  Workspace ws;
  const auto cold = make<TestType>(1e-4, 2);
  const std::vector<double> hard = weights(cold, {1, 3, nan, 2, -infinity, 0}, ws);
  const double second = total(cold, 6) - 1;  // where two are chosen
  const std::vector<double> expected = {0, 1, 0, second, 0, 0};
  for (std::size_t i = 0; i < hard.size(); ++i) CHECK(support::near(hard[i], expected[i], {.absolute = 1e-12}));

  const auto map = make<TestType>(1, 1);
  CHECK(weights(map, {}, ws).empty());
  CHECK(weights(map, {nan, -infinity}, ws) == std::vector<double>{0, 0});
  CHECK(weights(map, {infinity, 5, infinity}, ws) == std::vector<double>{0.5, 0, 0.5});
  CHECK(weights(map, {3}, ws) == std::vector<double>{1});
  for (const double w : weights(map, {2, 2, 2, 2}, ws)) CHECK(support::near(w, 0.25, {.relative = 1e-14}));
  CHECK(weights(map, {1e300, -1e300}, ws) == std::vector<double>{1, 0});

  std::vector<double> d_s(3, 0.0);
  const std::vector<double> s = {infinity, 5, nan}, p = weights(map, s, ws), d_p = {1, 2, 3};
  CHECK(map.backward(s, p, d_p, d_s) == 0);
  CHECK(d_s == std::vector<double>(3, 0.0));

  const std::vector<double> many(100, 1.0);
  std::vector<double> out(100, 0.0);
  map.forward(many, out, ws);
  CHECK(support::allocations_in([&] { map.forward(many, out, ws); }) == 0);
  if constexpr (!std::same_as<TestType, SoftTopK<double>>)  // that takes no scratch
    support::check_allocation_failures(
        "soft selection", [] { return Workspace(); }, [&](Workspace& fresh) { map.forward(many, out, fresh); },
        [&](const Workspace&) { return out == weights(map, many, ws); });
  CHECK_THROWS_AS(map.forward(many, std::span<double>(out).first(99), ws), ShapeError);
  CHECK_THROWS_AS(weights(make<TestType>(0, 1), {1}, ws), ConfigError);
  CHECK_THROWS_AS(weights(make<TestType>(nan, 1), {1}, ws), ConfigError);
}

TEST_CASE("SoftTopK: no more than k are all chosen; k = 0 none", "[search]") {
  Workspace ws;
  CHECK(weights(SoftTopK<double>{3, 1}, {1, 2, 3}, ws) == std::vector<double>{1, 1, 1});
  CHECK(weights(SoftTopK<double>{0, 1}, {1, 2, 3}, ws) == std::vector<double>{0, 0, 0});
  CHECK_THROWS_AS(weights(SoftTopK<double>{-1, 1}, {1, 2, 3}, ws), ConfigError);
}

}  // namespace
}  // namespace test_soft_top_k
