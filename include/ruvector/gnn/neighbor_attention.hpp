// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/any_attention.hpp"
#include "ruvector/attention/concepts.hpp"
#include "ruvector/attention/gat_v2.hpp"
#include "ruvector/attention/multi_head.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/ordered_sum.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/gnn/neighbor_dot.hpp"
#include "ruvector/gnn/neighbor_sum.hpp"
#include "ruvector/graph/csr_graph.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

// Any attention over the neighbourhoods of a graph, forward and backward: each node is projected once, and its
// neighbours are gathered one node at a time, so memory is O(nodes d) and never O(edges d).

namespace ruvector::inline RUVECTOR_ABI::gnn::detail {

/// What the parts of an attention are, by its type.
///@{
template <class A>
struct HeadOf {
  using Type = A;
};
template <class Inner>
struct HeadOf<attention::MultiHead<Inner>> {
  using Type = Inner;
};
template <class A>
inline constexpr bool is_multi_head = !std::same_as<typename HeadOf<A>::Type, A>;
template <class A>
inline constexpr bool is_any = false;
template <Real T>
inline constexpr bool is_any<attention::AnyAttention<T>> = true;
///@}

/// Has a graph form of its own.
template <class A>
concept GraphAttention = std::same_as<A, attention::GatV2<ScalarOf<A>>>;

/// Calls f(backend, others…) with what an AnyAttention holds where that has a faster way than through it; with the
/// attention itself otherwise. The others are of its type and hold the same.
template <class A, class F, class... Others>
void with_backend(const A& a, F&& f, Others&... others) {
  if constexpr (is_any<A>) {
    using T = ScalarOf<A>;
    using Heads = attention::MultiHead<A>;
    if (const auto* gat = a.template get_if<attention::GatV2<T>>())
      return f(*gat, *others.template get_if<attention::GatV2<T>>()...);
    if (const auto* heads = a.template get_if<Heads>()) return f(*heads, *others.template get_if<Heads>()...);
  }
  f(a, others...);
}

/// Whether it takes the features of edges as they are.
template <class A>
[[nodiscard]] bool sees_edges(const A& a) {
  if constexpr (is_any<A>)
    return a.sees_edges();
  else
    return attention::EdgeAwareAttention<A>;
}

/// Learned biases that an edge has: one a head, or none where the attention sees edges by itself.
template <class A>
[[nodiscard]] Index edge_biases(const A& a) {
  Index count = 0;
  with_backend(a, [&](const auto& backend) {
    using B = std::remove_cvref_t<decltype(backend)>;
    if constexpr (is_multi_head<B>)
      count = sees_edges(backend.heads.front()) ? 0 : Index(backend.heads.size());
    else
      count = sees_edges(backend) ? 0 : 1;
  });
  return count;
}

/// What one worker needs to train heads; kept, so that nothing is allocated again.
template <class Head>
struct HeadWorker {
  std::vector<typename Head::Saved> saved;  ///< one a head
  std::vector<Head> grad;                   ///< the same, in backward
};

/// Of heads over a graph.
template <class Head>
struct SavedHeads {
  using T = ScalarOf<Head>;
  Matrix<T> query, key, value, concat;    ///< projected rows, and what the heads gave; empty without projections
  Rng rng{0};                             ///< of dropout: node i, head h draws from its stream i·heads + h
  std::vector<HeadWorker<Head>> workers;  ///< one each

  void prepare(std::span<const Head> heads, Index count) {
    if (Index(workers.size()) < count) workers.resize(std::size_t(count));
    for (HeadWorker<Head>& worker : workers)
      if (worker.saved.size() != heads.size()) worker.saved.resize(heads.size());
  }
};

/// Of any attention over a graph.
template <class A>
struct SavedNeighbors {
  SavedHeads<typename HeadOf<A>::Type> heads;           ///< where it has no graph form
  typename attention::GatV2<ScalarOf<A>>::Saved graph;  ///< where it has
};

/// Heads that look at neighbourhoods: one pass over a graph. Columns of head h start at h times its width, of its keys
/// and values at (its group) times theirs.
template <class Head, graph::NodeId I>
struct NeighborHeads {
  using T = ScalarOf<Head>;

  graph::CsrView<I> graph;
  std::span<const Head> heads;
  Index groups;                     // of heads that share keys and values
  MatrixView<const T> query;        // [m×…]
  MatrixView<const T> key, value;   // [nodes×…]
  MatrixView<const T> features;     // of edges, by id, or empty
  MatrixView<const T> bias_weight;  // [heads × edge_dim], or empty
  const Rng* rng = nullptr;         // in training
  std::span<const T> factors;       // dot_factor of each head, or empty: they are something else

  static constexpr Index leaf = 64;  // nodes whose gradients of parameters are summed in a chain

  [[nodiscard]] Index count() const { return Index(heads.size()); }
  [[nodiscard]] Index group(Index h) const { return h / (count() / groups); }
  [[nodiscard]] Index query_dim() const { return query.cols() / count(); }
  [[nodiscard]] Index key_dim() const { return key.cols() / groups; }
  [[nodiscard]] Index value_dim() const { return value.cols() / groups; }
  [[nodiscard]] Index output_dim() const { return heads.front().output_dim(value_dim()); }
  [[nodiscard]] std::span<const T> features_of(Index e) const { return features.row(graph.edge_id(e)); }

  // w_h·e [heads×neighbours], or nothing.
  [[nodiscard]] MatrixView<T> biases(Index i, Workspace::Frame& frame) const {
    if (bias_weight.empty()) return {};
    const auto bias = frame.template matrix<T>(count(), graph.degree(i));
    for (Index h = 0; h < count(); ++h)
      for (Index k = 0; k < bias.cols(); ++k)
        bias(h, k) = simd::dot<T>(bias_weight.row(h), features_of(graph.first_edge(i) + k));
    return bias;
  }

  // The neighbours of a node.
  struct Near {
    MatrixView<T> key, value, features, bias;
  };
  [[nodiscard]] Near gather(Index i, Workspace::Frame& frame) const {
    const auto targets = graph.neighbors(i);
    const Index degree = Index(targets.size()), first = graph.first_edge(i);
    Near near;
    near.key = frame.template matrix<T>(degree, key.cols());
    near.value = frame.template matrix<T>(degree, value.cols());
    for (Index k = 0; k < degree; ++k) {
      std::ranges::copy(key.row(Index(targets[std::size_t(k)])), near.key.row(k).begin());
      std::ranges::copy(value.row(Index(targets[std::size_t(k)])), near.value.row(k).begin());
    }
    if (!bias_weight.empty()) {
      near.bias = biases(i, frame);
    } else if (!features.empty()) {
      near.features = frame.template matrix<T>(degree, features.cols());
      for (Index k = 0; k < degree; ++k) std::ranges::copy(features_of(first + k), near.features.row(k).begin());
    }
    return near;
  }
  [[nodiscard]] attention::AttentionInput<T> input(Index i, Index h, const Near& near) const {
    attention::AttentionInput<T> in{.query = query.rows(i, 1).cols(h * query_dim(), query_dim()),
                                    .key = near.key.cols(group(h) * key_dim(), key_dim()),
                                    .value = near.value.cols(group(h) * value_dim(), value_dim())};
    if (!near.bias.empty()) in.bias = near.bias.rows(h, 1);
    return in;
  }

  // Head h of node i where heads are dot products.
  [[nodiscard]] NeighborDot<T, I> dot(Index i, Index h, MatrixView<const T> bias) const {
    return {query.row(i).subspan(std::size_t(h * query_dim()), std::size_t(query_dim())),
            {graph.neighbors(i), key.cols(group(h) * key_dim(), key_dim())},
            {graph.neighbors(i), value.cols(group(h) * value_dim(), value_dim())},
            bias.empty() ? std::span<const T>() : bias.row(h),
            factors[std::size_t(h)]};
  }
  // Outputs of head h in a row.
  template <class U>
  [[nodiscard]] std::span<U> columns_of(std::span<U> row, Index h) const {
    return row.subspan(std::size_t(h * output_dim()), std::size_t(output_dim()));
  }

  // Head h of node i into `out` [1×…], in training where there is something to save.
  void attend(Index i, Index h, const Near& near, MatrixView<T> out, typename Head::Saved* saved, Workspace& ws) const {
    const Head& head = heads[std::size_t(h)];
    const attention::AttentionInput<T> in = input(i, h, near);
    if (saved != nullptr) {
      if constexpr (requires { saved->rng = *rng; }) saved->rng = rng->split(std::uint64_t(i * count() + h));
      if constexpr (attention::EdgeAwareAttention<Head>)
        if (!near.features.empty())
          return head.forward(in, attention::EdgeFeatures<T>{near.features}, {.value = out}, *saved, ws);
      return head.forward(in, {.value = out}, *saved, ws);
    }
    if constexpr (attention::EdgeAwareAttention<Head>)
      if (!near.features.empty())
        return head.forward(in, attention::EdgeFeatures<T>{near.features}, {.value = out}, ws);
    head.forward(in, {.value = out}, ws);
  }

  /// concat [m×…] = what the heads give, side by side; 0 for nodes without neighbours.
  template <Executor E>
  void forward(MatrixView<T> concat, SavedHeads<Head>* saved, Workspace& ws, E& executor) const {
    constexpr Index nodes_a_task = 32;
    ws.reserve_workers(executor.concurrency());
    executor.parallel_for((concat.rows() + nodes_a_task - 1) / nodes_a_task, [&](Index task, Index worker) {
      Workspace& own = nn::detail::workspace_of(ws, executor, worker);
      for (Index i = task * nodes_a_task; i < std::min(concat.rows(), (task + 1) * nodes_a_task); ++i) {
        if (graph.degree(i) == 0) {
          std::ranges::fill(concat.row(i), T(0));
          continue;
        }
        auto frame = own.frame();
        if (!factors.empty()) {
          prefetch_neighbors<T>(graph, i + 1, key);
          prefetch_neighbors<T>(graph, i + 1, value);
          const MatrixView<T> bias = biases(i, frame);
          const std::span<T> weights = frame.template span<T>(padded<T>(graph.degree(i)));
          for (Index h = 0; h < count(); ++h) dot(i, h, bias).forward(weights, columns_of(concat.row(i), h));
          continue;
        }
        const Near near = gather(i, frame);
        for (Index h = 0; h < count(); ++h)
          attend(i, h, near, concat.rows(i, 1).cols(h * output_dim(), output_dim()),
                 saved == nullptr ? nullptr : &saved->workers[std::size_t(worker)].saved[std::size_t(h)], own);
      }
    });
  }

  /// Where gradients go: as the inputs; d_features may be empty.
  struct Gradient {
    MatrixView<T> query, key, value, features, bias_weight;
    std::span<Head> heads;
  };

  /// Adds the gradients. The heads run again, node by node, rather than being kept. What an edge gives to the rows at
  /// its target is held for a few leaves at a time and added in the order of the edges.
  template <Executor E>
  void backward(MatrixView<const T> d_concat, const Gradient& d, SavedHeads<Head>& saved, Workspace& ws,
                E& executor) const {
    const Index m = query.rows(), leaves = (m + leaf - 1) / leaf;
    const Index wave = executor.concurrency() == 1 ? 1 : 4 * executor.concurrency();
    const Index parameters = gradient_size();
    const Index columns = key.cols() + value.cols() + d.features.cols();
    prepare_gradients(saved);
    ws.reserve_workers(executor.concurrency());
    auto frame = ws.frame();
    using Sum = nn::detail::RowSum<T>;
    using Slots = std::span<OrderedSumSlot<Sum>>;
    const Slots slots = frame.template span<OrderedSumSlot<Sum>>(ordered_sum_slots(leaves));
    const auto memory = frame.template matrix<T>(Index(slots.size()) + 1, parameters);
    for (std::size_t k = 0; k < slots.size(); ++k) slots[k] = {{memory.data() + Index(k) * parameters, true}};
    OrderedSum<Sum, nn::detail::RowSumMonoid<T>, Slots> sum({parameters}, leaf, slots);
    for (Index first = 0; first < leaves; first += wave) {
      const Index count_of = std::min(wave, leaves - first), begin = first * leaf,
                  end = std::min(m, begin + count_of * leaf);
      const Index base = graph.first_edge(begin), edge_count = graph.offsets()[std::size_t(end)] - base;
      auto scope = ws.frame();
      const auto rows = scope.template matrix<T>(edge_count, columns);
      const auto parts = scope.template matrix<T>(count_of, parameters);
      executor.parallel_for(count_of, [&](Index k, Index worker) {
        const Index from = begin + k * leaf, to = std::min(end, from + leaf);
        backward_leaf(from, to, d_concat, d, rows, base, parts.row(k), saved.workers[std::size_t(worker)],
                      nn::detail::workspace_of(ws, executor, worker));
      });
      scatter(begin, end, rows, base, d, executor);
      for (Index k = 0; k < count_of; ++k)
        sum.add(begin + k * leaf, std::min(end, begin + (k + 1) * leaf), [&](Sum& into, Index, Index) {
          std::ranges::copy(parts.row(k), into.values);
          into.zero = false;
        });
    }
    Sum total{memory.data() + Index(slots.size()) * parameters, true};
    sum.total(total);
    if (!total.zero) add_parameters({total.values, std::size_t(parameters)}, d);
  }

 private:
  [[nodiscard]] Index gradient_size() const {
    Index size = bias_weight.size();
    for (const Head& head : heads) size += parameter_count(head);
    return size;
  }
  void prepare_gradients(SavedHeads<Head>& saved) const {
    for (HeadWorker<Head>& worker : saved.workers)
      if (worker.grad.size() != heads.size()) worker.grad.assign(heads.begin(), heads.end());
  }

  // Gradients of nodes from … to−1: of edges to rows − base, of parameters to `part`.
  void backward_leaf(Index from, Index to, MatrixView<const T> d_concat, const Gradient& d, MatrixView<T> rows,
                     Index base, std::span<T> part, HeadWorker<Head>& worker, Workspace& ws) const {
    for (Head& grad : worker.grad)
      for_each_parameter([](std::string_view, auto tensor) { std::ranges::fill(tensor, 0); }, grad);
    const MatrixView<T> d_bias_weight(part.data(), bias_weight.rows(), bias_weight.cols());
    std::ranges::fill(part.first(std::size_t(bias_weight.size())), T(0));
    auto frame = ws.frame();
    const std::span<T> by_logits = frame.template span<T>(Index(factors.size()));
    std::ranges::fill(by_logits, T(0));
    for (Index i = from; i < to; ++i)
      if (graph.degree(i) > 0)
        backward_node(i, d_concat, d, rows.rows(graph.first_edge(i) - base, graph.degree(i)), d_bias_weight, by_logits,
                      worker, ws);
    for (std::size_t h = 0; h < by_logits.size(); ++h) add_dot_temperature(heads[h], by_logits[h], worker.grad[h]);
    T* next = part.data() + bias_weight.size();
    for (const Head& grad : worker.grad)
      for_each_parameter([&](std::string_view, auto tensor) { next = std::ranges::copy(tensor, next).out; }, grad);
  }

  void backward_node(Index i, MatrixView<const T> d_concat, const Gradient& d, MatrixView<T> rows,
                     MatrixView<T> d_bias_weight, std::span<T> by_logits, HeadWorker<Head>& worker,
                     Workspace& ws) const {
    auto frame = ws.frame();
    const Index degree = rows.rows();
    for (Index k = 0; k < degree; ++k) std::ranges::fill(rows.row(k), T(0));
    const auto d_bias = frame.template matrix<T>(count(), degree);
    for (Index h = 0; h < count(); ++h) std::ranges::fill(d_bias.row(h), T(0));
    if (factors.empty())
      backward_heads(i, d_concat, d, rows, d_bias, worker, frame, ws);
    else
      backward_dots(i, d_concat, d, rows, d_bias, by_logits, frame);
    // bias = w·e
    for (Index h = 0; h < bias_weight.rows(); ++h)
      for (Index k = 0; k < degree; ++k) {
        simd::axpy<T>(d_bias(h, k), features_of(graph.first_edge(i) + k), d_bias_weight.row(h));
        if (d.features.empty()) continue;
        simd::axpy<T>(d_bias(h, k), bias_weight.row(h), rows.row(k).subspan(std::size_t(key.cols() + value.cols())));
      }
  }

  void backward_dots(Index i, MatrixView<const T> d_concat, const Gradient& d, MatrixView<T> rows, MatrixView<T> d_bias,
                     std::span<T> by_logits, Workspace::Frame& frame) const {
    prefetch_neighbors<T>(graph, i + 1, key);
    prefetch_neighbors<T>(graph, i + 1, value);
    const MatrixView<T> bias = biases(i, frame);
    const std::span<T> weights = frame.template span<T>(padded<T>(rows.rows())),
                       d_logits = frame.template span<T>(padded<T>(rows.rows()));
    for (Index h = 0; h < count(); ++h)
      by_logits[std::size_t(h)] +=
          dot(i, h, bias)
              .backward(columns_of(d_concat.row(i), h), weights, d_logits, d_bias.row(h),
                        d.query.row(i).subspan(std::size_t(h * query_dim()), std::size_t(query_dim())),
                        rows.cols(group(h) * key_dim(), key_dim()),
                        rows.cols(key.cols() + group(h) * value_dim(), value_dim()));
  }

  void backward_heads(Index i, MatrixView<const T> d_concat, const Gradient& d, MatrixView<T> rows,
                      MatrixView<T> d_bias, HeadWorker<Head>& worker, Workspace::Frame& frame, Workspace& ws) const {
    const Near near = gather(i, frame);
    const MatrixView<T> d_key = rows.cols(0, key.cols()), d_value = rows.cols(key.cols(), value.cols()),
                        d_features = rows.cols(key.cols() + value.cols(), d.features.cols());
    const MatrixView<T> out = frame.template matrix<T>(1, output_dim());
    for (Index h = 0; h < count(); ++h) {
      typename Head::Saved& own = worker.saved[std::size_t(h)];
      attend(i, h, near, out, &own, ws);
      attention::AttentionGradient<T> d_in{.query = d.query.rows(i, 1).cols(h * query_dim(), query_dim()),
                                           .key = d_key.cols(group(h) * key_dim(), key_dim()),
                                           .value = d_value.cols(group(h) * value_dim(), value_dim())};
      if (!near.bias.empty()) d_in.bias = d_bias.rows(h, 1);
      const Head& head = heads[std::size_t(h)];
      Head& grad = worker.grad[std::size_t(h)];
      const attention::AttentionInput<T> in = input(i, h, near);
      const attention::AttentionOutputGradient<T> d_out{d_concat.rows(i, 1).cols(h * output_dim(), output_dim())};
      bool done = false;
      if constexpr (attention::EdgeAwareAttention<Head>)
        if (!near.features.empty()) {
          const typename attention::EdgeFeatures<T>::Gradient d_side{d_features.empty() ? MatrixView<T>() : d_features};
          head.backward(in, attention::EdgeFeatures<T>{near.features}, own, d_out, d_in, d_side, grad, ws);
          done = true;
        }
      if (!done) head.backward(in, own, d_out, d_in, grad, ws);
    }
  }

  template <Executor E>
  void scatter(Index begin, Index end, MatrixView<const T> rows, Index base, const Gradient& d, E& executor) const {
    const auto add = [&](MatrixView<T> to, Index from_column, auto&& row_of) {
      for_column_ranges<T>(
          to.cols(),
          [&](Index column, Index count_of) {
            for (Index e = graph.first_edge(begin); e < graph.offsets()[std::size_t(end)]; ++e)
              simd::axpy(T(1), rows.row(e - base).data() + from_column + column, to.row(row_of(e)).data() + column,
                         count_of);
          },
          executor);
    };
    const auto target = [&](Index e) { return Index(graph.targets()[std::size_t(e)]); };
    add(d.key, 0, target);
    add(d.value, key.cols(), target);
    add(d.features, key.cols() + value.cols(), [&](Index e) { return graph.edge_id(e); });
  }

  void add_parameters(std::span<const T> total, const Gradient& d) const {
    const T* next = total.data();
    for (Index h = 0; h < bias_weight.rows(); ++h, next += bias_weight.cols())
      simd::axpy(T(1), next, d.bias_weight.row(h).data(), bias_weight.cols());
    for (Head& grad : d.heads)
      for_each_parameter(
          [&](std::string_view, auto tensor) {
            simd::axpy(T(1), next, tensor.data(), Index(tensor.size()));
            next += tensor.size();
          },
          grad);
  }
};

/// f(executor) where f takes one, f() for parts that work on one thread.
template <class E, class F>
void with_executor(E& executor, F&& f) {
  if constexpr (std::invocable<F&, E&>)
    f(executor);
  else
    f();
}

/// Scratch of zeros.
template <Real T>
[[nodiscard]] MatrixView<T> zeros(Workspace::Frame& frame, Index rows, Index cols) {
  const auto matrix = frame.template matrix<T>(rows, cols);
  std::ranges::fill(std::span<T>(matrix.data(), std::size_t(matrix.size())), T(0));
  return matrix;
}

/// Calls f(graph, rows) with the graph of one node, the first, and its neighbours. Throws ShapeError for rows that are
/// not `input_dim` wide.
template <Real T, class F>
void with_star(std::span<const T> node, MatrixView<const T> neighbors, Index input_dim, Workspace& ws, F&& f) {
  const Index n = neighbors.rows();
  check_shape("graph layer: elements of the node", input_dim, Index(node.size()));
  if (n > 0) check_shape("graph layer: columns of neighbors", input_dim, neighbors.cols());
  auto frame = ws.frame();
  const auto rows = frame.template matrix<T>(n + 1, input_dim);
  std::ranges::copy(node, rows.row(0).begin());
  for (Index k = 0; k < n; ++k) std::ranges::copy(neighbors.row(k), rows.row(k + 1).begin());
  const std::span<Index> offsets = frame.template span<Index>(n + 2);
  std::ranges::fill(offsets, n);
  offsets[0] = 0;
  const std::span<std::int64_t> targets = frame.template span<std::int64_t>(n);
  std::iota(targets.begin(), targets.end(), std::int64_t(1));
  f(graph::CsrView<std::int64_t>(offsets, targets), rows);
}

/// Rows of nodes without neighbours become 0.
template <Real T, graph::NodeId I>
void clear_isolated(graph::CsrView<I> graph, MatrixView<T> rows) {
  for (Index i = 0; i < rows.rows(); ++i)
    if (graph.degree(i) == 0) std::ranges::fill(rows.row(i), T(0));
}

/// One call of an attention over a graph: rows x [nodes×d], outputs of the first nodes, features of edges by id and
/// the weights of their biases [edge_biases × edge_dim], each of which may be empty.
template <Real T, graph::NodeId I>
struct NeighborAttention {
  graph::CsrView<I> graph;
  MatrixView<const T> x;
  MatrixView<const T> features;
  MatrixView<const T> bias_weight;

  /// out [m×…] for m ≤ nodes; zeros, or what the backend gives by itself, for nodes without neighbours.
  template <class A, Executor E>
  void forward(const A& attention, MatrixView<T> out, std::type_identity_t<SavedNeighbors<A>*> saved, Rng* rng,
               Workspace& ws, E& executor) const {
    with_backend(attention, [&](const auto& backend) {
      using B = std::remove_cvref_t<decltype(backend)>;
      if constexpr (GraphAttention<B>) {
        if (saved != nullptr) saved->graph.rng = Rng(rng->bits());
        run_graph(backend, out, saved == nullptr ? nullptr : &saved->graph, ws, executor);
      } else {
        if (saved != nullptr) saved->heads.rng = Rng(rng->bits());
        run_heads(backend, out, saved == nullptr ? nullptr : &saved->heads, ws, executor);
      }
    });
  }

  /// Adds to d_x [nodes×d], d_features (empty: not wanted), d_bias_weight and grad.
  template <class A, Executor E>
  void backward(const A& attention, MatrixView<const T> d_out, std::type_identity_t<SavedNeighbors<A>&> saved,
                MatrixView<T> d_x, MatrixView<T> d_features, MatrixView<T> d_bias_weight, std::type_identity_t<A&> grad,
                Workspace& ws, E& executor) const {
    check_same_parameters(attention, std::as_const(grad));
    if (d_features.empty()) d_features = {};  // of no column, too
    with_backend(
        attention,
        [&](const auto& backend, auto& d_backend) {
          using B = std::remove_cvref_t<decltype(backend)>;
          if constexpr (GraphAttention<B>)
            differentiate_graph(backend, d_out, saved.graph, d_x, d_features, d_backend, ws, executor);
          else
            differentiate_heads(backend, d_out, saved.heads, d_x, d_features, d_bias_weight, d_backend, ws, executor);
        },
        grad);
  }

 private:
  template <class Gat, class E>
  void run_graph(const Gat& gat, MatrixView<T> out, typename Gat::Saved* saved, Workspace& ws, E& executor) const {
    auto frame = ws.frame();
    const bool all = out.rows() == graph.nodes();
    const MatrixView<T> rows = all ? out : frame.template matrix<T>(graph.nodes(), out.cols());
    const attention::EdgeFeatures<T> side{features};
    if (saved != nullptr)
      gat.forward(graph, x, x, side, rows, *saved, ws, executor);
    else
      gat.forward(graph, x, x, side, rows, ws, executor);
    if (!all) copy<T>(rows.rows(0, out.rows()), out);
  }
  template <class Gat, class E>
  void differentiate_graph(const Gat& gat, MatrixView<const T> d_out, const typename Gat::Saved& saved,
                           MatrixView<T> d_x, MatrixView<T> d_features, Gat& grad, Workspace& ws, E& executor) const {
    auto frame = ws.frame();
    MatrixView<const T> d_rows = d_out;
    if (d_out.rows() != graph.nodes()) {
      const auto rows = frame.template matrix<T>(graph.nodes(), d_out.cols());
      for (Index i = 0; i < graph.nodes(); ++i) {
        if (i < d_out.rows())
          std::ranges::copy(d_out.row(i), rows.row(i).begin());
        else
          std::ranges::fill(rows.row(i), T(0));
      }
      d_rows = rows;
    }
    gat.backward(graph, x, x, attention::EdgeFeatures<T>{features}, saved, d_rows, d_x, d_x, {d_features}, grad, ws,
                 executor);
  }

  template <class Head>
  [[nodiscard]] NeighborHeads<Head, I> pass(std::span<const Head> heads, Index groups, MatrixView<const T> query,
                                            MatrixView<const T> key, MatrixView<const T> value, const Rng* rng,
                                            Workspace::Frame& frame) const {
    const std::span<T> factors = frame.template span<T>(Index(heads.size()));
    bool dots = true;
    for (std::size_t h = 0; h < heads.size() && dots; ++h) {
      const auto factor = dot_factor(heads[h], query.cols() / Index(heads.size()));
      dots = factor.has_value();
      if (dots) factors[h] = *factor;
    }
    return {graph, heads,    groups,      query, key,
            value, features, bias_weight, rng,   dots ? std::span<const T>(factors) : std::span<const T>()};
  }

  // With the projections of multi-head attention around the heads.
  template <class Head, class E>
  void run_heads(const attention::MultiHead<Head>& multi, MatrixView<T> out, SavedHeads<Head>* saved, Workspace& ws,
                 E& executor) const {
    const Index m = out.rows(), n = x.rows();
    auto frame = ws.frame();
    const auto rows = [&](Matrix<T> SavedHeads<Head>::*kept, Index count, Index columns) {
      if (saved == nullptr) return frame.template matrix<T>(count, columns);
      set_shape(saved->*kept, count, columns);
      return (saved->*kept).view();
    };
    const bool mixes = !multi.output.weight.empty();
    const auto query = rows(&SavedHeads<Head>::query, m, multi.query.weight.rows());
    const auto key = rows(&SavedHeads<Head>::key, n, multi.key.weight.rows());
    const auto value = rows(&SavedHeads<Head>::value, n, multi.value.weight.rows());
    multi.query.forward(x.rows(0, m), query, ws, executor);
    multi.key.forward(x, key, ws, executor);
    multi.value.forward(x, value, ws, executor);
    const auto heads =
        pass<Head>(multi.heads, multi.kv_heads(), query, key, value, saved ? &saved->rng : nullptr, frame);
    if (saved != nullptr) saved->prepare(multi.heads, executor.concurrency());
    const auto concat = mixes ? rows(&SavedHeads<Head>::concat, m, heads.count() * heads.output_dim()) : out;
    heads.forward(concat, saved, ws, executor);
    if (!mixes) return;
    multi.output.forward(concat, out, ws, executor);
    clear_isolated(graph, out);  // not b_o
  }
  template <class Head, class E>
  void differentiate_heads(const attention::MultiHead<Head>& multi, MatrixView<const T> d_out, SavedHeads<Head>& saved,
                           MatrixView<T> d_x, MatrixView<T> d_features, MatrixView<T> d_bias_weight,
                           attention::MultiHead<Head>& grad, Workspace& ws, E& executor) const {
    const Index m = d_out.rows();
    auto frame = ws.frame();
    MatrixView<const T> d_concat = d_out;
    if (!multi.output.weight.empty()) {
      const auto seen = frame.template matrix<T>(m, d_out.cols());
      copy<T>(d_out, seen);
      clear_isolated(graph, seen);
      const auto rows = zeros<T>(frame, m, saved.concat.cols());
      multi.output.backward(saved.concat, seen, rows, grad.output, ws, executor);
      d_concat = rows;
    }
    const auto heads =
        pass<Head>(multi.heads, multi.kv_heads(), saved.query, saved.key, saved.value, &saved.rng, frame);
    const auto d_query = zeros<T>(frame, m, saved.query.cols()), d_key = zeros<T>(frame, x.rows(), saved.key.cols()),
               d_value = zeros<T>(frame, x.rows(), saved.value.cols());
    saved.prepare(multi.heads, executor.concurrency());
    heads.backward(d_concat, {d_query, d_key, d_value, d_features, d_bias_weight, grad.heads}, saved, ws, executor);
    multi.query.backward(x.rows(0, m), d_query, d_x.rows(0, m), grad.query, ws, executor);
    multi.key.backward(x, d_key, d_x, grad.key, ws, executor);
    multi.value.backward(x, d_value, d_x, grad.value, ws, executor);
  }

  // One attention that takes the rows as they are.
  template <class Head, class E>
  void run_heads(const Head& head, MatrixView<T> out, SavedHeads<Head>* saved, Workspace& ws, E& executor) const {
    auto frame = ws.frame();
    if (saved != nullptr) saved->prepare({&head, 1}, executor.concurrency());
    pass<Head>({&head, 1}, 1, x.rows(0, out.rows()), x, x, saved ? &saved->rng : nullptr, frame)
        .forward(out, saved, ws, executor);
  }
  template <class Head, class E>
  void differentiate_heads(const Head& head, MatrixView<const T> d_out, SavedHeads<Head>& saved, MatrixView<T> d_x,
                           MatrixView<T> d_features, MatrixView<T> d_bias_weight, Head& grad, Workspace& ws,
                           E& executor) const {
    const Index m = d_out.rows(), columns = x.cols();
    auto frame = ws.frame();
    saved.prepare({&head, 1}, executor.concurrency());
    // Apart, since what comes first within d_x must not depend on the number of workers.
    const std::array d{zeros<T>(frame, m, columns), zeros<T>(frame, x.rows(), columns),
                       zeros<T>(frame, x.rows(), columns)};
    pass<Head>({&head, 1}, 1, x.rows(0, m), x, x, &saved.rng, frame)
        .backward(d_out, {d[0], d[1], d[2], d_features, d_bias_weight, {&grad, 1}}, saved, ws, executor);
    for (const MatrixView<T> part : d)
      for (Index i = 0; i < part.rows(); ++i) simd::axpy<T>(T(1), part.row(i), d_x.row(i));
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::gnn::detail
