// SPDX-License-Identifier: MIT
//
// Learning one task after the other: what is forgotten, and what holds it?
//
//   continual                          split Fashion-MNIST, five arms, task- and class-incremental, 3 seeds
//   continual --data wordnet           five subtrees of WordNet's nouns
//   continual --tune                   the trials on validation data by which the strengths below were chosen
//
// Arms: none; ewc (elastic weight consolidation, Kirkpatrick et al. 2017); si (synaptic intelligence, Zenke et al.
// 2017); replay (1000 rows of the past, as many of them as new ones in each step); joint (all rows so far: what could
// be reached). The model is an Mlp with ReLU (Fashion-MNIST 784-400-400-10), Adam 1e-3, new for each task, batches of
// 128. In the task-incremental scenario it is told which task a row belongs to and chooses among its classes; in the
// class-incremental one it chooses among the classes of all tasks so far. Van de Ven et al. 2022 take 2000 steps a
// task; the default here is 200, which shows the same order of arms.
//
// WordNet: see wordnet_subtrees() for the question. Its subtrees share the encoder of words and glosses, so learning
// one can spoil another; a table of vectors, which shares nothing, would have nothing to forget.
//
// The strengths of ewc and si were chosen on validation rows with one seed that is not used elsewhere (100), eight
// trials each (the powers of ten of --tune), by what is right at the end; split Fashion-MNIST in its task-incremental
// scenario, whose choice the other one shares. none, replay and joint have nothing to choose.

#include "support/command_line.hpp"
#include "support/continual_data.hpp"
#include "support/continual_learning.hpp"
#include "support/curves.hpp"
#include "support/fashion_mnist.hpp"
#include "support/interrupt.hpp"
#include "support/intervals.hpp"
#include "support/progress_bar.hpp"
#include "support/text_files.hpp"

#include <CLI/CLI.hpp>
#include <ruvector/core/executor.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <map>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace examples;
using ruvector::ThreadPool;

constexpr std::array arms = {Arm::none, Arm::ewc, Arm::si, Arm::replay, Arm::joint};
constexpr std::array scenarios = {Scenario::task, Scenario::classes};
constexpr std::array strengths = {1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6};

const char* name_of(Arm arm) {
  return std::array{"none", "ewc", "si", "replay", "joint"}[std::size_t(arm)];
}
const char* name_of(Scenario scenario) {
  return scenario == Scenario::task ? "task" : "class";
}

struct Options {
  std::string data = "fashion", scenario = "both", fashion_mnist = fashion_mnist::default_directory(),
              wordnet = "/usr/share/wordnet", csv, svg, checkpoints;
  std::vector<std::string> only;
  std::optional<double> strength;
  Index iterations = 100, seeds = 3;
  Index threads = std::max(1, int(std::thread::hardware_concurrency()));
  bool tune = false, quick = false;

  [[nodiscard]] bool wants(Arm arm) const {
    return only.empty() || std::find(only.begin(), only.end(), name_of(arm)) != only.end();
  }
  [[nodiscard]] bool wants(Scenario which) const { return scenario == "both" || scenario == name_of(which); }
};

/// As chosen by --tune.
double tuned_strength(const Options& options, Arm arm, Scenario scenario) {
  if (arm != Arm::ewc && arm != Arm::si) return 0;
  if (options.strength) return *options.strength;
  if (options.data == "fashion") return arm == Arm::ewc ? 1e4 : 1e3;
  return arm == Arm::ewc && scenario == Scenario::classes ? 1e4 : 1e2;
}

ContinualResult run(const ContinualProblem& problem, const Options& options, ContinualConfig config,
                    ThreadPool& threads) {
  config.iterations = options.iterations;
  if (!options.checkpoints.empty() && !config.validation)
    config.checkpoint = options.checkpoints + "/" + options.data + "-" + name_of(config.scenario) + "-" +
                        name_of(config.arm) + "-" + std::to_string(config.seed) + ".safetensors";
  std::stop_source stop;
  ProgressBar bar(std::string(name_of(config.scenario)) + ", " + name_of(config.arm), "steps");
  return learn_continually(
      problem, config, threads,
      [&](const ruvector::ProgressReport& report) {
        pass_on_interrupt(stop);
        bar(report);
      },
      stop.get_token());
}

/// Mean and interval as "0.123 ± 0.004".
std::string text(const std::vector<double>& values) {
  const MeanInterval interval = mean_interval(values);
  char line[48];
  std::snprintf(line, sizeof line, values.size() > 1 ? "%.4f ± %.4f" : "%.4f", interval.mean, interval.half);
  return line;
}

void tune(const ContinualProblem& problem, const Options& options, ThreadPool& threads) {
  std::printf("%s at the end / forgetting, on rows for validation\n%-10s", problem.metric.c_str(), "");
  for (const double strength : strengths) std::printf("  %12g", strength);
  for (const Scenario scenario : scenarios)
    for (const Arm arm : {Arm::ewc, Arm::si}) {
      if (!options.wants(scenario) || !options.wants(arm)) continue;
      std::printf("\n%-5s %-4s", name_of(scenario), name_of(arm));
      for (const double strength : strengths) {
        if (interrupted()) return;
        const auto result =
            run(problem, options,
                {.scenario = scenario, .arm = arm, .strength = strength, .seed = 100, .validation = true}, threads);
        if (result.finished) std::printf("  %.3f / %.3f", result.at_end(), result.forgetting());
        std::fflush(stdout);
      }
    }
  std::printf("\n");
}

/// Values of one arm, by seed.
struct ArmResult {
  std::vector<double> at_end, forgetting;
};

void write_csv(const Options& options, Scenario scenario, Arm arm, std::uint64_t seed, double strength,
               const ContinualResult& result, double seconds) {
  if (options.csv.empty()) return;
  char line[160];
  std::snprintf(line, sizeof line, "%s,%s,%s,%llu,%g,%d,%.5f,%.5f,%.1f", options.data.c_str(), name_of(scenario),
                name_of(arm), static_cast<unsigned long long>(seed), strength, int(options.iterations), result.at_end(),
                result.forgetting(), seconds);
  append_csv(options.csv, "data,scenario,arm,seed,strength,iterations,at_end,forgetting,seconds", line);
}

/// All arms of a scenario; the panels of the first seed are added to `panels`. Empty if interrupted.
std::map<Arm, ArmResult> compare(const ContinualProblem& problem, const Options& options, Scenario scenario,
                                 ThreadPool& threads, std::vector<Panel>& panels) {
  std::map<Arm, ArmResult> results;
  std::printf("\n%s, %s-incremental, %d steps a task\n%-7s %-18s  %-18s  seconds\n", problem.name.c_str(),
              name_of(scenario), int(options.iterations), "", (problem.metric + " at end").c_str(), "forgetting");
  for (const Arm arm : arms) {
    if (!options.wants(arm)) continue;
    const double strength = tuned_strength(options, arm, scenario);
    const auto start = std::chrono::steady_clock::now();
    const auto seconds = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    for (Index s = 1; s <= options.seeds; ++s) {
      const double before = seconds();
      ContinualConfig config{.scenario = scenario, .arm = arm, .strength = strength, .seed = std::uint64_t(s)};
      if (!options.svg.empty() && s == 1) config.curve_every = std::max(Index(1), options.iterations / 4);
      const auto result = run(problem, options, config, threads);
      if (!result.finished) return {};
      results[arm].at_end.push_back(result.at_end());
      results[arm].forgetting.push_back(result.forgetting());
      write_csv(options, scenario, arm, config.seed, strength, result, seconds() - before);
      if (config.curve_every == 0) continue;
      Panel& panel = panels.emplace_back(Panel{std::string(name_of(scenario)) + ", " + name_of(arm), {}});
      for (std::size_t t = 0; t < result.curves.size(); ++t) {
        Curve& curve = panel.curves.emplace_back(Curve{"task " + std::to_string(t + 1), result.curves[t]});
        curve.values.insert(curve.values.begin(), result.curves[0].size() - curve.values.size(), 0.0);
      }
    }
    std::printf("%-7s %-18s  %-18s  %7.1f\n", name_of(arm), text(results[arm].at_end).c_str(),
                text(results[arm].forgetting).c_str(), seconds());
    std::fflush(stdout);
  }
  return results;
}

/// Whether ewc forgets less than none by more than the interval of the paired difference (one seed: than 0).
bool ewc_helps(const std::map<Arm, ArmResult>& results) {
  if (!results.contains(Arm::none) || !results.contains(Arm::ewc)) return true;
  std::vector<double> gain = results.at(Arm::none).forgetting;
  for (std::size_t s = 0; s < gain.size(); ++s) gain[s] -= results.at(Arm::ewc).forgetting[s];
  const MeanInterval interval = mean_interval(gain);
  const bool helps = interval.mean > (gain.size() > 1 ? interval.half : 0.0);
  std::printf("forgetting of none minus that of ewc: %s: %s\n", text(gain).c_str(),
              helps ? "ewc forgets less" : "no difference");
  return helps;
}

int compare_all(const ContinualProblem& problem, const Options& options, ThreadPool& threads) {
  std::vector<Panel> panels;
  bool good = true;
  for (const Scenario scenario : scenarios) {
    if (!options.wants(scenario)) continue;
    const auto results = compare(problem, options, scenario, threads, panels);
    if (interrupted()) return 130;
    const bool helps = ewc_helps(results);
    if (scenario == Scenario::task) good = helps;
    if (!options.quick) continue;
    const double lost = results.at(Arm::none).forgetting[0];
    good = good && 0.02 <= lost && lost <= 0.5 && results.at(Arm::ewc).at_end[0] >= 0.85;
  }
  if (!options.svg.empty())
    write_text(options.svg,
               draw_curves(problem.name + ": " + problem.metric + " of each task", "points of measurement", panels));
  if (!options.quick || good) return 0;
  std::fprintf(stderr, "continual: a figure of --quick is not what it should be\n");
  return 1;
}

void add_options(CLI::App& app, Options& o) {
  app.add_option("--data", o.data, "fashion: five tasks of two classes; wordnet: five subtrees of nouns")
      ->check(CLI::IsMember({"fashion", "wordnet"}))
      ->capture_default_str();
  app.add_option("--scenario", o.scenario, "is a row's task told (task) or not (class)")
      ->check(CLI::IsMember({"task", "class", "both"}))
      ->capture_default_str();
  app.add_option("--arm", o.only, "only this arm: none, ewc, si, replay, joint (may be repeated; default: all)")
      ->check(CLI::IsMember({"none", "ewc", "si", "replay", "joint"}));
  app.add_option("--iterations", o.iterations, "steps a task")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.add_option("--seeds", o.seeds, "trainings of each arm, with the seeds 1, 2, …")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--strength", o.strength, "λ of ewc, c of si (default: as tuned)")->check(CLI::Range(0.0, 1e12));
  app.add_flag("--tune", o.tune, "try strengths on validation rows, and print how they do");
  app.add_option("--fashion-mnist", o.fashion_mnist,
                 "folder of Fashion-MNIST (Debian: package dataset-fashion-mnist; or set RUVECTOR_FASHION_MNIST)")
      ->capture_default_str()
      ->type_name("DIR");
  app.add_option("--wordnet", o.wordnet, "folder of the WordNet 3 database (Debian: package wordnet-base)")
      ->capture_default_str()
      ->type_name("DIR");
  app.add_option("--checkpoints", o.checkpoints, "folder to save trainings in, and to go on from after Ctrl-C")
      ->check(CLI::ExistingDirectory)
      ->type_name("DIR");
  app.add_option("--threads", o.threads, "threads; the result is the same for any number")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--csv", o.csv, "append a line for each training to this file")->type_name("FILE");
  app.add_option("--svg", o.svg, "draw each task's curve over the training with seed 1 to this file")
      ->type_name("FILE");
  app.add_flag("--quick", o.quick,
               "none and ewc, one seed, few steps; exit code 1 if a figure is not what it should be");
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Learning one task after the other, with and without forgetting.", "continual");
  add_options(app, options);
  return run_program(app, argc, argv, [&] {
    if (options.quick) {
      options.only = {"none", "ewc"};
      options.scenario = "task";
      options.seeds = 1;
      options.iterations = 60;
    }
    const ContinualProblem problem =
        options.data == "fashion" ? split_fashion_mnist(options.fashion_mnist) : wordnet_subtrees(options.wordnet, 1);
    std::printf("%s:", problem.name.c_str());
    for (Index t = 0; t < problem.count(); ++t)
      std::printf("%s %d classes, %d rows", t > 0 ? ";" : "",
                  int(problem.first_class[std::size_t(t) + 1] - problem.first_class[std::size_t(t)]),
                  int(problem.tasks[std::size_t(t)].train.size()));
    std::printf("; %d features\n", int(problem.features.cols()));
    ThreadPool threads(options.threads);
    if (!options.tune) return compare_all(problem, options, threads);
    tune(problem, options, threads);
    return interrupted() ? 130 : 0;
  });
}
