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
#include "ruvector/simd/transpose.hpp"

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

/// Logits are kept in whole registers: those behind the last are −∞, and weigh nothing.
template <Real T>
[[nodiscard]] constexpr Index padded(Index neighbors) {
  return (neighbors + simd::lanes<T> - 1) / simd::lanes<T> * simd::lanes<T>;
}

/// x ← e^(x − max x)/Σ of whole registers; infinities share the weight, a row of −∞ becomes 0.
template <Real T>
void neighbor_softmax(std::span<T> x) {
  using B = simd::Batch<T>;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  constexpr std::size_t width = std::size_t(simd::lanes<T>);
  B top(-infinity), sum(T(0));
  for (std::size_t k = 0; k < x.size(); k += width) top = simd::max(top, simd::load(x.data() + k));
  const T highest = simd::reduce_max(top);
  const B reference(std::isinf(highest) ? T(0) : highest);
  for (std::size_t k = 0; k < x.size(); k += width) {
    B e = simd::load(x.data() + k);
    if (highest == infinity) e = simd::select(e < B(infinity), B(-infinity), simd::select(simd::isnan(e), e, B(T(0))));
    e = simd::exp(e - reference);
    sum += e;
    simd::store(x.data() + k, e);
  }
  const T total = simd::reduce_add(sum);
  const B inverse(total == 0 ? T(0) : T(1) / total);
  for (std::size_t k = 0; k < x.size(); k += width) simd::store(x.data() + k, simd::load(x.data() + k) * inverse);
}

/// Some columns of the rows at the other ends of a node's edges.
template <Real T, graph::NodeId I>
struct NeighborColumns {
  using B = simd::Batch<T>;
  std::span<const I> neighbors;
  MatrixView<const T> rows;

  [[nodiscard]] const T* row(Index k) const { return rows.data() + Index(neighbors[std::size_t(k)]) * rows.stride(); }

  /// products[k] = x·row k, 0 behind the last; as many at a time as a register has lanes, which are turned round so
  /// that their lanes are added together.
  void dots(const T* x, std::span<T> products) const {
    constexpr Index width = simd::lanes<T>;
    const Index d = rows.cols(), count = Index(neighbors.size());
    for (Index first = 0; first < count; first += width) {
      B sums[std::size_t(width)];
      for (Index k = 0; k < width; ++k) {
        B sum(T(0));
        if (first + k < count) {
          const T* y = row(first + k);
          Index c = 0;
          for (; c + width <= d; c += width) sum = simd::fma(simd::load(x + c), simd::load(y + c), sum);
          if (c < d) sum = simd::fma(simd::load_partial(x + c, d - c), simd::load_partial(y + c, d - c), sum);
        }
        sums[std::size_t(k)] = sum;
      }
      simd::detail::transpose_square<T>(sums);
      B total = sums[0];
      for (Index k = 1; k < width; ++k) total += sums[std::size_t(k)];
      simd::store(products.data() + first, total);
    }
  }

  /// out += Σ_k weights[k] row k, in the order of k.
  void add_sum(std::span<const T> weights, T* out) const {
    constexpr Index width = simd::lanes<T>;
    const Index d = rows.cols(), count = Index(neighbors.size());
    Index c = 0;
    for (; c + width <= d; c += width) {
      B sum = simd::load(out + c);
      for (Index k = 0; k < count; ++k) sum = simd::fma(B(weights[std::size_t(k)]), simd::load(row(k) + c), sum);
      simd::store(out + c, sum);
    }
    if (c == d) return;
    B sum = simd::load_partial(out + c, d - c);
    for (Index k = 0; k < count; ++k)
      sum = simd::fma(B(weights[std::size_t(k)]), simd::load_partial(row(k) + c, d - c), sum);
    simd::store_partial(out + c, d - c, sum);
  }
};

/// Starts the loads of the rows of a node's neighbours, which stand anywhere, if there is such a node.
template <Real T, graph::NodeId I>
void prefetch_neighbors(graph::CsrView<I> graph, Index i, MatrixView<const T> rows) {
  constexpr Index line = 64 / Index(sizeof(T));
  if (i >= graph.nodes()) return;
  for (const I target : graph.neighbors(i))
    for (Index c = 0; c < rows.cols(); c += line) __builtin_prefetch(rows.data() + Index(target) * rows.stride() + c);
}

/// One head of one node: q [d], the columns of the head among rows of keys and values, S_k = factor q·k_k + bias_k.
/// Scratch is padded(neighbours) long.
template <Real T, graph::NodeId I>
struct NeighborDot {
  std::span<const T> query;
  NeighborColumns<T, I> key, value;
  std::span<const T> bias;  // or empty
  T factor;

  /// P = softmax(S).
  void weigh(std::span<T> weights) const {
    key.dots(query.data(), weights);
    const std::size_t count = key.neighbors.size();
    for (std::size_t k = 0; k < count; ++k)
      weights[k] = bias.empty() ? factor * weights[k] : std::fma(factor, weights[k], bias[k]);
    for (std::size_t k = count; k < weights.size(); ++k) weights[k] = -std::numeric_limits<T>::infinity();
    neighbor_softmax(weights);
  }

  /// out = Σ P_k v_k.
  void forward(std::span<T> weights, std::span<T> out) const {
    weigh(weights);
    std::ranges::fill(out, T(0));
    value.add_sum(weights, out.data());
  }

  /// With G = d_out, dP = G·v, dS = P∘(dP − Σ P dP): adds factor Σ dS_k k_k to d_query, which must be 0, factor
  /// dS_k q to row k of d_key and P_k G to that of d_value; writes dS to d_bias. Returns Σ dS_k (S_k − bias_k), what a
  /// temperature needs.
  T backward(std::span<const T> d_out, std::span<T> weights, std::span<T> d_logits, std::span<T> d_bias,
             std::span<T> d_query, MatrixView<T> d_key, MatrixView<T> d_value) const {
    weigh(weights);
    value.dots(d_out.data(), d_logits);
    const std::size_t count = key.neighbors.size();
    T mean = 0;
    for (std::size_t k = 0; k < count; ++k) mean = std::fma(weights[k], d_logits[k], mean);
    for (std::size_t k = 0; k < count; ++k) {
      d_bias[k] = weights[k] * (d_logits[k] - mean);
      d_logits[k] = factor * d_bias[k];
      simd::axpy<T>(d_logits[k], query, d_key.row(Index(k)));
      simd::axpy<T>(weights[k], d_out, d_value.row(Index(k)));
    }
    // Σ_k dS_k factor q·k_k is q times what the query gets; d_query holds nothing else yet.
    key.add_sum(d_logits, d_query.data());
    return simd::dot<T>(query, d_query);
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::gnn::detail
