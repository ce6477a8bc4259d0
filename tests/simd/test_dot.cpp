// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/simd/dot.hpp>

#include "support/catch.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

namespace test_dot {
namespace {

namespace simd = ruvector::simd;
using ruvector::Index;

template <class T>
std::vector<T> random_vector(ruvector::Rng& rng, Index n) {
  std::vector<T> x(static_cast<std::size_t>(n));
  for (T& xi : x) xi = rng.uniform(T(-1), T(1));
  return x;
}

/// A sum of n terms, each rounded, is within n·ε·Σ|terms|.
template <class T>
void check_sum(T actual, const std::vector<long double>& terms) {
  long double expected = 0, magnitude = 0;
  for (const long double term : terms) {
    expected += term;
    magnitude += std::fabs(term);
  }
  const auto bound = static_cast<long double>(terms.size() + 2) *
                     static_cast<long double>(std::numeric_limits<T>::epsilon()) * magnitude;
  CHECK(std::fabs(static_cast<long double>(actual) - expected) <= bound);
}

}  // namespace

TEMPLATE_TEST_CASE("dot: sums are those of the textbook, of any length", "[simd]", float, double) {
  using T = TestType;
  constexpr std::uint64_t seed = 40;
  CAPTURE(seed);
  ruvector::Rng rng(seed);
  for (Index n = 0; n <= 257; ++n) {
    CAPTURE(n);
    const std::vector<T> a = random_vector<T>(rng, n), b = random_vector<T>(rng, n);
    std::vector<long double> product, square, difference, plain;
    for (std::size_t i = 0; i < a.size(); ++i) {
      const auto x = static_cast<long double>(a[i]), y = static_cast<long double>(b[i]);
      product.push_back(x * y);
      square.push_back(x * x);
      difference.push_back((x - y) * (x - y));
      plain.push_back(x);
    }
    check_sum(simd::dot(a.data(), b.data(), n), product);
    check_sum(simd::squared_norm(a.data(), n), square);
    check_sum(simd::squared_distance(a.data(), b.data(), n), difference);
    check_sum(simd::sum(a.data(), n), plain);
    CHECK(simd::dot<T>(a, b) == simd::dot(a.data(), b.data(), n));
    CHECK(simd::squared_norm<T>(a) == simd::squared_norm(a.data(), n));
    CHECK(simd::squared_distance<T>(a, b) == simd::squared_distance(a.data(), b.data(), n));
    CHECK(simd::sum<T>(a) == simd::sum(a.data(), n));
  }
}

TEMPLATE_TEST_CASE("dot: lane l sums the elements l, l + lanes, ... and the lanes are added half by half", "[simd]",
                   float, double) {
  using T = TestType;
  constexpr Index width = simd::lanes<T>;
  constexpr std::uint64_t seed = 41;
  CAPTURE(seed);
  ruvector::Rng rng(seed);
  for (const Index n : {1, 10, 100, 257}) {
    const std::vector<T> a = random_vector<T>(rng, n);
    std::vector<T> lane(static_cast<std::size_t>(width));
    for (Index i = 0; i < n; ++i) lane[static_cast<std::size_t>(i % width)] += a[static_cast<std::size_t>(i)];
    for (std::size_t half = lane.size() / 2; half > 0; half /= 2)
      for (std::size_t i = 0; i < half; ++i) lane[i] += lane[i + half];
    CHECK(simd::sum(a.data(), n) == lane[0]);
  }
}

TEMPLATE_TEST_CASE("dot: axpy and scale update every element", "[simd]", float, double) {
  using T = TestType;
  constexpr std::uint64_t seed = 42;
  CAPTURE(seed);
  ruvector::Rng rng(seed);
  for (Index n = 0; n <= 70; ++n) {
    const std::vector<T> x = random_vector<T>(rng, n), y = random_vector<T>(rng, n);
    std::vector<T> z = y;
    simd::axpy<T>(T(0.75), x, z);
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(z[i] == Approx(T(0.75) * x[i] + y[i]).margin(1e-6));
    z = x;
    simd::scale<T>(T(-3), z);
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(z[i] == T(-3) * x[i]);
  }
}

}  // namespace test_dot
