// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/graph/hnsw_layers.hpp"
#include "ruvector/search/config.hpp"
#include "ruvector/search/exact_search.hpp"
#include "ruvector/search/filter.hpp"
#include "ruvector/search/hierarchical_walk.hpp"
#include "ruvector/search/scores.hpp"
#include "ruvector/search/search_layer.hpp"
#include "ruvector/search/types.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::search {

namespace detail {

template <Real T, class Layer>
void check_search(MatrixView<const T> queries, Index dim, std::span<const Layer> gnn_layers, const SearchConfig& config,
                  Index ids) {
  check_shape("hierarchical_forward_v2: columns of queries", dim, queries.cols());
  for (const Layer& layer : gnn_layers) layer.check(dim);
  if (config.k < 0) throw_config_error("hierarchical_forward_v2: k", ">= 0", double(config.k));
  if (config.ef < 1) throw_config_error("hierarchical_forward_v2: ef", ">= 1", double(config.ef));
  if (config.beam < 1) throw_config_error("hierarchical_forward_v2: beam", ">= 1", double(config.beam));
  if (config.rounds < 1) throw_config_error("hierarchical_forward_v2: rounds", ">= 1", double(config.rounds));
  const Index filters = Index(config.filters.size());
  if (filters > 1) check_shape("hierarchical_forward_v2: filters", queries.rows(), filters);
  for (const Filter& filter : config.filters) filter.check(ids);
}

/// Of the result what ExactSearch does not know.
template <Real T>
struct KeptOfResult {
  Matrix<T> state;
  std::vector<std::vector<SearchStep<T>>> trace;

  // Takes the memory, and gives it the size it needs.
  KeptOfResult(SearchResult<T>& result, const SearchConfig& config, Index queries, Index dim)
      : state(std::move(result.state)), trace(std::move(result.trace)) {
    const Index rows = config.state ? queries : 0, cols = config.state ? dim : 0;
    set_shape(state, rows, cols);
    trace.resize(config.trace ? std::size_t(queries) : 0);
    for (auto& steps : trace) steps.clear();
  }
  void give_back(SearchResult<T>& result) {
    result.state = std::move(state);
    result.trace = std::move(trace);
  }
};

}  // namespace detail

/// Search along the levels of an HNSW index, from coarse to fine, by a learned score:
///
///     std::vector<search::SearchLayer<attention::ScaledDotProduct<float>>> gnn;   // the last is that of level 0
///     for (int l = 0; l < 2; ++l) gnn.push_back({{.dim = layers.dim(), .unit = 0.1}, {}, rng});
///     search::hierarchical_forward_v2(search::SquaredDistance<float>{}, queries, layers, std::span(gnn),
///                                     {.k = 10, .ef = 64, .beam = 1}, result, workspace);
///     result.ids, result.scores, result.distance_count
///
/// Each query [B×d] has a state h, at first the query. On the levels above 0 a beam goes from its nodes and their
/// neighbours to the best of them by the learned score s of the level's SearchLayer, and h takes in what the beam
/// holds, until the beam does not change. Level 0 is searched best first by s, entered at the nodes of the beam; where
/// it ends is learned, too. Of all nodes compared on level 0 the k best *by the metric* are the result, with their true
/// scores: what is learned can miss, but never misstate.
///
/// gnn_layers come top to bottom as in version 1, and are counted from the bottom: the last serves level 0, the first
/// all levels from its own upwards. Without any, and with layers that are untrained, s is the metric's score; with
/// `beam` = 1 the ids are then those of HnswSearch with the same ef. A layer may hold any ScoringAttention; with
/// AnyAttention it is chosen at run time, with the same result.
///
/// `distance_count` has every evaluation of a score against a vector: for each candidate 1 of the metric, each time it
/// is weighed 1 of the attention of a layer whose gain is not 0, 1 of the second score and 1 for cos(q, x), where a
/// layer sees them and the cosine does not follow from the metric (it does from InnerProduct, Cosine and
/// SquaredDistance). On a level above 0 a node is compared once.
///
/// `score` is any CandidateScore, or TwoSpaces of the requested score and a second one that only the layers see. Ids
/// are `layers.ids()`; deleted and filtered points are passed through; NaN counts as absent, in a query it finds
/// nothing. A query's result does not depend on batch or executor. A second call of the same sizes allocates nothing,
/// but the trace, where asked for. Throws ShapeError, and ConfigError also where `softmax` is set: not all candidates
/// are seen here.
template <class Score, class Layer, Executor E = Serial>
void hierarchical_forward_v2(const Score& score, MatrixView<const detail::ScalarOfScore<Score>> queries,
                             const graph::HnswLayers<detail::ScalarOfScore<Score>>& layers, std::span<Layer> gnn_layers,
                             const SearchConfig& config, SearchResult<detail::ScalarOfScore<Score>>& result,
                             Workspace& workspace, E&& executor = Serial{}) {
  using T = detail::ScalarOfScore<Score>;
  const std::span<const std::remove_const_t<Layer>> gnn(gnn_layers);
  // Filters alone want to know how many ids there are, and looking takes as long as a search.
  const bool filtered = !config.filters.empty() && layers.nodes() > 0;
  const Index last_id = filtered ? *std::ranges::max_element(layers.ids()) : -1;
  detail::check_search(queries, layers.nodes() > 0 ? layers.dim() : queries.cols(), gnn, config, last_id + 1);
  if (config.softmax) throw_config_error("hierarchical_forward_v2: softmax over an index", "false", 1);
  detail::KeptOfResult<T> kept(result, config, queries.rows(), queries.cols());
  result.resize(queries.rows(), config.k);
  workspace.reserve_workers(executor.concurrency());
  const detail::HierarchicalWalk<Score, std::remove_const_t<Layer>> walk(score, layers, gnn, config);
  executor.parallel_for(queries.rows(), [&](Index i, Index worker) {
    Workspace& own = workspace.worker(worker);
    auto frame = own.frame();
    const std::span<T> state = frame.template span<T>(queries.cols());
    const Filter* filter = detail::filter_of(config.filters, i);
    walk(queries.row(i), filter, state, config.trace ? &kept.trace[std::size_t(i)] : nullptr, nullptr, result, i, own);
    if (config.state) std::ranges::copy(state, kept.state.row(i).begin());
  });
  kept.give_back(result);
}

/// The same over levels that are matrices [n×d] from coarse to fine, without a graph: each is scanned. On all but the
/// last the state takes in the beam, the best rows by s; the last is searched exactly (ExactSearch) by the metric, so
/// that ids, its rows, and with `softmax` the weights, log-sum-exp, mass and mean of all candidates are exact whatever
/// the layers have learned. Empty levels above it are skipped.
template <class Score, class Layer, Executor E = Serial>
void hierarchical_forward_v2(
    const Score& score, MatrixView<const detail::ScalarOfScore<Score>> queries,
    std::type_identity_t<std::span<const MatrixView<const detail::ScalarOfScore<Score>>>> levels,
    std::span<Layer> gnn_layers, const SearchConfig& config, SearchResult<detail::ScalarOfScore<Score>>& result,
    Workspace& workspace, E&& executor = Serial{}) {
  using T = detail::ScalarOfScore<Score>;
  const std::span<const std::remove_const_t<Layer>> gnn(gnn_layers);
  const Index d = queries.cols();
  MatrixView<const T> last(nullptr, 0, d);
  if (!levels.empty() && levels.back().rows() > 0) last = levels.back();
  detail::check_search(queries, d, gnn, config, last.rows());
  for (const MatrixView<const T>& level : levels)
    if (level.rows() > 0) check_shape("hierarchical_forward_v2: columns of a level", d, level.cols());
  detail::KeptOfResult<T> kept(result, config, queries.rows(), d);
  using S = std::remove_cvref_t<decltype(detail::requested(score))>;
  const ExactSearch<S> nearest(detail::requested(score),
                               Candidates<T>{.key = last, .value = config.softmax ? last : MatrixView<const T>()});
  nearest.search(queries,
                 {.k = config.k,
                  .softmax = config.softmax,
                  .temperature = T(config.temperature),
                  .renormalize = config.renormalize,
                  .filters = config.filters},
                 result, workspace, executor);
  if (levels.size() > 1 && !gnn.empty()) {
    workspace.reserve_workers(executor.concurrency());
    executor.parallel_for(queries.rows(), [&](Index i, Index worker) {
      Workspace& own = workspace.worker(worker);
      auto frame = own.frame();
      const std::span<T> state = frame.template span<T>(d);
      std::ranges::copy(queries.row(i), state.begin());
      auto* trace = config.trace ? &kept.trace[std::size_t(i)] : nullptr;
      for (std::size_t l = 0; l + 1 < levels.size(); ++l)
        result.distance_count[i] += detail::scan_level(score, queries.row(i), levels[l], gnn,
                                                       Index(levels.size() - 1 - l), config.beam, state, trace, own);
      if (config.state) std::ranges::copy(state, kept.state.row(i).begin());
    });
  } else if (config.state) {
    for (Index i = 0; i < queries.rows(); ++i) std::ranges::copy(queries.row(i), kept.state.row(i).begin());
  }
  kept.give_back(result);
}

}  // namespace ruvector::inline RUVECTOR_ABI::search
