// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"

#ifndef RUVECTOR_SCALAR
#include <xsimd/xsimd.hpp>
#endif

#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

// The only file that includes xsimd. It works with 8.1 (2022) and everything newer: where versions differ, or where one
// of them is wrong or slow, the shim is in the first part of this file. The second part, the types Batch and Mask, is
// all that the rest of the library sees. Without a vector target (RUVECTOR_SCALAR, or a CPU that xsimd does not know)
// a batch is one scalar and the same code runs.

namespace ruvector::inline RUVECTOR_ABI::simd {

namespace detail {

/// The unsigned integer as wide as T.
template <Real T>
using Word = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

template <Real T>
inline constexpr auto sign_bit = Word<T>(Word<T>(1) << (8 * sizeof(T) - 1));

/// Whether `fma` rounds once.
#if defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__)
inline constexpr bool fused = true;
#else
inline constexpr bool fused = false;
#endif

// The functions below act on the target's registers; they are named apart from those on batches.
namespace native {

#if defined(RUVECTOR_SCALAR) || defined(XSIMD_NO_SUPPORTED_ARCHITECTURE)

template <class T>
using Pack = T;
template <class T>
using PackMask = bool;
template <class T>
inline constexpr Index pack_lanes = 1;

template <Real T>
T load(const T* p) {
  return *p;
}
template <Real T>
T load_partial(const T* p, Index n) {
  return n > 0 ? *p : T(0);
}
template <Real T>
void store(T* p, T x) {
  *p = x;
}
template <Real T>
void store_partial(T* p, Index n, T x) {
  if (n > 0) *p = x;
}
template <Real T>
T fma(T a, T b, T c) {
  if constexpr (fused)
    return std::fma(a, b, c);
  else
    return a * b + c;  // std::fma would be a slow call
}
template <Real T>
T fnma(T a, T b, T c) {
  return fma(-a, b, c);
}
template <Real T>
T min(T a, T b) {
  return a < b ? a : b;
}
template <Real T>
T max(T a, T b) {
  return a > b ? a : b;
}
template <Real T>
T sqrt(T a) {
  return std::sqrt(a);
}
template <Real T>
T floor(T a) {
  return std::floor(a);
}
template <Real T>
T nearest(T a) {
  return std::nearbyint(a);
}
template <std::unsigned_integral W>
W shift_left(W a, int n) {
  return a << n;
}
template <std::unsigned_integral W>
W shift_right(W a, int n) {
  return a >> n;
}
template <Real T>
T select(bool mask, T a, T b) {
  return mask ? a : b;
}
template <Real T>
bool first_lanes(Index n) {
  return n > 0;
}
inline bool any(bool mask) {
  return mask;
}
inline bool all(bool mask) {
  return mask;
}
inline bool invert(bool mask) {
  return !mask;
}
inline std::uint32_t lane_bits(bool mask) {
  return mask ? 1u : 0u;
}

template <class To, class From>
To reinterpret(From x) {
  return std::bit_cast<To>(x);
}
template <class Op, Real T>
T fold(T x, Op) {
  return x;
}

#else

template <class T>
using Pack = xsimd::batch<T>;
template <class T>
using PackMask = xsimd::batch_bool<T>;
template <class T>
inline constexpr Index pack_lanes = Index(Pack<T>::size);

template <Real T>
Pack<T> load(const T* p) {
  return Pack<T>::load_unaligned(p);
}
template <Real T>
void store(T* p, Pack<T> x) {
  x.store_unaligned(p);
}

// Masked loads and stores touch no memory outside of p[0…n−1]; xsimd has them only from version 14.
#if defined(__AVX512F__)
inline Pack<float> load_partial(const float* p, Index n) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1u), p);
}
inline Pack<double> load_partial(const double* p, Index n) {
  return _mm512_maskz_loadu_pd(__mmask8((1u << n) - 1u), p);
}
inline void store_partial(float* p, Index n, Pack<float> x) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1u), x.data);
}
inline void store_partial(double* p, Index n, Pack<double> x) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1u), x.data);
}
#elif defined(__AVX__)
/// A window of eight words into −1 (8 times), 0 (8 times): the first n are set.
inline __m256i first_words(Index n) {
  static constexpr std::int32_t window[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(window + 8 - n));
}
inline Pack<float> load_partial(const float* p, Index n) {
  return _mm256_maskload_ps(p, first_words(n));
}
inline Pack<double> load_partial(const double* p, Index n) {
  return _mm256_maskload_pd(p, first_words(2 * n));
}
inline void store_partial(float* p, Index n, Pack<float> x) {
  _mm256_maskstore_ps(p, first_words(n), x.data);
}
inline void store_partial(double* p, Index n, Pack<double> x) {
  _mm256_maskstore_pd(p, first_words(2 * n), x.data);
}
#else
template <Real T>
Pack<T> load_partial(const T* p, Index n) {
  T lane[pack_lanes<T>] = {};
  for (Index i = 0; i < n; ++i) lane[i] = p[i];
  return load(lane);
}
template <Real T>
void store_partial(T* p, Index n, Pack<T> x) {
  T lane[pack_lanes<T>];
  store(lane, x);
  for (Index i = 0; i < n; ++i) p[i] = lane[i];
}
#endif

#if defined(__AVX512F__)
// Intrinsics, for two reasons. xsimd 8.1 has no fma for AVX-512: it multiplies and adds. And in gcc 12 the unmasked
// forms of many intrinsics read a variable that is not initialised (gcc bug 105593), which warns in every file that
// includes this one; the masked forms with all lanes set give the same single instruction.
inline Pack<float> fma(Pack<float> a, Pack<float> b, Pack<float> c) {
  return _mm512_fmadd_ps(a.data, b.data, c.data);
}
inline Pack<double> fma(Pack<double> a, Pack<double> b, Pack<double> c) {
  return _mm512_fmadd_pd(a.data, b.data, c.data);
}
inline Pack<float> fnma(Pack<float> a, Pack<float> b, Pack<float> c) {
  return _mm512_fnmadd_ps(a.data, b.data, c.data);
}
inline Pack<double> fnma(Pack<double> a, Pack<double> b, Pack<double> c) {
  return _mm512_fnmadd_pd(a.data, b.data, c.data);
}
inline constexpr auto all_floats = __mmask16(-1);
inline constexpr auto all_doubles = __mmask8(-1);
inline Pack<float> min(Pack<float> a, Pack<float> b) {
  return _mm512_mask_min_ps(a.data, all_floats, a.data, b.data);
}
inline Pack<double> min(Pack<double> a, Pack<double> b) {
  return _mm512_mask_min_pd(a.data, all_doubles, a.data, b.data);
}
inline Pack<float> max(Pack<float> a, Pack<float> b) {
  return _mm512_mask_max_ps(a.data, all_floats, a.data, b.data);
}
inline Pack<double> max(Pack<double> a, Pack<double> b) {
  return _mm512_mask_max_pd(a.data, all_doubles, a.data, b.data);
}
inline Pack<float> sqrt(Pack<float> a) {
  return _mm512_mask_sqrt_ps(a.data, all_floats, a.data);
}
inline Pack<double> sqrt(Pack<double> a) {
  return _mm512_mask_sqrt_pd(a.data, all_doubles, a.data);
}
inline Pack<float> floor(Pack<float> a) {
  return _mm512_mask_roundscale_ps(a.data, all_floats, a.data, 1);
}
inline Pack<double> floor(Pack<double> a) {
  return _mm512_mask_roundscale_pd(a.data, all_doubles, a.data, 1);
}
inline Pack<float> nearest(Pack<float> a) {
  return _mm512_mask_roundscale_ps(a.data, all_floats, a.data, 0);
}
inline Pack<double> nearest(Pack<double> a) {
  return _mm512_mask_roundscale_pd(a.data, all_doubles, a.data, 0);
}
inline Pack<float> ldexp(Pack<float> a, Pack<float> n) {
  return _mm512_mask_scalef_ps(a.data, all_floats, a.data, n.data);
}
inline Pack<double> ldexp(Pack<double> a, Pack<double> n) {
  return _mm512_mask_scalef_pd(a.data, all_doubles, a.data, n.data);
}
inline Pack<std::uint32_t> shift_left(Pack<std::uint32_t> a, int n) {
  return __m512i(__v16su(a.data) << unsigned(n));
}
inline Pack<std::uint64_t> shift_left(Pack<std::uint64_t> a, int n) {
  return __m512i(__v8du(a.data) << std::uint64_t(n));
}
inline Pack<std::uint32_t> shift_right(Pack<std::uint32_t> a, int n) {
  return __m512i(__v16su(a.data) >> unsigned(n));
}
inline Pack<std::uint64_t> shift_right(Pack<std::uint64_t> a, int n) {
  return __m512i(__v8du(a.data) >> std::uint64_t(n));
}
#else
template <class P>
P fma(P a, P b, P c) {
  return xsimd::fma(a, b, c);
}
template <class P>
P fnma(P a, P b, P c) {
  return xsimd::fnma(a, b, c);
}
// On x86 version 14 swapped the operands, and with them which one a NaN yields to.
template <class P>
P min(P a, P b) {
  return XSIMD_VERSION_MAJOR >= 14 ? xsimd::min(b, a) : xsimd::min(a, b);
}
template <class P>
P max(P a, P b) {
  return XSIMD_VERSION_MAJOR >= 14 ? xsimd::max(b, a) : xsimd::max(a, b);
}
template <class P>
P sqrt(P a) {
  return xsimd::sqrt(a);
}
template <class P>
P floor(P a) {
  return xsimd::floor(a);
}
template <class P>
P nearest(P a) {
  return xsimd::nearbyint(a);
}
template <class P>
P shift_left(P a, int n) {
  return a << n;
}
template <class P>
P shift_right(P a, int n) {
  return a >> n;
}
#endif

template <class M, class P>
P select(M mask, P a, P b) {
  return xsimd::select(mask, a, b);
}
template <class M>
bool any(M mask) {
  return xsimd::any(mask);
}
template <class M>
bool all(M mask) {
  return xsimd::all(mask);
}
template <class M>
M invert(M mask) {
  return !mask;
}

template <Real T>
PackMask<T> first_lanes(Index n) {
  static constexpr T index[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  static_assert(pack_lanes<T> <= 16);
  return load(index) < Pack<T>(static_cast<T>(n));
}

/// Bit i is lane i. xsimd has `mask()` only from version 10.
template <class M>
std::uint32_t lane_bits(M mask) {
  if constexpr (std::integral<decltype(mask.data)>) {
    return static_cast<std::uint32_t>(mask.data);  // AVX-512: masks are integers
  } else {
    bool lane[M::size];
    mask.store_unaligned(lane);
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < M::size; ++i) bits |= std::uint32_t(lane[i]) << i;
    return bits;
  }
}
#if defined(__AVX__) && !defined(__AVX512F__)
inline std::uint32_t lane_bits(PackMask<float> mask) {
  return std::uint32_t(_mm256_movemask_ps(mask.data));
}
inline std::uint32_t lane_bits(PackMask<double> mask) {
  return std::uint32_t(_mm256_movemask_pd(mask.data));
}
#elif defined(__SSE2__) && !defined(__AVX__)
inline std::uint32_t lane_bits(PackMask<float> mask) {
  return std::uint32_t(_mm_movemask_ps(mask.data));
}
inline std::uint32_t lane_bits(PackMask<double> mask) {
  return std::uint32_t(_mm_movemask_pd(mask.data));
}
#endif

// xsimd changed the spelling of bitwise_cast in version 10; registers are plain vectors to the compiler.
template <class To, class From>
To reinterpret(From x) {
  return To(std::bit_cast<typename To::register_type>(x.data));
}

template <class V, std::size_t... i>
auto lower_half(V v, std::index_sequence<i...>) {
  return __builtin_shufflevector(v, v, i...);
}
template <class V, std::size_t... i>
auto upper_half(V v, std::index_sequence<i...>) {
  return __builtin_shufflevector(v, v, (sizeof...(i) + i)...);
}
template <std::size_t n, class Op, class V>
auto fold_lanes(V v, Op op) {
  if constexpr (n == 1) {
    return v[0];
  } else if constexpr (n == 2) {
    return op(v[0], v[1]);
  } else {
    constexpr auto half = std::make_index_sequence<n / 2>();
    return fold_lanes<n / 2>(op(lower_half(v, half), upper_half(v, half)), op);
  }
}
/// Lane i meets lane i + half, and so on: one order for every compiler and version (hadd of xsimd has several).
template <class Op, class T, class A>
T fold(xsimd::batch<T, A> x, Op op) {
  return fold_lanes<xsimd::batch<T, A>::size>(x.data, op);
}

#endif

}  // namespace native

}  // namespace detail

/// Lanes of a `Batch<T>`: 1 in scalar builds.
template <Real T>
inline constexpr Index lanes = detail::native::pack_lanes<T>;

/// One truth value a lane.
template <Real T>
struct Mask {
  detail::native::PackMask<T> pack;  ///< register of the target

  /// Lane by lane.
  ///@{
  [[nodiscard]] friend Mask operator&(Mask a, Mask b) { return {detail::native::PackMask<T>(a.pack & b.pack)}; }
  [[nodiscard]] friend Mask operator|(Mask a, Mask b) { return {detail::native::PackMask<T>(a.pack | b.pack)}; }
  [[nodiscard]] friend Mask operator!(Mask a) { return {detail::native::invert(a.pack)}; }
  ///@}
};

/// The bits of a `Batch<T>` as unsigned integers of the same width.
template <Real T>
struct Words {
  using Word = detail::Word<T>;                ///< element
  detail::native::Pack<detail::Word<T>> pack;  ///< register of the target

  Words() = default;
  /// The same word in all lanes. Implicit, so that constants mix with words.
  Words(Word word) : pack(word) {}
  /// Wraps a register.
  [[nodiscard]] static Words wrap(detail::native::Pack<Word> pack) {
    Words words;
    words.pack = pack;
    return words;
  }

  /// Lane by lane; sums wrap around.
  ///@{
  [[nodiscard]] friend Words operator+(Words a, Words b) { return wrap(a.pack + b.pack); }
  [[nodiscard]] friend Words operator-(Words a, Words b) { return wrap(a.pack - b.pack); }
  [[nodiscard]] friend Words operator&(Words a, Words b) { return wrap(a.pack & b.pack); }
  [[nodiscard]] friend Words operator|(Words a, Words b) { return wrap(a.pack | b.pack); }
  [[nodiscard]] friend Words operator^(Words a, Words b) { return wrap(a.pack ^ b.pack); }
  [[nodiscard]] friend Words operator<<(Words a, int n) { return wrap(detail::native::shift_left(a.pack, n)); }
  [[nodiscard]] friend Words operator>>(Words a, int n) { return wrap(detail::native::shift_right(a.pack, n)); }
  ///@}
};

/// As many T as a register of the target holds, with the arithmetic of T in every lane. Comparisons yield a `Mask`.
/// A scalar converts implicitly to a batch of equal lanes, so that formulas read as they do on paper.
template <Real T>
struct Batch {
  using Scalar = T;              ///< element
  detail::native::Pack<T> pack;  ///< register of the target

  Batch() = default;
  /// The same value in all lanes. Implicit: constants mix with batches.
  Batch(T value) : pack(value) {}
  /// Wraps a register.
  [[nodiscard]] static Batch wrap(detail::native::Pack<T> pack) {
    Batch batch;
    batch.pack = pack;
    return batch;
  }

  /// Lane by lane.
  ///@{
  [[nodiscard]] friend Batch operator+(Batch a, Batch b) { return wrap(a.pack + b.pack); }
  [[nodiscard]] friend Batch operator-(Batch a, Batch b) { return wrap(a.pack - b.pack); }
  [[nodiscard]] friend Batch operator*(Batch a, Batch b) { return wrap(a.pack * b.pack); }
  [[nodiscard]] friend Batch operator/(Batch a, Batch b) { return wrap(a.pack / b.pack); }
  // 0 − x, as some versions of xsimd negate, has the wrong sign at 0.
  [[nodiscard]] friend Batch operator-(Batch a) { return from_bits(to_bits(a) ^ Words<T>(detail::sign_bit<T>)); }
  Batch& operator+=(Batch b) { return *this = *this + b; }
  Batch& operator-=(Batch b) { return *this = *this - b; }
  Batch& operator*=(Batch b) { return *this = *this * b; }
  Batch& operator/=(Batch b) { return *this = *this / b; }
  ///@}

  /// Lane by lane; false where a lane is NaN.
  ///@{
  [[nodiscard]] friend Mask<T> operator<(Batch a, Batch b) { return {a.pack < b.pack}; }
  [[nodiscard]] friend Mask<T> operator<=(Batch a, Batch b) { return {a.pack <= b.pack}; }
  [[nodiscard]] friend Mask<T> operator>(Batch a, Batch b) { return {a.pack > b.pack}; }
  [[nodiscard]] friend Mask<T> operator>=(Batch a, Batch b) { return {a.pack >= b.pack}; }
  [[nodiscard]] friend Mask<T> operator==(Batch a, Batch b) { return {a.pack == b.pack}; }
  ///@}
};

/// All lanes are `value`.
template <Real T>
[[nodiscard]] Batch<T> broadcast(T value) {
  return Batch<T>(value);
}

/// p[0…lanes−1]; p is aligned to T, no more.
template <Real T>
[[nodiscard]] Batch<T> load(const T* p) {
  return Batch<T>::wrap(detail::native::load(p));
}

/// p[0…n−1], then zeros; 0 ≤ n ≤ lanes. Touches no other memory.
template <Real T>
[[nodiscard]] Batch<T> load_partial(const T* p, Index n) {
  RUVECTOR_ASSERT(0 <= n && n <= lanes<T>);
  return Batch<T>::wrap(detail::native::load_partial(p, n));
}

/// Writes all lanes to p[0…lanes−1]; p is aligned to T, no more.
template <Real T>
void store(T* p, std::type_identity_t<Batch<T>> x) {
  detail::native::store(p, x.pack);
}

/// Writes the first n lanes to p[0…n−1]; 0 ≤ n ≤ lanes. Touches no other memory.
template <Real T>
void store_partial(T* p, Index n, std::type_identity_t<Batch<T>> x) {
  RUVECTOR_ASSERT(0 <= n && n <= lanes<T>);
  detail::native::store_partial(p, n, x.pack);
}

/// a·b + c, rounded once where the target has a fused multiply-add (else twice).
template <Real T>
[[nodiscard]] Batch<T> fma(Batch<T> a, std::type_identity_t<Batch<T>> b, std::type_identity_t<Batch<T>> c) {
  return Batch<T>::wrap(detail::native::fma(a.pack, b.pack, c.pack));
}

/// c − a·b, rounded once where the target has a fused multiply-add (else twice).
template <Real T>
[[nodiscard]] Batch<T> fnma(Batch<T> a, std::type_identity_t<Batch<T>> b, std::type_identity_t<Batch<T>> c) {
  return Batch<T>::wrap(detail::native::fnma(a.pack, b.pack, c.pack));
}

/// The smaller of a and b. NaN where b is NaN; where only a is NaN, either b or NaN.
template <Real T>
[[nodiscard]] Batch<T> min(Batch<T> a, std::type_identity_t<Batch<T>> b) {
  return Batch<T>::wrap(detail::native::min(a.pack, b.pack));
}

/// The larger of a and b. NaN where b is NaN; where only a is NaN, either b or NaN.
template <Real T>
[[nodiscard]] Batch<T> max(Batch<T> a, std::type_identity_t<Batch<T>> b) {
  return Batch<T>::wrap(detail::native::max(a.pack, b.pack));
}

/// √a, correctly rounded.
template <Real T>
[[nodiscard]] Batch<T> sqrt(Batch<T> a) {
  return Batch<T>::wrap(detail::native::sqrt(a.pack));
}

/// The largest integer ≤ a.
template <Real T>
[[nodiscard]] Batch<T> floor(Batch<T> a) {
  return Batch<T>::wrap(detail::native::floor(a.pack));
}

/// The nearest integer, ties to even.
template <Real T>
[[nodiscard]] Batch<T> nearest(Batch<T> a) {
  return Batch<T>::wrap(detail::native::nearest(a.pack));
}

/// a where the mask is set, b elsewhere.
template <Real T>
[[nodiscard]] Batch<T> select(Mask<T> mask, std::type_identity_t<Batch<T>> a, std::type_identity_t<Batch<T>> b) {
  return Batch<T>::wrap(detail::native::select(mask.pack, a.pack, b.pack));
}

/// Set where a is NaN.
template <Real T>
[[nodiscard]] Mask<T> isnan(Batch<T> a) {
  return !(a == a);
}

/// The first n lanes are set; 0 ≤ n ≤ lanes.
template <Real T>
[[nodiscard]] Mask<T> first_lanes(Index n) {
  return {detail::native::first_lanes<T>(n)};
}

/// Whether a lane is set.
template <Real T>
[[nodiscard]] bool any(Mask<T> mask) {
  return detail::native::any(mask.pack);
}

/// Whether all lanes are set.
template <Real T>
[[nodiscard]] bool all(Mask<T> mask) {
  return detail::native::all(mask.pack);
}

/// Lane i as bit i.
template <Real T>
[[nodiscard]] std::uint32_t lane_bits(Mask<T> mask) {
  return detail::native::lane_bits(mask.pack);
}

/// The bits of every lane.
template <Real T>
[[nodiscard]] Words<T> to_bits(Batch<T> a) {
  return Words<T>::wrap(detail::native::reinterpret<detail::native::Pack<detail::Word<T>>>(a.pack));
}

/// The numbers that have these bits.
template <Real T>
[[nodiscard]] Batch<T> from_bits(Words<T> a) {
  return Batch<T>::wrap(detail::native::reinterpret<detail::native::Pack<T>>(a.pack));
}

/// |a|.
template <Real T>
[[nodiscard]] Batch<T> abs(Batch<T> a) {
  return from_bits(to_bits(a) & Words<T>(~detail::sign_bit<T>));
}

/// |magnitude| with the sign of `sign`.
template <Real T>
[[nodiscard]] Batch<T> copysign(Batch<T> magnitude, std::type_identity_t<Batch<T>> sign) {
  return from_bits((to_bits(magnitude) & Words<T>(~detail::sign_bit<T>)) |
                   (to_bits(sign) & Words<T>(detail::sign_bit<T>)));
}

/// Whether `ldexp` takes any n, infinite ones too, also for a = NaN: 0 at −∞ and ∞ at ∞.
#if defined(__AVX512F__) && !defined(RUVECTOR_SCALAR)
inline constexpr bool ldexp_saturates = true;
#else
inline constexpr bool ldexp_saturates = false;
#endif

/// a·2ⁿ for integral n, rounded once (also where the result is denormal), ±∞ where it overflows.
/// |n| ≤ 250 for float, 2000 for double, unless `ldexp_saturates`.
template <Real T>
[[nodiscard]] Batch<T> ldexp(Batch<T> a, std::type_identity_t<Batch<T>> n) {
#if defined(__AVX512F__) && !defined(RUVECTOR_SCALAR)
  return Batch<T>::wrap(detail::native::ldexp(a.pack, n.pack));
#else
  // Adding 1.5·2^digits leaves n in the low bits. One factor 2ⁿ would overflow or be denormal, two halves of it are
  // not.
  constexpr int digits = std::numeric_limits<T>::digits - 1;
  constexpr T to_low_bits = T(std::uint64_t(3) << (digits - 1));
  constexpr auto bias = detail::Word<T>(std::numeric_limits<T>::max_exponent - 1);
  const Words<T> integer = to_bits(n + to_low_bits);
  const Words<T> half = integer >> 1;
  return a * from_bits((half + bias) << digits) * from_bits((integer - half + bias) << digits);
#endif
}

/// Sum of the lanes in a fixed order: lane i + lane (i + half), and so on with what remains.
template <Real T>
[[nodiscard]] T reduce_add(Batch<T> a) {
  return detail::native::fold(a.pack, [](auto x, auto y) { return x + y; });
}

/// The largest lane; no lane is NaN.
template <Real T>
[[nodiscard]] T reduce_max(Batch<T> a) {
  return detail::native::fold(a.pack, [](auto x, auto y) { return x > y ? x : y; });
}

/// The smallest lane; no lane is NaN.
template <Real T>
[[nodiscard]] T reduce_min(Batch<T> a) {
  return detail::native::fold(a.pack, [](auto x, auto y) { return x < y ? x : y; });
}

}  // namespace ruvector::inline RUVECTOR_ABI::simd
