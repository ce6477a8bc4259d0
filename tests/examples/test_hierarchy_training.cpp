// SPDX-License-Identifier: MIT
#include "examples/support/hierarchy.hpp"
#include "examples/support/hierarchy_training.hpp"
#include "examples/support/reconstruction.hpp"
#include "support/catch.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <ruvector/core/executor.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/geometry/lorentz.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <stop_token>
#include <vector>

namespace test_hierarchy_training {
namespace {

using examples::Adjacency;
using examples::Hierarchy;
using examples::HierarchyTrainer;
using examples::hold_out;
using examples::Reconstruction;
using examples::TrainingConfig;
using ruvector::Index;
using ruvector::Matrix;
using ruvector::Rng;

constexpr std::uint64_t seed = 7;

/// A complete tree: node 0 on top, node i below (i − 1) / branches.
Hierarchy tree(Index nodes, Index branches) {
  Hierarchy result;
  for (Index i = 0; i < nodes; ++i) {
    result.synset.push_back(static_cast<std::int32_t>(i));
    std::vector<std::int32_t> above;
    for (Index up = i; up != 0;) above.push_back(static_cast<std::int32_t>(up = (up - 1) / branches));
    result.parents.append(std::span(above).first(std::min(above.size(), std::size_t(1))));
    std::sort(above.begin(), above.end());
    result.ancestors.append(above);
  }
  return result;
}

template <class M>
Matrix<double> start(const M& manifold, Index nodes, Index dim) {
  Matrix<double> points(nodes, manifold.point_dim(dim));
  ruvector::Rng rng(seed);
  for (Index i = 0; i < nodes; ++i) {
    for (double& x : points.row(i).last(static_cast<std::size_t>(dim))) x = rng.uniform(-1e-4, 1e-4);
    manifold.project(points.row(i), points.row(i));
  }
  return points;
}

template <class M>
Matrix<double> trained(const M& manifold, const Hierarchy& hierarchy, Index threads, const TrainingConfig& config) {
  ruvector::ThreadPool pool(threads);
  HierarchyTrainer trainer(manifold, hierarchy, config);
  auto state = trainer.start(start(manifold, hierarchy.size(), 5));
  trainer.run(state, pool, {});
  return state.points;
}

TEMPLATE_TEST_CASE("hierarchy training: the same bits with any number of threads", "[examples]",
                   ruvector::geometry::PoincareBall<double>, ruvector::geometry::Lorentz<double>,
                   ruvector::geometry::Euclidean<double>) {
  const TestType manifold;
  const Hierarchy hierarchy = tree(40, 3);  // small, so that nodes occur many times in one batch
  const TrainingConfig config{.epochs = 12, .batch = 7, .negatives = 9, .burn_in = 3, .seed = seed};
  const auto one = trained(manifold, hierarchy, 1, config);
  for (const Index threads : {2, 3}) {
    CAPTURE(threads, seed);
    const auto many = trained(manifold, hierarchy, threads, config);
    CHECK(std::equal(one.span().begin(), one.span().end(), many.span().begin()));
  }
  CHECK(std::all_of(one.span().begin(), one.span().end(), [](double x) { return std::isfinite(x); }));
  TrainingConfig other = config;
  other.seed = seed + 1;
  const auto different = trained(manifold, hierarchy, 1, other);
  CHECK_FALSE(std::equal(one.span().begin(), one.span().end(), different.span().begin()));
}

TEST_CASE("hierarchy training: a tree is learned", "[examples]") {
  const ruvector::geometry::PoincareBall<double> ball;
  const Hierarchy hierarchy = tree(85, 4);
  const TrainingConfig config{.epochs = 300, .negatives = 20, .burn_in = 10, .seed = seed};
  const auto points = trained(ball, hierarchy, 1, config);
  ruvector::Serial serial;
  const Reconstruction after = reconstruct(ball, hierarchy, points, serial);
  const auto untrained = start(ball, hierarchy.size(), 5);
  const Reconstruction before = reconstruct(ball, hierarchy, untrained, serial);
  CAPTURE(seed, before.mean_rank, after.mean_rank, after.mean_average_precision);
  CHECK(after.mean_average_precision > 0.95);
  CHECK(before.mean_average_precision < 0.3);
  CHECK(after.recall_at_10 == 1.0);
}

TEST_CASE("hierarchy training: stops between two batches and keeps what is learned", "[examples]") {
  const ruvector::geometry::PoincareBall<double> ball;
  const Hierarchy hierarchy = tree(40, 3);
  const TrainingConfig config{.epochs = 5, .batch = 7, .negatives = 9, .burn_in = 0, .seed = seed};
  ruvector::Serial serial;
  HierarchyTrainer trainer(ball, hierarchy, config);
  auto state = trainer.start(start(ball, hierarchy.size(), 5));
  const Matrix<double> untouched = state.points;
  std::stop_source stop;
  Index reports = 0;
  trainer.run(
      state, serial,
      [&](const ruvector::ProgressReport& report) {
        CHECK(report.total == 5 * hierarchy.pairs());
        CHECK(report.loss > 0);
        if (++reports == 3) stop.request_stop();
      },
      stop.get_token());
  CHECK(reports == 3);
  CHECK(state.pairs == 3 * 7);
  CHECK_FALSE(std::ranges::equal(state.points.span(), untouched.span()));
}

TEMPLATE_TEST_CASE("hierarchy training: goes on from any batch with the bits of one that was never stopped",
                   "[examples]", ruvector::geometry::PoincareBall<double>, ruvector::geometry::Lorentz<double>) {
  const TestType manifold;
  const Hierarchy hierarchy = tree(40, 3);
  const TrainingConfig config{.epochs = 4,
                              .batch = 7,
                              .negatives = 9,
                              .burn_in = 1,
                              .last_factor = 0.1,
                              .curvature_rate = GENERATE(0.0, 0.1),
                              .seed = seed};
  ruvector::Serial serial;
  HierarchyTrainer trainer(manifold, hierarchy, config);
  auto whole = trainer.start(start(manifold, hierarchy.size(), 5));
  trainer.run(whole, serial, {});
  for (const int batches : {1, 10, 15, 52}) {
    auto state = trainer.start(start(manifold, hierarchy.size(), 5));
    std::stop_source stop;
    int reports = 0;
    const auto progress = [&](const ruvector::ProgressReport&) {
      if (++reports == batches) stop.request_stop();
    };
    HierarchyTrainer(manifold, hierarchy, config).run(state, serial, progress, stop.get_token());
    const Index stopped_after = state.pairs;
    HierarchyTrainer later(manifold, hierarchy, config);
    later.run(state, serial, {});
    CAPTURE(batches, seed);
    CHECK(stopped_after < whole.pairs);
    CHECK(state.pairs == 4 * hierarchy.pairs());
    CHECK(state.raw_curvature == whole.raw_curvature);
    CHECK(later.curvature() == trainer.curvature());
    CHECK(std::ranges::equal(state.points.span(), whole.points.span()));
  }
}

TEST_CASE("hierarchy training: the learning rate falls to the share of the last epoch", "[examples]") {
  const ruvector::geometry::PoincareBall<double> ball;
  const Hierarchy hierarchy = tree(40, 3);
  ruvector::Serial serial;
  const auto run = [&](double last_factor, Index epochs) {  // of four, one of them of burn-in
    TrainingConfig config{.epochs = 4, .negatives = 9, .burn_in = 1, .last_factor = last_factor, .seed = seed};
    HierarchyTrainer trainer(ball, hierarchy, config);
    auto state = trainer.start(start(ball, hierarchy.size(), 5));
    std::stop_source stop;
    const auto progress = [&](const ruvector::ProgressReport& report) {
      if (report.done == epochs * hierarchy.pairs()) stop.request_stop();
    };
    trainer.run(state, serial, progress, stop.get_token());
    CHECK(state.pairs == epochs * hierarchy.pairs());
    return state.points;
  };
  const auto same = [](const Matrix<double>& a, const Matrix<double>& b) {
    return std::ranges::equal(a.span(), b.span());
  };
  // 0.01, 1, 1/2 and nothing.
  CHECK(same(run(0, 4), run(0, 3)));
  CHECK_FALSE(same(run(0, 3), run(0, 2)));
  CHECK(same(run(0, 2), run(0.5, 2)));
  CHECK_FALSE(same(run(0, 3), run(0.5, 3)));
  CHECK_FALSE(same(run(0.5, 4), run(0.5, 3)));
}

TEMPLATE_TEST_CASE("hierarchy training: the curvature follows its gradient", "[examples]",
                   ruvector::geometry::PoincareBall<double>, ruvector::geometry::Lorentz<double>) {
  const TestType manifold;
  const Hierarchy hierarchy = tree(40, 3);
  const Matrix<double> points =
      trained(manifold, hierarchy, 1, {.epochs = 8, .negatives = 9, .burn_in = 2, .seed = seed});
  const bool squared = GENERATE(false, true);
  struct Step {
    double loss, curvature;
  };
  const auto step = [&](double curvature, double rate) {  // one batch of all pairs, of which the points hardly move
    const TrainingConfig config{.epochs = 1,
                                .batch = hierarchy.pairs(),
                                .negatives = 9,
                                .sgd = {.learning_rate = 1e-12},
                                .burn_in = 0,
                                .squared_distance = squared,
                                .curvature = curvature,
                                .curvature_rate = rate,
                                .seed = seed};
    ruvector::Serial serial;
    HierarchyTrainer trainer(manifold, hierarchy, config);
    auto state = trainer.start(points);
    double loss = 0;
    trainer.run(state, serial, [&](const ruvector::ProgressReport& report) { loss = report.loss; });
    return Step{loss, trainer.curvature()};
  };
  for (const double c : {0.3, 1.0, 4.0}) {
    constexpr double h = 1e-4, rate = 1e-3;
    const double slope = (step(c + h, 0).loss - step(c - h, 0).loss) / (2 * h);
    // c = softplus(raw), and ∂c/∂raw = 1 − exp(−c)
    const double raw = std::log(std::expm1(c)) - rate * slope * -std::expm1(-c);
    CAPTURE(c, squared, slope, seed);
    CHECK(std::abs(slope) > 1e-3);
    CHECK(step(c, rate).curvature - c == Approx(std::log1p(std::exp(raw)) - c).epsilon(1e-5));
    CHECK(step(c, 0).curvature == c);
  }
}

TEST_CASE("hierarchy training: a step at curvature -c is that of a ball of curvature -c", "[examples]") {
  const Hierarchy hierarchy = tree(40, 3);
  const ruvector::geometry::PoincareBall<double> unit;
  const double c = 0.25;
  const ruvector::geometry::PoincareBall<double> wide(c);
  Matrix<double> points = trained(unit, hierarchy, 1, {.epochs = 20, .negatives = 9, .seed = seed});
  Matrix<double> dilated = points;
  for (double& x : dilated.span()) x /= std::sqrt(c);
  const TrainingConfig config{
      .epochs = 1, .negatives = 9, .sgd = {.learning_rate = 0.3, .exponential_map = true}, .burn_in = 0, .seed = seed};
  TrainingConfig at_c = config;
  at_c.curvature = c;
  const auto step = [&](const auto& manifold, const TrainingConfig& recipe, Matrix<double>& moved) {
    ruvector::Serial serial;
    HierarchyTrainer trainer(manifold, hierarchy, recipe);
    auto state = trainer.start(moved);
    trainer.run(state, serial, {});
    moved = state.points;
  };
  step(unit, at_c, points);
  step(wide, config, dilated);
  for (Index i = 0; i < points.size(); ++i)
    CHECK(dilated.span()[std::size_t(i)] == Approx(points.span()[std::size_t(i)] / std::sqrt(c)).epsilon(1e-7));
}

TEST_CASE("hierarchy training: a chain, whose lowest node has no negatives, is no endless loop", "[examples]") {
  const ruvector::geometry::PoincareBall<double> ball;
  const auto points = trained(ball, tree(4, 1), 1, {.epochs = 3, .seed = seed});
  CHECK(std::all_of(points.span().begin(), points.span().end(), [](double x) { return std::isfinite(x); }));
}

TEST_CASE("hierarchy training: frequent nodes are drawn more often, in proportion", "[examples]") {
  const std::vector<double> weight = {1, 2, 0, 5, 0.5};
  const examples::WeightedSampler sampler(weight);
  ruvector::Rng rng(seed);
  std::vector<double> drawn(weight.size(), 0);
  constexpr int draws = 200000;
  for (int i = 0; i < draws; ++i) drawn[static_cast<std::size_t>(sampler(rng))] += 1;
  for (std::size_t i = 0; i < weight.size(); ++i) {
    const double p = weight[i] / 8.5, deviation = std::sqrt(p * (1 - p) / draws);
    CAPTURE(i, seed);
    CHECK(std::abs(drawn[i] / draws - p) <= 5 * deviation);
  }
}

TEST_CASE("reconstruction: ranks count rivals only, and ties count against the embedding", "[examples]") {
  // 0 ← 1 ← 2 and 3 alone on a line; of node 2 the ancestors are 0 and 1
  Hierarchy hierarchy;
  hierarchy.synset = {0, 1, 2, 3};
  const std::vector<std::int32_t> none, zero{0}, both{0, 1};
  for (const auto* list : {&none, &zero, &both, &none}) hierarchy.ancestors.append(*list);
  const ruvector::geometry::Euclidean<double> line;
  ruvector::Serial serial;
  const auto ranks = [&](double a, double b, double c, double d) {
    Matrix<double> points(4, 1);
    points(0, 0) = a, points(1, 0) = b, points(2, 0) = c, points(3, 0) = d;
    return reconstruct(line, hierarchy, points, serial);
  };
  // node 1: 0 before 2 and 3. Node 2: 1, 0 before 3.
  Reconstruction r = ranks(0, 1, 3, 9);
  CHECK(r.mean_rank == 1.0);
  CHECK(r.mean_average_precision == 1.0);
  CHECK(r.recall_at_10 == 1.0);
  // node 1 at 1: 0 at distance 1, 2 at distance 2, 3 at 1 (a tie): rank 2. Node 2 at 3: 1 at 2, 3 at 1, 0 at 3: ranks
  // 2 and 2, precisions 1/2 and 2/3.
  r = ranks(0, 1, 3, 2);
  CHECK(r.mean_rank == 2.0);
  CHECK(r.mean_average_precision == Approx((0.5 + (0.5 + 2.0 / 3) / 2) / 2).epsilon(1e-15));
  // all in one place, or nowhere: the worst, not the best
  r = ranks(4, 4, 4, 4);
  CHECK(r.mean_rank == Approx((3 + 2 + 2) / 3.0).epsilon(1e-15));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  r = ranks(nan, 1, 3, 9);
  CHECK(r.mean_rank > 1.5);
  r = ranks(nan, nan, nan, nan);
  CHECK(r.mean_rank == Approx((3 + 2 + 2) / 3.0).epsilon(1e-15));
}

TEST_CASE("reconstruction: of some ancestors, the others are no rivals", "[examples]") {
  Hierarchy hierarchy;  // as above
  hierarchy.synset = {0, 1, 2, 3};
  const std::vector<std::int32_t> none, zero{0}, both{0, 1};
  for (const auto* list : {&none, &zero, &both, &none}) hierarchy.ancestors.append(*list);
  Adjacency ranked;
  for (const auto* list : {&none, &none, &zero, &none}) ranked.append(*list);
  Matrix<double> points(4, 1);
  points(0, 0) = 0, points(1, 0) = 2, points(2, 0) = 3, points(3, 0) = 5;
  ruvector::Serial serial;
  // of node 2 at 3: 1, an ancestor that is not ranked, is nearest; then 3, then 0
  const Reconstruction r = reconstruct(ruvector::geometry::Euclidean<double>(), hierarchy, ranked, points, serial);
  CHECK(r.mean_rank == 2.0);
  CHECK(r.mean_average_precision == 0.5);
  CHECK(r.recall_at_10 == 1.0);
}

TEST_CASE("hold_out: takes that share of the pairs, and leaves each node one", "[examples]") {
  Hierarchy hierarchy;
  std::vector<std::int32_t> above;
  for (std::int32_t i = 0; i < 200; ++i) {  // a chain
    hierarchy.synset.push_back(i);
    hierarchy.ancestors.append(above);
    above.push_back(i);
  }
  const Hierarchy all = hierarchy;
  const Adjacency held_out = hold_out(hierarchy, 0.2, Rng(1));
  CHECK(std::abs(double(held_out.target.size()) / double(all.pairs()) - 0.2) < 0.01);  // standard deviation: 0.003
  for (Index i = 0; i < all.size(); ++i) {
    std::vector<std::int32_t> both(hierarchy.ancestors[i].begin(), hierarchy.ancestors[i].end());
    CHECK(both.empty() == (i == 0));
    both.insert(both.end(), held_out[i].begin(), held_out[i].end());
    std::sort(both.begin(), both.end());
    CHECK(std::ranges::equal(both, all.ancestors[i]));
  }
  Hierarchy whole = all;
  CHECK(hold_out(whole, 0, Rng(1)).target.empty());
  CHECK(whole.ancestors.target == all.ancestors.target);
}

}  // namespace
}  // namespace test_hierarchy_training
