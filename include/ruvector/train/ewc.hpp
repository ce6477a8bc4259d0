// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/executor.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/simd/batches.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/train/concepts.hpp"
#include "ruvector/train/loss.hpp"
#include "ruvector/train/objective.hpp"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <limits>
#include <memory>
#include <span>
#include <stop_token>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

// Learning one task after the other without forgetting: penalties that hold the parameters which mattered.

namespace ruvector::inline RUVECTOR_ABI::train {

/// A classifier, one sample at a time, p(y|x) = softmax(logits): what the Fisher information is made of. Called by
/// several workers at a time.
template <class L, class M>
concept LikelihoodFor = Module<M> && requires(L& l, const M& model, Index sample, std::span<ScalarOf<M>> logits,
                                              std::span<const ScalarOf<M>> d_logits, M& gradient, FitContext& context) {
  { l.classes() } -> std::convertible_to<Index>;                                     // size of logits
  { l.label(sample) } -> std::convertible_to<Index>;                                 // the true class
  { l.forward(model, sample, logits, context) } -> std::same_as<void>;               // writes all logits
  { l.backward(model, sample, d_logits, gradient, context) } -> std::same_as<void>;  // adds; after forward(sample)
};

/// How the labels of the Fisher information are chosen.
enum class FisherKind {
  exact,      ///< E_x Σ_y p(y|x) (∂ ln p(y|x))²: one backward pass a class
  sampled,    ///< y ~ p(y|x): without bias, one backward pass
  empirical,  ///< y = the true label: one backward pass; not the Fisher information, but usual
};

/// fisher += weight·g², the elementary step of every estimate: version 1's F = mean g² is this with weight 1/n for each
/// of n gradients. Throws ShapeError.
template <Module M>
void add_squared_gradient(const M& gradient, double weight, M& fisher) {
  using T = ScalarOf<M>;
  using B = simd::Batch<T>;
  const B w = T(weight);
  for_each_parameter(
      [&](std::string_view, std::span<const T> g, std::span<T> f) {
        simd::for_each_batch<T>(Index(g.size()), [&](Index i, auto lanes) {
          const B x = lanes.load(g.data() + i);
          lanes.store(f.data() + i, simd::fma(w * x, x, lanes.load(f.data() + i)));
        });
      },
      gradient, fisher);
}

/// Options of add_fisher.
struct FisherConfig {
  FisherKind kind = FisherKind::exact;  ///< how labels are chosen
  Index micro_batch = 32;               ///< samples a task: part of the order of sums
};

/// Adds to `fisher` the diagonal of the Fisher information of a classifier, the mean over `samples` of squared
/// gradients of ln p(y|x). Gradients are squared sample by sample: squaring the mean gradient of a batch is wrong by
/// about its size. The same bits for any number of workers. Returns false, and adds nothing, if a stop was requested.
/// Cost: n forward passes and n (exact: n·classes) backward passes. Source: Kirkpatrick et al. 2017; Kunstner et al.
/// 2019 for the difference between the kinds.
template <Module M, LikelihoodFor<M> L, Executor E = Serial>
bool add_fisher(const M& model, std::span<const Index> samples, L&& likelihood, M& fisher, const Rng& rng,
                const FisherConfig& config = {}, E&& executor = Serial{}, const std::stop_token& stop = {}) {
  using T = ScalarOf<M>;
  check_same_parameters(model, std::as_const(fisher));
  detail::check_option("add_fisher: micro_batch", double(config.micro_batch), 1, double(PTRDIFF_MAX), ">= 1");
  if (samples.empty()) return !stop.stop_requested();
  std::vector<std::unique_ptr<M>> gradients(std::size_t(executor.concurrency()));
  for (auto& gradient : gradients) gradient = std::make_unique<M>(zeros_like(model));

  const auto squares = [&](const M& at, std::span<const Index> part, M& sum, FitContext& context) {
    auto frame = context.workspace.frame();
    const Index classes = likelihood.classes();
    const std::span<T> logits = frame.span<T>(classes), p = frame.span<T>(classes), d = frame.span<T>(classes);
    M& gradient = *gradients[std::size_t(context.worker)];
    // ∂ ln p(y|x)/∂logits = e_y − p
    const auto add = [&](Index sample, Index label, T weight) {
      if (weight == 0) return;
      for_each_parameter([](std::string_view, std::span<T> g) { std::ranges::fill(g, T(0)); }, gradient);
      std::ranges::transform(p, d.begin(), [](T x) { return -x; });
      d[std::size_t(label)] += 1;
      likelihood.backward(at, sample, std::span<const T>(d), gradient, context);
      add_squared_gradient(gradient, double(weight), sum);
    };
    for (const Index sample : part) {
      likelihood.forward(at, sample, logits, context);
      const detail::LogSumExp<T> total(logits);
      simd::for_each_batch<T>(classes, [&](Index k, auto lanes) {
        lanes.store(p.data() + k, total.softmax(lanes.load(logits.data() + k)));
      });
      if (config.kind == FisherKind::empirical) {
        add(sample, likelihood.label(sample), T(1));
      } else if (config.kind == FisherKind::exact) {
        for (Index y = 0; y < classes; ++y) add(sample, y, p[std::size_t(y)]);
      } else {
        double left = context.rng.uniform();
        Index y = 0;
        while (y + 1 < classes && left >= double(p[std::size_t(y)])) left -= double(p[std::size_t(y++)]);
        add(sample, y, T(1));
      }
    }
    return LossSum{0, double(part.size())};
  };
  Workspace workspace;
  detail::BatchGradient<M, decltype(squares), std::remove_reference_t<E>> sum(squares, config.micro_batch, workspace,
                                                                              executor);
  (void)sum(model, samples, rng, stop);
  if (stop.stop_requested()) return false;
  const T mean = T(1 / double(samples.size()));
  for_each_parameter([&](std::string_view, std::span<T> f, std::span<const T> g) { simd::axpy(mean, g, f); }, fisher,
                     std::as_const(sum.gradient()));
  return true;
}

namespace detail {

/// gradient += α stiffness (θ − anchor).
template <Module M>
void add_spring(ScalarOf<M> alpha, const M& model, const M& stiffness, const M& anchor, M& gradient) {
  using T = ScalarOf<M>;
  using B = simd::Batch<T>;
  for_each_parameter(
      [&](std::string_view, std::span<const T> x, std::span<const T> f, std::span<const T> rest, std::span<T> g) {
        simd::for_each_batch<T>(Index(x.size()), [&](Index i, auto lanes) {
          const B pull = alpha * lanes.load(f.data() + i);
          const B apart = lanes.load(x.data() + i) - lanes.load(rest.data() + i);
          lanes.store(g.data() + i, simd::fma(pull, apart, lanes.load(g.data() + i)));
        });
      },
      model, stiffness, anchor, gradient);
}

}  // namespace detail

/// Options of Ewc.
struct EwcConfig {
  double lambda = 1;    ///< λ >= 0, the strength
  bool online = false;  ///< one anchor, the latest; else every task keeps its own
  double gamma = 1;     ///< γ, 0 to 1: what remains of older tasks' importance (online only)
};

/// Elastic weight consolidation: a spring holds each parameter where it was after a task, as stiff as its Fisher
/// information there,
///
///     penalty(θ) = λ/2 Σ_tasks Σ_i F_i (θ_i − θ*_i)²,   gradient λ F (θ − θ*);
///     online:  F ← γ F + F_t,  θ* ← θ_t  and the sum has one term.
///
/// The tasks' springs on a parameter add up to one spring (and a constant), so memory is two models for any number of
/// tasks: F = Σ F_t, θ* = Σ F_t θ*_t/F. A RegularizerFor<M>. Source: Kirkpatrick et al. 2017; online: Schwarz et al.
/// 2018, §2.2, with the ½ of the former.
template <Module M>
class Ewc {
 public:
  /// No task yet: no penalty. `model` gives the shapes. Throws ConfigError for options out of range.
  explicit Ewc(const M& model, const EwcConfig& config = {})
      : config_(config), fisher_(zeros_like(model)), anchor_(zeros_like(model)) {
    detail::check_not_negative("Ewc: lambda", config.lambda);
    detail::check_option("Ewc: gamma", config.gamma, 0, 1, "0 to 1");
  }

  /// Holds on to a task that has been learned: its Fisher information and the parameters it led to. Throws ShapeError
  /// before anything changes.
  void consolidate(const M& fisher, const M& model) {
    check_same_parameters(anchor_, model, fisher);
    const T kept = T(config_.online ? config_.gamma : 1);
    for_each_parameter(
        [&](std::string_view, std::span<T> f, std::span<T> anchor, std::span<const T> f_t, std::span<const T> x) {
          for (std::size_t i = 0; i < f.size(); ++i) {
            const double old = double(kept * f[i]), added = double(f_t[i]), all = old + added;
            if (config_.online || all <= 0) {
              anchor[i] = x[i];
            } else {
              // a (θ − p)² + b (θ − q)² = (a + b) (θ − (a p + b q)/(a + b))² + a b/(a + b) (p − q)²
              const double apart = double(x[i]) - double(anchor[i]);
              constant_ += old * added / all * apart * apart;
              anchor[i] = T(double(anchor[i]) + added / all * apart);
            }
            f[i] = T(all);
          }
        },
        fisher_, anchor_, fisher, model);
    ++tasks_;
  }

  /// λ/2 Σ F (θ − θ*)², over all tasks. Throws ShapeError.
  [[nodiscard]] double penalty(const M& model) const {
    double sum = constant_;
    for_each_parameter(
        [&](std::string_view, std::span<const T> x, std::span<const T> f, std::span<const T> anchor) {
          for (std::size_t i = 0; i < x.size(); ++i) {
            const double apart = double(x[i]) - double(anchor[i]);
            sum += double(f[i]) * apart * apart;
          }
        },
        model, fisher_, anchor_);
    return config_.lambda / 2 * sum;
  }

  /// gradient += λ F (θ − θ*). Throws ShapeError.
  void add_gradient(const M& model, M& gradient) const {
    detail::add_spring(T(config_.lambda), model, fisher_, anchor_, gradient);
  }

  /// How many tasks it holds on to.
  [[nodiscard]] Index tasks() const { return tasks_; }
  /// F, of all tasks together.
  [[nodiscard]] const M& fisher() const { return fisher_; }
  /// θ*: the parameters the springs pull to.
  [[nodiscard]] const M& anchor() const { return anchor_; }
  /// The options.
  [[nodiscard]] const EwcConfig& config() const { return config_; }

  /// Names what it remembers.
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("fisher", self.fisher_);
    visit("anchor", self.anchor_);
    visit("constant", self.constant_);
    visit("tasks", self.tasks_);
  }

 private:
  using T = ScalarOf<M>;

  EwcConfig config_;
  M fisher_, anchor_;
  double constant_ = 0;  // the tasks' springs cannot all be at rest
  Index tasks_ = 0;
};

/// Options of SynapticIntelligence.
struct SynapticIntelligenceConfig {
  double strength = 0.1;  ///< c >= 0
  double damping = 0.1;   ///< ξ > 0: keeps the importance of parameters that hardly moved finite
};

/// Synaptic intelligence: like Ewc, but the importance of a parameter is what its way through a task contributed to the
/// fall of the loss, summed up while learning, without further passes over the data,
///
///     ω ← ω − g (θ' − θ)  each step;   Ω ← Ω + max(0, ω)/((θ_t − θ*)² + ξ),  θ* ← θ_t,  ω ← 0  after a task;
///     penalty(θ) = c Σ Ω (θ − θ*)².
///
/// g is the gradient of the loss alone. An ObservingRegularizerFor<M>: fit() calls before_step and after_step. A
/// negative ω, of a parameter that moved uphill, counts as 0: a spring that pushes would have no minimum. Source: Zenke
/// et al. 2017, eq. 4 and 5.
template <Module M>
class SynapticIntelligence {
 public:
  /// The start of the first task. Throws ConfigError for options out of range.
  explicit SynapticIntelligence(const M& model, const SynapticIntelligenceConfig& config = {})
      : config_(config),
        path_(zeros_like(model)),
        importance_(path_),
        anchor_(model),
        before_(model),
        gradient_(path_) {
    detail::check_not_negative("SynapticIntelligence: strength", config.strength);
    detail::check_option("SynapticIntelligence: damping", config.damping, std::numeric_limits<double>::min(),
                         std::numeric_limits<double>::max(), "finite and > 0");
  }

  /// Remembers where a step begins, and the gradient it follows.
  void before_step(const M& model, const M& gradient) {
    for_each_parameter(
        [](std::string_view, std::span<const T> x, std::span<const T> g, std::span<T> before, std::span<T> kept) {
          std::ranges::copy(x, before.begin());
          std::ranges::copy(g, kept.begin());
        },
        model, gradient, before_, gradient_);
  }
  /// ω ← ω − g (θ' − θ).
  void after_step(const M& model) {
    for_each_parameter(
        [](std::string_view, std::span<const T> x, std::span<const T> before, std::span<const T> g, std::span<T> path) {
          for (std::size_t i = 0; i < x.size(); ++i) path[i] -= g[i] * (x[i] - before[i]);
        },
        model, std::as_const(before_), std::as_const(gradient_), path_);
  }

  /// Holds on to a task that has been learned, and begins the next. Throws ShapeError before anything changes.
  void consolidate(const M& model) {
    check_same_parameters(anchor_, model);
    const T damping = T(config_.damping);
    for_each_parameter(
        [&](std::string_view, std::span<const T> x, std::span<T> path, std::span<T> importance, std::span<T> anchor) {
          for (std::size_t i = 0; i < x.size(); ++i) {
            const T moved = x[i] - anchor[i];
            importance[i] += std::max(T(0), path[i]) / (moved * moved + damping);
            anchor[i] = x[i];
            path[i] = 0;
          }
        },
        model, path_, importance_, anchor_);
    ++tasks_;
  }

  /// c Σ Ω (θ − θ*)². Throws ShapeError.
  [[nodiscard]] double penalty(const M& model) const {
    double sum = 0;
    for_each_parameter(
        [&](std::string_view, std::span<const T> x, std::span<const T> importance, std::span<const T> anchor) {
          for (std::size_t i = 0; i < x.size(); ++i) {
            const double apart = double(x[i]) - double(anchor[i]);
            sum += double(importance[i]) * apart * apart;
          }
        },
        model, importance_, anchor_);
    return config_.strength * sum;
  }

  /// gradient += 2 c Ω (θ − θ*). Throws ShapeError.
  void add_gradient(const M& model, M& gradient) const {
    detail::add_spring(T(2 * config_.strength), model, importance_, anchor_, gradient);
  }

  /// How many tasks it holds on to.
  [[nodiscard]] Index tasks() const { return tasks_; }
  /// Ω.
  [[nodiscard]] const M& importance() const { return importance_; }
  /// The options.
  [[nodiscard]] const SynapticIntelligenceConfig& config() const { return config_; }

  /// Names what it remembers between steps.
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("path", self.path_);
    visit("importance", self.importance_);
    visit("anchor", self.anchor_);
    visit("tasks", self.tasks_);
  }

 private:
  using T = ScalarOf<M>;

  SynapticIntelligenceConfig config_;
  M path_, importance_, anchor_;
  M before_, gradient_;  // of the step that is being done
  Index tasks_ = 0;
};

}  // namespace ruvector::inline RUVECTOR_ABI::train
