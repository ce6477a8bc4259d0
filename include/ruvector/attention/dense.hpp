// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/means.hpp"
#include "ruvector/attention/scores.hpp"
#include "ruvector/attention/softmax.hpp"
#include "ruvector/attention/softmax_attention.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/attention/values.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::attention {

namespace detail {

/// The forward pass of `Dense`.
template <Score S, Mean M>
class DenseForward {
  using T = ScalarOf<S>;
  using B = simd::Batch<T>;

 public:
  template <Storage Stored>
  static void run(const S& score, const M& mean, const AttentionInput<T, Stored>& in, const AttentionOutput<T>& out,
                  SavedSoftmax<T>* saved, const Dropout<T>* dropped, Workspace& ws) {
    check_input(in);
    check_output(in, out, in.value.cols());
    const Index m = in.query.rows(), n = in.key.rows();
    auto frame = ws.frame();
    const Logits<S, Stored> logits(score, in, 0, m, frame);
    const Values<M, Stored> values(mean, in, frame, n);
    const MatrixView<const T> lifted = values.rows(0, n);
    const Index tiles = (n + tile_keys - 1) / tile_keys;
    const std::span<T> packed = frame.template span<T>(tiles * logits.packed_size());
    for (Index t = 0; t < tiles; ++t)
      logits.pack(t * tile_keys, std::min(tile_keys, n - t * tile_keys), packed.data() + t * logits.packed_size());
    const MatrixView<T> weights = frame.template matrix<T>(tile_rows, tiles * tile_keys);
    const MatrixView<T> value = frame.template matrix<T>(tile_rows, in.value.cols());
    for (Index i = 0; i < m; i += tile_rows) {
      const Index rows = std::min(tile_rows, m - i);
      write_logits(in, logits, i, packed.data(), weights.rows(0, rows), ws);
      for (Index r = 0; r < rows; ++r) {
        const Softmax softmax = normalize(weights.row(r));
        if (!out.log_sum_exp.empty()) out.log_sum_exp[std::size_t(i + r)] = softmax.log_sum_exp();
        if (out.weights.data() != nullptr) std::copy_n(weights.row(r).data(), n, out.weights.row(i + r).data());
        if (saved != nullptr) {
          saved->reference[i + r] = softmax.reference;
          saved->inverse_sum[i + r] = softmax.sum == 0 ? T(0) : T(1) / softmax.sum;
        }
        if (dropped != nullptr) drop(*dropped, i + r, weights.row(r));
        std::ranges::fill(value.row(r), T(0));
      }
      add_values(in, logits, i, weights.rows(0, rows), lifted, value.rows(0, rows));
      for (Index r = 0; r < rows; ++r)
        write(values, out, saved, i + r, weights.row(r), std::span<const T>(value.row(r)));
    }
  }

 private:
  template <Storage Stored>
  static void write_logits(const AttentionInput<T, Stored>& in, const Logits<S, Stored>& logits, Index first,
                           const T* packed, MatrixView<T> weights, Workspace& ws) {
    auto frame = ws.frame();
    const Index m = in.query.rows(), n = in.key.rows(), rows = weights.rows();
    const MatrixView<T> dots = frame.template matrix<T>(rows, Logits<S, Stored>::tile_dots);
    const VisibleTile tile(in.mask, first, first + rows, m, n);
    for (Index j = 0; j < n; j += tile_keys, packed += logits.packed_size()) {
      const bool covered = logits.covered(tile, j);
      logits.multiply(first, packed, dots);
      for (Index r = 0; r < rows; ++r) {
        B x[tile_vectors<T>];
        logits(first + r, j, dots.row(r).data(), packed, covered, x);
        store_tile<T>(x, j, weights.row(r));
      }
    }
  }

  template <Storage Stored>
  static void add_values(const AttentionInput<T, Stored>& in, const Logits<S, Stored>& logits, Index first,
                         MatrixView<const T> weights, MatrixView<const T> lifted, MatrixView<T> value) {
    for (Index j = 0; j < in.key.rows(); j += tile_keys) {
      const Index keys = std::min(tile_keys, in.key.rows() - j);
      add_seen_products<T>({weights.data() + j, weights.stride(), 1}, lifted.rows(j, keys), value, in.mask.empty(),
                           [&](Index r, Index key) { return logits.sees(first + r, j + key); });
    }
  }

  template <Storage Stored>
  static void write(const Values<M, Stored>& values, const AttentionOutput<T>& out, SavedSoftmax<T>* saved, Index i,
                    std::span<const T> weights, std::span<const T> value) {
    T mass = 0;
    if constexpr (M::Bound::has_mass)
      for (std::size_t j = 0; j < weights.size(); ++j)
        if (weights[j] != 0) mass = std::fma(weights[j], values.masses()[j], mass);
    if (saved != nullptr) {
      std::ranges::copy(value, saved->value.row(i).begin());
      if constexpr (M::Bound::has_mass) saved->mass[i] = mass;
    }
    if (out.value.data() == nullptr) return;
    if constexpr (M::Bound::lifts) {
      if (std::ranges::any_of(weights, [](T w) { return w != 0; })) {
        values.bound().project(value, mass, out.value.row(i));
        return;
      }
    }
    std::ranges::copy(value, out.value.row(i).begin());
  }

  static void drop(const Dropout<T>& dropped, Index i, std::span<T> weights) {
    T factor[tile_keys];
    for (std::size_t j = 0; j < weights.size(); j += std::size_t(tile_keys)) {
      dropped.factors(i, Index(j), factor);
      for (std::size_t k = 0; k < std::size_t(tile_keys); ++k) weights[j + k] *= factor[k];
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

}  // namespace detail

/// Attention as it is written: logits, softmax, mean, one tile of queries after the other.
///
///     L = score(Q, K) [m×n] + bias, −∞ where masked;  P = softmax(L);  O = P V                   (Vaswani 2017, eq. 1)
///
/// Has the weights [m×n] at hand, which is what it is for, with small neighbourhoods; `Tiled` is the same function
/// without ever holding a row of weights. Memory beyond inputs and outputs O(24 n + n d).
template <Score S, Mean M = WeightedSum<ScalarOf<S>>>
class Dense : public SoftmaxAttention<S, M, detail::DenseForward<S, M>> {
 public:
  using SoftmaxAttention<S, M, detail::DenseForward<S, M>>::SoftmaxAttention;
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
