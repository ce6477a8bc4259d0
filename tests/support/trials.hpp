// SPDX-License-Identifier: MIT
#pragma once

#include <cstdlib>

namespace support {

/// `all` trials, or `few` where many builds run the same test and one of them makes all (RUVECTOR_QUICK_TESTS is set).
template <class N>
[[nodiscard]] N trials(N all, N few) {
  return std::getenv("RUVECTOR_QUICK_TESTS") != nullptr ? few : all;
}

/// `all` trials, or a quarter.
template <class N>
[[nodiscard]] N trials(N all) {
  return trials(all, (all + 3) / 4);
}

}  // namespace support
