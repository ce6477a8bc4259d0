// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/progress.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/graph/hnsw_layers.hpp"
#include "ruvector/search/exact_search.hpp"
#include "ruvector/search/hierarchical_v2.hpp"
#include "ruvector/search/search_loss.hpp"
#include "ruvector/train/concepts.hpp"
#include "ruvector/train/fit.hpp"
#include "ruvector/train/schedule.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <span>
#include <stop_token>
#include <string>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::search {

/// All that fit_search needs to go on: a value. A copy, or one that is read from a checkpoint, continues with the same
/// bits.
template <class Layer, class Optimizer, train::Schedule S = train::Constant>
struct FitSearchState {
  train::FitState<SearchModel<Layer>, Optimizer, S> training;  ///< with the model, `training.model`
  SearchModel<Layer> policy;                                   ///< the model at the start of the round: it walks
  Index round = 0;                                             ///< rounds that have ended

  /// The start of a training.
  FitSearchState(SearchModel<Layer> model, Optimizer optimizer, const Rng& rng, S schedule = {})
      : training(model, std::move(optimizer), rng, std::move(schedule)), policy(std::move(model)) {}

  /// Names all of it.
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("training", self.training);
    visit("policy", self.policy);
    visit("round", self.round);
  }
};

/// What fit_search calls on its way, as train::FitHooks.
template <class State>
struct FitSearchHooks {
  std::function<double(const State&)> validate = {};          ///< the metric of an epoch: smaller is better
  std::function<void(const train::EpochReport&)> epoch = {};  ///< an epoch has ended
  std::function<void(const State&)> checkpoint = {};          ///< time to save the state
};

/// The k true nearest of each query [B×d] by a score, as targets. O(B n d).
template <CandidateScore S, Executor E = Serial>
[[nodiscard]] SearchTargets nearest_targets(const S& score, MatrixView<const ScalarOf<S>> queries,
                                            const graph::HnswLayers<ScalarOf<S>>& layers, Index k, Workspace& workspace,
                                            E&& executor = Serial{}) {
  SearchResult<ScalarOf<S>> result;
  ExactSearch(score, layers.vectors()).search(queries, {.k = k}, result, workspace, executor);
  SearchTargets targets;
  targets.offsets.push_back(0);
  for (Index i = 0; i < queries.rows(); ++i) {
    for (Index p = 0; p < result.count[i]; ++p) targets.ids.push_back(layers.ids()[std::size_t(result.ids(i, p))]);
    targets.offsets.push_back(Index(targets.ids.size()));
  }
  return targets;
}

namespace detail {

inline void check_fit_search(const FitSearchConfig& config) {
  const auto at_least = [](const char* what, double value, double least, const char* expected) {
    if (!(value >= least) || !std::isfinite(value)) throw_config_error(what, expected, value);
  };
  at_least("fit_search: rounds", double(config.rounds), 1, ">= 1");
  at_least("fit_search: k", double(config.search.k), 1, ">= 1");
  at_least("fit_search: ef", double(config.search.ef), 1, ">= 1");
  at_least("fit_search: beam", double(config.search.beam), 1, ">= 1");
  at_least("fit_search: rounds of a level", double(config.search.rounds), 1, ">= 1");
  at_least("fit_search: rank", config.rank, 0, "finite and >= 0");
  at_least("fit_search: route", config.route, 0, "finite and >= 0");
  at_least("fit_search: end", config.end, 0, "finite and >= 0");
  at_least("fit_search: positives", double(config.positives), 1, ">= 1");
  at_least("fit_search: negatives", double(config.negatives), 1, ">= 1");
  constexpr double least = std::numeric_limits<double>::min();
  at_least("fit_search: rank_temperature", config.rank_temperature, least, "> 0");
  at_least("fit_search: route_temperature", config.route_temperature, least, "> 0");
  at_least("fit_search: worth", config.worth, least, "> 0");
  at_least("fit_search: exploration", config.exploration, 0, "finite and >= 0");
  at_least("fit_search: end_temperature", config.end_temperature, least, "> 0");
  at_least("fit_search: beam_temperature", config.beam_temperature, least, "> 0");
  if (!config.search.filters.empty())
    throw_config_error("fit_search: filters", "0", double(config.search.filters.size()));
}

/// Throws ConfigError where the logit of a candidate depends on the others of a call: it then has no gradient.
template <class Layer, Real T>
void check_separable(const Layer& layer, std::span<const T> query, MatrixView<const T> pair, Workspace& ws) {
  const Matrix<T> features(2, search_features);
  const Vector<T> zero(2);
  Vector<T> out(2), both(2), one(1);
  layer.scores(query, pair, zero, features, out, both, ws);
  layer.scores(query, pair.rows(1, 1), zero.span().first(1), features.view().rows(0, 1), out.span().first(1), one, ws);
  if (std::isfinite(both[1]) && !(std::abs(both[1] - one[0]) <= T(1e-3) * (1 + std::abs(one[0]))))
    throw_config_error("fit_search: a logit among others", std::to_string(one[0]) + ", as alone", double(both[1]));
}

}  // namespace detail

/// Trains the layers of a hierarchical search over an index, for queries [B×d] with targets: the truly nearest
/// (`nearest_targets`), or what is relevant in any other sense.
///
///     search::SearchModel<Layer> model{layers};
///     search::FitSearchState state(model, train::Adam(model, {.learning_rate = 0.01}), rng);
///     search::fit_search(state, search::SquaredDistance<float>{}, queries, index, targets, {.search = {.ef = 32}},
///                        {}, pool, progress);
///     hierarchical_forward_v2(score, queries, index, std::span(state.training.model.layers), …);
///
/// For each query the loss along a way through the index is rank·L_rank + route·L_route + end·L_end, with s in units of
/// the layer,
///
///     L_route = mean over steps of −[log Σ_ref e^s − log Σ_candidates e^s]               Baranchuk et al. 2019, eq. 5
///     L_rank  = mean over targets p of −log(e^s_p/(e^s_p + Σ_negatives e^s))
///     L_end   = mean over steps of |g|/worth · log(1 + e^(∓(m − σ)))
///
/// On a level above 0 a step chooses among beam and neighbours; ref are those with the fewest links left to go to a
/// target (above level 0: to the nodes that are nearest to those of the level below). On level 0, as long as targets
/// are missing, it chooses among all open nodes, to a missing one. There, too, once there are ef, the best open metric
/// m is compared with σ, what ending is worth (SearchLayer); g is what is won by going on, in comparisons, if the
/// search ends at the best time after it: `worth` for each target that is met till then, less what is compared. The
/// sign is + where g > 0. A target that no way leads to is thus no reason to go on. The rank loss takes targets
/// uniformly over their hops, and negatives from the way; where targets are the nearest by the metric it has nothing
/// new to say. Gradients go through all steps: through s, the message, the cell and, straight through, the cut of the
/// beam, by SoftTopK.
///
/// With `route` and `rank` 0 only the end is learned, and the search stays in the order of the metric: no comparison is
/// made but those of plain search, and fewer of them. Learn it with an ef as large as it may ever become.
///
/// Ways are those of the model itself as it was when the round began, `state.policy` (DAgger: Ross et al. 2011), up to
/// where plain search would end; the first round's are those of plain search, where training starts untrained. They are
/// walked anew for each sample, not kept. With `exploration` T each step is drawn from softmax(s/T) instead, by Gumbel
/// noise, so that other ways are seen, too.
///
/// Runs on train::fit: progress, stop, resuming, checkpoints and the same bits for any number of workers are its. An
/// epoch's patience ends a round. Throws ConfigError, ShapeError before anything changes; ConfigError, too, for an
/// attention whose logits depend on the other candidates of a call (mixtures of experts).
template <class Layer, class O, class S, class Score, Executor E = Serial>
train::FitResult fit_search(FitSearchState<Layer, O, S>& state, const Score& score,
                            MatrixView<const ScalarOf<Layer>> queries, const graph::HnswLayers<ScalarOf<Layer>>& layers,
                            const SearchTargets& targets, const FitSearchConfig& config = {},
                            const FitSearchHooks<FitSearchState<Layer, O, S>>& hooks = {}, E&& executor = Serial{},
                            const Progress& progress = {}, const std::stop_token& stop = {}) {
  using State = FitSearchState<Layer, O, S>;
  using T = ScalarOf<Layer>;
  detail::check_fit_search(config);
  check_shape("fit_search: columns of queries", layers.dim(), queries.cols());
  if (state.training.model.layers.empty()) throw_config_error("fit_search: layers of the model", ">= 1", 0);
  Workspace workspace;
  for (const Layer& layer : state.training.model.layers) {
    layer.check(layers.dim());
    if (layers.nodes() > 1 && queries.rows() > 0)
      detail::check_separable<Layer, T>(layer, queries.row(0), layers.vectors().rows(0, 2), workspace);
  }
  detail::SearchLoss<Score, Layer> objective(score, queries, layers, targets, config, state.policy,
                                             executor.concurrency());
  train::FitHooks<decltype(state.training)> inner;
  if (hooks.validate) inner.validate = [&](const auto&) { return hooks.validate(std::as_const(state)); };
  if (hooks.checkpoint) inner.checkpoint = [&](const auto&) { hooks.checkpoint(std::as_const(state)); };
  inner.epoch = hooks.epoch;
  const Progress whole = [&](ProgressReport report) {
    report.total = report.total / (state.round + 1) * config.rounds;
    progress(report);
  };
  train::FitResult result;
  while (true) {
    train::FitConfig round = config.fit;
    const Index last = std::min(state.round, config.rounds - 1) + 1;
    round.epochs = last * config.fit.epochs;
    result = train::fit(state.training, queries.rows(), objective, round, inner, executor,
                        progress ? whole : Progress(), stop);
    const bool ended = result.end == train::FitEnd::finished || result.end == train::FitEnd::early_stopped;
    if (!ended || state.round + 1 >= config.rounds) return result;
    ++state.round;
    state.policy = state.training.model;
    state.training.epoch = state.round * config.fit.epochs;
    state.training.position = 0;
    state.training.waited = 0;
    static_assert(train::Checkpointable<State>);
  }
}

}  // namespace ruvector::inline RUVECTOR_ABI::search
