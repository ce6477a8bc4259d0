// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/logits.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/ordered_sum.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::attention::detail {

/// What the backward pass of a softmax needs beside its inputs: m (v + 2) numbers.
template <Real T>
struct SavedSoftmax {
  Vector<T> reference;    ///< [m], μ
  Vector<T> inverse_sum;  ///< [m], 1/Σ e^(x−μ); 0 where the query saw no key
  Matrix<T> value;        ///< [m×v], the output

  /// Keeps the memory where the sizes are the same.
  void resize(Index m, Index value_dim) {
    if (reference.size() != m) reference = Vector<T>(m), inverse_sum = Vector<T>(m);
    if (value.rows() != m || value.cols() != value_dim) value = Matrix<T>(m, value_dim);
  }
};

/// Scratch of one tile of the backward pass.
template <Real T>
struct BackwardTile {
  MatrixView<T> dots, weights, d_weights, d_dots;  ///< [tile_rows×tile_keys]
  std::span<T> packed_keys, packed_values;
  MatrixView<T> d_key, d_value;  ///< [tile_keys×d], [tile_keys×v]

  BackwardTile(Workspace::Frame& frame, Index d, Index value_dim)
      : dots(frame.matrix<T>(tile_rows, tile_keys)),
        weights(frame.matrix<T>(tile_rows, tile_keys)),
        d_weights(frame.matrix<T>(tile_rows, tile_keys)),
        d_dots(frame.matrix<T>(tile_rows, tile_keys)),
        packed_keys(frame.span<T>(tile_keys * d)),
        packed_values(frame.span<T>(tile_keys * value_dim)),
        d_key(frame.matrix<T>(tile_keys, d)),
        d_value(frame.matrix<T>(tile_keys, value_dim)) {}
};

/// Gradients of a softmax over scores, recomputed tile by tile. With P the weights, G = d_out.value, O the output:
///
///     dV = Pᵀ G,  dP = G Vᵀ,  D_i = Σ_c G_ic O_ic,  dL = P ∘ (dP − D + d_lse),  dBias = dL,  dS = dL ∘ ∂L/∂(q·k)
///     dQ = dS K,  dK = dSᵀ Q                                                                  (Dao 2022, appendix B)
template <class Score>
class SoftmaxBackward {
 public:
  using T = ScalarOf<Score>;            ///< what it computes in
  using B = simd::Batch<T>;             ///< register
  using Bound = typename Score::Bound;  ///< the score for this width

  SoftmaxBackward(const Score& score, const AttentionInput<T>& in, const SavedSoftmax<T>& saved,
                  const AttentionOutputGradient<T>& d_out, const AttentionGradient<T>& d_in, Workspace::Frame& frame)
      : in_(in),
        saved_(saved),
        d_out_(d_out),
        d_in_(d_in),
        bound_(score.bind(in.query.cols())),
        logits_(in, bound_),
        delta_(frame.span<T>(in.query.rows())),
        parameters_(frame.matrix<T>(in.query.rows(), Bound::parameters)),
        tile_(frame, in.key.cols(), in.value.cols()) {}

  void run(Score& grad) {
    const Index m = in_.query.rows(), n = in_.key.rows();
    for (Index i = 0; i < m; ++i) {
      const T lse = d_out_.log_sum_exp.empty() ? T(0) : d_out_.log_sum_exp[std::size_t(i)];
      delta_[std::size_t(i)] = simd::dot(d_out_.value.row(i), saved_.value.row(i)) - lse;
      std::ranges::fill(parameters_.row(i), T(0));
    }
    for (Index j = 0; j < n; j += tile_keys) add_tile(j, std::min(tile_keys, n - j));
    add_parameters(grad);
  }

 private:
  void add_tile(Index begin, Index keys) {
    const Index m = in_.query.rows(), n = in_.key.rows();
    const MatrixView<const T> key = in_.key.rows(begin, keys), value = in_.value.rows(begin, keys);
    pack_keys(key, tile_.packed_keys.data());
    pack_keys(value, tile_.packed_values.data());
    const MatrixView<T> d_key = tile_.d_key.rows(0, keys), d_value = tile_.d_value.rows(0, keys);
    for (Index j = 0; j < keys; ++j) {
      std::ranges::fill(d_key.row(j), T(0));
      std::ranges::fill(d_value.row(j), T(0));
    }
    for (Index i = 0; i < m; i += tile_rows) {
      const Index rows = std::min(tile_rows, m - i);
      const VisibleTile tile(in_.mask, i, i + rows, m, n);
      if (tile.misses(begin, begin + keys)) continue;
      add_rows(i, rows, begin, keys, logits_.plain(tile, begin));
    }
    const auto add = [&](MatrixView<T> to, MatrixView<T> from) {
      if (to.data() == nullptr) return;
      for (Index j = 0; j < keys; ++j) simd::axpy(T(1), std::span<const T>(from.row(j)), to.row(begin + j));
    };
    add(d_in_.key, d_key);
    add(d_in_.value, d_value);
  }

  void add_rows(Index first, Index rows, Index begin, Index keys, bool plain) {
    const MatrixView<const T> query = in_.query.rows(first, rows), g = d_out_.value.rows(first, rows);
    multiply_keys(query, tile_.packed_keys.data(), tile_.dots.rows(0, rows));
    multiply_keys(g, tile_.packed_values.data(), tile_.d_weights.rows(0, rows));
    for (Index r = 0; r < rows; ++r) differentiate_row(first + r, begin, keys, plain, r);

    constexpr Index stride = tile_keys;
    const auto sees = [&](Index i, Index j) { return logits_.sees(first + i, begin + j); };
    const auto seen_by = [&](Index j, Index i) { return sees(i, j); };
    // dV = Pᵀ G, dK = dSᵀ Q, dQ = dS K
    if (d_in_.value.data() != nullptr)
      add_seen_products<T>({tile_.weights.data(), 1, stride}, g, tile_.d_value.rows(0, keys), plain, seen_by);
    if (d_in_.key.data() != nullptr)
      add_seen_products<T>({tile_.d_dots.data(), 1, stride}, query, tile_.d_key.rows(0, keys), plain, seen_by);
    if (d_in_.query.data() != nullptr)
      add_seen_products<T>({tile_.d_dots.data(), stride, 1}, in_.key.rows(begin, keys), d_in_.query.rows(first, rows),
                           plain, sees);
  }

  // Row r of the tile: weights from the saved reference and sum, then dL and dS.
  void differentiate_row(Index i, Index begin, Index keys, bool plain, Index r) {
    constexpr Index width = simd::lanes<T>;
    constexpr T infinity = std::numeric_limits<T>::infinity();
    B x[tile_vectors<T>];
    const T* dots = tile_.dots.row(r).data();
    logits_(i, begin, dots, plain, x);
    const T mu = saved_.reference[i];
    const B reference(mu), inverse(saved_.inverse_sum[i]), delta(delta_[std::size_t(i)]), zero(T(0));
    B d_parameters[std::size_t(Bound::parameters) + 1] = {};
    for (Index v = 0; v < tile_vectors<T>; ++v) {
      const Index at = v * width;
      const simd::Mask<T> hidden = x[v] == B(-infinity);
      const B term = mu == infinity ? simd::select(x[v] == B(infinity), B(T(1)), zero) : simd::exp(x[v] - reference);
      const B weight = simd::select(hidden, zero, term * inverse);
      const B d_weight = simd::load(tile_.d_weights.row(r).data() + at);
      const B d_logit = simd::select(hidden, zero, weight * (d_weight - delta));
      simd::store(tile_.weights.row(r).data() + at, weight);
      // The products of a hidden key may be anything; its factor d_logit is 0.
      const B dot = simd::select(hidden, zero, simd::load(dots + at));
      const B d_dot = bound_.derivative(d_logit, dot, nullptr, nullptr, nullptr, nullptr, d_parameters);
      simd::store(tile_.d_dots.row(r).data() + at, d_dot);
      if (d_in_.bias.data() != nullptr && at < keys) {
        T* bias = d_in_.bias.data() + (d_in_.bias.rows() == 1 ? 0 : i * d_in_.bias.stride()) + begin + at;
        const Index count = std::min(width, keys - at);
        simd::store_partial(bias, count, simd::load_partial(bias, count) + d_logit);
      }
    }
    for (Index p = 0; p < Bound::parameters; ++p) parameters_(i, p) += simd::reduce_add(d_parameters[p]);
  }

  // The sum over rows in blocks of 256 and the fixed tree.
  void add_parameters(Score& grad) {
    if constexpr (Bound::parameters > 0) {
      using Sums = std::array<T, std::size_t(Bound::parameters)>;
      struct Add {
        void clear(Sums& sums) const { sums.fill(T(0)); }
        void merge(Sums& sums, const Sums& right) const {
          for (std::size_t p = 0; p < sums.size(); ++p) sums[p] += right[p];
        }
      };
      std::array<OrderedSumSlot<Sums>, 132> slots{};  // enough for 2^63 rows
      OrderedSum<Sums, Add, std::span<OrderedSumSlot<Sums>>> sum(Add{}, row_leaf, slots);
      sum.add(0, in_.query.rows(), [&](Sums& sums, Index first, Index last) {
        for (Index i = first; i < last; ++i)
          for (Index p = 0; p < Bound::parameters; ++p) sums[std::size_t(p)] += parameters_(i, p);
      });
      Sums total;
      sum.total(total);
      bound_.add_parameters(total, grad);
    }
  }

  const AttentionInput<T>& in_;
  const SavedSoftmax<T>& saved_;
  const AttentionOutputGradient<T>& d_out_;
  const AttentionGradient<T>& d_in_;
  const Bound bound_;
  const TileLogits<T, Bound> logits_;
  std::span<T> delta_;        // D − d_lse
  MatrixView<T> parameters_;  // [m×parameters]
  BackwardTile<T> tile_;
};

/// Adds the gradients of `Tiled` and `Dense`.
template <class Score>
void softmax_backward(const Score& score, const AttentionInput<ScalarOf<Score>>& in,
                      const SavedSoftmax<ScalarOf<Score>>& saved, const AttentionOutputGradient<ScalarOf<Score>>& d_out,
                      const AttentionGradient<ScalarOf<Score>>& d_in, Score& grad, Workspace& ws) {
  check_input(in);
  check_gradient(in, d_out, d_in, in.value.cols());
  check_size("attention: saved output", saved.value.view(), in.query.rows(), in.value.cols());
  auto frame = ws.frame();
  SoftmaxBackward<Score>(score, in, saved, d_out, d_in, frame).run(grad);
}

}  // namespace ruvector::inline RUVECTOR_ABI::attention::detail
