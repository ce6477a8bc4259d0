// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI {

namespace detail {

/// The output function of splitmix64: a bijection of 64 bits in which each input bit reaches each output bit.
[[nodiscard]] constexpr std::uint64_t mix_bits(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// log s for normal s > 0, within 4 ULP, of exact IEEE operations only: the same bits on every machine. Each sum of a
/// product is a std::fma, so there is nothing left for a compiler to contract.
[[nodiscard]] inline double portable_log(double s) {
  // s = 2^e m with m in [√½, √2): subtract the bits of √½ and the carry into the exponent is e.
  constexpr std::uint64_t sqrt_half = 0x3fe6a09e667f3bcdu;
  constexpr std::uint64_t mantissa = (std::uint64_t(1) << 52) - 1;
  const std::uint64_t offset = std::bit_cast<std::uint64_t>(s) - sqrt_half;
  const double e = static_cast<double>(static_cast<std::int64_t>(offset) >> 52);
  const double m = std::bit_cast<double>((offset & mantissa) + sqrt_half);

  // log m = 2 atanh z = 2z (1 + z²/3 + z⁴/5 + …), z = (m − 1) / (m + 1); |z| < 0.172, so z²⁴/25 < 2⁻⁶⁴.
  const double z = (m - 1) / (m + 1);
  const double z2 = z * z;
  double series = 1.0 / 23;
  for (int k = 21; k >= 1; k -= 2) series = std::fma(series, z2, 1.0 / k);
  return std::fma(e, std::numbers::ln2, 2 * z * series);
}

}  // namespace detail

/// A random number generator with the same numbers on every platform, compiler and instruction set, for one thread at
/// a time; `split` makes independent ones for others. A std::uniform_random_bit_generator, but the distributions of
/// the standard header differ between standard libraries: use the members. Source: Blackman & Vigna 2021, xoshiro256++
/// (period 2²⁵⁶ − 1), seeded by splitmix64 as they advise.
class Rng {
 public:
  /// What `bits()` returns.
  using result_type = std::uint64_t;

  /// All there is to a generator, trivially copyable: save it in a checkpoint, and go on with `rng = Rng(state)`.
  struct State {
    std::array<std::uint64_t, 4> words{};  ///< not all zero
    /// Equal states give equal numbers.
    bool operator==(const State&) const = default;
  };

  /// Seeds with any number; neighbouring seeds give unrelated streams.
  explicit Rng(std::uint64_t seed) {
    for (std::uint64_t& word : state_.words) word = detail::mix_bits(seed += 0x9e3779b97f4a7c15u);
  }
  /// Continues where `state` was taken. Throws ConfigError if all words are zero, which no generator ever reaches.
  explicit Rng(const State& state) : state_(state) {
    if (state == State{}) [[unlikely]]
      throw_config_error("Rng: state", "a word that is not zero", 0);
  }

  /// Where this generator stands.
  [[nodiscard]] const State& state() const { return state_; }

  /// An independent generator: a pure function of this state and `stream`, which leaves this generator as it was.
  /// Different streams of one state never coincide.
  [[nodiscard]] Rng split(std::uint64_t stream) const {
    // Each step is a bijection of `seed`, so different streams end in different seeds.
    std::uint64_t seed = detail::mix_bits(stream + 0x9e3779b97f4a7c15u);
    for (const std::uint64_t word : state_.words) seed = detail::mix_bits((seed ^ word) + 0x9e3779b97f4a7c15u);
    return Rng(seed);
  }

  /// 64 random bits.
  std::uint64_t bits() {
    auto& [a, b, c, d] = state_.words;
    const std::uint64_t result = std::rotl(a + d, 23) + a;
    const std::uint64_t shifted = b << 17;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= shifted;
    d = std::rotl(d, 45);
    return result;
  }

  /// Uniform in [0, 1), a multiple of 2⁻⁵³.
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

  /// Uniform between lo and hi: lo + (hi − lo) u in double, rounded to T, at most hi. hi itself comes up only by
  /// rounding. Throws ConfigError unless hi − lo is finite and ≥ 0.
  template <Real T>
  T uniform(T lo, T hi) {
    const double width = static_cast<double>(hi) - static_cast<double>(lo);
    if (!(width >= 0 && width <= std::numeric_limits<double>::max())) [[unlikely]]
      throw_config_error("Rng::uniform: hi - lo", "finite and >= 0", width);
    return std::min(hi, static_cast<T>(std::fma(width, uniform(), static_cast<double>(lo))));
  }

  /// Uniform in 0 … n−1, without bias. Throws ConfigError unless n ≥ 1. Source: Lemire 2019, algorithm 5.
  Index below(Index n) {
    if (n < 1) [[unlikely]]
      throw_config_error("Rng::below", "n >= 1", static_cast<double>(n));
    __extension__ using Wide = unsigned __int128;
    const auto range = static_cast<std::uint64_t>(n);
    Wide product = Wide(bits()) * range;
    if (static_cast<std::uint64_t>(product) < range) [[unlikely]] {
      const std::uint64_t biased = (0 - range) % range;  // the low words that would come up once too often
      while (static_cast<std::uint64_t>(product) < biased) product = Wide(bits()) * range;
    }
    return static_cast<Index>(product >> 64);
  }

  /// Standard normal, in double and then rounded to T. Source: Marsaglia's polar method (Marsaglia & Bray 1964); the
  /// second number of the pair is not kept, so that the state stays four words.
  template <Real T = double>
  T normal() {
    // (u, v) uniform in the unit disk, s = u² + v²; u √(−2 log s / s) is normal.
    double u, s;
    do {
      u = std::fma(2.0, uniform(), -1.0);
      const double v = std::fma(2.0, uniform(), -1.0);
      s = std::fma(u, u, v * v);
    } while (s >= 1 || s == 0);
    // fma(…, 0) and not a plain product: a caller's `x + rng.normal()` would else become an fma on some targets only.
    return static_cast<T>(std::fma(u, std::sqrt(-2 * detail::portable_log(s) / s), 0.0));
  }

  /// Puts the values into random order, each order equally likely. O(n). Source: Fisher–Yates.
  template <class T>
  void shuffle(std::span<T> values) {
    for (std::size_t i = values.size(); i > 1; --i)
      std::swap(values[i - 1], values[static_cast<std::size_t>(below(static_cast<Index>(i)))]);
  }

  /// The same as `bits()`, for the algorithms of the standard library.
  std::uint64_t operator()() { return bits(); }
  /// The smallest value of `bits()`.
  static constexpr std::uint64_t min() { return 0; }
  /// The largest value of `bits()`.
  static constexpr std::uint64_t max() { return std::numeric_limits<std::uint64_t>::max(); }

 private:
  State state_;
};

}  // namespace ruvector::inline RUVECTOR_ABI
