// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/positive.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"

#include <concepts>
#include <span>

// How values are averaged. Every mean here is an ordinary weighted sum between two maps: `lift` takes a value row to
// the space where sums make sense, with one number more, its mass, and `project` takes the mean of lifted rows and of
// masses back. So hyperbolic averages run in the same tiles as plain ones, and add nothing but O(v) a row.
//
// A mean is a module with a member `bind(v)`, the constants for value rows of width v, as an object that gives
//
//   lifts, has_mass                                    whether lift and project do anything; whether there is a mass
//   lift(value, out, mass), project(mean, mass, out)   [v] → [v]; weights have the sum 1
//   lift_vjp(value, d_out, d_mass, d_value, d_parameters)
//   project_vjp(mean, mass, d_out, d_mean, d_mass, d_parameters)   sets d_mean and d_mass; the rest is added to
//   parameters, add_parameters(d_parameters, grad)
//
// A query that sees no key has the mean 0 and is not projected.

namespace ruvector::inline RUVECTOR_ABI::attention {

/// Σ w v: the mean of vectors.
template <Real T>
struct WeightedSum {
  using Scalar = T;  ///< what it computes in

  /// No parameters.
  template <class Visit, class... Self>
  static void parameters(Visit&&, Self&...) {}

  /// Nothing to do.
  struct Bound {
    static constexpr bool lifts = false;     ///< values are summed as they are
    static constexpr bool has_mass = false;  ///< no further sum
    static constexpr Index parameters = 0;   ///< none
  };
  /// The constants.
  [[nodiscard]] Bound bind(Index) const { return {}; }
};

/// How values are averaged; see the top of this file.
template <class M>
concept Mean = Module<M> && Real<ScalarOf<M>> && requires(const M& mean, Index v) {
  typename M::Bound;
  { mean.bind(v) } -> std::same_as<typename M::Bound>;  // constants for value rows of width v
} &&(!M::Bound::lifts || requires(const typename M::Bound& bound, std::span<const ScalarOf<M>> row,
                                  std::span<ScalarOf<M>> out, ScalarOf<M>& mass) {
  { bound.lift(row, out, mass) } -> std::same_as<void>;     // into the space of sums
  { bound.project(row, mass, out) } -> std::same_as<void>;  // back
});

}  // namespace ruvector::inline RUVECTOR_ABI::attention
