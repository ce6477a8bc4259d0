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

/// Takes information about pairs or positions beside keys and values: a typed argument, so that a backend that has no
/// use for it cannot be given it in vain.
template <class A, class Side>
concept AttentionWith = Module<A> && Real<ScalarOf<A>> &&
    requires(const A& a, const AttentionInput<ScalarOf<A>>& in, const Side& side,
             const AttentionOutput<ScalarOf<A>>& out, typename A::Saved& saved,
             const AttentionOutputGradient<ScalarOf<A>>& d_out, const AttentionGradient<ScalarOf<A>>& d_in,
             const typename Side::Gradient& d_side, A& grad, Workspace& ws) {
  { a.forward(in, side, out, ws) } -> std::same_as<void>;                                // as AttentionBackend
  { a.forward(in, side, out, saved, ws) } -> std::same_as<void>;                         // training mode
  { a.backward(in, side, saved, d_out, d_in, d_side, grad, ws) } -> std::same_as<void>;  // adds to d_in, d_side, grad
};

/// Sees the features of edges: GATv2.
template <class A>
concept EdgeAwareAttention = AttentionWith<A, EdgeFeatures<ScalarOf<A>>>;

/// Sees where nodes stand: GraphRoPE.
template <class A>
concept PositionalAttention = AttentionWith<A, GraphPositions<ScalarOf<A>>>;

/// Works on keys once and answers many queries: projected, rotated, kept in `Prepared`, which the caller owns, which
/// grows by `append` (decoding) and of which rows can be picked (graphs). Row by row the same bits as `forward` over
/// all keys at once.
template <class A>
concept PreparedAttention = AttentionBackend<A> &&
    requires(const A& a, MatrixView<const ScalarOf<A>> key, MatrixView<const ScalarOf<A>> value,
             const PreparedInput<ScalarOf<A>>& in, typename A::Prepared& prepared,
             const typename A::Prepared& const_prepared, std::span<const Index> ids,
             const AttentionOutput<ScalarOf<A>>& out, Workspace& ws) {
  { a.prepare(key, value, prepared, ws) } -> std::same_as<void>;     // replaces what was there, reuses its memory
  { a.append(key, value, prepared, ws) } -> std::same_as<void>;      // adds keys behind those that are there
  { a.forward(in, const_prepared, out, ws) } -> std::same_as<void>;  // as AttentionBackend, over the prepared keys
  { prepared.select(const_prepared, ids) } -> std::same_as<void>;    // replaces by rows of another one
  { const_prepared.rows() } -> std::convertible_to<Index>;           // keys
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
