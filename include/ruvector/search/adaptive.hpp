// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/graph/hnsw_layers.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/search/adaptive_router.hpp"
#include "ruvector/search/adaptive_warm_up.hpp"
#include "ruvector/search/filter.hpp"
#include "ruvector/search/hnsw_search.hpp"
#include "ruvector/search/scores.hpp"
#include "ruvector/search/types.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::search {

/// One way to search: by which score, and how broadly.
struct SearchExpert {
  Index score = 0;  ///< its position among the scores of the search; 0 is the one that results are asked for
  Index ef = 64;    ///< as in HnswSearchConfig
};

/// Among which ways an adaptive search chooses, and when.
struct AdaptiveConfig {
  std::vector<SearchExpert> experts = {{0, 16}, {0, 64}, {0, 256}};  ///< N of them
  Index warm_up = 24;  ///< w >= 0: nodes of level 0 that are left before the choice is made
};

/// What is asked for.
struct AdaptiveSearchConfig {
  Index k = 10;                          ///< how many to find
  Index choices = 1;                     ///< experts that search for a query, 1 or 2
  std::span<const Filter> filters = {};  ///< by id: none, one for all queries, or one each
};

/// What was found, and by whom.
template <Real T>
struct AdaptiveResult : SearchResult<T> {
  Matrix<Index> expert;  ///< [B×choices] the experts, best first; −1 where nothing was searched
  Matrix<T> gate;        ///< [B×choices] their shares of the softmax over those chosen
};

/// Searches the layers of an HNSW index with the effort that a query needs. All queries take the same first steps; what
/// these have shown decides which expert goes on from there, under which score and how broadly:
///
///     const search::AdaptiveSearch adaptive(layers, {.experts = {{0, 16}, {0, 64}, {1, 64}}},
///                                           search::SquaredDistance<float>{}, search::Cosine<float>{});
///     adaptive.label(queries, {.k = 10}, truth, labels, workspace);             // what each expert does: to train
///     adaptive.search(queries, router, {.k = 10}, result, workspace);           // a SearchRouter
///
/// No step is taken twice. An expert of score 0 finds what HnswSearch finds with its ef, bit for bit, whatever the
/// warm-up was; where it would have stopped earlier, the rest of the warm-up is counted nevertheless. (A walk with a
/// smaller ef leaves the same nodes in the same order, and only stops sooner. Where equal scores would lead it
/// elsewhere, it is walked anew, and counted.) An expert of another score sets out from the best node of the warm-up;
/// what it finds is scored by score 0 where that was not done, so results always hold scores 0 in their order, and all
/// distances are in `distance_count`.
///
/// Of two experts with the same score the broader one searches, since it sees all that the other does. Two of different
/// scores both search, and what they find is merged: of all nodes those go on to be scored by score 0 that are among
/// the first max(ef) by Σ_e g_e log softmax_e(s_e/τ_e), where τ_e is the range of what e has found, and what e has not
/// found counts as its last.
///
/// What a query finds depends on it alone, not on the batch or the executor. NaN and filters as in HnswSearch. Holds a
/// reference to the layers. Const and reentrant.
template <CandidateScore S, CandidateScore... Others>
class AdaptiveSearch {
 public:
  /// What it computes in.
  using Scalar = ScalarOf<S>;

  /// Searches the points of `layers`, which must outlive it, by `score` and those after it. Throws ConfigError without
  /// an expert, for an ef < 1, a score that is not there, a warm-up < 0. O(points).
  ///@{
  AdaptiveSearch(const graph::HnswLayers<Scalar>& layers, AdaptiveConfig config, S score, Others... others)
      : scores_(std::move(score), std::move(others)...), config_(std::move(config)), layers_(&layers) {
    if (config_.experts.empty()) throw_config_error("AdaptiveSearch: experts", ">= 1", 0);
    if (config_.warm_up < 0) throw_config_error("AdaptiveSearch: warm_up", ">= 0", double(config_.warm_up));
    for (const SearchExpert& expert : config_.experts) {
      if (expert.ef < 1) throw_config_error("AdaptiveSearch: ef", ">= 1", double(expert.ef));
      if (expert.score < 0 || expert.score > Index(sizeof...(Others)))
        throw_config_error("AdaptiveSearch: score", "0 to " + std::to_string(sizeof...(Others)), double(expert.score));
      broadest_ = std::max(broadest_, expert.ef);
    }
    for (const Index id : layers.ids()) last_id_ = std::max(last_id_, id);
  }
  AdaptiveSearch(const graph::HnswLayers<Scalar>&& layers, AdaptiveConfig config, S score, Others... others) = delete;
  ///@}

  /// N.
  [[nodiscard]] Index experts() const { return Index(config_.experts.size()); }
  /// Among which ways is chosen.
  [[nodiscard]] const AdaptiveConfig& config() const { return config_; }

  /// Finds for each query [B×d] up to k near points, by the experts with the largest logits of the router, which maps
  /// [n×12] to [n×N] (of equal ones the first, NaN last). Throws ShapeError unless the widths, the filters and the
  /// router fit, ConfigError for k < 0 or choices other than 1 or 2, or more than N. A second call of the same sizes
  /// allocates nothing.
  template <nn::RowMap R, Executor E = Serial>
  void search(MatrixView<const Scalar> queries, const R& router, const AdaptiveSearchConfig& config,
              AdaptiveResult<Scalar>& result, Workspace& workspace, E&& executor = Serial{}) const {
    check(queries, config);
    check_shape("AdaptiveSearch: columns of the router", experts(), router.output_dim(router_features));
    run(
        queries, config, result,
        [&](const auto& warm_up, std::span<Index> chosen, std::span<Scalar> gates, Workspace& own) {
          auto frame = own.frame();
          const auto x = frame.template matrix<Scalar>(1, router_features);
          const auto logits = frame.template matrix<Scalar>(1, experts());
          warm_up.write_features(x.row(0));
          router.forward(x, logits, own);
          choose(logits.row(0), chosen, gates);
        },
        workspace, executor);
  }

  /// The same with one expert for all.
  template <Executor E = Serial>
  void search_by(Index expert, MatrixView<const Scalar> queries, const AdaptiveSearchConfig& config,
                 AdaptiveResult<Scalar>& result, Workspace& workspace, E&& executor = Serial{}) const {
    check(queries, config);
    if (expert < 0 || expert >= experts())
      throw_config_error("AdaptiveSearch: expert", "0 to " + std::to_string(experts() - 1), double(expert));
    run(
        queries, {.k = config.k, .choices = 1, .filters = config.filters}, result,
        [&](const auto&, std::span<Index> chosen, std::span<Scalar> gates, Workspace&) {
          chosen[0] = expert;
          gates[0] = 1;
        },
        workspace, executor);
  }

  /// What the warm-up shows of each query, [B×12], and costs nothing more. With σ(x) = sign(x) log(1 + |x|), the scores
  /// s_1 ≥ s_2 ≥ … of the nodes seen (at most 10 of them, m in number), d = σ(−s):
  ///
  ///     0  σ(‖q‖)        its norm: in hyperbolic space its depth
  ///     1  σ(s_1)        the nearest so far
  ///     2  σ(s_m)        the tenth
  ///     3  d_m − d_1     how much further the tenth is
  ///     4  d_entry − d_1 how far it has come since the entry point
  ///     5  d_start − d_1 and since it entered level 0
  ///     6  σ(number of times that one of the ten was replaced in the second half of the warm-up)
  ///     7  entropy of softmax(s/(s_1 − s_m)) over the ten, by log m
  ///     8  log of the local intrinsic dimension, 1/mean(d_m − d_i)   (Amsaleg et al. 2015; Levina and Bickel 2004)
  ///     9  share of the ten that were among them after half of the warm-up
  ///    10  share of the ten whose neighbours have all been seen: 1 where the walk is about to end
  ///    11  sparsity of the query, (√d − ‖q‖₁/‖q‖)/(√d − 1)   (Hoyer 2004)
  ///
  /// Zeros for a query with NaN, and of an empty index. Throws ShapeError.
  template <Executor E = Serial>
  void features(MatrixView<const Scalar> queries, MatrixView<Scalar> out, Workspace& workspace,
                E&& executor = Serial{}) const {
    check(queries, {});
    nn::detail::check_matrix("AdaptiveSearch::features: out", queries.rows(), router_features, out);
    workspace.reserve_workers(executor.concurrency());
    executor.parallel_for(queries.rows(), [&](Index i, Index worker) {
      std::ranges::fill(out.row(i), Scalar(0));
      if (nothing_to_find(queries.row(i), 1)) return;
      Workspace& own = workspace.worker(worker);
      auto frame = own.frame();
      const WarmUp warm_up(std::get<0>(scores_), *layers_, queries.row(i), nullptr, config_.warm_up, warm_up_ef(1), own,
                           frame);
      warm_up.write_features(out.row(i));
    });
  }

  /// Lets every expert search for every query, and says how well each did: a place counts where its score 0 is at least
  /// that of the last true neighbour. `truth` holds the true neighbours [B×k] of config.k = k under score 0
  /// (ExactSearch). N times the time of a search. Throws as `search`.
  template <Executor E = Serial>
  void label(MatrixView<const Scalar> queries, const AdaptiveSearchConfig& config, const SearchResult<Scalar>& truth,
             AdaptiveLabels<Scalar>& labels, Workspace& workspace, E&& executor = Serial{}) const {
    check(queries, config);
    nn::detail::check_matrix("AdaptiveSearch::label: truth", queries.rows(), config.k, truth.scores.view());
    set_shape(labels.features, queries.rows(), router_features);
    set_shape(labels.recall, queries.rows(), experts());
    set_shape(labels.cost, queries.rows(), experts());
    features(queries, labels.features, workspace, executor);
    AdaptiveResult<Scalar> found;
    for (Index e = 0; e < experts(); ++e) {
      search_by(e, queries, config, found, workspace, executor);
      for (Index i = 0; i < queries.rows(); ++i) {
        labels.recall(i, e) = recall(found, truth, i);
        labels.cost(i, e) = Scalar(found.distance_count[i]);
      }
    }
  }

  /// The layers.
  [[nodiscard]] const graph::HnswLayers<Scalar>& layers() const { return *layers_; }

 private:
  using Node = graph::HnswNode;
  using Scored = detail::Scored<Scalar>;
  using WarmUp = detail::WarmUp<S>;
  using MergedCandidates = detail::MergedCandidates<Scalar>;

  void check(MatrixView<const Scalar> queries, const AdaptiveSearchConfig& config) const {
    if (config.k < 0) throw_config_error("AdaptiveSearch: k", ">= 0", double(config.k));
    const Index most = std::min(Index(2), experts());
    if (config.choices < 1 || config.choices > most)
      throw_config_error("AdaptiveSearch: choices", "1 to " + std::to_string(most), double(config.choices));
    if (layers_->nodes() > 0) check_shape("AdaptiveSearch: columns of queries", layers_->dim(), queries.cols());
    detail::check_filters(config.filters, queries.rows(), last_id_);
  }

  [[nodiscard]] bool nothing_to_find(std::span<const Scalar> query, Index k) const {
    return k == 0 || layers_->nodes() == 0 || std::ranges::any_of(query, [](Scalar x) { return std::isnan(x); });
  }

  // A walk leaves all that it keeps, so one with ef = steps gets as far as any other, and its heaps are small. A single
  // expert goes on as it has begun.
  [[nodiscard]] Index warm_up_ef(Index k) const {
    const Index ef = std::max(broadest_, k);
    return experts() == 1 ? ef : std::min(ef, std::max(config_.warm_up, Index(1)));
  }

  template <class Choose, class E>
  void run(MatrixView<const Scalar> queries, const AdaptiveSearchConfig& config, AdaptiveResult<Scalar>& result,
           Choose&& choose_experts, Workspace& workspace, E& executor) const {
    result.resize(queries.rows(), config.k);
    set_shape(result.expert, queries.rows(), config.choices);
    set_shape(result.gate, queries.rows(), config.choices);
    workspace.reserve_workers(executor.concurrency());
    executor.parallel_for(queries.rows(), [&](Index i, Index worker) {
      result.distance_count[i] = 0;
      std::ranges::fill(result.expert.row(i), Index(-1));
      std::ranges::fill(result.gate.row(i), Scalar(0));
      if (nothing_to_find(queries.row(i), config.k)) return detail::write_found<Scalar>({}, layers_->ids(), result, i);
      Workspace& own = workspace.worker(worker);
      auto frame = own.frame();
      WarmUp warm_up(std::get<0>(scores_), *layers_, queries.row(i), detail::filter_of(config.filters, i),
                     config_.warm_up, warm_up_ef(config.k), own, frame);
      choose_experts(warm_up, result.expert.row(i), result.gate.row(i), own);
      go_on(warm_up, config.k, result, i, own, frame);
    });
  }

  // The largest logits, and their softmax.
  static void choose(std::span<const Scalar> logits, std::span<Index> chosen, std::span<Scalar> gates) {
    for (std::size_t c = 0; c < chosen.size(); ++c) {
      Index best = -1;
      for (Index e = 0; e < Index(logits.size()); ++e) {
        if (c > 0 && e == chosen[0]) continue;
        const Scalar x = logits[std::size_t(e)];
        if (best < 0 || x > logits[std::size_t(best)] || (std::isnan(logits[std::size_t(best)]) && !std::isnan(x)))
          best = e;
      }
      chosen[c] = best;
    }
    gates[0] = 1;
    if (gates.size() < 2) return;
    const Scalar ratio = std::exp(logits[std::size_t(chosen[1])] - logits[std::size_t(chosen[0])]);
    gates[0] = 1 / (1 + ratio);
    gates[1] = 1 - gates[0];
  }

  // From the warm-up to the result.
  void go_on(WarmUp& warm_up, Index k, AdaptiveResult<Scalar>& result, Index i, Workspace& workspace,
             Workspace::Frame& frame) const {
    const auto chosen = result.expert.row(i);
    const auto gates = result.gate.row(i);
    std::array<SearchExpert, 2> experts;
    std::array<Scalar, 2> shares{};
    std::size_t count = 0;
    for (std::size_t c = 0; c < chosen.size(); ++c) {
      const SearchExpert expert = config_.experts[std::size_t(chosen[c])];
      if (count == 1 && experts[0].score == expert.score) {
        experts[0].ef = std::max(experts[0].ef, expert.ef);
        shares[0] += gates[c];
      } else {
        experts[count] = expert;
        shares[count++] = gates[c];
      }
    }
    const auto breadth = [&](SearchExpert expert) { return std::max(expert.ef, k); };
    // Score 0 goes on first: what it has scored need not be scored again.
    if (count == 2 && experts[1].score == 0) {
      std::swap(experts[0], experts[1]);
      std::swap(shares[0], shares[1]);
    }
    const bool goes_on = experts[0].score == 0;
    const std::span<Scored> known = goes_on ? warm_up.finish(breadth(experts[0])) : warm_up.found();
    Index evaluations = 0;
    std::span<Scored> found = known;
    if (!goes_on || count == 2) {
      const Index most = std::max(breadth(experts[0]), breadth(experts[count - 1]));
      MergedCandidates candidates(frame, 2 * most);
      if (goes_on) candidates.add(known, shares[0]);
      for (std::size_t c = goes_on ? 1 : 0; c < count; ++c)
        candidates.add(walk(experts[c].score, warm_up, breadth(experts[c]), evaluations, workspace, frame), shares[c]);
      found = warm_up.score_unknown(candidates.best(most), known);
    }
    detail::write_found(found, layers_->ids(), result, i);
    result.distance_count[i] = warm_up.evaluations() + evaluations;
  }

  // What another score finds from the best node of the warm-up.
  [[nodiscard]] std::span<Scored> walk(Index score, const WarmUp& warm_up, Index ef, Index& evaluations,
                                       Workspace& workspace, Workspace::Frame& frame) const {
    std::span<Scored> found;
    Index number = 0;
    const auto by = [&](const auto& other) {
      if (number++ != score) return;
      detail::HnswWalk walk(other, *layers_, warm_up.query(), warm_up.filter(), workspace, frame);
      detail::VisitedNodes visited(frame, layers_->nodes());
      detail::Frontier<Scalar> frontier(frame, std::min(ef, layers_->nodes()));
      Scored start{0, warm_up.best_node()};
      walk.score(std::span(&start, 1));
      walk.enter(start, frontier, visited);
      walk.finish(frontier, visited);
      evaluations += walk.evaluations();
      found = frontier.best();
    };
    std::apply([&](const auto&... scores) { (by(scores), ...); }, scores_);
    return found;
  }

  [[nodiscard]] static Scalar recall(const SearchResult<Scalar>& found, const SearchResult<Scalar>& truth, Index i) {
    const Index wanted = truth.count[i];
    if (wanted == 0) return 1;
    Index good = 0;
    for (const Scalar score : found.scores.row(i).first(std::size_t(found.count[i])))
      good += score >= truth.scores(i, wanted - 1) ? 1 : 0;
    return Scalar(std::min(good, wanted)) / Scalar(wanted);
  }

  std::tuple<S, Others...> scores_;
  AdaptiveConfig config_;
  const graph::HnswLayers<Scalar>* layers_;
  Index broadest_ = 1;
  Index last_id_ = -1;
};

}  // namespace ruvector::inline RUVECTOR_ABI::search
