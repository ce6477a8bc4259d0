// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/simd/arch.hpp>

#include "simd/guarded_memory.hpp"
#include "support/catch.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace test_arch {
namespace {

namespace simd = ruvector::simd;
using ruvector::Index;
using simd::Batch;
using simd::lanes;

template <class T>
using Lanes = std::array<T, static_cast<std::size_t>(lanes<T>)>;

template <class T>
Lanes<T> lanes_of(Batch<T> x) {
  Lanes<T> result;
  simd::store(result.data(), x);
  return result;
}

/// A batch whose lanes are the next numbers of a list that holds every awkward one.
template <class T>
std::vector<T> numbers() {
  using Limits = std::numeric_limits<T>;
  std::vector<T> x = {0,
                      T(-0.0),
                      T(0.5),
                      T(-0.5),
                      T(1.5),
                      T(-1.5),
                      T(2.5),
                      T(-2.5),
                      3,
                      T(-3.25),
                      T(1e6),
                      T(-1e6),
                      Limits::min(),
                      Limits::denorm_min(),
                      Limits::max(),
                      Limits::lowest(),
                      Limits::infinity(),
                      -Limits::infinity(),
                      T(1) / Limits::epsilon(),
                      T(-0.75) / Limits::epsilon()};
  ruvector::Rng rng(30);
  while (x.size() % 16 != 0 || x.size() < 256) x.push_back(rng.uniform(T(-100), T(100)));
  return x;
}

/// f on batches is g on each lane, bit for bit.
template <class T, class F, class G>
void check_lanes(F f, G g) {
  using Word = simd::detail::Word<T>;
  const std::vector<T> x = numbers<T>();
  for (std::size_t i = 0; i < x.size(); i += static_cast<std::size_t>(lanes<T>)) {
    const Lanes<T> y = lanes_of<T>(f(simd::load(x.data() + i)));
    for (std::size_t lane = 0; lane < y.size(); ++lane) {
      CAPTURE(x[i + lane]);
      CHECK(std::bit_cast<Word>(y[lane]) == std::bit_cast<Word>(T(g(x[i + lane]))));
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("Batch: every lane does what a scalar does", "[simd]", float, double) {
  using T = TestType;
  using B = Batch<T>;
  const T c = T(1.25);
  check_lanes<T>([=](B x) { return x + c; }, [=](T x) { return x + c; });
  check_lanes<T>([=](B x) { return c - x; }, [=](T x) { return c - x; });
  check_lanes<T>([=](B x) { return x * c; }, [=](T x) { return x * c; });
  check_lanes<T>([=](B x) { return x / T(3); }, [=](T x) { return x / T(3); });
  check_lanes<T>([](B x) { return -x; }, [](T x) { return -x; });
  check_lanes<T>([](B x) { return simd::abs(x); }, [](T x) { return std::fabs(x); });
  check_lanes<T>([](B x) { return simd::sqrt(simd::abs(x)); }, [](T x) { return std::sqrt(std::fabs(x)); });
  check_lanes<T>([](B x) { return simd::copysign(B(T(2)), x); }, [](T x) { return std::copysign(T(2), x); });
  check_lanes<T>([=](B x) { return simd::min(x, c); }, [=](T x) { return x < c ? x : c; });
  check_lanes<T>([=](B x) { return simd::max(x, c); }, [=](T x) { return x > c ? x : c; });
  // + 0: some targets round −0.5 to +0
  check_lanes<T>([](B x) { return simd::floor(x) + T(0); }, [](T x) { return std::floor(x) + T(0); });
  check_lanes<T>([](B x) { return simd::nearest(x) + T(0); }, [](T x) { return std::nearbyint(x) + T(0); });
  check_lanes<T>([](B x) { return simd::select(x < T(2), x, T(7)); }, [](T x) { return x < T(2) ? x : T(7); });
  check_lanes<T>([](B x) { return simd::select((x <= T(2)) & !(x == T(1.5)), T(1), T(0)); },
                 [](T x) { return x <= T(2) && x != T(1.5) ? T(1) : T(0); });
  check_lanes<T>([](B x) { return simd::select((x >= T(2)) | (x > T(50)), T(1), T(0)); },
                 [](T x) { return x >= T(2) ? T(1) : T(0); });
  check_lanes<T>([](B x) { return simd::from_bits(((simd::to_bits(x) >> 3) << 3) ^ simd::Words<T>(8)); },
                 [](T x) { return std::bit_cast<T>((std::bit_cast<simd::detail::Word<T>>(x) >> 3 << 3) ^ 8u); });
}

TEMPLATE_TEST_CASE("Batch: fma rounds once where the target has it", "[simd]", float, double) {
  using T = TestType;
  // (1 + ε)² − (1 + 2ε) = ε²: lost when the product is rounded.
  const T e = std::numeric_limits<T>::epsilon();
  const T expected = simd::detail::fused ? e * e : T(0);
  volatile T one_and = T(1) + e;
  const T a = one_and;
  CHECK(lanes_of<T>(simd::fma(Batch<T>(a), a, -(T(1) + 2 * e)))[0] == expected);
  CHECK(lanes_of<T>(simd::fnma(Batch<T>(a), a, T(1) + 2 * e))[0] == -expected);
}

TEMPLATE_TEST_CASE("Batch: min and max keep a NaN of the second operand", "[simd]", float, double) {
  using T = TestType;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  CHECK(simd::all(simd::isnan(simd::min(Batch<T>(T(1)), nan))));
  CHECK(simd::all(simd::isnan(simd::max(Batch<T>(T(1)), nan))));
  CHECK(!simd::any(simd::isnan(Batch<T>(std::numeric_limits<T>::infinity()))));
}

TEMPLATE_TEST_CASE("Batch: ldexp rounds once, also into the denormals", "[simd]", float, double) {
  using T = TestType;
  const int widest = sizeof(T) == 4 ? 250 : 2000;
  for (int n = -widest; n <= widest; ++n) {
    for (const T x : {T(1), T(1.9999999), T(-1.3)}) {
      CAPTURE(n, x);
      CHECK(lanes_of<T>(simd::ldexp(Batch<T>(x), static_cast<T>(n)))[0] == std::ldexp(x, n));
    }
  }
}

TEMPLATE_TEST_CASE("Batch: reductions go half by half", "[simd]", float, double) {
  using T = TestType;
  const std::vector<T> x = numbers<T>();
  for (std::size_t i = 32; i < x.size(); i += static_cast<std::size_t>(lanes<T>)) {
    Lanes<T> sum = lanes_of<T>(simd::load(x.data() + i));
    const Lanes<T> original = sum;
    for (std::size_t half = sum.size() / 2; half > 0; half /= 2)
      for (std::size_t lane = 0; lane < half; ++lane) sum[lane] += sum[lane + half];
    CHECK(simd::reduce_add(simd::load(x.data() + i)) == sum[0]);
    CHECK(simd::reduce_max(simd::load(x.data() + i)) == *std::max_element(original.begin(), original.end()));
    CHECK(simd::reduce_min(simd::load(x.data() + i)) == *std::min_element(original.begin(), original.end()));
  }
}

TEMPLATE_TEST_CASE("Mask: bit i is lane i", "[simd]", float, double) {
  using T = TestType;
  for (Index n = 0; n <= lanes<T>; ++n) {
    const auto mask = simd::first_lanes<T>(n);
    CHECK(simd::lane_bits(mask) == (std::uint64_t(1) << n) - 1);
    CHECK(simd::any(mask) == (n > 0));
    CHECK(simd::all(mask) == (n == lanes<T>));
    Lanes<T> one{};
    if (n < lanes<T>) one[static_cast<std::size_t>(n)] = 1;
    const std::uint32_t bit = n < lanes<T> ? std::uint32_t(1) << n : 0;
    CHECK(simd::lane_bits(simd::load(one.data()) == Batch<T>(T(1))) == bit);
  }
}

TEMPLATE_TEST_CASE("Batch: partial loads and stores touch n elements and no more", "[simd]", float, double) {
  using T = TestType;
  const GuardedMemory<T> memory(64);
  for (Index n = 0; n <= lanes<T>; ++n) {
    for (T* p : {memory.at_begin(), memory.at_end(n)}) {
      for (Index i = 0; i < n; ++i) p[i] = T(i + 1);
      const Lanes<T> x = lanes_of<T>(simd::load_partial(p, n));
      for (Index i = 0; i < lanes<T>; ++i) CHECK(x[static_cast<std::size_t>(i)] == (i < n ? T(i + 1) : T(0)));
      simd::store_partial(p, n, Batch<T>(T(9)));
      for (Index i = 0; i < n; ++i) CHECK(p[i] == 9);
    }
    T* p = memory.at_begin();
    for (Index i = 0; i < 2 * lanes<T>; ++i) p[i] = T(5);
    simd::store_partial(p, n, Batch<T>(T(9)));
    for (Index i = 0; i < 2 * lanes<T>; ++i) CHECK(p[i] == (i < n ? T(9) : T(5)));
  }
}

}  // namespace test_arch
