// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/graph/csr_graph.hpp"
#include "ruvector/graph/subgraph.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::graph {

/// positions = k of 0 … n−1, or all if k ≥ n, without replacement, ascending: each set of k is equally likely. O(k²).
/// Source: Floyd's algorithm (Bentley & Floyd 1987).
inline void sample_without_replacement(Index n, Index k, Rng& rng, std::vector<Index>& positions) {
  positions.clear();
  for (Index last = n - std::min(k, n); last < n; ++last) {
    const Index drawn = rng.below(last + 1);
    const auto at = std::ranges::lower_bound(positions, drawn);
    if (at != positions.end() && *at == drawn)
      positions.push_back(last);  // larger than all before
    else
      positions.insert(at, drawn);
  }
}

/// Draws the neighbourhoods that mini-batches of nodes are trained on (Hamilton 2017): from a node that is reached in
/// h steps lead at most fan_outs[h] of its edges, drawn without replacement. Keeps memory of the size of the graph, so
/// that a batch costs O(what it holds). The graph must outlive it. Not const: one thread at a time.
template <NodeId I = std::int32_t>
class NeighborSampler {
 public:
  static constexpr Index all = -1;  ///< a fan-out without limit

  /// Throws ConfigError for a fan-out that is neither ≥ 0 nor `all`.
  NeighborSampler(CsrView<I> graph, std::vector<Index> fan_outs)
      : graph_(graph), fan_outs_(std::move(fan_outs)), names_(graph.nodes()) {
    for (const Index fan_out : fan_outs_)
      if (fan_out < all) throw_config_error("NeighborSampler: fan-out", ">= 0, or all", static_cast<double>(fan_out));
  }

  /// The seeds, which must differ, as the first nodes, and behind them what is reached in fan_outs.size() steps; the
  /// edges of a node keep their order. Takes one number from `rng`; what is drawn for a node depends on that number and
  /// on the number of its step, and not on the other seeds. Throws ShapeError for a seed out of range or given twice.
  [[nodiscard]] Subgraph<I> sample(std::type_identity_t<std::span<const I>> seeds, Rng& rng) {
    names_.clear();
    names_.enter_all("NeighborSampler: seeds", seeds);
    const Rng draw(rng.bits());
    std::vector<Index> offsets{0}, edges;
    std::vector<I> targets;
    std::size_t next = 0;
    for (std::size_t step = 0; step < fan_outs_.size(); ++step) {
      const Rng of_step = draw.split(step);
      for (const std::size_t reached = names_.nodes().size(); next < reached; ++next) {
        expand(names_.nodes()[next], fan_outs_[step], of_step, targets, edges);
        offsets.push_back(static_cast<Index>(targets.size()));
      }
    }
    offsets.resize(names_.nodes().size() + 1, static_cast<Index>(targets.size()));  // the farthest nodes have no edges
    return {CsrGraph<I>(std::move(offsets), std::move(targets)), names_.nodes(), std::move(edges)};
  }

 private:
  void expand(I node, Index fan_out, const Rng& of_step, std::vector<I>& targets, std::vector<Index>& edges) {
    const Index first = graph_.first_edge(static_cast<Index>(node)), degree = graph_.degree(static_cast<Index>(node));
    Rng own = of_step.split(static_cast<std::uint64_t>(node));
    sample_without_replacement(degree, fan_out == all ? degree : fan_out, own, positions_);
    for (const Index position : positions_) {
      const Index e = first + position;
      targets.push_back(static_cast<I>(names_.enter(graph_.targets()[static_cast<std::size_t>(e)])));
      edges.push_back(graph_.edge_id(e));
    }
  }

  CsrView<I> graph_;
  std::vector<Index> fan_outs_;
  detail::Renaming<I> names_;
  std::vector<Index> positions_;
};

/// Seeds for training, cut into batches that are new each epoch: every seed is in one batch.
template <NodeId I = std::int32_t>
class SeedBatches {
 public:
  /// Batches of `batch_size` seeds, the last may have fewer; in the order given until `shuffle` is called. Throws
  /// ConfigError unless batch_size ≥ 1.
  SeedBatches(std::vector<I> seeds, Index batch_size) : seeds_(std::move(seeds)), batch_size_(batch_size) {
    if (batch_size < 1) throw_config_error("SeedBatches: batch_size", ">= 1", static_cast<double>(batch_size));
  }

  /// Another order, each equally likely.
  void shuffle(Rng& rng) { rng.shuffle(std::span<I>(seeds_)); }
  /// How many batches there are.
  [[nodiscard]] Index count() const {
    const auto seeds = static_cast<Index>(seeds_.size());
    return seeds / batch_size_ + (seeds % batch_size_ != 0);
  }
  /// Batch b. Throws ShapeError unless 0 ≤ b < count().
  [[nodiscard]] std::span<const I> batch(Index b) const {
    if (b < 0 || b >= count()) [[unlikely]]
      throw_shape_error("SeedBatches: batch", "0 to " + std::to_string(count() - 1), std::to_string(b));
    const auto first = static_cast<std::size_t>(b * batch_size_);
    return std::span<const I>(seeds_).subspan(first, std::min(seeds_.size() - first, std::size_t(batch_size_)));
  }

 private:
  std::vector<I> seeds_;
  Index batch_size_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::graph
