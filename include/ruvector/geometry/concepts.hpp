// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/parameters.hpp"
#include "ruvector/core/view.hpp"

#include <concepts>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::geometry {

namespace detail {

template <class M>
using Point = std::span<const ScalarOf<M>>;

template <class M>
using Result = std::span<ScalarOf<M>>;

}  // namespace detail

/// A set of points with a distance. Pure, reentrant.
template <class M>
concept Metric = std::copyable<M> && Real<ScalarOf<M>> &&
    requires(const M& m, detail::Point<M> x, detail::Point<M> y, Index d) {
  { m.point_dim(d) } -> std::convertible_to<Index>;          // columns of a point of dimension d
  { m.distance(x, y) } -> std::convertible_to<ScalarOf<M>>;  // >= 0, symmetric
};

/// A metric space one can move in: what optimizers on points need. Outputs may be inputs.
template <class M>
concept Manifold = Metric<M> && requires(const M& m, detail::Point<M> x, detail::Point<M> v, detail::Result<M> out) {
  { m.project(x, out) } -> std::convertible_to<bool>;          // out = an allowed point near x; whether it was moved
  { m.riemannian_gradient(x, v, out) } -> std::same_as<void>;  // out = tangent vector of steepest ascent, v = gradient
  { m.exp(x, v, out) } -> std::convertible_to<bool>;           // out = end of the geodesic from x along v; as project
};

}  // namespace ruvector::inline RUVECTOR_ABI::geometry
