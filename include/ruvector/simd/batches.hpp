// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/real.hpp"
#include "ruvector/simd/arch.hpp"

// A loop over an array, a register full at a time, whose tail goes through the same code as the rest.

namespace ruvector::inline RUVECTOR_ABI::simd {

/// Elements that fill a register.
template <Real T>
struct AllLanes {
  /// p[0…lanes−1].
  ///@{
  [[nodiscard]] Batch<T> load(const T* p) const { return simd::load(p); }
  [[nodiscard]] Batch<T> load(const T* p, Batch<T>) const { return simd::load(p); }
  ///@}
  /// Writes all lanes.
  void store(T* p, Batch<T> x) const { simd::store(p, x); }
};

/// The last elements of an array, which do not fill a register.
template <Real T>
struct FirstLanes {
  Index count;  ///< how many: 0 < count < lanes
  /// p[0…count−1]; the other lanes are zero.
  [[nodiscard]] Batch<T> load(const T* p) const { return simd::load_partial(p, count); }
  /// p[0…count−1]; the other lanes are those of `instead`.
  [[nodiscard]] Batch<T> load(const T* p, Batch<T> instead) const {
    return simd::select(simd::first_lanes<T>(count), load(p), instead);
  }
  /// Writes the first `count` lanes and touches no other memory.
  void store(T* p, Batch<T> x) const { simd::store_partial(p, count, x); }
};

/// Calls body(i, lanes) for every register full of n elements, i the first of them, in order: `lanes` (AllLanes or, for
/// the tail, FirstLanes) loads and stores them,
///
///     for_each_batch<T>(n, [&](Index i, auto lanes) { lanes.store(y + i, f(lanes.load(x + i))); });
template <Real T, class Body>
void for_each_batch(Index n, Body&& body) {
  Index i = 0;
  for (; i + simd::lanes<T> <= n; i += simd::lanes<T>) body(i, AllLanes<T>{});
  if (i < n) body(i, FirstLanes<T>{n - i});
}

}  // namespace ruvector::inline RUVECTOR_ABI::simd
