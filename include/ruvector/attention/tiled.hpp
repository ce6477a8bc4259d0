// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/means.hpp"
#include "ruvector/attention/scores.hpp"
#include "ruvector/attention/softmax.hpp"
#include "ruvector/attention/softmax_attention.hpp"
#include "ruvector/attention/softmax_state.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/attention/values.hpp"
#include "ruvector/core/ordered_sum.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <limits>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::attention {

namespace detail {

/// Adds keys begin … end−1, of one leaf, to the state of a block of queries first … first+rows−1.
template <class Score, class Mean, Storage S>
class BlockForward {
 public:
  using T = ScalarOf<Score>;  ///< what it computes in

  BlockForward(const Score& score, const Mean& mean, const AttentionInput<T, S>& in, Index first, Index rows,
               const Dropout<T>* dropout, Workspace::Frame& frame)
      : in_(in),
        first_(first),
        rows_(rows),
        dropout_(dropout),
        logits_(score, in, first, rows, frame),
        values_(mean, in, frame),
        packed_(frame.template span<T>(logits_.packed_size())),
        dots_(frame.template matrix<T>(rows, streams(rows) ? stream_keys : L::tile_dots)) {}

  [[nodiscard]] const Logits<Score, S>& logits() const { return logits_; }
  [[nodiscard]] const Values<Mean, S>& values() const { return values_; }

  void add(Index begin, Index end, const BlockState<T>& state) const {
    const VisibleTile block(in_.mask, first_, first_ + rows_, in_.query.rows(), in_.key.rows());
    Index j = begin;
    if constexpr (can_stream) {
      const Index whole = streams(rows_) ? begin + (end - begin) / tile_keys * tile_keys : begin;
      for (; j < whole; j = std::min(j + stream_keys, whole))
        add_streamed(block, j, std::min(j + stream_keys, whole), state);
    }
    for (; j < end; j += tile_keys) {
      const Index keys = std::min(tile_keys, end - j);
      if (block.misses(j, j + keys)) continue;
      logits_.pack(j, keys, packed_.data());
      add_tile(j, keys, state);
    }
  }

 private:
  // One tile of keys under all rows that see it: keys, values and their products with 6 rows stay in the L1 cache, the
  // rest streams. Rows are taken together as far as their tiles are alike: 24 at a time cost 6 points of speed.
  void add_tile(Index begin, Index keys, const BlockState<T>& state) const {
    const MatrixView<const T> values = values_.rows(begin, keys);
    for_each_run(logits_, in_, first_, rows_, begin, keys, [&](Index r, Index rows, bool covered) {
      if (!covered) return add_edge(r, rows, begin, values, state);
      const MatrixView<T> dots = dots_.rows(0, rows).cols(0, L::tile_dots);
      logits_.multiply(first_ + r, packed_.data(), dots);
      weigh_rows(logits_, first_ + r, rows, begin, true, dots, packed_.data(), values_.masses(), state, r, dropout_);
      simd::detail::product_in_place<T>({dots.data(), dots.stride(), 1}, values, state.value.rows(r, rows),
                                        simd::Product::accumulate);
    });
  }

  // The same where some keys are hidden: a few rows at a time are multiplied by the keys that one of them sees. What is
  // left out has weight 0. (Whole tiles cost causal attention 4 points at n = 2048.)
  [[gnu::noinline]] void add_edge(Index r, Index rows, Index begin, MatrixView<const T> values,
                                  const BlockState<T>& state) const {
    const Index m = in_.query.rows(), n = in_.key.rows(), keys = values.rows();
    const MatrixView<T> dots = dots_.rows(0, rows).cols(0, L::tile_dots);
    const auto for_each_part = [&](auto&& part) {
      for (Index k = 0; k < rows; k += edge_rows) {
        const Index count = std::min(edge_rows, rows - k), i = first_ + r + k;
        const auto [from, to] = VisibleTile(in_.mask, i, i + count, m, n).range(begin, begin + keys);
        if (from < to) part(k, count, from - begin, to - begin);
      }
    };
    for_each_part([&](Index k, Index count, Index from, Index to) {
      logits_.multiply(first_ + r + k, packed_.data(), dots.rows(k, count), from, to);
    });
    weigh_rows(logits_, first_ + r, rows, begin, false, dots, packed_.data(), values_.masses(), state, r, dropout_);
    const bool finite = all_finite(values);
    for_each_part([&](Index k, Index count, Index from, Index to) {
      add_seen_products<T>(
          {dots.row(k).data() + from, dots.stride(), 1}, values.rows(from, to - from), state.value.rows(r + k, count),
          finite, [&](Index row, Index key) { return logits_.sees(first_ + r + k + row, begin + from + key); });
    });
  }

  // Whole tiles of keys under few queries: a long stretch of keys and then of values, each once and straight from
  // memory. Packed, they would be written and read again: 60 % of the bandwidth; keys and values by turns, tile by
  // tile: 78; so: 87.
  void add_streamed(const VisibleTile& block, Index begin, Index end, const BlockState<T>& state) const {
    const auto for_each_tile = [&](auto&& tile) {
      for (Index j = begin; j < end; j += tile_keys)
        if (!block.misses(j, j + tile_keys)) tile(j, dots_.cols(j - begin, tile_keys));
    };
    for_each_tile([&](Index j, MatrixView<T> dots) {
      simd::detail::product_once_transposed<T>(in_.query.rows(first_, rows_), in_.key.rows(j, tile_keys), dots);
    });
    for_each_tile([&](Index j, MatrixView<T> dots) {
      const bool covered = block.covers(j, j + tile_keys);
      const MatrixView<const T> values = values_.rows(j, tile_keys);
      weigh_rows(logits_, first_, rows_, j, covered, dots, packed_.data(), values_.masses(), state, 0, dropout_);
      const simd::detail::LeftFactor<T> weights{dots.data(), dots.stride(), 1};
      if (covered)
        simd::detail::product_once<T>(weights, values, state.value, simd::Product::accumulate);
      else
        add_seen_products<T>(weights, values, state.value, false,
                             [&](Index row, Index key) { return logits_.sees(first_ + row, j + key); });
    });
  }

  using L = Logits<Score, S>;
  // Rows that are multiplied together by the keys that one of them sees.
  static constexpr Index edge_rows = simd::detail::product_rows;
  // Keys that pass by before their values.
  static constexpr Index stream_keys = key_leaf;
  static constexpr bool can_stream =
      Score::Bound::products == 1 && Score::Bound::key_scalars == 0 && std::same_as<S, T> && !Values<Mean, S>::copies;
  [[nodiscard]] static bool streams(Index rows) { return can_stream && rows <= simd::detail::few_rows; }

  const AttentionInput<T, S>& in_;
  Index first_, rows_;
  const Dropout<T>* dropout_;
  L logits_;
  Values<Mean, S> values_;
  std::span<T> packed_;
  MatrixView<T> dots_;
};

/// Writes what is wanted of the rows first … of an output from their state, and what backward needs.
template <class Mean, Real T>
void write_block(const typename Mean::Bound& mean, const BlockState<T>& state, Index first, Index rows,
                 const AttentionOutput<T>& out, SavedSoftmax<T>* saved, std::span<T> row) {
  for (Index r = 0; r < rows; ++r) {
    const Index i = first + r;
    const T sum = state.value.data() == nullptr ? T(0) : simd::reduce_add(simd::load(state.sum_row(r)));
    const bool blind = sum == 0;  // no key seen: zeros
    const T mass = blind || !Mean::Bound::has_mass ? T(0) : simd::reduce_add(simd::load(state.mass_row(r))) / sum;
    if (blind) {
      std::ranges::fill(row, T(0));
    } else {
      const T* value = state.value.row(r).data();
      for (std::size_t c = 0; c < row.size(); ++c) row[c] = value[c] / sum;
    }
    if (!out.log_sum_exp.empty())
      out.log_sum_exp[std::size_t(i)] = blind ? -std::numeric_limits<T>::infinity() : state.mu(r) + std::log(sum);
    if (saved != nullptr) {
      saved->reference[i] = blind ? T(0) : state.mu(r);
      saved->inverse_sum[i] = blind ? T(0) : T(1) / sum;
      if constexpr (Mean::Bound::has_mass) saved->mass[i] = mass;
      std::ranges::copy(row, saved->value.row(i).begin());
    }
    if (out.value.data() == nullptr) continue;
    if constexpr (Mean::Bound::lifts) {
      if (!blind) {
        mean.project(row, mass, out.value.row(i));
        continue;
      }
    }
    std::ranges::copy(row, out.value.row(i).begin());
  }
}

/// The forward pass of `Tiled`.
template <Score S, Mean M>
class TiledForward {
  using T = ScalarOf<S>;
  using State = BlockState<T>;

 public:
  template <Storage Stored>
  static void run(const S& score, const M& mean, const AttentionInput<T, Stored>& in, const AttentionOutput<T>& out,
                  SavedSoftmax<T>* saved, const Dropout<T>* dropped, Workspace& ws) {
    check_input(in);
    check_output(in, out, in.value.cols());
    const Index most = block_rows(in.key.rows());
    for (Index i = 0; i < in.query.rows(); i += most)
      run_block(score, mean, in, out, i, std::min(most, in.query.rows() - i), saved, dropped, ws);
  }

 private:
  template <Storage Stored>
  static void run_block(const S& score, const M& mean, const AttentionInput<T, Stored>& in,
                        const AttentionOutput<T>& out, Index first, Index rows, SavedSoftmax<T>* saved,
                        const Dropout<T>* dropped, Workspace& ws) {
    auto frame = ws.frame();
    const BlockForward<S, M, Stored> block(score, mean, in, first, rows, dropped, frame);
    const BlockMonoid<T> monoid{frame, rows, in.value.cols(), M::Bound::has_mass};
    State total;
    if (in.key.rows() <= key_leaf) {  // one leaf is its own sum
      monoid.clear(total);
      block.add(0, in.key.rows(), total);
    } else {
      std::array<OrderedSumSlot<State>, 132> slots{};  // enough for 2^63 keys
      OrderedSum<State, BlockMonoid<T>, std::span<OrderedSumSlot<State>>> sum(monoid, key_leaf, slots);
      sum.add(0, in.key.rows(), [&](State& state, Index begin, Index end) { block.add(begin, end, state); });
      sum.total(total);
    }
    write_block<M>(block.values().bound(), total, first, rows, out, saved, frame.template span<T>(in.value.cols()));
    if (out.weights.data() != nullptr) write_weights(in, out.weights, block.logits(), total, first, rows, frame);
  }

  // A second pass: the sums must be known.
  template <Storage Stored>
  static void write_weights(const AttentionInput<T, Stored>& in, MatrixView<T> weights, const Logits<S, Stored>& logits,
                            const State& state, Index first, Index rows, Workspace::Frame& frame) {
    for_each_row_of_tiles(logits, in, first, rows, frame,
                          [&](Index i, Index begin, const T* dots, const T* packed, bool covered) {
                            simd::Batch<T> x[tile_vectors<T>];
                            const T sum = simd::reduce_add(simd::load(state.sum_row(i - first)));
                            const simd::Batch<T> inverse(sum == 0 ? T(0) : T(1) / sum);
                            weigh_tile(logits, i, begin, dots, packed, covered, state.mu(i - first), x);
                            for (auto& weight : x) weight = weight * inverse;
                            store_tile<T>(x, begin, weights.row(i));
                          });
  }
};

}  // namespace detail

/// Attention by online softmax over tiles of 64 keys (Milakov & Gimelshein 2018; Dao 2022): the m×n weights are never
/// held, only a reference, a sum and the output of each row. Memory beyond inputs and outputs O(576 (v + d) + 288 v log
/// n).
///
/// A row depends on that row alone, bit for bit: its keys are taken in tiles and leaves of 4096 by absolute index,
/// whatever rows stand beside it.
template <Score S, Mean M = WeightedSum<ScalarOf<S>>>
class Tiled : public SoftmaxAttention<S, M, detail::TiledForward<S, M>> {
 public:
  using T = ScalarOf<S>;  ///< what it computes in
  using SoftmaxAttention<S, M, detail::TiledForward<S, M>>::SoftmaxAttention;

  /// Adds keys first_key … of a larger set to the state of these queries: `in.key_rows(first, count)` of the whole, for
  /// instance. In the end `finish` gives what `forward` over all keys gives, bit for bit, whatever the shards and the
  /// order of merging. Throws ConfigError unless first_key is a multiple of 4096 or goes on where the state is
  /// incomplete, then at a multiple of 64; ShapeError where the state has other rows or columns.
  template <Storage Stored = T>
  void accumulate(const AttentionInput<T, Stored>& in, Index first_key, SoftmaxState<T>& state, Workspace& ws) const {
    check_input(in);
    state.check(in.query.rows(), in.value.cols(), M::Bound::has_mass);
    state.add(first_key, in.key.rows(), [&](const detail::BlockState<T>& sums, Index begin, Index end) {
      const Index most = detail::block_rows(in.key.rows());
      for (Index i = 0; i < in.query.rows(); i += most) {
        const Index rows = std::min(most, in.query.rows() - i);
        auto frame = ws.frame();
        const detail::BlockForward<S, M, Stored> block(this->score, this->mean, in, i, rows, nullptr, frame);
        block.add(begin, end, sums.rows(i, rows));
      }
    });
  }

  /// An empty state for these queries.
  [[nodiscard]] SoftmaxState<T> make_state(Index queries, Index value_dim) const {
    return SoftmaxState<T>(queries, value_dim, M::Bound::has_mass);
  }

  /// Writes value and log-sum-exp over all keys that the state has seen. It may be continued afterwards; it is not
  /// const because merging needs room. Throws ShapeError where `out` has other rows or columns, ConfigError if weights
  /// are wanted.
  void finish(SoftmaxState<T>& state, const AttentionOutput<T>& out, Workspace& ws) const {
    state.check(state.queries(), state.value_dim(), M::Bound::has_mass);
    if (out.value.data() != nullptr)
      detail::check_size("attention: output value", out.value, state.queries(), state.value_dim());
    if (!out.log_sum_exp.empty())
      check_shape("attention: output log_sum_exp", state.queries(), Index(out.log_sum_exp.size()));
    if (out.weights.data() != nullptr) throw_config_error("attention: weights of a state", "not wanted", 1);
    auto frame = ws.frame();
    detail::write_block<M>(this->mean.bind(state.value_dim()), state.total(), 0, state.queries(), out,
                           static_cast<detail::SavedSoftmax<T>*>(nullptr), frame.template span<T>(state.value_dim()));
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
