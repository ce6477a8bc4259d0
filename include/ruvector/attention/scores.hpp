// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/simd/arch.hpp"
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
// runs at the speed of the matrix product in every engine, with its mask, gradient and memory bound. It gives
//
//   bind(d)            the constants for rows of width d, once a call: the object with everything below
//   query_scalars, key_scalars, parameters      how many there are of each
//   query_row(q, out), key_row(k, out)           the scalars of a row
//   query_row_vjp(q, d_scalars, d_q), key_row_vjp(k, d_scalars, d_k)       adds their gradients
//   logit(dot, query, key)                       f, on registers
//   derivative(d_logit, dot, query, key, d_query, d_key, d_parameters)     returns ∂/∂dot, adds the other partials
//   add_parameters(sums, grad)                   the sums of d_parameters over all pairs, added to a score's gradient

namespace ruvector::inline RUVECTOR_ABI::attention {

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
  T temperature = 1;            ///< τ, learnable
  T alibi_slope = 0;            ///< subtracted a position of distance

  /// Scale 1/√d, nothing else.
  DotScore() = default;
  /// Throws ConfigError unless scale is finite, softcap ≥ 0, temperature > 0 and all are finite.
  explicit DotScore(const DotScoreConfig<T>& config)
      : scale(config.scale), softcap(config.softcap), temperature(config.temperature), alibi_slope(config.alibi_slope) {
    if (scale && !std::isfinite(*scale)) throw_config_error("DotScore: scale", "finite", double(*scale));
    if (!(softcap >= 0) || !std::isfinite(softcap))
      throw_config_error("DotScore: softcap", "finite and >= 0", double(softcap));
    if (!(temperature > 0) || !std::isfinite(temperature))
      throw_config_error("DotScore: temperature", "finite and > 0", double(temperature));
    if (!std::isfinite(alibi_slope)) throw_config_error("DotScore: alibi_slope", "finite", double(alibi_slope));
  }

  /// Names the temperature.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("temperature", self.temperature...);
  }

  /// The score for rows of one width.
  struct Bound {
    static constexpr Index query_scalars = 0;  ///< none
    static constexpr Index key_scalars = 0;    ///< none
    static constexpr Index parameters = 1;     ///< temperature

    T factor;       ///< scale, or scale/cap
    T outer;        ///< 1/τ, or cap/τ
    bool capped;    ///< whether tanh stands between them
    T temperature;  ///< τ
    T alibi_slope;  ///< of the engine

    /// f(q·k).
    [[nodiscard]] simd::Batch<T> logit(simd::Batch<T> dot, const simd::Batch<T>*, const simd::Batch<T>*) const {
      if (capped) [[unlikely]]
        return simd::tanh(dot * simd::Batch<T>(factor)) * simd::Batch<T>(outer);
      return dot * simd::Batch<T>(factor);
    }
    /// d_logit · ∂f/∂(q·k); adds −d_logit · logit/τ to d_parameters[0].
    [[nodiscard]] simd::Batch<T> derivative(simd::Batch<T> d_logit, simd::Batch<T> dot, const simd::Batch<T>*,
                                            const simd::Batch<T>*, simd::Batch<T>*, simd::Batch<T>*,
                                            simd::Batch<T>* d_parameters) const {
      using B = simd::Batch<T>;
      const B inner = dot * B(factor);
      if (!capped) {
        d_parameters[0] = simd::fnma(d_logit, inner / B(temperature), d_parameters[0]);
        return d_logit * B(factor);
      }
      const B t = simd::tanh(inner);
      d_parameters[0] = simd::fnma(d_logit, t * B(outer / temperature), d_parameters[0]);
      return d_logit * simd::fnma(t, t, B(T(1))) * B(factor * outer);
    }
    /// Adds the gradient by τ.
    void add_parameters(std::span<const T> sums, DotScore& grad) const { grad.temperature += sums[0]; }
  };

  /// The constants for rows of width d.
  [[nodiscard]] Bound bind(Index d) const {
    const T s = scale ? *scale : d == 0 ? T(1) : T(1) / std::sqrt(T(d));
    if (softcap > 0) return {s / softcap, softcap / temperature, true, temperature, alibi_slope};
    return {s / temperature, T(1), false, temperature, alibi_slope};
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
