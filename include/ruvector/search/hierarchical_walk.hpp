// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/graph/hnsw_layers.hpp"
#include "ruvector/search/config.hpp"
#include "ruvector/search/filter.hpp"
#include "ruvector/search/hnsw_search.hpp"
#include "ruvector/search/neighbor_scores.hpp"
#include "ruvector/search/scores.hpp"
#include "ruvector/search/search_layer.hpp"
#include "ruvector/search/types.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <functional>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

// The way of one query through the levels: what hierarchical_forward_v2 and fit_search share.

namespace ruvector::inline RUVECTOR_ABI::search {

/// A score that is asked for, and a second one that learned layers see beside it: the same vectors in another space.
template <CandidateScore S, CandidateScore Second>
  requires std::same_as<ScalarOf<S>, ScalarOf<Second>>
struct TwoSpaces {
  S score;        ///< results are the best by it
  Second second;  ///< a feature of candidates
};

namespace detail {

template <class Score>
inline constexpr bool has_second = requires(const Score& score) {
  score.second;
};

/// The score that results are ordered by.
template <class Score>
[[nodiscard]] const auto& requested(const Score& score) {
  if constexpr (has_second<Score>)
    return score.score;
  else
    return score;
}

template <class Score>
using ScalarOfScore = ScalarOf<std::remove_cvref_t<decltype(requested(std::declval<const Score&>()))>>;

/// cos(q, x) where it follows from the score.
template <class S, Real T>
inline constexpr bool tells_cosine =
    std::same_as<S, InnerProduct<T>> || std::same_as<S, Cosine<T>> || std::same_as<S, SquaredDistance<T>>;

template <class S, Real T>
[[nodiscard]] T cosine_from(T score, T query_norm, T norm) {
  if constexpr (std::same_as<S, Cosine<T>>) return score;
  const T product = query_norm * norm;
  if (!(product > 0)) return 0;
  if constexpr (std::same_as<S, SquaredDistance<T>>)
    return (query_norm * query_norm + norm * norm + score) / (2 * product);
  else
    return score / product;
}

/// Candidates of one step, in the memory of a frame. Rows of `key` and `features` are there where there are layers.
template <Real T>
struct CandidateBlock {
  std::span<graph::HnswNode> node;      // numbers on the level
  std::span<T> metric, learned, place;  // place: of the edge in its list, 0 to 1
  MatrixView<T> key, features;

  CandidateBlock(Workspace::Frame& frame, Index n, Index d, bool layers)
      : node(frame.span<graph::HnswNode>(n)),
        metric(frame.span<T>(n)),
        learned(frame.span<T>(n)),
        place(frame.span<T>(n)),
        key(frame.matrix<T>(layers ? n : 0, d)),
        features(frame.matrix<T>(layers ? n : 0, search_features)) {}

  /// Row i becomes row j of another one.
  void copy(Index i, const CandidateBlock& from, Index j) const {
    node[std::size_t(i)] = from.node[std::size_t(j)];
    metric[std::size_t(i)] = from.metric[std::size_t(j)];
    learned[std::size_t(i)] = from.learned[std::size_t(j)];
    if (key.rows() == 0) return;
    std::ranges::copy(from.key.row(j), key.row(i).begin());
    std::ranges::copy(from.features.row(j), features.row(i).begin());
  }
};

/// Candidates as they were compared, for training: steps above level 0, and level 0 as one step with its expansions.
template <Real T>
struct SearchRecord {
  struct Step {
    Index level, first, count;  // candidates first … first+count−1
  };
  struct Expansion {
    Index candidate;  // of level 0, or −1: the search ended
    Index seen;       // candidates of level 0 that were known then
  };

  T exploration = 0;  // Gumbel noise on the scores that the way goes by, in units of the layer: it is drawn by softmax
  Rng rng{0};         // for it

  std::vector<Step> steps;  // the last is that of level 0
  std::vector<Expansion> expansions;
  std::vector<graph::HnswNode> node;  // numbers on the level
  std::vector<T> metric;
  std::vector<T> features;  // [candidates × search_features]

  void clear() {
    steps.clear();
    expansions.clear();
    node.clear();
    metric.clear();
    features.clear();
  }
  void start(Index level) { steps.push_back({level, Index(node.size()), 0}); }
  void add(const CandidateBlock<T>& block, Index count) {
    const auto n = std::size_t(count);
    node.insert(node.end(), block.node.begin(), block.node.begin() + count);
    metric.insert(metric.end(), block.metric.begin(), block.metric.begin() + count);
    features.insert(features.end(), block.features.data(), block.features.data() + n * std::size_t(search_features));
    steps.back().count += count;
  }
};

/// The features that take another score of a candidate.
struct SeenFeatures {
  bool second = true, cosine = true;

  /// Those that one of the layers sees: a candidate may go down to any of them.
  template <class Layer>
  [[nodiscard]] static SeenFeatures of(std::span<const Layer> layers) {
    const auto seen = [&](Index feature) {
      return std::ranges::any_of(layers, [&](const Layer& layer) { return layer.sees(feature); });
    };
    return {seen(1), seen(3)};
  }
};

/// What layers know of a candidate before it is in a beam.
template <class Score, class Layer>
class CandidateFeatures {
  using S = std::remove_cvref_t<decltype(requested(std::declval<const Score&>()))>;
  using T = ScalarOf<S>;

 public:
  CandidateFeatures(const Score& score, std::span<const T> query, SeenFeatures seen = {})
      : score_(score), query_(query), norm_(std::sqrt(simd::squared_norm(query))), seen_(seen) {}

  /// Writes the features of candidates `key` of a level with these scores, 0 for those that are not seen; returns how
  /// many more scores it took.
  Index operator()(const Layer& layer, Index level, MatrixView<const T> key, std::span<const T> metric,
                   MatrixView<T> features, Workspace& ws) const {
    const Index n = key.rows();
    auto frame = ws.frame();
    const std::span<T> second = frame.template span<T>(n);
    Index evaluations = 0;
    std::ranges::fill(second, T(0));
    if constexpr (has_second<Score>)
      if (seen_.second) {
        score_.second.scores({query_.data(), 1, Index(query_.size())}, key, {second.data(), 1, n}, ws);
        evaluations += n;
      }
    for (Index j = 0; j < n; ++j) {
      const std::span<T> e = features.row(j);
      const T norm = std::sqrt(simd::squared_norm<T>(key.row(j)));
      T cosine = 0;
      if constexpr (tells_cosine<S, T>)
        cosine = cosine_from<S, T>(metric[std::size_t(j)], norm_, norm);
      else if (seen_.cosine && norm * norm_ > 0)
        cosine = simd::dot<T>(query_, key.row(j)) / (norm * norm_);
      e[0] = metric[std::size_t(j)] / layer.unit;
      e[1] = second[std::size_t(j)] / layer.second_unit;
      e[2] = norm - norm_;
      e[3] = cosine;
      e[4] = 0;
      for (std::size_t l = 0; l < 4; ++l) e[5 + l] = T(l == std::size_t(std::min(level, Index(3))));
      e[9] = 0;
    }
    return evaluations + (seen_.cosine && !tells_cosine<S, T> ? n : 0);
  }

 private:
  const Score& score_;
  std::span<const T> query_;
  T norm_;
  SeenFeatures seen_;
};

/// The layer of a level; null without layers.
template <class Layer>
[[nodiscard]] const Layer* layer_of(std::span<const Layer> layers, Index level) {
  if (layers.empty()) return nullptr;
  return &layers[std::size_t(std::max(Index(0), Index(layers.size()) - 1 - level))];
}

/// The numbers of the `count` largest scores, best first, of equal ones the first.
template <Real T>
void order_best(std::span<const T> scores, std::span<Index> order, Index count) {
  for (std::size_t j = 0; j < order.size(); ++j) order[j] = Index(j);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](Index a, Index b) {
    const T x = scores[std::size_t(a)], y = scores[std::size_t(b)];
    return x > y || (x == y && a < b);
  });
}

/// The state takes in the best rows of a level that is scanned. Returns how many scores that took.
template <class Score, class Layer, Real T>
Index scan_level(const Score& score, std::span<const T> query, MatrixView<const T> level, std::span<const Layer> layers,
                 Index number, Index beam, std::span<T> state, std::vector<SearchStep<T>>* trace, Workspace& ws) {
  const Index n = level.rows();
  if (n == 0 || std::ranges::any_of(query, [](T x) { return std::isnan(x); })) return 0;
  auto frame = ws.frame();
  const Layer& layer = *layer_of(layers, number);
  const std::span<T> metric = frame.template span<T>(n), learned = frame.template span<T>(n),
                     kept = frame.template span<T>(n), next = frame.template span<T>(Index(state.size()));
  const MatrixView<T> features = frame.template matrix<T>(n, search_features);
  const std::span<Index> order = frame.template span<Index>(n);
  requested(score).scores({query.data(), 1, Index(query.size())}, level, {metric.data(), 1, n}, ws);
  const Index evaluations = n + CandidateFeatures<Score, Layer>(score, query, SeenFeatures::of(std::span(&layer, 1)))(
                                    layer, number, level, metric, features, ws);
  layer.scores(state, level, metric, features, learned, {}, ws);
  const Index count = std::min(beam, n);
  order_best<T>(learned, order, count);
  std::ranges::fill(kept, T(0));
  for (Index b = 0; b < count; ++b) {
    const auto j = std::size_t(order[std::size_t(b)]);
    kept[j] = 1;
    if (trace != nullptr) trace->push_back({number, Index(j), learned[j]});
  }
  layer.update(state, level, learned, kept, next, nullptr, ws);
  std::ranges::copy(next, state.begin());
  return evaluations + (layer.gain != 0 ? n : 0);
}

/// Level 0, best first by the learned score: what is open, the ef best by it, and the ef best by the metric, in heaps
/// that are those of Frontier where both scores are one.
template <Real T>
class LearnedFrontier {
 public:
  struct Open {
    T score, metric;
    graph::HnswNode node;
    Index number;  // how many were compared before it
  };

  LearnedFrontier(Workspace::Frame& frame, Index ef, Index k)
      : frame_(frame),
        found_(frame.span<Scored<T>>(ef + 1)),
        front_(frame.span<T>(k + 1)),
        kept_(frame.span<T>(ef + 1)),
        open_(frame.span<Open>(Index(1024))) {}

  /// Adds a node; one that is not `allowed` is passed through.
  void add(Open node, bool allowed) {
    if (allowed) find({node.metric, node.node});
    if (full() && !(node.score > kept_[0])) return;
    if (opened_ == open_.size()) grow();
    open_[opened_++] = node;
    std::push_heap(open_.begin(), open_.begin() + Index(opened_), worse);
    if (!allowed) return;
    push(kept_, count_, node.score);
  }

  /// Takes the best open node to which going is better than ending; false where there is none.
  template <class Rule>
  [[nodiscard]] bool next(Open& node, Rule&& ending) {
    while (opened_ > 0 && !(full() && open_[0].score < kept_[0])) {
      node = open_[0];
      std::pop_heap(open_.begin(), open_.begin() + Index(opened_--), worse);
      if (!(can_end() && node.metric < ending(worst(), kth()))) return true;
    }
    return false;
  }

  /// Whether there are ef; then the metric of the ef-th and of the k-th best by it.
  ///@{
  [[nodiscard]] bool can_end() const { return found_count_ + 1 == found_.size(); }
  [[nodiscard]] T worst() const { return found_[0].score; }
  [[nodiscard]] T kth() const { return front_[0]; }
  ///@}

  /// The best by the metric, in no order.
  [[nodiscard]] std::span<Scored<T>> found() { return found_.first(found_count_); }

 private:
  static constexpr auto worse = [](const Open& a, const Open& b) { return a.score < b.score; };
  static constexpr auto better = [](Scored<T> a, Scored<T> b) { return a.score > b.score; };

  [[nodiscard]] bool full() const { return count_ + 1 == kept_.size(); }

  // Of a heap with the worst in front that has room for one more.
  static void push(std::span<T> heap, std::size_t& count, T score) {
    const bool one_too_many = count + 1 == heap.size();
    heap[count++] = score;
    std::push_heap(heap.begin(), heap.begin() + Index(count), std::greater<>());
    if (one_too_many) std::pop_heap(heap.begin(), heap.begin() + Index(count--), std::greater<>());
  }

  void find(Scored<T> node) {
    const bool one_too_many = can_end();
    if (one_too_many && !(node.score > found_[0].score)) return;
    push(front_, front_count_, node.score);
    found_[found_count_++] = node;
    std::push_heap(found_.begin(), found_.begin() + Index(found_count_), better);
    if (one_too_many) std::pop_heap(found_.begin(), found_.begin() + Index(found_count_--), better);
  }

  void grow() {
    const auto larger = frame_.span<Open>(2 * Index(open_.size()));
    std::ranges::copy(open_, larger.begin());
    open_ = larger;
  }

  Workspace::Frame& frame_;
  std::span<Scored<T>> found_;  // a heap by the metric, the worst in front, with room for one more
  std::size_t found_count_ = 0;
  std::span<T> front_;  // the same of the k best, and
  std::size_t front_count_ = 0;
  std::span<T> kept_;  // of the ef best learned scores
  std::size_t count_ = 0;
  std::span<Open> open_;  // a heap, the best in front
  std::size_t opened_ = 0;
};

/// What ending the search is worth where the ef-th best has the metric `worst` and the k-th `kth`, see SearchLayer; the
/// former where that is not a number.
template <class Layer, Real T>
[[nodiscard]] T score_of_ending(const Layer& layer, T worst, T kth) {
  const T margin = layer.unit * layer.stop[0] + layer.stop[1] * (kth - worst) + layer.stop[2] * kth;
  return std::isfinite(margin) ? worst + margin : worst;
}

/// The way of a query through the layers of an index.
template <class Score, class Layer>
class HierarchicalWalk {
 public:
  using S = std::remove_cvref_t<decltype(requested(std::declval<const Score&>()))>;
  using T = ScalarOf<S>;
  using Node = graph::HnswNode;

  HierarchicalWalk(const Score& score, const graph::HnswLayers<T>& layers, std::span<const Layer> gnn,
                   const SearchConfig& config)
      : score_(score),
        layers_(layers),
        gnn_(gnn),
        config_(config),
        seen_(SeenFeatures::of(gnn)),
        by_metric_(
            std::ranges::all_of(gnn, [](const Layer& layer) { return layer.by_metric() && layer.keeps_state(); })) {}

  /// Searches for a query, writes row i of `result` and the state, and fills trace and record where they are not null.
  /// Not inlined: the same code for any executor.
  [[gnu::noinline]] void operator()(std::span<const T> query, const Filter* filter, std::span<T> state,
                                    std::vector<SearchStep<T>>* trace, SearchRecord<T>* record, SearchResult<T>& result,
                                    Index i, Workspace& ws) const {
    std::ranges::copy(query, state.begin());
    result.distance_count[i] = 0;
    if (record != nullptr) record->clear();
    if (config_.k == 0 || layers_.nodes() == 0 || std::ranges::any_of(query, [](T x) { return std::isnan(x); }))
      return write_found<T>({}, layers_.ids(), result, i);
    auto frame = ws.frame();
    const graph::HnswParameters& parameters = layers_.parameters();
    const Index most = std::max({Index(1), parameters.max_links, parameters.max_links_0});
    const Index beam = std::min(config_.beam, layers_.nodes()), room = beam * (most + 1) + 1, d = layers_.dim();
    const bool more = !by_metric(record);
    const CandidateBlock<T> block(frame, room, d, more), spare(frame, beam, d, more);
    Way way{{score_, query, record != nullptr ? SeenFeatures{} : seen_},
            query,
            filter,
            state,
            trace,
            record,
            ws,
            block,
            spare,
            frame.template span<Node>(room),
            0,
            0};
    way.beam = 1;
    block.node[0] = layers_.entry();
    block.place[0] = 0;
    compare(way, layers_.levels() - 1, 0, 1);
    for (Index l = layers_.levels() - 1; l > 0; --l) descend(way, l);
    const Index ef = std::min(std::max(config_.ef, config_.k), layers_.nodes());
    LearnedFrontier<T> frontier(frame, ef, std::min(config_.k, ef));
    walk_level_0(way, frontier);
    result.distance_count[i] = way.evaluations;
    write_found<T>(frontier.found(), layers_.ids(), result, i);
  }

 private:
  struct Way {
    CandidateFeatures<Score, Layer> features_of;
    std::span<const T> query;
    const Filter* filter;
    std::span<T> state;
    std::vector<SearchStep<T>>* trace;
    SearchRecord<T>* record;
    Workspace& ws;
    const CandidateBlock<T>& block;  // the beam in front
    const CandidateBlock<T>& spare;
    std::span<Node> chosen;  // scratch: rows of the vectors
    Index beam;              // how many nodes it has
    Index evaluations;
  };

  // Whether the metric is all that need be known of candidates; a way to learn from wants to know the rest.
  [[nodiscard]] bool by_metric(const SearchRecord<T>* record) const {
    return by_metric_ && (record == nullptr || gnn_.empty());
  }

  // What there is to know of candidates first … first+count−1 of the block, nodes of level l: metric, keys, features.
  void compare(Way& way, Index l, Index first, Index count) const {
    if (count == 0) return;
    const auto chosen = way.chosen.first(std::size_t(count));
    const auto nodes = way.block.node.subspan(std::size_t(first), std::size_t(count));
    const auto metric = way.block.metric.subspan(std::size_t(first), std::size_t(count));
    std::ranges::transform(nodes, chosen.begin(), [&](Node node) { return layers_.level(l).nodes[node]; });
    neighbor_scores(requested(score_), way.query, layers_.vectors(), std::span<const Node>(chosen), metric, way.ws);
    way.evaluations += count;
    if (by_metric(way.record)) return;
    const MatrixView<T> key = way.block.key.rows(first, count);
    for (Index j = 0; j < count; ++j)
      std::ranges::copy(layers_.vectors().row(Index(chosen[std::size_t(j)])), key.row(j).begin());
    const MatrixView<T> features = way.block.features.rows(first, count);
    way.evaluations += way.features_of(*layer_of(gnn_, l), l, key, metric, features, way.ws);
    for (Index j = 0; j < count; ++j) features(j, 4) = way.block.place[std::size_t(first + j)];
  }

  // The learned scores of the first `count` candidates, of which the first `in_beam` are in the beam.
  void learn(Way& way, Index l, Index count, Index in_beam) const {
    const CandidateBlock<T>& block = way.block;
    const auto n = std::size_t(count);
    if (by_metric(way.record)) {
      constexpr T lowest = -std::numeric_limits<T>::infinity();
      std::transform(block.metric.begin(), block.metric.begin() + count, block.learned.begin(),
                     [](T m) { return std::isnan(m) ? lowest : m; });
      return;
    }
    const Layer& layer = *layer_of(gnn_, l);
    for (Index j = 0; j < in_beam; ++j) {
      const std::span<T> e = block.features.row(j);
      e[0] = block.metric[std::size_t(j)] / layer.unit;
      e[4] = 0;
      for (std::size_t k = 0; k < 4; ++k) e[5 + k] = T(k == std::size_t(std::min(l, Index(3))));
      e[9] = 1;
    }
    layer.scores(way.state, block.key.rows(0, count), block.metric.first(n), block.features.rows(0, count),
                 block.learned.first(n), {}, way.ws);
    if (layer.gain != 0) way.evaluations += count;
    if (way.record == nullptr) return;
    way.record->add(block, count);
    if (way.record->exploration > 0)
      for (T& s : block.learned.first(n))
        s -= layer.unit * way.record->exploration * T(std::log(-std::log(way.record->rng.uniform())));
  }

  // On level l: the beam goes to the best of its nodes and their neighbours until it stays. Leaves it with the numbers
  // of the level below.
  void descend(Way& way, Index l) const {
    const graph::HnswLevel& level = layers_.level(l);
    const graph::CsrView<Node> links = level.graph.view();
    auto frame = way.ws.frame();
    VisitedNodes visited(frame, links.nodes());
    for (Index b = 0; b < way.beam; ++b) (void)visited.visit(way.block.node[std::size_t(b)]);
    const std::span<Index> order = frame.template span<Index>(Index(way.block.node.size()));
    bool moved = true;
    for (Index round = 0; moved && round < config_.rounds; ++round) {
      Index count = gather(way, links, visited, l);
      if (count == way.beam && round > 0) break;
      if (way.record != nullptr) way.record->start(l);
      learn(way, l, count, way.beam);
      moved = cut(way, l, count, order);
    }
    for (Index b = 0; b < way.beam; ++b) {
      Node& node = way.block.node[std::size_t(b)];
      if (way.trace != nullptr) way.trace->push_back({l, Index(level.nodes[node]), way.block.learned[std::size_t(b)]});
      node = level.below[node];
      if (has_second<Score> && !by_metric(way.record))
        way.block.features(b, 1) *= layer_of(gnn_, l)->second_unit / layer_of(gnn_, l - 1)->second_unit;
    }
  }

  // Appends the neighbours of the beam that are new. Returns how many candidates that makes.
  [[nodiscard]] Index gather(Way& way, graph::CsrView<Node> links, VisitedNodes& visited, Index l) const {
    Index count = way.beam;
    for (Index b = 0; b < way.beam; ++b) count = append(way, links, way.block.node[std::size_t(b)], visited, count);
    compare(way, l, way.beam, count - way.beam);
    return count;
  }

  // The same of one node.
  [[nodiscard]] static Index append(Way& way, graph::CsrView<Node> links, Node node, VisitedNodes& visited,
                                    Index count) {
    const std::span<const Node> neighbors = links.neighbors(Index(node));
    for (std::size_t j = 0; j < neighbors.size(); ++j) {
      way.block.node[std::size_t(count)] = neighbors[j];
      way.block.place[std::size_t(count)] = T(j) / T(neighbors.size());
      count += visited.visit(neighbors[j]) ? 0 : 1;
    }
    return count;
  }

  // Keeps the best of the candidates as the beam, which the state takes in. Returns whether the beam is another one.
  [[nodiscard]] bool cut(Way& way, Index l, Index count, std::span<Index> order) const {
    const CandidateBlock<T>& block = way.block;
    const auto n = std::size_t(count);
    const Index kept = std::min(config_.beam, count);
    order_best<T>(block.learned.first(n), order.first(n), kept);
    bool moved = false;
    for (Index b = 0; b < kept; ++b) moved = moved || order[std::size_t(b)] >= way.beam;
    if (!by_metric(way.record)) take_in(way, l, count, order.first(std::size_t(kept)));
    for (Index b = 0; b < kept; ++b) way.spare.copy(b, block, order[std::size_t(b)]);
    for (Index b = 0; b < kept; ++b) block.copy(b, way.spare, b);
    way.beam = kept;
    return moved;
  }

  void take_in(Way& way, Index l, Index count, std::span<const Index> beam) const {
    auto frame = way.ws.frame();
    const std::span<T> kept = frame.template span<T>(count), next = frame.template span<T>(Index(way.state.size()));
    std::ranges::fill(kept, T(0));
    for (const Index j : beam) kept[std::size_t(j)] = 1;
    layer_of(gnn_, l)->update(way.state, way.block.key.rows(0, count), way.block.learned.first(std::size_t(count)),
                              kept, next, nullptr, way.ws);
    std::ranges::copy(next, way.state.begin());
  }

  void walk_level_0(Way& way, LearnedFrontier<T>& frontier) const {
    using Open = typename LearnedFrontier<T>::Open;
    const graph::CsrView<Node> links = layers_.level(0).graph.view();
    auto frame = way.ws.frame();
    VisitedNodes visited(frame, layers_.nodes());
    const CandidateBlock<T>& block = way.block;
    Index seen = 0;
    const auto add = [&](Index count) {
      for (std::size_t j = 0; j < std::size_t(count); ++j) {
        const bool there = !std::isnan(block.metric[j]) && returned(way, block.node[j]);
        frontier.add({block.learned[j], block.metric[j], block.node[j], seen++}, there);
      }
    };
    for (Index b = 0; b < way.beam; ++b) (void)visited.visit(block.node[std::size_t(b)]);
    if (way.record != nullptr) way.record->start(0);
    learn(way, 0, way.beam, way.beam);
    add(way.beam);
    // A way to learn from goes on as far as it may: else nobody would know what ending earlier costs.
    const auto ending = [&](T worst, T kth) {
      return gnn_.empty() || way.record != nullptr ? worst : score_of_ending(*layer_of(gnn_, 0), worst, kth);
    };
    Open at;
    while (frontier.next(at, ending)) {
      if (way.trace != nullptr) way.trace->push_back({0, Index(at.node), at.score});
      if (way.record != nullptr) way.record->expansions.push_back({at.number, seen});
      const Index count = append(way, links, at.node, visited, 0);
      compare(way, 0, 0, count);
      learn(way, 0, count, 0);
      add(count);
    }
    if (way.record != nullptr) way.record->expansions.push_back({-1, seen});
  }

  [[nodiscard]] bool returned(const Way& way, Node node) const {
    if (!layers_.deleted().empty() && layers_.deleted()[node] != 0) return false;
    return way.filter == nullptr || way.filter->admits(layers_.ids()[node]);
  }

  const Score& score_;
  const graph::HnswLayers<T>& layers_;
  std::span<const Layer> gnn_;
  const SearchConfig& config_;
  const SeenFeatures seen_;
  const bool by_metric_;  // nothing was learned but when to end
};

}  // namespace detail

}  // namespace ruvector::inline RUVECTOR_ABI::search
