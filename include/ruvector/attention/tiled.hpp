// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/logits.hpp"
#include "ruvector/attention/softmax_backward.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/ordered_sum.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::attention {

namespace detail {

/// Queries that share one packing of the keys.
inline constexpr Index block_rows = 384;
/// Keys packed at a time.
inline constexpr Index packed_keys = 512;

/// eˣ, the same as in the tiles.
template <Real T>
[[nodiscard]] T exp_of(T x) {
  return simd::reduce_max(simd::exp(simd::Batch<T>(x)));
}

/// The softmax of a block of queries over some keys, not yet divided by its sum. The reference μ keeps the terms in
/// range.
template <Real T>
struct BlockState {
  std::span<T> reference;  ///< [rows], μ; −∞ while no key was seen
  std::span<T> sum;        ///< [rows×lanes], Σ e^(x−μ) by lanes
  MatrixView<T> value;     ///< [rows×v], Σ e^(x−μ) v

  [[nodiscard]] T& mu(Index i) const { return reference[std::size_t(i)]; }
  [[nodiscard]] T* sum_row(Index i) const { return sum.data() + i * simd::lanes<T>; }
  /// Multiplies the sums of row i.
  void rescale(Index i, T factor) const {
    simd::scale(factor, sum_row(i), simd::lanes<T>);
    simd::scale(factor, value.row(i));
  }
};

/// How the states of disjoint sets of keys are added; see core/ordered_sum.hpp.
template <Real T>
struct BlockMonoid {
  Workspace::Frame& frame;
  Index rows, value_dim;

  void clear(BlockState<T>& state) const {
    if (state.reference.empty()) {
      state.reference = frame.span<T>(rows);
      state.sum = frame.span<T>(rows * simd::lanes<T>);
      state.value = frame.matrix<T>(rows, value_dim);
    }
    std::ranges::fill(state.reference, -std::numeric_limits<T>::infinity());
    std::ranges::fill(state.sum, T(0));
    for (Index i = 0; i < rows; ++i) std::ranges::fill(state.value.row(i), T(0));
  }

  void merge(BlockState<T>& left, const BlockState<T>& right) const {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    for (Index i = 0; i < rows; ++i) {
      const bool unseen = right.mu(i) == -infinity && simd::reduce_add(simd::load(right.sum_row(i))) == 0;  // not NaN
      if (unseen) continue;
      const T top = std::max(left.mu(i), right.mu(i));
      const T mine = left.mu(i) == top ? T(1) : exp_of(left.mu(i) - top);
      const T its = right.mu(i) == top ? T(1) : exp_of(right.mu(i) - top);
      left.rescale(i, mine);
      simd::axpy(its, right.sum_row(i), left.sum_row(i), simd::lanes<T>);
      simd::axpy(its, std::span<const T>(right.value.row(i)), left.value.row(i));
      left.mu(i) = top;
    }
  }
};

/// Turns the products of row i with a tile of keys into weights e^(x−μ), in place, and adds them to the state's sum.
template <Real T, class Bound>
void weigh_row(const TileLogits<T, Bound>& logits, Index query, Index begin, bool plain, T* dots,
               const BlockState<T>& state, Index i) {
  using B = simd::Batch<T>;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  // The reference moves only if a logit exceeds it by more: terms stay below e⁵, and moving is rare.
  constexpr T margin = T(5);
  constexpr Index width = simd::lanes<T>;
  B x[tile_vectors<T>];
  logits(query, begin, dots, plain, x);
  B top = x[0];
  RUVECTOR_UNROLL for (Index v = 1; v < tile_vectors<T>; ++v) top = simd::max(top, x[v]);
  if (simd::any(top > B(state.mu(i) + margin))) [[unlikely]] {
    const T highest = simd::reduce_max(top);
    state.rescale(i, exp_of(state.mu(i) - highest));
    state.mu(i) = highest;
  }
  B sum = simd::load(state.sum_row(i));
  if (state.mu(i) == infinity) [[unlikely]] {  // ∞ − ∞: all weight on the keys that are +∞
    for (Index v = 0; v < tile_vectors<T>; ++v)
      x[v] = simd::select(x[v] < B(infinity), B(T(0)), simd::select(simd::isnan(x[v]), x[v], B(T(1))));
  } else {
    const B reference(state.mu(i) == -infinity ? T(0) : state.mu(i));  // −∞ − −∞: no key seen, weights 0
    RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) x[v] = simd::exp(x[v] - reference);
  }
  RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) {
    sum += x[v];
    simd::store(dots + v * width, x[v]);
  }
  simd::store(state.sum_row(i), sum);
}

}  // namespace detail

/// Attention by online softmax over tiles of 64 keys (Milakov & Gimelshein 2018; Dao 2022): the m×n weights are never
/// held, only a reference, a sum and the output of each row. Memory beyond inputs and outputs O(384 (v + d) log n).
///
/// A row depends on that row alone, bit for bit: its keys are taken in tiles and leaves of 4096 by absolute index,
/// whatever rows stand beside it.
template <class Score>
class Tiled {
 public:
  using Scalar = ScalarOf<Score>;  ///< what it computes in
  using T = Scalar;                ///< short

  Score score;  ///< how a query is scored against a key

  /// Columns of the output for values of this width.
  [[nodiscard]] Index output_dim(Index value_dim) const { return value_dim; }

  /// What `backward` needs of a forward pass; owned by the caller and reused.
  using Saved = detail::SavedSoftmax<T>;

  /// Writes what is wanted of `out`. O(m n (d + v)). Throws ShapeError and ConfigError before anything is written.
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Workspace& ws) const {
    run(in, out, nullptr, ws);
  }

  /// The same in training: also keeps in `saved` what `backward` needs, m (v + 2) numbers.
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Saved& saved, Workspace& ws) const {
    saved.resize(in.query.rows(), output_dim(in.value.cols()));
    run(in, out, &saved, ws);
  }

  /// Adds the gradients by query, key, value and bias to `d_in`, those by the score's parameters to `grad`. Recomputes
  /// the weights tile by tile: 5 products of m×n×d. Throws ShapeError before anything is added.
  void backward(const AttentionInput<T>& in, const Saved& saved, const AttentionOutputGradient<T>& d_out,
                const AttentionGradient<T>& d_in, Tiled& grad, Workspace& ws) const {
    detail::softmax_backward(score, in, saved, d_out, d_in, grad.score, ws);
  }

  /// Names the score's parameters.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("score", self.score...);
  }

 private:
  using Bound = typename Score::Bound;
  using State = detail::BlockState<T>;

  void run(const AttentionInput<T>& in, const AttentionOutput<T>& out, Saved* saved, Workspace& ws) const {
    check_input(in);
    check_output(in, out, output_dim(in.value.cols()));
    for (Index i = 0; i < in.query.rows(); i += detail::block_rows)
      run_block(in, out, i, std::min(detail::block_rows, in.query.rows() - i), saved, ws);
  }

  void run_block(const AttentionInput<T>& in, const AttentionOutput<T>& out, Index first, Index rows, Saved* saved,
                 Workspace& ws) const {
    const Bound bound = score.bind(in.query.cols());
    const detail::TileLogits<T, Bound> logits(in, bound);
    const Index n = in.key.rows(), value_dim = in.value.cols();
    auto frame = ws.frame();
    const detail::BlockMonoid<T> monoid{frame, rows, value_dim};
    std::array<OrderedSumSlot<State>, 132> slots{};  // enough for 2^63 keys
    OrderedSum<State, detail::BlockMonoid<T>, std::span<OrderedSumSlot<State>>> sum(monoid, key_leaf, slots);
    const std::span<T> packed = frame.template span<T>(detail::packed_keys * in.key.cols());
    const MatrixView<T> weights = frame.template matrix<T>(detail::tile_rows, detail::tile_keys);
    sum.add(0, n, [&](State& state, Index begin, Index end) {
      for (Index j = begin; j < end; j += detail::packed_keys)
        add_keys(in, logits, first, rows, j, std::min(detail::packed_keys, end - j), packed, weights, state);
    });
    State total;
    sum.total(total);
    write(out, first, rows, total, saved);
  }

  // Keys begin … begin + count − 1 for a block of rows.
  static void add_keys(const AttentionInput<T>& in, const detail::TileLogits<T, Bound>& logits, Index first, Index rows,
                       Index begin, Index count, std::span<T> packed, MatrixView<T> weights, const State& state) {
    const Index m = in.query.rows(), n = in.key.rows(), d = in.key.cols();
    const detail::VisibleTile block(in.mask, first, first + rows, m, n);
    for (Index j = 0; j < count; j += detail::tile_keys)
      if (!block.misses(begin + j, begin + j + detail::tile_keys))
        detail::pack_keys(in.key.rows(begin + j, std::min(detail::tile_keys, count - j)), packed.data() + j * d);
    for (Index j = 0; j < count; j += detail::tile_keys) {
      const Index keys = std::min(detail::tile_keys, count - j);
      if (block.misses(begin + j, begin + j + keys)) continue;
      const MatrixView<const T> values = in.value.rows(begin + j, keys);
      for (Index i = 0; i < rows; i += detail::tile_rows) {
        const Index tile_rows = std::min(detail::tile_rows, rows - i);
        const detail::VisibleTile tile(in.mask, first + i, first + i + tile_rows, m, n);
        if (tile.misses(begin + j, begin + j + keys)) continue;
        const bool plain = logits.plain(tile, begin + j);
        detail::multiply_keys(in.query.rows(first + i, tile_rows), packed.data() + j * d, weights.rows(0, tile_rows));
        for (Index r = 0; r < tile_rows; ++r)
          detail::weigh_row(logits, first + i + r, begin + j, plain, weights.row(r).data(), state, i + r);
        detail::add_seen_products<T>({weights.data(), weights.stride(), 1}, values, state.value.rows(i, tile_rows),
                                     plain,
                                     [&](Index r, Index key) { return logits.sees(first + i + r, begin + j + key); });
      }
    }
  }

  static void write(const AttentionOutput<T>& out, Index first, Index rows, const State& state, Saved* saved) {
    for (Index i = 0; i < rows; ++i) {
      const T sum = state.reference.empty() ? T(0) : simd::reduce_add(simd::load(state.sum_row(i)));
      const T inverse = sum == 0 ? T(0) : T(1) / sum;  // no key seen: zeros
      const auto value = [&](std::size_t c) { return sum == 0 ? T(0) : state.value.row(i)[c] / sum; };
      if (!out.log_sum_exp.empty())
        out.log_sum_exp[std::size_t(first + i)] =
            sum == 0 ? -std::numeric_limits<T>::infinity() : state.mu(i) + std::log(sum);
      if (out.value.data() != nullptr)
        for (std::size_t c = 0; c < out.value.row(first + i).size(); ++c) out.value.row(first + i)[c] = value(c);
      if (saved == nullptr) continue;
      saved->reference[first + i] = sum == 0 ? T(0) : state.mu(i);
      saved->inverse_sum[first + i] = inverse;
      for (Index c = 0; c < saved->value.cols(); ++c) saved->value(first + i, c) = value(std::size_t(c));
    }
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
