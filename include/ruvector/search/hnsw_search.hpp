// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/graph/hnsw_layers.hpp"
#include "ruvector/search/filter.hpp"
#include "ruvector/search/neighbor_scores.hpp"
#include "ruvector/search/scores.hpp"
#include "ruvector/search/types.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::search {

/// How far a walk over an HNSW index looks.
struct HnswSearchConfig {
  Index k = 10;   ///< how many to find
  Index ef = 64;  ///< how many of the best so far are kept on level 0, at least k: more find better and take longer
  std::span<const Filter> filters = {};  ///< by id: none, one for all queries, or one each
};

namespace detail {

/// A node that a walk has scored.
template <Real T>
struct Scored {
  T score;
  graph::HnswNode node;
};

/// What a best-first walk knows: the ef best so far, and the nodes that it has yet to leave by their links. Its memory
/// ends with the frame. Which of equal scores goes first is left to the heaps of the standard library, as it is in
/// hnswlib: where points are there twice, it decides about the rest of the way.
template <Real T>
class Frontier {
 public:
  Frontier(Workspace::Frame& frame, Index ef)
      : frame_(&frame), best_(frame.span<Scored<T>>(ef + 1)), open_(frame.span<Scored<T>>(Index(1024))) {}

  /// Whether a score could be among the ef best.
  [[nodiscard]] bool wants(T score) const { return !full() || score > best_[0].score; }

  /// Adds a node that is wanted; one that is not `allowed` is passed through, but not kept.
  void add(Scored<T> node, bool allowed) {
    if (opened_ == open_.size()) grow();
    open_[opened_++] = node;
    std::push_heap(open_.begin(), open_.begin() + Index(opened_), worse);
    if (!allowed) return;
    const bool one_too_many = full();
    best_[kept_++] = node;
    std::push_heap(best_.begin(), best_.begin() + Index(kept_), better);
    if (one_too_many) std::pop_heap(best_.begin(), best_.begin() + Index(kept_--), better);
  }

  /// Takes the best node that has not been left. False where all the others are worse than the ef best.
  [[nodiscard]] bool next(graph::HnswNode& node) {
    if (opened_ == 0 || (full() && open_[0].score < best_[0].score)) return false;
    node = open_[0].node;
    std::pop_heap(open_.begin(), open_.begin() + Index(opened_--), worse);
    return true;
  }

  /// What was kept, in no order.
  [[nodiscard]] std::span<Scored<T>> best() { return best_.first(kept_); }

 private:
  static constexpr auto better = [](Scored<T> a, Scored<T> b) { return a.score > b.score; };
  static constexpr auto worse = [](Scored<T> a, Scored<T> b) { return a.score < b.score; };

  [[nodiscard]] bool full() const { return kept_ + 1 == best_.size(); }

  // How many there will be is not known before.
  void grow() {
    const auto larger = frame_->span<Scored<T>>(2 * Index(open_.size()));
    std::ranges::copy(open_, larger.begin());
    open_ = larger;
  }

  Workspace::Frame* frame_;
  std::span<Scored<T>> best_;  // a heap, the worst in front, with room for one more
  std::size_t kept_ = 0;
  std::span<Scored<T>> open_;  // a heap, the best in front
  std::size_t opened_ = 0;
};

/// A bit for each node. (Bits, set back for each query, beat an array of generations: 7.5 kB for 60000 nodes stay in
/// the fastest cache, and 125 kB for a million are zeroed in 2 µs.)
class VisitedNodes {
 public:
  VisitedNodes(Workspace::Frame& frame, Index nodes) : words_(frame.span<std::uint64_t>((nodes + 63) / 64)) {
    std::ranges::fill(words_, std::uint64_t(0));
  }
  /// Marks a node. Returns whether it was marked before.
  [[nodiscard]] bool visit(graph::HnswNode node) {
    std::uint64_t& word = words_[node / 64];
    const std::uint64_t before = word, bit = std::uint64_t(1) << (node % 64);
    word = before | bit;
    return (before & bit) != 0;
  }

 private:
  std::span<std::uint64_t> words_;
};

/// One query on its way through the layers. Its memory ends with the frame.
template <CandidateScore S>
class HnswWalk {
 public:
  using Scalar = ScalarOf<S>;
  using Node = graph::HnswNode;

  HnswWalk(const S& score, const graph::HnswLayers<Scalar>& layers, std::span<const Scalar> query, const Filter* filter,
           Workspace& workspace, Workspace::Frame& frame)
      : score_(score), layers_(layers), query_(query), filter_(filter), workspace_(workspace) {
    const graph::HnswParameters& parameters = layers.parameters();
    const Index most = std::max({Index(1), parameters.max_links, parameters.max_links_0});
    chosen_ = frame.template span<Node>(most);
    scores_ = frame.template span<Scalar>(most);
  }

  /// From the entry point to the node where level 0 is entered: on each level to the best neighbour, as long as there
  /// is a better one.
  [[nodiscard]] Scored<Scalar> descend() {
    Index l = layers_.levels() - 1;
    Node at = layers_.entry();  // its number on level l
    chosen_[0] = layers_.level(l).nodes[at];
    evaluate(1);
    Scalar best = entry_score_ = scores_[0];
    for (; l > 0; --l) {
      const graph::HnswLevel& level = layers_.level(l);
      for (bool better = true; better;) {
        better = false;
        const std::span<const Node> neighbors = level.graph.view().neighbors(Index(at));
        std::ranges::transform(neighbors, chosen_.begin(), [&](Node neighbor) { return level.nodes[neighbor]; });
        evaluate(neighbors.size());
        for (std::size_t j = 0; j < neighbors.size(); ++j)
          if (scores_[j] > best || (std::isnan(best) && !std::isnan(scores_[j]))) {
            best = scores_[j];
            at = neighbors[j];
            better = true;
          }
      }
      at = level.below[at];
    }
    return {best, at};
  }

  /// Enters level 0 at a node whose score is known.
  void enter(Scored<Scalar> start, Frontier<Scalar>& frontier, VisitedNodes& visited) const {
    (void)visited.visit(start.node);
    add(start, frontier);
  }

  /// Leaves a node of level 0 by its links: scores the neighbours that were not visited, in the order of the links.
  /// What is returned lasts until the next call.
  std::pair<std::span<const Node>, std::span<const Scalar>> leave(Node node, Frontier<Scalar>& frontier,
                                                                  VisitedNodes& visited) {
    std::size_t count = 0;
    for (const Node neighbor : layers_.level(0).graph.view().neighbors(Index(node))) {
      chosen_[count] = neighbor;
      count += visited.visit(neighbor) ? 0 : 1;
    }
    evaluate(count);
    for (std::size_t j = 0; j < count; ++j) add({scores_[j], chosen_[j]}, frontier);
    return {chosen_.first(count), scores_.first(count)};
  }

  /// Best first, until nothing better is left.
  void finish(Frontier<Scalar>& frontier, VisitedNodes& visited) {
    for (Node node; frontier.next(node);) leave(node, frontier, visited);
  }

  /// Offers a node with a score to the frontier.
  void add(Scored<Scalar> node, Frontier<Scalar>& frontier) const {
    const bool number = !std::isnan(node.score);
    if (!number) node.score = -std::numeric_limits<Scalar>::infinity();
    if (frontier.wants(node.score)) frontier.add(node, number && returned(node.node));
  }

  /// Scores nodes by name.
  void score(std::span<Scored<Scalar>> nodes) {
    for (std::size_t first = 0; first < nodes.size(); first += chosen_.size()) {
      const auto some = nodes.subspan(first, std::min(chosen_.size(), nodes.size() - first));
      std::ranges::transform(some, chosen_.begin(), &Scored<Scalar>::node);
      evaluate(some.size());
      for (std::size_t j = 0; j < some.size(); ++j) some[j].score = scores_[j];
    }
  }

  /// Whether a node may be returned: it is not deleted, and admitted by the filter.
  [[nodiscard]] bool returned(Node node) const {
    if (!layers_.deleted().empty() && layers_.deleted()[node] != 0) return false;
    return filter_ == nullptr || filter_->admits(layers_.ids()[node]);
  }

  /// The score of the entry point, after `descend`.
  [[nodiscard]] Scalar entry_score() const { return entry_score_; }
  /// How many scores it took so far.
  [[nodiscard]] Index evaluations() const { return evaluations_; }

 private:
  // Scores the first `count` chosen nodes.
  void evaluate(std::size_t count) {
    neighbor_scores(score_, query_, layers_.vectors(), std::span<const Node>(chosen_.first(count)),
                    scores_.first(count), workspace_);
    evaluations_ += Index(count);
  }

  const S& score_;
  const graph::HnswLayers<Scalar>& layers_;
  std::span<const Scalar> query_;
  const Filter* filter_;  // null: all ids
  Workspace& workspace_;
  std::span<Node> chosen_;    // [most links] nodes to score, and
  std::span<Scalar> scores_;  // their scores
  Scalar entry_score_ = 0;
  Index evaluations_ = 0;
};

/// The k best of those found, best first, as row i of a result.
template <Real T>
void write_found(std::span<Scored<T>> found, std::span<const Index> ids_of_nodes, SearchResult<T>& result, Index i) {
  const auto id = [&](Scored<T> x) { return ids_of_nodes[x.node]; };
  std::ranges::sort(
      found, [&](Scored<T> a, Scored<T> b) { return a.score > b.score || (a.score == b.score && id(a) < id(b)); });
  const auto ids = result.ids.row(i);
  const auto scores = result.scores.row(i);
  const std::size_t count = std::min(found.size(), ids.size());
  for (std::size_t p = 0; p < count; ++p) {
    ids[p] = id(found[p]);
    scores[p] = found[p].score;
  }
  std::fill(ids.begin() + Index(count), ids.end(), Index(-1));
  std::fill(scores.begin() + Index(count), scores.end(), -std::numeric_limits<T>::infinity());
  result.count[i] = Index(count);
}

/// Throws ShapeError unless the filters are none, one, or one a query, each for ids up to the last.
inline void check_filters(std::span<const Filter> filters, Index queries, Index last_id) {
  const Index count = Index(filters.size());
  if (count > 1) check_shape("search: filters", queries, count);
  for (const Filter& filter : filters) filter.check(last_id + 1);
}

/// That of query i, or null: all ids.
[[nodiscard]] inline const Filter* filter_of(std::span<const Filter> filters, Index i) {
  return filters.empty() ? nullptr : &filters[filters.size() == 1 ? 0 : std::size_t(i)];
}

}  // namespace detail

/// Approximate nearest neighbours over the layers of an HNSW index, under any score:
///
///     const search::HnswSearch nearest(search::SquaredDistance<float>{}, layers);
///     nearest.search(queries, {.k = 10, .ef = 64}, result, workspace);
///
/// Each query walks down from the entry point: above level 0 along the best neighbour as long as there is a better one,
/// on level 0 best first, keeping the ef best (Malkov and Yashunin 2016, algorithms 2 and 5). Nodes are visited in the
/// order of hnswlib's searchKnn, so with the score that the index was built for the result is the same, rounding aside,
/// and that of several equal scores in the last places the smaller ids stay. Ids are `layers.ids()`. A point that is
/// deleted or refused by the filter is passed through, not returned. A NaN score counts as absent: such a point is
/// never returned, and passed through as if it were the farthest; a query with NaN finds nothing.
///
/// What a query finds depends on it alone, not on the batch or the executor. Holds a reference to the layers. Const and
/// reentrant.
template <CandidateScore S>
class HnswSearch {
 public:
  /// What it computes in.
  using Scalar = ScalarOf<S>;

  /// Searches the points of `layers`, which must outlive it. O(points).
  ///@{
  HnswSearch(S score, const graph::HnswLayers<Scalar>& layers) : score_(std::move(score)), layers_(&layers) {
    for (const Index id : layers.ids()) last_id_ = std::max(last_id_, id);
  }
  HnswSearch(S score, const graph::HnswLayers<Scalar>&& layers) = delete;
  ///@}

  /// Finds for each query [B×d] up to k near points; places beyond those found stay empty. The threads of an executor
  /// share out the queries. `result.distance_count` has how many scores each took: the cost of a search whatever the
  /// machine. The fewer points a filter admits, the longer the walk: where it admits a few hundred, scan them instead.
  /// Throws ShapeError unless the widths and the filters fit (a bitmap has a bit for each id up to the largest),
  /// ConfigError for k < 0 or ef < 1. A second call of the same sizes allocates nothing.
  template <Executor E = Serial>
  void search(MatrixView<const Scalar> queries, const HnswSearchConfig& config, SearchResult<Scalar>& result,
              Workspace& workspace, E&& executor = Serial{}) const {
    check(queries, config);
    result.resize(queries.rows(), config.k);
    workspace.reserve_workers(executor.concurrency());
    executor.parallel_for(queries.rows(), [&](Index i, Index worker) {
      find(queries.row(i), detail::filter_of(config.filters, i), config, result, i, workspace.worker(worker));
    });
  }

  /// The layers.
  [[nodiscard]] const graph::HnswLayers<Scalar>& layers() const { return *layers_; }

 private:
  void check(MatrixView<const Scalar> queries, const HnswSearchConfig& config) const {
    if (config.k < 0) throw_config_error("HnswSearch: k", ">= 0", double(config.k));
    if (config.ef < 1) throw_config_error("HnswSearch: ef", ">= 1", double(config.ef));
    if (layers_->nodes() > 0) check_shape("HnswSearch: columns of queries", layers_->dim(), queries.cols());
    detail::check_filters(config.filters, queries.rows(), last_id_);
  }

  void find(std::span<const Scalar> query, const Filter* filter, const HnswSearchConfig& config,
            SearchResult<Scalar>& result, Index i, Workspace& workspace) const {
    const auto not_a_number = [](Scalar x) { return std::isnan(x); };
    result.distance_count[i] = 0;
    if (config.k == 0 || layers_->nodes() == 0 || std::ranges::any_of(query, not_a_number))
      return detail::write_found<Scalar>({}, layers_->ids(), result, i);
    auto frame = workspace.frame();
    detail::HnswWalk<S> walk(score_, *layers_, query, filter, workspace, frame);
    detail::Frontier<Scalar> frontier(frame, std::min(std::max(config.ef, config.k), layers_->nodes()));
    detail::VisitedNodes visited(frame, layers_->nodes());
    walk.enter(walk.descend(), frontier, visited);
    walk.finish(frontier, visited);
    detail::write_found(frontier.best(), layers_->ids(), result, i);
    result.distance_count[i] = walk.evaluations();
  }

  S score_;
  const graph::HnswLayers<Scalar>* layers_;
  Index last_id_ = -1;
};

}  // namespace ruvector::inline RUVECTOR_ABI::search
