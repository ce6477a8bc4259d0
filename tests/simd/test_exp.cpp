// SPDX-License-Identifier: MIT
#include <ruvector/simd/math.hpp>

#include "support/catch.hpp"
#include "support/trials.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <span>
#include <thread>
#include <vector>

// P-04: exp and exp2_softmax on every float there is. The reference is exp and exp2 of the C library in double: their
// error of half a double's ULP is 10⁻⁹ of a float's.

namespace test_exp {
namespace {

namespace simd = ruvector::simd;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
constexpr bool slow_build = true;  // ten to fifty times slower
#else
constexpr bool slow_build = false;
#endif
const std::uint64_t stride = slow_build ? 257u : support::trials(1u, 257u);
constexpr std::uint64_t patterns = std::uint64_t(1) << 32;
constexpr std::uint64_t block = std::uint64_t(1) << 14;

/// What a sweep found.
struct Sweep {
  double normal_error = 0;    // ULP, where the exact result is a normal number
  double denormal_error = 0;  // and where it is smaller
  std::uint64_t wrong_specials = 0;
  std::uint64_t steps_back = 0;

  void merge(const Sweep& other) {
    normal_error = std::max(normal_error, other.normal_error);
    denormal_error = std::max(denormal_error, other.denormal_error);
    wrong_specials += other.wrong_specials;
    steps_back += other.steps_back;
  }
};

/// |y − r| in ULP of float at r > 0; the ULP of the smallest normal number below it.
double error_in_ulp(float y, double r) {
  constexpr std::uint64_t exponent = 0x7ffull << 52;
  const double power = std::bit_cast<double>(std::bit_cast<std::uint64_t>(std::max(r, 0x1p-126)) & exponent);
  return std::fabs(static_cast<double>(y) - r) / (power * 0x1p-23);
}

/// One block of bit patterns first, first + stride, …; `lowest` and `highest` bound where the result is neither 0 nor
/// ∞.
template <class Kernel, class Reference>
Sweep sweep_block(std::uint64_t first, Kernel kernel, Reference reference, float lowest, float highest) {
  std::vector<float> x, y;
  for (std::uint64_t i = 0; i <= block && first + i * stride < patterns; ++i)
    x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(first + i * stride)));
  y.resize(x.size());
  kernel(std::span<const float>(x), std::span<float>(y));

  Sweep found;
  const bool negative = std::signbit(x[0]);
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i])) {
      found.wrong_specials += std::isnan(y[i]) ? 0 : 1;
    } else if (x[i] > highest) {
      found.wrong_specials += y[i] == std::numeric_limits<float>::infinity() ? 0 : 1;
    } else if (x[i] < lowest) {
      found.wrong_specials += y[i] == 0 ? 0 : 1;
    } else {
      const double r = reference(static_cast<double>(x[i]));
      const double error = error_in_ulp(y[i], r);
      double& largest = r < 0x1p-126 ? found.denormal_error : found.normal_error;
      if (!(error <= largest)) largest = error;
    }
    // The bit patterns of one sign go away from zero.
    if (i > 0 && std::signbit(x[i]) == negative && (negative ? y[i] > y[i - 1] : y[i] < y[i - 1])) ++found.steps_back;
  }
  return found;
}

template <class Kernel, class Reference>
Sweep sweep(Kernel kernel, Reference reference, float lowest, float highest) {
  std::atomic<std::uint64_t> next = 0;
  std::vector<Sweep> found(2);
  std::vector<std::thread> threads;
  for (Sweep& mine : found) {
    threads.emplace_back([&] {
      while (true) {
        const std::uint64_t first = next.fetch_add(1) * block * stride;
        if (first >= patterns) return;
        mine.merge(sweep_block(first, kernel, reference, lowest, highest));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  found[0].merge(found[1]);
  return found[0];
}

void print(const char* name, const Sweep& s) {
  std::printf("%-14s %.4f ULP, denormal results %.4f, steps back %llu (every float no. %llu)\n", name, s.normal_error,
              s.denormal_error, static_cast<unsigned long long>(s.steps_back), static_cast<unsigned long long>(stride));
}

}  // namespace

TEST_CASE("exp: every float is within its bound", "[simd][exhaustive]") {
  // FLT_MAX = exp(88.7228…); half of the smallest denormal = exp(−103.9720…)
  const Sweep s = sweep([](std::span<const float> x, std::span<float> y) { simd::exp(x, y); },
                        [](double x) { return std::exp(x); }, -0x1.9fe368p+6f, 0x1.62e42ep+6f);
  print("exp", s);
  CHECK(s.normal_error <= 1.02);
  CHECK(s.denormal_error <= 1);
  CHECK(s.wrong_specials == 0);
}

TEST_CASE("exp2_softmax: every float is within its bound, and larger scores never weigh less", "[simd][exhaustive]") {
  const Sweep s = sweep([](std::span<const float> x, std::span<float> y) { simd::exp2_softmax(x, y); },
                        [](double x) { return std::exp2(x); }, -150.0f, 0x1.fffffep+6f);
  print("exp2_softmax", s);
  CHECK(s.normal_error <= 1.25);
  CHECK(s.denormal_error <= 1);
  CHECK(s.wrong_specials == 0);
  CHECK(s.steps_back == 0);
}

TEST_CASE("exp: exact values", "[simd]") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {0.0f, -0.0f, -infinity, infinity};
  std::vector<float> y(x.size());
  simd::exp<float>(x, y);
  CHECK(y == std::vector<float>{1, 1, 0, infinity});
  simd::exp2_softmax<float>(x, y);
  CHECK(y == std::vector<float>{1, 1, 0, infinity});

  std::vector<float> integers, powers;
  for (int n = -149; n <= 127; ++n) {
    integers.push_back(static_cast<float>(n));
    powers.push_back(std::ldexp(1.0f, n));
  }
  std::vector<float> result(integers.size());
  simd::exp2_softmax<float>(integers, result);
  CHECK(result == powers);
}

}  // namespace test_exp
