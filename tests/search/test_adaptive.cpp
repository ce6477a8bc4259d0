// SPDX-License-Identifier: MIT
#include <ruvector/core/executor.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/search/adaptive.hpp>
#include <ruvector/search/hnsw_search.hpp>
#include <ruvector/search/neighbor_scores.hpp>
#include <ruvector/search/scores.hpp>
#include <ruvector/train/adam.hpp>
#include <ruvector/train/fit.hpp>
#include <ruvector/train/gradient_check.hpp>

#include "graph/made_up_hnsw.hpp"
#include "support/allocation_counter.hpp"
#include "support/allocation_failures.hpp"
#include "support/alternating.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace test_adaptive {
namespace {

using namespace ruvector;
using graph::HnswLayers;
using made_up_hnsw::normals;
using search::AdaptiveConfig;
using search::AdaptiveLabels;
using search::AdaptiveResult;
using search::AdaptiveSearch;
using search::router_features;
using search::SearchResult;
using search::SearchRouter;
using Distance = search::SquaredDistance<float>;
using Cosine = search::Cosine<float>;

static_assert(nn::RowMap<SearchRouter<float>>);
static_assert(train::Objective<search::RouterObjective<float>, SearchRouter<float>>);

template <class T>
[[nodiscard]] bool same(const SearchResult<T>& a, const SearchResult<T>& b) {
  return support::same_bits(a.ids.span(), b.ids.span()) && support::same_bits(a.scores.span(), b.scores.span()) &&
         support::same_bits(a.count.span(), b.count.span());
}

// Points that are there twice, and distances that are whole numbers: equal scores everywhere.
[[nodiscard]] Matrix<float> tied(Index n, Index d, Rng& rng) {
  Matrix<float> x(n, d);
  for (float& v : x.span()) v = float(rng.below(4));
  return x;
}

TEST_CASE("adaptive: an expert finds what HnswSearch finds, bit for bit, however long the warm-up was",
          "[search][adaptive]") {
  const std::uint64_t seed = 1;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace workspace;
  AdaptiveResult<float> found;
  SearchResult<float> expected;
  for (const bool ties : {false, true}) {
    auto index = made_up_hnsw::rings(ties ? tied(900, 4, rng) : normals<float>(900, 6, rng), rng);
    for (std::size_t i = 0; i < 900; i += 7) index.marks[i] = true;
    const HnswLayers<float> layers(index);
    const auto queries = ties ? tied(25, 4, rng) : normals<float>(25, 6, rng);
    search::Filter even;
    even.predicate = [](Index id) { return id % 2 == 0; };
    const search::HnswSearch plain(Distance{}, layers);
    Index exactly = 0, more = 0, steps_taken_again = 0;
    for (const Index warm_up : {0, 1, 5, 24, 4000})
      for (const bool filtered : {false, true}) {
        const std::vector<search::SearchExpert> experts = {{0, 3}, {0, 40}, {0, 15}, {0, 2000}};
        const std::span<const search::Filter> filters(&even, filtered ? 1 : 0);
        const AdaptiveSearch all(layers, {.experts = experts, .warm_up = warm_up}, Distance{});
        for (Index e = 0; e < 4; ++e) {
          const Index ef = experts[std::size_t(e)].ef;
          CAPTURE(ties, warm_up, filtered, ef);
          plain.search(queries, {.k = 5, .ef = ef, .filters = filters}, expected, workspace);
          all.search_by(e, queries, {.k = 5, .filters = filters}, found, workspace);
          CHECK(same<float>(found, expected));
          for (Index i = 0; i < queries.rows(); ++i) {
            const Index extra = found.distance_count[i] - expected.distance_count[i];
            exactly += extra == 0 ? 1 : 0;
            more += extra > 0 && warm_up < 30 && !ties ? 1 : 0;
            steps_taken_again += extra < 0 ? 1 : 0;
          }
          // The only expert: to the last distance.
          const AdaptiveSearch one(layers, {.experts = {experts[std::size_t(e)]}, .warm_up = warm_up}, Distance{});
          one.search_by(0, queries, {.k = 5, .filters = filters}, found, workspace);
          CHECK(same<float>(found, expected));
          CHECK(support::same_bits(found.distance_count.span(), expected.distance_count.span()));
        }
      }
    CHECK(steps_taken_again == 0);
    CHECK(exactly > 400);
    // Only the walk with ef = 5 (k) ends within 24 steps.
    if (!ties) CHECK(more <= 2 * 2 * 25);
  }
}

TEST_CASE("adaptive: another score chooses the way, but results are in the order of the first, and hold its scores",
          "[search][adaptive]") {
  const std::uint64_t seed = 2;
  CAPTURE(seed);
  Rng rng(seed);
  const auto index = made_up_hnsw::rings(normals<float>(500, 5, rng), rng);
  const HnswLayers<float> layers(index);
  const auto queries = normals<float>(20, 5, rng);
  Workspace workspace;
  AdaptiveResult<float> found;
  SearchResult<float> best;
  SearchRouter<float> router(3, rng);
  const AdaptiveSearch adaptive(layers, {.experts = {{0, 20}, {1, 30}, {1, 2000}}, .warm_up = 6}, Distance{}, Cosine{});
  search::HnswSearch(Distance{}, layers).search(queries, {.k = 10, .ef = 500}, best, workspace);
  const auto check = [&] {
    for (Index i = 0; i < queries.rows(); ++i)
      for (Index p = 0; p < 10; ++p) {
        const Index node = (found.ids(i, p) - 1000) / 3;
        CHECK(found.scores(i, p) == -simd::squared_distance<float>(queries.row(i), index.points.row(node)));
        if (p > 0) CHECK(found.scores(i, p) <= found.scores(i, p - 1));
        if (p > 0) CHECK(found.ids(i, p) != found.ids(i, p - 1));
      }
  };
  adaptive.search_by(1, queries, {.k = 10}, found, workspace);
  check();
  // All nodes were seen and scored, so the true ones are found, at the price of both scores.
  adaptive.search_by(2, queries, {.k = 10}, found, workspace);
  CHECK(same<float>(found, best));
  for (const Index count : found.distance_count) CHECK(count >= 500 + 500);
  // Of two with the same score the broader one searches; two scores add up.
  router.mlp.layers[1].weight = Matrix<float>(3, 32);
  router.mlp.layers[1].bias[0] = 1;
  AdaptiveResult<float> alone;
  adaptive.search_by(0, queries, {.k = 10}, alone, workspace);
  for (const Index other : {1, 2}) {
    router.mlp.layers[1].bias[1] = other == 1 ? 0.5f : -1.0f;
    adaptive.search(queries, router, {.k = 10, .choices = 2}, found, workspace);
    check();
    for (Index i = 0; i < queries.rows(); ++i) {
      CHECK(found.expert(i, 0) == 0);
      CHECK(found.expert(i, 1) == other);
      CHECK(found.gate(i, 0) == Approx(1 / (1 + std::exp(router.mlp.layers[1].bias[other] - 1))));
      CHECK(found.gate(i, 0) + found.gate(i, 1) == Approx(1));
      CHECK(found.distance_count[i] > alone.distance_count[i]);
      for (Index p = 0; p < 10; ++p) CHECK(found.scores(i, p) >= alone.scores(i, p));
    }
  }
  const AdaptiveSearch efs(layers, {.experts = {{0, 20}, {0, 60}}, .warm_up = 6}, Distance{});
  SearchRouter<float> any(2, rng);
  efs.search(queries, any, {.k = 10, .choices = 2}, found, workspace);
  efs.search_by(1, queries, {.k = 10}, alone, workspace);
  CHECK(same<float>(found, alone));
  CHECK(support::same_bits(found.distance_count.span(), alone.distance_count.span()));
}

TEST_CASE("adaptive: what has been merged is worth a distance in the order of the shared softmax",
          "[search][adaptive]") {
  using Scored = search::detail::Scored<double>;
  Workspace workspace;
  auto frame = workspace.frame();
  const std::vector<Scored> a = {{10, 1}, {8, 2}, {5, 3}}, b = {{0.3, 2}, {0.1, 4}};
  search::detail::MergedCandidates<double> candidates(frame, 8);
  candidates.add(a, 0.6);
  candidates.add(b, 0.4);
  // g log softmax(s/range), one that is not in a list counted as its last.
  const auto log_softmax = [](const std::vector<Scored>& list, std::uint32_t node) {
    double least = 1e9, most = -1e9, sum = 0, own = 1e9;
    for (const Scored x : list) {
      least = std::min(least, x.score);
      most = std::max(most, x.score);
      if (x.node == node) own = x.score;
    }
    for (const Scored x : list) sum += std::exp(x.score / (most - least));
    return std::min(own, own > 1e8 ? least : own) / (most - least) - std::log(sum);
  };
  const auto found = candidates.best(8);
  REQUIRE(found.size() == 4);
  const auto value = [&](std::uint32_t node) { return 0.6 * log_softmax(a, node) + 0.4 * log_softmax(b, node); };
  for (const Scored x : found) CHECK(x.score - found[0].score == Approx(value(x.node) - value(found[0].node)));
  CHECK(found[0].node == 2);
  CHECK(found[1].node == 1);
}

// Queries near a dense cluster of points are easy, those between the points hard: a feature says which is which.
struct Task {
  HnswLayers<float> layers;
  Matrix<float> queries;
  SearchResult<float> truth;
  AdaptiveLabels<float> labels;

  explicit Task(Rng& rng, Index n = 1500, Index asked = 400) : queries(asked, 8) {
    auto points = normals<float>(n, 8, rng);
    for (Index i = 0; i < n; i += 2)
      for (float& x : points.row(i)) x = 6 + 0.05f * x;
    layers = HnswLayers<float>(made_up_hnsw::rings(std::move(points), rng));
    queries = normals<float>(asked, 8, rng);
    for (Index i = 0; i < asked; i += 2)
      for (float& x : queries.row(i)) x = 6 + 0.05f * x;
  }
};

TEST_CASE(
    "adaptive: a router trained on labels that depend on a feature chooses by it, resumed or on other threads too",
    "[search][adaptive]") {
  const std::uint64_t seed = 3;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace workspace;
  Task task(rng);
  const AdaptiveSearch adaptive(task.layers, {.experts = {{0, 8}, {0, 30}, {0, 120}}, .warm_up = 8}, Distance{});
  search::HnswSearch(Distance{}, task.layers).search(task.queries, {.k = 5, .ef = 1500}, task.truth, workspace);
  adaptive.label(task.queries, {.k = 5}, task.truth, task.labels, workspace);
  // Labels are what they say.
  AdaptiveResult<float> found;
  for (Index e = 0; e < 3; ++e) {
    adaptive.search_by(e, task.queries, {.k = 5}, found, workspace);
    for (Index i = 0; i < 400; i += 37) {
      Index hits = 0;
      for (const Index id : found.ids.row(i)) hits += std::ranges::count(task.truth.ids.row(i), id);
      CHECK(task.labels.recall(i, e) == float(hits) / 5);
      CHECK(task.labels.cost(i, e) == float(found.distance_count[i]));
      CHECK(found.expert(i, 0) == e);
    }
  }
  // In place of those, which a feature decides only in part: the third expert where the first distance is large.
  std::vector<float> first;
  for (Index i = 0; i < 400; ++i) first.push_back(task.labels.features(i, 1));
  std::ranges::nth_element(first, first.begin() + 200);
  const auto hard = [&](Index i) { return task.labels.features(i, 1) < first[200]; };  // scores, so smaller is further
  for (Index i = 0; i < 400; ++i)
    for (Index e = 0; e < 3; ++e) {
      task.labels.recall(i, e) = hard(i) && e < 2 ? 0.0f : 1.0f;
      task.labels.cost(i, e) = float(100 + 300 * e);
    }
  const auto targets = search::router_targets(task.labels, {.cost_weight = 0.5});
  CHECK(targets(0, 0) + targets(0, 1) + targets(0, 2) == Approx(1));
  SearchRouter<float> start(3, rng);
  start.standardize(task.labels.features);
  const search::RouterObjective<float> objective{task.labels.features, targets, {.balance = 1e-3}};
  const auto trained = [&](ThreadPool&& pool, Index epochs) {
    train::FitState state(start, train::Adam(start, {.learning_rate = 0.01}), Rng(5));
    for (const Index stop : {epochs, Index(30)})
      train::fit(state, 300, objective, {.epochs = stop, .batch_size = 32, .micro_batch = 8}, {}, pool);
    return state.model;
  };
  const SearchRouter<float> router = trained(ThreadPool(1), 30);
  for (const SearchRouter<float>& other : {trained(ThreadPool(3), 30), trained(ThreadPool(1), 7)})
    for_each_parameter([](std::string_view, auto x, auto y) { CHECK(support::same_bits(x, y)); }, router, other);
  adaptive.search(task.queries, router, {.k = 5}, found, workspace);
  Index right = 0;
  for (Index i = 300; i < 400; ++i) right += found.expert(i, 0) == (hard(i) ? 2 : 0) ? 1 : 0;
  CHECK(right >= 97);
}

// Promise P-01.
TEST_CASE("adaptive: the gradient of a router's loss is right", "[search][adaptive][gradient]") {
  const std::uint64_t seed = 4;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace workspace;
  for (int trial = 0; trial < 20; ++trial) {
    const Index rows = trial == 0 ? 1 : 1 + rng.below(7), experts = trial < 2 ? 1 : 1 + rng.below(5);
    CAPTURE(trial, rows, experts);
    SearchRouter<double> router(experts, rng, 1 + rng.below(6));
    auto x = normals<double>(rows, router_features, rng, 3.0), targets = normals<double>(rows, experts, rng);
    const auto others = normals<double>(30, router_features, rng, 2.0);
    router.standardize(others);
    for (Index i = 0; i < rows; ++i) {
      double sum = 0;
      for (double& t : targets.row(i)) sum += t = std::exp(t);
      for (double& t : targets.row(i)) t /= sum;
    }
    const search::RouterLossConfig config{.balance = 0.3, .z = 0.05};
    const auto loss = [&](const SearchRouter<double>& r, MatrixView<const double> in) {
      Matrix<double> logits(rows, experts);
      r.forward(in, logits, workspace);
      return search::router_loss<double>(logits, targets, {}, workspace, config).sum;
    };
    Matrix<double> logits(rows, experts), d_logits(rows, experts), d_x(rows, router_features);
    auto gradient = zeros_like(router);
    router.forward(x, logits, workspace);
    (void)search::router_loss<double>(logits, targets, d_logits, workspace, config);
    router.backward(x, d_logits, d_x, gradient, workspace);
    const auto by_parameters =
        train::check_module_gradient([&](const SearchRouter<double>& r) { return loss(r, x); }, router, gradient);
    INFO(to_string(by_parameters));
    CHECK(by_parameters.passed);
    const auto by_input = train::check_gradient(
        [&](std::span<const double> moved) {
          return loss(router, {moved.data(), rows, router_features});
        },
        x.span(), d_x.span());
    INFO(to_string(by_input));
    CHECK(by_input.passed);
    // The objective is this, for the samples that are named.
    const search::RouterObjective<double> objective{x, targets, config};
    auto again = zeros_like(router);
    std::vector<Index> samples;
    for (Index i = 0; i < rows; ++i) samples.push_back(i);
    train::FitContext context{Rng(1), workspace, 0};
    CHECK(objective(router, samples, again, context).sum == loss(router, x));
    for_each_parameter([](std::string_view, auto a, auto b) { CHECK(support::same_bits(a, b)); }, gradient, again);
  }
}

TEST_CASE("adaptive: the same in any batch, on any threads; the second call allocates nothing", "[search][adaptive]") {
  const std::uint64_t seed = 5;
  CAPTURE(seed);
  Rng rng(seed);
  const HnswLayers<float> layers(made_up_hnsw::rings(normals<float>(1200, 9, rng), rng));
  const auto queries = normals<float>(40, 9, rng);
  SearchRouter<float> router(4, rng);
  const AdaptiveSearch adaptive(layers, {.experts = {{0, 10}, {0, 50}, {1, 20}, {0, 30}}, .warm_up = 10}, Distance{},
                                Cosine{});
  Workspace workspace;
  Matrix<float> features(40, router_features), row(1, router_features);
  adaptive.features(queries, features, workspace);
  router.standardize(features);
  const auto equal = [](const AdaptiveResult<float>& a, Index i, const AdaptiveResult<float>& b, Index j) {
    return support::same_bits(a.ids.row(i), b.ids.row(j)) && support::same_bits(a.scores.row(i), b.scores.row(j)) &&
           support::same_bits(a.expert.row(i), b.expert.row(j)) && support::same_bits(a.gate.row(i), b.gate.row(j)) &&
           a.distance_count[i] == b.distance_count[j];
  };
  for (const Index choices : {1, 2}) {
    const search::AdaptiveSearchConfig config{.k = 7, .choices = choices};
    AdaptiveResult<float> all, part;
    adaptive.search(queries, router, config, all, workspace);
    std::vector<bool> used(4);
    for (Index i = 0; i < 40; ++i) used[std::size_t(all.expert(i, 0))] = true;
    CHECK(std::ranges::count(used, true) > 1);
    for (const Index threads : {2, 5}) {
      ThreadPool pool(threads);
      adaptive.search(queries, router, config, part, workspace, pool);
      for (Index i = 0; i < 40; ++i) CHECK(equal(part, i, all, i));
    }
    for (Index i = 0; i < 40; i += 9) {
      adaptive.search(queries.view().rows(i, 1), router, config, part, workspace);
      CHECK(equal(part, 0, all, i));
      adaptive.features(queries.view().rows(i, 1), row, workspace);
      CHECK(support::same_bits(row.row(0), features.row(i)));
    }
    support::Alternating pool;
    const auto call = [&] {
      adaptive.search(queries, router, config, all, workspace, pool);
      adaptive.features(queries, features, workspace, pool);
    };
    call();
    CHECK(support::allocations_in(call) == 0);
  }
}

TEST_CASE("adaptive: NaN finds nothing, k > n pads, nothing is found in nothing; the rest is refused",
          "[search][adaptive]") {
  Rng rng(6);
  Workspace workspace;
  AdaptiveResult<float> result;
  SearchRouter<float> router(2, rng);
  const AdaptiveConfig config{.experts = {{0, 4}, {1, 9}}, .warm_up = 3};
  for (const Index n : {0, 1, 3})
    for (const Index batch : {0, 1, 4})
      for (const Index k : {0, 1, 5})
        for (const Index choices : {1, 2}) {
          CAPTURE(n, batch, k, choices);
          const HnswLayers<float> layers(made_up_hnsw::rings(Matrix<float>(n, 2, 1.0f), rng));
          Matrix<float> queries(batch, 2, 1.0f), features(batch, router_features, 7.0f);
          if (batch == 4) queries(2, 1) = NAN;
          const AdaptiveSearch adaptive(layers, config, Distance{}, Cosine{});
          adaptive.search(queries, router, {.k = k, .choices = choices}, result, workspace);
          adaptive.features(queries, features, workspace);
          for (const float x : features.span()) CHECK(std::isfinite(x));
          REQUIRE(result.ids.rows() == batch);
          for (Index i = 0; i < batch; ++i) {
            const Index found = batch == 4 && i == 2 ? 0 : std::min(n, k);
            CHECK(result.count[i] == found);
            CHECK((result.expert(i, 0) == -1) == (n == 0 || k == 0 || (batch == 4 && i == 2)));
            for (Index p = 0; p < k; ++p) {
              CHECK(result.ids(i, p) == (p < found ? 1000 + 3 * p : -1));
              CHECK(result.scores(i, p) == (p < found ? 0.0f : -std::numeric_limits<float>::infinity()));
            }
          }
        }
  // A point with NaN is never found, a router of NaN takes the first.
  auto index = made_up_hnsw::rings(normals<float>(60, 3, rng), rng);
  for (Index i = 0; i < 60; i += 4) index.points(i, 1) = NAN;
  const HnswLayers<float> layers(index);
  const AdaptiveSearch adaptive(layers, config, Distance{}, Cosine{});
  const auto queries = normals<float>(6, 3, rng);
  router.norm.beta[0] = NAN;
  adaptive.search(queries, router, {.k = 60}, result, workspace);
  for (Index i = 0; i < 6; ++i) {
    CHECK(result.expert(i, 0) == 0);
    CHECK(result.count[i] > 0);
    for (Index p = 0; p < result.count[i]; ++p) CHECK(((result.ids(i, p) - 1000) / 3) % 4 != 0);
  }
  adaptive.search_by(1, queries, {.k = 60}, result, workspace);
  for (Index i = 0; i < 6; ++i)
    for (Index p = 0; p < result.count[i]; ++p) CHECK(((result.ids(i, p) - 1000) / 3) % 4 != 0);

  const SearchRouter<float> wrong(3, rng);
  const Matrix<float> narrow(6, 2);
  Matrix<float> few(5, router_features);
  AdaptiveLabels<float> labels;
  CHECK_THROWS_AS(adaptive.search(queries, wrong, {}, result, workspace), ShapeError);
  CHECK_THROWS_AS(adaptive.search(narrow, router, {}, result, workspace), ShapeError);
  CHECK_THROWS_AS(adaptive.search(queries, router, {.k = -1}, result, workspace), ConfigError);
  CHECK_THROWS_AS(adaptive.search(queries, router, {.choices = 0}, result, workspace), ConfigError);
  CHECK_THROWS_AS(adaptive.search(queries, router, {.choices = 3}, result, workspace), ConfigError);
  CHECK_THROWS_AS(adaptive.search_by(2, queries, {}, result, workspace), ConfigError);
  CHECK_THROWS_AS(adaptive.features(queries, few, workspace), ShapeError);
  CHECK_THROWS_AS(adaptive.label(queries, {.k = 3}, result, labels, workspace), ShapeError);
  CHECK_THROWS_AS((AdaptiveSearch(layers, {.experts = {}}, Distance{})), ConfigError);
  CHECK_THROWS_AS((AdaptiveSearch(layers, {.experts = {{0, 0}}}, Distance{})), ConfigError);
  CHECK_THROWS_AS((AdaptiveSearch(layers, {.experts = {{1, 5}}}, Distance{})), ConfigError);
  CHECK_THROWS_AS((AdaptiveSearch(layers, {.warm_up = -1}, Distance{})), ConfigError);
  CHECK_THROWS_AS(SearchRouter<float>(0, rng), ConfigError);
  CHECK_THROWS_AS(router_targets(labels, {.temperature = 0}), ConfigError);
  CHECK_THROWS_AS(router_targets(labels, {.cost_weight = -1}), ConfigError);
}

// Promise P-36.
TEST_CASE("adaptive: any allocation may fail, and the same call finds the same then", "[search][adaptive]") {
  const std::uint64_t seed = 36;
  CAPTURE(seed);
  Rng rng(seed);
  const HnswLayers<float> layers(made_up_hnsw::rings(normals<float>(200, 5, rng), rng));
  const auto queries = normals<float>(6, 5, rng);
  const SearchRouter<float> router(3, rng);
  const AdaptiveSearch adaptive(layers, {.experts = {{0, 10}, {0, 30}, {1, 20}}, .warm_up = 5}, Distance{}, Cosine{});
  struct Run {
    AdaptiveResult<float> result = {};
    Workspace workspace = {};
  };
  const auto call = [&](Run& run) {
    adaptive.search(queries, router, {.k = 4, .choices = 2}, run.result, run.workspace);
  };
  Run expected;
  call(expected);
  support::check_allocation_failures(
      "AdaptiveSearch", [] { return Run(); }, call,
      [&](const Run& run) {
        return same<float>(run.result, expected.result) &&
               support::same_bits(run.result.expert.span(), expected.result.expert.span());
      });
}

}  // namespace
}  // namespace test_adaptive
