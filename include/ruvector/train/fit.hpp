// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/progress.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/train/clip.hpp"
#include "ruvector/train/concepts.hpp"
#include "ruvector/train/loss.hpp"
#include "ruvector/train/objective.hpp"
#include "ruvector/train/schedule.hpp"
#include "ruvector/train/state.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <span>
#include <stop_token>
#include <type_traits>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::train {

/// Options of fit().
struct FitConfig {
  Index epochs = 1;         ///< passes over all samples, counted from the start of the state
  Index batch_size = 128;   ///< samples a step
  Index micro_batch = 128;  ///< samples a call of the objective: the unit of parallel work, of memory and of
                            ///< cancelling; the gradients of a batch are accumulated from those of its micro-batches
  bool shuffle = true;      ///< a new order every epoch
  bool drop_last = false;   ///< leave out the last batch of an epoch if it is not full
  double max_gradient_norm = std::numeric_limits<double>::infinity();   ///< see clip_gradient_norm
  double max_gradient_value = std::numeric_limits<double>::infinity();  ///< see clip_gradient_value
  bool schedule_by_epoch = true;                                        ///< the schedule counts epochs; else steps
  Index patience = 0;            ///< so many epochs without a better metric end it; 0: never
  double least_improvement = 0;  ///< a metric is better if it is < best − this
  Index checkpoint_every = 0;    ///< steps from one call of the checkpoint hook to the next; 0: after each epoch
};

/// An epoch that has ended.
struct EpochReport {
  Index epoch = 0;      ///< its number, from 0
  double loss = 0;      ///< mean over its samples, while it was learning
  double metric = 0;    ///< as validated; the loss where there is no validation
  double factor = 1;    ///< of the learning rate in it, at its end
  bool better = false;  ///< the best metric so far
  double seconds = 0;   ///< since fit() began
};

/// Why fit() returned.
enum class FitEnd {
  finished,       ///< all epochs are done
  early_stopped,  ///< the metric was not better for `patience` epochs
  cancelled,      ///< a stop was requested
  diverged,       ///< a loss or gradient was not finite: the state is as before that step
};

/// What fit() has to say at the end; the rest is in the state.
struct FitResult {
  FitEnd end = FitEnd::finished;  ///< why it returned
  double loss = 0;                ///< mean of the last epoch that ended, or of the part of one that did
  double metric = 0;              ///< the best so far
  Index steps = 0;                ///< of the optimizer, all calls together
};

/// All that fit() needs to go on: a value. A copy, or one that is read from a checkpoint, continues with the same bits.
template <Module M, OptimizerFor<M> O, Schedule S = Constant, RegularizerFor<M> R = NoRegularizer>
struct FitState {
  M model;        ///< what learns
  O optimizer;    ///< how
  S schedule;     ///< of the learning rate
  R regularizer;  ///< added to the loss
  M best;         ///< the model at its best metric; a copy of the first one until there is a metric

  Rng::State generator;     ///< whose streams give the orders of samples and the generators of contexts
  Index epoch = 0;          ///< epochs that have ended
  Index position = 0;       ///< samples of this epoch that have been used
  Index steps = 0;          ///< of the optimizer
  double epoch_loss = 0;    ///< Σ w ℓ of this epoch so far
  double epoch_weight = 0;  ///< Σ w of this epoch so far
  double best_metric = std::numeric_limits<double>::infinity();  ///< smaller is better
  Index waited = 0;                                              ///< epochs since it was reached

  /// The start of a training.
  FitState(M start, O with, const Rng& rng, S rate = {}, R penalty = {})
      : model(std::move(start)),
        optimizer(std::move(with)),
        schedule(std::move(rate)),
        regularizer(std::move(penalty)),
        best(model),
        generator(rng.state()) {}

  /// Names all of it.
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("model", self.model);
    visit("optimizer", self.optimizer);
    if constexpr (Checkpointable<S>) visit("schedule", self.schedule);
    if constexpr (Checkpointable<R>) visit("regularizer", self.regularizer);
    visit("best", self.best);
    visit("generator", self.generator);
    visit("epoch", self.epoch);
    visit("position", self.position);
    visit("steps", self.steps);
    visit("epoch_loss", self.epoch_loss);
    visit("epoch_weight", self.epoch_weight);
    visit("best_metric", self.best_metric);
    visit("waited", self.waited);
  }
};

/// What fit() calls on its way, on the thread that called it; empty ones are not called. What they throw ends it, with
/// the state at the end of a step, ready to go on.
template <class State>
struct FitHooks {
  std::function<double(const State&)> validate;   ///< the metric of an epoch: smaller is better (so minus accuracy)
  std::function<void(const EpochReport&)> epoch;  ///< an epoch has ended
  std::function<void(const State&)> checkpoint;   ///< time to save the state
};

namespace detail {

inline void check_fit_config(const FitConfig& config, Index samples) {
  constexpr double infinity = std::numeric_limits<double>::infinity(), most = std::numeric_limits<double>::max();
  check_option("fit: samples", double(samples), 1, most, ">= 1");
  check_option("fit: epochs", double(config.epochs), 0, most, ">= 0");
  check_option("fit: batch_size", double(config.batch_size), 1, most, ">= 1");
  check_option("fit: micro_batch", double(config.micro_batch), 1, most, ">= 1");
  check_option("fit: max_gradient_norm", config.max_gradient_norm, 0, infinity, ">= 0");
  check_option("fit: max_gradient_value", config.max_gradient_value, 0, infinity, ">= 0");
  check_option("fit: patience", double(config.patience), 0, most, ">= 0");
  check_not_negative("fit: least_improvement", config.least_improvement);
  check_option("fit: checkpoint_every", double(config.checkpoint_every), 0, most, ">= 0");
  if (config.drop_last)
    check_option("fit: batch_size with drop_last", double(config.batch_size), 1, double(samples), "<= samples");
}

/// One call of fit().
template <class State, class F, class E>
class Fit {
 public:
  using M = decltype(State::model);

  Fit(State& state, Index samples, F& objective, const FitConfig& config, const FitHooks<State>& hooks,
      Workspace& workspace, E& executor, const Progress& progress, const std::stop_token& stop)
      : state_(state),
        samples_(config.drop_last ? samples / config.batch_size * config.batch_size : samples),
        config_(config),
        hooks_(hooks),
        progress_(progress),
        stop_(stop),
        gradients_(objective, config.micro_batch, workspace, executor),
        order_(std::size_t(samples)) {}

  FitResult run() {
    FitEnd end = FitEnd::finished;
    while (state_.epoch < config_.epochs) {
      if (config_.patience > 0 && state_.waited >= config_.patience) {
        end = FitEnd::early_stopped;
        break;
      }
      if (state_.position >= samples_) {
        end_epoch();
        continue;
      }
      if (ordered_epoch_ != state_.epoch) order_samples();
      if (!step(end)) break;
    }
    const LossSum partly{state_.epoch_loss, state_.epoch_weight};
    return {end, state_.position > 0 ? partly.mean() : loss_, state_.best_metric, state_.steps};
  }

 private:
  // The streams of the generator: 0 has the orders of the epochs, 1 the batches.
  [[nodiscard]] Rng stream(std::uint64_t purpose, Index number) const {
    return Rng(state_.generator).split(purpose).split(std::uint64_t(number));
  }

  void order_samples() {
    std::iota(order_.begin(), order_.end(), Index(0));
    if (config_.shuffle) stream(0, state_.epoch).shuffle(std::span(order_));
    ordered_epoch_ = state_.epoch;
  }

  [[nodiscard]] double factor() const {
    return state_.schedule(config_.schedule_by_epoch ? state_.epoch : state_.steps);
  }

  // One step, whole or not at all; false, with the reason in `end`, if it is the latter.
  [[nodiscard]] bool step(FitEnd& end) {
    const Index first = state_.position, last = first + std::min(config_.batch_size, samples_ - first);
    const std::span<const Index> batch(order_.data() + first, std::size_t(last - first));
    const Index batches = (samples_ - 1) / config_.batch_size + 1;
    const Index number = state_.epoch * batches + first / config_.batch_size;
    const LossSum loss = gradients_(state_.model, batch, stream(1, number), stop_);
    if (stop_.stop_requested()) return end = FitEnd::cancelled, false;
    if (loss.weight != 0 && !move(loss)) return end = FitEnd::diverged, false;
    state_.position = last;
    state_.epoch_loss += loss.sum;
    state_.epoch_weight += loss.weight;
    if (progress_) progress_({number + 1, config_.epochs * batches, loss.mean(), seconds()});
    if (hooks_.checkpoint && config_.checkpoint_every > 0 && state_.steps % config_.checkpoint_every == 0)
      hooks_.checkpoint(std::as_const(state_));
    return true;
  }

  // Moves the model against the gradient of the mean; false, with nothing moved, where that is not finite.
  [[nodiscard]] bool move(const LossSum& loss) {
    M& gradient = gradients_.gradient();
    scale_gradient(gradient, 1 / loss.weight);
    if constexpr (ObservingRegularizerFor<decltype(State::regularizer), M>)
      state_.regularizer.before_step(std::as_const(state_.model), std::as_const(gradient));
    state_.regularizer.add_gradient(std::as_const(state_.model), gradient);
    if (config_.max_gradient_value < std::numeric_limits<double>::infinity())
      clip_gradient_value(gradient, config_.max_gradient_value);
    const double norm = clip_gradient_norm(gradient, config_.max_gradient_norm);
    if (!std::isfinite(norm) || !std::isfinite(loss.sum)) return false;
    state_.optimizer.step(state_.model, std::as_const(gradient), factor());
    if constexpr (ObservingRegularizerFor<decltype(State::regularizer), M>)
      state_.regularizer.after_step(std::as_const(state_.model));
    ++state_.steps;
    return true;
  }

  void end_epoch() {
    EpochReport report{state_.epoch, LossSum{state_.epoch_loss, state_.epoch_weight}.mean()};
    report.metric = hooks_.validate ? hooks_.validate(std::as_const(state_)) : report.loss;
    report.factor = factor();
    report.better = report.metric < state_.best_metric - config_.least_improvement;
    if (report.better) {
      state_.best = state_.model;
      state_.best_metric = report.metric;
    }
    state_.waited = report.better ? 0 : state_.waited + 1;
    if constexpr (ObservingSchedule<decltype(State::schedule)>) state_.schedule.observe(report.metric);
    ++state_.epoch;
    state_.position = 0;
    state_.epoch_loss = state_.epoch_weight = 0;
    loss_ = report.loss;
    report.seconds = seconds();
    if (hooks_.epoch) hooks_.epoch(report);
    if (hooks_.checkpoint && config_.checkpoint_every == 0) hooks_.checkpoint(std::as_const(state_));
  }

  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

  State& state_;
  Index samples_;
  const FitConfig& config_;
  const FitHooks<State>& hooks_;
  const Progress& progress_;
  const std::stop_token& stop_;
  BatchGradient<M, F, E> gradients_;
  std::vector<Index> order_;
  Index ordered_epoch_ = -1;
  double loss_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace detail

/// Trains on samples 0 … samples−1: every epoch in a new order, a batch at a time,
///
///     g = ∂/∂θ [Σ w ℓ/Σ w over the batch + penalty],   g clipped,   θ ← optimizer(θ, g, factor of the schedule).
///
/// All progress is in `state`: a copy of it, taken by the checkpoint hook or after any return or exception, goes on
/// with the same bits as the training that was not interrupted, given the same samples, options and objective. So does
/// one with another number of workers: micro-batches are shared among them and their gradients summed in the fixed tree
/// of core/ordered_sum.hpp, and the generator of a micro-batch is a function of its place alone.
///
/// The state is always that at the end of a step. A stop is obeyed within one call of the objective, and the step it
/// falls into is not done; progress counts batches. After the first batch of each size a step allocates nothing but
/// what the objective does. Memory: O(log(batch_size/micro_batch) + workers) gradients. Throws ConfigError before
/// anything changes.
///
///     FitState state(model, Adam(model), rng);
///     fit(state, rows, [&](const auto& model, std::span<const Index> samples, auto& gradient, FitContext& context) {
///       …                                                  // forward, loss, backward for these rows
///       return LossSum{sum, double(samples.size())};
///     }, {.epochs = 10});
template <Module M, class O, class S, class R, Objective<M> F, Executor E = Serial>
FitResult fit(FitState<M, O, S, R>& state, Index samples, F&& objective, const FitConfig& config = {},
              const FitHooks<FitState<M, O, S, R>>& hooks = {}, E&& executor = Serial{}, const Progress& progress = {},
              const std::stop_token& stop = {}) {
  detail::check_fit_config(config, samples);
  detail::check_option("fit: position of the state", double(state.position), 0, double(samples), "<= samples");
  Workspace workspace;
  return detail::Fit<FitState<M, O, S, R>, std::remove_reference_t<F>, std::remove_reference_t<E>>(
             state, samples, objective, config, hooks, workspace, executor, progress, stop)
      .run();
}

}  // namespace ruvector::inline RUVECTOR_ABI::train
