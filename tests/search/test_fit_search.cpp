// SPDX-License-Identifier: MIT
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/core/executor.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/search/fit_search.hpp>
#include <ruvector/search/hierarchical_v2.hpp>
#include <ruvector/train/adam.hpp>
#include <ruvector/train/gradient_check.hpp>
#include <ruvector/train/state.hpp>

#include "search/near_hnsw.hpp"
#include "support/allocation_failures.hpp"
#include "support/catch.hpp"
#include "support/trials.hpp"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace test_fit_search {
namespace {

using namespace ruvector;
using graph::HnswLayers;
using made_up_hnsw::normals;
using search::FitSearchConfig;
using search::SearchTargets;
using search::SquaredDistance;

template <class T>
using Layer = search::SearchLayer<attention::ScaledDotProduct<T>>;
template <class T>
using Model = search::SearchModel<Layer<T>>;
using State = search::FitSearchState<Layer<double>, train::Adam<Model<double>>>;

static_assert(Module<Model<double>>);
static_assert(train::Checkpointable<State>);

template <class T>
Model<T> untrained(Index count, Index d, double unit, Rng& rng) {
  Model<T> model;
  for (Index l = 0; l < count; ++l) model.layers.push_back(Layer<T>({.dim = d, .unit = unit}, {}, rng));
  return model;
}

// Promise P-01.
TEST_CASE("fit_search: gradients of all that is learned, through all steps", "[search][hierarchical]") {
  Index learned_to_end = 0;
  for (Index trial = 0; trial < 20; ++trial) {
    const std::uint64_t seed = 100 + std::uint64_t(trial);
    CAPTURE(seed);
    Rng rng(seed);
    const Index n = trial == 0 ? 2 : 40, d = 1 + trial % 3;
    const HnswLayers<double> layers(near_hnsw::build(normals<double>(n, d, rng), 3, rng));
    const auto queries = normals<double>(1, d, rng);
    const SquaredDistance<double> score;
    Workspace workspace;
    const SearchTargets targets = search::nearest_targets(score, queries, layers, 3, workspace);
    FitSearchConfig config;
    config.search = {.k = 3, .ef = 6, .beam = 2, .rounds = 3};
    config.positives = 2;
    config.end = 0.9;
    config.worth = 2;
    config.end_temperature = 0.7;
    config.negatives = 5;
    config.rank_temperature = 1.5;
    config.route_temperature = 0.8;
    auto model = untrained<double>(1 + trial % 2, d, 1.3, rng);
    for_each_parameter(
        [&](std::string_view, std::span<double> x) {
          for (double& v : x) v += 0.3 * rng.normal();
        },
        model);
    search::detail::SearchLoss<SquaredDistance<double>, Layer<double>> loss(score, queries, layers, targets, config,
                                                                            model, 1);
    typename decltype(loss)::Scratch scratch;
    loss.walk(0, scratch, Rng(3), workspace);
    REQUIRE(scratch.record.steps.size() == std::size_t(n < 10 ? 1 : scratch.record.steps.size()));
    auto gradient = zeros_like(model);
    (void)loss.loss(model, 0, scratch, Rng(7), gradient, workspace, true);
    const auto of = [&](const Model<double>& moved) {
      auto unused = zeros_like(moved);
      return loss.loss(moved, 0, scratch, Rng(7), unused, workspace, true);
    };
    const auto check = train::check_module_gradient(of, model, gradient, {.step = 1e-5});
    INFO(to_string(check));
    CHECK(check.passed);

    learned_to_end += gradient.layers.back().stop[1] != 0 ? 1 : 0;
  }
  CHECK(learned_to_end > 10);
}

// Points in clusters far apart, so that the way matters.
struct Problem {
  Rng rng{5};
  HnswLayers<double> layers;
  Matrix<double> queries, others;
  SearchTargets targets, held_out;
  FitSearchConfig config;
  SquaredDistance<double> score;

  Problem() {
    const Index n = 1200, d = 8;
    Matrix<double> centres = normals<double>(30, d, rng, 2.0), points = normals<double>(n, d, rng, 0.7);
    for (Index i = 0; i < n; ++i)
      for (Index c = 0; c < d; ++c) points(i, c) += centres(i % 30, c);
    const auto near = [&](Index count) {
      Matrix<double> x = normals<double>(count, d, rng, 0.3);
      for (Index i = 0; i < count; ++i) {
        const Index at = rng.below(n);
        for (Index c = 0; c < d; ++c) x(i, c) += points(at, c);
      }
      return x;
    };
    queries = near(256);
    others = near(200);
    layers = HnswLayers<double>(near_hnsw::build(std::move(points), 8, rng));
    Workspace workspace;
    targets = search::nearest_targets(score, queries, layers, 10, workspace);
    held_out = search::nearest_targets(score, others, layers, 10, workspace);
    config.search = {.k = 10, .ef = 32, .beam = 1};
    config.fit.epochs = 4;
    config.rank = 0;  // what is relevant is what is near: it would teach nothing new
    config.fit.batch_size = 8;
  }
  [[nodiscard]] State start(double learning_rate = 0.01) const {
    Rng own(11);
    const auto model = untrained<double>(2, 8, 8, own);
    return State(model, train::Adam(model, {.learning_rate = learning_rate}), own);
  }
  template <class E = Serial>
  train::FitResult fit(State& state, E&& executor = Serial{}, const search::FitSearchHooks<State>& hooks = {},
                       const Progress& progress = {}, const std::stop_token& stop = {}) const {
    return search::fit_search(state, score, queries, layers, targets, config, hooks, executor, progress, stop);
  }
  // Recall and scores a query, of queries that were not trained on.
  std::pair<double, double> measure(const Model<double>& model, Index ef) const {
    Workspace workspace;
    search::SearchResult<double> found;
    search::hierarchical_forward_v2(score, others, layers, std::span(model.layers), {.k = 10, .ef = ef, .beam = 1},
                                    found, workspace);
    double right = 0, cost = 0;
    for (Index i = 0; i < others.rows(); ++i) {
      cost += double(found.distance_count[i]);
      for (Index p = 0; p < 10; ++p)
        right += double(std::count(held_out.ids.begin() + 10 * i, held_out.ids.begin() + 10 * i + 10, found.ids(i, p)));
    }
    return {right / 2000, cost / 200};
  }
};

// Everything a state remembers, byte by byte.
std::string bytes(const State& state) {
  std::string all;
  train::for_each_state(
      [&](std::string_view path, auto span) {
        all += path;
        all.append(reinterpret_cast<const char*>(span.data()), span.size_bytes());
      },
      state);
  return all;
}

TEST_CASE("fit_search: learns when to end, and where to go, in rounds on its own ways", "[search][hierarchical]") {
  Problem p;
  p.config.search.ef = 160;
  std::vector<std::pair<double, double>> curve;
  const Model<double> plain = p.start().training.model;
  for (const Index ef : {10, 16, 24, 32, 48, 64, 100, 160}) curve.push_back(p.measure(plain, ef));
  // Evaluations over those that plain search makes at equal recall, with attention left out, which asks twice.
  const auto cost_of = [&](Model<double> model) {
    for (auto& layer : model.layers) layer.gain = 0;
    const auto [recall, cost] = p.measure(model, 64);
    std::size_t at = 1;
    while (at + 1 < curve.size() && curve[at].first < recall) ++at;
    const auto low = curve[at - 1], high = curve[at];
    const double of_plain = low.second + (recall - low.first) / (high.first - low.first) * (high.second - low.second);
    UNSCOPED_INFO("recall " << recall << ", evaluations " << cost << ", of plain search " << of_plain);
    CHECK(recall > 0.93);
    return cost / of_plain;
  };
  State state = p.start(0.05);
  std::vector<double> losses;
  Index reports = 0, total = 0;
  const auto result =
      p.fit(state, Serial{}, {.validate = {}, .epoch = [&](const train::EpochReport& e) { losses.push_back(e.loss); }},
            [&](const ProgressReport& report) { ++reports, total = report.total; });
  CHECK(result.end == train::FitEnd::finished);
  REQUIRE(losses.size() == 8);
  CHECK(losses.back() < 0.8 * losses.front());
  CHECK(reports == 256);  // epochs · batches
  CHECK(total == reports);
  CHECK(state.round == 1);
  CHECK(state.policy.layers[1].stop[0] != 0);
  CHECK(state.policy.layers[1].stop[0] != state.training.model.layers[1].stop[0]);
  CHECK(cost_of(state.training.model) < 0.7);

  State ending = p.start(0.05);
  p.config.route = 0;
  (void)p.fit(ending);
  CHECK(ending.training.model.layers[1].by_metric());
  CHECK(cost_of(ending.training.model) < 0.85);
}

TEST_CASE("fit_search: a target that no way leads to is no reason to go on", "[search][hierarchical]") {
  Problem p;
  p.config.route = 0;
  p.config.search.ef = 24;
  const Model<double> model = p.start().training.model;
  using Loss = search::detail::SearchLoss<SquaredDistance<double>, Layer<double>>;
  Workspace workspace;
  const auto gradient_of = [&](const SearchTargets& targets, std::vector<graph::HnswNode>& seen) {
    const Loss loss(p.score, p.queries.view().rows(0, 1), p.layers, targets, p.config, model, 1);
    typename Loss::Scratch scratch;
    loss.walk(0, scratch, Rng(3), workspace);
    seen.assign(scratch.record.node.begin() + scratch.record.steps.back().first, scratch.record.node.end());
    auto gradient = zeros_like(model);
    (void)loss.loss(model, 0, scratch, Rng(7), gradient, workspace);
    return std::vector<double>(gradient.layers[1].stop.begin(), gradient.layers[1].stop.end());
  };
  SearchTargets targets{{0, 10}, {p.targets.ids.begin(), p.targets.ids.begin() + 10}, {}};
  std::vector<graph::HnswNode> seen;
  const auto expected = gradient_of(targets, seen);
  CHECK(expected[1] != 0);
  for (std::size_t node = 0; targets.ids.size() < 15; ++node)
    if (std::ranges::count(seen, graph::HnswNode(node)) == 0) targets.ids.push_back(p.layers.ids()[node]);
  targets.offsets.back() = 15;
  CHECK(gradient_of(targets, seen) == expected);
  // One that was met counts.
  for (std::size_t j = 0; targets.ids.size() < 16; ++j)
    if (const Index id = p.layers.ids()[seen[seen.size() - 1 - j]]; std::ranges::count(targets.ids, id) == 0)
      targets.ids.push_back(id);
  targets.offsets.back() = 16;
  CHECK(gradient_of(targets, seen) != expected);
}

TEST_CASE("fit_search: ways can be drawn, to see others than the best", "[search][hierarchical]") {
  Problem p;
  const Model<double> model = p.start().training.model;
  using Loss = search::detail::SearchLoss<SquaredDistance<double>, Layer<double>>;
  Workspace workspace;
  const auto way = [&](double exploration, std::uint64_t seed) {
    p.config.exploration = exploration;
    const Loss loss(p.score, p.queries, p.layers, p.targets, p.config, model, 1);
    typename Loss::Scratch scratch;
    loss.walk(3, scratch, Rng(seed), workspace);
    return scratch.record.node;
  };
  const auto best = way(0, 1);
  CHECK(way(1e-12, 1) == best);
  CHECK(way(1, 1) != best);
  CHECK(way(1, 1) == way(1, 1));
  CHECK(way(1, 1) != way(1, 2));
  p.config.exploration = -1;
  State state = p.start();
  CHECK_THROWS_AS(p.fit(state), ConfigError);
}

// Promises P-15, P-20.
TEST_CASE("fit_search: the same bits on two threads, and after a stop", "[search][hierarchical]") {
  Problem p;
  p.config.fit.epochs = 1;
  p.config.search.ef = 12;
  p.config.rank = 1;
  p.config.exploration = 0.3;
  State whole = p.start(), again = p.start();
  std::optional<State> saved;
  (void)p.fit(whole, Serial{}, {.checkpoint = [&](const State& state) {
                if (!saved) saved = state;
              }});
  const std::string expected = bytes(whole);
  (void)p.fit(again, ThreadPool(2));
  CHECK(bytes(again) == expected);
  REQUIRE(saved);
  CHECK(saved->round == 0);
  (void)p.fit(*saved);
  CHECK(bytes(*saved) == expected);
  std::stop_source stop;
  State stopped = p.start();
  const auto result = p.fit(
      stopped, Serial{}, {},
      [&](const ProgressReport& report) {
        if (report.done == 40) stop.request_stop();
      },
      stop.get_token());
  CHECK(result.end == train::FitEnd::cancelled);
  CHECK(stopped.round == 1);
  (void)p.fit(stopped);
  CHECK(bytes(stopped) == expected);
}

TEST_CASE("fit_search: refuses what does not fit", "[search][hierarchical]") {
  Problem p;
  State state = p.start();
  p.targets.ids[3] = 7;  // no point has this id
  CHECK_THROWS_AS(p.fit(state), ShapeError);
  p.targets.ids[3] = 1000;
  p.targets.offsets.pop_back();
  CHECK_THROWS_AS(p.fit(state), ShapeError);
  p.config.rounds = 0;
  CHECK_THROWS_AS(p.fit(state), ConfigError);
  p.config = {.beam_temperature = 0};
  CHECK_THROWS_AS(p.fit(state), ConfigError);
  CHECK(bytes(state) == bytes(p.start()));
}

// Promise P-36: no step is lost or made twice.
TEST_CASE("fit_search: any allocation may fail, and the same call goes on to the same bits", "[search][hierarchical]") {
  const std::uint64_t seed = 36;
  CAPTURE(seed);
  Rng rng(seed);
  const HnswLayers<double> layers(near_hnsw::build(normals<double>(40, 3, rng), 3, rng));
  const auto queries = normals<double>(4, 3, rng);
  const SquaredDistance<double> score;
  Workspace workspace;
  const SearchTargets targets = search::nearest_targets(score, queries, layers, 3, workspace);
  FitSearchConfig config;
  config.fit.epochs = 1;
  config.fit.batch_size = 2;
  config.search = {.k = 3, .ef = 6, .beam = 2, .rounds = 3};
  const auto model = untrained<double>(2, 3, 1, rng);
  const State start(model, train::Adam(model, {.learning_rate = 0.01}), rng);
  const auto call = [&](State& state) { (void)search::fit_search(state, score, queries, layers, targets, config); };
  State expected = start;
  call(expected);
  const std::string wanted = bytes(expected);
  REQUIRE(wanted != bytes(start));
  support::check_allocation_failures(
      "fit_search", [&] { return start; }, call, [&](const State& state) { return bytes(state) == wanted; });
}

}  // namespace
}  // namespace test_fit_search
