// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/types.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/workspace.hpp"

#include <concepts>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// Averages value rows by how well their keys match. Const, reentrant, allocates only from the workspace; a row that
/// sees no key yields zeros.
template <class A>
concept AttentionBackend = std::copyable<A> && Real<ScalarOf<A>> &&
    requires(const A& a, const AttentionInput<ScalarOf<A>>& in, const AttentionOutput<ScalarOf<A>>& out, Workspace& ws,
             Index value_dim) {
  { a.output_dim(value_dim) } -> std::convertible_to<Index>;  // columns of out.value
  { a.forward(in, out, ws) } -> std::same_as<void>;           // writes every element that is wanted
};

/// Shows its logits before the softmax: what a search ranks by.
template <class A>
concept ScoringAttention = AttentionBackend<A> &&
    requires(const A& a, const AttentionInput<ScalarOf<A>>& in, MatrixView<ScalarOf<A>> scores, Workspace& ws) {
  { a.scores(in, scores, ws) } -> std::same_as<void>;  // [m×n], −∞ where masked
};

/// Can be trained. `Saved` is owned by the caller and reused; `grad` is a module of the same type.
template <class A>
concept DifferentiableAttention = AttentionBackend<A> && Module<A> &&
    requires(const A& a, const AttentionInput<ScalarOf<A>>& in, const AttentionOutput<ScalarOf<A>>& out,
             typename A::Saved& saved, const AttentionOutputGradient<ScalarOf<A>>& d_out,
             const AttentionGradient<ScalarOf<A>>& d_in, A& grad, Workspace& ws) {
  { a.forward(in, out, saved, ws) } -> std::same_as<void>;                 // training mode
  { a.backward(in, saved, d_out, d_in, grad, ws) } -> std::same_as<void>;  // adds to d_in and grad
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
