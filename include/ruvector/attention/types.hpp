// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/mask.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/simd/convert.hpp"

#include <concepts>
#include <cstdint>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// How keys and values may be stored. Arithmetic is float or double; int8 comes with a scale a row.
template <class S>
concept Storage =
    Real<S> || std::same_as<S, simd::bfloat16> || std::same_as<S, simd::float16> || std::same_as<S, std::int8_t>;

/// One head of one sequence: m queries that look at n keys.
template <Real T, Storage S = T>
struct AttentionInput {
  MatrixView<const T> query;            ///< [m×d]
  MatrixView<const S> key;              ///< [n×d]
  MatrixView<const S> value;            ///< [n×v]
  std::span<const T> key_scale = {};    ///< [n], for int8: key j is key_scale[j] · key.row(j); else empty
  std::span<const T> value_scale = {};  ///< [n], the same for values
  Mask mask = {};                       ///< which keys a query sees: all rules that are set must hold
  MatrixView<const T> bias = {};        ///< [m×n], or [1×n] for all queries; added to the logits; empty: none

  /// The same keys, and queries first … first+count−1, which keep their positions.
  [[nodiscard]] AttentionInput query_rows(Index first, Index count) const {
    AttentionInput rows = *this;
    rows.query = query.rows(first, count);
    rows.mask = mask.query_rows(first, count, query.rows(), key.rows());
    if (bias.rows() == query.rows() && !bias.empty()) rows.bias = bias.rows(first, count);
    return rows;
  }
  /// The same queries, which keep their positions, and keys first … first+count−1: a shard.
  [[nodiscard]] AttentionInput key_rows(Index first, Index count) const {
    AttentionInput shard = *this;
    shard.key = key.rows(first, count);
    shard.value = value.rows(first, count);
    if (!key_scale.empty()) shard.key_scale = key_scale.subspan(std::size_t(first), std::size_t(count));
    if (!value_scale.empty()) shard.value_scale = value_scale.subspan(std::size_t(first), std::size_t(count));
    shard.mask = mask.key_rows(first, count, query.rows(), key.rows());
    if (!bias.empty()) shard.bias = bias.cols(first, count);
    return shard;
  }
};

/// Queries that look at prepared keys.
template <Real T>
struct PreparedInput {
  MatrixView<const T> query;      ///< [m×d]
  Mask mask = {};                 ///< as in AttentionInput
  MatrixView<const T> bias = {};  ///< as in AttentionInput
};

/// Features of the edges that go from keys to queries: side information of an edge-aware backend.
template <Real T>
struct EdgeFeatures {
  MatrixView<const T> features;  ///< [m·n × e]: row i·n + j belongs to query i and key j; over a graph [edges × e]

  /// By the features; empty: not wanted. Accumulated.
  struct Gradient {
    MatrixView<T> features;  ///< as the features
  };
};

/// Coordinates of the nodes that queries and keys stand for: side information of a positional backend.
template <Real T>
struct GraphPositions {
  MatrixView<const T> query;  ///< [m×p]
  MatrixView<const T> key;    ///< [n×p]

  /// By the coordinates; empty: not wanted. Accumulated.
  struct Gradient {
    MatrixView<T> query;  ///< [m×p]
    MatrixView<T> key;    ///< [n×p]
  };
};

/// What `forward` writes. Empty members are not wanted and cost nothing. Outputs must not overlap inputs; but without
/// weights, and not in training, `value` may be the query of a softmax of keys that are as wide as values.
template <Real T>
struct AttentionOutput {
  MatrixView<T> value;            ///< [m×output_dim]; zeros for a query that sees no key
  std::span<T> log_sum_exp = {};  ///< [m], of the logits, natural; −∞ for a query that sees no key
  MatrixView<T> weights = {};     ///< [m×n]; each row sums to 1, or is 0 where the query sees no key

  /// The outputs of queries first … first+count−1.
  [[nodiscard]] AttentionOutput query_rows(Index first, Index count) const {
    AttentionOutput rows = *this;
    if (value.data() != nullptr) rows.value = value.rows(first, count);
    if (!log_sum_exp.empty()) rows.log_sum_exp = log_sum_exp.subspan(std::size_t(first), std::size_t(count));
    if (weights.data() != nullptr) rows.weights = weights.rows(first, count);
    return rows;
  }
};

/// Gradients by the inputs. `backward` adds to them; empty members are not wanted.
template <Real T>
struct AttentionGradient {
  MatrixView<T> query;      ///< [m×d]
  MatrixView<T> key;        ///< [n×d]
  MatrixView<T> value;      ///< [n×v]
  MatrixView<T> bias = {};  ///< as the bias: [m×n], or [1×n] (then summed over the queries)
};

/// Gradients by the outputs, given to `backward`.
template <Real T>
struct AttentionOutputGradient {
  MatrixView<const T> value;            ///< [m×output_dim]
  std::span<const T> log_sum_exp = {};  ///< [m]; empty: none
};

namespace detail {

template <class T>
void check_size(std::string_view what, MatrixView<T> view, Index rows, Index cols) {
  check_shape(what, rows, view.rows());
  check_shape(what, cols, view.cols());
}

}  // namespace detail

/// Throws ShapeError, naming the argument, unless the rows of the input fit together; ConfigError for a bad mask. What
/// is true of every backend, also of those that project queries and keys of different widths. O(1).
template <Real T, Storage S>
void check_rows(const AttentionInput<T, S>& in) {
  const Index m = in.query.rows(), n = in.key.rows();
  check_shape("attention: rows of value", n, in.value.rows());
  constexpr bool scaled = std::same_as<S, std::int8_t>;
  check_shape("attention: key_scale", scaled ? n : 0, Index(in.key_scale.size()));
  check_shape("attention: value_scale", scaled ? n : 0, Index(in.value_scale.size()));
  in.mask.check(m, n);
  if (in.bias.rows() != 0 || in.bias.cols() != 0)
    detail::check_size("attention: bias", in.bias, in.bias.rows() == 1 ? 1 : m, n);
}

/// The same, and keys must be as wide as queries.
template <Real T, Storage S>
void check_input(const AttentionInput<T, S>& in) {
  check_shape("attention: columns of key", in.query.cols(), in.key.cols());
  check_rows(in);
}

/// Throws ShapeError, naming the argument, unless the outputs that are wanted fit an input. O(1).
template <Real T, Storage S>
void check_output(const AttentionInput<T, S>& in, const AttentionOutput<T>& out, Index output_dim) {
  const Index m = in.query.rows(), n = in.key.rows();
  if (out.value.data() != nullptr) detail::check_size("attention: output value", out.value, m, output_dim);
  if (!out.log_sum_exp.empty()) check_shape("attention: output log_sum_exp", m, Index(out.log_sum_exp.size()));
  if (out.weights.data() != nullptr) detail::check_size("attention: output weights", out.weights, m, n);
}

/// Throws ShapeError, naming the argument, unless the gradients fit an input. O(1).
template <Real T, Storage S>
void check_gradient(const AttentionInput<T, S>& in, const AttentionOutputGradient<T>& d_out,
                    const AttentionGradient<T>& d_in, Index output_dim) {
  const Index m = in.query.rows(), n = in.key.rows();
  detail::check_size("attention: gradient of the output", d_out.value, m, output_dim);
  if (!d_out.log_sum_exp.empty()) check_shape("attention: gradient of log_sum_exp", m, Index(d_out.log_sum_exp.size()));
  if (d_in.query.data() != nullptr) detail::check_size("attention: gradient of query", d_in.query, m, in.query.cols());
  if (d_in.key.data() != nullptr) detail::check_size("attention: gradient of key", d_in.key, n, in.key.cols());
  if (d_in.value.data() != nullptr) detail::check_size("attention: gradient of value", d_in.value, n, in.value.cols());
  if (d_in.bias.data() != nullptr)
    detail::check_size("attention: gradient of bias", d_in.bias, in.bias.rows(), in.bias.cols());
}

}  // namespace ruvector::inline RUVECTOR_ABI::attention
