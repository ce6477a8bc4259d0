// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/logits.hpp"
#include "ruvector/attention/softmax_backward.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// Attention as it is written: logits, softmax, mean, one tile of queries after the other.
///
///     L = score(Q, K) [m×n] + bias, −∞ where masked;  P = softmax(L);  O = P V                   (Vaswani 2017, eq. 1)
///
/// Gives the weights [m×n] on request, which is what it is for, with small neighbourhoods; `Tiled` is the same function
/// without ever holding a row of weights. Memory beyond inputs and outputs O(24 n).
template <class Score>
class Dense {
 public:
  using Scalar = ScalarOf<Score>;  ///< what it computes in
  using T = Scalar;                ///< short

  Score score;  ///< how a query is scored against a key

  /// What `backward` needs of a forward pass; owned by the caller and reused.
  using Saved = detail::SavedSoftmax<T>;

  /// Columns of the output for values of this width.
  [[nodiscard]] Index output_dim(Index value_dim) const { return value_dim; }

  /// Writes what is wanted of `out`. O(m n (d + v)). Throws ShapeError and ConfigError before anything is written.
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Workspace& ws) const {
    run(in, out, nullptr, ws);
  }

  /// The same in training: also keeps in `saved` what `backward` needs, m (v + 2) numbers.
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Saved& saved, Workspace& ws) const {
    saved.resize(in.query.rows(), output_dim(in.value.cols()));
    run(in, out, &saved, ws);
  }

  /// Adds the gradients by query, key, value and bias to `d_in`, those by the score's parameters to `grad`.
  /// Throws ShapeError before anything is added.
  void backward(const AttentionInput<T>& in, const Saved& saved, const AttentionOutputGradient<T>& d_out,
                const AttentionGradient<T>& d_in, Dense& grad, Workspace& ws) const {
    detail::softmax_backward(score, in, saved, d_out, d_in, grad.score, ws);
  }

  /// scores [m×n] = the logits before the softmax, natural, −∞ where masked: what a search ranks by.
  void scores(const AttentionInput<T>& in, MatrixView<T> scores, Workspace& ws) const {
    check_input(in);
    detail::check_size("attention: scores", scores, in.query.rows(), in.key.rows());
    auto frame = ws.frame();
    const Rows rows(frame, in);
    for (Index i = 0; i < in.query.rows(); i += detail::tile_rows) {
      const Index count = std::min(detail::tile_rows, in.query.rows() - i);
      write_logits(in, i, rows.weights.rows(0, count), rows);
      for (Index r = 0; r < count; ++r)
        for (Index j = 0; j < in.key.rows(); ++j) scores(i + r, j) = rows.weights(r, j);
    }
  }

  /// Names the score's parameters.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("score", self.score...);
  }

 private:
  using Bound = typename Score::Bound;
  using B = simd::Batch<T>;

  // Scratch for a tile of queries against all keys.
  struct Rows {
    Index width;  // keys, rounded up to whole tiles
    MatrixView<T> weights, value;
    std::span<T> packed;

    Rows(Workspace::Frame& frame, const AttentionInput<T>& in)
        : width((in.key.rows() + detail::tile_keys - 1) / detail::tile_keys * detail::tile_keys),
          weights(frame.matrix<T>(detail::tile_rows, width)),
          value(frame.matrix<T>(detail::tile_rows, in.value.cols())),
          packed(frame.span<T>(width * in.key.cols())) {
      for (Index j = 0; j < in.key.rows(); j += detail::tile_keys)
        detail::pack_keys(in.key.rows(j, std::min(detail::tile_keys, in.key.rows() - j)),
                          packed.data() + j * in.key.cols());
    }
  };

  void run(const AttentionInput<T>& in, const AttentionOutput<T>& out, Saved* saved, Workspace& ws) const {
    check_input(in);
    check_output(in, out, output_dim(in.value.cols()));
    auto frame = ws.frame();
    const Rows rows(frame, in);
    for (Index i = 0; i < in.query.rows(); i += detail::tile_rows)
      run_rows(in, out, i, std::min(detail::tile_rows, in.query.rows() - i), rows, saved);
  }

  void write_logits(const AttentionInput<T>& in, Index first, MatrixView<T> weights, const Rows& rows) const {
    const detail::TileLogits<T, Bound> logits(in, score.bind(in.query.cols()));
    const Index m = in.query.rows(), n = in.key.rows();
    const detail::VisibleTile tile(in.mask, first, first + weights.rows(), m, n);
    for (Index j = 0; j < n; j += detail::tile_keys) {
      const bool plain = logits.plain(tile, j);
      const MatrixView<T> block = weights.cols(j, detail::tile_keys);
      detail::multiply_keys(in.query.rows(first, weights.rows()), rows.packed.data() + j * in.key.cols(), block);
      for (Index r = 0; r < weights.rows(); ++r) {
        B x[detail::tile_vectors<T>];
        logits(first + r, j, block.row(r).data(), plain, x);
        for (Index v = 0; v < detail::tile_vectors<T>; ++v) simd::store(block.row(r).data() + v * simd::lanes<T>, x[v]);
      }
    }
  }

  void run_rows(const AttentionInput<T>& in, const AttentionOutput<T>& out, Index first, Index count, const Rows& rows,
                Saved* saved) const {
    const MatrixView<T> weights = rows.weights.rows(0, count), value = rows.value.rows(0, count);
    write_logits(in, first, weights, rows);
    for (Index r = 0; r < count; ++r) {
      const Softmax softmax = normalize(weights.row(r));
      if (!out.log_sum_exp.empty()) out.log_sum_exp[std::size_t(first + r)] = softmax.log_sum_exp();
      if (out.weights.data() != nullptr)
        std::copy_n(weights.row(r).data(), in.key.rows(), out.weights.row(first + r).data());
      std::ranges::fill(value.row(r), T(0));
      if (saved == nullptr) continue;
      saved->reference[first + r] = softmax.reference;
      saved->inverse_sum[first + r] = softmax.sum == 0 ? T(0) : T(1) / softmax.sum;
    }
    const detail::TileLogits<T, Bound> logits(in, score.bind(in.query.cols()));
    for (Index j = 0; j < in.key.rows(); j += detail::tile_keys) {
      const Index keys = std::min(detail::tile_keys, in.key.rows() - j);
      detail::add_seen_products<T>({weights.data() + j, weights.stride(), 1}, in.value.rows(j, keys), value,
                                   in.mask.empty(),
                                   [&](Index r, Index key) { return logits.sees(first + r, j + key); });
    }
    for (Index r = 0; r < count; ++r) {
      if (out.value.data() != nullptr) std::ranges::copy(value.row(r), out.value.row(first + r).begin());
      if (saved != nullptr) std::ranges::copy(value.row(r), saved->value.row(first + r).begin());
    }
  }

  struct Softmax {
    T reference, sum;
    [[nodiscard]] T log_sum_exp() const {
      return sum == 0 ? -std::numeric_limits<T>::infinity() : reference + std::log(sum);
    }
  };

  // x ← e^(x−μ) / Σ e^(x−μ), μ = max x.
  static Softmax normalize(std::span<T> x) {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    constexpr std::size_t width = std::size_t(simd::lanes<T>);
    B top(-infinity), sum(T(0));
    for (std::size_t j = 0; j < x.size(); j += width) top = simd::max(top, simd::load(x.data() + j));
    const T highest = x.empty() ? -infinity : simd::reduce_max(top);
    const T mu = highest == -infinity ? T(0) : highest;  // no key seen: weights 0
    for (std::size_t j = 0; j < x.size(); j += width) {
      const B logit = simd::load(x.data() + j);
      const B term = mu == infinity
                         ? simd::select(logit < B(infinity), B(T(0)), simd::select(simd::isnan(logit), logit, B(T(1))))
                         : simd::exp(logit - B(mu));
      sum += term;
      simd::store(x.data() + j, term);
    }
    const T total = simd::reduce_add(sum);
    const B inverse(total == 0 ? T(0) : T(1) / total);
    for (std::size_t j = 0; j < x.size(); j += width) simd::store(x.data() + j, simd::load(x.data() + j) * inverse);
    return {mu, total};
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
