// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/simd/arch.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

// Storage in fewer bits: bfloat16, float16, and int8 with one scale a row. Arithmetic stays in float. The loops are
// plain, for the compiler to vectorise: the converting loads of xsimd go through the stack (11 times slower).

namespace ruvector::inline RUVECTOR_ABI::simd {

namespace detail {

/// The upper half of a float, rounded to nearest even; NaN stays NaN.
[[nodiscard]] inline std::uint16_t bfloat16_bits(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const std::uint32_t quiet_nan = bits | 0x400000u;
  return static_cast<std::uint16_t>(((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded) >> 16);
}

[[nodiscard]] inline float float_of_bfloat16(std::uint16_t bits) {
  return std::bit_cast<float>(std::uint32_t(bits) << 16);
}

/// IEEE binary16, rounded to nearest even; NaN keeps the top of its payload. As VCVTPS2PH does it.
[[nodiscard]] inline std::uint16_t float16_bits(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Normal results: the exponent loses its bias of 112 more, the fraction 13 bits; a carry may reach infinity.
  const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Denormal results: adding ½, whose last place is 2⁻²⁴, rounds to a multiple of it and leaves the count in the low
  // bits.
  const std::uint32_t denormal = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const std::uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  std::uint32_t half = magnitude < 0x38800000u ? denormal : normal;
  half = magnitude >= 0x47800000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? nan : half;
  return static_cast<std::uint16_t>(half | ((bits >> 16) & 0x8000u));
}

[[nodiscard]] inline float float_of_float16(std::uint16_t half) {
  const std::uint32_t magnitude = (half & 0x7fffu) << 13;
  // As the bits of a float it is 2¹¹² too small, denormals included; infinity and NaN need the exponent 255 instead.
  const auto scaled = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const std::uint32_t special = magnitude | 0x7f800000u | (magnitude > 0x0f800000u ? 0x400000u : 0u);
  const std::uint32_t sign = std::uint32_t(half & 0x8000u) << 16;
  return std::bit_cast<float>(sign | (magnitude >= 0x0f800000u ? special : scaled));
}

}  // namespace detail

/// Brain floating point: the upper half of a float. 8 exponent bits, 8 significant bits. Storage only.
struct bfloat16 {
  std::uint16_t bits;  ///< sign, 8 exponent bits, 7 fraction bits

  bfloat16() = default;
  /// Rounds to nearest even.
  explicit bfloat16(float x) : bits(detail::bfloat16_bits(x)) {}
  /// Exact.
  explicit operator float() const { return detail::float_of_bfloat16(bits); }
};

/// IEEE 754 binary16: 5 exponent bits, 11 significant bits, largest 65504. Storage only.
struct float16 {
  std::uint16_t bits;  ///< sign, 5 exponent bits, 10 fraction bits

  float16() = default;
  /// Rounds to nearest even; |x| ≥ 65520 becomes ±∞.
  explicit float16(float x) : bits(detail::float16_bits(x)) {}
  /// Exact.
  explicit operator float() const { return detail::float_of_float16(bits); }
};

/// y[i] = x[i], rounded to nearest even.
inline void convert(std::span<const float> x, std::span<bfloat16> y) noexcept {
  RUVECTOR_ASSERT(x.size() == y.size());
  for (std::size_t i = 0; i < x.size(); ++i) y[i].bits = detail::bfloat16_bits(x[i]);
}

/// y[i] = x[i], exactly.
inline void convert(std::span<const bfloat16> x, std::span<float> y) noexcept {
  RUVECTOR_ASSERT(x.size() == y.size());
  for (std::size_t i = 0; i < x.size(); ++i) y[i] = detail::float_of_bfloat16(x[i].bits);
}

/// y[i] = x[i], rounded to nearest even; |x| ≥ 65520 becomes ±∞.
inline void convert(std::span<const float> x, std::span<float16> y) noexcept {
  RUVECTOR_ASSERT(x.size() == y.size());
  for (std::size_t i = 0; i < x.size(); ++i) y[i].bits = detail::float16_bits(x[i]);
}

/// y[i] = x[i], exactly.
inline void convert(std::span<const float16> x, std::span<float> y) noexcept {
  RUVECTOR_ASSERT(x.size() == y.size());
  for (std::size_t i = 0; i < x.size(); ++i) y[i] = detail::float_of_float16(x[i].bits);
}

/// Stores a row in int8: q_i = x_i/scale to the nearest, scale = max|x|/127, so |x_i − q_i·scale| ≤ scale/2, and
/// returns the scale. The scale is a normal number at least, and NaN where an x_i is infinite or NaN, so that the row
/// reads back as NaN.
[[nodiscard]] inline float quantize(std::span<const float> x, std::span<std::int8_t> q) noexcept {
  RUVECTOR_ASSERT(x.size() == q.size());
  // Integers order like the magnitudes, NaN above infinity.
  std::uint32_t largest = 0;
  for (const float xi : x) largest = std::max(largest, std::bit_cast<std::uint32_t>(xi) & 0x7fffffffu);
  if (largest >= 0x7f800000u) {
    std::fill(q.begin(), q.end(), std::int8_t(0));
    return std::numeric_limits<float>::quiet_NaN();
  }
  const float scale = std::max(std::bit_cast<float>(largest) / 127.0f, std::numeric_limits<float>::min());
  for (std::size_t i = 0; i < x.size(); ++i) {
    // Adding 1.5·2²³ rounds to an integer. The quotient itself may have been rounded onto a half: the remainder tells.
    constexpr float to_integer = 0x1.8p23f;
    const float nearest = (x[i] / scale + to_integer) - to_integer;
    const double rest = double(x[i]) - double(nearest) * double(scale);  // exact
    const int step = int(rest > 0.5 * double(scale)) - int(rest < -0.5 * double(scale));
    q[i] = static_cast<std::int8_t>(static_cast<int>(nearest) + step);
  }
  return scale;
}

/// y[i] = q[i]·scale.
inline void dequantize(std::span<const std::int8_t> q, float scale, std::span<float> y) noexcept {
  RUVECTOR_ASSERT(q.size() == y.size());
  for (std::size_t i = 0; i < q.size(); ++i) y[i] = static_cast<float>(q[i]) * scale;
}

}  // namespace ruvector::inline RUVECTOR_ABI::simd
