// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/simd/convert.hpp>

#include "support/catch.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace test_convert {
namespace {

namespace simd = ruvector::simd;

static_assert(std::is_trivial_v<simd::bfloat16> && sizeof(simd::bfloat16) == 2);
static_assert(std::is_trivial_v<simd::float16> && sizeof(simd::float16) == 2);

/// The value of a small binary format by its definition; exponent bits all set is not asked for.
double value(std::uint32_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const auto exponent = static_cast<int>((bits >> fraction_bits) & ((1u << exponent_bits) - 1));
  const double fraction = std::ldexp(bits & ((1u << fraction_bits) - 1), -fraction_bits);
  const double magnitude = exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
  return (bits >> (exponent_bits + fraction_bits)) != 0 ? -magnitude : magnitude;
}

/// Reads every pattern back, and rounds every number next to a pattern or to the middle of two.
template <class Small>
void check_format(int exponent_bits, int fraction_bits) {
  const std::uint32_t infinity = ((1u << exponent_bits) - 1) << fraction_bits;
  std::uint32_t ties = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    Small small;
    small.bits = static_cast<std::uint16_t>(bits);
    const float x = static_cast<float>(small);
    const std::uint32_t magnitude = bits & 0x7fff;
    if (magnitude > infinity) {
      if (!std::isnan(x) || !std::isnan(static_cast<float>(Small(x)))) FAIL_CHECK("NaN " << bits);
      continue;
    }
    if (magnitude == infinity) {
      if (!std::isinf(x) || std::signbit(x) != (bits >> 15 != 0)) FAIL_CHECK("infinity " << bits);
    } else if (static_cast<double>(x) != value(bits, exponent_bits, fraction_bits)) {
      FAIL_CHECK("value of " << bits);
    }
    if (Small(x).bits != bits) FAIL_CHECK("there and back " << bits);
    if (magnitude >= infinity) continue;

    // The middle of this one and the next one away from zero goes to the even one, its neighbours to the nearest.
    // Beyond the largest lies what would be the next power of two, and rounding to it is infinity.
    const double next = magnitude + 1 == infinity ? std::copysign(std::ldexp(1.0, 1 << (exponent_bits - 1)), x)
                                                  : value(bits + 1, exponent_bits, fraction_bits);
    const double middle = (static_cast<double>(x) + next) / 2;
    const auto f = static_cast<float>(middle);
    if (static_cast<double>(f) != middle) continue;  // below the denormals of float
    ++ties;
    const float inward = std::nextafter(f, 0.0f);
    const float outward = std::nextafter(f, std::copysign(std::numeric_limits<float>::infinity(), f));
    if (Small(f).bits != bits + (bits & 1)) FAIL_CHECK("tie above " << bits);
    if (Small(inward).bits != bits) FAIL_CHECK("below the tie above " << bits);
    if (Small(outward).bits != bits + 1) FAIL_CHECK("above the tie above " << bits);
  }
  CHECK(ties == 2 * infinity);  // every finite number of both signs was looked at
}

#ifdef __F16C__
std::uint16_t hardware_float16(float x) {
  return static_cast<std::uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), 0)));
}
float hardware_float(std::uint16_t bits) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}
#endif

}  // namespace

TEST_CASE("bfloat16: every value reads back, and rounding is to nearest even", "[simd]") {
  check_format<simd::bfloat16>(8, 7);
}

TEST_CASE("float16: every value reads back, and rounding is to nearest even", "[simd]") {
  check_format<simd::float16>(5, 10);
}

#ifdef __F16C__
TEST_CASE("float16: the same bits as the hardware, NaN included", "[simd]") {
  // Every 251st float; 251 is prime, so all exponents, signs and low bits are met.
  std::vector<float> x;
  for (std::uint64_t bits = 0; bits < (std::uint64_t(1) << 32); bits += 251)
    x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  std::vector<simd::float16> y(x.size());
  simd::convert(x, y);
  std::uint64_t different = 0;
  for (std::size_t i = 0; i < x.size(); ++i) different += y[i].bits != hardware_float16(x[i]) ? 1 : 0;
  CHECK(different == 0);

  std::vector<simd::float16> all(0x10000);
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) all[bits].bits = static_cast<std::uint16_t>(bits);
  std::vector<float> wide(all.size());
  simd::convert(all, wide);
  for (std::size_t i = 0; i < all.size(); ++i)
    different +=
        std::bit_cast<std::uint32_t>(wide[i]) != std::bit_cast<std::uint32_t>(hardware_float(all[i].bits)) ? 1 : 0;
  CHECK(different == 0);
}
#endif

TEST_CASE("int8: a row is off by half a scale at most", "[simd]") {
  constexpr std::uint64_t seed = 70;
  CAPTURE(seed);
  ruvector::Rng rng(seed);
  for (int trial = 0; trial < 3000; ++trial) {
    std::vector<float> x(static_cast<std::size_t>(rng.below(60)));
    const float size = std::ldexp(1.0f, static_cast<int>(rng.below(277)) - 149);
    for (float& xi : x) xi = rng.uniform(-1.0f, 1.0f) * size;
    // Multiples of half of a step meet the ties.
    if (trial % 3 == 0 && !x.empty()) {
      x[0] = 127 * size;
      for (std::size_t i = 1; i < x.size(); ++i) x[i] = (static_cast<float>(rng.below(254)) - 126.5f) * size;
    }
    if (std::any_of(x.begin(), x.end(), [](float xi) { return std::isinf(xi); })) continue;
    std::vector<std::int8_t> q(x.size());
    const float scale = simd::quantize(x, q);
    CAPTURE(trial, scale);
    CHECK(scale >= std::numeric_limits<float>::min());
    std::vector<float> back(x.size());
    simd::dequantize(q, scale, back);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double exact = static_cast<double>(q[i]) * static_cast<double>(scale);
      CHECK(std::fabs(static_cast<double>(x[i]) - exact) <= static_cast<double>(scale) / 2);
      CHECK(back[i] == static_cast<float>(exact));
    }
  }
}

TEST_CASE("int8: a row with an infinity or NaN reads back as NaN, a row of zeros as zeros", "[simd]") {
  std::vector<std::int8_t> q(3);
  std::vector<float> back(3);
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::quiet_NaN()}) {
    const std::vector<float> x = {1, bad, 2};
    simd::dequantize(q, simd::quantize(x, q), back);
    for (const float y : back) CHECK(std::isnan(y));
  }
  const std::vector<float> zeros = {0.0f, -0.0f, 0.0f};
  simd::dequantize(q, simd::quantize(zeros, q), back);
  CHECK(back == std::vector<float>{0, 0, 0});
}

}  // namespace test_convert
