// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/gnn/ruvector_layer.hpp"
#include "ruvector/search/differentiable_search.hpp"
#include "ruvector/search/types.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>

namespace ruvector::inline RUVECTOR_ABI::search {

/// Version 1's search over levels, top to bottom. With x = q at first, for each level [n×d] and its layer
///
///     (j, p) = differentiable_search(x, level, k = min(5, n), τ = 1),   x = layer((x + Σ p_j level_j)/2, level_j, p)
///
/// and out = x. Empty levels are skipped, levels without a layer and layers without a level ignored; with none of
/// either out = q. It returns a vector, not what was found. `scratch` is reused. Throws ShapeError unless the widths of
/// levels, layers and `out` follow each other. Source: the package `@ruvector/gnn` 0.1.25, equalled within 1e-5.
template <Real T>
void hierarchical_forward(std::type_identity_t<std::span<const T>> query,
                          std::type_identity_t<std::span<const MatrixView<const T>>> levels,
                          std::type_identity_t<std::span<const gnn::RuvectorLayer<T>>> layers, std::span<T> out,
                          SearchResult<T>& scratch, Workspace& ws) {
  constexpr Index most = 5;
  auto frame = ws.frame();
  std::span<const T> x = query;
  const std::size_t count = std::min(levels.size(), layers.size());
  for (std::size_t level = 0; level < count; ++level) {
    const MatrixView<const T> candidates = levels[level];
    const gnn::RuvectorLayer<T>& layer = layers[level];
    if (candidates.rows() == 0) continue;
    const Index width = candidates.cols(), k = std::min(most, candidates.rows());
    differentiable_search(x, candidates, k, T(1), scratch, ws);
    const Index found = scratch.count[0];
    const MatrixView<T> neighbors = frame.template matrix<T>(found, width);
    const std::span<T> mean = frame.template span<T>(width), next = frame.template span<T>(layer.output_dim(width));
    const std::span<const T> weights = std::span<const T>(scratch.weights.row(0)).first(std::size_t(found));
    std::ranges::copy(x, mean.begin());
    for (Index place = 0; place < found; ++place) {
      const std::span<const T> row = candidates.row(scratch.ids(0, place));
      std::ranges::copy(row, neighbors.row(place).begin());
      simd::axpy<T>(weights[std::size_t(place)], row, mean);
    }
    simd::scale(T(0.5), mean);
    layer.forward(mean, neighbors, weights, next, ws);
    x = next;
  }
  check_shape("hierarchical_forward: elements of out", Index(x.size()), Index(out.size()));
  std::ranges::copy(x, out.begin());
}

}  // namespace ruvector::inline RUVECTOR_ABI::search
