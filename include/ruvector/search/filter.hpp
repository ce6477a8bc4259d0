// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::search {

/// Which candidates a query may see: all rules that are set must hold. A candidate that is filtered out is absent: it
/// takes no place, has no weight, and what is stored there is not looked at.
struct Filter {
  Index first = 0;                                 ///< ids from here on
  Index last = std::numeric_limits<Index>::max();  ///< ids below this
  std::span<const std::uint64_t> bitmap = {};  ///< [⌈n/64⌉] bit j % 64 of word j / 64 admits id j; empty: no rule
  std::function<bool(Index)> predicate = {};   ///< admits ids; called at once on several threads where they search

  /// Whether a candidate is admitted.
  [[nodiscard]] bool admits(Index id) const { return (word(id / 64 * 64, id % 64 + 1) >> (id % 64)) & 1; }

  /// Bit j says whether id + j is admitted, for j < count ≤ 64; id is a multiple of 64.
  [[nodiscard]] std::uint64_t word(Index id, Index count) const {
    const auto below = [&](Index end) {  // bits of ids < end
      const Index bits = std::clamp(end - id, Index(0), count);
      return bits == 64 ? ~std::uint64_t(0) : (std::uint64_t(1) << bits) - 1;
    };
    std::uint64_t admitted = below(last) & ~below(first);
    if (!bitmap.empty()) admitted &= bitmap[std::size_t(id / 64)];
    if (predicate)
      for (std::uint64_t left = admitted; left != 0; left &= left - 1)
        if (!predicate(id + std::countr_zero(left))) admitted &= ~(left & -left);
    return admitted;
  }

  /// Throws ShapeError unless the bitmap, where there is one, has a bit for each of n candidates.
  void check(Index n) const {
    if (!bitmap.empty()) check_shape("Filter: words of the bitmap", n / 64 + (n % 64 != 0), Index(bitmap.size()));
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::search
