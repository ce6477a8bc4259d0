// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/simd/arch.hpp"

#include <array>
#include <cstddef>
#include <limits>
#include <span>

// Elementary functions on batches and spans, float and double, the same bits in every lane and position. Errors are in
// units in the last place of the result (ULP): the largest over all floats where the target has a fused multiply-add;
// for double, the largest over 10⁶ random arguments. tests/simd/test_math.cpp prints the table.
//
// The coefficients are minimax fits made for this file (Remez exchange, relative error, then rounded). The reductions
// are the classical ones: Cody and Waite 1980 for exp, Tang 1990 and fdlibm for log; errors of the dominant steps are
// carried as a second word (Knuth, Dekker), which is what keeps tanh, sigmoid, asinh and atanh near half an ULP.

namespace ruvector::inline RUVECTOR_ABI::simd {

namespace detail {

// The types of the arrays are spelled out: gcc 12 puts a constant of deduced type into writable memory.
template <Real T>
struct MathConstants;

template <>
struct MathConstants<float> {
  static constexpr int digits = 23;                  // of the fraction
  static constexpr float log2_e = 0x1.715476p+0f;    // 1 / ln 2
  static constexpr float ln2_high = 0x1.62e4p-1f;    // 15 bits: times an exponent it is exact
  static constexpr float ln2_low = 0x1.7f7d1cp-20f;  // ln 2 − ln2_high
  static constexpr std::uint32_t sqrt_half = 0x3f3504f3;
  static constexpr float exp_lowest = -104, exp_highest = 89;     // eˣ is 0 below, ∞ above
  static constexpr float exp2_lowest = -150, exp2_highest = 129;  // 2ᵗ likewise
  static constexpr float tanh_highest = 10;                       // tanh rounds to 1 from here
  static constexpr float asinh_large = 0x1p14f;                   // asinh x = ln 2x from here
  // (eʳ − 1 − r) / r² on |r| ≤ ln 2 / 2, to 2⁻²⁸ of eʳ
  static constexpr std::array<float, 5> exp_tail = {0x1.fffffcp-2f, 0x1.55548cp-3f, 0x1.555858p-5f, 0x1.123dep-7f,
                                                    0x1.6ac74ep-10f};
  // (ln(1 + f) − f + f²/2) / f³ on 1 + f ∈ [√½, √2], to 2⁻²⁹ of ln(1 + f)
  static constexpr std::array<float, 9> log_tail = {0x1.555548p-2f,  -0x1.00007p-2f,  0x1.99a54p-3f,
                                                    -0x1.552f18p-3f, 0x1.23036ep-3f,  -0x1.0103e2p-3f,
                                                    0x1.eff05ep-4f,  -0x1.bf291cp-4f, 0x1.b5a9bap-5f};
};

template <>
struct MathConstants<double> {
  static constexpr int digits = 52;
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  static constexpr double ln2_high = 0x1.62e42fefa38p-1;  // 42 bits
  static constexpr double ln2_low = 0x1.ef35793c7673p-45;
  static constexpr std::uint64_t sqrt_half = 0x3fe6a09e667f3bcd;
  static constexpr double exp_lowest = -746, exp_highest = 710;
  static constexpr double exp2_lowest = -1076, exp2_highest = 1025;
  static constexpr double tanh_highest = 20;
  static constexpr double asinh_large = 0x1p30;
  // to 2⁻⁵⁶ of eʳ
  static constexpr std::array<double, 10> exp_tail = {
      0x1.000000000000ap-1,  0x1.55555555554fap-3,  0x1.555555555087cp-5,  0x1.1111111127be8p-7,
      0x1.6c16c1842a194p-10, 0x1.a01a012a5722fp-13, 0x1.a0199a0c53b63p-16, 0x1.71df25532c7ebp-19,
      0x1.28ad72ddbb9c8p-22, 0x1.ad7f6dde40231p-26};
  // (ln((1 + s)/(1 − s))/s − 2) / s², as a polynomial in s² on s = f/(2 + f), to 2⁻⁵⁹ of ln(1 + f)
  static constexpr std::array<double, 7> log_tail = {0x1.5555555555592p-1, 0x1.999999997fefp-2,  0x1.24924941e50b7p-2,
                                                     0x1.c71c52106dbaap-3, 0x1.74663ddefbdccp-3, 0x1.39a1cd32028ccp-3,
                                                     0x1.2f04ed4f835cdp-3};
};

/// c₀ + c₁x + c₂x² + …
template <Real T, std::size_t n>
[[gnu::always_inline]] inline Batch<T> polynomial(Batch<T> x, const std::array<T, n>& c) {
  Batch<T> p(c[n - 1]);
  for (std::size_t i = n - 1; i-- > 0;) p = fma(p, x, c[i]);
  return p;
}

/// high + low is a + b without error (Knuth).
template <Real T>
struct TwoWords {
  Batch<T> high, low;
};
template <Real T>
[[gnu::always_inline]] inline TwoWords<T> two_sum(Batch<T> a, Batch<T> b) {
  const Batch<T> high = a + b;
  const Batch<T> b_part = high - a;
  return {high, (a - (high - b_part)) + (b - b_part)};
}
/// The same for |a| ≥ |b| or a = 0 (Dekker).
template <Real T>
[[gnu::always_inline]] inline TwoWords<T> fast_two_sum(Batch<T> a, Batch<T> b) {
  const Batch<T> high = a + b;
  return {high, (a - high) + b};
}

/// eʳ for |r| ≤ ln 2 / 2.
template <Real T>
[[gnu::always_inline]] inline Batch<T> exp_reduced(Batch<T> r) {
  const Batch<T> tail = polynomial(r, MathConstants<T>::exp_tail);
  // 1 + r + r² tail; the second form costs one operation more and 0.1 ULP less where products are rounded on their own.
  return fused ? fma(fma(tail, r, T(1)), r, T(1)) : T(1) + (r + r * r * tail);
}

/// eˣ = 2ⁿ (1 + q + q_low), with q accurate also where it is near 0.
template <Real T>
struct ExpParts {
  Batch<T> n, q, q_low;
};
template <Real T>
[[gnu::always_inline]] inline ExpParts<T> exp_parts(Batch<T> x) {
  using C = MathConstants<T>;
  const Batch<T> n = nearest(x * C::log2_e);
  const Batch<T> r_high = fnma(n, C::ln2_high, x);  // exact
  const Batch<T> r = fnma(n, C::ln2_low, r_high);
  const Batch<T> r_low = fnma(n, C::ln2_low, r_high - r);
  const Batch<T> square = r * r;
  const Batch<T> tail = polynomial(r, C::exp_tail);
  const Batch<T> q = fma(square, tail, r);
  const Batch<T> q_low = fma(square, tail, r - q);
  return {n, q, q_low + fma(r_low, q, r_low)};
}

/// A positive normal number as 2ᵉ m with m ∈ [√½, √2).
template <Real T>
struct LogParts {
  Batch<T> m, e, inverse_power;  // inverse_power = 2¹⁻ᵉ, 0 for the largest e
};
template <Real T>
[[gnu::always_inline]] inline LogParts<T> log_parts(Batch<T> x) {
  using C = MathConstants<T>;
  using Bits = Words<T>;
  using Word = typename Bits::Word;
  constexpr Word bias = Word(std::numeric_limits<T>::max_exponent - 1);
  constexpr Word fraction = (Word(1) << C::digits) - 1;
  constexpr T two_to_digits = T(Word(1) << C::digits);
  const Bits shifted = to_bits(x) + Bits((bias << C::digits) - C::sqrt_half);
  const Bits exponent = shifted >> C::digits;  // e + bias
  const Batch<T> e = from_bits(exponent | to_bits(Batch<T>(two_to_digits))) - (two_to_digits + T(bias));
  return {from_bits((shifted & Bits(fraction)) + Bits(C::sqrt_half)), e,
          from_bits((Bits(2 * bias + 1) - exponent) << C::digits)};
}

/// e ln 2 + ln(1 + f) + low, for 1 + f ∈ [√½, √2) and a `low` that is small against the result.
template <Real T>
[[gnu::always_inline]] inline Batch<T> log_sum(Batch<T> e, Batch<T> f, Batch<T> low) {
  using C = MathConstants<T>;
  const Batch<T> sum = fma(e, C::ln2_high, f);
  low = fma(e, C::ln2_low, (fma(e, C::ln2_high, -sum) + f) + low);
  if constexpr (sizeof(T) == 4) {
    return sum + fma(f * f, fma(polynomial(f, C::log_tail), f, T(-0.5)), low);
  } else {
    // ln(1 + f) = f − f²/2 + s (f²/2 + R(s²)) has a third of the terms for one division.
    const Batch<T> s = f / (T(2) + f);
    const Batch<T> z = s * s;
    const Batch<T> half_square = T(0.5) * f * f;
    return sum + (low + fma(s, fma(z, polynomial(z, C::log_tail), half_square), -half_square));
  }
}

/// ln(2ᵉ (1 + x + x_low)), for x > −1 and x_low below one ULP of x.
template <Real T>
[[gnu::always_inline]] inline Batch<T> log1p_sum(Batch<T> x, Batch<T> x_low, Batch<T> e) {
  const TwoWords<T> u = two_sum(Batch<T>(T(1)), x);
  const LogParts<T> parts = log_parts(u.high);
  const Mask<T> near = parts.e == Batch<T>(T(0));  // here f is x itself: relative accuracy down to 0
  const Batch<T> f = select(near, x, parts.m - T(1));
  const Batch<T> low = select(near, x_low, (u.low + x_low) * parts.inverse_power * T(0.5));
  return log_sum(parts.e + e, f, fnma(low, f, low));  // ln(1 + f + low) ≈ ln(1 + f) + low/(1 + f)
}

/// c − a·b as if rounded once (c close to a·b).
template <Real T>
[[gnu::always_inline]] inline Batch<T> residual(Batch<T> a, Batch<T> b, Batch<T> c) {
  if constexpr (fused) {
    return fnma(a, b, c);
  } else {
    // Without a fused multiply-add: the product in two words from halves of the factors (Veltkamp, Dekker).
    constexpr T splitter = T((std::uint64_t(1) << (std::numeric_limits<T>::digits + 1) / 2) + 1);
    const Batch<T> a_big = a * splitter, b_big = b * splitter;
    const Batch<T> a_high = a_big - (a_big - a), b_high = b_big - (b_big - b);
    const Batch<T> a_low = a - a_high, b_low = b - b_high;
    const Batch<T> product = a * b;
    const Batch<T> low = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
    return (c - product) - low;
  }
}

/// a·b, rounded. A plain product may be fused with an addition that follows, or not, and the two differ.
template <Real T>
[[gnu::always_inline]] inline Batch<T> rounded_product(Batch<T> a, Batch<T> b) {
  return fma(a, b, T(0));
}

/// numerator / denominator for values in two words, to little more than half an ULP.
template <Real T>
[[gnu::always_inline]] inline TwoWords<T> quotient(TwoWords<T> numerator, TwoWords<T> denominator) {
  const Batch<T> reciprocal = T(1) / denominator.high;
  const Batch<T> y = rounded_product(numerator.high, reciprocal);
  const Batch<T> rest = residual(y, denominator.high, numerator.high) + fnma(y, denominator.low, numerator.low);
  return {y, rounded_product(rest, reciprocal)};
}

}  // namespace detail

/// eˣ, ≤ 0.9 ULP (1.02 without a fused multiply-add), denormal results too; e⁰ = 1, e^−∞ = 0, +∞ where eˣ overflows,
/// NaN where x is.
template <Real T>
[[nodiscard, gnu::always_inline]] inline Batch<T> exp(Batch<T> x) {
  using C = detail::MathConstants<T>;
  x = min(Batch<T>(C::exp_highest), max(Batch<T>(C::exp_lowest), x));
  const Batch<T> n = nearest(x * C::log2_e);
  const Batch<T> r = fnma(n, C::ln2_low, fnma(n, C::ln2_high, x));
  return ldexp(detail::exp_reduced(r), n);
}

/// 2ᵗ of softmax, ≤ 1.25 ULP; for float monotone: s ≤ t gives 2ˢ ≤ 2ᵗ (so weights never contradict scores).
/// 2⁰ = 1, 2^−∞ = 0, +∞ where it overflows, NaN where t is.
template <Real T>
[[nodiscard, gnu::always_inline]] inline Batch<T> exp2_softmax(Batch<T> t) {
  using C = detail::MathConstants<T>;
  if constexpr (!ldexp_saturates || sizeof(T) == 8)
    t = min(Batch<T>(C::exp2_highest), max(Batch<T>(C::exp2_lowest), t));
  if constexpr (sizeof(T) == 4 && detail::fused) {
    // On [0, 1] and not centred: the polynomial increases and meets 1 and 2 at the ends. Without a fused multiply-add
    // it would err by 1.62 ULP; the other form then errs by 1.00 and increases, too.
    constexpr std::array<T, 7> c = {
        1, 0x1.62e42cp-1f, 0x1.ebfd3ap-3f, 0x1.c68af6p-5f, 0x1.3cfd82p-7f, 0x1.473738p-10f, 0x1.c44580p-13f};
    const Batch<T> n = floor(t);
    return ldexp(detail::polynomial(t - n, c), n);
  } else {
    const Batch<T> n = nearest(t);
    const Batch<T> f = t - n;
    const Batch<T> r = f * (C::ln2_high + C::ln2_low);
    return ldexp(detail::exp_reduced(r), n);
  }
}

/// ln x, ≤ 0.9 ULP; −∞ at ±0, NaN below and where x is NaN.
template <Real T>
[[nodiscard, gnu::always_inline]] inline Batch<T> log(Batch<T> x) {
  using C = detail::MathConstants<T>;
  using Limits = std::numeric_limits<T>;
  constexpr T two_to_digits = T(std::uint64_t(1) << C::digits);
  const Mask<T> denormal = x < Batch<T>(Limits::min());
  const auto parts = detail::log_parts(select(denormal, x * two_to_digits, x));
  const Batch<T> e = select(denormal, parts.e - T(C::digits), parts.e);
  const Batch<T> y = detail::log_sum(e, parts.m - T(1), Batch<T>(T(0)));
  const Batch<T> outside = select(x == Batch<T>(T(0)), -Limits::infinity(), Limits::quiet_NaN());
  return select(x > Batch<T>(T(0)), select(x == Batch<T>(Limits::infinity()), x, y), outside);
}

/// ln(1 + x), ≤ 1.1 ULP, also near 0; −∞ at −1, NaN below and where x is NaN.
template <Real T>
[[nodiscard, gnu::always_inline]] inline Batch<T> log1p(Batch<T> x) {
  using Limits = std::numeric_limits<T>;
  const Batch<T> y = copysign(detail::log1p_sum(x, Batch<T>(T(0)), Batch<T>(T(0))), x);
  const Batch<T> outside = select(x == Batch<T>(T(-1)), -Limits::infinity(), Limits::quiet_NaN());
  return select(x > Batch<T>(T(-1)), select(x == Batch<T>(Limits::infinity()), x, y), outside);
}

/// log₂ x for finite x ≥ 1: to 2.2e-7 plus half an ULP in float, where the logarithm is an exponent that only its
/// absolute error matters to, at a third of the cost of `log`; NaN where x is NaN. In double log(x)/ln 2.
template <Real T>
[[nodiscard, gnu::always_inline]] inline Batch<T> log2_above_one(Batch<T> x) {
  using C = detail::MathConstants<T>;
  if constexpr (sizeof(T) == 8) {
    return log(x) * C::log2_e;
  } else {
    // log₂(1 + m)/m on [0, 1), a minimax fit of the absolute error of log₂(1 + m) by reweighted least squares: 4.6e-8
    constexpr std::array<float, 8> quotient = {0x1.71542p+0f,  -0x1.713ca4p-1f, 0x1.ea2c1p-2f,  -0x1.63a2e6p-2f,
                                               0x1.ef56ccp-3f, -0x1.19a4c8p-3f, 0x1.aa779ep-5f, -0x1.310ae6p-7f};
    using Bits = Words<float>;
    constexpr float two_to_digits = 0x1p23f;
    constexpr std::uint32_t fraction = (1u << 23) - 1, one = 0x3f800000u;
    const Bits bits = to_bits(x);
    const Batch<float> e = from_bits((bits >> 23) | to_bits(Batch<float>(two_to_digits))) - (two_to_digits + 127.0f);
    const Batch<float> m = from_bits((bits & Bits(fraction)) | Bits(one)) - 1.0f;
    return fma(m, detail::polynomial(m, quotient), e + (x - x));  // x − x: NaN stays
  }
}

/// tanh x, ≤ 0.9 ULP.
template <Real T>
[[nodiscard, gnu::always_inline]] inline Batch<T> tanh(Batch<T> x) {
  using C = detail::MathConstants<T>;
  // tanh a = t/(t + 2), t = e²ᵃ − 1 = (2ⁿ − 1) + 2ⁿ q
  const Batch<T> a = min(Batch<T>(C::tanh_highest), abs(x));
  const auto e = detail::exp_parts(a + a);
  const Batch<T> power = ldexp(Batch<T>(T(1)), e.n);
  auto t = detail::fast_two_sum(power - T(1), power * e.q);
  t.low = fma(power, e.q_low, t.low);
  auto d = detail::two_sum(t.high, Batch<T>(T(2)));
  d.low += t.low;
  const auto y = detail::quotient(t, d);
  return copysign(y.high + y.low, x);
}

/// σ(x) = 1/(1 + e⁻ˣ), ≤ 0.9 ULP down to the smallest denormal.
template <Real T>
[[nodiscard, gnu::always_inline]] inline Batch<T> sigmoid(Batch<T> x) {
  using C = detail::MathConstants<T>;
  // With E = e^−|x| ≤ 1: σ = 1/(1 + E) for x ≥ 0, E/(1 + E) for x < 0.
  const auto e = detail::exp_parts(-min(Batch<T>(-C::exp_lowest), abs(x)));
  const auto p = detail::fast_two_sum(Batch<T>(T(1)), e.q);
  const detail::TwoWords<T> power{ldexp(p.high, e.n), ldexp(p.low + e.q_low, e.n)};
  auto d = detail::fast_two_sum(Batch<T>(T(1)), power.high);
  d.low += power.low;
  const Mask<T> negative = x < Batch<T>(T(0));
  const auto y = detail::quotient<T>({select(negative, power.high, T(1)), select(negative, power.low, T(0))}, d);
  return y.high + y.low;
}

/// asinh x = ln(x + √(1 + x²)), odd, ≤ 1.2 ULP, also near 0 and where x² overflows.
template <Real T>
[[nodiscard, gnu::always_inline]] inline Batch<T> asinh(Batch<T> x) {
  using C = detail::MathConstants<T>;
  const Batch<T> a = abs(x);
  // asinh a = ln(1 + y), y = a + (w − 1), w = √(1 + a²), each in two words
  const Batch<T> square = detail::rounded_product(a, a);
  auto radicand = detail::two_sum(Batch<T>(T(1)), square);
  radicand.low -= detail::residual(a, a, square);
  const Batch<T> w = sqrt(radicand.high);
  const auto y = detail::fast_two_sum(a, w - T(1));
  const Batch<T> y_low = fma(detail::residual(w, w, radicand.high) + radicand.low, T(0.5) / w, y.low);
  const Mask<T> large = a > Batch<T>(C::asinh_large);
  const Batch<T> r = detail::log1p_sum(select(large, a - T(1), y.high), select(large, T(0), y_low),
                                       select(large, Batch<T>(T(1)), T(0)));
  return copysign(select(a < Batch<T>(std::numeric_limits<T>::infinity()), r, a), x);
}

/// atanh x = ½ ln((1 + x)/(1 − x)), odd, ≤ 1 ULP, also near 0; ±∞ at ±1, NaN outside.
template <Real T>
[[nodiscard, gnu::always_inline]] inline Batch<T> atanh(Batch<T> x) {
  using Limits = std::numeric_limits<T>;
  const Batch<T> a = abs(x);
  // atanh a = ½ ln(1 + 2a/(1 − a))
  const auto y = detail::quotient<T>({a + a, Batch<T>(T(0))}, detail::fast_two_sum(Batch<T>(T(1)), -a));
  const Batch<T> r = T(0.5) * detail::log1p_sum(y.high, y.low, Batch<T>(T(0)));
  const Batch<T> outside = select(a == Batch<T>(T(1)), Limits::infinity(), Limits::quiet_NaN());
  return copysign(select(a < Batch<T>(T(1)), r, outside), x);
}

namespace detail {

/// y[i] = f(x[i]); x and y are the same span or do not overlap.
// Flattened: with f in two places, loop and tail, gcc 12 would call it.
template <Real T, class F>
[[gnu::flatten]] void transform(std::span<const T> x, std::span<T> y, F f) {
  RUVECTOR_ASSERT(x.size() == y.size());
  constexpr Index width = lanes<T>;
  const Index n = Index(x.size());
  Index i = 0;
  for (; i + width <= n; i += width) store(y.data() + i, f(load(x.data() + i)));
  if (i < n) store_partial(y.data() + i, n - i, f(load_partial(x.data() + i, n - i)));
}

}  // namespace detail

/// y[i] = e^x[i].
template <Real T>
void exp(std::type_identity_t<std::span<const T>> x, std::span<T> y) noexcept {
  detail::transform<T>(x, y, [](Batch<T> b) { return exp(b); });
}

/// y[i] = 2^x[i], the exponential of softmax.
template <Real T>
void exp2_softmax(std::type_identity_t<std::span<const T>> x, std::span<T> y) noexcept {
  detail::transform<T>(x, y, [](Batch<T> b) { return exp2_softmax(b); });
}

/// y[i] = ln x[i].
template <Real T>
void log(std::type_identity_t<std::span<const T>> x, std::span<T> y) noexcept {
  detail::transform<T>(x, y, [](Batch<T> b) { return log(b); });
}

/// y[i] = ln(1 + x[i]).
template <Real T>
void log1p(std::type_identity_t<std::span<const T>> x, std::span<T> y) noexcept {
  detail::transform<T>(x, y, [](Batch<T> b) { return log1p(b); });
}

/// y[i] = tanh x[i].
template <Real T>
void tanh(std::type_identity_t<std::span<const T>> x, std::span<T> y) noexcept {
  detail::transform<T>(x, y, [](Batch<T> b) { return tanh(b); });
}

/// y[i] = σ(x[i]).
template <Real T>
void sigmoid(std::type_identity_t<std::span<const T>> x, std::span<T> y) noexcept {
  detail::transform<T>(x, y, [](Batch<T> b) { return sigmoid(b); });
}

/// y[i] = asinh x[i].
template <Real T>
void asinh(std::type_identity_t<std::span<const T>> x, std::span<T> y) noexcept {
  detail::transform<T>(x, y, [](Batch<T> b) { return asinh(b); });
}

/// y[i] = atanh x[i].
template <Real T>
void atanh(std::type_identity_t<std::span<const T>> x, std::span<T> y) noexcept {
  detail::transform<T>(x, y, [](Batch<T> b) { return atanh(b); });
}

}  // namespace ruvector::inline RUVECTOR_ABI::simd
