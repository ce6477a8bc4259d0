// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/real.hpp"

#include <concepts>

namespace ruvector::inline RUVECTOR_ABI::train {

/// What the learning rate is multiplied with over time: `optimizer.step(model, gradient, schedule(epoch))`. Counts what
/// the caller counts, steps or epochs, from 0. Pure.
template <class S>
concept Schedule = std::copyable<S> && requires(const S& s, Index step) {
  { s(step) } -> std::convertible_to<double>;  // the factor, >= 0
};

/// The same factor for ever.
struct Constant {
  double factor = 1;  ///< of the learning rate

  /// The factor.
  [[nodiscard]] double operator()(Index) const { return factor; }
};

/// A small learning rate for the first `steps`, so that what starts in disorder finds its place before it moves fast;
/// then `next`, from its own step 0 on. Source: Nickel & Kiela 2017, §3 ("burn-in", 20 epochs at 0.01).
template <Schedule Next = Constant>
struct BurnIn {
  Index steps = 20;      ///< how many
  double factor = 0.01;  ///< of the learning rate during them
  Next next = {};        ///< what follows

  /// The factor at a step.
  [[nodiscard]] double operator()(Index step) const { return step < steps ? factor : double(next(step - steps)); }
};

}  // namespace ruvector::inline RUVECTOR_ABI::train
