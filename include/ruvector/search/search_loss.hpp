// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/graph/csr_graph.hpp"
#include "ruvector/graph/hnsw_layers.hpp"
#include "ruvector/search/config.hpp"
#include "ruvector/search/exact_search.hpp"
#include "ruvector/search/hierarchical_walk.hpp"
#include "ruvector/search/search_layer.hpp"
#include "ruvector/search/soft_top_k.hpp"
#include "ruvector/search/types.hpp"
#include "ruvector/train/fit.hpp"
#include "ruvector/train/loss.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::search {

/// The layers of a hierarchical search as one Module: what is trained, saved and loaded.
template <class Layer>
struct SearchModel {
  using Scalar = ScalarOf<Layer>;  ///< what it computes in
  std::vector<Layer> layers;       ///< top to bottom, the last is that of level 0

  /// Names them.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("layers", self.layers...);
  }
};

/// What queries should find: those of query i are numbers offsets[i] … offsets[i+1]−1.
struct SearchTargets {
  std::vector<Index> offsets;  ///< [B+1]
  std::vector<Index> ids;      ///< of points
  std::vector<Index> hops;     ///< how far each is, in whatever sense, ≥ 0: all distances are trained alike; empty: 0
};

/// How a search is trained.
struct FitSearchConfig {
  train::FitConfig fit = {.epochs = 2, .batch_size = 32, .micro_batch = 4, .max_gradient_norm = 1};  ///< of a round
  Index rounds = 2;               ///< each trains on ways of the model as it was when the round began
  SearchConfig search = {};       ///< of these ways: ef and beam as they will be; no filters
  double rank = 1;                ///< weight of the rank loss, ≥ 0
  double route = 1;               ///< weight of the routing loss, ≥ 0
  double end = 1;                 ///< weight of the loss of ending, ≥ 0
  double worth = 300;             ///< so many comparisons in vain cost as much as a target that was missed, > 0
  double exploration = 0;         ///< temperature by which ways are drawn, in units of the layer; 0: the best, ≥ 0
  double rank_temperature = 1;    ///< of its softmax, in units of the layer
  double route_temperature = 1;   ///< the same of routing
  double end_temperature = 0.02;  ///< the same of ending
  double beam_temperature = 1;    ///< of the soft cut of the beam, the same
  Index positives = 4;            ///< targets a query and step for the rank loss, uniform over their hops
  Index negatives = 64;           ///< other points of its way, at most
  Index first_hop = 0;            ///< targets of the rank loss are at least so far: for a last training on far pairs
  Index ball = 4096;              ///< on each level the steps to the targets are counted for so many points
};

namespace detail {

/// Losses and gradients of a search along ways that it, or an earlier one, has gone. Its two functions are not inlined:
/// gcc 12 fuses other products with sums where it inlines them into fit for another executor, and bits would differ.
template <class Score, class Layer>
class SearchLoss {
 public:
  using T = ScalarOf<Layer>;
  using Model = SearchModel<Layer>;
  using Node = graph::HnswNode;

  /// What one worker needs, reused.
  struct Scratch {
    SearchRecord<T> record;
    SearchResult<T> result;
    std::vector<typename Layer::Saved> steps;
    typename decltype(Layer::attention)::Saved attention;
  };

  SearchLoss(const Score& score, MatrixView<const T> queries, const graph::HnswLayers<T>& layers,
             const SearchTargets& targets, const FitSearchConfig& config, const Model& policy, Index workers)
      : score_(score), queries_(queries), layers_(layers), targets_(targets), config_(config), policy_(policy) {
    for (Index l = 0; l < layers.levels(); ++l) reversed_.push_back(graph::transpose(layers.level(l).graph.view()));
    read_targets();
    scratch_.resize(std::size_t(workers));
  }

  /// An objective of train::fit.
  train::LossSum operator()(const Model& model, std::span<const Index> samples, Model& gradient,
                            train::FitContext& context) {
    train::LossSum sum;
    Scratch& scratch = scratch_[std::size_t(context.worker)];
    for (const Index i : samples) {
      const Rng rng = context.rng.split(std::uint64_t(i));
      walk(i, scratch, rng.split(1), context.workspace);
      sum.sum += loss(model, i, scratch, rng, gradient, context.workspace);
      sum.weight += 1;
    }
    return sum;
  }

  /// Sends query i on the way of the policy.
  [[gnu::noinline]] void walk(Index i, Scratch& scratch, const Rng& rng, Workspace& ws) const {
    scratch.record.exploration = T(config_.exploration);
    scratch.record.rng = rng;
    auto frame = ws.frame();
    const std::span<T> state = frame.template span<T>(queries_.cols());
    scratch.result.resize(1, std::max(Index(1), config_.search.k));
    const HierarchicalWalk<Score, Layer> way(score_, layers_, std::span<const Layer>(policy_.layers), config_.search);
    way(queries_.row(i), nullptr, state, nullptr, &scratch.record, scratch.result, 0, ws);
  }

  /// The loss of query i along that way; adds to `gradient`. `soft`: the beam is weighed by its soft cut also going
  /// forward, so that the gradient is that of the loss, not of its straight-through relative.
  [[gnu::noinline]] double loss(const Model& model, Index i, Scratch& scratch, Rng rng, Model& gradient, Workspace& ws,
                                bool soft = false) const {
    if (scratch.record.steps.empty()) return 0;
    auto frame = ws.frame();
    Pass pass(frame, scratch, queries_.row(i), layers_);
    forward(model, scratch, pass, soft, ws);
    double total = 0;
    if (config_.route > 0 || config_.end > 0) total += route(model, i, scratch, pass, gradient, ws);
    if (config_.rank > 0) total += config_.rank * rank(model, i, scratch, pass, rng, gradient, ws);
    backward(model, scratch, pass, gradient, ws);
    return total;
  }

 private:
  static constexpr T lowest = -std::numeric_limits<T>::infinity();
  // The steps of the nodes of each level to the targets; −1: too far.
  using Ways = std::span<std::span<std::int32_t>>;

  // All candidates of a way.
  struct Pass {
    MatrixView<T> key, features, state, d_state;  // state: before each step
    std::span<T> s, logits, hard, cut, d_s;       // cut: how much each is in the beam, soft; hard: as it was used

    Pass(Workspace::Frame& frame, Scratch& scratch, std::span<const T> query, const graph::HnswLayers<T>& layers) {
      SearchRecord<T>& record = scratch.record;
      const Index n = Index(record.node.size()), d = Index(query.size()), steps = Index(record.steps.size());
      key = frame.matrix<T>(n, d);
      features = MatrixView<T>(record.features.data(), n, search_features);
      state = frame.matrix<T>(steps, d);
      d_state = frame.matrix<T>(steps, d);
      for (std::span<T>* span : {&s, &logits, &hard, &cut, &d_s}) *span = frame.span<T>(n);
      std::ranges::fill(d_s, T(0));
      for (Index r = 0; r < steps; ++r) std::ranges::fill(d_state.row(r), T(0));
      std::ranges::copy(query, state.row(0).begin());
      for (const auto& step : record.steps)
        for (Index j = step.first; j < step.first + step.count; ++j)
          std::ranges::copy(layers.vectors().row(Index(layers.level(step.level).nodes[record.node[std::size_t(j)]])),
                            key.row(j).begin());
      if (scratch.steps.size() < record.steps.size()) scratch.steps.resize(record.steps.size());
    }
  };
  // The candidates of one step.
  struct Part {
    MatrixView<const T> key, features;
    std::span<const T> metric;
    std::span<T> s, logits, hard, cut, d_s;
    Part(const SearchRecord<T>& record, const Pass& pass, const typename SearchRecord<T>::Step& step)
        : key(pass.key.rows(step.first, step.count)), features(pass.features.rows(step.first, step.count)) {
      const auto first = std::size_t(step.first), count = std::size_t(step.count);
      metric = std::span<const T>(record.metric).subspan(first, count);
      s = pass.s.subspan(first, count);
      logits = pass.logits.subspan(first, count);
      hard = pass.hard.subspan(first, count);
      cut = pass.cut.subspan(first, count);
      d_s = pass.d_s.subspan(first, count);
    }
  };

  void read_targets() {
    check_shape("fit_search: offsets of targets", queries_.rows() + 1, Index(targets_.offsets.size()));
    check_shape("fit_search: last offset of targets", Index(targets_.ids.size()), targets_.offsets.back());
    if (!targets_.hops.empty())
      check_shape("fit_search: hops of targets", Index(targets_.ids.size()), Index(targets_.hops.size()));
    for (std::size_t i = 0; i + 1 < targets_.offsets.size(); ++i)
      if (targets_.offsets[i] < 0 || targets_.offsets[i] > targets_.offsets[i + 1])
        throw_shape_error("fit_search: offsets of targets", "ascending from 0",
                          std::to_string(targets_.offsets[i + 1]));
    std::vector<std::pair<Index, Node>> nodes;
    for (std::size_t node = 0; node < layers_.ids().size(); ++node) nodes.emplace_back(layers_.ids()[node], Node(node));
    std::ranges::sort(nodes);
    for (const Index id : targets_.ids) {
      const auto at = std::ranges::lower_bound(nodes, std::pair(id, Node(0)));
      if (at == nodes.end() || at->first != id)
        throw_shape_error("fit_search: ids of targets", "those of points", std::to_string(id));
      nodes_.push_back(at->second);
    }
  }

  [[nodiscard]] std::span<const Node> targets_of(Index i) const {
    const auto first = std::size_t(targets_.offsets[std::size_t(i)]);
    return std::span(nodes_).subspan(first, std::size_t(targets_.offsets[std::size_t(i) + 1]) - first);
  }

  // Whether a loss depends on s; that of ending does not.
  [[nodiscard]] bool learns_scores() const { return config_.route > 0 || config_.rank > 0; }

  void forward(const Model& model, Scratch& scratch, Pass& pass, bool soft, Workspace& ws) const {
    const SearchRecord<T>& record = scratch.record;
    for (std::size_t r = 0; r < record.steps.size(); ++r) {
      const auto& step = record.steps[r];
      const Layer& layer = *layer_of(std::span<const Layer>(model.layers), step.level);
      const Part part(record, pass, step);
      layer.scores(pass.state.row(Index(r)), part.key, part.metric, part.features, part.s,
                   learns_scores() ? part.logits : std::span<T>(), ws);
      if (step.level == 0) continue;
      selector(layer).forward(part.s, part.cut, ws);
      auto frame = ws.frame();
      const std::span<Index> order = frame.template span<Index>(step.count);
      const Index beam = std::min(config_.search.beam, step.count);
      order_best<T>(part.s, order, beam);
      std::ranges::fill(part.hard, T(0));
      for (Index b = 0; b < beam; ++b) part.hard[std::size_t(order[std::size_t(b)])] = 1;
      if (soft) std::ranges::copy(part.cut, part.hard.begin());
      layer.update(pass.state.row(Index(r)), part.key, part.s, part.hard, pass.state.row(Index(r) + 1),
                   &scratch.steps[r], ws);
    }
  }

  void backward(const Model& model, Scratch& scratch, Pass& pass, Model& gradient, Workspace& ws) const {
    const SearchRecord<T>& record = scratch.record;
    for (std::size_t r = record.steps.size(); r-- > 0;) {
      const auto& step = record.steps[r];
      const Layer& layer = *layer_of(std::span<const Layer>(model.layers), step.level);
      Layer& grad = gradient_of(gradient, step.level);
      const Part part(record, pass, step);
      const std::span<T> d_state = pass.d_state.row(Index(r));
      if (step.level > 0) {
        auto frame = ws.frame();
        const std::span<T> d_cut = frame.template span<T>(step.count);
        std::ranges::fill(d_cut, T(0));
        layer.update_backward(pass.state.row(Index(r)), part.key, part.s, part.hard, scratch.steps[r],
                              pass.d_state.row(Index(r) + 1), d_state, part.d_s, d_cut, grad, ws);
        (void)selector(layer).backward(part.s, part.cut, d_cut, part.d_s);
      }
      layer.scores_backward(pass.state.row(Index(r)), part.key, part.features, part.logits, part.d_s, d_state,
                            scratch.attention, grad, ws);
    }
  }

  [[nodiscard]] SoftTopK<T> selector(const Layer& layer) const {
    return {.k = config_.search.beam, .temperature = layer.unit * T(config_.beam_temperature)};
  }
  [[nodiscard]] static Layer& gradient_of(Model& gradient, Index level) {
    return gradient.layers[std::size_t(std::max(Index(0), Index(gradient.layers.size()) - 1 - level))];
  }

  // On level 0 to the targets; above it to the nodes that are nearest to those of the level below.
  [[nodiscard]] Ways hops(Index i, Workspace::Frame& frame) const {
    const Ways ways = frame.template span<std::span<std::int32_t>>(layers_.levels());
    for (Index l = 0; l < layers_.levels(); ++l) {
      const graph::HnswLevel& level = layers_.level(l);
      std::span<std::int32_t>& hop = ways[std::size_t(l)];
      hop = frame.template span<std::int32_t>(Index(level.nodes.size()));
      const std::span<Node> queue = frame.template span<Node>(Index(level.nodes.size()));
      if (l == 0) {
        count_hops(l, targets_of(i), queue, hop);
        continue;
      }
      constexpr std::int32_t far = std::numeric_limits<std::int32_t>::max();
      const auto of = [&](std::size_t node) {
        const std::int32_t below = ways[std::size_t(l) - 1][level.below[node]];
        return below < 0 ? far : below;
      };
      std::int32_t least = far;
      for (std::size_t node = 0; node < level.nodes.size(); ++node) least = std::min(least, of(node));
      const std::span<Node> nearest = frame.template span<Node>(Index(level.nodes.size()));
      std::size_t count = 0;
      for (std::size_t node = 0; least < far && node < level.nodes.size(); ++node)
        if (of(node) == least) nearest[count++] = Node(node);
      count_hops(l, nearest.first(count), queue, hop);
    }
    return ways;
  }

  // How many links of a level lead from each node to the nearest of `ends`, for the `ball` that are nearest to them; −1
  // for others. The queue has room for all nodes.
  void count_hops(Index level, std::span<const Node> ends, std::span<Node> queue, std::span<std::int32_t> hop) const {
    std::ranges::fill(hop, -1);
    std::size_t count = 0;
    const auto reach = [&](Node node, std::int32_t steps) {
      if (hop[node] >= 0 || Index(count) >= std::max(config_.ball, Index(1))) return;
      hop[node] = steps;
      queue[count++] = node;
    };
    for (const Node node : ends) reach(node, 0);
    for (std::size_t at = 0; at < count; ++at)
      for (const Node node : reversed_[std::size_t(level)].view().neighbors(Index(queue[at])))
        reach(node, hop[queue[at]] + 1);
  }

  // A candidate, or ending: its score over the scale.
  struct Choice {
    double x;
    Index candidate;  // −1: ending
    bool right;
  };
  // −(log Σ_right e^x − log Σ_all e^x), and in d its gradient by x; −1 where there is nothing to learn from.
  [[nodiscard]] static double choose(std::span<const Choice> choices, std::span<double> d) {
    double top = -std::numeric_limits<double>::infinity(), top_right = top, all = 0, right = 0;
    for (const Choice& c : choices) {
      top = std::max(top, c.x);
      if (c.right) top_right = std::max(top_right, c.x);
    }
    if (!std::isfinite(top) || !std::isfinite(top_right)) return -1;
    for (const Choice& c : choices) {
      all += std::exp(c.x - top);
      if (c.right) right += std::exp(c.x - top_right);
    }
    for (std::size_t j = 0; j < choices.size(); ++j)
      d[j] = std::exp(choices[j].x - top) / all - (choices[j].right ? std::exp(choices[j].x - top_right) / right : 0);
    return std::max(0.0, top + std::log(all) - top_right - std::log(right));
  }

  // Which of the choices are the fewest steps from a target; false if none is known to be near.
  [[nodiscard]] static bool mark(std::span<Choice> choices, std::span<const Node> node,
                                 std::span<const std::int32_t> hop) {
    std::int32_t least = -1;
    for (const Choice& c : choices)
      if (const std::int32_t steps = hop[node[std::size_t(c.candidate)]]; steps >= 0 && (least < 0 || steps < least))
        least = steps;
    if (least < 0) return false;
    for (Choice& c : choices) c.right = hop[node[std::size_t(c.candidate)]] == least;
    return true;
  }

  // A mean of losses, and its gradient.
  struct Mean {
    std::span<double> d_s;  // [candidates]
    double total = 0, weight = 0;
    double d_stop[3] = {0, 0, 0};

    Mean(Index candidates, Workspace::Frame& frame) : d_s(frame.span<double>(candidates)) {
      std::ranges::fill(d_s, 0.0);
    }
    // Adds it to the gradients, times `factor`, and returns it.
    double add_to(Pass& pass, Layer& level_0, double factor) const {
      if (weight == 0) return 0;
      const double share = factor / weight;
      for (std::size_t j = 0; j < d_s.size(); ++j) pass.d_s[j] += T(share * d_s[j]);
      for (Index k = 0; k < 3; ++k) level_0.stop[k] += T(share * d_stop[k]);
      return share * total;
    }
  };

  // Routing and ending.
  double route(const Model& model, Index i, const Scratch& scratch, Pass& pass, Model& gradient, Workspace& ws) const {
    auto frame = ws.frame();
    const SearchRecord<T>& record = scratch.record;
    const Index n = Index(record.node.size());
    Mean way(n, frame), end(n, frame);
    if (config_.route > 0) route_above(model, i, record, pass, way, ws);
    route_level_0(model, i, record, pass, way, end, ws);
    return way.add_to(pass, gradient.layers.back(), config_.route) +
           end.add_to(pass, gradient.layers.back(), config_.end);
  }

  // Each round of a beam is a choice among it and its neighbours.
  void route_above(const Model& model, Index i, const SearchRecord<T>& record, const Pass& pass, Mean& way,
                   Workspace& ws) const {
    auto frame = ws.frame();
    const Ways ways = hops(i, frame);
    const std::span<Choice> choices = frame.template span<Choice>(Index(record.node.size()));
    const std::span<double> d = frame.template span<double>(Index(record.node.size()));
    for (const auto& step : record.steps) {
      if (step.level == 0) break;
      for (Index j = 0; j < step.count; ++j)
        choices[std::size_t(j)] = {scaled(model, step.level, pass.s[std::size_t(step.first + j)]), step.first + j,
                                   false};
      add_way(choices.first(std::size_t(step.count)), record, ways[std::size_t(step.level)], step.level, model, d, way);
    }
  }

  [[nodiscard]] double scale_of(const Model& model, Index level) const {
    return double(layer_of(std::span<const Layer>(model.layers), level)->unit) * config_.route_temperature;
  }
  [[nodiscard]] double scaled(const Model& model, Index level, T s) const { return double(s) / scale_of(model, level); }

  // The right way is to the candidates with the fewest steps left.
  void add_way(std::span<Choice> choices, const SearchRecord<T>& record, std::span<const std::int32_t> hop, Index level,
               const Model& model, std::span<double> d, Mean& way) const {
    if (!mark(choices, record.node, hop)) return;
    const double loss = choose(choices, d);
    if (loss < 0) return;
    way.total += loss;
    way.weight += 1;
    for (std::size_t j = 0; j < choices.size(); ++j)
      way.d_s[std::size_t(choices[j].candidate)] += d[j] / scale_of(model, level);
  }

  // Each expansion, as long as targets are missing, is a choice among the nodes that were open, of which those are
  // right that are nearest to a missing one; and, once there are ef, the best of them and the end are a choice between
  // going on and ending.
  void route_level_0(const Model& model, Index i, const SearchRecord<T>& record, const Pass& pass, Mean& way, Mean& end,
                     Workspace& ws) const {
    const auto& step = record.steps.back();
    const std::span<const T> s = pass.s.subspan(std::size_t(step.first)),
                             metric = std::span<const T>(record.metric).subspan(std::size_t(step.first));
    auto frame = ws.frame();
    const Index ef = std::min(std::max(config_.search.ef, config_.search.k), layers_.nodes());
    const Index n = config_.route > 0 ? layers_.nodes() : 0;
    const std::span<std::int32_t> hop = frame.template span<std::int32_t>(n);
    const std::span<Node> queue = frame.template span<Node>(n);
    const std::span<std::uint8_t> expanded = frame.template span<std::uint8_t>(step.count);
    const std::span<Choice> choices = frame.template span<Choice>(step.count);
    const std::span<double> d = frame.template span<double>(step.count),
                            gain = frame.template span<double>(Index(record.expansions.size()));
    LearnedFrontier<T> frontier(frame, ef, std::min(config_.search.k, ef));
    std::ranges::fill(expanded, std::uint8_t(0));
    gains_of_going_on(i, record, gain);
    std::span<Node> missing = frame.template span<Node>(Index(targets_of(i).size()));
    std::ranges::copy(targets_of(i), missing.begin());
    bool met = true;  // another target, since the hops were counted
    Index seen = 0;
    for (std::size_t e = 0; e < record.expansions.size(); ++e) {
      const auto& expansion = record.expansions[e];
      for (; seen < expansion.seen; ++seen) {
        const Node node = record.node[std::size_t(step.first + seen)];
        const T m = metric[std::size_t(seen)];
        const auto left = std::size_t(std::remove(missing.begin(), missing.end(), node) - missing.begin());
        met = met || left < missing.size();
        missing = missing.first(left);
        frontier.add({m, m, node, seen}, !std::isnan(m) && (layers_.deleted().empty() || layers_.deleted()[node] == 0));
      }
      const bool going = config_.route > 0 && !missing.empty();  // where to is a question
      std::size_t count = 0;
      T open = lowest;
      for (Index j = 0; j < seen; ++j) {
        if (expanded[std::size_t(j)] != 0) continue;
        if (going) choices[count++] = {scaled(model, 0, s[std::size_t(j)]), step.first + j, false};
        if (metric[std::size_t(j)] > open) open = metric[std::size_t(j)];
      }
      if (expansion.candidate >= 0) expanded[std::size_t(expansion.candidate)] = 1;
      if (going) {
        if (met) count_hops(0, missing, queue, hop);
        met = false;
        add_way(choices.first(count), record, hop, 0, model, d, way);
      }
      if (open != lowest && expansion.candidate >= 0 && frontier.can_end())
        add_end(model, open, frontier.worst(), frontier.kth(), gain[e], end);
    }
  }

  // The best open candidate by the metric against ending: the wrong one costs as much as it loses, in targets.
  void add_end(const Model& model, T open, T worst, T kth, double gain, Mean& end) const {
    const Layer& layer = model.layers.back();
    const double scale = double(layer.unit) * config_.end_temperature;
    const std::array choices = {
        Choice{double(open) / scale, 0, gain > 0},
        Choice{double(score_of_ending(layer, worst, kth)) / scale, -1, gain <= 0},
    };
    std::array<double, 2> d;
    const double loss = choose(choices, d);
    if (loss < 0) return;
    const double weight = std::abs(gain) / config_.worth, d_ending = weight * d[1] / scale;
    end.total += weight * loss;
    end.weight += 1;
    end.d_stop[0] += d_ending * double(layer.unit);
    end.d_stop[1] += d_ending * (double(kth) - double(worst));
    end.d_stop[2] += d_ending * double(kth);
  }

  [[nodiscard]] std::size_t targets_at(Index i, Node node) const {
    return std::size_t(std::ranges::count(targets_of(i), node));
  }

  // What going on from each expansion is worth, in comparisons, if the search ends at the best time after it: targets
  // that are met by then, less what is compared. Negative: the least that going on costs in vain.
  void gains_of_going_on(Index i, const SearchRecord<T>& record, std::span<double> gain) const {
    const auto& step = record.steps.back();
    Index seen = 0;
    double value = 0;  // of ending here
    for (std::size_t e = 0; e < gain.size(); ++e) {
      for (; seen < record.expansions[e].seen; ++seen)
        value += config_.worth * double(targets_at(i, record.node[std::size_t(step.first + seen)])) - 1;
      gain[e] = value;
    }
    double best = -std::numeric_limits<double>::infinity();
    for (std::size_t e = gain.size(); e-- > 0;) {
      const double here = gain[e];
      gain[e] = best - here;
      best = std::max(best, here);
    }
  }

  // −log softmax of each of some targets among points of the way that are none, with the state that entered level 0.
  // What is known of edges is left out: a target may not have been on the way.
  double rank(const Model& model, Index i, Scratch& scratch, Pass& pass, Rng& rng, Model& gradient,
              Workspace& ws) const {
    auto frame = ws.frame();
    const SearchRecord<T>& record = scratch.record;
    const std::span<Node> chosen = frame.template span<Node>(config_.positives + config_.negatives);
    const Index positives = draw_positives(i, chosen, rng, frame);
    const Index count = draw_negatives(i, record, chosen, positives, rng);
    if (positives == 0 || count == positives) return 0;
    const Layer& layer = model.layers.back();
    const MatrixView<T> key = frame.template matrix<T>(count, queries_.cols()),
                        features = frame.template matrix<T>(count, search_features);
    const std::span<T> metric = frame.template span<T>(count), s = frame.template span<T>(count),
                       logits = frame.template span<T>(count), d_s = frame.template span<T>(count);
    const auto nodes = std::span<const Node>(chosen).first(std::size_t(count));
    for (Index j = 0; j < count; ++j)
      std::ranges::copy(layers_.vectors().row(Index(nodes[std::size_t(j)])), key.row(j).begin());
    neighbor_scores(requested(score_), queries_.row(i), layers_.vectors(), nodes, metric, ws);
    (void)CandidateFeatures<Score, Layer>(score_, queries_.row(i))(layer, 0, key, metric, features, ws);
    const Index last = Index(record.steps.size()) - 1;
    layer.scores(pass.state.row(last), key, metric, features, s, logits, ws);

    const double scale = double(layer.unit) * config_.rank_temperature;
    const std::span<Choice> choices = frame.template span<Choice>(count - positives + 1);
    const std::span<double> d = frame.template span<double>(count - positives + 1);
    for (Index j = positives; j < count; ++j)
      choices[std::size_t(j - positives) + 1] = {double(s[std::size_t(j)]) / scale, j, false};
    std::ranges::fill(d_s, T(0));
    double total = 0;
    for (Index p = 0; p < positives; ++p) {
      choices[0] = {double(s[std::size_t(p)]) / scale, p, true};
      const double loss = choose(choices, d);
      if (loss < 0) continue;
      total += loss / double(positives);
      for (std::size_t j = 0; j < choices.size(); ++j)
        d_s[std::size_t(choices[j].candidate)] += T(config_.rank * d[j] / (scale * double(positives)));
    }
    layer.scores_backward(pass.state.row(last), key, features, logits, d_s, pass.d_state.row(last), scratch.attention,
                          gradient.layers.back(), ws);
    return total;
  }

  // Targets, each hop as likely as the others, with replacement.
  [[nodiscard]] Index draw_positives(Index i, std::span<Node> chosen, Rng& rng, Workspace::Frame& frame) const {
    const std::span<const Node> nodes = targets_of(i);
    const auto first = std::size_t(targets_.offsets[std::size_t(i)]);
    const std::span<Index> order = frame.template span<Index>(Index(nodes.size()));
    const auto hop = [&](Index j) { return targets_.hops.empty() ? 0 : targets_.hops[first + std::size_t(j)]; };
    std::size_t eligible = 0;
    for (std::size_t j = 0; j < nodes.size(); ++j)
      if (hop(Index(j)) >= config_.first_hop) order[eligible++] = Index(j);
    if (eligible == 0) return 0;
    std::sort(order.begin(), order.begin() + Index(eligible),
              [&](Index a, Index b) { return hop(a) < hop(b) || (hop(a) == hop(b) && a < b); });
    const std::span<Index> starts = frame.template span<Index>(Index(eligible) + 1);
    std::size_t groups = 0;
    for (std::size_t j = 0; j < eligible; ++j)
      if (j == 0 || hop(order[j]) != hop(order[j - 1])) starts[groups++] = Index(j);
    starts[groups] = Index(eligible);
    for (Index p = 0; p < config_.positives; ++p) {
      const auto group = std::size_t(rng.below(Index(groups)));
      const Index at = starts[group] + rng.below(starts[group + 1] - starts[group]);
      chosen[std::size_t(p)] = nodes[std::size_t(order[std::size_t(at)])];
    }
    return config_.positives;
  }

  // Points of level 0 on the way that are no targets, each set as likely. Returns how many are chosen then.
  [[nodiscard]] Index draw_negatives(Index i, const SearchRecord<T>& record, std::span<Node> chosen, Index count,
                                     Rng& rng) const {
    const auto& step = record.steps.back();
    const std::span<const Node> targets = targets_of(i);
    Index taken = 0, passed = 0;
    for (Index j = step.first; j < step.first + step.count; ++j) {
      const Node node = record.node[std::size_t(j)];
      if (std::ranges::find(targets, node) != targets.end() || std::isnan(record.metric[std::size_t(j)])) continue;
      if (taken < config_.negatives) {
        chosen[std::size_t(count + taken++)] = node;
      } else if (const Index place = rng.below(passed + 1); place < config_.negatives) {
        chosen[std::size_t(count + place)] = node;  // a reservoir
      }
      ++passed;
    }
    return count + taken;
  }

  const Score& score_;
  MatrixView<const T> queries_;
  const graph::HnswLayers<T>& layers_;
  const SearchTargets& targets_;
  const FitSearchConfig& config_;
  const Model& policy_;
  std::vector<graph::CsrGraph<Node>> reversed_;
  std::vector<Node> nodes_;  // the targets
  std::vector<Scratch> scratch_;
};

}  // namespace detail

}  // namespace ruvector::inline RUVECTOR_ABI::search
