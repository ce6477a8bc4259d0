// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/view.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// The keys that one query sees before dense bytes are asked: 0 … globals−1 and first … last−1, which may overlap.
struct VisibleKeys {
  Index globals = 0;  ///< keys that are seen from everywhere
  Index first = 0;    ///< of the window
  Index last = 0;     ///< past the window

  /// Whether key j is among them.
  [[nodiscard]] bool contains(Index j) const { return j < globals || (first <= j && j < last); }
  /// Whether none of the keys begin … end−1 is among them.
  [[nodiscard]] bool misses(Index begin, Index end) const {
    return begin >= globals && (end <= first || last <= begin);
  }
  /// Whether all of the keys begin … end−1 are among them.
  [[nodiscard]] bool covers(Index begin, Index end) const {
    return end <= globals || (first <= begin && end <= last) || (first <= globals && end <= last);
  }
};

/// Which keys a query sees, as one value for all backends. Every rule that is set must hold. Query i of m stands at
/// position i + (n − m) among n keys: the last query is aligned with the last key, as caches of keys need it; or at
/// i + first_position, where that is set.
struct Mask {
  static constexpr Index unlimited = -1;  ///< no limit

  bool causal = false;             ///< key j is seen from position p only if j ≤ p
  Index window_left = unlimited;   ///< j ≥ p − window_left
  Index window_right = unlimited;  ///< j ≤ p + window_right
  Index global_keys = 0;           ///< the first keys escape the window (local–global attention), not the other rules
  Index key_length = unlimited;    ///< keys from here on count as absent: n is this for the rules above
  std::optional<Index> first_position = {};     ///< position of query 0 among the keys; default n − m
  MatrixView<const std::uint8_t> allowed = {};  ///< [m×n], or [1×n] for all queries; 0 hides a key; empty: no rule

  /// Whether no rule is set: every query sees every key.
  [[nodiscard]] bool empty() const {
    return !causal && window_left == unlimited && window_right == unlimited && key_length == unlimited && !dense();
  }
  /// Whether single keys can be hidden inside the range of `visible`.
  [[nodiscard]] bool dense() const { return allowed.data() != nullptr; }
  /// The bytes of query i: [n], where `dense()`.
  [[nodiscard]] const std::uint8_t* allowed_row(Index i) const {
    return allowed.data() + (allowed.rows() == 1 ? 0 : i * allowed.stride());
  }

  /// Keys that exist: n, or key_length where that is less.
  [[nodiscard]] Index keys(Index n) const { return key_length == unlimited ? n : std::min(n, key_length); }
  /// Where query i of m stands among n keys.
  [[nodiscard]] Index position(Index i, Index m, Index n) const {
    return first_position ? i + *first_position : i + keys(n) - m;
  }

  /// The keys that query i of m sees among n, dense bytes apart. O(1).
  [[nodiscard]] VisibleKeys visible(Index i, Index m, Index n) const {
    const Index end = this->keys(n), at = position(i, m, n);
    const Index reach = causal ? std::clamp(at + 1, Index(0), end) : end;
    VisibleKeys keys;
    keys.first = window_left == unlimited ? 0 : std::clamp(at - window_left, Index(0), reach);
    keys.last = window_right == unlimited ? reach : std::clamp(at + window_right + 1, keys.first, reach);
    keys.globals = std::min(global_keys, reach);
    return keys;
  }

  /// The same rules for queries first … first+count−1 of m alone.
  [[nodiscard]] Mask query_rows(Index first, Index count, Index m, Index n) const {
    Mask rows = *this;
    rows.first_position = position(first, m, n);
    if (dense() && allowed.rows() == m) rows.allowed = allowed.rows(first, count);
    return rows;
  }

  /// The same rules for keys first … first+count−1 of n alone, counted from 0.
  [[nodiscard]] Mask key_rows(Index first, Index count, Index m, Index n) const {
    Mask rows = *this;
    rows.first_position = position(0, m, n) - first;
    rows.global_keys = std::clamp(global_keys - first, Index(0), count);
    if (key_length != unlimited) rows.key_length = std::clamp(key_length - first, Index(0), count);
    if (dense()) rows.allowed = allowed.cols(first, count);
    return rows;
  }

  /// Throws ConfigError for a negative limit, ShapeError unless the bytes are [m×n] or [1×n].
  void check(Index m, Index n) const {
    if (window_left < unlimited) throw_config_error("Mask: window_left", ">= 0, or unlimited", double(window_left));
    if (window_right < unlimited) throw_config_error("Mask: window_right", ">= 0, or unlimited", double(window_right));
    if (key_length < unlimited) throw_config_error("Mask: key_length", ">= 0, or unlimited", double(key_length));
    if (global_keys < 0) throw_config_error("Mask: global_keys", ">= 0", double(global_keys));
    if (!dense()) return;
    check_shape("Mask: rows of allowed", allowed.rows() == 1 ? 1 : m, allowed.rows());
    check_shape("Mask: columns of allowed", n, allowed.cols());
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
