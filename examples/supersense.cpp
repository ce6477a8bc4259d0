// SPDX-License-Identifier: MIT
//
// Do typed edges help? The 82,115 nouns of WordNet, each with its definition, are to be sorted into 26 classes, the
// topics under which lexicographers wrote them, by a graph network that knows the class of one noun in ten:
//
//   supersense --edges typed                        one model: which relation an edge is
//   supersense --edges none --features none         the same without it, and without the definitions
//   supersense --all --csv runs.csv --svg runs.svg  five ways to know edges × two splits × five seeds
//   supersense --edges none --attention dot --positions spectral
//                                                   dot products instead, turned by positions of the nodes (GraphRoPE)
//
// The model: a learned vector a word, summed by tf-idf; two layers of messages along the edges, of GATv2 attention
// (RuvectorLayerV2::with_edge_featured); a linear classifier. It learns from mini-batches of labelled nouns with up to
// --fan-out neighbours of each, drawn anew every time, and answers from all neighbours. All arms have equal numbers of
// parameters and recipes, and what --tune found for each of them among the same eight trials. Classes are seen by the
// loss alone: a node's number, which follows the lexicographers' files, is no feature, and edges are WordNet's own.

#include "support/command_line.hpp"
#include "support/curves.hpp"
#include "support/interrupt.hpp"
#include "support/intervals.hpp"
#include "support/progress_bar.hpp"
#include "support/supersense_data.hpp"
#include "support/supersense_model.hpp"
#include "support/text_files.hpp"
#include "support/wordnet.hpp"

#include <CLI/CLI.hpp>
#include <ruvector/core/executor.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/io/checkpoint.hpp>
#include <ruvector/io/safetensors.hpp>
#include <ruvector/train/adam.hpp>
#include <ruvector/train/fit.hpp>
#include <ruvector/train/schedule.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <limits>
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
namespace train = ruvector::train;
using ruvector::ThreadPool;

const std::vector<std::string> edge_names{"none", "scalar", "typed", "shuffled", "directed"};  // as EdgeInfo
const std::vector<std::string> node_names{"glosses", "lemmas", "labels", "none"};              // as NodeInfo
const std::vector<std::string> split_names{"random", "subtree"};
const std::vector<std::string> position_names{"none", "random", "rwpe", "landmark", "spectral"};  // as PositionInfo
constexpr Index coordinates = 8;

template <class Enum>
Enum named(const std::vector<std::string>& names, const std::string& name) {
  return static_cast<Enum>(std::find(names.begin(), names.end(), name) - names.begin());
}

/// What is chosen on the validation nodes.
struct Recipe {
  double learning_rate, dropout;
  bool edge_in_value;
};

/// The trials of --tune.
constexpr std::array<Recipe, 8> trials{{{0.005, 0.3, false},
                                        {0.01, 0.3, false},
                                        {0.005, 0.5, false},
                                        {0.01, 0.5, false},
                                        {0.005, 0.3, true},
                                        {0.01, 0.3, true},
                                        {0.005, 0.5, true},
                                        {0.01, 0.5, true}}};

/// The best of them for each arm, as EdgeInfo, by the validation nodes of the random split, seed 101.
constexpr std::array<Recipe, 5> chosen{{trials[1], trials[5], trials[1], trials[1], trials[1]}};

struct Options {
  std::string wordnet = "/usr/share/wordnet", root;
  std::string edges = "typed", split = "random", features = "glosses", csv, svg, checkpoint;
  std::string attention = "gatv2", positions = "none";
  double labels = 0.1;
  std::optional<double> learning_rate, dropout;
  std::optional<bool> edge_in_value;
  Index dim = 64, heads = 4, epochs = 20, batch = 512, fan_out = 8, threads = 1, seeds = 5;
  std::uint64_t seed = 1;
  bool all = false, tune = false, quick = false;

  [[nodiscard]] Recipe recipe() const {
    const EdgeInfo info = attention == "dot" ? EdgeInfo::none : named<EdgeInfo>(edge_names, edges);
    const Recipe& best = chosen[static_cast<std::size_t>(info)];
    return {learning_rate.value_or(best.learning_rate), dropout.value_or(best.dropout),
            edge_in_value.value_or(best.edge_in_value)};
  }
};

/// How well a model did.
struct Run {
  double validation = 0, test = 0;  // accuracies; NaN: not looked at
  double seconds = 0;
  std::vector<double> curve;  // validation accuracy of each epoch, of some of the nodes
  bool complete = true;
};

constexpr const char* csv_header =
    "root,edges,split,features,attention,positions,labels,seed,dim,heads,epochs,batch,fan_out,learning_rate,dropout,"
    "edge_in_value,validation,test,seconds,curve";

/// All that the result depends on: the start of the line in the CSV file.
std::string key_of(const Options& o) {
  char text[256];
  const Recipe recipe = o.recipe();
  std::snprintf(text, sizeof text, "%s,%s,%s,%s,%s,%s,%g,%llu,%d,%d,%d,%d,%d,%g,%g,%d,", o.root.c_str(),
                o.edges.c_str(), o.split.c_str(), o.features.c_str(), o.attention.c_str(), o.positions.c_str(),
                o.labels, static_cast<unsigned long long>(o.seed), int(o.dim), int(o.heads), int(o.epochs),
                int(o.batch), int(o.fan_out), recipe.learning_rate, recipe.dropout, int(recipe.edge_in_value));
  return text;
}

/// The run of a line that starts with `key`, if there is one.
std::optional<Run> find_run(const std::string& csv, const std::string& key) {
  if (csv.empty() || !std::filesystem::exists(csv)) return {};
  std::istringstream lines(read_text(csv));
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(key)) continue;
    Run run;
    std::istringstream rest(line.substr(key.size()));
    std::array<std::string, 3> numbers;
    for (std::string& number : numbers) std::getline(rest, number, ',');
    run.validation = std::atof(numbers[0].c_str());
    run.test = std::atof(numbers[1].c_str());
    run.seconds = std::atof(numbers[2].c_str());
    for (std::string value; std::getline(rest, value, ';');) run.curve.push_back(std::atof(value.c_str()));
    return run;
  }
  return {};
}

std::string line_of(const std::string& key, const Run& run) {
  char text[96];
  std::snprintf(text, sizeof text, "%.5f,%.5f,%.1f,", run.validation, run.test, run.seconds);
  std::string line = key + text;
  for (std::size_t i = 0; i < run.curve.size(); ++i) {
    std::snprintf(text, sizeof text, "%s%.4f", i == 0 ? "" : ";", run.curve[i]);
    line += text;
  }
  return line;
}

/// A training on its way: what fit() remembers, and the curve.
struct Training {
  using State = train::FitState<SupersenseModel, train::Adam<SupersenseModel>, train::WarmupCosine>;
  State state;
  std::vector<double> curve;  // see Run
  double seconds = 0;

  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("state", self.state);
    visit("curve", self.curve);
    visit("seconds", self.seconds);
  }
};

Training start(const Options& o, const SupersenseProblem& problem, const Rng& rng) {
  const Recipe recipe = o.recipe();
  Rng init = rng.split(2);
  const SupersenseModel model({.dim = o.dim,
                               .heads = o.heads,
                               .dropout = recipe.dropout,
                               .edge_in_value = recipe.edge_in_value,
                               .coordinates = o.attention == "dot" ? coordinates : 0},
                              problem.nodes.vocabulary, init);
  const Index steps = (static_cast<Index>(problem.split.training.size()) - 1) / o.batch + 1;
  return {{model, train::Adam(model, {.learning_rate = recipe.learning_rate}), rng.split(3),
           train::WarmupCosine{.warm_up = steps, .total = steps * o.epochs}},
          std::vector<double>(static_cast<std::size_t>(o.epochs))};
}

/// Goes on where `file`, of the same run, was left.
void resume(const std::string& file, const std::string& key, Training& training) {
  if (file.empty() || !std::filesystem::exists(file)) return;
  const auto& metadata = ruvector::io::SafetensorsFile(file).metadata;
  const auto saved = metadata.find("run");
  if (saved == metadata.end() || saved->second != key) return;
  ruvector::io::load_checkpoint(file, training);
  std::fprintf(stderr, "goes on after epoch %d of %s\n", int(training.state.epoch), file.c_str());
}

/// Trains until the end, or until Ctrl-C. Returns whether it came to the end.
bool finish(const Options& o, const SupersenseProblem& problem, Training& training, ThreadPool& threads,
            ruvector::Workspace& ws) {
  const auto save = [&] {
    if (!o.checkpoint.empty()) ruvector::io::save_checkpoint(o.checkpoint, training, {}, {{"run", key_of(o)}});
  };
  const double before = training.seconds;
  double saved = before;
  train::FitHooks<Training::State> hooks;
  hooks.validate = [&](const Training::State& state) {
    const std::span<const std::int32_t> all(problem.split.validation);
    const double value =
        accuracy(state.model, problem, all.first(std::min<std::size_t>(2000, all.size())), ws, threads);
    training.curve[static_cast<std::size_t>(state.epoch)] = value;
    return -value;
  };
  hooks.checkpoint = [&](const Training::State&) {
    constexpr double seconds = 10;  // that may be lost
    if (training.seconds - saved < seconds) return;
    save();
    saved = training.seconds;
  };
  ProgressBar bar(o.edges + ", " + o.split + ", seed " + std::to_string(o.seed), "batches");
  std::stop_source stop;
  const auto progress = [&](const ruvector::ProgressReport& report) {
    pass_on_interrupt(stop);
    training.seconds = before + report.seconds;
    bar(report);
  };
  SupersenseObjective objective(problem, o.fan_out, threads.concurrency());
  const train::FitConfig config{
      .epochs = o.epochs, .batch_size = o.batch, .micro_batch = 256, .schedule_by_epoch = false};
  const auto end = train::fit(training.state, static_cast<Index>(problem.split.training.size()), objective, config,
                              hooks, threads, progress, stop.get_token())
                       .end;
  if (end == train::FitEnd::diverged) throw std::runtime_error("the training diverged");
  if (end == train::FitEnd::cancelled) save();
  return end == train::FitEnd::finished;
}

/// Trains a model and judges it. `look_at_test`: not while hyper-parameters are chosen.
Run run_one(const Options& o, const SupersenseGraph& data, bool look_at_test) {
  const Rng rng(o.seed);
  const SupersenseProblem problem(
      data, named<NodeInfo>(node_names, o.features),
      o.attention == "dot"
          ? relative_positions(data, named<PositionInfo>(position_names, o.positions), coordinates, rng.split(1))
          : edge_features(data, named<EdgeInfo>(edge_names, o.edges), rng.split(1)),
      o.split == "subtree", o.labels, rng);
  Training training = start(o, problem, rng);
  resume(o.checkpoint, key_of(o), training);
  ThreadPool threads(o.threads);
  ruvector::Workspace ws;
  Run run;
  run.complete = finish(o, problem, training, threads, ws);
  if (!run.complete) return run;
  run.seconds = training.seconds;
  run.curve = training.curve;
  const auto judged = [&](std::span<const std::int32_t> nodes) {
    return accuracy(training.state.model, problem, nodes, ws, threads);
  };
  run.validation = judged(problem.split.validation);
  run.test = look_at_test ? judged(problem.split.test) : std::numeric_limits<double>::quiet_NaN();
  if (!o.checkpoint.empty()) std::filesystem::remove(o.checkpoint);
  return run;
}

/// The run of these options, from the CSV file if it stands there.
Run find_or_run(const Options& o, const SupersenseGraph& data, bool look_at_test = true) {
  const std::string key = key_of(o);
  if (const auto run = find_run(o.csv, key)) return *run;
  Run run = run_one(o, data, look_at_test);
  if (run.complete && !o.csv.empty()) append_csv(o.csv, csv_header, line_of(key, run));
  return run;
}

/// Runs of --all.
struct SplitRuns {
  std::string split;
  std::vector<std::vector<Run>> arms;  // as edge_names, by seed
};
using Table = std::vector<SplitRuns>;

/// "0.873 ± 0.004"
std::string shown(const MeanInterval& x, double scale, const char* format) {
  char text[64];
  std::snprintf(text, sizeof text, format, scale * x.mean, scale * x.half);
  return text;
}

void print_table(const Table& table) {
  for (const auto& [split, arms] : table) {
    std::printf("\n%-15s test accuracy     more than none, %%   validation\n", (split + " split").c_str());
    for (std::size_t e = 0; e < arms.size(); ++e) {
      std::vector<double> test, gain, validation;
      for (std::size_t k = 0; k < arms[e].size(); ++k) {
        test.push_back(arms[e][k].test);
        validation.push_back(arms[e][k].validation);
        gain.push_back(test.back() / arms[0][k].test - 1);
      }
      std::printf("%-15s %s   %s    %.4f\n", edge_names[e].c_str(),
                  shown(mean_interval(test), 1, "%.4f ± %.4f").c_str(),
                  e == 0 ? "                 " : shown(mean_interval(gain), 100, "%+6.2f ± %-8.2f").c_str(),
                  mean_interval(validation).mean);
    }
  }
}

void draw(const std::string& path, const Table& table) {
  std::vector<Panel> panels;
  for (const auto& [split, arms] : table) {
    Panel& panel = panels.emplace_back(Panel{split + " split", {}});
    for (std::size_t e = 0; e < arms.size(); ++e) {
      Curve& curve = panel.curves.emplace_back(Curve{edge_names[e], {}});
      for (const Run& run : arms[e]) {
        curve.values.resize(run.curve.size());
        for (std::size_t i = 0; i < run.curve.size(); ++i)
          curve.values[i] += run.curve[i] / static_cast<double>(arms[e].size());
      }
    }
  }
  write_text(path, draw_curves("Classes of WordNet's nouns: accuracy on validation nodes", "epoch", panels));
}

/// Five arms × the splits × --seeds seeds. Returns the exit code.
int all(Options o, const SupersenseGraph& data, const std::vector<std::string>& splits) {
  Table table;
  for (const std::string& split : splits) table.push_back({split, std::vector<std::vector<Run>>(edge_names.size())});
  const std::uint64_t first = o.seed;
  for (o.seed = first; o.seed < first + static_cast<std::uint64_t>(o.seeds); ++o.seed)
    for (SplitRuns& part : table)
      for (std::size_t e = 0; e < edge_names.size(); ++e) {
        o.split = part.split;
        o.edges = edge_names[e];
        part.arms[e].push_back(find_or_run(o, data));
        if (part.arms[e].back().complete) continue;
        std::fprintf(stderr, "supersense: stopped; the same command goes on%s\n",
                     o.csv.empty() ? " if it has a --csv FILE" : "");
        return 130;
      }
  print_table(table);
  if (!o.svg.empty()) draw(o.svg, table);
  return 0;
}

/// The eight trials of each arm. The test nodes are not looked at. Returns the exit code.
int tune(Options o, const SupersenseGraph& data) {
  std::printf("validation accuracy by learning rate, dropout, edge_in_value\n%-10s", "");
  for (const Recipe& trial : trials)
    std::printf("  %g %g %d", trial.learning_rate, trial.dropout, int(trial.edge_in_value));
  for (const std::string& edges : edge_names) {
    o.edges = edges;
    std::printf("\n%-10s", edges.c_str());
    for (const Recipe& trial : trials) {
      o.learning_rate = trial.learning_rate;
      o.dropout = trial.dropout;
      o.edge_in_value = trial.edge_in_value;
      const Run run = find_or_run(o, data, false);
      if (!run.complete) return 130;
      std::printf("  %11.4f", run.validation);
      std::fflush(stdout);
    }
  }
  std::printf("\n");
  return 0;
}

/// One run. Returns the exit code.
int one(const Options& o, const SupersenseGraph& data) {
  const Run run = find_or_run(o, data);
  if (!run.complete) {
    std::fprintf(stderr, "supersense: stopped%s\n", o.checkpoint.empty() ? "" : "; the same command goes on");
    return 130;
  }
  std::printf("%s edges, %s split, seed %llu: validation %.4f, test %.4f, %.1f s\n", o.edges.c_str(), o.split.c_str(),
              static_cast<unsigned long long>(o.seed), run.validation, run.test, run.seconds);
  if (!o.svg.empty())
    write_text(o.svg, draw_curves("Classes of WordNet's nouns: accuracy on validation nodes", "epoch",
                                  {{o.split + " split", {{o.edges, run.curve}}}}));
  return 0;
}

/// Half of the nouns and a small model: nodes that know their definitions, and nodes that know nothing, so that only
/// types of edges tell them apart. Returns the exit code.
int quick(Options o, const wordnet::Database& database) {
  struct Case {
    const char *features, *edges;
    Index epochs;
    double least, most;
  };
  // A quarter of these nouns are artifacts.
  const Case cases[] = {
      {"glosses", "typed", 5, 0.77, 0.87}, {"none", "shuffled", 6, 0.22, 0.29}, {"none", "directed", 6, 0.35, 0.55}};
  const SupersenseGraph data = supersense_graph(database, "physical_entity");
  o.dim = 16;
  o.batch = 128;
  o.edge_in_value = true;
  bool good = true;
  for (const Case& c : cases) {
    o.features = c.features;
    o.edges = c.edges;
    o.epochs = c.epochs;
    const Run run = run_one(o, data, true);
    if (!run.complete) return 130;
    std::printf("nodes know %-8s edges %-9s test accuracy %.4f, expected %.2f to %.2f\n", c.features, c.edges, run.test,
                c.least, c.most);
    good = good && run.test >= c.least && run.test <= c.most;
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
  app.add_option("--edges", o.edges,
                 "what is known of an edge: nothing, a number (the distance of the definitions), its relation, that of "
                 "another edge, its relation and direction")
      ->check(CLI::IsMember(edge_names))
      ->capture_default_str();
  app.add_option("--split", o.split, "which nodes are tested: any, or whole subtrees below depth 4")
      ->check(CLI::IsMember(split_names))
      ->capture_default_str();
  app.add_option("--features", o.features,
                 "what nodes know: definition and words, words, the class of those that are learned from, nothing")
      ->check(CLI::IsMember(node_names))
      ->capture_default_str();
  app.add_option("--attention", o.attention,
                 "gatv2: sees the features of edges; dot: products of queries and keys that rotary positions turn")
      ->check(CLI::IsMember({"gatv2", "dot"}))
      ->capture_default_str();
  app.add_option("--positions", o.positions,
                 "coordinates of the nodes, for dot: none, random numbers, chances to return of random walks, hops to "
                 "landmarks, eigenvectors of the Laplacian")
      ->check(CLI::IsMember(position_names))
      ->capture_default_str();
  app.add_option("--labels", o.labels, "share of the nodes that is learned from")
      ->check(CLI::Range(0.0, 0.7))
      ->capture_default_str();
  app.add_option("--seed", o.seed, "seed of all random numbers, with --all the first")->capture_default_str();
  app.add_option("--epochs", o.epochs, "passes over the labelled nodes")->check(count)->capture_default_str();
  app.add_option("--batch", o.batch, "labelled nodes a step")->check(count)->capture_default_str();
  app.add_option("--fan-out", o.fan_out, "neighbours of a node that a step looks at")
      ->check(count)
      ->capture_default_str();
  app.add_option("--dim", o.dim, "columns of all layers, a multiple of the heads")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--heads", o.heads, "of attention")->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--lr", o.learning_rate, "learning rate (default: the best of --tune)")->check(CLI::PositiveNumber);
  app.add_option("--dropout", o.dropout, "of word vectors and layers (default: the best of --tune)")
      ->check(CLI::Range(0.0, 0.99));
  app.add_option("--edge-in-value", o.edge_in_value,
                 "1: edges change messages, 0: only their weights (default: the best of --tune)");
  app.add_option("--threads", o.threads, "threads; the result is the same for any number")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--csv", o.csv, "append results to this file; a run whose line stands there is not repeated")
      ->type_name("FILE");
  app.add_option("--svg", o.svg, "draw the learning curves to this file")->type_name("FILE");
  app.add_option("--checkpoint", o.checkpoint, "save the training here now and then and on Ctrl-C, and go on from it")
      ->type_name("FILE");
  auto* all = app.add_flag("--all", o.all,
                           "the five kinds of edges, both splits (or that of --split), --seeds seeds, and a table");
  app.add_option("--seeds", o.seeds, "of --all")->check(CLI::Range(1, 100))->capture_default_str();
  auto* tune = app.add_flag("--tune", o.tune, "the eight trials of each kind of edges (no test), and a table");
  auto* quick = app.add_flag("--quick", o.quick, "a small test, exit code 1 if an accuracy is not what it should be");
  all->excludes(tune)->excludes(quick);
  tune->excludes(quick);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Sorts the nouns of WordNet into 26 classes by a graph network, to see what typed edges are worth.",
               "supersense");
  add_options(app, options);
  return run_program(app, argc, argv, [&] {
    if (options.attention == "dot" ? options.edges != "none" : options.positions != "none")
      throw CLI::ValidationError("--attention", "dot goes with --edges none, gatv2 with --positions none");
    if (options.attention == "dot" && (options.all || options.tune || options.quick))
      throw CLI::ValidationError("--attention", "--all, --tune and --quick are about gatv2");
    const auto database = wordnet::read(options.wordnet, "noun");
    if (options.quick) return quick(options, database);
    const SupersenseGraph data = supersense_graph(database, options.root);
    const auto splits = app.count("--split") > 0 ? std::vector{options.split} : split_names;
    return options.all ? all(options, data, splits) : options.tune ? tune(options, data) : one(options, data);
  });
}
