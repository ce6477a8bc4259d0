// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/any_attention.hpp"
#include "ruvector/attention/flash.hpp"
#include "ruvector/attention/scaled_dot_product.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/graph/csr_graph.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <type_traits>

// Scaled dot products over neighbourhoods, all heads of a node at once and straight from the rows of its neighbours:
// what the engines of attention do for long sequences costs more than a neighbourhood itself.

namespace ruvector::inline RUVECTOR_ABI::gnn::detail {

/// The factor of q·k if a head is nothing but softmax(factor · q·k + bias) V, at a width of d.
template <class Head>
[[nodiscard]] std::optional<ScalarOf<Head>> dot_factor(const Head& head, Index d) {
  using T = ScalarOf<Head>;
  using Dense = attention::ScaledDotProduct<T>;
  using Tiled = attention::Flash<T>;
  if constexpr (std::same_as<Head, Dense> || std::same_as<Head, Tiled>) {
    const auto bound = head.score.bind(d);
    if (head.dropout > 0 || bound.capped || bound.alibi_slope != 0) return {};
    return bound.factor;
  } else if constexpr (std::same_as<Head, attention::AnyAttention<T>>) {
    if (const auto* dense = head.template get_if<Dense>()) return dot_factor(*dense, d);
    if (const auto* tiled = head.template get_if<Tiled>()) return dot_factor(*tiled, d);
  }
  return {};
}

/// Adds the gradient by the temperature, of a head for which there is a dot_factor: −Σ dS∘S/τ.
template <class Head>
void add_dot_temperature(const Head& head, ScalarOf<Head> sum, Head& grad) {
  using T = ScalarOf<Head>;
  if constexpr (std::same_as<Head, attention::AnyAttention<T>>) {
    if (const auto* dense = head.template get_if<attention::ScaledDotProduct<T>>())
      add_dot_temperature(*dense, sum, *grad.template get_if<attention::ScaledDotProduct<T>>());
    else if (const auto* tiled = head.template get_if<attention::Flash<T>>())
      add_dot_temperature(*tiled, sum, *grad.template get_if<attention::Flash<T>>());
  } else if constexpr (requires { head.score.temperature; }) {
    head.score.temperature.add(-sum / head.score.temperature.value(), grad.score.temperature);
  }
}

/// x ← e^(x − max x)/Σ; infinities share the weight, a row of −∞ becomes 0.
template <Real T>
void neighbor_softmax(std::span<T> x) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  T top = -infinity;
  for (const T e : x) top = e > top || e != e ? e : top;
  if (top == infinity)
    for (T& e : x) e = e == infinity ? T(0) : -infinity;
  const T reference = std::isinf(top) ? T(0) : top;
  for (T& e : x) e -= reference;
  simd::exp<T>(x, x);
  const T sum = simd::sum<T>(x);
  simd::scale(sum == 0 ? T(0) : T(1) / sum, x);
}

/// Starts the loads of the rows of a node's neighbours, which stand anywhere, if there is such a node.
template <Real T, graph::NodeId I>
void prefetch_neighbors(graph::CsrView<I> graph, Index i, MatrixView<const T> rows) {
  constexpr Index line = 64 / Index(sizeof(T));
  if (i >= graph.nodes()) return;
  for (const I target : graph.neighbors(i))
    for (Index c = 0; c < rows.cols(); c += line) __builtin_prefetch(rows.data() + Index(target) * rows.stride() + c);
}

/// One head of one node: q [d], the columns of the head among rows of keys and values, S_k = factor q·k_k + bias_k.
template <Real T, graph::NodeId I>
struct NeighborDot {
  std::span<const I> neighbors;
  std::span<const T> query;
  MatrixView<const T> key, value;
  std::span<const T> bias;  // or empty
  T factor;

  /// P = softmax(S).
  void weigh(std::span<T> weights) const {
    for (std::size_t k = 0; k < neighbors.size(); ++k) {
      const T product = simd::dot<T>(query, key.row(Index(neighbors[k])));
      weights[k] = bias.empty() ? factor * product : std::fma(factor, product, bias[k]);
    }
    neighbor_softmax(weights);
  }

  /// out = Σ P_k v_k; weights is scratch.
  void forward(std::span<T> weights, std::span<T> out) const {
    weigh(weights);
    std::ranges::fill(out, T(0));
    for (std::size_t k = 0; k < neighbors.size(); ++k) simd::axpy<T>(weights[k], value.row(Index(neighbors[k])), out);
  }

  /// With G = d_out, dP = G·v, dS = P∘(dP − Σ P dP): adds factor Σ dS_k k_k to d_query, factor dS_k q to row k of
  /// d_key and P_k G to that of d_value; writes dS to d_bias. Returns Σ dS_k (S_k − bias_k), what a temperature needs.
  T backward(std::span<const T> d_out, std::span<T> weights, std::span<T> d_bias, std::span<T> d_query,
             MatrixView<T> d_key, MatrixView<T> d_value) const {
    weigh(weights);
    T mean = 0;
    for (std::size_t k = 0; k < neighbors.size(); ++k) {
      d_bias[k] = simd::dot<T>(d_out, value.row(Index(neighbors[k])));
      mean = std::fma(weights[k], d_bias[k], mean);
    }
    T by_logits = 0;
    for (std::size_t k = 0; k < neighbors.size(); ++k) {
      d_bias[k] = weights[k] * (d_bias[k] - mean);
      const std::span<const T> row = key.row(Index(neighbors[k]));
      by_logits = std::fma(d_bias[k], factor * simd::dot<T>(query, row), by_logits);
      simd::axpy<T>(factor * d_bias[k], row, d_query);
      simd::axpy<T>(factor * d_bias[k], query, d_key.row(Index(k)));
      simd::axpy<T>(weights[k], d_out, d_value.row(Index(k)));
    }
    return by_logits;
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::gnn::detail
