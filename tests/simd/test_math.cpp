// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/simd/math.hpp>

#include "support/catch.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <span>
#include <string>
#include <thread>
#include <vector>

// P-05: the other elementary functions. Floats against the C library in double: every 1021st bit pattern, or all of
// them with RUVECTOR_SOAK set. Doubles against the C library in long double, at random arguments.

namespace test_math {
namespace {

namespace simd = ruvector::simd;

template <class T>
struct Function {
  const char* name;
  void (*kernel)(std::span<const T>, std::span<T>);
  // The wider type holds the reference.
  using Wide = std::conditional_t<sizeof(T) == 4, double, long double>;
  Wide (*reference)(Wide);
};

template <class T>
const std::vector<Function<T>>& functions() {
  using Wide = typename Function<T>::Wide;
  using X = std::span<const T>;
  using Y = std::span<T>;
  static const std::vector<Function<T>> all = {
      {"exp", [](X x, Y y) { simd::exp(x, y); }, [](Wide x) { return std::exp(x); }},
      {"log", [](X x, Y y) { simd::log(x, y); }, [](Wide x) { return std::log(x); }},
      {"log1p", [](X x, Y y) { simd::log1p(x, y); }, [](Wide x) { return std::log1p(x); }},
      {"tanh", [](X x, Y y) { simd::tanh(x, y); }, [](Wide x) { return std::tanh(x); }},
      {"sigmoid", [](X x, Y y) { simd::sigmoid(x, y); }, [](Wide x) { return 1 / (1 + std::exp(-x)); }},
      {"asinh", [](X x, Y y) { simd::asinh(x, y); }, [](Wide x) { return std::asinh(x); }},
      {"atanh", [](X x, Y y) { simd::atanh(x, y); }, [](Wide x) { return std::atanh(x); }},
      {"exp2_softmax", [](X x, Y y) { simd::exp2_softmax(x, y); }, [](Wide x) { return std::exp2(x); }},
  };
  return all;
}

/// |y − r| in ULP of T at r; infinite where one of them is NaN, infinite or of the wrong sign and the other is not.
template <class T, class Wide>
double error_in_ulp(T y, Wide r) {
  using Limits = std::numeric_limits<T>;
  constexpr double wrong = std::numeric_limits<double>::infinity();
  const T rounded = static_cast<T>(r);
  if (std::isnan(r)) return std::isnan(y) ? 0 : wrong;
  if (std::isinf(rounded) || r == 0) return y == rounded && std::signbit(y) == std::signbit(rounded) ? 0 : wrong;
  if (!std::isfinite(y)) return wrong;
  const int exponent = std::max(std::ilogb(r), Limits::min_exponent - 1);
  return static_cast<double>(std::fabs(std::scalbn(static_cast<Wide>(y) - r, Limits::digits - 1 - exponent)));
}

template <class T>
struct Worst {
  double error = 0;
  T at = 0;
};

template <class T>
Worst<T> worst_of(const Function<T>& f, const std::vector<T>& x) {
  std::vector<T> y(x.size());
  f.kernel(x, y);
  Worst<T> worst;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double error = error_in_ulp(y[i], f.reference(static_cast<typename Function<T>::Wide>(x[i])));
    if (!(error <= worst.error)) worst = {error, x[i]};
  }
  return worst;
}

Worst<float> sweep(const Function<float>& f, std::uint64_t stride) {
  constexpr std::uint64_t patterns = std::uint64_t(1) << 32;
  constexpr std::uint64_t block = std::uint64_t(1) << 14;
  std::atomic<std::uint64_t> next = 0;
  std::vector<Worst<float>> found(2);
  std::vector<std::thread> threads;
  for (Worst<float>& mine : found) {
    threads.emplace_back([&] {
      std::vector<float> x;
      while (true) {
        const std::uint64_t first = next.fetch_add(1) * block * stride;
        if (first >= patterns) return;
        x.clear();
        for (std::uint64_t i = 0; i < block && first + i * stride < patterns; ++i)
          x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(first + i * stride)));
        const Worst<float> worst = worst_of(f, x);
        if (!(worst.error <= mine.error)) mine = worst;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return found[0].error >= found[1].error ? found[0] : found[1];
}

template <class T>
std::vector<T> special_values() {
  using Limits = std::numeric_limits<T>;
  std::vector<T> x = {0, Limits::denorm_min(), Limits::min(), T(0.5), 1, 2, Limits::max(), Limits::infinity()};
  // Both sides of every switch: 1 + x at √½ and √2, saturation of tanh, the large branch of asinh, the rim of atanh.
  for (const T edge : {T(1), T(1) - std::sqrt(T(0.5)), std::sqrt(T(2)) - 1, T(10), T(20), T(0x1p14), T(0x1p30)}) {
    x.push_back(std::nextafter(edge, T(0)));
    x.push_back(edge);
    x.push_back(std::nextafter(edge, Limits::infinity()));
  }
  for (std::size_t i = 0, n = x.size(); i < n; ++i) x.push_back(-x[i]);
  x.push_back(Limits::quiet_NaN());
  return x;
}

template <class T>
std::vector<T> random_arguments(std::uint64_t seed) {
  ruvector::Rng rng(seed);
  std::vector<T> x;
  for (int i = 0; i < 100000; ++i) {
    x.push_back(std::bit_cast<T>(static_cast<simd::detail::Word<T>>(rng.bits())));
    for (const T width : {T(1), T(3), T(40), T(800)}) x.push_back(rng.uniform(-width, width));
    const double magnitude = std::exp(rng.uniform(-40.0, 40.0));
    x.push_back(static_cast<T>(magnitude));
    x.push_back(static_cast<T>(-magnitude));
    x.push_back(T(1) - static_cast<T>(std::exp(rng.uniform(-36.0, -2.0))));
  }
  return x;
}

}  // namespace

TEST_CASE("math: floats are within 2 ULP", "[simd][soak]") {
  const bool all = std::getenv("RUVECTOR_SOAK") != nullptr;
  const std::uint64_t stride = all ? 1 : 1021;
  for (const Function<float>& f : functions<float>()) {
    if (std::string(f.name).starts_with("exp")) continue;  // test_exp.cpp
    const Worst<float> worst = sweep(f, stride);
    std::printf("%-14s float  %.4f ULP at %a (every float no. %d)\n", f.name, worst.error,
                static_cast<double>(worst.at), static_cast<int>(stride));
    CAPTURE(f.name, worst.at);
    CHECK(worst.error <= 2);
  }
}

TEMPLATE_TEST_CASE("math: random arguments are within 2 ULP", "[simd]", float, double) {
  constexpr std::uint64_t seed = 20;
  CAPTURE(seed);
  const std::vector<TestType> x = random_arguments<TestType>(seed);
  for (const Function<TestType>& f : functions<TestType>()) {
    const Worst<TestType> worst = worst_of(f, x);
    std::printf("%-14s %s %.4f ULP at %a (random)\n", f.name, sizeof(TestType) == 4 ? "float " : "double", worst.error,
                static_cast<double>(worst.at));
    CAPTURE(f.name, worst.at);
    CHECK(worst.error <= 2);
  }
}

TEMPLATE_TEST_CASE("math: special values and both sides of every switch", "[simd]", float, double) {
  for (const Function<TestType>& f : functions<TestType>()) {
    for (const TestType x : special_values<TestType>()) {
      CAPTURE(f.name, x);
      CHECK(worst_of(f, {x}).error <= 2);
    }
  }
}

TEST_CASE("math: the cheap logarithm has its absolute error", "[simd]") {
  // Every float of four octaves, then some of each.
  double worst = 0;
  std::vector<float> x(4096), y(4096);
  const auto check = [&](std::uint32_t first, std::uint32_t step) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::bit_cast<float>(first + step * std::uint32_t(i));
    for (std::size_t i = 0; i < x.size(); i += std::size_t(simd::lanes<float>))
      simd::store(y.data() + i, simd::log2_above_one(simd::load(x.data() + i)));
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double truth = std::log2(double(x[i]));
      worst = std::max(worst, std::fabs(double(y[i]) - truth) - 0x1p-24 * truth);
    }
  };
  const std::uint32_t one = std::bit_cast<std::uint32_t>(1.0F);
  for (std::uint32_t block = 0; block < 4 * 2048; ++block) check(one + 4096 * block, 1);
  for (std::uint32_t octave = 0; octave < 128; ++octave) check(one + (octave << 23), 2047);
  std::printf("log2_above_one float  %.3g beside half an ULP\n", worst);
  CHECK(worst <= 2.2e-7);
  const auto one_of = [](float argument) {
    return simd::reduce_max(simd::log2_above_one(simd::Batch<float>(argument)));
  };
  CHECK(one_of(1.0F) == 0);
  CHECK(one_of(8.0F) == 3);
  CHECK(std::isnan(one_of(std::numeric_limits<float>::quiet_NaN())));
}

}  // namespace test_math
