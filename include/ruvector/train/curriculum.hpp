// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>
#include <utility>
#include <vector>

// What gets harder over time. Pure functions of the step, so there is nothing to save.

namespace ruvector::inline RUVECTOR_ABI::train {

/// The way from one temperature to another.
enum class Decay {
  linear,       ///< by equal differences
  exponential,  ///< by equal ratios
  cosine,       ///< slow at both ends
  steps,        ///< linear, in jumps
};

/// A temperature that falls (or rises) over `steps` and then stays: of a softmax, of InfoNCE.
struct TemperatureAnnealing {
  double from = 1;              ///< at step 0, > 0
  double to = 0.1;              ///< from step `steps` on, > 0
  Index steps = 1000;           ///< how long it takes
  Decay decay = Decay::linear;  ///< on which way
  Index period = 100;           ///< of the jumps of Decay::steps, 1 to steps

  /// The temperature at a step. Throws ConfigError for temperatures that are not positive and for a period < 1.
  [[nodiscard]] double operator()(Index step) const {
    if (!(from > 0) || !(to > 0)) [[unlikely]]
      throw_config_error("TemperatureAnnealing: temperature", "> 0", std::min(from, to));
    if (step >= steps) return to;
    const double progress = double(step) / double(steps), range = from - to;
    switch (decay) {
      case Decay::linear:
        break;
      case Decay::exponential:
        return from * std::pow(to / from, progress);
      case Decay::cosine:
        return to + 0.5 * range * (1 + std::cos(std::numbers::pi * progress));
      case Decay::steps: {
        if (period < 1 || period > steps) [[unlikely]]
          throw_config_error("TemperatureAnnealing: period", "1 to steps", double(period));
        const Index done = step / period, all = steps / period;  // whole periods
        return std::max(from - range * double(done) / double(all), std::min(from, to));
      }
    }
    return from - range * progress;
  }
};

/// A part of a curriculum.
struct CurriculumStage {
  Index duration = 1000;    ///< steps, >= 1
  double difficulty = 0.5;  ///< 0 easy to 1 hard: what that means is the caller's
  double temperature = 1;   ///< of the softmax
  Index negatives = 10;     ///< a query
};

/// Stages one after the other; the last one stays.
class Curriculum {
 public:
  /// Throws ConfigError if there is no stage, or one without a step.
  explicit Curriculum(std::vector<CurriculumStage> stages) : stages_(std::move(stages)) {
    if (stages_.empty()) throw_config_error("Curriculum: stages", ">= 1", 0);
    for (const CurriculumStage& stage : stages_)
      if (stage.duration < 1) throw_config_error("Curriculum: duration", ">= 1", double(stage.duration));
  }
  /// Version 1's default: four stages of total_steps/4, difficulty 0.1, 0.3, 0.6, 1, temperature 2, 1, 0.5, 0.1, and 5,
  /// 10, 20, 50 negatives. Throws ConfigError if total_steps < 4.
  [[nodiscard]] static Curriculum easy_to_hard(Index total_steps) {
    const Index quarter = total_steps / 4;
    return Curriculum({{quarter, 0.1, 2, 5}, {quarter, 0.3, 1, 10}, {quarter, 0.6, 0.5, 20}, {quarter, 1, 0.1, 50}});
  }

  /// The stage that a step, counted from 0, is in.
  [[nodiscard]] const CurriculumStage& operator()(Index step) const {
    std::size_t k = 0;
    while (k + 1 < stages_.size() && step >= stages_[k].duration) step -= stages_[k++].duration;
    return stages_[k];
  }
  /// All of them.
  [[nodiscard]] std::span<const CurriculumStage> stages() const { return stages_; }
  /// Steps of all stages.
  [[nodiscard]] Index total_steps() const {
    Index sum = 0;
    for (const CurriculumStage& stage : stages_) sum += stage.duration;
    return sum;
  }

 private:
  std::vector<CurriculumStage> stages_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::train
