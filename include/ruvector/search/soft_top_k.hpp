// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/workspace.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <span>

// Alternatives to the softmax for choosing among scores s [n], each a differentiable map to weights p [n] with a
// temperature τ > 0: small τ chooses hard, large τ spreads. What they have in common:
//
//   forward(s, p, ws)                   writes p. A score of −∞ or NaN is absent: its p is 0. With none present p is 0.
//                                       Several +∞ share what there is.
//   backward(s, p, d_p, d_s)            adds to d_s and returns the gradient by τ, which is −Σ s_i d_s_i/τ since p is a
//                                       function of s/τ. Scores that are not finite have none.
//
// Both throw ShapeError where lengths differ, ConfigError where τ (or k) is out of range. Sums run in double.

namespace ruvector::inline RUVECTOR_ABI::search {

namespace detail {

template <Real T>
void check_selection(double temperature, std::size_t n, std::size_t other) {
  if (!(temperature > 0) || !std::isfinite(temperature))
    throw_config_error("soft selection: temperature", "positive and finite", temperature);
  check_shape("soft selection: elements", Index(n), Index(other));
}

/// What of ±∞ and NaN can be decided without arithmetic: p = 0 for what is absent, `total` shared out among +∞. Returns
/// false if that was all; else `largest` is the largest of `present` finite scores.
template <Real T>
[[nodiscard]] bool select_finite(std::span<const T> s, std::span<T> p, double total, double& largest, Index& present) {
  std::ranges::fill(p, T(0));
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const auto infinite = std::ranges::count(s, infinity);
  largest = -std::numeric_limits<double>::infinity();
  present = 0;
  for (std::size_t i = 0; i < s.size(); ++i) {
    if (infinite > 0 && s[i] == infinity) p[i] = T(std::min(1.0, total / double(infinite)));
    if (!std::isfinite(s[i])) continue;
    largest = std::max(largest, double(s[i]));
    ++present;
  }
  return infinite == 0 && present > 0;
}

/// p = weight(x − θ) for x = (s − max s)/scale, where `threshold` finds θ from those x, the largest first.
template <Real T, class Threshold, class Weight>
void select_on_simplex(std::span<const T> s, std::span<T> p, double scale, Workspace& ws, Threshold&& threshold,
                       Weight&& weight) {
  double largest;
  Index present;
  if (!select_finite(s, p, 1, largest, present)) return;
  auto frame = ws.frame();
  const std::span<double> sorted = frame.template span<double>(present);
  const auto scaled = [&](T si) { return (double(si) - largest) / scale; };
  std::size_t at = 0;
  for (const T si : s)
    if (std::isfinite(si)) sorted[at++] = scaled(si);
  std::ranges::sort(sorted, std::greater<>());
  const double theta = threshold(std::span<const double>(sorted));
  for (std::size_t i = 0; i < s.size(); ++i)
    if (std::isfinite(s[i])) p[i] = T(weight(std::max(0.0, scaled(s[i]) - theta)));
}

/// d_s += J d with J = (diag(w) − w wᵀ/Σw)/τ, which all three maps have, each with its own w [n]; returns that of τ.
template <Real T, class Weight>
[[nodiscard]] T select_backward(std::span<const T> s, std::span<const T> d_p, std::span<T> d_s, double temperature,
                                Weight&& weight) {
  check_shape("soft selection: elements of d_p", Index(s.size()), Index(d_p.size()));
  check_shape("soft selection: elements of d_s", Index(s.size()), Index(d_s.size()));
  double sum = 0, mean = 0, d_temperature = 0;
  for (std::size_t i = 0; i < s.size(); ++i)
    if (const double w = weight(i); w > 0) {
      sum += w;
      mean += w * double(d_p[i]);
    }
  if (!(sum > 0)) return 0;
  mean /= sum;
  for (std::size_t i = 0; i < s.size(); ++i)
    if (const double w = weight(i); w > 0) {
      const double d = w * (double(d_p[i]) - mean) / temperature;
      d_s[i] += T(d);
      d_temperature -= d * double(s[i]) / temperature;
    }
  return T(d_temperature);
}

}  // namespace detail

/// p = argmin ‖p − s/τ‖ over the simplex = [s/τ − θ]₊: most weights are exactly 0. Σp = 1. O(n log n). Source: Martins
/// and Astudillo, "From Softmax to Sparsemax" (2016), algorithm 1 and eq. 9.
template <Real T>
struct Sparsemax {
  using Scalar = T;   ///< what scores and weights are
  T temperature = 1;  ///< τ

  /// p [n] of s [n].
  void forward(std::span<const T> s, std::span<T> p, Workspace& ws) const {
    detail::check_selection<T>(double(temperature), s.size(), p.size());
    const auto threshold = [](std::span<const double> x) {
      double sum = 0, theta = 0;
      for (std::size_t r = 0; r < x.size() && (r == 0 || x[r] > theta); ++r) {
        sum += x[r];
        theta = (sum - 1) / double(r + 1);
      }
      return theta;
    };
    detail::select_on_simplex(s, p, double(temperature), ws, threshold, [](double above) { return above; });
  }

  /// d_s [n] += the gradient; returns that of τ.
  [[nodiscard]] T backward(std::span<const T> s, std::span<const T> p, std::span<const T> d_p, std::span<T> d_s) const {
    detail::check_selection<T>(double(temperature), s.size(), p.size());
    return detail::select_backward<T>(s, d_p, d_s, double(temperature),
                                      [&](std::size_t i) { return p[i] > 0 && std::isfinite(s[i]) ? 1.0 : 0.0; });
  }
};

/// 1.5-entmax, between softmax and sparsemax: p = [s/2τ − θ]₊², Σp = 1. O(n log n). Source: Peters, Niculae and
/// Martins, "Sparse Sequence-to-Sequence Models" (2019), algorithm 2 and proposition 2.
template <Real T>
struct Entmax15 {
  using Scalar = T;   ///< what scores and weights are
  T temperature = 1;  ///< τ

  /// p [n] of s [n].
  void forward(std::span<const T> s, std::span<T> p, Workspace& ws) const {
    detail::check_selection<T>(double(temperature), s.size(), p.size());
    const auto threshold = [](std::span<const double> x) {
      double mean = 0, squares = 0, theta = -1;  // squares: Σ (x − mean)², updated as Welford does
      for (std::size_t r = 0; r < x.size() && (r == 0 || x[r] > theta); ++r) {
        const double count = double(r + 1), step = x[r] - mean;
        mean += step / count;
        squares += step * (x[r] - mean);
        theta = mean - std::sqrt(std::max(0.0, 1 - squares) / count);
      }
      return theta;
    };
    detail::select_on_simplex(s, p, 2 * double(temperature), ws, threshold, [](double above) { return above * above; });
  }

  /// d_s [n] += the gradient; returns that of τ.
  [[nodiscard]] T backward(std::span<const T> s, std::span<const T> p, std::span<const T> d_p, std::span<T> d_s) const {
    detail::check_selection<T>(double(temperature), s.size(), p.size());
    return detail::select_backward<T>(s, d_p, d_s, double(temperature), [&](std::size_t i) {
      return std::isfinite(s[i]) ? std::sqrt(double(p[i])) : 0.0;
    });
  }
};

/// p = σ((s − ν)/τ) with ν such that Σp = k: membership in the k best, each at most 1. With no more than k present all
/// are 1. O(n) a step of at most 100 steps, usually 10. Source: bisection for ν as in Xie et al. (2020) and Ahle
/// (2022); the gradient is that of the implicit function.
template <Real T>
struct SoftTopK {
  using Scalar = T;   ///< what scores and weights are
  Index k = 1;        ///< how many, ≥ 0
  T temperature = 1;  ///< τ

  /// p [n] of s [n].
  void forward(std::span<const T> s, std::span<T> p, Workspace&) const {
    check(s.size(), p.size());
    double largest;
    Index present;
    if (!detail::select_finite(s, p, double(k), largest, present) || k == 0) return;
    const auto scaled = [&](T si) { return (double(si) - largest) / double(temperature); };
    const auto weight = [](double x) { return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); };
    if (present <= k) {
      for (std::size_t i = 0; i < s.size(); ++i)
        if (std::isfinite(s[i])) p[i] = 1;
      return;
    }
    // Σp falls with ν. At the lower end every p is at least k/n, at the upper end none is above it.
    const double odds = std::log(double(k) / double(present - k));
    double smallest = 0;
    for (const T si : s)
      if (std::isfinite(si)) smallest = std::min(smallest, scaled(si));
    double low = smallest - odds, high = -odds, nu = high;
    for (int step = 0; step < 100 && low < high; ++step) {
      double sum = -double(k), slope = 0;
      for (const T si : s)
        if (std::isfinite(si)) {
          const double w = weight(scaled(si) - nu);
          sum += w;
          slope += w * (1 - w);
        }
      if (sum == 0) break;
      (sum > 0 ? low : high) = nu;
      double next = slope > 0 ? nu + sum / slope : low;  // Newton's step, where it stays between the ends
      if (!(next > low && next < high)) next = 0.5 * (low + high);
      if (next == nu) break;
      nu = next;
    }
    for (std::size_t i = 0; i < s.size(); ++i)
      if (std::isfinite(s[i])) p[i] = T(weight(scaled(s[i]) - nu));
  }

  /// d_s [n] += the gradient; returns that of τ.
  [[nodiscard]] T backward(std::span<const T> s, std::span<const T> p, std::span<const T> d_p, std::span<T> d_s) const {
    check(s.size(), p.size());
    return detail::select_backward<T>(s, d_p, d_s, double(temperature), [&](std::size_t i) {
      return std::isfinite(s[i]) ? double(p[i]) * (1 - double(p[i])) : 0.0;
    });
  }

 private:
  void check(std::size_t n, std::size_t other) const {
    detail::check_selection<T>(double(temperature), n, other);
    if (k < 0) throw_config_error("SoftTopK: k", ">= 0", double(k));
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::search
