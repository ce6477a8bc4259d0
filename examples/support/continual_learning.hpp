// SPDX-License-Identifier: MIT
#pragma once

#include "continual_data.hpp"

#include <ruvector/core/executor.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/progress.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/view.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/io/checkpoint.hpp>
#include <ruvector/nn/mlp.hpp>
#include <ruvector/train/adam.hpp>
#include <ruvector/train/ewc.hpp>
#include <ruvector/train/fit.hpp>
#include <ruvector/train/losses.hpp>
#include <ruvector/train/replay.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <stop_token>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace examples {

using Mlp = ruvector::nn::Mlp<float>;

/// Which classes a row may be said to be: those of its task, which is told (task-incremental), or those of all tasks so
/// far (class-incremental).
enum class Scenario { task, classes };

/// What is done against forgetting.
enum class Arm { none, ewc, si, replay, joint };

/// One training through all tasks.
struct ContinualConfig {
  Scenario scenario = Scenario::task;
  Arm arm = Arm::none;
  double strength = 0;  ///< λ of ewc, c of si
  Index iterations = 400, batch = 128;
  Index fisher_samples = 256;
  Index memory = 1000;  ///< rows that replay keeps
  std::uint64_t seed = 1;
  bool validation = false;      ///< measure on the rows for validation, not on those for testing
  Index curve_every = 0;        ///< steps between points of the curves; 0: no curves
  std::string checkpoint = "";  ///< file to go on from, and to save to; empty: none
};

/// What came of it.
struct ContinualResult {
  ruvector::Matrix<double> quality;         ///< [tasks×tasks]: of task j when task i had been learned
  std::vector<std::vector<double>> curves;  ///< of each task, while it and later ones were learned
  bool finished = false;

  /// Mean over all tasks at the end.
  [[nodiscard]] double at_end() const {
    double sum = 0;
    for (const double q : quality.row(quality.rows() - 1)) sum += q / double(quality.cols());
    return sum;
  }
  /// Mean over all tasks but the last of what was lost since it had been learned.
  [[nodiscard]] double forgetting() const {
    const Index last = quality.rows() - 1;
    double sum = 0;
    for (Index j = 0; j < last; ++j) sum += (quality(j, j) - quality(last, j)) / double(last);
    return sum;
  }
};

namespace detail {

/// Logits of rows with those of classes that are out of the question pushed to where e^x is 0.
class MaskedClassifier {
 public:
  MaskedClassifier(const ContinualProblem& problem, Scenario scenario) : problem_(problem), scenario_(scenario) {}

  Index task = 0;  ///< that is being learned

  void gather(std::span<const Index> rows, ruvector::MatrixView<float> x) const {
    for (Index i = 0; i < x.rows(); ++i)
      std::ranges::copy(problem_.features.row(rows[std::size_t(i)]), x.row(i).begin());
  }
  void mask(Index row, std::span<float> logits) const {
    constexpr float impossible = -1e9F;
    const Index own = problem_.task_of(problem_.labels[std::size_t(row)]);
    const Index first = scenario_ == Scenario::task ? problem_.first_class[std::size_t(own)] : 0;
    const Index last = problem_.first_class[std::size_t(scenario_ == Scenario::task ? own : task) + 1];
    std::fill(logits.begin(), logits.begin() + first, impossible);
    std::fill(logits.begin() + last, logits.end(), impossible);
  }

  /// The objective of a step.
  ruvector::train::LossSum operator()(const Mlp& model, std::span<const Index> rows, Mlp& gradient,
                                      ruvector::train::FitContext& context) const {
    auto frame = context.workspace.frame();
    const Index n = Index(rows.size()), classes = problem_.classes();
    const auto x = frame.matrix<float>(n, problem_.features.cols()), logits = frame.matrix<float>(n, classes),
               d_logits = frame.matrix<float>(n, classes);
    const auto labels = frame.span<Index>(n);
    gather(rows, x);
    model.forward(x, logits, context.workspace);
    for (Index i = 0; i < n; ++i) {
      mask(rows[std::size_t(i)], logits.row(i));
      labels[std::size_t(i)] = problem_.labels[std::size_t(rows[std::size_t(i)])];
    }
    std::fill_n(d_logits.data(), d_logits.size(), 0.0F);
    const auto loss = ruvector::train::cross_entropy<float>(logits, labels, d_logits, context.workspace, {},
                                                            {.reduction = ruvector::train::Reduction::sum});
    model.backward(x, d_logits, {}, gradient, context.workspace);
    return loss;
  }

  /// The likelihood of add_fisher.
  ///@{
  [[nodiscard]] Index classes() const { return problem_.classes(); }
  [[nodiscard]] Index label(Index row) const { return problem_.labels[std::size_t(row)]; }
  void forward(const Mlp& model, Index row, std::span<float> logits, ruvector::train::FitContext& context) const {
    model.forward(problem_.features.view().rows(row, 1), ruvector::MatrixView<float>(logits.data(), 1, classes()),
                  context.workspace);
    mask(row, logits);
  }
  void backward(const Mlp& model, Index row, std::span<const float> d_logits, Mlp& gradient,
                ruvector::train::FitContext& context) const {
    model.backward(problem_.features.view().rows(row, 1),
                   ruvector::MatrixView<const float>(d_logits.data(), 1, classes()), {}, gradient, context.workspace);
  }
  ///@}

  /// The part of some rows whose class is among the `candidates` best.
  template <ruvector::Executor E>
  [[nodiscard]] double quality(const Mlp& model, std::span<const Index> rows, E& executor) const {
    constexpr Index at_once = 128;
    ruvector::Workspace workspace;
    workspace.reserve_workers(executor.concurrency());
    std::atomic<Index> right = 0;
    executor.parallel_for((Index(rows.size()) + at_once - 1) / at_once, [&](Index part, Index worker) {
      auto& ws = workspace.worker(worker);
      auto frame = ws.frame();
      const auto first = std::size_t(part * at_once);
      const auto own = rows.subspan(first, std::min(std::size_t(at_once), rows.size() - first));
      const auto x = frame.matrix<float>(Index(own.size()), problem_.features.cols()),
                 logits = frame.matrix<float>(Index(own.size()), classes());
      gather(own, x);
      model.forward(x, logits, ws);
      for (Index i = 0; i < x.rows(); ++i) {
        mask(own[std::size_t(i)], logits.row(i));
        const float target = logits(i, label(own[std::size_t(i)]));
        right += std::ranges::count_if(logits.row(i), [&](float y) { return y > target; }) < problem_.candidates;
      }
    });
    return double(right) / double(rows.size());
  }

 private:
  const ContinualProblem& problem_;
  Scenario scenario_;
};

/// All that a training remembers.
template <class Regularizer>
struct Learner {
  using State = ruvector::train::FitState<Mlp, ruvector::train::Adam<Mlp>, ruvector::train::Constant, Regularizer>;
  State state;
  ruvector::train::ReplayBuffer<float> memory;  // tags are rows
  Index task = 0;
  ruvector::Matrix<double> quality;

  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("state", self.state);
    visit("memory", self.memory);
    visit("task", self.task);
    visit("quality", self.quality);
  }
};

}  // namespace detail

/// Learns the tasks of a problem one after the other. A stop is obeyed within a step, with everything saved.
template <class Regularizer, ruvector::Executor E>
class ContinualTrainer {
 public:
  ContinualTrainer(const ContinualProblem& problem, const ContinualConfig& config, E& executor)
      : problem_(problem), config_(config), executor_(executor), classifier_(problem, config.scenario) {}

  ContinualResult run(const ruvector::Progress& progress, std::stop_token stop) {
    const ruvector::Rng rng(config_.seed);
    detail::Learner<Regularizer> learner = start(rng);
    if (!config_.checkpoint.empty() && std::filesystem::exists(config_.checkpoint))
      ruvector::io::load_checkpoint(config_.checkpoint, learner);
    ContinualResult result;
    result.curves.resize(std::size_t(problem_.count()));
    while (learner.task < problem_.count() && learn_task(learner, result, progress, stop)) consolidate(learner, rng);
    if (!config_.checkpoint.empty()) ruvector::io::save_checkpoint(config_.checkpoint, learner);
    result.finished = learner.task == problem_.count();
    result.quality = learner.quality;
    return result;
  }

 private:
  [[nodiscard]] detail::Learner<Regularizer> start(const ruvector::Rng& rng) const {
    std::vector<Index> widths{problem_.features.cols()};
    widths.insert(widths.end(), problem_.hidden.begin(), problem_.hidden.end());
    widths.push_back(problem_.classes());
    ruvector::Rng weights = rng.split(0);
    const Mlp model({.widths = widths}, weights);
    Regularizer regularizer = [&]() -> Regularizer {
      if constexpr (std::is_same_v<Regularizer, ruvector::train::Ewc<Mlp>>)
        return Regularizer(model, {.lambda = config_.strength});
      else if constexpr (std::is_same_v<Regularizer, ruvector::train::SynapticIntelligence<Mlp>>)
        return Regularizer(model, {.strength = config_.strength});
      else
        return {};
    }();
    return {.state = {model, ruvector::train::Adam(model), rng.split(1), {}, std::move(regularizer)},
            .memory = {{.capacity = config_.memory, .dim = 0, .window = 1}, rng.split(2)},
            .quality = ruvector::Matrix<double>(problem_.count(), problem_.count())};
  }

  [[nodiscard]] double measure(const Mlp& model, Index task) const {
    const TaskRows& rows = problem_.tasks[std::size_t(task)];
    return classifier_.quality(model, config_.validation ? rows.validation : rows.test, executor_);
  }

  bool learn_task(detail::Learner<Regularizer>& learner, ContinualResult& result, const ruvector::Progress& progress,
                  std::stop_token stop) {
    const Index task = classifier_.task = learner.task;
    std::vector<Index> rows, old;
    for (Index t = config_.arm == Arm::joint ? 0 : task; t <= task; ++t)
      rows.insert(rows.end(), problem_.tasks[std::size_t(t)].train.begin(), problem_.tasks[std::size_t(t)].train.end());
    // A training shorter than an epoch must not see the first rows alone, which are those of the first tasks.
    ruvector::Rng order = ruvector::Rng(config_.seed).split(6).split(std::uint64_t(task));
    order.shuffle(std::span(rows));
    for (Index i = 0; config_.arm == Arm::replay && i < learner.memory.size(); ++i)
      old.push_back(learner.memory.tag(i));
    // Sample s of a batch is a row of the task or, of every second one with a memory, a row of that.
    const Index batch = config_.batch * (old.empty() ? 1 : 2), factor = old.empty() ? 1 : 2;
    const auto objective = [&](const Mlp& model, std::span<const Index> samples, Mlp& gradient,
                               ruvector::train::FitContext& context) {
      std::vector<Index> chosen;
      for (const Index s : samples) {
        const auto& from = s % factor == 1 ? old : rows;
        chosen.push_back(from[std::size_t(s / factor) % from.size()]);
      }
      return classifier_(model, chosen, gradient, context);
    };
    ruvector::train::FitHooks<typename detail::Learner<Regularizer>::State> hooks;
    if (config_.curve_every > 0)
      hooks.checkpoint = [&](const auto& state) {
        for (Index t = 0; t <= task; ++t) result.curves[std::size_t(t)].push_back(measure(state.model, t));
      };
    const auto end = ruvector::train::fit(learner.state, batch * config_.iterations, objective,
                                          {.epochs = 1,
                                           .batch_size = batch,
                                           .micro_batch = batch / 2,
                                           .checkpoint_every = std::max(Index(1), config_.curve_every)},
                                          hooks, executor_, progress, stop)
                         .end;
    if (end == ruvector::train::FitEnd::cancelled) return false;
    for (Index t = 0; t <= task; ++t) learner.quality(task, t) = measure(learner.state.model, t);
    return true;
  }

  // After a task: what its parameters matter, what is kept of its rows, and a new Adam for the next.
  void consolidate(detail::Learner<Regularizer>& learner, const ruvector::Rng& rng) {
    auto& [state, memory, task, quality] = learner;
    const auto number = std::uint64_t(task);
    std::vector<Index> rows = problem_.tasks[std::size_t(task)].train;
    ruvector::Rng order = rng.split(3).split(number);
    order.shuffle(std::span(rows));
    for (const Index row : rows) memory.add({}, row);
    if constexpr (std::is_same_v<Regularizer, ruvector::train::Ewc<Mlp>>) {
      Mlp fisher = ruvector::zeros_like(state.model);
      rows.resize(std::min(rows.size(), std::size_t(config_.fisher_samples)));
      constexpr Index few_classes = 20;  // the exact Fisher information takes a backward pass a class
      using Kind = ruvector::train::FisherKind;
      ruvector::train::add_fisher(state.model, rows, classifier_, fisher, rng.split(4).split(number),
                                  {.kind = problem_.classes() <= few_classes ? Kind::exact : Kind::sampled}, executor_);
      state.regularizer.consolidate(fisher, state.model);
    } else if constexpr (std::is_same_v<Regularizer, ruvector::train::SynapticIntelligence<Mlp>>) {
      state.regularizer.consolidate(state.model);
    }
    ++task;
    state = {
        state.model, ruvector::train::Adam(state.model), rng.split(5).split(number), {}, std::move(state.regularizer)};
    if (!config_.checkpoint.empty()) ruvector::io::save_checkpoint(config_.checkpoint, learner);
  }

  const ContinualProblem& problem_;
  ContinualConfig config_;
  E& executor_;
  detail::MaskedClassifier classifier_;
};

/// One training with the regularizer of its arm.
template <ruvector::Executor E>
ContinualResult learn_continually(const ContinualProblem& problem, const ContinualConfig& config, E& executor,
                                  const ruvector::Progress& progress, const std::stop_token& stop) {
  const auto with = [&]<class R>(std::type_identity<R>) {
    return ContinualTrainer<R, E>(problem, config, executor).run(progress, stop);
  };
  if (config.arm == Arm::ewc) return with(std::type_identity<ruvector::train::Ewc<Mlp>>{});
  if (config.arm == Arm::si) return with(std::type_identity<ruvector::train::SynapticIntelligence<Mlp>>{});
  return with(std::type_identity<ruvector::train::NoRegularizer>{});
}

}  // namespace examples
