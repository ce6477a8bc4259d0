// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/executor.hpp"
#include "ruvector/core/ordered_sum.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/train/loss.hpp"

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string_view>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::train {

/// What a call of an objective may use beside its arguments.
struct FitContext {
  Rng rng;               ///< of its own: for dropout, negatives, neighbours
  Workspace& workspace;  ///< scratch
  Index worker;          ///< no two calls that run at a time share it: index of what the caller keeps for a worker
};

/// The loss that is made small: called as objective(model, samples, gradient, context) with the numbers of some
/// samples, it returns their losses and adds the gradient of the *sum* of these losses to `gradient`. It is called by
/// several workers at a time and depends on nothing but its arguments (not on context.worker), so that results do not
/// either.
template <class F, class M>
concept Objective = Module<M> &&
    requires(F& f, const M& model, std::span<const Index> samples, M& gradient, FitContext& context) {
  { f(model, samples, gradient, context) } -> std::convertible_to<LossSum>;
};

namespace detail {

/// The gradient of some samples; what it points to counts only if it is not zero.
template <Module M>
struct GradientSum {
  mutable std::unique_ptr<M> gradient;  // a merge into nothing takes it over: no state is looked at twice
  LossSum loss;
  bool zero = true;

  /// A gradient of zeros in the memory there is.
  void reset(const M& model) {
    if (!gradient)
      gradient = std::make_unique<M>(zeros_like(model));
    else
      for_each_parameter([](std::string_view, auto x) { std::fill(x.begin(), x.end(), 0); }, *gradient);
    loss = {};
    zero = false;
  }
};

template <Module M>
struct GradientMonoid {
  void clear(GradientSum<M>& sum) const {
    sum.loss = {};
    sum.zero = true;
  }
  void merge(GradientSum<M>& sum, const GradientSum<M>& right) const {
    if (right.zero) return;
    using T = ScalarOf<M>;
    if (!sum.zero)
      for_each_parameter([](std::string_view, std::span<T> to, std::span<const T> from) { simd::axpy(T(1), from, to); },
                         *sum.gradient, std::as_const(*right.gradient));
    else if (sum.gradient)
      std::swap(sum.gradient, right.gradient);  // a copy of every gradient would take half as long as computing it
    else
      sum.gradient = std::make_unique<M>(*right.gradient);  // both have memory from now on
    sum.loss += right.loss;
    sum.zero = false;
  }
};

/// The gradients of batches: micro-batches are shared among workers, and added up in the fixed tree.
template <Module M, class F, class E>
class BatchGradient {
 public:
  BatchGradient(F& objective, Index micro_batch, Workspace& workspace, E& executor)
      : objective_(objective), micro_batch_(micro_batch), workspace_(workspace), executor_(executor) {
    workspace.reserve_workers(executor.concurrency());
  }

  /// The losses of some samples and, in gradient(), the gradient of their sum. Stops early, with what may be anything,
  /// when a stop is requested. Allocates nothing when the number of samples has been seen.
  LossSum operator()(const M& model, std::span<const Index> samples, const Rng& rng, const std::stop_token& stop) {
    const Index n = Index(samples.size()), concurrency = executor_.concurrency();
    const auto accumulate = [&](GradientSum<M>& sum, Index first, Index last, Index worker) {
      if (stop.stop_requested()) return;
      sum.reset(model);
      Workspace& own = concurrency == 1 ? workspace_ : workspace_.worker(worker);
      FitContext context{rng.split(std::uint64_t(first / micro_batch_)), own, worker};
      sum.loss =
          objective_(model, samples.subspan(std::size_t(first), std::size_t(last - first)), *sum.gradient, context);
    };
    if (n <= micro_batch_) {
      accumulate(total_, 0, n, 0);
    } else {
      const auto slots = std::size_t(ordered_reduce_slots(n, micro_batch_, concurrency));
      if (slots_.size() < slots) slots_.resize(slots);
      ordered_reduce(n, micro_batch_, GradientMonoid<M>{}, std::span<OrderedSumSlot<GradientSum<M>>>(slots_), total_,
                     accumulate, executor_);
    }
    return total_.loss;
  }
  [[nodiscard]] M& gradient() { return *total_.gradient; }

 private:
  F& objective_;
  Index micro_batch_;
  Workspace& workspace_;
  E& executor_;
  GradientSum<M> total_;
  std::vector<OrderedSumSlot<GradientSum<M>>> slots_;
};

}  // namespace detail

}  // namespace ruvector::inline RUVECTOR_ABI::train
