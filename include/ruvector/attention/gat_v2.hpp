// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/logits.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/graph/csr_graph.hpp"
#include "ruvector/nn/linear.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"
#include "ruvector/simd/math.hpp"
#include "ruvector/simd/transpose.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// What a row of input gives to its row of output beside attention.
enum class Residual {
  none,      ///< nothing
  linear,    ///< a learned projection of the target's features
  identity,  ///< the target's features, which must be as many as the output has columns
};

/// Loops that a graph is given before attention, as PyTorch Geometric does: a node's own loops, if any, are dropped and
/// one that leads from the node to itself is added behind its other edges. A dense input says itself who sees whom.
enum class AddedLoops {
  none,      ///< the graph stays as it is
  mean,      ///< the features of the loop are the mean of those of the node's other edges; 0 where there are none
  constant,  ///< all features of the loop are `loop_feature`
};

/// Shape and options of GatV2. The defaults are those of the paper.
struct GatV2Config {
  Index source_dim = 0;                  ///< columns of keys and values: features of source nodes; ≥ 0
  std::optional<Index> target_dim = {};  ///< columns of queries: features of target nodes; default source_dim
  Index edge_dim = 0;                    ///< features an edge; 0: none
  Index heads = 1;                       ///< H ≥ 1
  Index channels = 0;                    ///< C ≥ 1, columns a head
  bool concat = true;                    ///< output [H·C], head after head; otherwise [C], the mean of the heads
  bool share_weights = false;            ///< Θ_r = Θ_l, b_r = b_l
  bool edge_in_value = false;            ///< the value of an edge is x_l + W_e e, not x_l alone
  bool bias = true;                      ///< b_l and b_r
  bool output_bias = true;               ///< b
  Residual residual = Residual::none;    ///< what is added to the output
  AddedLoops loops = AddedLoops::none;   ///< of a graph
  double loop_feature = 0;               ///< for AddedLoops::constant; finite
  double negative_slope = 0.2;           ///< of LeakyReLU, 0 to 1
  double dropout = 0;                    ///< probability, 0 ≤ p < 1, that a weight is dropped in training
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
    simd::axpy(T(1), d, d_features.row(edge));
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
    if (edge < graph.edges()) return simd::axpy(T(1), d, d_features.row(graph.edge_id(edge)));
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

  HeadLayout<T> layout;                   ///< of all packed rows
  const Pairs& pairs;                     ///< who sees whom
  T slope;                                ///< of LeakyReLU
  bool edge_in_value;                     ///< v_ij = x_l + W_e e
  double dropout = 0;                     ///< probability
  std::uint64_t dropout_key = 0;          ///< of the random numbers
  const T* attention = nullptr;      ///< a, packed
  MatrixView<const T> query = {};    ///< x_r [m×width]
  MatrixView<const T> key = {};      ///< x_l [n×width]
  MatrixView<const T> value = {};    ///< x_l of the values [n×width]
  MatrixView<const T> features = {}; ///< e [edges × edge_dim]
  MatrixView<const T> edge_in = {};  ///< W_eᵀ [edge_dim×width]
  MatrixView<const T> edge_out = {}; ///< W_e [width×edge_dim]

  /// Of one worker.
  struct Scratch {
    Neighbor* neighbors;
    T* logits;                           ///< [most neighbors × lanes]
    T* dots;                             ///< the same, for the backward pass
    MatrixView<T> edges, d_edges;        ///< [neighbors_at_once × group width]
    MatrixView<T> features, d_features;  ///< [neighbors_at_once × edge_dim]
    T* row;                              ///< [width], and the same
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
    MatrixView<const T> d_out;         ///< G [m×width]
    std::span<const T> d_log_sum_exp;  ///< [m], or empty
    MatrixView<T> d_query;             ///< [m×width], written
    MatrixView<T> d_key, d_value;      ///< [n×width]: added to; or empty: left to `backward_source`
    MatrixView<T> d_bias;              ///< as in AttentionGradient
    MatrixView<T> d_features;          ///< of edges, added to; or empty
    MatrixView<T> delta;               ///< [m×slots], Σ α dα − d_lse; or empty: not wanted
  };

  /// Adds what target i has to say: to everything in `to`, to d_attention [width] and d_edge [edge_dim×width].
  void backward_target(Index i, const Scratch& scratch, const Gradients& to, T* d_attention,
                       MatrixView<T> d_edge) const {
    const std::span<const Neighbor> all = neighbors(i, scratch);
    std::ranges::fill(to.d_query.row(i), T(0));
    for (Index group = 0; group < layout.groups; ++group) {
      const Index offset = group * layout.group_width();
      (void)write_logits(i, group, all, scratch);
      differentiate_target(i, group, all, scratch, to);
      for_chunks(all, [&](std::span<const Neighbor> chunk, Index first) {
        if (all.size() > chunk.size()) project_edges(chunk, group, scratch);
        const TargetGradients<T> gradients{query.row(i).data() + offset,
                                           attention + offset,
                                           to.d_out.row(i).data() + offset,
                                           scratch.dots + first * width,
                                           scratch.logits + first * width,
                                           slope,
                                           edge_in_value,
                                           to.d_query.row(i).data() + offset,
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
      T* d_query = to.d_query.row(i).data() + offset;
      for (Index c = 0; c < layout.group_width(); c += width)
        simd::store(d_query + c, simd::load(d_query + c) * simd::load(attention + offset + c));
    }
  }

  /// d_key.row(j) = what its edges say to source j, in the order of its targets: the same bits as by `backward_target`.
  void backward_source(Index j, std::span<const Neighbor> targets, const Scratch& scratch, const Gradients& to,
                       MatrixView<T> d_key) const {
    std::ranges::fill(d_key.row(j), T(0));
    for (Index group = 0; group < layout.groups; ++group) {
      const Index offset = group * layout.group_width();
      const T* own = key.row(j).data() + offset;
      for_chunks(targets, [&](std::span<const Neighbor> chunk, Index) {
        project_edges(chunk, group, scratch);
        const auto from = rows_of(chunk, query, group, scratch);
        logits_of(from, own - offset, group, scratch.logits);
        const auto d_out = rows_of(chunk, to.d_out, group, scratch);
        with_flag(with_edges() && edge_in_value, [&](auto edges) {
          for_panels<T>(layout.group_width(), [&](auto vectors, Index column) {
            add_dots<vectors(), false, edges()>(d_out, column, own, scratch.dots);
          });
        });
        for (Index k = 0; k < Index(chunk.size()); ++k) {
          const Index i = chunk[std::size_t(k)].row;
          const B x = add_lanes(simd::load(scratch.logits + k * width), layout.side);
          const B factor = keep_factor(chunk[std::size_t(k)].edge, group);
          const B weight = softmax_term(x, load_heads(to.saved.reference.row(i).data(), group)) *
                           load_heads(to.saved.inverse_sum.row(i).data(), group);
          const B d_weight = add_lanes(simd::load(scratch.dots + k * width), layout.side) * factor;
          simd::store(scratch.dots + k * width, weight * (d_weight - load_heads(to.delta.row(i).data(), group)));
          simd::store(scratch.logits + k * width, weight * factor);
        }
        with_flag(with_edges(), [&](auto edges) {
          for_panels<T>(layout.group_width(), [&](auto vectors, Index column) {
            add_source_gradients<vectors(), edges()>(from, column, own, attention + offset, d_out.rows, scratch.dots,
                                                     scratch.logits, slope, d_key.row(j).data() + offset);
          });
        });
      });
    }
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

  // 0 or 1/(1 − p) a head: the splitmix64 generator of this pass, at the place that belongs to the edge and head.
  [[nodiscard]] B keep_factor(Index edge, Index group) const {
    if (dropout == 0) return B(T(1));
    T factor[width];
    for (Index lane = 0; lane < width; ++lane) {
      const auto place = std::uint64_t(edge * layout.slots() + group * layout.side + lane % layout.side);
      const std::uint64_t bits = ruvector::detail::mix_bits(dropout_key + (place + 1) * 0x9e3779b97f4a7c15u);
      factor[lane] = double(bits >> 11) * 0x1p-53 < dropout ? T(0) : T(1 / (1 - dropout));
    }
    return simd::load(factor);
  }
  void drop(std::span<const Neighbor> all, Index group, T* weights) const {
    for (std::size_t k = 0; k < all.size(); ++k) {
      T* at = weights + Index(k) * width;
      simd::store(at, simd::load(at) * keep_factor(all[k].edge, group));
    }
  }

  // From logits: scratch.logits = α (with dropout), scratch.dots = dℓ = α (dα − Σ α dα + d_lse), dα = G·v.
  void differentiate_target(Index i, Index group, std::span<const Neighbor> all, const Scratch& scratch,
                            const Gradients& to) const {
    const T* d_out = to.d_out.row(i).data() + group * layout.group_width();
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
      const B d_weight = add_lanes(simd::load(dot), layout.side) * keep_factor(all[std::size_t(k)].edge, group);
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

/// Graph attention with dynamic keys: target i, sources or keys j that it sees, H heads of C channels.
///
///     x_l = Θ_l x_source + b_l,   x_r = Θ_r x_target + b_r            (Θ_r = Θ_l, b_r = b_l with share_weights)
///     z_ij = x_r[i] + x_l[j] + W_e e_ij                               (the last with edge_dim > 0)
///     ℓ_ij = a_h · LeakyReLU(z_ij),   α_i = softmax_j(ℓ_ij + bias_ij)
///     out_i = Σ_j α_ij x_l[j] + residual_i + b                        (heads side by side, or their mean)
///
/// The nonlinearity stands before the product with a, so that the ranking of the keys depends on the query; in GAT's
/// LeakyReLU(a · [x_r | x_l]) it does not. Source: Brody, Alon & Yahav 2022, eq. 7, in the convention of PyTorch
/// Geometric's GATv2Conv, whose tensors are
///
///     source.weight lin_l.weight   source.bias lin_l.bias   target.weight lin_r.weight   target.bias lin_r.bias
///     attention [H×C] att [1,H,C]  edge.weight lin_edge.weight   residual.weight res.weight   bias bias
///
/// Two forms. *Dense*: an AttentionInput, whose rows of `query` are targets and rows of `key` sources. The mean is over
/// x_l of the rows of `value`, as wide as the keys: give the keys again for GATv2 as published (they are then projected
/// once). *Graph*: the nodes of a CsrView, each projected once, on any executor. Both need memory for the projections,
/// (m + n) H C numbers and twice that for gradients, and for one row of logits a worker, never for edges × H × C.
///
/// A target without edges, or whose keys are all hidden, gets residual + b alone, and sends no gradient but to them.
/// Sums over edges are chains in the order of the edges; every result has the same bits for any number of workers.
template <Real T>
class GatV2 {
 public:
  using Scalar = T;                     ///< what it computes in
  using Saved = detail::SavedGatV2<T>;  ///< kept from forward to backward; `saved.rng` draws the dropout, so seed it

  nn::Linear<T> source;    ///< Θ_l [H·C × source_dim], b_l
  nn::Linear<T> target;    ///< Θ_r [H·C × target_dim], b_r; empty with share_weights
  nn::Linear<T> edge;      ///< W_e [H·C × edge_dim], or empty
  Matrix<T> attention;     ///< a [H×C]
  nn::Linear<T> residual;  ///< [output × target_dim], or empty
  Vector<T> bias;          ///< b [output], or empty

  /// Nothing, to be assigned.
  GatV2() = default;
  /// Weights start as Glorot 2010 proposes (uniform), biases at 0. Throws ConfigError for options outside their range.
  explicit GatV2(const GatV2Config& config, Rng& rng) : config_(checked(config)) {
    const Index columns = config_.heads * config_.channels;
    const auto linear = [&](Index input, Index output, bool with_bias) {
      return nn::Linear<T>(
          {.input = input, .output = output, .bias = with_bias, .initializer = nn::Initializer::xavier_uniform}, rng);
    };
    source = linear(config_.source_dim, columns, config_.bias);
    if (!config_.share_weights) target = linear(target_dim(), columns, config_.bias);
    if (config_.edge_dim > 0) edge = linear(config_.edge_dim, columns, false);
    attention = Matrix<T>(config_.heads, config_.channels);
    nn::initialize<T>(nn::Initializer::xavier_uniform, attention, {}, rng);
    if (config_.residual == Residual::linear) residual = linear(target_dim(), output_columns(), false);
    if (config_.output_bias) bias = Vector<T>(output_columns());
  }

  /// Names all weights, also those that are empty.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("source", self.source...);
    visit("target", self.target...);
    visit("edge", self.edge...);
    visit("attention", self.attention...);
    visit("residual", self.residual...);
    visit("bias", self.bias...);
  }

  /// The options.
  [[nodiscard]] const GatV2Config& config() const { return config_; }

  /// Columns of the output for values, or source features, of this width; ShapeError for others than source_dim.
  [[nodiscard]] Index output_dim(Index value_dim) const {
    check_shape("GatV2: columns of value", config_.source_dim, value_dim);
    return output_columns();
  }

  /// Dense form. Writes what is wanted of `out`: weights are the mean of those of the heads, without dropout;
  /// log_sum_exp needs heads = 1, otherwise ConfigError. ConfigError, too, without edges where edge_dim > 0. Throws
  /// ShapeError, ConfigError before anything is written. O(m n H C (1 + edge_dim) + (m + n) H C d).
  ///@{
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Workspace& ws) const {
    check_no_edges();
    run_dense(in, {}, out, nullptr, ws);
  }
  void forward(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, const AttentionOutput<T>& out,
               Workspace& ws) const {
    run_dense(in, edges, out, nullptr, ws);
  }
  ///@}

  /// The same in training: with dropout, and `saved` for backward, two numbers a row and head.
  ///@{
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Saved& saved, Workspace& ws) const {
    check_no_edges();
    run_dense(in, {}, out, &saved, ws);
  }
  void forward(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, const AttentionOutput<T>& out, Saved& saved,
               Workspace& ws) const {
    run_dense(in, edges, out, &saved, ws);
  }
  ///@}

  /// Adds the gradients by query, key, value and bias to `d_in`, by the edges to `d_edges`, by the weights to `grad`.
  /// Throws ShapeError, ConfigError before anything is added. Three times the cost of forward.
  ///@{
  void backward(const AttentionInput<T>& in, const Saved& saved, const AttentionOutputGradient<T>& d_out,
                const AttentionGradient<T>& d_in, GatV2& grad, Workspace& ws) const {
    check_no_edges();
    backward_dense(in, {}, saved, d_out, d_in, {}, grad, ws);
  }
  void backward(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, const Saved& saved,
                const AttentionOutputGradient<T>& d_out, const AttentionGradient<T>& d_in,
                const typename EdgeFeatures<T>::Gradient& d_edges, GatV2& grad, Workspace& ws) const {
    backward_dense(in, edges, saved, d_out, d_in, d_edges, grad, ws);
  }
  ///@}

  /// scores [m×n] such that softmax(scores) are the weights: the logits of one head, or of several
  /// log((1/H) Σ_h α_h), a mixture's; −∞ where masked. Throws ShapeError, ConfigError.
  ///@{
  void scores(const AttentionInput<T>& in, MatrixView<T> scores, Workspace& ws) const {
    check_no_edges();
    this->scores(in, EdgeFeatures<T>{}, scores, ws);
  }
  void scores(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, MatrixView<T> scores, Workspace& ws) const {
    check_dense(in, edges);
    detail::check_size("GatV2: scores", scores, in.query.rows(), in.key.rows());
    auto frame = ws.frame();
    const detail::DensePairs<T> pairs{in};
    Packed<detail::DensePairs<T>> packed(*this, pairs, edges, frame);
    Serial serial;
    project_ends(Ends{in.key, in.value, in.query, {}, {}, {}}, packed, frame, ws, serial);
    const Scratch<detail::DensePairs<T>> scratch(frame, packed.pass, pairs.most_neighbors(), false);
    const auto log_weights = frame.template matrix<T>(config_.heads == 1 ? 0 : in.key.rows(), config_.heads);
    for (Index i = 0; i < in.query.rows(); ++i) write_scores(i, packed.pass, scratch, log_weights, scores.row(i));
  }
  ///@}

  /// Graph form: out [nodes × output] from x_source [nodes × source_dim] and x_target [nodes × target_dim], which may
  /// be the same matrix, and edges [graph.edges() × edge_dim], rows by edge id, or none. Messages flow to a node from
  /// the targets of its edges (CsrView). Throws ShapeError before anything is written.
  /// O(nodes H C d + edges H C (1 + edge_dim)).
  template <graph::NodeId I, Executor E = Serial>
  void forward(graph::CsrView<I> graph, MatrixView<const T> x_source, MatrixView<const T> x_target,
               const EdgeFeatures<T>& edges, MatrixView<T> out, Workspace& ws, E&& executor = Serial{}) const {
    run_graph(graph, x_source, x_target, edges, out, nullptr, ws, executor);
  }

  /// The same in training: with dropout, and `saved` for backward, two numbers a node and head.
  template <graph::NodeId I, Executor E = Serial>
  void forward(graph::CsrView<I> graph, MatrixView<const T> x_source, MatrixView<const T> x_target,
               const EdgeFeatures<T>& edges, MatrixView<T> out, Saved& saved, Workspace& ws,
               E&& executor = Serial{}) const {
    run_graph(graph, x_source, x_target, edges, out, &saved, ws, executor);
  }

  /// Given d_out [nodes × output], adds the gradients by the features of nodes and edges (empty: not wanted; d_source
  /// and d_target may be the same matrix) and by the weights. Several workers go over the edges twice, to the targets
  /// and to the sources, one goes once; if edges share rows of features whose gradient is wanted, one works. Throws
  /// ShapeError before anything is added.
  template <graph::NodeId I, Executor E = Serial>
  void backward(graph::CsrView<I> graph, MatrixView<const T> x_source, MatrixView<const T> x_target,
                const EdgeFeatures<T>& edges, const Saved& saved, MatrixView<const T> d_out, MatrixView<T> d_source,
                MatrixView<T> d_target, const typename EdgeFeatures<T>::Gradient& d_edges, GatV2& grad, Workspace& ws,
                E&& executor = Serial{}) const {
    check_graph(graph, x_source, x_target, edges);
    nn::detail::check_matrix("GatV2: gradient of the output", graph.nodes(), output_columns(), d_out);
    nn::detail::check_wanted("GatV2: gradient of x_source", graph.nodes(), config_.source_dim, d_source);
    nn::detail::check_wanted("GatV2: gradient of x_target", graph.nodes(), target_dim(), d_target);
    nn::detail::check_wanted("GatV2: gradient of edges", graph.edges(), config_.edge_dim, d_edges.features);
    const Pairs<I> pairs = pairs_of(graph);
    const auto call = [&](auto&& runner) {
      const Ends ends{x_source, x_source, x_target, d_source, {}, d_target};
      backward_pairs(pairs, ends, edges, saved, AttentionOutputGradient<T>{d_out}, {}, d_edges.features, grad, ws,
                     runner);
    };
    if (executor.concurrency() == 1 || (!d_edges.features.empty() && shares_features(graph, ws)))
      call(Serial{});
    else
      call(executor);
  }

 private:
  template <graph::NodeId I>
  using Pairs = detail::GraphPairs<T, I>;
  template <class P>
  using Scratch = typename detail::GatV2Pass<T, P>::Scratch;

  GatV2Config config_;

  static GatV2Config checked(const GatV2Config& config) {
    const auto at_least = [](std::string_view what, Index least, Index value) {
      if (value < least)
        throw_config_error(std::string("GatV2: ") + std::string(what), ">= " + std::to_string(least), double(value));
    };
    at_least("source_dim", 0, config.source_dim);
    at_least("target_dim", 0, config.target_dim.value_or(0));
    at_least("edge_dim", 0, config.edge_dim);
    at_least("heads", 1, config.heads);
    at_least("channels", 1, config.channels);
    const Index columns = checked_size("GatV2: heads x channels", config.heads, config.channels, Index(sizeof(T)));
    const Index output = config.concat ? columns : config.channels;
    const Index target_dim = config.target_dim.value_or(config.source_dim);
    if (config.share_weights && target_dim != config.source_dim)
      throw_config_error("GatV2: target_dim with share_weights", std::to_string(config.source_dim), double(target_dim));
    if (config.residual == Residual::identity && target_dim != output)
      throw_config_error("GatV2: target_dim with Residual::identity", std::to_string(output), double(target_dim));
    if (config.edge_in_value && config.edge_dim == 0)
      throw_config_error("GatV2: edge_dim with edge_in_value", ">= 1", 0);
    if (!std::isfinite(config.loop_feature)) throw_config_error("GatV2: loop_feature", "finite", config.loop_feature);
    if (!(config.negative_slope >= 0 && config.negative_slope <= 1))
      throw_config_error("GatV2: negative_slope", "0 to 1", config.negative_slope);
    if (!(config.dropout >= 0 && config.dropout < 1))
      throw_config_error("GatV2: dropout", ">= 0 and < 1", config.dropout);
    return config;
  }

  [[nodiscard]] Index target_dim() const { return config_.target_dim.value_or(config_.source_dim); }
  [[nodiscard]] Index output_columns() const {
    return config_.concat ? config_.heads * config_.channels : config_.channels;
  }

  // --- Front door. ---

  void check_no_edges() const {
    if (config_.edge_dim != 0)
      throw_config_error("GatV2: edge_dim of an input without edges", "0", double(config_.edge_dim));
  }
  void check_weights() const {
    const Index columns = config_.heads * config_.channels;
    const auto check = [](std::string_view what, const nn::Linear<T>& linear, Index rows, Index cols, Index with_bias) {
      nn::detail::check_matrix(what, rows, cols, linear.weight.view());
      check_shape(what, with_bias, linear.bias.size());
    };
    const Index biases = config_.bias ? columns : 0;
    check("GatV2: source", source, columns, config_.source_dim, biases);
    if (!config_.share_weights) check("GatV2: target", target, columns, target_dim(), biases);
    if (config_.edge_dim > 0) check("GatV2: edge", edge, columns, config_.edge_dim, 0);
    if (config_.residual == Residual::linear) check("GatV2: residual", residual, output_columns(), target_dim(), 0);
    nn::detail::check_matrix("GatV2: attention", config_.heads, config_.channels, attention.view());
    check_shape("GatV2: bias", config_.output_bias ? output_columns() : 0, bias.size());
  }
  void check_edges(const EdgeFeatures<T>& edges, Index rows) const {
    check_shape("GatV2: columns of edges", config_.edge_dim, edges.features.cols());
    if (config_.edge_dim > 0) check_shape("GatV2: rows of edges", rows, edges.features.rows());
  }
  void check_dense(const AttentionInput<T>& in, const EdgeFeatures<T>& edges) const {
    check_weights();
    check_input(in);
    check_shape("GatV2: columns of query", target_dim(), in.query.cols());
    check_shape("GatV2: columns of key", config_.source_dim, in.key.cols());
    check_shape("GatV2: columns of value", config_.source_dim, in.value.cols());
    check_edges(edges, checked_size("GatV2: edges", in.query.rows(), in.key.rows()));
  }
  void check_one_head(std::string_view what, bool wanted) const {
    if (wanted && config_.heads != 1) throw_config_error(what, "1", double(config_.heads));
  }
  template <graph::NodeId I>
  void check_graph(graph::CsrView<I> graph, MatrixView<const T> x_source, MatrixView<const T> x_target,
                   const EdgeFeatures<T>& edges) const {
    check_weights();
    nn::detail::check_matrix("GatV2: x_source", graph.nodes(), config_.source_dim, x_source);
    nn::detail::check_matrix("GatV2: x_target", graph.nodes(), target_dim(), x_target);
    check_edges(edges, graph.edges());
  }
  static void check_saved(const Saved& saved, Index rows, Index slots) {
    nn::detail::check_matrix("GatV2: saved", rows, slots, saved.reference.view());
    nn::detail::check_matrix("GatV2: saved", rows, slots, saved.inverse_sum.view());
  }

  template <graph::NodeId I>
  [[nodiscard]] Pairs<I> pairs_of(graph::CsrView<I> graph) const {
    return {graph, config_.loops, T(config_.loop_feature)};
  }

  template <graph::NodeId I>
  [[nodiscard]] static bool shares_features(graph::CsrView<I> graph, Workspace& ws) {
    auto frame = ws.frame();
    const auto seen = frame.template span<bool>(graph.edge_ids().empty() ? 0 : graph.edges());
    std::ranges::fill(seen, false);
    return std::ranges::any_of(graph.edge_ids(), [&](Index id) { return std::exchange(seen[std::size_t(id)], true); });
  }

  // --- Projections. ---

  // The weights in packed columns; what a pass needs apart from the projections.
  template <class P>
  struct Packed {
    detail::GatV2Pass<T, P> pass;
    MatrixView<T> source, target;                 // [width × source_dim], [width × target_dim]
    std::span<const T> source_bias, target_bias;  // [width] or empty

    Packed(const GatV2& model, const P& pairs, const EdgeFeatures<T>& edges, Workspace::Frame& frame)
        : pass{.layout{model.config_.heads, model.config_.channels},
               .pairs = pairs,
               .slope = T(model.config_.negative_slope),
               .edge_in_value = model.config_.edge_in_value} {
      const Index width = pass.layout.width();
      const auto pack = [&](const T* row) {
        const std::span<T> packed = frame.span<T>(width);
        pass.layout.pack(row, packed.data());
        return packed;
      };
      pass.attention = pack(model.attention.data()).data();
      source = pack_rows(model.source.weight, frame);
      if (!model.source.bias.empty()) source_bias = pack(model.source.bias.data());
      target = source;
      target_bias = source_bias;
      if (!model.config_.share_weights) {
        target = pack_rows(model.target.weight, frame);
        if (!model.target.bias.empty()) target_bias = pack(model.target.bias.data());
      }
      if (model.config_.edge_dim == 0) return;
      pass.features = edges.features;
      pass.edge_out = pack_rows(model.edge.weight, frame);
      const auto transposed = frame.matrix<T>(model.config_.edge_dim, width);
      simd::transpose<T>(pass.edge_out, transposed);
      pass.edge_in = transposed;
    }

   private:
    MatrixView<T> pack_rows(MatrixView<const T> rows, Workspace::Frame& frame) const {
      const detail::HeadLayout<T>& layout = pass.layout;
      const auto packed = frame.matrix<T>(layout.width(), rows.cols());
      for (Index r = 0; r < packed.rows(); ++r) std::ranges::fill(packed.row(r), T(0));
      for (Index h = 0; h < layout.heads; ++h)
        for (Index c = 0; c < layout.channels; ++c)
          std::ranges::copy(rows.row(h * layout.channels + c), packed.row(layout.position(h, c)).begin());
      return packed;
    }
  };

  // x Wᵀ + b in packed columns.
  template <Executor E>
  [[nodiscard]] static MatrixView<T> project(MatrixView<const T> x, MatrixView<const T> weight, std::span<const T> bias,
                                             Workspace::Frame& frame, Workspace& ws, E& executor) {
    const auto y = frame.matrix<T>(x.rows(), weight.rows());
    nn::for_row_ranges(
        x.rows(), ws,
        [&](Index first, Index count, Workspace& own) {
          for (Index i = first; i < first + count && !bias.empty(); ++i) std::ranges::copy(bias, y.row(i).begin());
          simd::gemm_transposed<T>(x.rows(first, count), weight, y.rows(first, count), own,
                                   bias.empty() ? simd::Product::assign : simd::Product::accumulate);
        },
        executor);
    return y;
  }

  // Rows of sources, values and targets, and where their gradients go.
  struct Ends {
    MatrixView<const T> key, value, query;
    MatrixView<T> d_key, d_value, d_query;
  };

  [[nodiscard]] static bool same(MatrixView<const T> a, MatrixView<const T> b) {
    return a.data() == b.data() && a.rows() == b.rows() && a.cols() == b.cols() && a.stride() == b.stride();
  }

  template <class P, Executor E>
  void project_ends(const Ends& ends, Packed<P>& packed, Workspace::Frame& frame, Workspace& ws, E& executor) const {
    auto& pass = packed.pass;
    pass.key = project(ends.key, packed.source, packed.source_bias, frame, ws, executor);
    pass.value = same(ends.key, ends.value)
                     ? pass.key
                     : project(ends.value, packed.source, packed.source_bias, frame, ws, executor);
    pass.query = config_.share_weights && same(ends.key, ends.query)
                     ? pass.key
                     : project(ends.query, packed.target, packed.target_bias, frame, ws, executor);
  }

  // --- Forward. ---

  void start_saving(Saved* saved, Index rows, Index slots) const {
    if (saved == nullptr) return;
    if (saved->reference.rows() != rows || saved->reference.cols() != slots) {
      saved->reference = Matrix<T>(rows, slots);
      saved->inverse_sum = Matrix<T>(rows, slots);
    }
    if (config_.dropout > 0) saved->dropout_key = saved->rng.bits();
  }

  void run_dense(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, const AttentionOutput<T>& out, Saved* saved,
                 Workspace& ws) const {
    check_dense(in, edges);
    check_output(in, out, output_columns());
    check_one_head("GatV2: heads for log_sum_exp", !out.log_sum_exp.empty());
    run(detail::DensePairs<T>{in}, Ends{in.key, in.value, in.query, {}, {}, {}}, edges, out, saved, ws, Serial{});
  }

  template <graph::NodeId I, Executor E>
  void run_graph(graph::CsrView<I> graph, MatrixView<const T> x_source, MatrixView<const T> x_target,
                 const EdgeFeatures<T>& edges, MatrixView<T> out, Saved* saved, Workspace& ws, E& executor) const {
    check_graph(graph, x_source, x_target, edges);
    nn::detail::check_matrix("GatV2: output", graph.nodes(), output_columns(), out);
    run(pairs_of(graph), Ends{x_source, x_source, x_target, {}, {}, {}}, edges, AttentionOutput<T>{out}, saved, ws,
        executor);
  }

  template <class P, Executor E>
  void run(const P& pairs, const Ends& ends, const EdgeFeatures<T>& edges, const AttentionOutput<T>& out, Saved* saved,
           Workspace& ws, E&& executor) const {
    auto frame = ws.frame();
    Packed<P> packed(*this, pairs, edges, frame);
    project_ends(ends, packed, frame, ws, executor);
    auto& pass = packed.pass;
    start_saving(saved, pairs.targets(), pass.layout.slots());
    if (saved != nullptr) pass.dropout = config_.dropout, pass.dropout_key = saved->dropout_key;
    const Index most = pairs.most_neighbors();
    nn::for_row_ranges(
        pairs.targets(), ws,
        [&](Index first, Index count, Workspace& own) {
          auto scope = own.frame();
          const Scratch<P> scratch(scope, pass, most, false);
          if (out.value.data() != nullptr)
            start_output(ends.query.rows(first, count), out.value.rows(first, count), own);
          for (Index i = first; i < first + count; ++i) {
            T* reference = saved == nullptr ? nullptr : saved->reference.row(i).data();
            T* inverse_sum = saved == nullptr ? nullptr : saved->inverse_sum.row(i).data();
            forward_row(i, pass, scratch, out, reference, inverse_sum);
          }
        },
        executor);
  }

  // out = residual + b, or 0.
  void start_output(MatrixView<const T> x, MatrixView<T> out, Workspace& ws) const {
    for (Index i = 0; i < out.rows(); ++i) {
      if (bias.empty())
        std::ranges::fill(out.row(i), T(0));
      else
        std::ranges::copy(bias, out.row(i).begin());
      if (config_.residual == Residual::identity) simd::axpy(T(1), x.row(i), out.row(i));
    }
    if (config_.residual == Residual::linear)
      simd::gemm_transposed<T>(x, residual.weight, out, ws, simd::Product::accumulate);
  }

  template <class P>
  void forward_row(Index i, const detail::GatV2Pass<T, P>& pass, const Scratch<P>& scratch,
                   const AttentionOutput<T>& out, T* reference, T* inverse_sum) const {
    if (out.weights.data() != nullptr) std::ranges::fill(out.weights.row(i), T(0));
    pass.forward_target(i, scratch, reference, inverse_sum,
                        [&](std::span<const detail::Neighbor> all, Index group, const Softmax& softmax) {
                          const Lanes mu(softmax.mu), sum(softmax.sum), inverse(softmax.inverse);
                          if (!out.log_sum_exp.empty()) out.log_sum_exp[std::size_t(i)] = log_sum_exp(mu[0], sum[0]);
                          if (out.weights.data() == nullptr) return;
                          for (std::size_t k = 0; k < all.size(); ++k)
                            for (Index h = 0; h < pass.layout.heads_of(group); ++h)
                              out.weights(i, all[k].row) +=
                                  scratch.logits[Index(k) * simd::lanes<T> + h] * inverse[h] / T(config_.heads);
                        });
    if (out.value.data() == nullptr) return;
    pass.layout.unpack(scratch.row, scratch.heads);
    const Index c = config_.channels;
    if (config_.concat) return simd::axpy(T(1), scratch.heads, out.value.row(i).data(), config_.heads * c);
    for (Index h = 0; h < config_.heads; ++h)
      simd::axpy(T(1) / T(config_.heads), scratch.heads + h * c, out.value.row(i).data(), c);
  }

  using Softmax = detail::GatV2Softmax<T>;

  // A register as numbers.
  struct Lanes {
    std::array<T, std::size_t(simd::lanes<T>)> value;
    explicit Lanes(simd::Batch<T> x) { simd::store(value.data(), x); }
    [[nodiscard]] T operator[](Index lane) const { return value[std::size_t(lane)]; }
  };

  [[nodiscard]] static T log_sum_exp(T mu, T sum) {
    return sum == 0 ? -std::numeric_limits<T>::infinity() : mu + std::log(sum);
  }

  // --- Scores. ---

  template <class P>
  void write_scores(Index i, const detail::GatV2Pass<T, P>& pass, const Scratch<P>& scratch, MatrixView<T> log_weights,
                    std::span<T> scores) const {
    std::ranges::fill(scores, -std::numeric_limits<T>::infinity());
    const auto all = pass.neighbors(i, scratch);
    for (Index group = 0; group < pass.layout.groups; ++group) {
      const auto top = pass.write_logits(i, group, all, scratch);
      if (config_.heads == 1) {
        for (std::size_t k = 0; k < all.size(); ++k)
          scores[std::size_t(all[k].row)] = scratch.logits[Index(k) * simd::lanes<T>];
        return;
      }
      for (std::size_t k = 0; k < all.size(); ++k)
        std::copy_n(scratch.logits + Index(k) * simd::lanes<T>, pass.layout.heads_of(group),
                    log_weights.row(Index(k)).data() + group * pass.layout.side);
      const Softmax softmax = pass.exponentiate(all, top, scratch);
      const Lanes mu(softmax.mu), sum(softmax.sum);
      for (Index h = 0; h < pass.layout.heads_of(group); ++h)
        for (std::size_t k = 0; k < all.size(); ++k) {
          T& x = log_weights(Index(k), group * pass.layout.side + h);
          const bool direct = std::isfinite(mu[h]) && sum[h] > 0;  // otherwise ∞ − ∞
          x = direct ? x - log_sum_exp(mu[h], sum[h])
                     : std::log(scratch.logits[Index(k) * simd::lanes<T> + h] / std::max(sum[h], T(1)));
        }
    }
    for (std::size_t k = 0; k < all.size(); ++k)
      scores[std::size_t(all[k].row)] = log_mean_exp(log_weights.row(Index(k)));
  }

  [[nodiscard]] static T log_mean_exp(std::span<const T> x) {
    const T top = *std::ranges::max_element(x);
    if (top == -std::numeric_limits<T>::infinity()) return top;
    T sum = 0;
    for (const T value : x) sum += std::exp(value - top);
    return top + std::log(sum / T(x.size()));
  }

  // --- Backward. ---

  void backward_dense(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, const Saved& saved,
                      const AttentionOutputGradient<T>& d_out, const AttentionGradient<T>& d_in,
                      const typename EdgeFeatures<T>::Gradient& d_edges, GatV2& grad, Workspace& ws) const {
    check_dense(in, edges);
    check_gradient(in, d_out, d_in, output_columns());
    check_one_head("GatV2: heads for a gradient of log_sum_exp", !d_out.log_sum_exp.empty());
    if (d_edges.features.data() != nullptr)
      nn::detail::check_matrix("GatV2: gradient of edges", edges.features.rows(), config_.edge_dim, d_edges.features);
    const Ends ends{in.key, in.value, in.query, d_in.key, d_in.value, d_in.query};
    backward_pairs(detail::DensePairs<T>{in}, ends, edges, saved, d_out, d_in.bias, d_edges.features, grad, ws,
                   Serial{});
  }

  template <class P>
  using Gradients = typename detail::GatV2Pass<T, P>::Gradients;

  template <class P, Executor E>
  void backward_pairs(const P& pairs, const Ends& ends, const EdgeFeatures<T>& edges, const Saved& saved,
                      const AttentionOutputGradient<T>& d_out, MatrixView<T> d_bias, MatrixView<T> d_features,
                      GatV2& grad, Workspace& ws, E&& executor) const {
    check_same_parameters(*this, std::as_const(grad));
    auto frame = ws.frame();
    Packed<P> packed(*this, pairs, edges, frame);
    auto& pass = packed.pass;
    const Index m = pairs.targets(), n = pairs.sources(), width = pass.layout.width();
    check_saved(saved, m, pass.layout.slots());
    project_ends(ends, packed, frame, ws, executor);
    pass.dropout = config_.dropout;
    pass.dropout_key = saved.dropout_key;

    const bool scatter = executor.concurrency() == 1;
    const MatrixView<T> d_query = frame.matrix<T>(m, width), d_key = frame.matrix<T>(n, width);
    const MatrixView<T> d_value = P::keys_are_values ? d_key : frame.matrix<T>(n, width);
    const MatrixView<T> g = frame.matrix<T>(m, width);
    pack_heads(d_out.value, pass.layout, g, frame);
    const Gradients<P> to{saved,
                          g,
                          d_out.log_sum_exp,
                          d_query,
                          scatter ? d_key : MatrixView<T>(),
                          scatter ? d_value : MatrixView<T>(),
                          d_bias,
                          d_features,
                          scatter ? MatrixView<T>() : frame.matrix<T>(m, pass.layout.slots())};
    if (scatter) {
      std::fill_n(d_key.data(), d_key.size(), T(0));
      std::fill_n(d_value.data(), d_value.size(), T(0));
    }
    add_targets(pass, to, grad, ws, executor);
    if constexpr (P::keys_are_values)
      if (!scatter) add_sources(pass, to, d_key, ws, executor);

    add_projection(ends.key, d_key, packed.source, ends.d_key, pass.layout, grad.source, ws, executor);
    if (!P::keys_are_values)
      add_projection(ends.value, d_value, packed.source, ends.d_value, pass.layout, grad.source, ws, executor);
    add_projection(ends.query, d_query, packed.target, ends.d_query, pass.layout,
                   config_.share_weights ? grad.source : grad.target, ws, executor);
    add_residual(ends.query, d_out.value, ends.d_query, grad, ws, executor);
  }

  // G: the gradient of the output, a share for each head, in packed columns.
  void pack_heads(MatrixView<const T> d_out, const detail::HeadLayout<T>& layout, MatrixView<T> g,
                  Workspace::Frame& frame) const {
    const Index c = config_.channels;
    const std::span<T> heads = frame.span<T>(config_.concat ? 0 : config_.heads * c);
    for (Index i = 0; i < d_out.rows(); ++i) {
      const T* row = d_out.row(i).data();
      if (!config_.concat) {
        for (Index h = 0; h < config_.heads; ++h)
          for (Index k = 0; k < c; ++k) heads[std::size_t(h * c + k)] = row[k] / T(config_.heads);
        row = heads.data();
      }
      layout.pack(row, g.row(i).data());
    }
  }

  // Everything but the gradients of sources, target by target; adds those of a and W_e.
  template <class P, Executor E>
  void add_targets(const detail::GatV2Pass<T, P>& pass, const Gradients<P>& to, GatV2& grad, Workspace& ws,
                   E& executor) const {
    auto frame = ws.frame();
    const Index width = pass.layout.width(), e = config_.edge_dim, most = pass.pairs.most_neighbors();
    const std::array sums{frame.span<T>(width), frame.span<T>(checked_size("GatV2: edge gradient", e, width))};
    for (const std::span<T> sum : sums) std::ranges::fill(sum, T(0));
    nn::add_row_sums(
        pass.pairs.targets(), sums, ws,
        [&](const std::array<std::span<T>, 2>& parts, Index first, Index last, Workspace& own) {
          for (const std::span<T> part : parts) std::ranges::fill(part, T(0));
          auto scope = own.frame();
          const Scratch<P> scratch(scope, pass, most, true);
          for (Index i = first; i < last; ++i)
            pass.backward_target(i, scratch, to, parts[0].data(), MatrixView<T>(parts[1].data(), e, width));
        },
        executor);
    const Index columns = config_.heads * config_.channels;
    const std::span<T> heads = frame.span<T>(columns);
    pass.layout.unpack(sums[0].data(), heads.data());
    simd::axpy(T(1), heads.data(), grad.attention.data(), columns);
    for (Index f = 0; f < e; ++f) {
      pass.layout.unpack(sums[1].data() + f * width, heads.data());
      for (Index r = 0; r < columns; ++r) grad.edge.weight(r, f) += heads[std::size_t(r)];
    }
  }

  // The gradients of sources, source by source: the edges sorted by source, then in the order of the targets.
  template <class P, Executor E>
  void add_sources(const detail::GatV2Pass<T, P>& pass, const Gradients<P>& to, MatrixView<T> d_key, Workspace& ws,
                   E& executor) const {
    auto frame = ws.frame();
    const P& pairs = pass.pairs;
    const Index n = pairs.sources();
    const std::span<detail::Neighbor> list = frame.template span<detail::Neighbor>(pairs.most_neighbors());
    const std::span<Index> next = frame.template span<Index>(n + 2);  // next[j + 1]: where the next edge of j goes
    std::ranges::fill(next, Index(0));
    for (Index i = 0; i < pairs.targets(); ++i)
      for (const auto& neighbor : list.first(std::size_t(pairs.neighbors(i, list.data()))))
        ++next[std::size_t(neighbor.row) + 2];
    for (std::size_t j = 2; j < next.size(); ++j) next[j] += next[j - 1];
    const std::span<detail::Neighbor> sorted = frame.template span<detail::Neighbor>(next.back());
    for (Index i = 0; i < pairs.targets(); ++i)
      for (const auto& neighbor : list.first(std::size_t(pairs.neighbors(i, list.data()))))
        sorted[std::size_t(next[std::size_t(neighbor.row) + 1]++)] = {i, neighbor.edge};
    nn::for_row_ranges(
        n, ws,
        [&](Index first, Index count, Workspace& own) {
          auto scope = own.frame();
          const Scratch<P> scratch(scope, pass, detail::neighbors_at_once, true);
          for (Index j = first; j < first + count; ++j) {
            const auto begin = std::size_t(next[std::size_t(j)]), end = std::size_t(next[std::size_t(j) + 1]);
            pass.backward_source(j, sorted.subspan(begin, end - begin), scratch, to, d_key);
          }
        },
        executor);
  }

  // d_x += d_y Θ; the gradients of Θ and its bias.
  template <Executor E>
  static void add_projection(MatrixView<const T> x, MatrixView<const T> d_y, MatrixView<const T> weight,
                             MatrixView<T> d_x, const detail::HeadLayout<T>& layout, nn::Linear<T>& grad, Workspace& ws,
                             E& executor) {
    auto frame = ws.frame();
    if (!d_x.empty())
      nn::for_row_ranges(
          x.rows(), ws,
          [&](Index first, Index count, Workspace& own) {
            simd::gemm<T>(d_y.rows(first, count), weight, d_x.rows(first, count), own, simd::Product::accumulate);
          },
          executor);
    const MatrixView<const T> seen = seen_rows(x, d_y, frame);
    const std::array sums{frame.span<T>(weight.size()), frame.span<T>(grad.bias.empty() ? 0 : weight.rows())};
    for (const std::span<T> sum : sums) std::ranges::fill(sum, T(0));
    nn::add_row_sums(
        x.rows(), sums, ws,
        [&](const std::array<std::span<T>, 2>& parts, Index first, Index last, Workspace& own) {
          simd::gemm_left_transposed<T>(d_y.rows(first, last - first), seen.rows(first, last - first),
                                        MatrixView<T>(parts[0].data(), weight.rows(), weight.cols()), own);
          std::ranges::fill(parts[1], T(0));
          if (parts[1].empty()) return;
          for (Index i = first; i < last; ++i) simd::axpy<T>(T(1), d_y.row(i), parts[1]);
        },
        executor);
    const MatrixView<const T> d_weight(sums[0].data(), weight.rows(), weight.cols());
    for (Index h = 0; h < layout.heads; ++h)
      for (Index c = 0; c < layout.channels; ++c) {
        const Index row = h * layout.channels + c, at = layout.position(h, c);
        simd::axpy(T(1), d_weight.row(at), grad.weight.row(row));
        if (!grad.bias.empty()) grad.bias[row] += sums[1][std::size_t(at)];
      }
  }

  // x, but where it is not finite with zeros in the rows that nobody sees: their gradient is 0, and 0·NaN is not.
  [[nodiscard]] static MatrixView<const T> seen_rows(MatrixView<const T> x, MatrixView<const T> d_y,
                                                     Workspace::Frame& frame) {
    if (detail::all_finite(x)) return x;
    const MatrixView<T> seen = frame.matrix<T>(x.rows(), x.cols());
    for (Index i = 0; i < x.rows(); ++i)
      if (std::ranges::all_of(d_y.row(i), [](T d) { return d == 0; }))
        std::ranges::fill(seen.row(i), T(0));
      else
        std::ranges::copy(x.row(i), seen.row(i).begin());
    return seen;
  }

  template <Executor E>
  void add_residual(MatrixView<const T> x, MatrixView<const T> d_out, MatrixView<T> d_x, GatV2& grad, Workspace& ws,
                    E& executor) const {
    if (config_.residual == Residual::linear) residual.backward(x, d_out, d_x, grad.residual, ws, executor);
    if (config_.residual == Residual::identity && !d_x.empty())
      for (Index i = 0; i < x.rows(); ++i) simd::axpy(T(1), d_out.row(i), d_x.row(i));
    if (bias.empty()) return;
    nn::add_row_sums(
        x.rows(), std::array{grad.bias.span()}, ws,
        [&](const std::array<std::span<T>, 1>& parts, Index first, Index last, Workspace&) {
          std::ranges::fill(parts[0], T(0));
          for (Index i = first; i < last; ++i) simd::axpy<T>(T(1), d_out.row(i), parts[0]);
        },
        executor);
  }
};

/// The name it has in configurations: attention that sees the features of edges.
template <Real T>
using EdgeFeaturedAttention = GatV2<T>;

}  // namespace ruvector::inline RUVECTOR_ABI::attention
