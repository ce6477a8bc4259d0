// SPDX-License-Identifier: MIT
//
// Given a concept, find everything above it: the 82,115 nouns of WordNet, each a query, and itself and its ancestors
// over "kind of" and "instance of" what is to be found. Queries and items have a learned vector each.
//
//   hierarchical_retrieval --root mammal --dim 8              a small one
//   hierarchical_retrieval --space lorentz                    all nouns in one space (minutes)
//   hierarchical_retrieval --all --csv runs.csv --svg curve.svg   five spaces, three seeds, and a table
//
// What limits a search? Three recalls tell, always given together: of the exhaustive search by the model's own score
// against the truth (R_emb: what the vectors know), of the index against the exhaustive search (R_ann: what the index
// loses), of the index against the truth (R_e2e: what a user sees). Each model is trained in two parts with a table row
// each, "base", the softmax over sampled items, and "far", a second, sharper one on ancestors at least four edges
// away (You et al. 2025). The index is hnswlib's, built under the model's own score.
// With --trained N a search of it (hierarchical_forward_v2) is trained, too, on N queries that it is not asked later:
// when to end, and with --order also where to go, by features of candidates or by these and attention.

#include "support/command_line.hpp"
#include "support/dual_encoder.hpp"
#include "support/hierarchy.hpp"
#include "support/interrupt.hpp"
#include "support/intervals.hpp"
#include "support/progress_bar.hpp"
#include "support/retrieval.hpp"
#include "support/svg.hpp"
#include "support/text_files.hpp"
#include "support/wordnet.hpp"

#include <CLI/CLI.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/core/executor.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/graph/hnsw_layers.hpp>
#include <ruvector/io/checkpoint.hpp>
#include <ruvector/io/safetensors.hpp>
#include <ruvector/search/exact_search.hpp>
#include <ruvector/search/fit_search.hpp>
#include <ruvector/search/hierarchical_v2.hpp>
#include <ruvector/search/hnsw_search.hpp>
#include <ruvector/search/scores.hpp>
#include <ruvector/search/search_layer.hpp>
#include <ruvector/train/adam.hpp>

#if __has_include(<hnswlib/hnswlib.h>)
#include <hnswlib/hnswlib.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace examples;
namespace search = ruvector::search;
using ruvector::ThreadPool;
using ruvector::Workspace;
using ruvector::train::ContrastiveForm;

const std::vector<std::string> space_names{"cosine", "inner", "poincare", "lorentz", "dual"};  // as Space
const std::vector<std::string> stage_names{"base", "far"};

const std::vector<std::string> loss_names{"all", "negatives"};

/// What was chosen for a space and a loss, by the recall of 2,000 queries after 12 epochs with seed 101
/// (--lr, --scale); the second stage's, learning rate and scale times (0.001 … 0.3, 1 or 5), by trials of cosine, inner
/// and lorentz.
struct Recipe {
  const char *space, *loss;
  double learning_rate, scale, far_learning_rate, far_scale;
};
/// The first is the published one. --all runs these.
constexpr std::array<Recipe, 6> recipes{{{"cosine", "all", 0.1, 20, 0.001, 100},
                                         {"cosine", "negatives", 0.05, 20, 0.0005, 100},
                                         {"inner", "negatives", 0.05, 2.5, 0.0005, 12.5},
                                         {"poincare", "negatives", 0.3, 20, 0.03, 100},
                                         {"lorentz", "negatives", 0.05, 20, 0.005, 100},
                                         {"dual", "negatives", 0.05, 10, 0.0005, 50}}};

struct Options {
  std::string wordnet = "/usr/share/wordnet", root;
  std::string space = "inner", loss, csv, curve_csv, svg, checkpoints;
  Index dim = 32, epochs = 30, far_epochs = 3, batch = 1024, negatives = 1024, asked = 4096, threads = 1, seeds = 3;
  Index links = 16, ef_construction = 100, ef = 64, trained = 0;
  std::uint64_t seed = 1;
  double worth = 300;
  std::optional<double> learning_rate, scale, far_learning_rate, far_scale;
  bool all = false, quick = false, order = false;

  [[nodiscard]] Space space_kind() const {
    return static_cast<Space>(std::find(space_names.begin(), space_names.end(), space) - space_names.begin());
  }
  [[nodiscard]] EncoderConfig encoder() const {
    const bool flat = space == "cosine" || space == "inner";
    return {.space = space_kind(),
            .dim = dim,
            .batch = batch,
            .negatives = negatives,
            .spread = flat ? 1 : 0.3,
            .seed = seed};
  }
  [[nodiscard]] std::size_t last_stage() const { return far_epochs > 0 ? 1 : 0; }
  /// Of the space and the loss, or of the space with the loss that was chosen for it.
  [[nodiscard]] Recipe recipe() const {
    std::optional<Recipe> found;
    for (const Recipe& recipe : recipes)
      if (recipe.space == space && (!found || loss.empty() || recipe.loss == loss)) found = recipe;
    if (!loss.empty()) found->loss = loss == "all" ? "all" : "negatives";
    return *found;
  }
  [[nodiscard]] std::array<EncoderStage, 2> stages() const {
    const Recipe found = recipe();
    const auto form =
        found.loss == loss_names[0] ? ContrastiveForm::each_against_all : ContrastiveForm::each_against_negatives;
    return {{{.epochs = epochs,
              .learning_rate = learning_rate.value_or(found.learning_rate),
              .scale = scale.value_or(found.scale),
              .form = form},
             {.epochs = far_epochs,
              .learning_rate = far_learning_rate.value_or(found.far_learning_rate),
              .scale = far_scale.value_or(found.far_scale),
              .least_hops = 4,
              .form = form}}};
  }
};

/// How an index is searched: HNSW's way, or one that has learned when to end, or also to go by features of candidates,
/// or by these and attention.
enum class Search { hnsw, ending, features, attention };
const std::vector<std::string> search_names{"hnsw", "ending", "features", "attention"};

/// A point of the curve of recall and cost.
struct CurvePoint {
  Search search = Search::hnsw;
  Index ef = 0;
  double distances = 0, ann = 0, e2e = 0;  // evaluations a query; R_ann@10, R_e2e@10
};

/// A row of the table: a model after a stage.
struct Row {
  std::string space, loss, stage;
  Index dim = 0;
  std::uint64_t seed = 0;
  Recall emb;                     // of all queries
  Recall e2e;                     // of those that the index was asked
  double emb_asked = 0, ann = 0;  // R_emb@10 and R_ann@10 of the same
  double distances = 0;           // a query
  double seconds = 0, build_seconds = 0;
  std::vector<CurvePoint> curve;
};

Search search_named(const std::string& name) {
  return static_cast<Search>(std::find(search_names.begin(), search_names.end(), name) - search_names.begin());
}

Row row_of(const Options& o, std::size_t stage) {
  Row row;
  row.space = o.space;
  row.loss = o.recipe().loss;
  row.stage = stage_names[stage];
  row.dim = o.dim;
  row.seed = o.seed;
  return row;
}

// What decides about a run, in its checkpoint and CSV line.
std::string key_of(const Options& o, std::size_t stage) {
  char text[256];
  const auto stages = o.stages();
  std::snprintf(text, sizeof text, "%s,%s,%s,%d,%llu,%s,%d,%g,%g", o.root.c_str(), o.space.c_str(), o.recipe().loss,
                int(o.dim), static_cast<unsigned long long>(o.seed), stage_names[stage].c_str(),
                int(stages[stage].epochs), stages[stage].learning_rate, stages[stage].scale);
  return text;
}

const std::string csv_header =
    "root,space,loss,dim,seed,stage,epochs,learning_rate,scale,r_emb_10,r_emb_size,hop0,hop1,hop2,hop3,hop4,hop5,hop6,"
    "hop7,hop8,worst_hop,r_emb_10_asked,ef,distances,r_ann_10,r_e2e_10,r_e2e_size,e2e_worst_hop,build_seconds,seconds";

std::string line_of(const Options& o, std::size_t stage, const Row& row) {
  char text[512];
  std::string line = key_of(o, stage);
  const auto add = [&](const char* format, auto... values) {
    std::snprintf(text, sizeof text, format, values...);
    line += text;
  };
  add(",%.5f,%.5f", row.emb.at_10, row.emb.at_size);
  for (const double h : row.emb.by_hop) add(",%.5f", h);
  add(",%.5f,%.5f,%d,%.1f,%.5f,%.5f,%.5f,%.5f,%.1f,%.1f", row.emb.worst, row.emb_asked, int(o.ef), row.distances,
      row.ann, row.e2e.at_10, row.e2e.at_size, row.e2e.worst, row.build_seconds, row.seconds);
  return line;
}

const std::string curve_header = "root,space,loss,dim,seed,stage,search,ef,distances,r_ann_10,r_e2e_10,trained,worth";

void append_curve(const Options& o, const Row& row) {
  if (o.curve_csv.empty()) return;
  for (const CurvePoint& p : row.curve) {
    char text[256];
    std::snprintf(text, sizeof text, "%s,%s,%s,%d,%llu,%s,%s,%d,%.1f,%.5f,%.5f,%d,%g", o.root.c_str(),
                  row.space.c_str(), row.loss.c_str(), int(row.dim), static_cast<unsigned long long>(row.seed),
                  row.stage.c_str(), search_names[static_cast<std::size_t>(p.search)].c_str(), int(p.ef), p.distances,
                  p.ann, p.e2e, p.search == Search::hnsw ? 0 : int(o.trained), p.search == Search::hnsw ? 0 : o.worth);
    append_csv(o.curve_csv, curve_header, text);
  }
}

std::vector<std::string> fields_of(const std::string& line) {
  std::vector<std::string> fields(1);
  for (const char c : line)
    if (c == ',')
      fields.emplace_back();
    else
      fields.back() += c;
  return fields;
}

// The row of a run that a file has already, whatever columns were added behind.
std::optional<Row> find_row(const Options& o, std::size_t stage) {
  if (o.csv.empty() || !std::filesystem::exists(o.csv)) return std::nullopt;
  std::istringstream lines(read_text(o.csv));
  const std::string key = key_of(o, stage) + ",";
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(key)) continue;
    const auto fields = fields_of(line);
    if (fields.size() < fields_of(csv_header).size()) continue;
    std::size_t at = 9;
    const auto next = [&] { return std::stod(fields[at++]); };
    Row row = row_of(o, stage);
    row.emb.at_10 = next();
    row.emb.at_size = next();
    for (double& h : row.emb.by_hop) h = next();
    row.emb.worst = next();
    row.emb_asked = next();
    ++at;
    row.distances = next();
    row.ann = next();
    row.e2e.at_10 = next();
    row.e2e.at_size = next();
    row.e2e.worst = next();
    row.build_seconds = next();
    row.seconds = next();
    std::istringstream points(o.curve_csv.empty() || !std::filesystem::exists(o.curve_csv) ? ""
                                                                                           : read_text(o.curve_csv));
    for (std::string point; std::getline(points, point);) {
      const auto p = fields_of(point);
      if (p.size() < 13 || p[0] != o.root || p[1] != row.space || p[2] != row.loss || p[3] != std::to_string(o.dim) ||
          p[4] != std::to_string(o.seed) || p[5] != row.stage)
        continue;
      const Search kind = search_named(p[6]);
      if (kind == Search::hnsw || std::stod(p[12]) == o.worth)
        row.curve.push_back({kind, std::stol(p[7]), std::stod(p[8]), std::stod(p[9]), std::stod(p[10])});
    }
    const bool has_trained =
        std::ranges::any_of(row.curve, [](const CurvePoint& p) { return p.search != Search::hnsw; });
    if (o.trained > 0 && !has_trained)
      throw ruvector::ConfigError(o.csv + " has this run without a trained search: give another --csv and --curve-csv");
    return row;
  }
  return std::nullopt;
}

/// hnswlib's distance: the score, negated. A query is lifted as items are, so that one function does for both.
class EncoderSpace final : public hnswlib::SpaceInterface<float> {
 public:
  explicit EncoderSpace(const EncoderScore& score) : score_(score) {}
  size_t get_data_size() override { return static_cast<size_t>(score_.flat + score_.curved) * sizeof(float); }
  hnswlib::DISTFUNC<float> get_dist_func() override {
    return [](const void* a, const void* b, const void* score) {
      const auto& s = *static_cast<const EncoderScore*>(score);
      const auto columns = static_cast<std::size_t>(s.flat + s.curved);
      return -s({static_cast<const float*>(a), columns}, {static_cast<const float*>(b), columns});
    };
  }
  void* get_dist_func_param() override { return &score_; }

 private:
  EncoderScore score_;
};

/// Reports progress of a loop to a bar, and whether to go on.
class Loop {
 public:
  Loop(std::string label, std::string unit, Index total) : bar_(std::move(label), std::move(unit)), total_(total) {}
  [[nodiscard]] bool operator()(Index done, double loss = std::numeric_limits<double>::quiet_NaN()) {
    bar_({done, total_, loss, seconds()});
    return !interrupted();
  }
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  ProgressBar bar_;
  Index total_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Thrown on Ctrl-C.
struct Stopped {};

std::string label_of(const Options& o, const char* what) {
  return o.space + " " + o.recipe().loss + ", d = " + std::to_string(o.dim) + ", seed " + std::to_string(o.seed) +
         ", " + what;
}

/// The layers of hnswlib's index over the items, in random order.
ruvector::graph::HnswLayers<float> build_index(const Options& o, const EncoderScore& score, const Matrix<float>& items,
                                               double& seconds) {
  EncoderSpace space(score);
  hnswlib::HierarchicalNSW<float> index(&space, static_cast<std::size_t>(items.rows()),
                                        static_cast<std::size_t>(o.links), static_cast<std::size_t>(o.ef_construction),
                                        o.seed);
  std::vector<Index> order(static_cast<std::size_t>(items.rows()));
  std::iota(order.begin(), order.end(), Index(0));
  Rng(o.seed).split(3).shuffle(std::span(order));
  Loop loop(label_of(o, "index"), "points", items.rows());
  for (std::size_t i = 0; i < order.size(); ++i) {
    index.addPoint(items.row(order[i]).data(), static_cast<std::size_t>(order[i]));
    if (i % 256 == 0 && !loop(static_cast<Index>(i))) throw Stopped{};
  }
  seconds = loop.seconds();
  return ruvector::graph::HnswLayers<float>(index);
}

Matrix<float> rows_of(const Matrix<float>& from, std::span<const std::int32_t> rows) {
  Matrix<float> out(static_cast<Index>(rows.size()), from.cols());
  for (std::size_t i = 0; i < rows.size(); ++i)
    std::ranges::copy(from.row(rows[i]), out.row(static_cast<Index>(i)).begin());
  return out;
}

/// Distance evaluations of plain search for a recall, on a line between two points of its curve; NaN outside of it.
double distances_for(double ann, const std::vector<CurvePoint>& curve) {
  const CurvePoint* before = nullptr;
  for (const CurvePoint& p : curve) {
    if (p.search != Search::hnsw) continue;
    if (before != nullptr && before->ann <= ann && ann <= p.ann && before->ann < p.ann)
      return before->distances + (p.distances - before->distances) * (ann - before->ann) / (p.ann - before->ann);
    before = &p;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

/// Queries that an index is asked, and what it should find.
struct Asked {
  std::vector<std::int32_t> ids;
  Matrix<float> queries;
  Matrix<Index> exact;  // [·×10] the best of an exhaustive search
};

constexpr std::array<Index, 11> breadths{10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512};

/// Searches by `run(ef, places, found)` at all breadths, and appends to the curve.
template <class Run>
void walk_curve(const Options& o, const Relevance& relevance, const Asked& asked, Search kind, Row& row, Run&& run) {
  search::SearchResult<float> found;
  for (const Index ef : breadths) {
    if (interrupted()) throw Stopped{};
    run(ef, std::min(ef, most_relevant(relevance)), found);
    const double distances =
        static_cast<double>(std::accumulate(found.distance_count.begin(), found.distance_count.end(), Index(0))) /
        static_cast<double>(asked.queries.rows());
    const Recall e2e = recall(relevance, asked.ids, found.ids);
    row.curve.push_back({kind, ef, distances, agreement(asked.exact, found.ids), e2e.at_10});
    if (ef != o.ef || kind != Search::hnsw) continue;
    row.e2e = e2e;
    row.ann = row.curve.back().ann;
    row.distances = distances;
  }
}

using Layer = search::SearchLayer<ruvector::attention::ScaledDotProduct<float>>;

/// Adam, which leaves at 0 what would take more than one comparison a candidate: the gain of attention unless it is
/// wanted, and the weight of the cosine where that does not follow from the score.
struct SearchOptimizer {
  ruvector::train::Adam<search::SearchModel<Layer>> adam;
  bool attention = false, cosine = false;

  void step(search::SearchModel<Layer>& model, const search::SearchModel<Layer>& gradient, double factor) {
    search::SearchModel<Layer> wanted = gradient;
    for (Layer& layer : wanted.layers) {
      if (!attention) layer.gain = 0;
      if (!cosine) layer.edge[3] = 0;
    }
    adam.step(model, wanted, factor);
  }
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("adam", self.adam);
  }
};

/// How far the scores of the ten best differ, of some queries.
template <class Score>
double spread_of_best(const Score& score, const ruvector::graph::HnswLayers<float>& layers,
                      const Matrix<float>& queries) {
  Workspace workspace;
  search::SearchResult<float> best;
  const MatrixView<const float> some = queries.view().rows(0, std::min(Index(256), queries.rows()));
  search::ExactSearch(score, layers.vectors()).search(some, 10, best, workspace);
  double spread = 0;
  for (Index i = 0; i < some.rows(); ++i)
    spread += static_cast<double>(best.scores(i, 0) - best.scores(i, 9)) / static_cast<double>(some.rows());
  return spread;
}

/// Trains searches over the index on queries that are not asked, to find what the exhaustive search finds, and compares
/// them with plain search. `others` [·×d]: these queries. The order is learned after the end, with it.
template <class Score>
void train_searches(const Options& o, const Relevance& relevance, const Score& score,
                    const ruvector::graph::HnswLayers<float>& layers, const Matrix<float>& others, const Asked& asked,
                    ThreadPool& threads, Row& row) {
  Rng rng = Rng(o.seed).split(5);
  Workspace workspace;
  search::SearchModel<Layer> ending;
  const double unit = spread_of_best(score, layers, others);
  for (int l = 0; l < 2; ++l) ending.layers.push_back({{.dim = layers.dim(), .unit = unit}, {}, rng});
  const auto targets = search::nearest_targets(score, others, layers, 10, workspace, threads);
  for (const Search kind : {Search::ending, Search::features, Search::attention}) {
    const bool order = kind != Search::ending;
    if (order && !o.order) continue;
    const bool cosine = std::same_as<Score, search::InnerProduct<float>>;
    search::FitSearchState state(ending,
                                 SearchOptimizer{ruvector::train::Adam(ending, {.learning_rate = order ? 0.001 : 0.05}),
                                                 kind == Search::attention, cosine},
                                 rng);
    std::stop_source stop;
    {
      ProgressBar bar(label_of(o, search_names[static_cast<std::size_t>(kind)].c_str()), "queries");
      search::fit_search(
          state, score, others, layers, targets,
          {.fit = {.epochs = order ? 1 : 4, .batch_size = 32, .micro_batch = 4, .max_gradient_norm = 1},
           .rounds = order ? 2 : 1,
           .search = {.k = 10, .ef = 256, .beam = 1},
           .rank = 0,
           .route = order ? 1.0 : 0.0,
           .worth = o.worth},
          {}, threads,
          [&](const ruvector::ProgressReport& report) {
            pass_on_interrupt(stop);
            bar(report);
          },
          stop.get_token());
    }
    if (stop.stop_requested()) throw Stopped{};
    if (!order) ending = state.training.model;
    const auto& trained = state.training.model.layers;
    walk_curve(o, relevance, asked, kind, row, [&](Index ef, Index, search::SearchResult<float>& found) {
      search::hierarchical_forward_v2(score, asked.queries, layers, std::span(trained), {.k = 10, .ef = ef, .beam = 1},
                                      found, workspace, threads);  // k as it was learned
    });
    const auto& stop_rule = trained.back().stop;
    std::printf("\n%s: ends at m_(ef) %+.3f units %+.3f (m_(10) - m_(ef)) %+.3f m_(10)\n",
                search_names[std::size_t(kind)].c_str(), static_cast<double>(stop_rule[0]),
                static_cast<double>(stop_rule[1]), static_cast<double>(stop_rule[2]));
    std::printf("                ef    R_ann  distances  plain search at the same R_ann\n");
    for (const CurvePoint& p : row.curve)
      if (p.search == kind)
        std::printf("%18d  %.4f  %9.0f  %9.0f\n", int(p.ef), p.ann, p.distances, distances_for(p.ann, row.curve));
  }
}

/// All that is measured of a model.
void measure(const Options& o, const Relevance& relevance, const Lift& lift, const Matrix<float>& query_table,
             const Matrix<float>& item_table, ThreadPool& threads, Row& row) {
  const Matrix<float> queries = lift.rows(query_table), items = lift.rows(item_table);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(queries.rows()));
  std::iota(ids.begin(), ids.end(), 0);
  Workspace workspace;
  search::SearchResult<float> exact;
  {
    ProgressBar bar(label_of(o, "exhaustive"), "scores");
    std::stop_source stop;
    search::ExactSearch(lift.score(), items.view())
        .search(
            queries, {.k = most_relevant(relevance)}, exact, workspace, threads,
            [&](const ruvector::ProgressReport& report) {
              pass_on_interrupt(stop);
              bar(report);
            },
            stop.get_token());
    if (exact.stopped) throw Stopped{};
  }
  row.emb = recall(relevance, ids, exact.ids);

  // The index is asked a random part of them; others may be learned from.
  Rng(o.seed).split(4).shuffle(std::span(ids));
  const auto asked_count = static_cast<std::size_t>(std::min(o.asked, queries.rows()));
  const auto others =
      std::span(ids).subspan(asked_count, std::min(static_cast<std::size_t>(o.trained), ids.size() - asked_count));
  const Matrix<float> other_queries = rows_of(queries, others);
  ids.resize(asked_count);
  Asked asked{ids, rows_of(queries, ids), Matrix<Index>(static_cast<Index>(ids.size()), 10)};
  for (std::size_t i = 0; i < ids.size(); ++i)
    std::ranges::copy(exact.ids.row(ids[i]).first(10), asked.exact.row(static_cast<Index>(i)).begin());
  row.emb_asked = recall(relevance, ids, asked.exact).at_10;
  const auto layers = build_index(o, lift.score(), items, row.build_seconds);
  const search::HnswSearch nearest(lift.score(), layers);
  walk_curve(o, relevance, asked, Search::hnsw, row, [&](Index ef, Index places, search::SearchResult<float>& found) {
    nearest.search(asked.queries, {.k = places, .ef = ef}, found, workspace, threads);
  });
  if (other_queries.rows() == 0) return;
  if (lift.score().curved == 0)  // the same score, of which the layers know that it is an inner product
    train_searches(o, relevance, search::InnerProduct<float>{}, layers, other_queries, asked, threads, row);
  else
    train_searches(o, relevance, lift.score(), layers, other_queries, asked, threads, row);
}

/// Trains a model, or goes on where its checkpoint was left, and measures it after each stage.
template <bool in_ball>
std::vector<Row> train_and_measure(const Options& o, const Relevance& relevance, ThreadPool& threads) {
  EncoderTrainer<in_ball> trainer(relevance, o.encoder());
  auto state = trainer.start();
  const auto stages = o.stages();
  const std::string key = key_of(o, 0) + " " + key_of(o, 1);
  const std::string file = o.checkpoints.empty() ? ""
                                                 : o.checkpoints + "/" + o.root + (o.root.empty() ? "" : "_") +
                                                       o.space + "_" + o.recipe().loss + "_" + std::to_string(o.dim) +
                                                       "_" + std::to_string(o.seed) + ".safetensors";
  if (!file.empty() && std::filesystem::exists(file)) {
    const auto& metadata = ruvector::io::SafetensorsFile(file).metadata;
    if (const auto saved = metadata.find("run"); saved != metadata.end() && saved->second == key) {
      ruvector::io::load_checkpoint(file, state);
      std::fprintf(stderr, "goes on from %s\n", file.c_str());
    }
  }
  const auto save = [&] {
    if (!file.empty()) ruvector::io::save_checkpoint(file, state, {}, {{"run", key}});
  };
  std::vector<Row> rows;
  for (std::size_t s = 0; s < stages.size(); ++s) {
    if (stages[s].epochs == 0) continue;
    if (static_cast<std::size_t>(state.stage) == s && state.epoch < stages[s].epochs) {
      const Index queries = relevance.items.size();
      const double before = state.seconds;
      double saved = 0;
      Loop loop(label_of(o, stage_names[s].c_str()), "queries", queries * stages[s].epochs);
      while (state.epoch < stages[s].epochs) {
        const Index done = queries * state.epoch;
        if (!trainer.epoch(state, stages[s], [&](Index count, double loss) { return loop(done + count, loss); })) {
          save();
          throw Stopped{};
        }
        state.seconds = before + loop.seconds();
        if (loop.seconds() - saved < 20) continue;
        saved = loop.seconds();
        save();
      }
      save();
    }
    if (const auto row = find_row(o, s)) {
      rows.push_back(*row);
    } else if (static_cast<std::size_t>(state.stage) == s) {  // else the vectors of that stage are gone
      Row measured = row_of(o, s);
      measured.seconds = state.seconds;
      measure(o, relevance, trainer.lift(), state.model.queries, state.model.items, threads, measured);
      append_curve(o, measured);
      if (!o.csv.empty()) append_csv(o.csv, csv_header, line_of(o, s, measured));
      rows.push_back(std::move(measured));
    }
    if (static_cast<std::size_t>(state.stage) == s && s + 1 < stages.size()) trainer.next_stage(state);
  }
  return rows;
}

/// Both rows of a run, from the CSV file if they stand there.
std::vector<Row> find_or_run(const Options& o, const Relevance& relevance, ThreadPool& threads) {
  std::vector<Row> rows;
  for (std::size_t s = 0; s <= o.last_stage(); ++s)
    if (const auto row = find_row(o, s)) rows.push_back(*row);
  if (rows.size() == o.last_stage() + 1) return rows;
  return o.space == "poincare" ? train_and_measure<true>(o, relevance, threads)
                               : train_and_measure<false>(o, relevance, threads);
}

/// "0.873 ± 0.004"
std::string shown(const std::vector<double>& values) {
  const MeanInterval x = mean_interval(values);
  char text[64];
  if (std::isfinite(x.half))
    std::snprintf(text, sizeof text, "%.4f ± %.4f", x.mean, x.half);
  else
    std::snprintf(text, sizeof text, "%.4f         ", x.mean);
  return text;
}

void print_table(const std::vector<Row>& rows) {
  std::map<std::pair<Index, std::string>, std::vector<const Row*>> groups;
  std::vector<std::pair<Index, std::string>> order;
  for (const Row& row : rows) {
    const auto name = std::pair(row.dim, row.space + " " + row.loss + ", " + row.stage);
    if (!groups.contains(name)) order.push_back(name);
    groups[name].push_back(&row);
  }
  std::printf("\n%-28s %-17s %-17s %-17s %-17s %9s\n", "recall@10", "R_emb", "R_emb@|S|", "R_ann", "R_e2e",
              "distances");
  for (const auto& name : order) {
    std::vector<double> emb, size, ann, e2e, distances;
    for (const Row* row : groups[name]) {
      emb.push_back(row->emb.at_10);
      size.push_back(row->emb.at_size);
      ann.push_back(row->ann);
      e2e.push_back(row->e2e.at_10);
      distances.push_back(row->distances);
    }
    std::printf("d = %-2d %-23s %-18s %-18s %-18s %-18s %8.0f\n", int(name.first), name.second.c_str(),
                shown(emb).c_str(), shown(size).c_str(), shown(ann).c_str(), shown(e2e).c_str(),
                mean_interval(distances).mean);
  }
  std::printf("\nR_emb@|S| by hop, %%           ");
  for (std::size_t h = 0; h < Recall::hops; ++h) std::printf(" %5d", int(h));
  std::printf(" worst\n");
  for (const auto& name : order) {
    std::printf("d = %-2d %-23s", int(name.first), name.second.c_str());
    const auto mean = [&](auto&& number) {
      double sum = 0;
      for (const Row* row : groups[name]) sum += number(*row);
      return 100 * sum / static_cast<double>(groups[name].size());
    };
    for (std::size_t h = 0; h < Recall::hops; ++h)
      std::printf(" %5.1f", mean([&](const Row& row) { return row.emb.by_hop[h]; }));
    std::printf(" %5.1f\n", mean([](const Row& row) { return row.emb.worst; }));
  }
}

/// Recall by cost, R_ann on the left and R_e2e on the right, of one run of each space after its last stage.
void draw(const std::string& path, const std::vector<Row>& rows) {
  constexpr double width = 400, height = 300, left = 56, top = 72, bottom = 50, legend = 135, least = 100, most = 20000;
  Svg svg(2 * (left + width) + legend + 30, top + height + bottom,
          "text{font:13px sans-serif;fill:#333}.title{font-size:17px;font-weight:bold}.panel{font-weight:bold}"
          ".grid{stroke:#e4e4e4}.curve{stroke-width:2;stroke-linecap:round}");
  svg.rectangle(0, 0, 2 * (left + width) + legend + 30, top + height + bottom, "fill=\"white\"");
  svg.text(left, 28, "Ancestors of WordNet's nouns: recall@10 by cost, ef = 10 … 512", "class=\"title\"");
  const auto x_of = [&](double distances) { return width * std::log(distances / least) / std::log(most / least); };
  for (int panel = 0; panel < 2; ++panel) {
    const double x0 = left + panel * (left + width + 10);
    svg.text(x0, top - 16, panel == 0 ? "R_ann: against the exhaustive search" : "R_e2e: against the truth",
             "class=\"panel\"");
    const auto y_of = [&](double value) { return top + height * (1 - std::clamp(value, 0.0, 1.0)); };
    for (int tick = 0; tick <= 5; ++tick) {
      svg.line(x0, y_of(tick / 5.0), x0 + width, y_of(tick / 5.0), "class=\"grid\"");
      svg.text(x0 - 8, y_of(tick / 5.0) + 4, Svg::number(tick / 5.0), "text-anchor=\"end\"");
    }
    for (const double tick : {100.0, 300.0, 1000.0, 3000.0, 10000.0})
      svg.text(x0 + x_of(tick), top + height + 18, std::to_string(int(tick)), "text-anchor=\"middle\"");
    svg.text(x0 + width / 2, top + height + 36, "distance evaluations a query", "text-anchor=\"middle\"");
    std::vector<std::string> drawn;
    for (const Row& row : rows) {
      const std::string name = row.space + " " + row.loss;
      if (row.stage != stage_names.back() || std::find(drawn.begin(), drawn.end(), name) != drawn.end()) continue;
      const std::string colour = oklch(0.6, 0.15, 47.0 * static_cast<double>(drawn.size()));
      for (std::size_t i = 1; i < row.curve.size(); ++i) {
        const CurvePoint &a = row.curve[i - 1], &b = row.curve[i];
        if (a.search != b.search) continue;
        svg.line(
            x0 + x_of(a.distances), y_of(panel == 0 ? a.ann : a.e2e), x0 + x_of(b.distances),
            y_of(panel == 0 ? b.ann : b.e2e),
            "class=\"curve\" stroke=\"" + colour + (a.search == Search::hnsw ? "\"" : "\" stroke-dasharray=\"4 5\""));
      }
      if (panel == 1)
        svg.text(x0 + width + 8, top + 12 + 18 * static_cast<double>(drawn.size()), name,
                 "style=\"fill:" + colour + "\"");
      drawn.push_back(name);
    }
  }
  write_text(path, svg.str());
}

/// The recipes by --seeds seeds. Returns the exit code.
int all(Options o, const Relevance& relevance, ThreadPool& threads) {
  std::vector<Row> rows;
  const std::uint64_t first = o.seed;
  for (o.seed = first; o.seed < first + static_cast<std::uint64_t>(o.seeds); ++o.seed)
    for (const Recipe& recipe : recipes) {
      o.space = recipe.space;
      o.loss = recipe.loss;
      for (Row& row : find_or_run(o, relevance, threads)) rows.push_back(std::move(row));
    }
  print_table(rows);
  if (!o.svg.empty()) draw(o.svg, rows);
  return 0;
}

int one(const Options& o, const Relevance& relevance, ThreadPool& threads) {
  const auto rows = find_or_run(o, relevance, threads);
  print_table(rows);
  if (!o.svg.empty()) draw(o.svg, rows);
  return 0;
}

/// The mammals in few dimensions. Returns the exit code.
int quick(Options o, const Relevance& relevance, ThreadPool& threads) {
  struct Case {
    const char* space;
    double least_emb, most_emb, least_ann;
  };
  const Case cases[] = {{"cosine", 0.83, 0.93, 0.94}, {"lorentz", 0.97, 1.0, 0.97}};
  o.dim = 8;
  o.epochs = 40;
  o.far_epochs = 5;
  o.asked = 256;
  o.batch = 128;
  o.negatives = 128;
  bool good = true;
  for (const Case& c : cases) {
    o.space = c.space;
    const auto rows = find_or_run(o, relevance, threads);
    print_table(rows);
    const Row& row = rows.back();
    const bool as_expected = row.emb.at_10 >= c.least_emb && row.emb.at_10 <= c.most_emb && row.ann >= c.least_ann;
    if (!as_expected)
      std::fprintf(stderr, "hierarchical_retrieval: %s: expected R_emb %.2f to %.2f and R_ann from %.2f\n", c.space,
                   c.least_emb, c.most_emb, c.least_ann);
    good = good && as_expected;
  }
  return good ? 0 : 1;
}

/// Describes the command line.
void add_options(CLI::App& app, Options& o) {
  const auto count = CLI::Range(1, 1 << 20);
  app.add_option("--wordnet", o.wordnet, "folder of the WordNet 3 database (Debian: package wordnet-base)")
      ->capture_default_str()
      ->type_name("DIR");
  app.add_option("--root", o.root, "only the first sense of this word and what is below it (default: everything)")
      ->type_name("WORD");
  app.add_option("--space", o.space,
                 "where vectors live: by the cosine, the inner product, hyperbolic distance in the "
                 "ball or on the hyperboloid, half inner product and half hyperbolic")
      ->check(CLI::IsMember(space_names))
      ->capture_default_str();
  app.add_option("--loss", o.loss,
                 "how an item that belongs to a query competes: against all others, those that belong to it too, or "
                 "against those that do not (default: chosen for each space)")
      ->check(CLI::IsMember(loss_names));
  app.add_option("--dim", o.dim, "numbers a vector")->check(CLI::Range(2, 4096))->capture_default_str();
  app.add_option("--epochs", o.epochs, "passes over the queries")->check(count)->capture_default_str();
  app.add_option("--far-epochs", o.far_epochs, "of the second stage, on far pairs; 0: none")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--batch", o.batch, "queries a step")->check(count)->capture_default_str();
  app.add_option("--negatives", o.negatives, "items a step beside those that belong to its queries")
      ->check(count)
      ->capture_default_str();
  app.add_option("--lr", o.learning_rate, "learning rate (default: chosen for each space)")->check(CLI::PositiveNumber);
  app.add_option("--scale", o.scale, "what scores are multiplied with to be logits (default: chosen for each space)")
      ->check(CLI::PositiveNumber);
  app.add_option("--far-lr", o.far_learning_rate, "the same of the second stage")->check(CLI::PositiveNumber);
  app.add_option("--far-scale", o.far_scale, "the same of the second stage")->check(CLI::PositiveNumber);
  app.add_option("--seed", o.seed, "seed of all random numbers, with --all the first")->capture_default_str();
  app.add_option("--links", o.links, "of a node of the index: hnswlib's M")
      ->check(CLI::Range(2, 256))
      ->capture_default_str();
  app.add_option("--ef-construction", o.ef_construction, "breadth of the search for them")
      ->check(count)
      ->capture_default_str();
  app.add_option("--ef", o.ef, "breadth of the search that the table shows")
      ->check(CLI::IsMember({48, 64, 96, 128, 192, 256, 512}))
      ->capture_default_str();
  app.add_option("--asked", o.asked, "queries that the index is asked, drawn at random")
      ->check(count)
      ->capture_default_str();
  app.add_option("--trained", o.trained, "train a search of the index on so many of the other queries, and compare")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--worth", o.worth, "comparisons that a point is worth which it finds more: when that search ends")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--order", o.order, "train searches, too, that also learn where to go");
  app.add_option("--threads", o.threads, "threads of the searches; the result is the same for any number")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--csv", o.csv, "append results to this file; a run whose lines stand there is not repeated")
      ->type_name("FILE");
  app.add_option("--curve-csv", o.curve_csv, "append recall by cost to this file")->type_name("FILE");
  app.add_option("--svg", o.svg, "draw recall by cost to this file")->type_name("FILE");
  app.add_option("--checkpoints", o.checkpoints,
                 "save trainings to this folder now and then and on Ctrl-C, and go on from there")
      ->type_name("DIR")
      ->check(CLI::ExistingDirectory);
  auto* all = app.add_flag("--all", o.all, "five spaces and the published recipe, --seeds seeds, and a table");
  app.add_option("--seeds", o.seeds, "of --all")->check(CLI::Range(1, 100))->capture_default_str();
  app.add_flag("--quick", o.quick, "a small test, exit code 1 if a recall is not what it should be")->excludes(all);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Finds everything above a concept of WordNet, in five spaces, exhaustively and by an index.",
               "hierarchical_retrieval");
  add_options(app, options);
  return run_program(app, argc, argv, [&] {
    try {
      const auto database = wordnet::read(options.wordnet, "noun");
      const auto hierarchy = build_hierarchy(database, options.quick ? "mammal" : options.root);
      const Relevance relevant = relevance(hierarchy);
      std::printf("%d concepts, %d pairs with what is above them and themselves\n", int(hierarchy.size()),
                  int(relevant.items.target.size()));
      ThreadPool threads(options.threads);
      return options.quick ? quick(options, relevant, threads)
             : options.all ? all(options, relevant, threads)
                           : one(options, relevant, threads);
    } catch (const Stopped&) {
      std::fprintf(stderr, "hierarchical_retrieval: stopped%s\n",
                   options.checkpoints.empty() ? "" : "; the same command goes on");
      return 130;
    }
  });
}

#else

int main() {
  std::puts("hierarchical_retrieval was built without hnswlib (Debian and Ubuntu: apt install libhnswlib-dev)");
}

#endif
