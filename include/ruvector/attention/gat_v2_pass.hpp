// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/mask.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/graph/csr_graph.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"
#include "ruvector/simd/math.hpp"
#include "ruvector/simd/transpose.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>

// What happens between the projections of GATv2 and its outputs, forward and backward, edge by edge: one code for dense
// inputs and graphs. All heads are worked on at once, a register holds some channels of several heads.

namespace ruvector::inline RUVECTOR_ABI::attention {

/// Loops that a graph is given before attention, as PyTorch Geometric does: a node's own loops, if any, are dropped and
/// one that leads from the node to itself is added behind its other edges. A dense input says itself who sees whom.
enum class AddedLoops {
  none,      ///< the graph stays as it is
  mean,      ///< the features of the loop are the mean of those of the node's other edges; 0 where there are none
  constant,  ///< all features of the loop are `loop_feature`
};

namespace detail {

/// Where the channels of all heads stand in a row of registers. As many heads as fit stand side by side in a register,
/// a group; their number is rounded up to a power of two. So a sum over channels is a sum of registers, for all heads
/// of the group at once, and a weight a head meets all channels without being moved. A group is a matrix [depth×side],
/// one row a channel. What is added to fill registers is 0.
template <Real T>
struct HeadLayout {
  Index heads, channels;
  Index side;    ///< heads of a group
  Index groups;  ///< of heads
  Index depth;   ///< channels, rounded up so that a group is whole registers

  HeadLayout(Index head_count, Index channel_count)
      : heads(head_count),
        channels(channel_count),
        side(std::min(simd::lanes<T>, Index(std::bit_ceil(std::size_t(head_count))))),
        groups((head_count - 1) / side + 1) {
    const Index channels_a_register = simd::lanes<T> / side;
    depth = (channels + channels_a_register - 1) / channels_a_register * channels_a_register;
  }
  /// Elements of a group.
  [[nodiscard]] Index group_width() const { return depth * side; }
  /// Elements of a row.
  [[nodiscard]] Index width() const { return groups * group_width(); }
  /// Numbers of which there is one a head.
  [[nodiscard]] Index slots() const { return groups * side; }
  /// Heads that a group really has.
  [[nodiscard]] Index heads_of(Index group) const { return std::min(side, heads - group * side); }
  /// Where channel c of head h stands.
  [[nodiscard]] Index position(Index h, Index c) const { return h / side * group_width() + c * side + h % side; }

  /// packed [width] = row [heads·channels], head after head.
  void pack(const T* row, T* packed) const {
    std::fill_n(packed, width(), T(0));
    for (Index g = 0; g < groups; ++g)
      simd::transpose<T>(MatrixView<const T>(row + g * side * channels, heads_of(g), channels),
                         MatrixView<T>(packed + g * group_width(), channels, heads_of(g), side));
  }
  /// row [heads·channels] = packed [width].
  void unpack(const T* packed, T* row) const {
    for (Index g = 0; g < groups; ++g)
      simd::transpose<T>(MatrixView<const T>(packed + g * group_width(), channels, heads_of(g), side),
                         MatrixView<T>(row + g * side * channels, heads_of(g), channels));
  }
};

template <std::size_t s, class V, std::size_t... k>
[[gnu::always_inline]] inline V exchange_lanes(V v, std::index_sequence<k...>) {
  return __builtin_shufflevector(v, v, (k ^ s)...);
}

/// Adds lanes i and i ^ s for s = side, 2·side, …: all lanes of a head become the sum over the lanes of that head. Of
/// the first `side` lanes alone, the others 0, it makes copies.
template <Real T>
[[gnu::always_inline]] inline simd::Batch<T> add_lanes(simd::Batch<T> x, [[maybe_unused]] Index side) {
  constexpr auto width = std::size_t(simd::lanes<T>);
  if constexpr (width > 1) {
    [&]<std::size_t... p>(std::index_sequence<p...>) {
      const auto add = [&]<std::size_t s>(std::integral_constant<std::size_t, s>) {
        if (side <= Index(s))
          x += simd::Batch<T>::wrap(exchange_lanes<s>(x.pack.data, std::make_index_sequence<width>{}));
      };
      (add(std::integral_constant<std::size_t, (std::size_t(1) << p)>{}), ...);
    }
    (std::make_index_sequence<std::size_t(std::bit_width(width)) - 1>{});
  }
  return x;
}

/// An edge as seen from one of its ends: the row of the node at the other end, and the number of the edge.
struct Neighbor {
  Index row;
  Index edge;
};

/// Edges whose features are looked at together.
inline constexpr Index neighbors_at_once = 64;

/// The rows, in packed columns, at the other ends of some edges; and W_e e of the edges, if there is such a thing.
template <Real T>
struct NeighborRows {
  std::span<const Neighbor> neighbors;
  MatrixView<const T> rows;
  MatrixView<const T> edges = {};  ///< row k belongs to neighbor k

  [[nodiscard]] Index size() const { return Index(neighbors.size()); }
  [[nodiscard]] const T* row(Index k, Index column) const {
    return rows.data() + neighbors[std::size_t(k)].row * rows.stride() + column;
  }
  template <bool with_edges>
  [[nodiscard]] simd::Batch<T> plus_edge(simd::Batch<T> x, Index k, Index column) const {
    if constexpr (with_edges)
      return x + simd::load(edges.data() + k * edges.stride() + column);
    else
      return x;
  }
};

// The kernels. Each holds `vectors` registers of what belongs to the node itself, from `column` on, and runs over its
// edges; sums over edges and channels are chains in index order, continued from one call to the next.

/// sums[k] (+)= Σ a ∘ LeakyReLU(z), z = (row k + own) + edge k; starts at column 0.
template <int vectors, bool with_edges, Real T>
void add_logits(const NeighborRows<T>& from, Index column, const T* own, const T* attention, T slope, T* sums) {
  using B = simd::Batch<T>;
  constexpr Index width = simd::lanes<T>;
  B x[vectors], a[vectors];
  RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) {
    x[v] = simd::load(own + column + v * width);
    a[v] = simd::load(attention + column + v * width);
  }
  for (Index k = 0; k < from.size(); ++k) {
    const T* row = from.row(k, column);
    B sum = column == 0 ? B(T(0)) : simd::load(sums + k * width);
    RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) {
      const B z = from.template plus_edge<with_edges>(simd::load(row + v * width) + x[v], k, column + v * width);
      sum = simd::fma(a[v], simd::max(z, B(slope) * z), sum);  // slope ≤ 1
    }
    simd::store(sums + k * width, sum);
  }
}

/// sums[k] (+)= Σ row k ∘ own, where W_e e belongs to the one factor, to the other, or to none.
template <int vectors, bool edge_in_row, bool edge_in_own, Real T>
void add_dots(const NeighborRows<T>& from, Index column, const T* own, T* sums) {
  using B = simd::Batch<T>;
  constexpr Index width = simd::lanes<T>;
  B y[vectors];
  RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) y[v] = simd::load(own + column + v * width);
  for (Index k = 0; k < from.size(); ++k) {
    const T* row = from.row(k, column);
    B sum = column == 0 ? B(T(0)) : simd::load(sums + k * width);
    RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) {
      const Index at = column + v * width;
      const B x = from.template plus_edge<edge_in_row>(simd::load(row + v * width), k, at);
      sum = simd::fma(x, from.template plus_edge<edge_in_own>(y[v], k, at), sum);
    }
    simd::store(sums + k * width, sum);
  }
}

/// out += Σ_k weights[k] ∘ (row k + edge k).
template <int vectors, bool with_edges, Real T>
void add_values(const NeighborRows<T>& from, Index column, const T* weights, T* out) {
  using B = simd::Batch<T>;
  constexpr Index width = simd::lanes<T>;
  B sum[vectors];
  RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) sum[v] = simd::load(out + column + v * width);
  for (Index k = 0; k < from.size(); ++k) {
    const T* row = from.row(k, column);
    const B weight = simd::load(weights + k * width);
    RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) {
      const Index at = column + v * width;
      sum[v] = simd::fma(weight, from.template plus_edge<with_edges>(simd::load(row + v * width), k, at), sum[v]);
    }
  }
  RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) simd::store(out + column + v * width, sum[v]);
}

/// What the gradients of a target's edges are made of, and where they go; columns of one group.
template <Real T>
struct TargetGradients {
  const T* query;      ///< x_r
  const T* attention;  ///< a
  const T* d_out;      ///< G
  const T* d_logits;   ///< [neighbors × lanes]
  const T* weights;    ///< the same, dropout included
  T slope;
  bool edge_in_value;
  T* d_query;                    ///< Σ t, not yet times a
  T* d_attention;                ///< Σ t ∘ z
  MatrixView<T> d_key, d_value;  ///< rows of all sources, one matrix or two; or empty: not now
  MatrixView<T> d_edges;         ///< [neighbors × group width], written; or empty
};

/// With t = dℓ ∘ LeakyReLU'(z), dz = t ∘ a: x̄_r += dz, ā += t ∘ z, x̄_l += dz (key) + α G (value).
template <int vectors, bool with_edges, Real T>
void add_target_gradients(const NeighborRows<T>& from, Index column, const TargetGradients<T>& to) {
  using B = simd::Batch<T>;
  constexpr Index width = simd::lanes<T>;
  B x[vectors], a[vectors], g[vectors], d_query[vectors], d_attention[vectors];
  RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) {
    const Index at = column + v * width;
    x[v] = simd::load(to.query + at);
    a[v] = simd::load(to.attention + at);
    g[v] = simd::load(to.d_out + at);
    d_query[v] = simd::load(to.d_query + at);
    d_attention[v] = simd::load(to.d_attention + at);
  }
  const bool scatter = to.d_key.data() != nullptr, one_matrix = to.d_key.data() == to.d_value.data();
  for (Index k = 0; k < from.size(); ++k) {
    const T* row = from.row(k, column);
    const Index j = from.neighbors[std::size_t(k)].row;
    T* d_key = scatter ? to.d_key.data() + j * to.d_key.stride() + column : nullptr;
    T* d_value = scatter ? to.d_value.data() + j * to.d_value.stride() + column : nullptr;
    const B d_logit = simd::load(to.d_logits + k * width), sloped = B(to.slope) * d_logit;
    const B weight = simd::load(to.weights + k * width);
    RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) {
      const Index at = v * width;
      const B z = from.template plus_edge<with_edges>(simd::load(row + at) + x[v], k, column + at);
      const B t = simd::select(z > B(T(0)), d_logit, sloped);
      d_query[v] += t;
      d_attention[v] = simd::fma(t, z, d_attention[v]);
      if (scatter && one_matrix) {
        simd::store(d_key + at, simd::fma(t, a[v], simd::fma(weight, g[v], simd::load(d_key + at))));
      } else if (scatter) {
        simd::store(d_key + at, simd::fma(t, a[v], simd::load(d_key + at)));
        simd::store(d_value + at, simd::fma(weight, g[v], simd::load(d_value + at)));
      }
      if constexpr (with_edges) {
        const B by_value = to.edge_in_value ? weight * g[v] : B(T(0));
        simd::store(to.d_edges.data() + k * to.d_edges.stride() + column + at, simd::fma(t, a[v], by_value));
      }
    }
  }
  RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) {
    simd::store(to.d_query + column + v * width, d_query[v]);
    simd::store(to.d_attention + column + v * width, d_attention[v]);
  }
}

/// The same x̄_l, seen from the source: row k is x_r of target k, and d_out the rows of G.
template <int vectors, bool with_edges, Real T>
void add_source_gradients(const NeighborRows<T>& from, Index column, const T* own, const T* attention,
                          MatrixView<const T> d_out, const T* d_logits, const T* weights, T slope, T* d_key) {
  using B = simd::Batch<T>;
  constexpr Index width = simd::lanes<T>;
  B x[vectors], a[vectors], sum[vectors];
  RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) {
    x[v] = simd::load(own + column + v * width);
    a[v] = simd::load(attention + column + v * width);
    sum[v] = simd::load(d_key + column + v * width);
  }
  for (Index k = 0; k < from.size(); ++k) {
    const T* row = from.row(k, column);
    const T* g = d_out.data() + from.neighbors[std::size_t(k)].row * d_out.stride() + column;
    const B d_logit = simd::load(d_logits + k * width), sloped = B(slope) * d_logit;
    const B weight = simd::load(weights + k * width);
    RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) {
      const Index at = v * width;
      const B z = from.template plus_edge<with_edges>(simd::load(row + at) + x[v], k, column + at);
      const B t = simd::select(z > B(T(0)), d_logit, sloped);
      sum[v] = simd::fma(t, a[v], simd::fma(weight, simd::load(g + at), sum[v]));
    }
  }
  RUVECTOR_UNROLL for (int v = 0; v < vectors; ++v) simd::store(d_key + column + v * width, sum[v]);
}

/// Calls body(integral constant: registers, column) for panels of registers that together are `columns` wide.
template <Real T, class Body>
[[gnu::always_inline]] inline void for_panels(Index columns, Body&& body) {
  constexpr int most = simd::detail::product_vectors;
  Index column = 0;
  for (; column + most * simd::lanes<T> <= columns; column += most * simd::lanes<T>)
    body(std::integral_constant<int, most>{}, column);
  switch ((columns - column) / simd::lanes<T>) {
    case 1:
      return body(std::integral_constant<int, 1>{}, column);
    case 2:
      if constexpr (most > 2) return body(std::integral_constant<int, 2>{}, column);
      return;
    case 3:
      if constexpr (most > 2) return body(std::integral_constant<int, 3>{}, column);
      return;
    default:
      return;
  }
}

/// Calls body(true_type or false_type).
template <class Body>
[[gnu::always_inline]] inline void with_flag(bool flag, Body&& body) {
  if (flag)
    body(std::true_type{});
  else
    body(std::false_type{});
}

/// e^(x−μ); where μ = ∞ all weight belongs to the logits that are.
template <Real T>
[[gnu::always_inline]] inline simd::Batch<T> softmax_term(simd::Batch<T> x, simd::Batch<T> mu) {
  using B = simd::Batch<T>;
  const B infinity(std::numeric_limits<T>::infinity());
  const B term = simd::exp(x - mu);
  if (!simd::any(mu == infinity)) [[likely]]
    return term;
  const B at_top = simd::select(x < infinity, B(T(0)), simd::select(simd::isnan(x), x, B(T(1))));
  return simd::select(mu == infinity, at_top, term);
}

/// y += x. A plain loop: the features of an edge are few, and masked stores dear.
template <Real T>
void add_features(std::span<const T> x, std::span<T> y) {
  for (std::size_t f = 0; f < x.size(); ++f) y[f] += x[f];
}

/// Queries and keys of a dense input as a graph: edge i·n + j leads from key j to query i.
template <Real T>
struct DensePairs {
  static constexpr bool keys_are_values = false;  // maybe, but their gradients are asked for apart

  const AttentionInput<T>& in;

  [[nodiscard]] Index targets() const { return in.query.rows(); }
  [[nodiscard]] Index sources() const { return in.key.rows(); }
  [[nodiscard]] Index most_neighbors() const { return in.key.rows(); }
  [[nodiscard]] Index neighbors(Index i, Neighbor* out) const {
    const Index m = in.query.rows(), n = in.key.rows();
    const VisibleKeys visible = in.mask.visible(i, m, n);
    const std::uint8_t* allowed = in.mask.dense() ? in.mask.allowed_row(i) : nullptr;
    Index count = 0;
    const auto add = [&](Index first, Index last) {
      for (Index j = first; j < last; ++j)
        if (allowed == nullptr || allowed[j] != 0) out[count++] = {j, i * n + j};
    };
    if (visible.globals >= visible.first) {
      add(0, std::max(visible.globals, visible.last));
    } else {
      add(0, visible.globals);
      add(visible.first, visible.last);
    }
    return count;
  }
  [[nodiscard]] const T* bias(Index i) const {
    return in.bias.cols() == 0 ? nullptr : in.bias.data() + (in.bias.rows() == 1 ? 0 : i * in.bias.stride());
  }
  void copy_features(MatrixView<const T> features, Index edge, T* to) const {
    std::ranges::copy(features.row(edge), to);
  }
  void add_feature_gradient(Index edge, std::span<const T> d, MatrixView<T> d_features) const {
    add_features(d, d_features.row(edge));
  }
};

/// A graph whose nodes may be given loops: the loop of node i is edge number edges + i.
template <Real T, graph::NodeId I>
struct GraphPairs {
  static constexpr bool keys_are_values = true;

  graph::CsrView<I> graph;
  AddedLoops loops;
  T loop_feature;

  [[nodiscard]] Index targets() const { return graph.nodes(); }
  [[nodiscard]] Index sources() const { return graph.nodes(); }
  [[nodiscard]] Index most_neighbors() const {
    Index most = 0;
    for (Index i = 0; i < graph.nodes(); ++i) most = std::max(most, graph.degree(i));
    return most + 1;
  }
  [[nodiscard]] Index neighbors(Index i, Neighbor* out) const {
    Index count = 0;
    for_each_edge(i, [&](Index e) { out[count++] = {Index(graph.targets()[std::size_t(e)]), e}; });
    if (loops != AddedLoops::none) out[count++] = {i, graph.edges() + i};
    return count;
  }
  [[nodiscard]] const T* bias(Index) const { return nullptr; }
  void copy_features(MatrixView<const T> features, Index edge, T* to) const {
    if (edge < graph.edges()) {
      std::ranges::copy(features.row(graph.edge_id(edge)), to);
      return;
    }
    const std::span<T> loop(to, std::size_t(features.cols()));
    std::ranges::fill(loop, loops == AddedLoops::constant ? loop_feature : T(0));
    if (loops == AddedLoops::constant) return;
    const T share = share_of_loop(edge - graph.edges());
    for_each_edge(edge - graph.edges(), [&](Index e) { simd::axpy(share, features.row(graph.edge_id(e)), loop); });
  }
  void add_feature_gradient(Index edge, std::span<const T> d, MatrixView<T> d_features) const {
    if (edge < graph.edges()) return add_features(d, d_features.row(graph.edge_id(edge)));
    if (loops == AddedLoops::constant) return;
    const T share = share_of_loop(edge - graph.edges());
    for_each_edge(edge - graph.edges(), [&](Index e) { simd::axpy(share, d, d_features.row(graph.edge_id(e))); });
  }

 private:
  // Edges of node i that stay.
  template <class Body>
  void for_each_edge(Index i, Body&& body) const {
    const Index first = graph.first_edge(i), last = first + graph.degree(i);
    for (Index e = first; e < last; ++e)
      if (loops == AddedLoops::none || Index(graph.targets()[std::size_t(e)]) != i) body(e);
  }
  [[nodiscard]] T share_of_loop(Index i) const {
    Index count = 0;
    for_each_edge(i, [&](Index) { ++count; });
    return count == 0 ? T(0) : T(1) / T(count);
  }
};

/// What `backward` needs beside the inputs: (μ, 1/Σ e^(x−μ)) a node and head.
template <Real T>
struct SavedGatV2 {
  Rng rng{0};                     ///< draws the dropout of the next forward pass; seed it
  std::uint64_t dropout_key = 0;  ///< from which the dropout of the last one can be drawn again
  Matrix<T> reference;            ///< [m × heads, rounded up]
  Matrix<T> inverse_sum;          ///< the same
};

/// μ, Σ e^(x−μ) and its inverse, or 0, for the heads of a group.
template <Real T>
struct GatV2Softmax {
  simd::Batch<T> mu, sum, inverse;
};

/// One attention over given projections: everything between them and the outputs. `Pairs` says who sees whom.
template <Real T, class Pairs>
class GatV2Pass {
 public:
  using B = simd::Batch<T>;  ///< register

  HeadLayout<T> layout;               ///< of all packed rows
  const Pairs& pairs;                 ///< who sees whom
  T slope;                            ///< of LeakyReLU
  bool edge_in_value;                 ///< v_ij = x_l + W_e e
  double dropout = 0;                 ///< probability
  std::uint64_t dropout_key = 0;      ///< of the random numbers
  const T* attention = nullptr;       ///< a, packed
  MatrixView<const T> query = {};     ///< x_r [m×width]
  MatrixView<const T> key = {};       ///< x_l [n×width]
  MatrixView<const T> value = {};     ///< x_l of the values [n×width]
  MatrixView<const T> features = {};  ///< e [edges × edge_dim]
  MatrixView<const T> edge_in = {};   ///< W_eᵀ [edge_dim×width]
  MatrixView<const T> edge_out = {};  ///< W_e [width×edge_dim]

  /// Of one worker.
  struct Scratch {
    Neighbor* neighbors;
    T* logits;                           ///< [most neighbors × lanes]
    T* dots;                             ///< the same, for the backward pass
    MatrixView<T> edges, d_edges;        ///< [neighbors_at_once × group width]
    MatrixView<T> features, d_features;  ///< [neighbors_at_once × edge_dim]
    T* row;                              ///< [width]: what a node gets, or its gradient
    T* heads;                            ///< [heads·channels], head after head

    Scratch(Workspace::Frame& frame, const GatV2Pass& pass, Index most, bool backward) {
      const Index lanes = simd::lanes<T>, e = pass.features.cols(), at_once = pass.with_edges() ? neighbors_at_once : 0;
      neighbors = frame.span<Neighbor>(most).data();
      logits = frame.span<T>(checked_size("GatV2: neighbors", most, lanes)).data();
      dots = frame.span<T>(backward ? most * lanes : 0).data();
      edges = frame.matrix<T>(at_once, pass.layout.group_width());
      features = frame.matrix<T>(at_once, e);
      d_edges = frame.matrix<T>(backward ? at_once : 0, pass.layout.group_width());
      d_features = frame.matrix<T>(backward ? at_once : 0, e);
      row = frame.span<T>(pass.layout.width()).data();
      heads = frame.span<T>(pass.layout.heads * pass.layout.channels).data();
    }
  };

  /// Whether edges have features.
  [[nodiscard]] bool with_edges() const { return edge_in.rows() != 0; }

  /// The edges of target i.
  [[nodiscard]] std::span<const Neighbor> neighbors(Index i, const Scratch& scratch) const {
    return {scratch.neighbors, std::size_t(pairs.neighbors(i, scratch.neighbors))};
  }

  /// scratch.logits [neighbors × lanes] = the logits of target i in a group of heads; returns the largest.
  B write_logits(Index i, Index group, std::span<const Neighbor> all, const Scratch& scratch) const {
    for_chunks(all, [&](std::span<const Neighbor> chunk, Index first) {
      project_edges(chunk, group, scratch);
      logits_of(rows_of(chunk, key, group, scratch), query.row(i).data(), group, scratch.logits + first * width);
    });
    const T* bias = pairs.bias(i);
    B top(-std::numeric_limits<T>::infinity());
    for (Index k = 0; k < Index(all.size()); ++k) {
      B x = add_lanes(simd::load(scratch.logits + k * width), layout.side);
      if (bias != nullptr) x += B(bias[all[std::size_t(k)].row]);
      simd::store(scratch.logits + k * width, x);
      top = simd::max(top, x);
    }
    return top;
  }

  /// scratch.logits: x ← e^(x−μ), μ = `top` = max x.
  GatV2Softmax<T> exponentiate(std::span<const Neighbor> all, B top, const Scratch& scratch) const {
    const B mu = simd::select(top == B(-std::numeric_limits<T>::infinity()), B(T(0)), top);  // no key: weights 0
    B sum(T(0));
    for (Index k = 0; k < Index(all.size()); ++k) {
      T* at = scratch.logits + k * width;
      const B term = softmax_term(simd::load(at), mu);
      sum += term;
      simd::store(at, term);
    }
    return {mu, sum, simd::select(sum == B(T(0)), B(T(0)), B(T(1)) / sum)};
  }

  /// scratch.row = Σ_j α_ij v_ij of target i. Writes (μ, 1/Σ) where they are wanted, [slots] each, and calls
  /// on_softmax(neighbors, group, softmax) while scratch.logits hold the terms, before dropout.
  template <class OnSoftmax>
  void forward_target(Index i, const Scratch& scratch, T* reference, T* inverse_sum, OnSoftmax&& on_softmax) const {
    const std::span<const Neighbor> all = neighbors(i, scratch);
    std::fill_n(scratch.row, layout.width(), T(0));
    for (Index group = 0; group < layout.groups; ++group) {
      const B top = write_logits(i, group, all, scratch);
      const GatV2Softmax<T> softmax = exponentiate(all, top, scratch);
      store_heads(softmax.mu, group, reference);
      store_heads(softmax.inverse, group, inverse_sum);
      on_softmax(all, group, softmax);
      if (dropout > 0) drop(all, group, scratch.logits);
      T* out = scratch.row + group * layout.group_width();
      for_chunks(all, [&](std::span<const Neighbor> chunk, Index first) {
        if (edge_in_value && all.size() > chunk.size()) project_edges(chunk, group, scratch);
        const auto from = rows_of(chunk, value, group, scratch);
        with_flag(with_edges() && edge_in_value, [&](auto edges) {
          for_panels<T>(layout.group_width(), [&](auto vectors, Index column) {
            add_values<vectors(), edges()>(from, column, scratch.logits + first * width, out);
          });
        });
      });
      for (Index c = 0; c < layout.group_width(); c += width)
        simd::store(out + c, simd::load(out + c) * softmax.inverse);
    }
  }

  /// Gradients that a backward pass adds up; packed columns.
  struct Gradients {
    const SavedGatV2<T>& saved;
    std::span<const T> d_log_sum_exp;  ///< [m], or empty
    MatrixView<T> d_query;             ///< [m×width], written; the queries themselves, if no `backward_source` follows
    MatrixView<T> d_key, d_value;      ///< [n×width]: added to; or empty: left to `backward_source`
    MatrixView<T> d_bias;              ///< as in AttentionGradient
    MatrixView<T> d_features;          ///< of edges, added to; or empty
    MatrixView<T> delta;               ///< [m×slots], Σ α dα − d_lse; or empty: not wanted
  };

  /// Adds what target i has to say, given its G [width]: to everything in `to`, to d_attention [width] and d_edge
  /// [edge_dim×width].
  void backward_target(Index i, const T* d_out, const Scratch& scratch, const Gradients& to, T* d_attention,
                       MatrixView<T> d_edge) const {
    const std::span<const Neighbor> all = neighbors(i, scratch);
    std::fill_n(scratch.row, layout.width(), T(0));
    for (Index group = 0; group < layout.groups; ++group) {
      const Index offset = group * layout.group_width();
      (void)write_logits(i, group, all, scratch);
      differentiate_target(i, group, all, d_out + offset, scratch, to);
      for_chunks(all, [&](std::span<const Neighbor> chunk, Index first) {
        if (all.size() > chunk.size()) project_edges(chunk, group, scratch);
        const TargetGradients<T> gradients{query.row(i).data() + offset,
                                           attention + offset,
                                           d_out + offset,
                                           scratch.dots + first * width,
                                           scratch.logits + first * width,
                                           slope,
                                           edge_in_value,
                                           scratch.row + offset,
                                           d_attention + offset,
                                           columns(to.d_key, group),
                                           columns(to.d_value, group),
                                           scratch.d_edges};
        const auto from = rows_of(chunk, key, group, scratch);
        with_flag(with_edges(), [&](auto edges) {
          for_panels<T>(layout.group_width(), [&](auto vectors, Index column) {
            add_target_gradients<vectors(), edges()>(from, column, gradients);
          });
        });
        if (with_edges()) add_edge_gradients(chunk, group, scratch, to.d_features, d_edge);
      });
      T* d_query = to.d_query.row(i).data();
      for (Index c = offset; c < offset + layout.group_width(); c += width)
        simd::store(d_query + c, simd::load(scratch.row + c) * simd::load(attention + c));
    }
  }

  /// d_key.row(j) = what its edges say to source j, in the order of its targets: the same bits as by `backward_target`.
  /// d_out: G of all targets [m×width]. d_key may be the keys.
  void backward_source(Index j, std::span<const Neighbor> targets, MatrixView<const T> d_out, const Scratch& scratch,
                       const Gradients& to, MatrixView<T> d_key) const {
    std::fill_n(scratch.row, layout.width(), T(0));
    for (Index group = 0; group < layout.groups; ++group) {
      const Index offset = group * layout.group_width();
      const T* own = key.row(j).data() + offset;
      for_chunks(targets, [&](std::span<const Neighbor> chunk, Index) {
        project_edges(chunk, group, scratch);
        const auto from = rows_of(chunk, query, group, scratch);
        logits_of(from, own - offset, group, scratch.logits);
        const auto values = rows_of(chunk, d_out, group, scratch);
        with_flag(with_edges() && edge_in_value, [&](auto edges) {
          for_panels<T>(layout.group_width(), [&](auto vectors, Index column) {
            add_dots<vectors(), false, edges()>(values, column, own, scratch.dots);
          });
        });
        for (Index k = 0; k < Index(chunk.size()); ++k) {
          const Index i = chunk[std::size_t(k)].row;
          const B x = add_lanes(simd::load(scratch.logits + k * width), layout.side);
          const B factor = keep_factor(chunk[std::size_t(k)].edge, group);
          const B weight = softmax_term(x, load_heads(to.saved.reference.row(i).data(), group)) *
                           load_heads(to.saved.inverse_sum.row(i).data(), group);
          const B d_weight = kept(add_lanes(simd::load(scratch.dots + k * width), layout.side), factor);
          simd::store(scratch.dots + k * width, weight * (d_weight - load_heads(to.delta.row(i).data(), group)));
          simd::store(scratch.logits + k * width, weight * factor);
        }
        with_flag(with_edges(), [&](auto edges) {
          for_panels<T>(layout.group_width(), [&](auto vectors, Index column) {
            add_source_gradients<vectors(), edges()>(from, column, own, attention + offset, values.rows, scratch.dots,
                                                     scratch.logits, slope, scratch.row + offset);
          });
        });
      });
    }
    std::copy_n(scratch.row, layout.width(), d_key.row(j).data());
  }

 private:
  static constexpr Index width = simd::lanes<T>;

  template <class Body>
  static void for_chunks(std::span<const Neighbor> all, Body&& body) {
    for (std::size_t first = 0; first < all.size(); first += std::size_t(neighbors_at_once))
      body(all.subspan(first, std::min(std::size_t(neighbors_at_once), all.size() - first)), Index(first));
  }

  template <class U>
  [[nodiscard]] MatrixView<U> columns(MatrixView<U> packed, Index group) const {
    if (packed.data() == nullptr) return packed;
    return packed.cols(group * layout.group_width(), layout.group_width());
  }
  [[nodiscard]] NeighborRows<T> rows_of(std::span<const Neighbor> chunk, MatrixView<const T> packed, Index group,
                                        const Scratch& scratch) const {
    return {chunk, columns(packed, group), scratch.edges};
  }

  // scratch.edges = W_e e in the columns of a group, scratch.features = e.
  void project_edges(std::span<const Neighbor> chunk, Index group, const Scratch& scratch) const {
    if (!with_edges()) return;
    const Index count = Index(chunk.size()), e = features.cols();
    for (Index k = 0; k < count; ++k)
      pairs.copy_features(features, chunk[std::size_t(k)].edge, scratch.features.row(k).data());
    simd::detail::product_in_place<T>({scratch.features.data(), e, 1}, columns(edge_in, group),
                                      scratch.edges.rows(0, count), simd::Product::assign);
  }

  // `own` is a whole packed row.
  void logits_of(const NeighborRows<T>& from, const T* own, Index group, T* sums) const {
    const Index offset = group * layout.group_width();
    with_flag(with_edges(), [&](auto edges) {
      for_panels<T>(layout.group_width(), [&](auto vectors, Index column) {
        add_logits<vectors(), edges()>(from, column, own + offset, attention + offset, slope, sums);
      });
    });
  }

  void store_heads(B x, Index group, T* slots) const {
    if (slots != nullptr) simd::store_partial(slots + group * layout.side, layout.side, x);
  }
  [[nodiscard]] B load_heads(const T* slots, Index group) const {
    return add_lanes(simd::load_partial(slots + group * layout.side, layout.side), layout.side);
  }

  // 0 or 1/(1 − p) a head: the splitmix64 generator of this pass, at the place that belongs to the edge and head. So a
  // weight has the same fate from both ends of its edge, in both passes and on every machine.
  [[nodiscard]] B keep_factor(Index edge, Index group) const {
    if (dropout == 0) return B(T(1));
    T factor[width];
    for (Index lane = 0; lane < width; ++lane) {
      const auto place = std::uint64_t(edge * layout.heads + group * layout.side + lane % layout.side);
      const std::uint64_t bits = ruvector::detail::mix_bits(dropout_key + (place + 1) * 0x9e3779b97f4a7c15u);
      factor[lane] = double(bits >> 11) * 0x1p-53 < dropout ? T(0) : T(1 / (1 - dropout));
    }
    return simd::load(factor);
  }
  // x · factor, rounded: a plain product may be fused with a difference that follows in one pass and not in the other.
  [[nodiscard]] static B kept(B x, B factor) { return simd::detail::rounded_product(x, factor); }
  void drop(std::span<const Neighbor> all, Index group, T* weights) const {
    for (std::size_t k = 0; k < all.size(); ++k) {
      T* at = weights + Index(k) * width;
      simd::store(at, simd::load(at) * keep_factor(all[k].edge, group));
    }
  }

  // From logits: scratch.logits = α (with dropout), scratch.dots = dℓ = α (dα − Σ α dα + d_lse), dα = G·v.
  // d_out: G in the columns of the group.
  void differentiate_target(Index i, Index group, std::span<const Neighbor> all, const T* d_out, const Scratch& scratch,
                            const Gradients& to) const {
    for_chunks(all, [&](std::span<const Neighbor> chunk, Index first) {
      if (edge_in_value && all.size() > chunk.size()) project_edges(chunk, group, scratch);
      const auto from = rows_of(chunk, value, group, scratch);
      with_flag(with_edges() && edge_in_value, [&](auto edges) {
        for_panels<T>(layout.group_width(), [&](auto vectors, Index column) {
          add_dots<vectors(), edges(), false>(from, column, d_out, scratch.dots + first * width);
        });
      });
    });
    const B mu = load_heads(to.saved.reference.row(i).data(), group);
    const B inverse = load_heads(to.saved.inverse_sum.row(i).data(), group);
    B delta(T(0));
    for (Index k = 0; k < Index(all.size()); ++k) {
      T *logit = scratch.logits + k * width, *dot = scratch.dots + k * width;
      const B weight = softmax_term(simd::load(logit), mu) * inverse;
      const B d_weight = kept(add_lanes(simd::load(dot), layout.side), keep_factor(all[std::size_t(k)].edge, group));
      delta = simd::fma(weight, d_weight, delta);
      simd::store(logit, weight);
      simd::store(dot, d_weight);
    }
    if (!to.d_log_sum_exp.empty()) delta -= B(to.d_log_sum_exp[std::size_t(i)]);
    if (to.delta.data() != nullptr) store_heads(delta, group, to.delta.row(i).data());
    const simd::Mask<T> heads = simd::first_lanes<T>(layout.heads_of(group));
    for (Index k = 0; k < Index(all.size()); ++k) {
      T *weight = scratch.logits + k * width, *dot = scratch.dots + k * width;
      const B d_logit = simd::load(weight) * (simd::load(dot) - delta);
      simd::store(dot, d_logit);
      if (to.d_bias.data() != nullptr)
        to.d_bias(to.d_bias.rows() == 1 ? 0 : i, all[std::size_t(k)].row) +=
            simd::reduce_add(simd::select(heads, d_logit, B(T(0))));
    }
    if (dropout > 0) drop(all, group, scratch.logits);
  }

  // d_edge [edge_dim×width] += eᵀ d(W_e e);  ē += W_eᵀ d(W_e e)
  void add_edge_gradients(std::span<const Neighbor> chunk, Index group, const Scratch& scratch,
                          MatrixView<T> d_features, MatrixView<T> d_edge) const {
    const Index count = Index(chunk.size()), e = features.cols();
    simd::detail::product_in_place<T>({scratch.features.data(), 1, e}, scratch.d_edges.rows(0, count),
                                      columns(d_edge, group), simd::Product::accumulate);
    if (d_features.data() == nullptr) return;
    const Index offset = group * layout.group_width();
    simd::detail::product_in_place<T>({scratch.d_edges.data(), scratch.d_edges.stride(), 1},
                                      edge_out.rows(offset, layout.group_width()), scratch.d_features.rows(0, count),
                                      simd::Product::assign);
    for (Index k = 0; k < count; ++k)
      pairs.add_feature_gradient(chunk[std::size_t(k)].edge, scratch.d_features.row(k), d_features);
  }
};

}  // namespace detail

}  // namespace ruvector::inline RUVECTOR_ABI::attention
