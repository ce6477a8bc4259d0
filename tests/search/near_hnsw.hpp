// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/simd/dot.hpp>

#include "graph/made_up_hnsw.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace near_hnsw {

using namespace ruvector;
using made_up_hnsw::Hnsw;
using made_up_hnsw::HnswNode;

/// An index as it should be, by brute force: on each level a node has links to its `links` nearest and to one at
/// random.
template <class T>
Hnsw<T> build(Matrix<T> points, Index links, Rng& rng) {
  Hnsw<T> index(std::move(points));
  index.built.max_links = index.built.max_links_0 = links + 1;
  std::vector<HnswNode> on(index.labels.size());
  for (std::size_t i = 0; i < on.size(); ++i) on[i] = HnswNode(i);
  for (std::size_t l = 0; !on.empty(); ++l) {
    for (const HnswNode node : on) {
      if (l > 0) index.links[node].emplace_back();
      std::vector<std::pair<T, HnswNode>> near;
      for (const HnswNode other : on)
        if (other != node)
          near.emplace_back(simd::squared_distance<T>(index.points.row(Index(node)), index.points.row(Index(other))),
                            other);
      const std::size_t count = std::min(near.size(), std::size_t(links));
      std::partial_sort(near.begin(), near.begin() + Index(count), near.end());
      for (std::size_t j = 0; j < count; ++j) index.links[node][l].push_back(near[j].second);
      if (!near.empty()) index.links[node][l].push_back(near[std::size_t(rng.below(Index(near.size())))].second);
    }
    index.start = on.front();
    std::vector<HnswNode> above;
    for (const HnswNode node : on)
      if (rng.below(10) == 0) above.push_back(node);
    if (above.size() == on.size()) above.clear();
    on = above;
  }
  return index;
}

}  // namespace near_hnsw
