// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/logits.hpp"
#include "ruvector/attention/softmax.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/attention/values.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/ordered_sum.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::attention::detail {

/// Queries of a tile of the backward pass: long sums of dK and dV, and buffers that stay in the L2 cache. (24 rows cost
/// 6 points of speed, 264 as many at a width of 128.)
inline constexpr Index backward_rows = 96;

/// Scratch of one tile of the backward pass.
template <Real T>
struct BackwardTile {
  MatrixView<T> dots;     ///< [backward_rows × products·tile_keys], and in their place the gradients by them
  MatrixView<T> weights;  ///< [backward_rows×tile_keys], first the gradients by them
  std::span<T> packed_keys, packed_values;
  MatrixView<T> raw_values;         ///< [tile_keys×v], where they are stored as something else
  MatrixView<T> d_key, d_value;     ///< [tile_keys×d], [tile_keys×v]
  MatrixView<T> d_key_scalars;      ///< [key_scalars×tile_keys]
  MatrixView<T> d_pair_parameters;  ///< [parameters×tile_keys], sums over the queries
  std::span<T> d_masses;            ///< [tile_keys]
};

/// Sums of gradients by parameters over rows or keys: blocks of 256 by absolute index and the fixed tree.
template <Real T>
class ParameterSums {
 public:
  ParameterSums(Index parameters, Workspace::Frame& frame)
      : frame_(&frame), size_(parameters), sum_(Add{&frame, parameters}, row_leaf, slots_) {}
  ParameterSums(const ParameterSums&) = delete;
  ParameterSums& operator=(const ParameterSums&) = delete;

  /// Elements first … last−1, in order: `accumulate(sums, i)`.
  template <class Accumulate>
  void add(Index first, Index last, Accumulate&& accumulate) {
    sum_.add(first, last, [&](std::span<T>& sums, Index begin, Index end) {
      for (Index i = begin; i < end; ++i) accumulate(sums, i);
    });
  }
  /// total += the sums.
  void add_to(std::span<T> total) {
    std::span<T> sums;
    sum_.total(sums);
    for (Index p = 0; p < size_; ++p) total[std::size_t(p)] += sums[std::size_t(p)];
  }

 private:
  struct Add {
    Workspace::Frame* frame;
    Index size;
    void clear(std::span<T>& sums) const {
      if (sums.data() == nullptr) sums = frame->template span<T>(size);
      std::ranges::fill(sums, T(0));
    }
    void merge(std::span<T>& sums, const std::span<T>& right) const {
      for (std::size_t p = 0; p < sums.size(); ++p) sums[p] += right[p];
    }
  };
  Workspace::Frame* frame_;
  Index size_;
  std::array<OrderedSumSlot<std::span<T>>, 132> slots_{};  // enough for 2^63 rows
  OrderedSum<std::span<T>, Add, std::span<OrderedSumSlot<std::span<T>>>> sum_;
};

/// Gradients of a softmax over scores, recomputed tile by tile. With P the weights, V' = lift(V), N = P V' and G the
/// gradient that `project` sends back to N:
///
///     dV' = Pᵀ G,  dP = G V'ᵀ,  D_i = Σ_c G_ic N_ic,  dL = P ∘ (dP − D + d_lse),  dBias = dL,  dS = dL ∘ ∂L/∂(q·k)
///     dQ = dS K,  dK = dSᵀ Q                                                                  (Dao 2022, appendix B)
///
/// and what arrives at the scalars of rows and at masses, which are further columns of these sums.
template <class Score, class Mean, Storage S>
class SoftmaxBackward {
 public:
  using T = ScalarOf<Score>;               ///< what it computes in
  using B = simd::Batch<T>;                ///< register
  using Bound = typename Score::Bound;     ///< the score for this width
  using MeanBound = typename Mean::Bound;  ///< the mean for this width

  SoftmaxBackward(const Score& score, const Mean& mean, const AttentionInput<T, S>& in, const SavedSoftmax<T>& saved,
                  const Dropout<T>* dropout, const AttentionOutputGradient<T>& d_out, const AttentionGradient<T>& d_in,
                  Workspace::Frame& frame)
      : in_(in),
        saved_(saved),
        dropout_(dropout),
        d_out_(d_out),
        d_in_(d_in),
        logits_(score, in, 0, in.query.rows(), frame),
        values_(mean, in, frame),
        score_parameters_(logits_.bound().parameter_count(Bound::parameters)),
        parameters_(score_parameters_ + MeanBound::parameters),
        g_(d_out.value),
        row_sums_(parameters_, frame),
        mean_sums_(parameters_, frame),
        key_sums_(parameters_, frame),
        total_(frame.template span<T>(parameters_)) {
    const Index d = in.key.cols(), v = in.value.cols(), m = in.query.rows();
    const Index rows = std::min(backward_rows, in.query.rows());
    tile_ = {frame.template matrix<T>(rows, L::tile_dots),
             frame.template matrix<T>(rows, tile_keys),
             frame.template span<T>(logits_.packed_size()),
             frame.template span<T>(tile_keys * v),
             frame.template matrix<T>(std::same_as<S, T> ? 0 : tile_keys, v),
             frame.template matrix<T>(tile_keys, d),
             frame.template matrix<T>(tile_keys, v),
             frame.template matrix<T>(Bound::key_scalars, tile_keys),
             frame.template matrix<T>(Bound::parameters, tile_keys),
             frame.template span<T>(MeanBound::has_mass ? tile_keys : 0)};
    // Last what grows with the queries: the rest then finds room where the forward pass had its blocks.
    if constexpr (MeanBound::lifts) g_ = frame.template matrix<T>(m, v);
    delta_ = frame.template span<T>(m);
    d_mass_ = frame.template span<T>(MeanBound::has_mass ? m : 0);
    d_query_scalars_ = frame.template matrix<T>(m, Bound::query_scalars);
  }

  void run(Score& grad, Mean& mean_grad) {
    const Index m = in_.query.rows(), n = in_.key.rows();
    begin_rows();
    for (Index j = 0; j < n; j += tile_keys) add_tile(j, std::min(tile_keys, n - j));
    end_rows();
    if (parameters_ == 0 || m == 0) return;
    std::ranges::fill(total_, T(0));
    row_sums_.add_to(total_);
    mean_sums_.add_to(total_);
    key_sums_.add_to(total_);
    if constexpr (requires { logits_.bound().add_parameters(total_, grad); })
      logits_.bound().add_parameters(total_.first(std::size_t(score_parameters_)), grad);
    if constexpr (MeanBound::parameters > 0)
      values_.bound().add_parameters(total_.subspan(std::size_t(score_parameters_)), mean_grad);
  }

 private:
  using L = Logits<Score, S>;
  /// Whether there may be rows for which the score and the mean look at nothing but products.
  static constexpr bool has_usual_rows =
      L::has_rank && !Bound::guarded && Bound::query_scalars + Bound::key_scalars == 0 && !MeanBound::has_mass;

  [[nodiscard]] std::span<T> of_score(std::span<T> sums) const { return sums.first(std::size_t(score_parameters_)); }
  [[nodiscard]] std::span<T> of_mean(std::span<T> sums) const { return sums.subspan(std::size_t(score_parameters_)); }
  [[nodiscard]] static std::span<T> wanted_row(MatrixView<T> gradient, Index i) {
    return gradient.data() == nullptr ? std::span<T>() : gradient.row(i);
  }

  // G, D − d_lse and cleared accumulators.
  void begin_rows() {
    mean_sums_.add(0, in_.query.rows(), [&]([[maybe_unused]] std::span<T> sums, Index i) {
      std::ranges::fill(d_query_scalars_.row(i), T(0));
      T& delta = delta_[std::size_t(i)];
      delta = d_out_.log_sum_exp.empty() ? T(0) : -d_out_.log_sum_exp[std::size_t(i)];
      if constexpr (MeanBound::lifts) {
        const std::span<T> g(const_cast<T*>(g_.row(i).data()), g_.row(i).size());
        T mass = 0, d_mass = 0;
        if constexpr (MeanBound::has_mass) mass = saved_.mass[i];
        if (saved_.inverse_sum[i] == 0)
          std::ranges::fill(g, T(0));
        else
          values_.bound().project_vjp(saved_.value.row(i), mass, d_out_.value.row(i), g, d_mass, of_mean(sums));
        if constexpr (MeanBound::has_mass) {
          d_mass_[std::size_t(i)] = d_mass;
          delta += d_mass * mass;
        }
      }
      delta += simd::dot(g_.row(i), saved_.value.row(i));
    });
  }

  void end_rows() {
    row_sums_.add(0, in_.query.rows(), [&]([[maybe_unused]] std::span<T> sums, Index i) {
      if (saved_.inverse_sum[i] == 0) return;  // saw no key
      if constexpr (Bound::query_scalars > 0)
        logits_.bound().query_row_vjp(in_.query.row(i), d_query_scalars_.row(i).data(), wanted_row(d_in_.query, i),
                                      of_score(sums));
    });
  }

  void add_tile(Index begin, Index keys) {
    const Index m = in_.query.rows();
    const MatrixView<const T> value = values_.rows(begin, keys);
    logits_.pack(begin, keys, tile_.packed_keys.data());
    pack_keys(value, tile_.packed_values.data());
    const MatrixView<const T> key = logits_.key_rows(begin, keys);
    const MatrixView<T> d_key = tile_.d_key.rows(0, keys), d_value = tile_.d_value.rows(0, keys);
    for (Index j = 0; j < keys; ++j) {
      std::ranges::fill(d_key.row(j), T(0));
      std::ranges::fill(d_value.row(j), T(0));
    }
    for (Index s = 0; s < Bound::key_scalars; ++s) std::ranges::fill(tile_.d_key_scalars.row(s), T(0));
    for (Index p = 0; p < Bound::parameters; ++p) std::ranges::fill(tile_.d_pair_parameters.row(p), T(0));
    std::ranges::fill(tile_.d_masses, T(0));
    bool seen = false;
    for (Index i = 0; i < m; i += backward_rows)
      for_each_run(logits_, in_, i, std::min(backward_rows, m - i), begin, keys,
                   [&](Index r, Index rows, bool covered) {
                     seen = true;
                     add_rows(i + r, rows, begin, keys, key, covered);
                   });
    end_keys(begin, keys, key, seen);
  }

  void add_rows(Index first, Index rows, Index begin, Index keys, MatrixView<const T> key, bool covered) {
    const MatrixView<const T> query = in_.query.rows(first, rows), g = g_.rows(first, rows);
    logits_.multiply(first, tile_.packed_keys.data(), tile_.dots.rows(0, rows));
    multiply_keys<T>(g, 0, g.cols(), tile_.packed_values.data(), tile_.weights.rows(0, rows));
    differentiate(first, rows, begin, keys, key, covered);

    const auto sees = [&](Index i, Index j) { return logits_.sees(first + i, begin + j); };
    const auto seen_by = [&](Index j, Index i) { return sees(i, j); };
    // dV' = Pᵀ G, dK = dSᵀ Q, dQ = dS K
    if (d_in_.value.data() != nullptr || MeanBound::parameters > 0)
      add_seen_products<T>({tile_.weights.data(), 1, tile_.weights.stride()}, g, tile_.d_value.rows(0, keys), covered,
                           seen_by);
    for (int p = 0; p < Bound::products; ++p) {
      const Index c = logits_.bound().column(p),
                  count = (p + 1 < Bound::products ? logits_.bound().column(p + 1) : query.cols()) - c;
      const T* d_dots = tile_.dots.data() + p * tile_keys;
      if (d_in_.key.data() != nullptr)
        add_seen_products<T>({d_dots, 1, tile_.dots.stride()}, query.cols(c, count),
                             tile_.d_key.rows(0, keys).cols(c, count), covered, seen_by);
      if (d_in_.query.data() != nullptr)
        add_seen_products<T>({d_dots, tile_.dots.stride(), 1}, key.cols(c, count),
                             d_in_.query.rows(first, rows).cols(c, count), covered, sees);
    }
  }

  [[gnu::noinline]] void differentiate(Index first, Index rows, Index begin, Index keys, MatrixView<const T> key,
                                       bool covered) {
    [[maybe_unused]] const bool usual =
        covered && logits_.ranked() && dropout_ == nullptr && d_in_.bias.data() == nullptr;
    [[maybe_unused]] const Bound bound = logits_.bound();  // a copy, which lies in no place that is written
    for (Index r = 0; r < rows; ++r) {
      if constexpr (has_usual_rows)
        if (usual && std::fabs(saved_.reference[first + r]) < huge_logit<T>) {
          differentiate_usual_row(bound, first + r, r);
          continue;
        }
      differentiate_row(first + r, begin, keys, key, covered, r);
    }
  }

  // What differentiate_row does, without the choices that the usual call does not need: the same bits.
  [[gnu::always_inline]] void differentiate_usual_row(const Bound& bound, Index i, Index r) requires has_usual_rows {
    constexpr Index width = simd::lanes<T>;
    T *dots = tile_.dots.row(r).data(), *weights = tile_.weights.row(r).data();
    const B reference(bound.rank_reference(saved_.reference[i])), inverse(saved_.inverse_sum[i]),
        delta(delta_[std::size_t(i)]);
    B z[tile_vectors<T>][std::size_t(Bound::products)], weight[tile_vectors<T>];
    RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) {
      for (int p = 0; p < Bound::products; ++p) z[v][p] = simd::load(dots + p * tile_keys + v * width);
      weight[v] = bound.rank_weight(bound.rank(z[v], nullptr, nullptr), reference);
    }
    RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) {
      const Index at = v * width;
      weight[v] = weight[v] * inverse;
      const B d_logit = weight[v] * (simd::load(weights + at) - delta);
      PairDerivative<Bound, T> d;
      bound.derivative(d_logit, z[v], nullptr, nullptr, d);
      simd::store(weights + at, weight[v]);
      for (int p = 0; p < Bound::products; ++p) simd::store(dots + p * tile_keys + at, d.z[p]);
      for (Index p = 0; p < Bound::parameters; ++p) add_to(tile_.d_pair_parameters.row(p).data() + at, d.parameter[p]);
    }
  }
  static void add_to(T* sums, B x) { simd::store(sums, simd::load(sums) + x); }

  // Row r of the tile: weights from the saved reference and sum, then dL and the partials of the score.
  void differentiate_row(Index i, Index begin, Index keys, MatrixView<const T> key, bool covered, Index r) {
    constexpr Index width = simd::lanes<T>;
    const T mu = saved_.reference[i];
    const B inverse(saved_.inverse_sum[i]), delta(delta_[std::size_t(i)]), zero(T(0));
    B d_query[std::size_t(Bound::query_scalars) + 1] = {};
    T factor[tile_keys];
    if (dropout_ != nullptr) dropout_->factors(i, begin, factor);
    const VisibleKeys shown = covered ? VisibleKeys() : logits_.visible(i);
    RUVECTOR_UNROLL for (Index v = 0; v < tile_vectors<T>; ++v) {
      const Index at = v * width;
      simd::Mask<T> visible{};
      if (!covered) visible = logits_.seen(shown, i, begin, v);
      const auto pair =
          logits_.pairs(i, begin, v, tile_.dots.row(r).data(), tile_.packed_keys.data(), covered ? nullptr : &visible);
      // A sum that is not finite makes even 0 of a hidden key NaN.
      const B weight = hide(covered, visible, term(pair, i, begin, v, mu) * inverse);
      B d_weight = simd::load(tile_.weights.row(r).data() + at);
      if constexpr (MeanBound::has_mass)
        d_weight = simd::fma(B(d_mass_[std::size_t(i)]), simd::load(values_.masses() + at), d_weight);
      B kept = weight;
      if (dropout_ != nullptr) {
        kept = weight * simd::load(factor + at);
        d_weight = d_weight * simd::load(factor + at);
      }
      B d_logit = weight * (d_weight - delta);
      if (!covered) d_logit = simd::select(visible, d_logit, zero);
      simd::store(tile_.weights.row(r).data() + at, kept);
      if constexpr (MeanBound::has_mass) {
        T* d_mass = tile_.d_masses.data() + at;
        simd::store(d_mass, simd::load(d_mass) + hide(covered, visible, kept * B(d_mass_[std::size_t(i)])));
      }

      PairDerivative<Bound, T> d;
      logits_.bound().derivative(d_logit, pair.z, pair.query, pair.key, d);
      if constexpr (Bound::guarded) {
        if (simd::any(pair.near)) [[unlikely]]
          differentiate_near(pair, d, i, begin + at, at, key);
        logits_.bound().measure_vjp(dot(r, at), pair.query, pair.key, d);
      }
      for (int p = 0; p < Bound::products; ++p)
        simd::store(tile_.dots.row(r).data() + p * tile_keys + at, hide(covered, visible, d.z[p]));
      for (Index s = 0; s < Bound::query_scalars; ++s) d_query[s] += hide(covered, visible, d.query[s]);
      for (Index p = 0; p < Bound::parameters; ++p)
        add_to(tile_.d_pair_parameters.row(p).data() + at, hide(covered, visible, d.parameter[p]));
      for (Index s = 0; s < Bound::key_scalars; ++s)
        add_to(tile_.d_key_scalars.row(s).data() + at, hide(covered, visible, d.key[s]));
      if (d_in_.bias.data() != nullptr && at < keys) {
        T* bias = d_in_.bias.data() + (d_in_.bias.rows() == 1 ? 0 : i * d_in_.bias.stride()) + begin + at;
        const Index count = std::min(width, keys - at);
        simd::store_partial(bias, count, simd::load_partial(bias, count) + d_logit);
      }
    }
    for (Index s = 0; s < Bound::query_scalars; ++s) d_query_scalars_(i, s) += simd::reduce_add(d_query[s]);
  }

  // What the products of a hidden key say may be anything.
  [[nodiscard]] static B hide(bool covered, simd::Mask<T> visible, B x) {
    return covered ? x : simd::select(visible, x, B(T(0)));
  }
  [[nodiscard]] B dot(Index r, Index at) const {
    return simd::load(tile_.dots.row(r).data() + (Bound::products - 1) * tile_keys + at);
  }

  // e^(x−μ), anything for hidden keys.
  [[nodiscard]] B term(const Pairs<Bound, T>& pair, Index i, Index begin, Index v, T mu) const {
    const Bound& bound = logits_.bound();
    constexpr T infinity = std::numeric_limits<T>::infinity();
    if constexpr (L::has_rank)
      if (logits_.ranked() && std::fabs(mu) < huge_logit<T>)
        return bound.rank_weight(bound.rank(pair.z, pair.query, pair.key), B(bound.rank_reference(mu)));
    B x = bound.logit(pair.z, pair.query, pair.key);
    if (!logits_.unbiased()) x = logits_.biased(i, begin, v, x);
    return mu == infinity ? simd::select(x == B(infinity), B(T(1)), B(T(0))) : simd::exp(x - B(mu));
  }

  // The near ones of the keys j …, rows `at` … of the tile, pair by pair.
  [[gnu::noinline]] void differentiate_near(const Pairs<Bound, T>& pair, PairDerivative<Bound, T>& d, Index i, Index j,
                                            Index at, MatrixView<const T> key) {
    constexpr int last = Bound::products - 1;
    T d_z[simd::lanes<T>];
    simd::store(d_z, d.z[last]);
    for (std::uint32_t near = simd::lane_bits(pair.near); near != 0; near &= near - 1) {
      const Index lane = std::countr_zero(near);
      (void)j;
      T d_parameters[std::size_t(Bound::parameters) + 1] = {};
      logits_.bound().exact_vjp(in_.query.row(i), key.row(at + lane), d_z[lane], wanted_row(d_in_.query, i),
                                tile_.d_key.row(at + lane), std::span<T>(d_parameters, std::size_t(Bound::parameters)));
      for (Index p = 0; p < Bound::parameters; ++p) tile_.d_pair_parameters(p, at + lane) += d_parameters[p];
    }
    d.z[last] = simd::select(pair.near, B(T(0)), d.z[last]);
  }

  void end_keys(Index begin, Index keys, MatrixView<const T> key, bool seen) {
    key_sums_.add(begin, begin + keys, [&]([[maybe_unused]] std::span<T> sums, Index j) {
      if (!seen) return;
      const Index k = j - begin;
      for (Index p = 0; p < Bound::parameters; ++p) sums[std::size_t(p)] += tile_.d_pair_parameters(p, k);
      const std::span<T> d_key = tile_.d_key.row(k);
      if constexpr (Bound::key_scalars > 0) {
        T d_scalars[std::size_t(Bound::key_scalars)];
        bool any = false;
        for (Index s = 0; s < Bound::key_scalars; ++s) {
          d_scalars[s] = tile_.d_key_scalars(s, k);
          any = any || d_scalars[s] != 0;
        }
        if (any) logits_.bound().key_row_vjp(key.row(k), d_scalars, d_key, of_score(sums));
      }
      if (d_in_.key.data() != nullptr) simd::axpy(T(1), std::span<const T>(d_key), d_in_.key.row(j));
      add_value(j, k, sums);
    });
  }

  void add_value(Index j, Index k, [[maybe_unused]] std::span<T> sums) {
    const std::span<const T> d_value = tile_.d_value.row(k);
    if constexpr (MeanBound::lifts) {
      T d_mass = 0;
      if constexpr (MeanBound::has_mass) d_mass = tile_.d_masses[std::size_t(k)];
      if (d_mass == 0 && std::ranges::all_of(d_value, [](T x) { return x == 0; })) return;  // hidden: may be anything
      const std::span<const T> raw = read_rows<T, S>(in_.value, in_.value_scale, j, 1, tile_.raw_values).row(0);
      values_.bound().lift_vjp(raw, d_value, d_mass, wanted_row(d_in_.value, j), of_mean(sums));
    } else {
      if (d_in_.value.data() != nullptr) simd::axpy(T(1), d_value, d_in_.value.row(j));
    }
  }

  const AttentionInput<T, S>& in_;
  const SavedSoftmax<T>& saved_;
  const Dropout<T>* dropout_;
  const AttentionOutputGradient<T>& d_out_;
  const AttentionGradient<T>& d_in_;
  const L logits_;
  const Values<Mean, S> values_;
  const Index score_parameters_, parameters_;
  MatrixView<const T> g_;  // [m×v], the gradient by N
  ParameterSums<T> row_sums_, mean_sums_, key_sums_;
  std::span<T> total_;
  std::span<T> delta_;             // [m], D − d_lse
  std::span<T> d_mass_;            // [m]
  MatrixView<T> d_query_scalars_;  // [m×query_scalars]
  BackwardTile<T> tile_;
};

/// Adds the gradients of `Tiled` and `Dense`.
template <class Score, class Mean, Storage S>
void softmax_backward(const Score& score, const Mean& mean, ScalarOf<Score> dropout,
                      const AttentionInput<ScalarOf<Score>, S>& in, const SavedSoftmax<ScalarOf<Score>>& saved,
                      const AttentionOutputGradient<ScalarOf<Score>>& d_out,
                      const AttentionGradient<ScalarOf<Score>>& d_in, Score& grad, Mean& mean_grad, Workspace& ws) {
  using T = ScalarOf<Score>;
  check_input(in);
  check_gradient(in, d_out, d_in, in.value.cols());
  check_size("attention: saved output", saved.value.view(), in.query.rows(), in.value.cols());
  const Dropout<T> dropped{saved.dropout, dropout};
  auto frame = ws.frame();
  SoftmaxBackward<Score, Mean, S>(score, mean, in, saved, dropout > 0 ? &dropped : nullptr, d_out, d_in, frame)
      .run(grad, mean_grad);
}

}  // namespace ruvector::inline RUVECTOR_ABI::attention::detail
