// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/layer_norm.hpp"
#include "ruvector/nn/mlp.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/train/loss.hpp"
#include "ruvector/train/losses.hpp"
#include "ruvector/train/objective.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string_view>

namespace ruvector::inline RUVECTOR_ABI::search {

/// How many numbers tell a router about a query; `AdaptiveSearch::features` lists them.
inline constexpr Index router_features = 12;

/// Chooses among N ways to search by what the first steps have shown,
///
///     logits = Mlp(LayerNorm((x − mean) ∘ scale)),   [n×12] → [n×N],
///
/// with one hidden layer. A RowMap. Mean and scale are taken from the data (`standardize`) and not learned: distances
/// of thousands beside shares below 1 would leave LayerNorm nothing but the distances.
template <Real T>
struct SearchRouter {
  using Scalar = T;       ///< what it computes in
  Vector<T> mean;         ///< [12] of the features
  Vector<T> scale;        ///< [12] 1/standard deviation; 0 for a feature that never changes
  nn::LayerNorm<T> norm;  ///< over the 12
  nn::Mlp<T> mlp;         ///< 12 → hidden → N

  /// Starts with random weights. Throws ConfigError for less than one expert or hidden unit.
  SearchRouter(Index experts, Rng& rng, Index hidden = 32)
      : mean(router_features), scale(router_features, T(1)), norm({.dim = router_features}) {
    if (experts < 1) [[unlikely]]
      throw_config_error("SearchRouter: experts", ">= 1", double(experts));
    if (hidden < 1) [[unlikely]]
      throw_config_error("SearchRouter: hidden", ">= 1", double(hidden));
    mlp = nn::Mlp<T>({.widths = {router_features, hidden, experts}}, rng);
  }

  /// Names what is learned, and mean and scale.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit.buffer("mean", self.mean...);
    visit.buffer("scale", self.scale...);
    visit("norm", self.norm...);
    visit("mlp", self.mlp...);
  }

  /// Takes mean and scale from features [n×12]. Throws ShapeError.
  void standardize(MatrixView<const T> x) {
    check_shape("SearchRouter: features", router_features, x.cols());
    if (x.rows() == 0) return;
    const double n = double(x.rows());
    for (Index j = 0; j < router_features; ++j) {
      const double sum = train::detail::ordered_total(x.rows(), [&](Index i) { return x(i, j); }), middle = sum / n;
      const double variance =
          train::detail::ordered_total(
              x.rows(), [&](Index i) { return (double(x(i, j)) - middle) * (double(x(i, j)) - middle); }) /
          n;
      mean[j] = T(middle);
      // What rounding makes of a constant is no information.
      const double least = 1e-6 * (1 + std::abs(middle));
      scale[j] = variance > least * least ? T(1 / std::sqrt(variance)) : T(0);
    }
  }

  /// N, for rows of 12 elements; ShapeError for others.
  [[nodiscard]] Index output_dim(Index input_dim) const { return mlp.output_dim(norm.output_dim(input_dim)); }

  /// logits [n×N] of features x [n×12]. Throws ShapeError.
  void forward(MatrixView<const T> x, MatrixView<T> logits, Workspace& workspace) const {
    nn::detail::check_matrix("SearchRouter::forward: logits", x.rows(), output_dim(x.cols()), logits);
    auto frame = workspace.frame();
    const auto u = frame.template matrix<T>(x.rows(), x.cols());
    standardized(x, u);
    norm.forward(u, u, workspace);
    mlp.forward(u, logits, workspace);
  }

  /// Given d_logits [n×N], adds to d_x [n×12] (or empty: not wanted) and grad. Throws ShapeError.
  void backward(MatrixView<const T> x, MatrixView<const T> d_logits, MatrixView<T> d_x, SearchRouter& grad,
                Workspace& workspace) const {
    nn::detail::check_matrix("SearchRouter::backward: d_logits", x.rows(), output_dim(x.cols()), d_logits);
    nn::detail::check_wanted("SearchRouter::backward: d_x", x.rows(), x.cols(), d_x);
    auto frame = workspace.frame();
    const auto rows = [&] { return frame.template matrix<T>(x.rows(), x.cols()); };
    const MatrixView<T> u = rows(), v = rows(), d_u = rows(), d_v = rows();
    std::fill_n(d_u.data(), d_u.size(), T(0));
    std::fill_n(d_v.data(), d_v.size(), T(0));
    standardized(x, u);
    norm.forward(u, v, workspace);
    mlp.backward(v, d_logits, d_v, grad.mlp, workspace);
    norm.backward(u, d_v, d_u, grad.norm, workspace);
    for (Index i = 0; i < d_x.rows(); ++i)
      for (Index j = 0; j < d_x.cols(); ++j) d_x(i, j) += scale[j] * d_u(i, j);
  }

 private:
  void standardized(MatrixView<const T> x, MatrixView<T> u) const {
    for (Index i = 0; i < x.rows(); ++i)
      for (Index j = 0; j < x.cols(); ++j) u(i, j) = (x(i, j) - mean[j]) * scale[j];
  }
};

/// What every expert would have done for some queries: full information, since each was tried.
template <Real T>
struct AdaptiveLabels {
  Matrix<T> features;  ///< [B×12] what a router sees
  Matrix<T> recall;    ///< [B×N] share of the true neighbours that each expert finds, 0 to 1
  Matrix<T> cost;      ///< [B×N] distances that it takes, the warm-up included
};

/// What is wanted of a choice.
struct RouterTargetConfig {
  double recall = 1;         ///< r*, 0 to 1: more is worth nothing
  double cost_weight = 0.1;  ///< λ >= 0: what the dearest expert costs, in recall
  double temperature = 0.1;  ///< > 0: how much worse an expert may be before it loses its share of the target
};

/// The distribution over experts that a router is taught, [B×N]:
///
///     t = softmax(U/temperature),   U_e = min(r_e, r*) − λ c_e/c_max
///
/// with c_max the mean cost of the dearest expert. Throws ShapeError, ConfigError.
template <Real T>
[[nodiscard]] Matrix<T> router_targets(const AdaptiveLabels<T>& labels, const RouterTargetConfig& config = {}) {
  constexpr double most = std::numeric_limits<double>::max();
  const auto check = [](std::string_view what, double value, double least, double largest, const char* expected) {
    if (!(value >= least && value <= largest)) [[unlikely]]
      throw_config_error(what, expected, value);
  };
  check("router_targets: recall", config.recall, 0, 1, "0 to 1");
  check("router_targets: cost_weight", config.cost_weight, 0, most, "finite and >= 0");
  check("router_targets: temperature", config.temperature, std::numeric_limits<double>::min(), most, "finite and > 0");
  const Index rows = labels.recall.rows(), experts = labels.recall.cols();
  nn::detail::check_matrix("router_targets: cost", rows, experts, labels.cost.view());
  double dearest = 0;
  for (Index e = 0; e < experts && rows > 0; ++e)
    dearest = std::max(dearest,
                       train::detail::ordered_total(rows, [&](Index i) { return labels.cost(i, e); }) / double(rows));
  Matrix<T> targets(rows, experts);
  for (Index i = 0; i < rows; ++i) {
    double top = -most, sum = 0;
    const auto utility = [&](Index e) {
      const double cost = dearest > 0 ? double(labels.cost(i, e)) / dearest : 0;
      return (std::min(double(labels.recall(i, e)), config.recall) - config.cost_weight * cost) / config.temperature;
    };
    for (Index e = 0; e < experts; ++e) top = std::max(top, utility(e));
    for (Index e = 0; e < experts; ++e) sum += std::exp(utility(e) - top);
    for (Index e = 0; e < experts; ++e) targets(i, e) = T(std::exp(utility(e) - top) / sum);
  }
  return targets;
}

/// What a router's loss consists of beside the cross-entropy.
struct RouterLossConfig {
  double balance = 0;  ///< a: how much experts should be used alike. No aim by itself: the best mix may be skewed
  double z = 1e-3;     ///< b: keeps logits small
};

/// The loss of the choices among N experts, for rows of logits and targets [B×N] with p = softmax(logits):
///
///     Σ_i [−Σ_e t_ie ln p_ie + b (ln Σ_e e^logits_ie)²] + a N Σ_e f_e Σ_i p_ie,
///
/// where f_e is the share of rows that would choose e, which has no gradient (the balance and z losses of
/// attention/mixture_of_experts.hpp, of these rows). Adds the gradient of this *sum* to d_logits. Throws ShapeError.
/// O(B N).
template <Real T>
train::LossSum router_loss(MatrixView<const T> logits, MatrixView<const T> targets, MatrixView<T> d_logits,
                           Workspace& workspace, const RouterLossConfig& config = {}) {
  const Index rows = logits.rows(), experts = logits.cols();
  train::LossSum loss =
      train::soft_cross_entropy<T>(logits, targets, d_logits, {}, workspace, {}, {.reduction = train::Reduction::sum});
  auto frame = workspace.frame();
  const auto share = frame.template span<T>(experts), p = frame.template span<T>(experts);
  std::ranges::fill(share, T(0));
  for (Index i = 0; i < rows; ++i)
    share[std::size_t(std::ranges::max_element(logits.row(i)) - logits.row(i).begin())]++;
  for (T& f : share) f *= T(config.balance) * T(experts) / T(rows);
  for (Index i = 0; i < rows; ++i) {
    const train::detail::LogSumExp<T> total(logits.row(i));
    const T log_sum = total.top + total.log;
    T crowd = 0;  // a N Σ_e f_e p_e
    for (std::size_t e = 0; e < p.size(); ++e) {
      p[e] = std::exp(logits.row(i)[e] - total.top - total.log);
      crowd += share[e] * p[e];
    }
    loss.sum += double(crowd) + config.z * double(log_sum) * double(log_sum);
    // ∂/∂logits_e = a N p_e (f_e − Σ f p) + 2 b (ln Σ e^logits) p_e
    for (Index e = 0; e < experts && !d_logits.empty(); ++e)
      d_logits(i, e) += p[std::size_t(e)] * (share[std::size_t(e)] - crowd + 2 * T(config.z) * log_sum);
  }
  return loss;
}

/// The objective with which train::fit teaches a router; the samples are rows of features [n×12] and of targets [n×N].
///
///     router.standardize(labels.features);
///     train::FitState state(router, train::Adam(router), rng);
///     train::fit(state, labels.features.rows(), RouterObjective<float>{labels.features, targets}, {.epochs = 60});
template <Real T>
struct RouterObjective {
  MatrixView<const T> features;  ///< [n×12]
  MatrixView<const T> targets;   ///< [n×N] of `router_targets`
  RouterLossConfig config = {};  ///< of the loss

  /// The loss of some samples; adds the gradient of its sum.
  train::LossSum operator()(const SearchRouter<T>& router, std::span<const Index> samples, SearchRouter<T>& gradient,
                            train::FitContext& context) const {
    const Index rows = Index(samples.size()), experts = targets.cols();
    auto frame = context.workspace.frame();
    const auto x = frame.template matrix<T>(rows, features.cols());
    const auto t = frame.template matrix<T>(rows, experts), logits = frame.template matrix<T>(rows, experts),
               d_logits = frame.template matrix<T>(rows, experts);
    std::fill_n(d_logits.data(), d_logits.size(), T(0));
    for (Index i = 0; i < rows; ++i) {
      std::ranges::copy(features.row(samples[std::size_t(i)]), x.row(i).begin());
      std::ranges::copy(targets.row(samples[std::size_t(i)]), t.row(i).begin());
    }
    router.forward(x, logits, context.workspace);
    const train::LossSum loss = router_loss<T>(logits, t, d_logits, context.workspace, config);
    router.backward(x, d_logits, {}, gradient, context.workspace);
    return loss;
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::search
