// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/graph/hnsw_layers.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace made_up_hnsw {

using namespace ruvector;
using graph::HnswNode;

/// An index that says what a test wants it to: the smallest thing that layers can be built from.
template <class T>
struct Hnsw {
  Matrix<T> points;
  std::vector<std::uint64_t> labels;
  std::vector<bool> marks;                                // deleted
  std::vector<std::vector<std::vector<HnswNode>>> links;  // [node][level][link]
  HnswNode start = 0;
  graph::HnswParameters built = {.max_elements = 100, .links = 4, .max_links = 4, .max_links_0 = 8};
  Index bytes_of_vector = -1;

  explicit Hnsw(Matrix<T> x)
      : points(std::move(x)),
        labels(std::size_t(points.rows())),
        marks(std::size_t(points.rows())),
        links(std::size_t(points.rows()), {{}}) {
    for (std::size_t i = 0; i < labels.size(); ++i) labels[i] = 1000 + 3 * i;
  }

  [[nodiscard]] Index nodes() const { return points.rows(); }
  [[nodiscard]] graph::HnswParameters parameters() const { return built; }
  [[nodiscard]] HnswNode entry() const { return start; }
  [[nodiscard]] Index level(HnswNode node) const { return Index(links[node].size()) - 1; }
  [[nodiscard]] std::uint64_t label(HnswNode node) const { return labels[node]; }
  [[nodiscard]] bool deleted(HnswNode node) const { return marks[node]; }
  [[nodiscard]] Index degree(HnswNode node, Index l) const { return Index(links[node][std::size_t(l)].size()); }
  [[nodiscard]] HnswNode link(HnswNode node, Index l, Index j) const {
    return links[node][std::size_t(l)][std::size_t(j)];
  }
  [[nodiscard]] Index vector_bytes() const {
    return bytes_of_vector >= 0 ? bytes_of_vector : points.cols() * Index(sizeof(T));
  }
  [[nodiscard]] const std::byte* vector(HnswNode node) const {
    return reinterpret_cast<const std::byte*>(points.data() + Index(node) * points.cols());
  }
};

/// Points whose nodes stand on random levels. Each level is a ring, so that all can be reached, with links across.
template <class T>
Hnsw<T> rings(Matrix<T> points, Rng& rng) {
  Hnsw<T> index(std::move(points));
  std::vector<HnswNode> on(index.labels.size());
  for (std::size_t i = 0; i < on.size(); ++i) on[i] = HnswNode(i);
  for (std::size_t l = 0; !on.empty(); ++l) {
    if (l > 0)
      for (const HnswNode node : on) index.links[node].emplace_back();
    for (std::size_t i = 0; i < on.size() && on.size() > 1; ++i) {
      auto& list = index.links[on[i]][l];
      list.push_back(on[(i + 1) % on.size()]);
      for (int j = 0; j < 3; ++j)
        list.push_back(on[(i + 1 + std::size_t(rng.below(Index(on.size()) - 1))) % on.size()]);
    }
    index.start = on.front();
    std::vector<HnswNode> above;
    for (const HnswNode node : on)
      if (rng.below(5) == 0) above.push_back(node);
    if (above.size() == on.size()) above.clear();
    on = above;
  }
  index.built.max_elements = index.nodes();
  return index;
}

template <class T>
Matrix<T> normals(Index n, Index d, Rng& rng, T scale = 1) {
  Matrix<T> x(n, d);
  for (T& v : x.span()) v = scale * rng.template normal<T>();
  return x;
}

/// Everything that layers hold.
template <class T>
[[nodiscard]] bool same(const graph::HnswLayers<T>& a, const graph::HnswLayers<T>& b) {
  const auto p = a.parameters(), q = b.parameters();
  bool equal = a.nodes() == b.nodes() && a.dim() == b.dim() && a.levels() == b.levels() && a.entry() == b.entry() &&
               std::ranges::equal(a.ids(), b.ids()) && std::ranges::equal(a.deleted(), b.deleted()) &&
               p.max_elements == q.max_elements && p.links == q.links && p.max_links == q.max_links &&
               p.max_links_0 == q.max_links_0 && p.ef_construction == q.ef_construction &&
               p.level_scale == q.level_scale;
  for (Index i = 0; equal && i < a.nodes(); ++i) equal = std::ranges::equal(a.vectors().row(i), b.vectors().row(i));
  for (Index l = 0; equal && l < a.levels(); ++l) {
    const graph::HnswLevel &x = a.level(l), &y = b.level(l);
    equal = x.nodes == y.nodes && x.below == y.below &&
            std::ranges::equal(x.graph.view().offsets(), y.graph.view().offsets()) &&
            std::ranges::equal(x.graph.view().targets(), y.graph.view().targets());
  }
  return equal;
}

}  // namespace made_up_hnsw
