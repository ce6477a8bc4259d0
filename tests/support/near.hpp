// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/real.hpp>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <type_traits>

// Comparisons of numbers. Each asks `x <= bound`, never `x > bound`, so NaN never passes; a difference of NaN counts as
// infinite. A bound comes from a family (`rounding`, `gradients`, ULPs of a promise), never from what was measured.

namespace support {

using ruvector::Index;
using ruvector::Real;

/// How many numbers of type T lie between a and b (0: equal; −0 and +0 too). The largest value if either is NaN.
template <Real T>
[[nodiscard]] std::uint64_t ulp_distance(T a, T b) {
  if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<std::uint64_t>::max();
  using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  const auto ordered = [](T x) {
    const auto bits = std::int64_t(std::bit_cast<Bits>(x));
    return bits < 0 ? std::int64_t(std::numeric_limits<Bits>::min()) - bits : bits;
  };
  const std::int64_t x = ordered(a), y = ordered(b);
  return x < y ? std::uint64_t(y) - std::uint64_t(x) : std::uint64_t(x) - std::uint64_t(y);
}

/// The error of `actual` in units in the last place that a T has at `expected`, which is known better: a double for
/// float, a long double for double. 0 if both are NaN, or `expected` rounds to the infinity `actual`; else infinite for
/// NaN and infinities.
template <Real T, class Better>
[[nodiscard]] double ulp_error(T actual, Better expected) {
  static_assert(std::numeric_limits<Better>::digits > std::numeric_limits<T>::digits);
  if (std::isnan(actual) && std::isnan(expected)) return 0;
  if (std::isinf(actual) && actual == static_cast<T>(expected)) return 0;
  if (std::isinf(expected)) return std::numeric_limits<double>::infinity();
  const Better size = std::fmax(std::fabs(expected), Better(std::numeric_limits<T>::min()));
  const Better ulp = std::ldexp(Better(1), std::ilogb(size) + 1 - std::numeric_limits<T>::digits);
  const double error = static_cast<double>(std::fabs(Better(actual) - expected) / ulp);
  return error <= std::numeric_limits<double>::max() ? error : std::numeric_limits<double>::infinity();
}

/// |actual − expected| <= absolute + relative |expected|.
struct Tolerance {
  double relative = 0;
  double absolute = 0;
};

/// Of a result that went through `roundings` roundings of type T after each other.
template <Real T>
[[nodiscard]] constexpr Tolerance rounding(double roundings = 4) {
  return {.relative = roundings * double(std::numeric_limits<T>::epsilon()) / 2};
}
/// Of derivatives in double against central differences (promise P-01).
inline constexpr Tolerance gradients = {.relative = 1e-6, .absolute = 1e-8};

/// True if equal (infinities too) or within the tolerance; never for NaN.
[[nodiscard]] inline bool near(double actual, double expected, Tolerance tolerance) {
  return actual == expected ||
         (std::isfinite(expected) &&
          std::fabs(actual - expected) <= tolerance.absolute + tolerance.relative * std::fabs(expected));
}

/// The first index at which two equally long ranges are not `near`; −1 if there is none, −2 if the lengths differ. Use
/// it as CHECK(first_far(y, expected, tolerance) == -1).
template <class A, class B>
[[nodiscard]] Index first_far(const A& actual, const B& expected, Tolerance tolerance) {
  if (std::size(actual) != std::size(expected)) return -2;
  Index i = 0;
  auto e = std::begin(expected);
  for (auto a = std::begin(actual); a != std::end(actual); ++a, ++e, ++i)
    if (!near(static_cast<double>(*a), static_cast<double>(*e), tolerance)) return i;
  return -1;
}

/// max |actual − expected| of two equally long ranges; infinite if the lengths differ or a difference is NaN.
template <class A, class B>
[[nodiscard]] double max_error(const A& actual, const B& expected) {
  double worst = 0;
  if (std::size(actual) != std::size(expected)) return std::numeric_limits<double>::infinity();
  auto e = std::begin(expected);
  for (auto a = std::begin(actual); a != std::end(actual); ++a, ++e) {
    const double error = std::fabs(static_cast<double>(*a) - static_cast<double>(*e));
    if (!(error <= worst)) worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
  }
  return worst;
}

/// True if both hold the same bytes: NaNs equal themselves, and −0 differs from 0. For numbers and for ranges of them.
template <class T>
  requires std::is_arithmetic_v<T>
[[nodiscard]] bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}
template <class A, class B>
  requires requires(const A& a, const B& b) {
    std::span(a), std::span(b);
  }
[[nodiscard]] bool same_bits(const A& a, const B& b) {
  const auto x = std::as_bytes(std::span(a)), y = std::as_bytes(std::span(b));
  return x.size() == y.size() && (x.empty() || std::memcmp(x.data(), y.data(), x.size()) == 0);
}

}  // namespace support
