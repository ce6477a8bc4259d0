// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/executor.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/gnn/concepts.hpp"
#include "ruvector/graph/csr_graph.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <cstddef>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::gnn {

namespace detail {

/// ŵ of the edges of node i: w/Σw where Σw > 0, 1/count otherwise. Returns Σw, or 0 where the weights do not matter.
template <Real T, graph::NodeId I>
T neighbor_shares(graph::CsrView<I> graph, std::span<const T> weights, Index i, std::span<T> shares) {
  T sum = 0;
  const Index first = graph.first_edge(i);
  if (!weights.empty())
    for (std::size_t k = 0; k < shares.size(); ++k)
      sum += shares[k] = weights[std::size_t(graph.edge_id(first + Index(k)))];
  if (sum <= 0) {  // not NaN
    std::ranges::fill(shares, T(1) / static_cast<T>(shares.size()));
    return 0;
  }
  for (T& share : shares) share /= sum;
  return sum;
}

/// Calls body(first, count) for ranges of columns that together are 0 … columns−1, shared among workers. For sums into
/// rows that many edges lead to: each worker goes over all edges, in their order, and adds its columns.
template <Real T, class Body, Executor E>
void for_column_ranges(Index columns, Body&& body, E& executor) {
  if (columns == 0) return;
  const Index parts = executor.concurrency() == 1 ? 1 : 2 * executor.concurrency();
  const Index width = ((columns - 1) / parts / simd::lanes<T> + 1) * simd::lanes<T>;
  executor.parallel_for((columns - 1) / width + 1,
                        [&](Index part, Index) { body(part * width, std::min(width, columns - part * width)); });
}

}  // namespace detail

/// sums_i += Σ_{u ∈ N(i)} ŵ_iu x_u for the first m nodes, ŵ = w/Σw where Σw > 0 and 1/|N(i)| otherwise, the sum in the
/// order of the edges: x [nodes×d], sums [m×d]. O(edges d). Shapes are the caller's to check.
template <Real T, graph::NodeId I, Executor E = Serial>
void add_neighbor_sums(graph::CsrView<I> graph, std::type_identity_t<MatrixView<const T>> x,
                       std::type_identity_t<std::span<const T>> weights, MatrixView<T> sums, Workspace& ws,
                       E&& executor = Serial{}) {
  nn::for_row_ranges(
      sums.rows(), ws,
      [&](Index first, Index count, Workspace& own) {
        for (Index i = first; i < first + count; ++i) {
          auto frame = own.frame();
          const std::span<T> shares = frame.template span<T>(graph.degree(i));
          (void)detail::neighbor_shares<T>(graph, weights, i, shares);
          const auto neighbors = graph.neighbors(i);
          for (std::size_t k = 0; k < shares.size(); ++k)
            simd::axpy<T>(shares[k], x.row(Index(neighbors[k])), sums.row(i));
        }
      },
      executor);
}

/// Given d_sums [m×d], adds ŵ_iu d_sums_i to d_x_u, and to d_weights [edges] or empty, by the id of an edge, with
/// a_u = d_sums_i·x_u,
///
///     (a_u − Σ_v ŵ_iv a_v)/Σw     where Σw > 0, otherwise 0.
///
/// In the order of the edges, for any executor. O(edges d).
template <Real T, graph::NodeId I, Executor E = Serial>
void add_neighbor_sums_gradient(graph::CsrView<I> graph, std::type_identity_t<MatrixView<const T>> x,
                                std::type_identity_t<std::span<const T>> weights,
                                std::type_identity_t<MatrixView<const T>> d_sums, MatrixView<T> d_x,
                                std::type_identity_t<std::span<T>> d_weights, Workspace& ws, E&& executor = Serial{}) {
  const Index m = d_sums.rows(), edges = m == 0 ? 0 : graph.offsets()[std::size_t(m)];
  auto frame = ws.frame();
  const std::span<T> shares = frame.template span<T>(edges), d = frame.template span<T>(d_weights.empty() ? 0 : edges);
  nn::for_row_ranges(
      m, ws,
      [&](Index first, Index count, Workspace&) {
        for (Index i = first; i < first + count; ++i) {
          const auto at = std::size_t(graph.first_edge(i)), degree = std::size_t(graph.degree(i));
          const T sum = detail::neighbor_shares<T>(graph, weights, i, shares.subspan(at, degree));
          if (d.empty()) continue;
          T mean = 0;
          for (std::size_t k = at; k < at + degree; ++k) {
            d[k] = simd::dot<T>(d_sums.row(i), x.row(Index(graph.targets()[k])));
            mean += shares[k] * d[k];
          }
          for (std::size_t k = at; k < at + degree; ++k) d[k] = sum > 0 ? (d[k] - mean) / sum : T(0);
        }
      },
      executor);
  for (std::size_t e = 0; e < d.size(); ++e) d_weights[std::size_t(graph.edge_id(Index(e)))] += d[e];
  detail::for_column_ranges<T>(
      d_sums.cols(),
      [&](Index column, Index count) {
        for (Index i = 0; i < m; ++i)
          for (Index e = graph.first_edge(i); e < graph.first_edge(i) + graph.degree(i); ++e)
            simd::axpy(shares[std::size_t(e)], d_sums.row(i).data() + column,
                       d_x.row(Index(graph.targets()[std::size_t(e)])).data() + column, count);
      },
      executor);
}

}  // namespace ruvector::inline RUVECTOR_ABI::gnn
