// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/simd/arch.hpp"

#include <span>

// Products, sums and updates of vectors. Every sum has one accumulator a lane and one order: lane l takes the elements
// l, l + lanes, l + 2·lanes, …, then the lanes are added by `reduce_add`. So a result depends on the values (and the
// number of lanes of the build) alone: not on alignment, position, or what stands beside it. Pointers are aligned to
// T, no more; nothing outside of the n elements is touched. O(n).

namespace ruvector::inline RUVECTOR_ABI::simd {

namespace detail {

/// Σ_i term(accumulator, i-th chunk of a, i-th chunk of b), the tail filled with zeros.
template <Real T, class Term>
[[gnu::flatten]] T sum_of_terms(const T* a, const T* b, Index n, Term term) {
  constexpr Index width = lanes<T>;
  Batch<T> sum(T(0));
  Index i = 0;
  for (; i + width <= n; i += width) sum = term(sum, load(a + i), load(b + i));
  if (i < n) sum = term(sum, load_partial(a + i, n - i), load_partial(b + i, n - i));
  return reduce_add(sum);
}

/// y[i] = f(x[i], y[i]), the tail through the same vector code.
template <Real T, class F>
[[gnu::flatten]] void update(const T* x, T* y, Index n, F f) {
  constexpr Index width = lanes<T>;
  Index i = 0;
  for (; i + width <= n; i += width) store(y + i, f(load(x + i), load(y + i)));
  if (i < n) store_partial(y + i, n - i, f(load_partial(x + i, n - i), load_partial(y + i, n - i)));
}

}  // namespace detail

/// a·b = Σ a_i b_i.
template <Real T>
[[nodiscard]] T dot(const T* a, const T* b, Index n) noexcept {
  return detail::sum_of_terms(a, b, n, [](Batch<T> sum, Batch<T> x, Batch<T> y) { return fma(x, y, sum); });
}

/// ‖a − b‖² = Σ (a_i − b_i)².
template <Real T>
[[nodiscard]] T squared_distance(const T* a, const T* b, Index n) noexcept {
  return detail::sum_of_terms(a, b, n, [](Batch<T> sum, Batch<T> x, Batch<T> y) {
    const Batch<T> difference = x - y;
    return fma(difference, difference, sum);
  });
}

/// ‖a‖² = Σ a_i².
template <Real T>
[[nodiscard]] T squared_norm(const T* a, Index n) noexcept {
  return dot(a, a, n);
}

/// Σ a_i.
template <Real T>
[[nodiscard]] T sum(const T* a, Index n) noexcept {
  return detail::sum_of_terms(a, a, n, [](Batch<T> sum, Batch<T> x, Batch<T>) { return sum + x; });
}

/// y += α x.
template <Real T>
void axpy(std::type_identity_t<T> alpha, const T* x, T* y, Index n) noexcept {
  detail::update(x, y, n, [alpha](Batch<T> xi, Batch<T> yi) { return fma(Batch<T>(alpha), xi, yi); });
}

/// x *= α.
template <Real T>
void scale(std::type_identity_t<T> alpha, T* x, Index n) noexcept {
  detail::update(x, x, n, [alpha](Batch<T> xi, Batch<T>) { return alpha * xi; });
}

/// a·b of spans of equal length.
template <Real T>
[[nodiscard]] T dot(std::span<const T> a, std::type_identity_t<std::span<const T>> b) noexcept {
  RUVECTOR_ASSERT(a.size() == b.size());
  return dot(a.data(), b.data(), Index(a.size()));
}

/// ‖a − b‖² of spans of equal length.
template <Real T>
[[nodiscard]] T squared_distance(std::span<const T> a, std::type_identity_t<std::span<const T>> b) noexcept {
  RUVECTOR_ASSERT(a.size() == b.size());
  return squared_distance(a.data(), b.data(), Index(a.size()));
}

/// ‖a‖² of a span.
template <Real T>
[[nodiscard]] T squared_norm(std::span<const T> a) noexcept {
  return squared_norm(a.data(), Index(a.size()));
}

/// Σ a_i of a span.
template <Real T>
[[nodiscard]] T sum(std::span<const T> a) noexcept {
  return sum(a.data(), Index(a.size()));
}

/// y += α x for spans of equal length.
template <Real T>
void axpy(std::type_identity_t<T> alpha, std::type_identity_t<std::span<const T>> x, std::span<T> y) noexcept {
  RUVECTOR_ASSERT(x.size() == y.size());
  axpy(alpha, x.data(), y.data(), Index(y.size()));
}

/// x *= α for a span.
template <Real T>
void scale(std::type_identity_t<T> alpha, std::span<T> x) noexcept {
  scale(alpha, x.data(), Index(x.size()));
}

}  // namespace ruvector::inline RUVECTOR_ABI::simd
