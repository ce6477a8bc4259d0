// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/positive.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/math.hpp"

#include <cmath>
#include <concepts>
#include <numbers>
#include <optional>
#include <span>

// How a query is scored against a key. A score that sees the pair only through q·k and a few scalars a row,
//
//   logit = f(q·k, query scalars, key scalars),
//
// runs at the speed of the matrix product in every engine, with its mask, gradient and memory bound. It is a module
// with a member `bind(d)`: the constants for rows of width d, once a call, as an object derived from `PairScore` that
// gives (B is a register of numbers, one a key; what is not needed is inherited)
//
//   query_scalars, key_scalars, parameters          how many there are of each
//   query_row(q, out), key_row(k, out)              the scalars of a row
//   logit(z, query, key)                            f; z[0] is the product
//   derivative(d_logit, z, query, key, d)           sets d.z, d.query, d.key, d.parameter: d_logit times the partials
//   query_row_vjp(q, d_scalars, d_q, d_parameters)  adds the gradients that arrive at the scalars of a row; the same
//   key_row_vjp(k, d_scalars, d_k, d_parameters)    for keys
//   add_parameters(d_parameters, grad)              adds the sums over all pairs and rows to a score's gradient
//
// Three refinements: `products = 2` and `column(p)`, for scores of two parts of a row; `guarded`, for distances, where
// the product cancels and pairs that are near must be computed from differences; `ranked()`, for scores whose softmax
// weights come cheaper than by their logits.

namespace ruvector::inline RUVECTOR_ABI::attention {

/// The reference μ of a softmax moves only if a logit exceeds it by more: terms stay below e⁵, and moving is rare.
inline constexpr double softmax_margin = 5;

/// What a bound score need not say.
template <Real T>
struct PairScore {
  using B = simd::Batch<T>;  ///< register

  static constexpr int products = 1;         ///< products of column ranges that it sees, 1 or 2
  static constexpr Index query_scalars = 0;  ///< scalars of a query
  static constexpr Index key_scalars = 0;    ///< scalars of a key
  static constexpr Index parameters = 0;     ///< that `derivative` has partials for
  static constexpr bool guarded = false;     ///< has measure, near, exact and their gradients

  T alibi_slope = 0;  ///< subtracted from the logit a position of distance (Press 2022)

  /// The first column of product p; it ends where the next begins.
  [[nodiscard]] Index column(int) const { return 0; }
  /// All that `add_parameters` takes: those of `derivative` and then those that only rows contribute to.
  [[nodiscard]] Index parameter_count(Index pair_parameters) const { return pair_parameters; }
  /// No scalars.
  ///@{
  void query_row(std::span<const T>, T*) const {}
  void key_row(std::span<const T>, T*) const {}
  void query_row_vjp(std::span<const T>, const T*, std::span<T>, std::span<T>) const {}
  void key_row_vjp(std::span<const T>, const T*, std::span<T>, std::span<T>) const {}
  ///@}
  /// Whether weights come from `rank`: a number that grows with the logit.
  [[nodiscard]] bool ranked() const { return false; }
};

/// Options of an inner-product score, applied as scale → softcap → /temperature (→ + bias − ALiBi, by the engine).
template <Real T>
struct DotScoreConfig {
  std::optional<T> scale = {};  ///< finite; default 1/√d
  T softcap = 0;                ///< cap > 0: logits become cap·tanh(logit/cap); 0: none
  T temperature = 1;            ///< τ > 0, learnable
  T alibi_slope = 0;  ///< slope·|i + (n − m) − j| is subtracted (Press 2022); 2^(−8h/H) for head h of H
};

/// logit = cap·tanh(scale·q·k/cap)/τ: scaled dot-product attention (Vaswani 2017, eq. 1), with Gemma 2's soft cap.
template <Real T>
struct DotScore {
  using Scalar = T;  ///< what it computes in

  std::optional<T> scale = {};  ///< default 1/√d
  T softcap = 0;                ///< 0: none
  Positive<T> temperature;      ///< τ, learnable
  T alibi_slope = 0;            ///< subtracted a position of distance

  /// Scale 1/√d, nothing else.
  DotScore() = default;
  /// Throws ConfigError unless scale is finite, softcap ≥ 0, temperature > 0 and all are finite.
  explicit DotScore(const DotScoreConfig<T>& config)
      : scale(config.scale),
        softcap(config.softcap),
        temperature(config.temperature, "DotScore: temperature"),
        alibi_slope(config.alibi_slope) {
    if (scale && !std::isfinite(*scale)) throw_config_error("DotScore: scale", "finite", double(*scale));
    if (!(softcap >= 0) || !std::isfinite(softcap))
      throw_config_error("DotScore: softcap", "finite and >= 0", double(softcap));
    if (!std::isfinite(alibi_slope)) throw_config_error("DotScore: alibi_slope", "finite", double(alibi_slope));
  }

  /// Names the temperature.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("temperature", self.temperature...);
  }

  /// The score for rows of one width.
  struct Bound : PairScore<T> {
    using B = simd::Batch<T>;               ///< register
    static constexpr Index parameters = 1;  ///< temperature

    T factor;                 ///< scale/τ, or scale/cap
    T outer;                  ///< 1/τ, or cap/τ
    T rank_factor;            ///< factor log₂e
    T rank_margin;            ///< softmax_margin/factor
    T inverse_rank_factor;    ///< 1/(factor log₂e): divisions are made once, not a row and tile
    bool capped;              ///< whether tanh stands between them
    Positive<T> temperature;  ///< τ

    /// f(q·k).
    [[nodiscard]] B logit(const B* z, const B*, const B*) const {
      if (capped) [[unlikely]]
        return simd::tanh(z[0] * B(factor)) * B(outer);
      return Linear{factor}.logit(z, nullptr, nullptr);
    }
    /// ∂f/∂(q·k), and f for ∂f/∂τ = −f/τ.
    template <class Partials>
    void derivative(B d_logit, const B* z, const B*, const B*, Partials& d) const {
      const B inner = z[0] * B(factor);
      if (capped) [[unlikely]] {
        const B t = simd::tanh(inner);
        d.parameter[0] = d_logit * (t * B(outer));
        d.z[0] = d_logit * simd::fnma(t, t, B(T(1))) * B(factor * outer);
        return;
      }
      d.parameter[0] = d_logit * inner;
      d.z[0] = d_logit * B(factor);
    }
    /// Adds the gradient by τ. Divides here, once a call: τ = softplus(raw) cost about a third of a pair's products.
    void add_parameters(std::span<const T> sums, DotScore& grad) const {
      temperature.add(-sums[0] / temperature.value(), grad.temperature);
    }

    /// q·k times a factor.
    struct Linear {
      T factor;  ///< scale/τ
      /// As in Bound; rounded, so that no sum that follows is fused with it on one way through a tile and not on
      /// another.
      [[nodiscard]] B logit(const B* z, const B*, const B*) const {
        return simd::detail::rounded_product(z[0], B(factor));
      }
    };
    /// Calls f with the logit, its options decided.
    template <class F>
    void decide_logit(F&& f) const {
      if (capped) return f(*this);
      f(Linear{factor});
    }

    /// Weights 2^(factor log₂e · q·k − μ log₂e): one rounding, no product with the scale before. `rank_logit`: the
    /// logit of a rank; `rank_reference`: what `rank_weight` needs of μ; `rank_limit`: the rank of the logit μ +
    /// softmax_margin.
    ///@{
    [[nodiscard]] bool ranked() const { return !capped && factor > 0; }
    [[nodiscard]] B rank(const B* z, const B*, const B*) const { return z[0]; }
    [[nodiscard]] T rank_logit(T rank) const { return rank * factor; }
    [[nodiscard]] T rank_reference(T mu) const { return mu * std::numbers::log2e_v<T>; }
    [[nodiscard]] T rank_limit(T reference) const { return reference * inverse_rank_factor + rank_margin; }
    [[nodiscard, gnu::always_inline]] B rank_weight(B rank, B reference) const {
      return simd::exp2_softmax(simd::fma(rank, B(rank_factor), -reference));
    }
    ///@}
  };

  /// The constants for rows of width d.
  [[nodiscard]] Bound bind(Index d) const {
    const T s = scale ? *scale : d == 0 ? T(1) : T(1) / std::sqrt(T(d));
    const T tau = temperature.value();
    Bound bound{};
    bound.alibi_slope = alibi_slope;
    bound.temperature = temperature;
    bound.capped = softcap > 0;
    bound.factor = bound.capped ? s / softcap : s / tau;
    bound.outer = bound.capped ? softcap / tau : T(1);
    bound.rank_factor = bound.factor * std::numbers::log2e_v<T>;
    bound.rank_margin = T(softmax_margin) / bound.factor;
    bound.inverse_rank_factor = 1 / bound.rank_factor;
    return bound;
  }
};

/// logit = scale · q·k/(‖q‖‖k‖): 0 where a row is 0. The scale, an inverse temperature, is learnable.
template <Real T>
struct CosineScore {
  using Scalar = T;  ///< what it computes in

  Positive<T> scale{T(10)};  ///< of a cosine of 1

  /// Scale 10.
  CosineScore() = default;
  /// Throws ConfigError unless the scale is finite and positive.
  explicit CosineScore(T scale_) : scale(scale_, "CosineScore: scale") {}

  /// Names the scale.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("scale", self.scale...);
  }

  /// The score for rows of one width. The scalar of a row is its 1/‖x‖.
  struct Bound : PairScore<T> {
    using B = simd::Batch<T>;                  ///< register
    static constexpr Index query_scalars = 1;  ///< 1/‖q‖
    static constexpr Index key_scalars = 1;    ///< 1/‖k‖
    static constexpr Index parameters = 1;     ///< scale

    Positive<T> scale;  ///< of a cosine of 1
    T factor;           ///< its value

    /// 1/‖x‖, or 0 for x = 0.
    ///@{
    void query_row(std::span<const T> q, T* out) const { *out = inverse_norm(q); }
    void key_row(std::span<const T> k, T* out) const { *out = inverse_norm(k); }
    ///@}
    /// −x/‖x‖³ times what arrives.
    ///@{
    void query_row_vjp(std::span<const T> q, const T* d, std::span<T> d_q, std::span<T>) const {
      const T r = inverse_norm(q);
      simd::axpy(-*d * r * r * r, q, d_q);
    }
    void key_row_vjp(std::span<const T> k, const T* d, std::span<T> d_k, std::span<T> d_parameters) const {
      query_row_vjp(k, d, d_k, d_parameters);
    }
    ///@}
    /// f.
    [[nodiscard]] B logit(const B* z, const B* q, const B* k) const { return z[0] * (q[0] * k[0]) * B(factor); }
    /// Its partials.
    template <class Partials>
    void derivative(B d_logit, const B* z, const B* q, const B* k, Partials& d) const {
      const B d_cosine = d_logit * B(factor);
      d.z[0] = d_cosine * (q[0] * k[0]);
      d.query[0] = d_cosine * (z[0] * k[0]);
      d.key[0] = d_cosine * (z[0] * q[0]);
      d.parameter[0] = d_logit * (z[0] * (q[0] * k[0]));
    }
    /// Adds the gradient by the scale.
    void add_parameters(std::span<const T> sums, CosineScore& grad) const { scale.add(sums[0], grad.scale); }

   private:
    [[nodiscard]] static T inverse_norm(std::span<const T> x) {
      const T square = simd::squared_norm(x);
      return square == 0 ? T(0) : 1 / std::sqrt(square);
    }
  };

  /// The constants.
  [[nodiscard]] Bound bind(Index) const {
    Bound bound{};
    bound.scale = scale;
    bound.factor = scale.value();
    return bound;
  }
};

/// How a query is scored against a key; see the top of this file.
template <class S>
concept Score = Module<S> && Real<ScalarOf<S>> && requires(const S& score, Index d) {
  typename S::Bound;
  { score.bind(d) } -> std::same_as<typename S::Bound>;  // constants for rows of width d
} && std::derived_from<typename S::Bound, PairScore<ScalarOf<S>>> &&
    requires(const typename S::Bound& bound, const simd::Batch<ScalarOf<S>>* z) {
  { bound.logit(z, z, z) } -> std::same_as<simd::Batch<ScalarOf<S>>>;  // f(products, query scalars, key scalars)
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
