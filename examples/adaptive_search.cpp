// SPDX-License-Identifier: MIT
//
// Do easy queries pay for hard ones? A router sees the first steps of a walk over an HNSW index and decides how broad
// the rest shall be.
//
//   adaptive_search --index FILE         Fashion-MNIST, an index of hnswlib's (built once, a minute, into FILE)
//   adaptive_search --quick              a small index, one seed: the check
//
// The queries are the 10,000 test pictures, recall@10 is that of ann-benchmarks (a place counts where its distance is
// at most that of the tenth neighbour), cost is the number of distances (DCS), all that the warm-up sees included. For
// each seed the queries are split anew: 60 % to train, 20 % to choose the epoch, 20 % to report. Arms, each a curve of
// recall and cost which is read at the wanted mean recall (a mix of the two settings around it has just that):
//
//   single    one ef for all queries, on a dense grid
//   random    the experts that the router chose, dealt out at random
//   linear    a linear regression of the log of the cost that a query needs on the same features (after Li et al. 2020,
//             "Improving approximate nearest neighbor search through learned adaptive early termination"), and the
//             broadest expert within the budget; the curve is by a factor of all budgets
//   router    search::SearchRouter, trained for one λ after the other
//   oracle    the cheapest expert that reaches r*, known beforehand and without warm-up; the curve is by r*
//   limit     the expert with the best recall − λ cost, known beforehand: it gives up where that pays
//
//   gap closed = (cost of single − cost of the arm)/(cost of single − cost of oracle)

#include "support/command_line.hpp"
#include "support/fashion_mnist.hpp"
#include "support/interrupt.hpp"
#include "support/intervals.hpp"
#include "support/svg.hpp"
#include "support/text_files.hpp"

#include <ruvector/core/executor.hpp>
#include <ruvector/search/adaptive.hpp>
#include <ruvector/search/exact_search.hpp>
#include <ruvector/search/hnsw_search.hpp>
#include <ruvector/search/neighbor_scores.hpp>
#include <ruvector/search/scores.hpp>
#include <ruvector/train/adam.hpp>
#include <ruvector/train/fit.hpp>

#include <CLI/CLI.hpp>
#include <Eigen/Cholesky>

#if __has_include(<hnswlib/hnswlib.h>)
#include "support/hnsw_index.hpp"

#include <ruvector/io/hnswlib_file.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace examples;
using namespace ruvector;
using Distance = search::SquaredDistance<float>;
using Adaptive = search::AdaptiveSearch<Distance, search::Cosine<float>>;
using Router = search::SearchRouter<float>;
using Labels = search::AdaptiveLabels<float>;

constexpr Index k = 10;

struct Options {
  std::string fashion_mnist = fashion_mnist::default_directory(), index, csv, svg;
  std::vector<Index> ef = {10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 400};
  std::vector<Index> cosine_ef;
  std::vector<double> targets = {0.95, 0.99}, lambdas = {0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10};
  Index points = 60000, queries = 10000, links = 16, ef_construction = 200, seeds = 5, warm_up = 24, epochs = 60;
  double temperature = 0.1;
  Index threads = std::max(1, int(std::thread::hardware_concurrency()));
  bool quick = false;
};

/// What some setting did for each query.
struct Outcome {
  std::vector<double> recall, cost;
  std::vector<double> usage;  ///< of the experts, by share

  [[nodiscard]] double mean_recall() const { return mean_interval(recall).mean; }
  [[nodiscard]] double mean_cost() const { return mean_interval(cost).mean; }
};

/// Settings from cheap to dear.
using Settings = std::vector<Outcome>;

/// The mix of two neighbouring settings that has a mean recall.
struct Mix {
  std::size_t low = 0, high = 0;
  double share = 0;  ///< of the high one
  bool reached = false;

  Mix(const Settings& settings, double target) {
    for (std::size_t s = settings.size(); s-- > 1 && !reached;) {
      const double below = settings[s - 1].mean_recall(), above = settings[s].mean_recall();
      if (!(below < target && target <= above)) continue;
      low = s - 1;
      high = s;
      share = (target - below) / (above - below);
      reached = true;
    }
    if (!reached && !settings.empty() && settings[0].mean_recall() >= target) reached = true;
  }
  /// The mean of a number that each setting has.
  template <class F>
  [[nodiscard]] double mean(F&& number) const {
    return (1 - share) * number(low) + (share > 0 ? share * number(high) : 0);
  }
  [[nodiscard]] double cost(const Settings& settings) const {
    return mean([&](std::size_t s) { return settings[s].mean_cost(); });
  }
  /// The quantile of a number that each query has in each setting.
  [[nodiscard]] double quantile(double q, const std::vector<double>& in_low, const std::vector<double>& in_high) const {
    std::vector<std::pair<double, double>> weighed;
    for (const double x : in_low) weighed.emplace_back(x, 1 - share);
    for (const double x : in_high) weighed.emplace_back(x, share);
    std::ranges::sort(weighed);
    double sum = 0;
    for (const auto& [x, weight] : weighed)
      if ((sum += weight) >= q * double(in_low.size())) return x;
    return weighed.back().first;
  }
  [[nodiscard]] std::vector<double> usage(const Settings& settings) const {
    std::vector<double> shares(settings[low].usage.size());
    for (std::size_t e = 0; e < shares.size(); ++e)
      shares[e] = mean([&](std::size_t s) { return settings[s].usage[e]; });
    return shares;
  }
};

/// The data, an index and all that any arm would have found.
struct Problem {
  Matrix<float> points, queries;
  std::vector<std::uint8_t> classes;
  graph::HnswLayers<float> layers;
  search::SearchResult<float> truth;
  std::vector<Index> grid;     ///< the efs of single
  Matrix<float> recall, cost;  ///< [B×grid] of HnswSearch
  Labels labels;
  Labels foreseen;  ///< the same of experts that are known to be right beforehand: without warm-up
};

graph::HnswLayers<float> index_of(const Options& options, MatrixView<const float> points) {
  if (!options.index.empty() && std::filesystem::exists(options.index)) return io::read_hnswlib<float>(options.index);
  HnswlibIndex index(points, options.links, options.ef_construction);
  if (!options.index.empty() && !interrupted()) index.save(options.index);
  return graph::HnswLayers<float>(index.search);
}

std::vector<search::SearchExpert> experts_of(const Options& options) {
  std::vector<search::SearchExpert> experts;
  for (const Index ef : options.ef) experts.push_back({0, ef});
  for (const Index ef : options.cosine_ef) experts.push_back({1, ef});
  return experts;
}

void measure(Problem& problem, const Adaptive& adaptive, Workspace& workspace, ThreadPool& threads) {
  search::ExactSearch(Distance{}, problem.points).search(problem.queries, {.k = k}, problem.truth, workspace, threads);
  adaptive.label(problem.queries, {.k = k}, problem.truth, problem.labels, workspace, threads);
  for (double ef = k; ef <= 400; ef = std::ceil(ef * 1.1)) problem.grid.push_back(Index(ef));
  for (const search::SearchExpert& expert : adaptive.config().experts) problem.grid.push_back(expert.ef);
  std::ranges::sort(problem.grid);
  problem.grid.erase(std::unique(problem.grid.begin(), problem.grid.end()), problem.grid.end());
  problem.recall = Matrix<float>(problem.queries.rows(), Index(problem.grid.size()));
  problem.cost = problem.recall;
  search::SearchResult<float> found;
  const search::HnswSearch plain(Distance{}, problem.layers);
  for (std::size_t g = 0; g < problem.grid.size() && !interrupted(); ++g) {
    plain.search(problem.queries, {.k = k, .ef = problem.grid[g]}, found, workspace, threads);
    for (Index i = 0; i < problem.queries.rows(); ++i) {
      Index good = 0;
      for (const float score : found.scores.row(i)) good += score >= problem.truth.scores(i, k - 1) ? 1 : 0;
      problem.recall(i, Index(g)) = float(good) / float(k);
      problem.cost(i, Index(g)) = float(found.distance_count[i]);
    }
  }
}

void foresee(Problem& problem, const Adaptive& adaptive) {
  problem.foreseen = problem.labels;
  for (Index e = 0; e < adaptive.experts(); ++e) {
    const search::SearchExpert expert = adaptive.config().experts[std::size_t(e)];
    if (expert.score > 0) continue;
    const Index g = std::ranges::find(problem.grid, expert.ef) - problem.grid.begin();
    for (Index i = 0; i < problem.queries.rows(); ++i) problem.foreseen.cost(i, e) = problem.cost(i, g);
  }
}

/// Of some queries, where query i goes to expert choose(i).
template <class Choose>
Outcome outcome(const Labels& labels, std::span<const Index> queries, Choose&& choose) {
  Outcome result;
  result.usage.resize(std::size_t(labels.recall.cols()));
  for (const Index i : queries) {
    const Index e = choose(i);
    result.recall.push_back(double(labels.recall(i, e)));
    result.cost.push_back(double(labels.cost(i, e)));
    result.usage[std::size_t(e)] += 1 / double(queries.size());
  }
  return result;
}

struct Split {
  std::vector<Index> train, validation, test;

  Split(Index queries, Rng rng) {
    std::vector<Index> all(static_cast<std::size_t>(queries));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = Index(i);
    rng.shuffle(std::span(all));
    const auto part = [&](double from, double to) {
      return std::vector<Index>(all.begin() + Index(from * double(queries)), all.begin() + Index(to * double(queries)));
    };
    train = part(0, 0.6);
    validation = part(0.6, 0.8);
    test = part(0.8, 1);
  }
};

Labels rows_of(const Labels& labels, std::span<const Index> rows) {
  const auto take = [&](const Matrix<float>& from) {
    Matrix<float> to(Index(rows.size()), from.cols());
    for (std::size_t i = 0; i < rows.size(); ++i) std::ranges::copy(from.row(rows[i]), to.row(Index(i)).begin());
    return to;
  };
  return {take(labels.features), take(labels.recall), take(labels.cost)};
}

Index choice(const Router& router, const Labels& labels, Index i, Workspace& workspace) {
  auto frame = workspace.frame();
  const auto logits = frame.matrix<float>(1, labels.recall.cols());
  router.forward(labels.features.view().rows(i, 1), logits, workspace);
  return std::ranges::max_element(logits.row(0)) - logits.row(0).begin();
}

Router trained(const Labels& labels, const Split& split, double lambda, const Options& options, Rng rng) {
  const Labels train = rows_of(labels, split.train), validation = rows_of(labels, split.validation);
  const search::RouterTargetConfig wanted{.cost_weight = lambda, .temperature = options.temperature};
  const Matrix<float> targets = search::router_targets(train, wanted),
                      judged = search::router_targets(validation, wanted);
  Router router(labels.recall.cols(), rng);
  router.standardize(train.features);
  train::FitState state(router, train::Adam(router, {.learning_rate = 3e-3}), rng,
                        train::CosineAnnealing({.period = options.epochs}));
  Workspace workspace;
  train::FitHooks<decltype(state)> hooks;
  hooks.validate = [&](const auto& now) {
    Matrix<float> logits(judged.rows(), judged.cols());
    now.model.forward(validation.features, logits, workspace);
    return search::router_loss<float>(logits, judged, {}, workspace).mean();
  };
  train::fit(state, train.features.rows(), search::RouterObjective<float>{train.features, targets},
             {.epochs = options.epochs, .batch_size = 64, .micro_batch = 64}, hooks);
  return state.best;
}

/// The best expert for query i by recall − price · cost, with no recall beyond `enough`.
Index best_expert(const Labels& labels, Index i, double enough, double price) {
  Index best = 0;
  const auto worth = [&](Index e) {
    return std::min(double(labels.recall(i, e)), enough) - price * double(labels.cost(i, e));
  };
  for (Index e = 1; e < labels.recall.cols(); ++e)
    if (worth(e) > worth(best)) best = e;
  return best;
}
/// Cheap enough to count only where recall is the same.
constexpr double hardly = 1e-9;

/// Predicts the log of the cost that a query needs.
struct LinearBudget {
  Eigen::VectorXd weights;
  std::vector<double> mean_cost;  ///< of each expert

  static Eigen::VectorXd row(const Router& scale, const Labels& labels, Index i) {
    Eigen::VectorXd x(search::router_features + 1);
    for (Index j = 0; j < search::router_features; ++j)
      x[j] = (double(labels.features(i, j)) - double(scale.mean[j])) * double(scale.scale[j]);
    x[search::router_features] = 1;
    return x;
  }

  LinearBudget(const Router& scale, const Labels& labels, std::span<const Index> rows)
      : mean_cost(std::size_t(labels.cost.cols())) {
    constexpr Index d = search::router_features + 1;
    Eigen::MatrixXd squares = 1e-3 * Eigen::MatrixXd::Identity(d, d);
    Eigen::VectorXd sums = Eigen::VectorXd::Zero(d);
    for (const Index i : rows) {
      const Eigen::VectorXd x = row(scale, labels, i);
      squares += x * x.transpose();
      sums += x * std::log2(double(labels.cost(i, best_expert(labels, i, 1, hardly))));
      for (std::size_t e = 0; e < mean_cost.size(); ++e)
        mean_cost[e] += double(labels.cost(i, Index(e))) / double(rows.size());
    }
    weights = squares.ldlt().solve(sums);
  }
  [[nodiscard]] Index choose(const Router& scale, const Labels& labels, Index i, double more) const {
    const double budget = std::exp2(weights.dot(row(scale, labels, i)) + more);
    std::size_t best = 0;
    for (std::size_t e = 1; e < mean_cost.size(); ++e)
      if (mean_cost[e] <= budget && (mean_cost[e] > mean_cost[best] || mean_cost[best] > budget)) best = e;
    return Index(best);
  }
};

/// All arms of a seed, and the routers behind one of them.
struct Run {
  std::map<std::string, Settings> arms;
  std::vector<Router> routers;
  Split split;
};

Run run(const Problem& problem, const Options& options, std::uint64_t seed, Workspace& workspace) {
  const Rng rng(seed);
  Run result{{}, {}, Split(problem.queries.rows(), rng.split(1))};
  const Labels& labels = problem.labels;
  const std::span<const Index> test = result.split.test;
  auto& arms = result.arms;
  for (std::size_t g = 0; g < problem.grid.size(); ++g) {
    Outcome& single = arms["single"].emplace_back();
    for (const Index i : test) {
      single.recall.push_back(double(problem.recall(i, Index(g))));
      single.cost.push_back(double(problem.cost(i, Index(g))));
    }
  }
  for (int r = 5; r <= 10; ++r)
    arms["oracle"].push_back(
        outcome(problem.foreseen, test, [&](Index i) { return best_expert(problem.foreseen, i, r / 10.0, hardly); }));
  for (double price = 1e-2; price > 1e-7; price /= 1.5)
    arms["limit"].push_back(
        outcome(problem.foreseen, test, [&](Index i) { return best_expert(problem.foreseen, i, 1, price); }));
  for (std::size_t l = options.lambdas.size(); l-- > 0 && !interrupted();) {
    const Router& router =
        result.routers.emplace_back(trained(labels, result.split, options.lambdas[l], options, rng.split(2)));
    std::vector<Index> chosen;
    for (const Index i : test) chosen.push_back(choice(router, labels, i, workspace));
    std::size_t next = 0;
    arms["router"].push_back(outcome(labels, test, [&](Index) { return chosen[next++]; }));
    Rng deal = rng.split(3);
    deal.shuffle(std::span(chosen));
    next = 0;
    arms["random"].push_back(outcome(labels, test, [&](Index) { return chosen[next++]; }));
  }
  if (interrupted()) return result;
  const LinearBudget linear(result.routers[0], labels, result.split.train);
  for (double more = -3; more <= 4; more += 0.25)
    arms["linear"].push_back(
        outcome(labels, test, [&](Index i) { return linear.choose(result.routers[0], labels, i, more); }));
  return result;
}

/// Nanoseconds of each of some queries, the least of three times.
template <class Search>
std::vector<double> nanoseconds(std::span<const Index> queries, Search&& search) {
  std::vector<double> least(queries.size(), 1e18);
  for (int round = 0; round < 3; ++round)
    for (std::size_t q = 0; q < queries.size(); ++q) {
      const auto start = std::chrono::steady_clock::now();
      search(queries[q]);
      const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
      least[q] = std::min(least[q], time.count());
    }
  return least;
}

struct Times {
  std::vector<double> low, high;
  double overhead = 0;  ///< of choosing, a query
};

Times times_of_single(const Problem& problem, const Run& run, const Mix& mix, Workspace& workspace) {
  const search::HnswSearch plain(Distance{}, problem.layers);
  search::SearchResult<float> found;
  const auto times = [&](std::size_t g) {
    return nanoseconds(run.split.test, [&](Index i) {
      plain.search(problem.queries.view().rows(i, 1), {.k = k, .ef = problem.grid[g]}, found, workspace);
    });
  };
  return {times(mix.low), times(mix.high)};
}

Times times_of_router(const Problem& problem, const Adaptive& adaptive, const Run& run, const Mix& mix,
                      Workspace& workspace) {
  search::AdaptiveResult<float> found;
  Times result;
  const auto times = [&](std::size_t s) {
    return nanoseconds(run.split.test, [&](Index i) {
      adaptive.search(problem.queries.view().rows(i, 1), run.routers[s], {.k = k}, found, workspace);
    });
  };
  result.low = times(mix.low);
  result.high = times(mix.high);
  // The same experts, without a router and without having to repeat the warm-up.
  const search::HnswSearch plain(Distance{}, problem.layers);
  std::map<Index, Index> ef;
  for (const Index i : run.split.test) {
    const Index e = choice(run.routers[mix.high], problem.labels, i, workspace);
    const search::SearchExpert expert = adaptive.config().experts[std::size_t(e)];
    if (expert.score == 0 && problem.foreseen.cost(i, e) == problem.labels.cost(i, e)) ef[i] = expert.ef;
  }
  double with = 0, without = 0;
  std::vector<Index> same;
  for (std::size_t q = 0; q < run.split.test.size(); ++q)
    if (ef.contains(run.split.test[q])) {
      same.push_back(run.split.test[q]);
      with += result.high[q];
    }
  for (const double t : nanoseconds(same, [&](Index i) {
         plain.search(problem.queries.view().rows(i, 1), {.k = k, .ef = ef[i]}, found, workspace);
       }))
    without += t;
  result.overhead = same.empty() ? 0 : (with - without) / double(same.size());
  return result;
}

const std::vector<std::string> arm_names = {"single", "random", "linear", "router", "oracle", "limit"};

std::string pair_text(const std::vector<double>& values, const char* format) {
  const MeanInterval interval = mean_interval(values);
  char number[64], line[160];
  std::snprintf(number, sizeof number, format, interval.mean);
  std::string text = number;
  if (values.size() < 2) return text;
  std::snprintf(number, sizeof number, format, interval.half);
  std::snprintf(line, sizeof line, "%s ± %s", text.c_str(), number);
  return line;
}

/// What is reported of an arm at a target, by seed.
struct Reported {
  std::vector<double> cost, gap, p50, p95, p99;
};

void write_row(const Options& options, double target, const std::string& arm, std::uint64_t seed, double cost,
               double p50, double p95, double p99, double gap, const Times* times, const Mix& mix,
               const std::vector<double>& usage) {
  if (options.csv.empty()) return;
  char line[320];
  int used = std::snprintf(line, sizeof line, "fashion,%td,%td,%td,%g,%s,%llu,%.1f,%.0f,%.0f,%.0f,%.4f", options.points,
                           options.queries, options.warm_up, target, arm.c_str(), static_cast<unsigned long long>(seed),
                           cost, p50, p95, p99, gap);
  std::string text(line, std::size_t(used));
  for (const double q : {0.5, 0.95, 0.99}) {
    std::snprintf(line, sizeof line, ",%.0f", times ? mix.quantile(q, times->low, times->high) : std::nan(""));
    text += line;
  }
  std::snprintf(line, sizeof line, ",%.0f,", times ? times->overhead : std::nan(""));
  text += line;
  for (std::size_t e = 0; e < usage.size(); ++e) {
    std::snprintf(line, sizeof line, "%s%.3f", e > 0 ? ";" : "", usage[e]);
    text += line;
  }
  append_csv(options.csv,
             "data,points,queries,warm_up,recall,arm,seed,dcs,dcs_p50,dcs_p95,dcs_p99,gap_closed,ns_p50,ns_p95,ns_p99,"
             "router_ns,usage",
             text);
}

void report(const Problem& problem, const Adaptive& adaptive, const Options& options, const std::vector<Run>& runs,
            double target, Workspace& workspace, std::map<std::string, Reported>& reported) {
  for (std::size_t s = 0; s < runs.size(); ++s) {
    const auto cost_of = [&](const std::string& arm) {
      const Mix mix(runs[s].arms.at(arm), target);
      return mix.reached ? mix.cost(runs[s].arms.at(arm)) : std::nan("");
    };
    const double single = cost_of("single"), oracle = cost_of("oracle");
    for (const std::string& arm : arm_names) {
      const Settings& settings = runs[s].arms.at(arm);
      const Mix mix(settings, target);
      if (!mix.reached) continue;
      Reported& r = reported[arm];
      const auto quantile = [&](double q) { return mix.quantile(q, settings[mix.low].cost, settings[mix.high].cost); };
      r.cost.push_back(mix.cost(settings));
      r.gap.push_back((single - r.cost.back()) / (single - oracle));
      r.p50.push_back(quantile(0.5));
      r.p95.push_back(quantile(0.95));
      r.p99.push_back(quantile(0.99));
      Times times;
      const bool timed = arm == "single" || arm == "router";
      if (timed)
        times = arm == "single" ? times_of_single(problem, runs[s], mix, workspace)
                                : times_of_router(problem, adaptive, runs[s], mix, workspace);
      const std::vector<double> usage = mix.usage(settings);
      write_row(options, target, arm, s + 1, r.cost.back(), r.p50.back(), r.p95.back(), r.p99.back(), r.gap.back(),
                timed ? &times : nullptr, mix, usage);
      if (!timed) continue;
      std::printf("%s at %.2f, seed %d: ns a query p50 %.0f, p95 %.0f, p99 %.0f", arm.c_str(), target, int(s) + 1,
                  mix.quantile(0.5, times.low, times.high), mix.quantile(0.95, times.low, times.high),
                  mix.quantile(0.99, times.low, times.high));
      if (arm == "router") std::printf("; choosing and repeating the warm-up %.0f", times.overhead);
      std::printf("\n");
    }
  }
  std::printf("\nrecall@10 = %g, oracle gap %s\n%-8s %-18s %-16s %8s %8s %8s\n", target,
              pair_text(
                  [&] {
                    std::vector<double> gaps;
                    for (std::size_t s = 0; s < reported["oracle"].cost.size(); ++s)
                      gaps.push_back(1 - reported["oracle"].cost[s] / reported["single"].cost[s]);
                    return gaps;
                  }(),
                  "%.3f")
                  .c_str(),
              "", "distances", "gap closed", "p50", "p95", "p99");
  for (const std::string& arm : arm_names) {
    Reported& r = reported[arm];
    if (r.cost.size() < runs.size()) {
      std::printf("%-8s not reached\n", arm.c_str());
      continue;
    }
    std::printf("%-8s %-18s %-16s %8.0f %8.0f %8.0f\n", arm.c_str(), pair_text(r.cost, "%.0f").c_str(),
                pair_text(r.gap, "%.3f").c_str(), mean_interval(r.p50).mean, mean_interval(r.p95).mean,
                mean_interval(r.p99).mean);
  }
}

/// Who searches for pictures of which class.
void print_usage(const Problem& problem, const Adaptive& adaptive, const Run& run, double target) {
  const Mix mix(run.arms.at("router"), target);
  if (!mix.reached) return;
  Workspace workspace;
  std::printf("\nexperts by class at %g, %% of its queries\n%-12s", target, "ef");
  for (const auto& expert : adaptive.config().experts) std::printf(" %4s%td", expert.score == 0 ? "" : "c", expert.ef);
  std::printf("\n");
  const char* names[] = {"T-shirt", "trouser", "pullover", "dress", "coat",
                         "sandal",  "shirt",   "sneaker",  "bag",   "boot"};
  for (Index c = 0; c < fashion_mnist::Images::classes; ++c) {
    std::vector<Index> own;
    for (const Index i : run.split.test)
      if (problem.classes[std::size_t(i)] == c) own.push_back(i);
    const Outcome o = outcome(problem.labels, own,
                              [&](Index i) { return choice(run.routers[mix.high], problem.labels, i, workspace); });
    std::printf("%-12s", names[c]);
    for (const double share : o.usage) std::printf(" %5.0f", 100 * share);
    std::printf("\n");
  }
}

/// Recall to the right, towards 1 ever wider; distances upwards.
std::string draw(const Run& run) {
  Svg svg(680, 440, "text{font:13px sans-serif;fill:#333}.grid{stroke:#e4e4e4}.curve{stroke-width:2}");
  svg.rectangle(0, 0, 680, 440, "fill=\"white\"");
  const auto x = [](double r) { return 70 + 480 * (-std::log10(1 - std::clamp(r, 0.8, 0.999)) - 0.7) / 2.3; };
  const auto y = [](double cost) { return 390 - 330 * (std::log10(cost) - 2.3) / 1.3; };
  svg.text(70, 26, "Fashion-MNIST: distances a query by mean recall@10", "style=\"font-size:16px\"");
  for (const auto& [r, label] : {std::pair{0.8, "0.8"},
                                 {0.9, "0.9"},
                                 {0.95, "0.95"},
                                 {0.98, "0.98"},
                                 {0.99, "0.99"},
                                 {0.995, "0.995"},
                                 {0.999, "0.999"}}) {
    svg.line(x(r), 50, x(r), 390, "class=\"grid\"");
    svg.text(x(r), 410, label, "text-anchor=\"middle\"");
  }
  for (const double cost : {200.0, 500.0, 1000.0, 2000.0, 4000.0}) {
    svg.line(70, y(cost), 550, y(cost), "class=\"grid\"");
    svg.text(62, y(cost) + 4, Svg::number(cost), "text-anchor=\"end\"");
  }
  double hue = 20, row = 70;
  for (const std::string& arm : arm_names) {
    const std::string colour = oklch(0.6, 0.15, hue);
    const Settings& settings = run.arms.at(arm);
    for (std::size_t s = 1; s < settings.size(); ++s) {
      const Outcome &a = settings[s - 1], &b = settings[s];
      if (a.mean_recall() >= 0.8 && b.mean_recall() <= 0.9995 && b.mean_recall() > a.mean_recall())
        svg.line(x(a.mean_recall()), y(a.mean_cost()), x(b.mean_recall()), y(b.mean_cost()),
                 "class=\"curve\" stroke=\"" + colour + "\"");
    }
    svg.text(566, row, arm, "style=\"fill:" + colour + "\"");
    hue += 60;
    row += 18;
  }
  return svg.str();
}

void add_options(CLI::App& app, Options& o) {
  app.add_option("--index", o.index, "file of the index, built if it is not there (default: built each time)")
      ->type_name("FILE");
  app.add_option("--fashion-mnist", o.fashion_mnist,
                 "folder of Fashion-MNIST (Debian: package dataset-fashion-mnist; or set RUVECTOR_FASHION_MNIST)")
      ->capture_default_str()
      ->type_name("DIR");
  app.add_option("--points", o.points, "pictures in the index")->check(CLI::Range(100, 60000))->capture_default_str();
  app.add_option("--queries", o.queries, "pictures that are searched for")
      ->check(CLI::Range(100, 10000))
      ->capture_default_str();
  app.add_option("--links", o.links, "M of the index")->check(CLI::Range(2, 100))->capture_default_str();
  app.add_option("--ef-construction", o.ef_construction, "of the index")
      ->check(CLI::Range(1, 2000))
      ->capture_default_str();
  app.add_option("--ef", o.ef, "experts of the distance")->check(CLI::Range(1, 60000))->capture_default_str();
  app.add_option("--cosine-ef", o.cosine_ef, "further experts, which walk by the cosine (default: none)")
      ->check(CLI::Range(1, 60000));
  app.add_option("--warm-up", o.warm_up, "nodes that are left before the choice")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  app.add_option("--recall", o.targets, "mean recalls at which is compared")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--lambda", o.lambdas, "prices of distances for which routers are trained, ascending")
      ->capture_default_str();
  app.add_option("--temperature", o.temperature, "of the targets")
      ->check(CLI::Range(1e-3, 10.0))
      ->capture_default_str();
  app.add_option("--epochs", o.epochs, "of each training")->check(CLI::Range(1, 10000))->capture_default_str();
  app.add_option("--seeds", o.seeds, "splits and trainings, with the seeds 1, 2, …")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--threads", o.threads, "threads, but for what is timed; the result is the same for any number")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--csv", o.csv, "append a line for each arm, recall and seed to this file")->type_name("FILE");
  app.add_option("--svg", o.svg, "draw the curves of seed 1 to this file")->type_name("FILE");
  app.add_flag("--quick", o.quick, "a small index, one seed; exit code 1 if a figure is not what it should be");
}

int compare(const Options& options) {
  ThreadPool threads(options.threads);
  Workspace workspace;
  Problem problem;
  const auto pictures = [&](const char* part, Index count) {
    auto images = fashion_mnist::read(options.fashion_mnist, part);
    if (std::string(part) == "t10k") problem.classes = images.labels;
    return Matrix<float>(images.features<float>().view().rows(0, count));
  };
  problem.points = pictures("train", options.points);
  problem.queries = pictures("t10k", options.queries);
  problem.layers = index_of(options, problem.points);
  if (problem.layers.nodes() != options.points) throw_format_error(options.index, "has another number of points");
  const Adaptive adaptive(problem.layers, {.experts = experts_of(options), .warm_up = options.warm_up}, Distance{}, {});
  measure(problem, adaptive, workspace, threads);
  foresee(problem, adaptive);
  std::vector<Run> runs;
  for (Index seed = 1; seed <= options.seeds && !interrupted(); ++seed)
    runs.push_back(run(problem, options, std::uint64_t(seed), workspace));
  if (interrupted()) return 130;
  bool good = true;
  for (const double target : options.targets) {
    std::map<std::string, Reported> reported;
    report(problem, adaptive, options, runs, target, workspace, reported);
    print_usage(problem, adaptive, runs[0], target);
    good = good && reported["router"].gap.size() == runs.size() && mean_interval(reported["router"].gap).mean > 0.05 &&
           mean_interval(reported["router"].gap).mean < 1;
  }
  if (!options.svg.empty()) write_text(options.svg, draw(runs[0]));
  if (!options.quick || good) return 0;
  std::fprintf(stderr, "adaptive_search: a figure of --quick is not what it should be\n");
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Searches an HNSW index as broadly as each query needs it.", "adaptive_search");
  add_options(app, options);
  return run_program(app, argc, argv, [&] {
    if (options.quick) {
      options.points = 3000;
      options.queries = 1500;
      options.links = 8;
      options.ef_construction = 60;
      options.seeds = 1;
      options.epochs = 20;
      options.warm_up = 8;
      options.ef = {10, 16, 24, 40, 64, 128};
      options.lambdas = {0.02, 0.05, 0.1, 0.2, 0.5, 1};
      options.targets = {0.995};
    }
    return compare(options);
  });
}

#else

#include <cstdio>

int main() {
  std::puts("adaptive_search needs hnswlib (Debian and Ubuntu: apt install libhnswlib-dev)");
}

#endif
