// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <limits>
#include <span>
#include <string_view>

// What all manifolds share. Operations on one pair of points compute in double for float points, too: near the rim of
// the ball a float cannot hold 1 − c‖x‖², and for a single pair the cost does not matter.

namespace ruvector::inline RUVECTOR_ABI::geometry {

/// How close to the rim points may come by default: a point is projected to ‖x‖ <= (1 − ε)/√c in the ball (and to the
/// corresponding √c ‖x⃗‖ <= 1/ε on the hyperboloid) with ε = 2⁻²⁴ in float and 2⁻⁴⁰ in double, which allows distances
/// from the origin of up to 17.3/√c and 28.4/√c. Training may want a larger ε: pass it to `project`.
template <Real T>
inline constexpr T boundary_margin = std::same_as<T, float> ? T(0x1p-24) : T(0x1p-40);

namespace detail {

template <class T>
[[nodiscard]] Index length(std::span<T> x) {
  return static_cast<Index>(x.size());
}

/// Σ_i term(i) for i < n, in eight interleaved chains: one fixed order that compilers can still vectorise.
template <class Term>
[[nodiscard]] double sum(Index n, Term term) {
  constexpr Index chains = 8;
  std::array<double, chains> partial{};
  Index i = 0;
  for (; i + chains <= n; i += chains)
    for (Index k = 0; k < chains; ++k) partial[std::size_t(k)] += term(i + k);
  for (Index k = 0; i + k < n; ++k) partial[std::size_t(k)] += term(i + k);
  return ((partial[0] + partial[1]) + (partial[2] + partial[3])) +
         ((partial[4] + partial[5]) + (partial[6] + partial[7]));
}

/// Σ a_i b_i in double, in the order of `sum`, which written with pointers becomes vector code.
template <Real T>
[[nodiscard]] double dot(std::span<const T> a, std::span<const T> b) {
  constexpr std::size_t chains = 8;
  const T *x = a.data(), *y = b.data();
  const std::size_t n = a.size();
  double partial[chains] = {};
  std::size_t i = 0;
  for (; i + chains <= n; i += chains)
    for (std::size_t k = 0; k < chains; ++k) partial[k] += double(x[i + k]) * double(y[i + k]);
  for (std::size_t k = 0; i + k < n; ++k) partial[k] += double(x[i + k]) * double(y[i + k]);
  return ((partial[0] + partial[1]) + (partial[2] + partial[3])) +
         ((partial[4] + partial[5]) + (partial[6] + partial[7]));
}

/// out_i = value(i).
template <Real T, class Value>
void assign(std::span<T> out, Value value) {
  for (Index i = 0; i < length(out); ++i) out[std::size_t(i)] = static_cast<T>(value(i));
}

/// out_i += value(i); an empty span is not wanted.
template <Real T, class Value>
void accumulate(std::span<T> out, Value value) {
  for (Index i = 0; i < length(out); ++i) out[std::size_t(i)] = static_cast<T>(double(out[std::size_t(i)]) + value(i));
}

/// v rounded to T so that |result| <= |v|.
template <Real T>
[[nodiscard]] T round_toward_zero(double v) {
  const T rounded = static_cast<T>(v);
  return std::abs(double(rounded)) > std::abs(v) ? std::nextafter(rounded, T(0)) : rounded;
}

/// Throws ShapeError unless all spans have `expected` elements.
template <class... Spans>
void check_lengths([[maybe_unused]] std::string_view what, [[maybe_unused]] Index expected, const Spans&... spans) {
  (check_shape(what, expected, static_cast<Index>(spans.size())), ...);
}

/// The same for gradients, of which an empty one is not wanted.
template <class... Spans>
void check_wanted([[maybe_unused]] std::string_view what, [[maybe_unused]] Index expected, const Spans&... spans) {
  ((spans.empty() ? void() : check_shape(what, expected, static_cast<Index>(spans.size()))), ...);
}

template <Real T>
void check_wanted(std::string_view what, MatrixView<const T> like, MatrixView<T> gradient) {
  if (gradient.empty()) return;
  check_shape(what, like.rows(), gradient.rows());
  check_shape(what, like.cols(), gradient.cols());
}

/// c as a double. Throws ConfigError unless it is finite and positive: the member is public, and an optimizer may have
/// moved it.
template <Real T>
[[nodiscard]] double checked_curvature(T c) {
  if (!(c > 0 && c <= std::numeric_limits<T>::max())) [[unlikely]]
    throw_config_error("curvature", "finite and > 0", double(c));
  return double(c);
}

/// A margin as a double. Throws ConfigError unless 0 < margin < 1.
template <Real T>
[[nodiscard]] double checked_margin(T margin) {
  if (!(margin > 0 && margin < 1)) [[unlikely]]
    throw_config_error("project: margin", "0 < margin < 1", double(margin));
  return double(margin);
}

/// A vector as the formulas see it: moved back to the sphere √c ‖x‖ = `reach` if it was outside.
struct Clipped {
  double scale = 1;    // the formulas use scale · x
  double square = 0;   // ‖scale · x‖²
  bool moved = false;  // scale is not 1
};

template <Real T>
[[nodiscard]] Clipped clip(std::span<const T> x, double c, double reach) {
  const double square = dot(x, x);
  if (!(c * square > reach * reach)) [[likely]]  // NaN stays
    return {1, square, false};
  const double limit = reach / std::sqrt(c);
  if (square <= std::numeric_limits<double>::max()) return {limit / std::sqrt(square), limit * limit, true};
  // The square overflowed: measure in units of the largest component.
  double largest = 0;
  for (const T v : x) largest = std::max(largest, std::abs(double(v)));
  const double units = std::sqrt(sum(length(x), [&](Index i) {
    const double unit = double(x[std::size_t(i)]) / largest;
    return unit * unit;
  }));
  return {limit / units / largest, limit * limit, true};
}

/// Where x' = limit · x/‖x‖ has replaced x, the gradient by x is that by x' without its radial part. Returns the
/// coefficient of x' that removes it, given `radial` = x'·(gradient by x'). The limit is proportional to 1/√c.
[[nodiscard]] inline double pull_back(const Clipped& x, double radial, double c, double& d_curvature) {
  if (!x.moved) return 0;
  d_curvature -= radial / (2 * c);
  return -radial / x.square;
}

/// out = x, moved inside √c ‖x‖ <= reach if it is outside. Returns whether it was moved. `out` may be x.
template <Real T>
bool clip_into(std::span<const T> x, std::span<T> out, double c, double reach) {
  const Clipped clipped = clip(x, c, reach);
  // A projected point must not be projected again: rounding toward zero in float, and 2⁻⁴⁸ for the rounding of double.
  const double scale = clipped.scale * (1 - 0x1p-48);
  if (clipped.moved) [[unlikely]] {
    for (std::size_t i = 0; i < x.size(); ++i) out[i] = round_toward_zero<T>(scale * double(x[i]));
  } else if (out.data() != x.data()) {
    std::copy(x.begin(), x.end(), out.begin());
  }
  return clipped.moved;
}

}  // namespace detail

}  // namespace ruvector::inline RUVECTOR_ABI::geometry
