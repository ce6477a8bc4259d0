// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/graph/csr_graph.hpp>

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

namespace random_graphs {

using namespace ruvector;

struct Edges {
  Index nodes = 0;
  std::vector<std::int32_t> sources, targets;

  void add(Index a, Index b) {
    sources.push_back(std::int32_t(a));
    targets.push_back(std::int32_t(b));
  }
  void add_both(Index a, Index b) {
    add(a, b);
    add(b, a);
  }
  [[nodiscard]] graph::CsrGraph<> graph() const { return {nodes, sources, targets}; }
  /// Node i becomes renamed[i].
  [[nodiscard]] Edges permuted(std::span<const Index> renamed) const {
    Edges other = *this;
    for (auto* ends : {&other.sources, &other.targets})
      for (std::int32_t& i : *ends) i = std::int32_t(renamed[std::size_t(i)]);
    return other;
  }
};

/// Duplicates and loops occur.
inline Edges directed(Index nodes, Index edges, Rng& rng) {
  Edges result{nodes, {}, {}};
  for (Index k = 0; k < edges; ++k) result.add(rng.below(nodes), rng.below(nodes));
  return result;
}

/// A random tree and some more edges, both ways: connected.
inline Edges connected(Index nodes, Index more, Rng& rng) {
  Edges result{nodes, {}, {}};
  for (Index i = 1; i < nodes; ++i) result.add_both(i, rng.below(i));
  for (Index k = 0; k < more; ++k) result.add_both(rng.below(nodes), rng.below(nodes));
  return result;
}

inline Edges path(Index nodes) {
  Edges result{nodes, {}, {}};
  for (Index i = 1; i < nodes; ++i) result.add_both(i - 1, i);
  return result;
}

inline std::vector<Index> permutation(Index n, Rng& rng) {
  std::vector<Index> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), Index(0));
  rng.shuffle(std::span(order));
  return order;
}

/// max |a(i, k) − b(renamed[i], k)|, where a column of b may have the other sign if `signs`.
inline double difference(const Matrix<double>& a, const Matrix<double>& b, std::span<const Index> renamed,
                         bool signs = false) {
  double worst = 0;
  for (Index k = 0; k < a.cols(); ++k) {
    double same = 0, opposite = 0;
    for (Index i = 0; i < a.rows(); ++i) {
      const double other = b(renamed[std::size_t(i)], k);
      same = std::max(same, std::abs(a(i, k) - other));
      opposite = std::max(opposite, std::abs(a(i, k) + other));
    }
    worst = std::max(worst, signs ? std::min(same, opposite) : same);
  }
  return worst;
}

}  // namespace random_graphs
