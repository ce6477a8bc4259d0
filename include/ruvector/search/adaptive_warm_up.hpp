// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/real.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/graph/hnsw_layers.hpp"
#include "ruvector/search/filter.hpp"
#include "ruvector/search/hnsw_search.hpp"
#include "ruvector/search/scores.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/batches.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::search {

namespace detail {

/// The ten best of what is offered, best first; NaN is not taken.
template <Real T>
struct TenBest {
  std::array<Scored<T>, 10> nodes;
  std::size_t count = 0;

  /// Returns whether it is among them.
  bool offer(Scored<T> node) {
    if (std::isnan(node.score) || (count == nodes.size() && !(node.score > nodes.back().score))) return false;
    std::size_t at = count < nodes.size() ? count++ : count - 1;
    for (; at > 0 && nodes[at - 1].score < node.score; --at) nodes[at] = nodes[at - 1];
    nodes[at] = node;
    return true;
  }
  [[nodiscard]] bool has(graph::HnswNode node) const {
    return std::any_of(nodes.begin(), nodes.begin() + std::ptrdiff_t(count),
                       [&](Scored<T> x) { return x.node == node; });
  }
};

/// The first steps of a walk on level 0, and all that they have seen: enough to go on as a walk of any ef. Its memory
/// ends with the frame.
template <CandidateScore S>
class WarmUp {
 public:
  using Scalar = ScalarOf<S>;
  using Node = graph::HnswNode;

  /// Leaves up to `steps` nodes, as a walk of this ef would.
  WarmUp(const S& score, const graph::HnswLayers<Scalar>& layers, std::span<const Scalar> query, const Filter* filter,
         Index steps, Index ef, Workspace& workspace, Workspace::Frame& frame)
      : layers_(layers),
        query_(query),
        filter_(filter),
        frame_(frame),
        ef_(ef),
        walk_(score, layers, query, filter, workspace, frame),
        frontier_(frame, std::min(ef_, layers.nodes())),
        visited_(frame, layers.nodes()) {
    steps = std::min(steps, layers.nodes());
    const Index links = std::min(layers.parameters().max_links_0, layers.nodes());
    seen_ = frame.template span<Scored<Scalar>>(std::min(layers.nodes(), 1 + steps * links));
    left_ = frame.template span<Node>(steps);
    ends_ = frame.template span<std::size_t>(steps + 1);
    seen_[0] = walk_.descend();
    ends_[0] = 1;
    walk_.enter(seen_[0], frontier_, visited_);
    while (steps_ < left_.size() && frontier_.next(left_[steps_])) {
      const auto [nodes, scores] = walk_.leave(left_[steps_], frontier_, visited_);
      std::size_t end = ends_[steps_];
      for (std::size_t j = 0; j < nodes.size(); ++j) seen_[end++] = {scores[j], nodes[j]};
      ends_[++steps_] = end;
    }
  }

  [[nodiscard]] std::span<const Scalar> query() const { return query_; }
  [[nodiscard]] const Filter* filter() const { return filter_; }
  [[nodiscard]] Index evaluations() const { return walk_.evaluations(); }

  /// The best node seen.
  [[nodiscard]] Node best_node() const {
    Scored<Scalar> best = seen_[0];
    for (const Scored<Scalar> node : seen())
      if (node.score > best.score || std::isnan(best.score)) best = node;
    return best.node;
  }

  /// What was found so far, in no order.
  [[nodiscard]] std::span<Scored<Scalar>> found() const {
    const auto all = frame_.template span<Scored<Scalar>>(Index(seen().size()));
    const auto end = std::ranges::copy_if(
        seen(), all.begin(), [&](Scored<Scalar> x) { return !std::isnan(x.score) && walk_.returned(x.node); });
    return all.first(std::size_t(end.out - all.begin()));
  }

  /// Goes on to the end as a walk of this ef. What such a walk finds, in no order.
  [[nodiscard]] std::span<Scored<Scalar>> finish(Index ef) {
    if (ef == ef_) {
      walk_.finish(frontier_, visited_);
      return frontier_.best();
    }
    Frontier<Scalar> frontier(frame_, std::min(ef, layers_.nodes()));
    if (!repeat(frontier)) {
      visited_ = VisitedNodes(frame_, layers_.nodes());
      frontier = Frontier<Scalar>(frame_, std::min(ef, layers_.nodes()));
      walk_.enter(seen_[0], frontier, visited_);
    }
    walk_.finish(frontier, visited_);
    return frontier.best();
  }

  /// Those known, and of the candidates those that had not been scored; in no order.
  [[nodiscard]] std::span<Scored<Scalar>> score_unknown(std::span<const Scored<Scalar>> candidates,
                                                        std::span<const Scored<Scalar>> known) {
    const auto all = frame_.template span<Scored<Scalar>>(Index(known.size() + candidates.size()));
    std::ranges::copy(known, all.begin());
    const auto unknown = std::ranges::copy_if(candidates, all.begin() + std::ptrdiff_t(known.size()),
                                              [&](Scored<Scalar> x) { return !visited_.visit(x.node); });
    const std::span<Scored<Scalar>> scored(all.begin() + std::ptrdiff_t(known.size()), unknown.out);
    walk_.score(scored);
    const auto numbers =
        std::remove_if(scored.begin(), scored.end(), [](Scored<Scalar> x) { return std::isnan(x.score); });
    return all.first(known.size() + std::size_t(numbers - scored.begin()));
  }

  /// As `AdaptiveSearch::features` lists them. Not inlined: the same code for any executor.
  [[gnu::noinline]] void write_features(std::span<Scalar> out) const {
    const std::size_t half = ends_[steps_ / 2];
    TenBest<Scalar> best;
    for (const Scored<Scalar> node : seen().first(half)) best.offer(node);
    const TenBest<Scalar> before = best;
    Index replaced = 0;
    for (const Scored<Scalar> node : seen().subspan(half)) replaced += best.offer(node) ? 1 : 0;
    std::ranges::fill(out, Scalar(0));
    if (best.count == 0) return;

    const auto ten = std::span(best.nodes).first(best.count);
    const auto m = Scalar(ten.size());
    const auto distance = [](Scalar score) { return logarithm(0 - score); };
    const Scalar first = distance(ten.front().score), last = distance(ten.back().score);
    const Scalar range = ten.front().score - ten.back().score;
    Scalar sum = 0, product = 0, dimension = 0;
    Index kept = 0, left = 0;
    for (const Scored<Scalar> node : ten) {
      const Scalar x = range > 0 && node.score < ten.front().score ? (node.score - ten.front().score) / range : 0;
      const Scalar weight = std::exp(x);
      sum += weight;
      product += weight * x;
      dimension += last - distance(node.score);
      kept += before.has(node.node) ? 1 : 0;
      left += std::ranges::find(left_.first(steps_), node.node) != left_.begin() + std::ptrdiff_t(steps_) ? 1 : 0;
    }
    const Scalar norm = std::sqrt(simd::squared_norm(query_)), root = std::sqrt(Scalar(query_.size()));
    simd::Batch<Scalar> sums(Scalar(0));
    simd::for_each_batch<Scalar>(Index(query_.size()),
                                 [&](Index i, auto lanes) { sums += simd::abs(lanes.load(query_.data() + i)); });
    const Scalar absolute = simd::reduce_add(sums);
    constexpr Scalar least = Scalar(1e-6);  // a dimension of a million: the ten are equally far
    out[0] = logarithm(norm);
    out[1] = logarithm(ten.front().score);
    out[2] = logarithm(ten.back().score);
    out[3] = last - first;
    out[4] = distance(walk_.entry_score()) - first;
    out[5] = distance(seen_[0].score) - first;
    out[6] = logarithm(Scalar(replaced));
    out[7] = ten.size() > 1 ? (std::log(sum) - product / sum) / std::log(m) : 1;  // Σ p (ln Σ − x)
    out[8] = 0 - std::log(std::max(dimension / m, least));
    out[9] = Scalar(kept) / m;
    out[10] = Scalar(left) / m;
    out[11] = norm > 0 && root > 1 ? (root - absolute / norm) / (root - 1) : 0;
    for (Scalar& x : out)
      if (!std::isfinite(x)) x = 0;
  }

 private:
  [[nodiscard]] std::span<const Scored<Scalar>> seen() const { return seen_.first(ends_[steps_]); }

  // sign(x) log(1 + |x|); of infinity a number that is as good.
  [[nodiscard]] static Scalar logarithm(Scalar x) {
    return std::copysign(std::log1p(std::min(std::abs(x), std::numeric_limits<Scalar>::max())), x);
  }

  // Takes the steps again, into a frontier of another ef, without a distance. False where equal scores lead it
  // elsewhere.
  [[nodiscard]] bool repeat(Frontier<Scalar>& frontier) const {
    walk_.add(seen_[0], frontier);
    for (std::size_t step = 0; step < steps_; ++step) {
      Node node;
      if (!frontier.next(node)) return true;
      if (node != left_[step]) return false;
      for (std::size_t j = ends_[step]; j < ends_[step + 1]; ++j) walk_.add(seen_[j], frontier);
    }
    return true;
  }

  const graph::HnswLayers<Scalar>& layers_;
  std::span<const Scalar> query_;
  const Filter* filter_;
  Workspace::Frame& frame_;
  Index ef_;
  HnswWalk<S> walk_;
  Frontier<Scalar> frontier_;
  VisitedNodes visited_;
  std::span<Scored<Scalar>>
      seen_;                     // in the order in which they were scored: the start, the neighbours of each node left
  std::span<Node> left_;         // the nodes left, in order
  std::span<std::size_t> ends_;  // where the neighbours of each of them end; [0] is the start
  std::size_t steps_ = 0;        // how many were left
};

/// What experts of several scores have found, with Σ_e g_e log softmax_e(s_e/τ_e), up to what is the same for all.
template <Real T>
class MergedCandidates {
 public:
  /// With room for so many.
  MergedCandidates(Workspace::Frame& frame, Index most) : all_(frame.span<Scored<T>>(most)) {}

  /// What an expert found, and its share g.
  void add(std::span<const Scored<T>> found, T share) {
    if (found.empty()) return;
    const auto [worst, best] = std::ranges::minmax(found, {}, &Scored<T>::score);
    const T range = best.score - worst.score;
    for (const Scored<T> node : found) {
      // log softmax(s/range) = (s − best)/range + a constant: from −1, where those not found are, to 0.
      const T below = node.score < best.score ? (best.score - node.score) / range : T(0);
      all_[count_++] = {share * (1 - (std::isnan(below) ? T(1) : below)), node.node};
    }
  }

  /// The best, at most so many.
  [[nodiscard]] std::span<const Scored<T>> best(Index most) {
    const auto all = all_.first(count_);
    std::ranges::sort(all, {}, &Scored<T>::node);
    std::size_t kept = 0;
    for (const Scored<T> node : all) {
      if (kept > 0 && all[kept - 1].node == node.node)
        all[kept - 1].score += node.score;
      else
        all[kept++] = node;
    }
    std::ranges::sort(all.first(kept), [](Scored<T> a, Scored<T> b) {
      return a.score > b.score || (a.score == b.score && a.node < b.node);
    });
    return all.first(std::min(kept, std::size_t(most)));
  }

 private:
  std::span<Scored<T>> all_;
  std::size_t count_ = 0;
};

}  // namespace detail

}  // namespace ruvector::inline RUVECTOR_ABI::search
