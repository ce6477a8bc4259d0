// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/concepts.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/workspace.hpp"

#include <algorithm>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::attention {

namespace detail {

/// A backend that projects queries and keys, which may differ in width: it checks that by itself, first thing.
template <class A>
concept ProjectsKeys = requires {
  requires A::projects_keys;
};

template <class A, Storage S>
void check_input_of(const A& backend, const AttentionInput<ScalarOf<A>, S>& in,
                    const AttentionOutput<ScalarOf<A>>& out) {
  if constexpr (ProjectsKeys<A>)
    check_rows(in);
  else
    check_input(in);
  check_output(in, out, backend.output_dim(in.value.cols()));
}

}  // namespace detail

/// One head of one sequence: checks every size, then `backend.forward`. Throws ShapeError or ConfigError before
/// anything is written.
template <AttentionBackend A, Storage S = ScalarOf<A>>
void attend(const A& backend, const AttentionInput<ScalarOf<A>, S>& in,
            const std::type_identity_t<AttentionOutput<ScalarOf<A>>>& out, Workspace& ws) {
  detail::check_input_of(backend, in, out);
  backend.forward(in, out, ws);
}

namespace detail {

/// Queries of a task at least: fewer would pack the keys too often.
inline constexpr Index task_rows = 288;

/// A backend whose cost is in its query rows, so that one input can be split over workers.
template <class A>
concept SplitsRows = requires {
  requires A::splits_rows;
};

/// The queries that one task takes of an input of m, so that there are about four tasks a worker in all.
template <class A>
[[nodiscard]] Index rows_of_a_task(Index m, Index inputs, Index workers) {
  if constexpr (SplitsRows<A>) {
    const Index tasks = std::max(Index(1), (4 * workers + inputs - 1) / std::max(inputs, Index(1)));
    const Index rows = (m + tasks - 1) / tasks;
    return workers == 1 ? std::max(m, Index(1)) : (rows + task_rows - 1) / task_rows * task_rows;
  } else {
    return std::max(m, Index(1));
  }
}

}  // namespace detail

/// Heads and batches: input b goes to output b. Work is split by inputs and, for backends of one softmax, by query
/// rows; the result has the same bits for any executor. Heads that share keys (grouped queries) repeat the views.
/// Throws as above, before any work.
template <AttentionBackend A, Executor E>
void attend(const A& backend, std::type_identity_t<std::span<const AttentionInput<ScalarOf<A>>>> in,
            std::type_identity_t<std::span<const AttentionOutput<ScalarOf<A>>>> out, E&& executor, Workspace& ws) {
  check_shape("attend: outputs", Index(in.size()), Index(out.size()));
  for (std::size_t b = 0; b < in.size(); ++b) detail::check_input_of(backend, in[b], out[b]);
  const Index inputs = Index(in.size()), workers = executor.concurrency();
  Index most = 0;
  for (const auto& one : in) most = std::max(most, one.query.rows());
  const Index rows = detail::rows_of_a_task<A>(most, inputs, workers);
  const Index tasks = std::max(Index(1), (most + rows - 1) / rows);
  ws.reserve_workers(workers);
  executor.parallel_for(inputs * tasks, [&](Index task, Index worker) {
    const auto b = std::size_t(task / tasks);
    const Index m = in[b].query.rows(), first = task % tasks * rows, count = std::min(rows, m - first);
    if (tasks == 1)
      backend.forward(in[b], out[b], ws.worker(worker));
    else if (count > 0)
      backend.forward(in[b].query_rows(first, count), out[b].query_rows(first, count), ws.worker(worker));
  });
}

/// One input, split over workers by its query rows where the backend allows it.
template <AttentionBackend A, Executor E>
void attend(const A& backend, const std::type_identity_t<AttentionInput<ScalarOf<A>>>& in,
            const std::type_identity_t<AttentionOutput<ScalarOf<A>>>& out, E&& executor, Workspace& ws) {
  attend(backend, std::span<const AttentionInput<ScalarOf<A>>>(&in, 1),
         std::span<const AttentionOutput<ScalarOf<A>>>(&out, 1), executor, ws);
}

/// Training mode for heads and batches: keeps in saved[b] what `attend_backward` needs of input b.
template <DifferentiableAttention A, Executor E>
void attend(const A& backend, std::type_identity_t<std::span<const AttentionInput<ScalarOf<A>>>> in,
            std::type_identity_t<std::span<const AttentionOutput<ScalarOf<A>>>> out,
            std::type_identity_t<std::span<typename A::Saved>> saved, E&& executor, Workspace& ws) {
  check_shape("attend: outputs", Index(in.size()), Index(out.size()));
  check_shape("attend: saved", Index(in.size()), Index(saved.size()));
  for (std::size_t b = 0; b < in.size(); ++b) detail::check_input_of(backend, in[b], out[b]);
  ws.reserve_workers(executor.concurrency());
  executor.parallel_for(Index(in.size()), [&](Index b, Index worker) {
    backend.forward(in[std::size_t(b)], out[std::size_t(b)], saved[std::size_t(b)], ws.worker(worker));
  });
}

/// Backward of heads and batches, one task each: adds to d_in[b] and, of the parameters, to grad[b]; inputs must not
/// share a gradient. The same bits for any executor. Throws ShapeError before anything is added.
template <DifferentiableAttention A, Executor E>
void attend_backward(const A& backend, std::type_identity_t<std::span<const AttentionInput<ScalarOf<A>>>> in,
                     std::type_identity_t<std::span<const typename A::Saved>> saved,
                     std::type_identity_t<std::span<const AttentionOutputGradient<ScalarOf<A>>>> d_out,
                     std::type_identity_t<std::span<const AttentionGradient<ScalarOf<A>>>> d_in,
                     std::type_identity_t<std::span<A>> grad, E&& executor, Workspace& ws) {
  check_shape("attend_backward: saved", Index(in.size()), Index(saved.size()));
  check_shape("attend_backward: gradients of outputs", Index(in.size()), Index(d_out.size()));
  check_shape("attend_backward: gradients of inputs", Index(in.size()), Index(d_in.size()));
  check_shape("attend_backward: gradients of parameters", Index(in.size()), Index(grad.size()));
  for (std::size_t b = 0; b < in.size(); ++b) {
    detail::check_input_of(backend, in[b], {});
    check_gradient(in[b], d_out[b], d_in[b], backend.output_dim(in[b].value.cols()));
  }
  ws.reserve_workers(executor.concurrency());
  executor.parallel_for(Index(in.size()), [&](Index b, Index worker) {
    const auto i = std::size_t(b);
    backend.backward(in[i], saved[i], d_out[i], d_in[i], grad[i], ws.worker(worker));
  });
}

/// Scratch of `attend_neighbors`: the keys of the neighbours of a node, one a worker. Reused.
template <PreparedAttention A>
using NeighborScratch = std::vector<typename A::Prepared>;

/// Each node looks at its neighbours: out row i is the attention of query row i over the prepared keys
/// graph.neighbors(i), in the order of the edges. Keys are projected once a node, not once an edge. `edge_bias`
/// [edges], in the order of the edges, is added to the logits; empty: none. A node without neighbours gets zeros.
/// O(edges (d + v)) beside what the backend does. Throws ShapeError, before any work, unless queries, keys and outputs
/// are one row a node.
template <PreparedAttention A, class Graph, Executor E>
void attend_neighbors(const A& backend, const Graph& graph, std::type_identity_t<MatrixView<const ScalarOf<A>>> query,
                      const typename A::Prepared& prepared,
                      std::type_identity_t<std::span<const ScalarOf<A>>> edge_bias,
                      const std::type_identity_t<AttentionOutput<ScalarOf<A>>>& out, NeighborScratch<A>& scratch,
                      E&& executor, Workspace& ws) {
  using T = ScalarOf<A>;
  check_shape("attend_neighbors: rows of query", graph.nodes(), query.rows());
  check_shape("attend_neighbors: prepared keys", graph.nodes(), prepared.rows());
  if (!edge_bias.empty()) check_shape("attend_neighbors: edge_bias", graph.edges(), Index(edge_bias.size()));
  if (out.value.data() != nullptr) check_shape("attend_neighbors: rows of output", graph.nodes(), out.value.rows());
  if (out.weights.data() != nullptr)
    throw_config_error("attend_neighbors: weights", "not wanted: neighbourhoods differ in size", 1);
  constexpr Index nodes_a_task = 64;
  scratch.resize(std::max(scratch.size(), std::size_t(executor.concurrency())));
  ws.reserve_workers(executor.concurrency());
  executor.parallel_for((graph.nodes() + nodes_a_task - 1) / nodes_a_task, [&](Index task, Index worker) {
    typename A::Prepared& near = scratch[std::size_t(worker)];
    Workspace& own = ws.worker(worker);
    const Index last = std::min(graph.nodes(), (task + 1) * nodes_a_task);
    for (Index i = task * nodes_a_task; i < last; ++i) {
      auto frame = own.frame();
      const auto targets = graph.neighbors(i);
      const std::span<Index> ids = frame.template span<Index>(Index(targets.size()));
      std::copy(targets.begin(), targets.end(), ids.begin());
      near.select(prepared, ids);
      PreparedInput<T> in{.query = query.rows(i, 1)};
      if (!edge_bias.empty()) in.bias = MatrixView<const T>(edge_bias.data() + graph.first_edge(i), 1, near.rows());
      backend.forward(in, std::as_const(near), out.query_rows(i, 1), own);
    }
  });
}

}  // namespace ruvector::inline RUVECTOR_ABI::attention
