// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/concepts.hpp"
#include "ruvector/attention/key_value_cache.hpp"
#include "ruvector/attention/means.hpp"
#include "ruvector/attention/scores.hpp"
#include "ruvector/attention/softmax.hpp"
#include "ruvector/attention/softmax_backward.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/workspace.hpp"

#include <utility>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// What all softmax attention shares, whichever engine runs it:
///
///     out_i = project(Σ_j P_ij lift(v_j)),   P = softmax over visible j of (score(q_i, k_j) + bias_ij)
///
/// `Engine::run(score, mean, in, out, saved, dropped, ws)` is the forward pass, with weights at hand (`Dense`) or tile
/// by tile (`Tiled`); there is one backward pass.
template <Score S, Mean M, class Engine>
class SoftmaxAttention {
 public:
  using Scalar = ScalarOf<S>;  ///< what it computes in
  using T = Scalar;            ///< short
  static_assert(std::same_as<T, ScalarOf<M>>, "the score and the mean compute in the same type");

  static constexpr bool splits_rows = true;  ///< a part of the queries costs that part

  S score;        ///< how a query is scored against a key
  M mean;         ///< how values are averaged
  T dropout = 0;  ///< in [0, 1): probability with which a weight is dropped, in training only

  /// What `backward` needs of a forward pass; owned by the caller, reused, and seeded (`saved.rng`) for dropout.
  using Saved = detail::SavedSoftmax<T>;
  /// Keys and values side by side.
  using Prepared = KeyValueCache<T>;

  /// Default score and mean.
  SoftmaxAttention() = default;
  /// Throws ConfigError unless 0 ≤ dropout < 1.
  explicit SoftmaxAttention(S score_, M mean_ = {}, T dropout_ = 0)
      : score(std::move(score_)), mean(std::move(mean_)), dropout(dropout_) {
    if (!(dropout >= 0 && dropout < 1)) throw_config_error("attention: dropout", "0 <= dropout < 1", double(dropout));
  }

  /// Columns of the output for values of this width.
  [[nodiscard]] Index output_dim(Index value_dim) const { return value_dim; }

  /// Writes what is wanted of `out`. O(m n (d + v)); weights cost `Tiled` another m n d. Throws ShapeError and
  /// ConfigError before anything is written.
  template <Storage Stored = T>
  void forward(const AttentionInput<T, Stored>& in, const AttentionOutput<T>& out, Workspace& ws) const {
    Engine::template run<Stored>(score, mean, in, out, nullptr, nullptr, ws);
  }

  /// The same in training: drops weights, and keeps in `saved` what `backward` needs, m (v + 2) numbers.
  template <Storage Stored = T>
  void forward(const AttentionInput<T, Stored>& in, const AttentionOutput<T>& out, Saved& saved, Workspace& ws) const {
    saved.resize(in.query.rows(), in.value.cols(), M::Bound::has_mass);
    if (dropout > 0) saved.dropout = saved.rng.bits();
    const detail::Dropout<T> dropped{saved.dropout, dropout};
    Engine::template run<Stored>(score, mean, in, out, &saved, dropout > 0 ? &dropped : nullptr, ws);
  }

  /// Over prepared keys; see PreparedAttention.
  void forward(const PreparedInput<T>& in, const Prepared& prepared, const AttentionOutput<T>& out,
               Workspace& ws) const {
    forward({.query = in.query, .key = prepared.key(), .value = prepared.value(), .mask = in.mask, .bias = in.bias},
            out, ws);
  }

  /// Adds the gradients by query, key, value and bias to `d_in`, those by the parameters of score and mean to `grad`.
  /// Recomputes the weights tile by tile: 5 products of m×n×d. Throws ShapeError before anything is added.
  template <Storage Stored = T>
  void backward(const AttentionInput<T, Stored>& in, const Saved& saved, const AttentionOutputGradient<T>& d_out,
                const AttentionGradient<T>& d_in, SoftmaxAttention& grad, Workspace& ws) const {
    detail::softmax_backward(score, mean, dropout, in, saved, d_out, d_in, grad.score, grad.mean, ws);
  }

  /// scores [m×n] = the logits before the softmax, natural, −∞ where masked: what a search ranks by. O(m n d).
  template <Storage Stored = T>
  void scores(const AttentionInput<T, Stored>& in, MatrixView<T> scores, Workspace& ws) const {
    check_input(in);
    detail::check_size("attention: scores", scores, in.query.rows(), in.key.rows());
    const Index block = detail::block_rows(in.key.rows());
    for (Index i = 0; i < in.query.rows(); i += block) {
      auto frame = ws.frame();
      const Index rows = std::min(block, in.query.rows() - i);
      const detail::Logits<S, Stored> logits(score, in, i, rows, frame);
      detail::for_each_row_of_tiles(logits, in, i, rows, frame,
                                    [&](Index query, Index begin, const T* dots, const T* packed, bool covered) {
                                      simd::Batch<T> x[detail::tile_vectors<T>];
                                      logits(query, begin, dots, packed, covered, x);
                                      detail::store_tile<T>(x, begin, scores.row(query));
                                    });
    }
  }

  /// Copies keys and values; see PreparedAttention.
  ///@{
  void prepare(MatrixView<const T> key, MatrixView<const T> value, Prepared& prepared, Workspace& ws) const {
    prepared.clear(key.cols(), value.cols());
    append(key, value, prepared, ws);
  }
  void append(MatrixView<const T> key, MatrixView<const T> value, Prepared& prepared, Workspace&) const {
    prepared.append(key, value);
  }
  ///@}

  /// Names the parameters of score and mean.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("score", self.score...);
    visit("mean", self.mean...);
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
