// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"

#include <concepts>
#include <span>
#include <string_view>

namespace ruvector::inline RUVECTOR_ABI::nn {

namespace detail {

template <class M>
using Rows = MatrixView<ScalarOf<M>>;

template <class M>
using ConstRows = MatrixView<const ScalarOf<M>>;

/// Throws ShapeError unless `actual` is [rows×cols].
template <class T>
void check_matrix(std::string_view what, Index rows, Index cols, MatrixView<T> actual) {
  check_shape(what, rows, actual.rows());
  check_shape(what, cols, actual.cols());
}

/// The same for an output that may be empty: not wanted.
template <class T>
void check_wanted(std::string_view what, Index rows, Index cols, MatrixView<T> actual) {
  if (!actual.empty()) check_matrix(what, rows, cols, actual);
}

}  // namespace detail

/// Maps each row by itself: row i of y depends on row i of x alone, bit for bit, whatever else is in the batch. Const,
/// reentrant, allocates only from the workspace. What `backward` needs it computes again from x.
template <class M>
concept RowMap = Module<M> && Real<ScalarOf<M>> &&
    requires(const M& map, Index input_dim, detail::ConstRows<M> x, detail::Rows<M> y, detail::ConstRows<M> d_y,
             detail::Rows<M> d_x, M& grad, Workspace& ws) {
  { map.output_dim(input_dim) } -> std::convertible_to<Index>;    // columns of y; ShapeError where x cannot be so wide
  { map.forward(x, y, ws) } -> std::same_as<void>;                // writes every element of y
  { map.backward(x, d_y, d_x, grad, ws) } -> std::same_as<void>;  // adds to d_x (empty: not wanted) and to grad
};

/// Features whose inner products are a kernel, k(q, k) = φ(q)·φ(k) ≥ 0: linear attention sums them instead of comparing
/// each query with each key. A row comes as φ(x_i) = exp(log_scale_i) phi_i, so that phi neither overflows nor
/// vanishes; rows are brought to one scale where they are summed. log_scale may be empty: then it is 0.
///
/// `backward` takes the phi that `forward` wrote, at whatever scale, and d_phi relative to it: the scale is a choice of
/// representation on which no result depends, so it carries no gradient.
template <class F>
concept FeatureMap = Module<F> && Real<ScalarOf<F>> &&
    requires(const F& map, Index input_dim, detail::ConstRows<F> x, detail::Rows<F> phi,
             std::span<ScalarOf<F>> log_scale, detail::ConstRows<F> saved_phi, detail::ConstRows<F> d_phi,
             detail::Rows<F> d_x, F& grad, Workspace& ws) {
  { map.output_dim(input_dim) } -> std::convertible_to<Index>;   // features; ShapeError where x cannot be so wide
  { map.forward(x, phi, log_scale, ws) } -> std::same_as<void>;  // writes phi [n×features] and log_scale [n]
  { map.backward(x, saved_phi, d_phi, d_x, grad, ws) } -> std::same_as<void>;  // adds to d_x (empty: not wanted), grad
};

/// Renews the states h of rows by what came in, x: row i of the new states depends on row i of x and h alone, bit for
/// bit, whatever else is in the batch. Const, reentrant, allocates only from the workspace. The two forms of `forward`
/// agree bit for bit; `backward` follows the second, with the same x and h.
template <class C>
concept RecurrentCell = Module<C> && Real<ScalarOf<C>> &&
    requires(const C& cell, detail::ConstRows<C> x, detail::ConstRows<C> h, detail::Rows<C> out,
             typename C::Saved& saved, const typename C::Saved& was_saved, detail::ConstRows<C> d_out,
             detail::Rows<C> d_x, detail::Rows<C> d_h, C& grad, Workspace& ws) {
  { cell.input_dim() } -> std::convertible_to<Index>;            // columns of x
  { cell.hidden_dim() } -> std::convertible_to<Index>;           // columns of h and out
  { cell.forward(x, h, out, ws) } -> std::same_as<void>;         // writes every element of out
  { cell.forward(x, h, out, saved, ws) } -> std::same_as<void>;  // the same, in training mode
  // adds to d_x, d_h (each may be empty: not wanted) and to grad
  { cell.backward(x, h, was_saved, d_out, d_x, d_h, grad, ws) } -> std::same_as<void>;
};

}  // namespace ruvector::inline RUVECTOR_ABI::nn
