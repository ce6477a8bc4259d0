// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/near.hpp"

#include <ruvector/core/random.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

namespace random_test {
namespace {

using ruvector::ConfigError;
using ruvector::Index;
using ruvector::Rng;

static_assert(std::uniform_random_bit_generator<Rng>);
static_assert(std::is_trivially_copyable_v<Rng::State> && std::is_trivially_copyable_v<Rng>);

std::string hex(std::uint64_t bits, int digits = 16) {
  std::string text;
  for (int i = digits - 1; i >= 0; --i) text += "0123456789abcdef"[(bits >> (4 * i)) & 15];
  return text;
}
std::string hex(double x) {
  return hex(std::bit_cast<std::uint64_t>(x));
}
std::string hex(float x) {
  return hex(std::bit_cast<std::uint32_t>(x), 8);
}

// The values of one line, from the function that the line names.
std::vector<std::string> reproduce(Rng& rng, const std::string& name, std::uint64_t argument, std::size_t count) {
  std::vector<std::string> values;
  const auto fill = [&](auto next) {
    while (values.size() < count) values.push_back(next());
  };
  if (name == "seed") {
    rng = Rng(argument);
    for (const std::uint64_t word : rng.state().words) values.push_back(hex(word));
  }
  if (name == "bits") fill([&] { return hex(rng.bits()); });
  if (name == "uniform") fill([&] { return hex(rng.uniform()); });
  if (name == "uniform_double") fill([&] { return hex(rng.uniform(-0.1, 0.3)); });
  if (name == "uniform_float") fill([&] { return hex(rng.uniform(-0.1f, 0.3f)); });
  if (name == "below") fill([&] { return std::to_string(rng.below(static_cast<Index>(argument))); });
  if (name == "normal_double") fill([&] { return hex(rng.normal()); });
  if (name == "normal_float") fill([&] { return hex(rng.normal<float>()); });
  if (name == "shuffle") {
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    rng.shuffle(std::span(order));
    for (const int value : order) values.push_back(std::to_string(value));
  }
  if (name == "split") {
    Rng child = rng.split(argument);
    fill([&] { return hex(child.bits()); });
  }
  return values;
}

TEST_CASE("random: the numbers are those of an independent implementation, to the last bit") {
  std::ifstream file(RUVECTOR_TEST_DATA "/random.txt");
  REQUIRE(file);
  Rng rng(0);
  int lines = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    std::uint64_t argument = 0;
    words >> name;
    if (name == "normal_cdf") continue;
    if (name == "seed" || name == "below" || name == "split") words >> argument;
    std::vector<std::string> expected;
    for (std::string word; words >> word;) expected.push_back(word);
    CAPTURE(name, argument);
    CHECK(reproduce(rng, name, argument, expected.size()) == expected);
    ++lines;
  }
  CHECK(lines == 4 * 20);
}

TEST_CASE("random: adding to a normal number gives the bits of adding to a stored one") {
  // A product at the end of normal() would be contracted with the caller's sum, on machines with FMA only.
  Rng a(5), b(5);
  volatile double stored = 0;
  for (int i = 0; i < 1000; ++i) {
    stored = b.normal();
    CHECK(support::same_bits(0.1 + a.normal(), 0.1 + stored));
  }
}

TEST_CASE("random: the logarithm is within 4 ULP of the one of long double") {
  Rng rng(1);
  double worst = 0;
  const auto check = [&](double s) {
    const double error = support::ulp_error(ruvector::detail::portable_log(s), std::log(static_cast<long double>(s)));
    if (!(error <= worst)) worst = error;
  };
  for (int i = 0; i < 100000; ++i) check(rng.uniform());
  for (int i = 1; i < 1000; ++i) check(1 - i * 0x1p-53);
  for (int e = -1022; e <= 0; ++e)
    for (const double m : {1.0, 0.70710678118654746, 0.70710678118654757, 0.75})
      check(std::ldexp(m, std::max(e, -1021)));
  CAPTURE(worst);
  CHECK(worst <= 4);  // four roundings: m + 1, z, the series, the product
}

TEST_CASE("random: normal numbers have the moments and the distribution of SciPy's normal") {
  constexpr std::uint64_t seed = 2024;
  constexpr int n = 1'000'000;
  CAPTURE(seed);
  Rng rng(seed);
  std::vector<double> x(n);
  for (double& value : x) value = rng.normal();
  double moment[5] = {};
  for (const double value : x)
    for (int k = 1; k <= 4; ++k) moment[k] += std::pow(value, k) / n;
  // Five standard errors: √(var x^k / n), var x^k = (2k−1)!! − (E x^k)².
  CHECK(std::fabs(moment[1]) <= 5 * std::sqrt(1.0 / n));
  CHECK(std::fabs(moment[2] - 1) <= 5 * std::sqrt(2.0 / n));
  CHECK(std::fabs(moment[3]) <= 5 * std::sqrt(15.0 / n));
  CHECK(std::fabs(moment[4] - 3) <= 5 * std::sqrt(96.0 / n));

  std::ifstream file(RUVECTOR_TEST_DATA "/random.txt");
  std::string word;
  while (file >> word && word != "normal_cdf") continue;
  std::sort(x.begin(), x.end());
  double worst = 0, at = 0, probability = 0;
  int points = 0;
  for (; file >> at >> probability; ++points) {
    const auto below = std::upper_bound(x.begin(), x.end(), at) - x.begin();
    worst = std::max(worst, std::fabs(static_cast<double>(below) / n - probability));
  }
  CHECK(points == 33);
  CHECK(worst <= 1.95 / std::sqrt(double(n)));  // Kolmogorov–Smirnov at 0.001

  // Successive numbers are not correlated.
  Rng again(seed);
  double product = 0, previous = again.normal();
  for (int i = 1; i < n; ++i) {
    const double next = again.normal();
    product += previous * next / n;
    previous = next;
  }
  CHECK(std::fabs(product) <= 5 / std::sqrt(double(n)));
}

TEST_CASE("random: below(n) takes each number equally often") {
  constexpr std::uint64_t seed = 7;
  CAPTURE(seed);
  Rng rng(seed);
  constexpr int n = 300'000;
  for (const Index range : {2, 3, 10}) {
    std::vector<double> counts(static_cast<std::size_t>(range));
    for (int i = 0; i < n; ++i) ++counts[static_cast<std::size_t>(rng.below(range))];
    double chi_square = 0;
    const double expected = double(n) / double(range);
    for (const double count : counts) chi_square += (count - expected) * (count - expected) / expected;
    CHECK(chi_square <= double(range - 1) + 5 * std::sqrt(2.0 * double(range - 1)) + 10);
  }
  // 8 numbers of 64 bits to 3 of this range: without the rejection 3, 3 and 2 of them would give 0, 1 and 2 modulo 3.
  const Index range = Index(3) << 61;
  int multiples = 0;
  for (int i = 0; i < n; ++i) multiples += rng.below(range) % 3 == 0;
  CHECK(std::fabs(multiples - n / 3.0) <= 5 * std::sqrt(n * 2.0 / 9));
  for (int i = 0; i < 1000; ++i) CHECK((rng.below(1) == 0 && rng.below(PTRDIFF_MAX) >= 0));
}

TEST_CASE("random: uniform numbers stay within their bounds") {
  Rng rng(3);
  double sum = 0;
  constexpr int n = 100'000;
  for (int i = 0; i < n; ++i) {
    const double u = rng.uniform();
    sum += u;
    if (!(u >= 0 && u < 1)) FAIL("outside");
    // Three floats there: rounding would reach past the upper end.
    const float low = 1.0f, high = std::nextafter(std::nextafter(low, 2.0f), 2.0f);
    const float x = rng.uniform(low, high);
    if (!(x >= low && x <= high)) FAIL("outside");
  }
  CHECK(std::fabs(sum / n - 0.5) <= 5 * std::sqrt(1.0 / 12 / n));
  CHECK(rng.uniform(2.0, 2.0) == 2.0);
  const float whole = std::numeric_limits<float>::max();
  const float x = rng.uniform(-whole, whole);
  CHECK((x >= -whole && x <= whole));
}

TEST_CASE("random: arguments out of range are errors") {
  Rng rng(1);
  const auto state = rng.state();
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  for (const Index n : {Index(0), Index(-1), Index(PTRDIFF_MIN)}) CHECK_THROWS_AS(rng.below(n), ConfigError);
  CHECK_THROWS_AS(rng.uniform(1.0, 0.0), ConfigError);
  CHECK_THROWS_AS(rng.uniform(0.0, inf), ConfigError);
  CHECK_THROWS_AS(rng.uniform(nan, 1.0), ConfigError);
  CHECK_THROWS_AS(rng.uniform(-std::numeric_limits<double>::max(), std::numeric_limits<double>::max()), ConfigError);
  CHECK(rng.state() == state);
  CHECK_THROWS_AS(Rng(Rng::State{}), ConfigError);
}

TEST_CASE("random: a saved state continues, and split depends on state and stream only") {
  Rng rng(11);
  for (int i = 0; i < 10; ++i) (void)rng.normal();
  const Rng::State state = rng.state();
  Rng other(99);
  other = Rng(state);
  for (int i = 0; i < 100; ++i) CHECK(support::same_bits(rng.normal(), other.normal()));

  const Rng parent(11);
  std::vector<std::uint64_t> firsts;
  for (std::uint64_t stream = 0; stream < 10000; ++stream) {
    firsts.push_back(parent.split(stream).bits());
    firsts.push_back(parent.split(stream).split(stream).bits());
  }
  CHECK(parent.state() == Rng(11).state());
  std::sort(firsts.begin(), firsts.end());
  CHECK(std::adjacent_find(firsts.begin(), firsts.end()) == firsts.end());

  // Neighbouring streams are as unrelated as any: their bits agree half of the time.
  double agreeing = 0;
  constexpr int n = 10000;
  for (std::uint64_t stream = 0; stream < n; ++stream)
    agreeing += 64 - std::popcount(parent.split(stream).bits() ^ parent.split(stream + 1).bits());
  CHECK(std::fabs(agreeing / (64.0 * n) - 0.5) <= 5 * 0.5 / std::sqrt(64.0 * n));
}

TEST_CASE("random: a shuffle permutes, and every order is equally likely") {
  Rng rng(13);
  std::vector<int> empty, one{5};
  rng.shuffle(std::span(empty));
  rng.shuffle(std::span(one));
  CHECK(one == std::vector<int>{5});
  std::vector<double> counts(6);
  constexpr int n = 60'000;
  for (int i = 0; i < n; ++i) {
    int order[] = {0, 1, 2};
    rng.shuffle(std::span<int>(order));
    CHECK(order[0] + order[1] + order[2] == 3);
    ++counts[static_cast<std::size_t>(2 * order[0] + (order[1] > order[2]))];
  }
  for (const double count : counts) CHECK(std::fabs(count - n / 6.0) <= 5 * std::sqrt(n * 5 / 36.0));
}

}  // namespace
}  // namespace random_test
